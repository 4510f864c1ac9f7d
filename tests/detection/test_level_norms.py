"""RetinaNet's towers normalise every level of the pyramid with its own statistics, in training and in evaluation."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detection.retinanet import RetinaHead
from helpers.detector_cases import WIDTH, sampled_arch, tiny
from supernet.errors import InputError
from supernet.export import load_exported
from supernet.scoring.batch_norm import recalibrate_bn
from supernet.testing import randomize
from supernet.training.checkpoint import check_release, load_weights, save_weights

SCALES = (1.0, 5.0, 40.0)


def _maps(seed: int = 0) -> tuple[Tensor, ...]:
    """Maps of three levels whose scales differ as those of a trained pyramid do."""
    generator = torch.Generator().manual_seed(seed)
    sides = (32, 16, 8)
    return tuple(
        scale * torch.randn(8, WIDTH, side, side, generator=generator)
        for scale, side in zip(SCALES, sides, strict=True)
    )


def _head() -> RetinaHead:
    head = RetinaHead(WIDTH, 1, 3, levels=3, convs=2, norm="batch")
    randomize(head, seed=1)
    return head


def test_each_level_is_evaluated_with_its_own_statistics() -> None:
    """One set of statistics for all levels, as in releases before, would make the outputs of most levels differ."""
    head, maps = _head(), _maps()
    recalibrate_bn(head, [maps])  # type: ignore[list-item]
    tower = head.head.classification_head.conv
    first = tower[0][1]
    deviations = [norm.running_var.sqrt().mean().item() for norm in first]
    assert deviations[1] / deviations[0] == pytest.approx(5, rel=0.2)
    assert deviations[2] / deviations[0] == pytest.approx(40, rel=0.2)
    with torch.no_grad():
        for level, x in enumerate(maps):
            evaluated = head.of_level(x, level)["cls_logits"]
            normalised = copy.deepcopy(head).train().of_level(x, level)["cls_logits"]
            difference = (evaluated - normalised).abs().max() / normalised.abs().max()
            assert difference < 0.02, level  # the running variance is the unbiased one
            conv, norm = tower[0][0], first[level]
            expected = nn.functional.batch_norm(
                conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            ).relu()
            torch.testing.assert_close(first(conv(x), level).relu(), expected)


def test_levels_share_convolutions_and_own_their_norms() -> None:
    """As in NAS-FPN's and EfficientDet's code: each level has its scale and shift, 2 × width for each of 2 × convs."""
    batch, plain = _head(), RetinaHead(WIDTH, 1, 3, levels=3, convs=2, norm="none")

    def parameters(head: nn.Module) -> int:
        return sum(parameter.numel() for parameter in head.parameters())

    assert parameters(batch) - parameters(plain) == 2 * 2 * (3 * 2 * WIDTH - WIDTH)  # norms replace the biases


def _old_names(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a detector as an older release named them: one batch norm per convolution of a tower."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        parts = name.split(".")
        if "_head.conv." in name and parts[-3] == "1" and parts[-2].isdigit():
            if parts[-2] != "0":
                continue
            name = ".".join([*parts[:-2], parts[-1]])
        tensors[name] = tensor
    return tensors


def test_weights_of_an_older_release_are_refused_by_name(tmp_path: Path) -> None:
    detector = tiny("retinanet", norm="batch", head_convs=1)
    network = detector.subnet(sampled_arch(detector))
    for module in (detector, network):
        with pytest.raises(InputError, match=r"old\.pt was written by an older release: .*towers.*; train again"):
            check_release(Path("old.pt"), module, _old_names(module))
        check_release(Path("new.pt"), module, module.state_dict())
    path = tmp_path / "network.safetensors"

    class Old(nn.Module):
        def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:  # type: ignore[override]
            return _old_names(network)

    save_weights(path, Old(), {})
    with pytest.raises(InputError, match="one batch norm for all levels, which fits none of them in evaluation"):
        load_weights(path, network)


def test_an_export_of_an_older_release_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "preprocess.json").write_text('{"longest": 0}')
    parity = {"format": 1, "sha256": {}, "inputs": {"shapes": [[1, 3, 8, 8]]}}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    with pytest.raises(InputError, match=r"detector exported by an older release.*; train and export it again"):
        load_exported(tmp_path)
