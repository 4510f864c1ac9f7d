"""A network whose outputs are not finite has no score, and tensors that changed on disk are not loaded."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.scoring_cases import random_images
from helpers.toy_spaces import TOY_SPACES
from searchers import Study, search
from searchers.random_search import RandomSearch
from supernet.chain import Chain
from supernet.config import Preprocess
from supernet.data.images import Images
from supernet.errors import InputError, RunError
from supernet.export import export
from supernet.scoring.cache import ScoreCache
from supernet.scoring.metrics import accuracy, check_finite, classification
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch
from supernet.training.checkpoint import load_state, load_weights, save_state, save_weights


class _Constant(nn.Module):
    """Returns the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def _images() -> Images:
    """Most images are of the first class, whose share a network of NaN logits would score."""
    images = random_images(40, 8, 0)
    labels = torch.zeros(40, dtype=torch.int64)
    labels[:5] = 1
    return Images(images.pixels, labels, images.mean, images.std)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_no_score(bad: float) -> None:
    images = _images()
    assert accuracy(_Constant(1, 0, 0), images) == 0.875
    for logits in ((bad, bad, bad), (1.0, 0.0, bad)):  # in the second a label's logit may be finite
        metrics = classification(_Constant(*logits), images, 16)
        assert all(math.isnan(value) for value in metrics.values())
        parts = [classification.of_batch(_Constant(*logits)(x), y) for x, y in images.batches(16)]
        assert classification.correct(parts) is None
        with pytest.raises(RunError, match=r"this network scores accuracy=nan, loss=nan: its outputs are not finite"):
            check_finite(metrics, "this network")


def _poisoned() -> tuple[Chain, Arch]:
    """A supernet with NaN weights in one option, and an architecture with that option."""
    net = TOY_SPACES["chain"]()
    net.eval()
    whole = {id(parameter) for parameter in net.parameters()}
    for arch in net.space.enumerate():
        used = {id(parameter) for parameter in net.active_parameters(arch)}
        others = next(a for a in net.space.enumerate() if not used <= {id(p) for p in net.active_parameters(a)})
        only = used - {id(parameter) for parameter in net.active_parameters(others)}
        if only and only < whole:
            for parameter in net.parameters():
                if id(parameter) in only:
                    parameter.data.fill_(math.nan)
            return net, arch
    raise AssertionError


@pytest.mark.parametrize("share", [True, False])
def test_a_candidate_with_nan_weights_fails_with_its_reason(share: bool, tmp_path: Path) -> None:
    net, poisoned = _poisoned()
    images = random_images(32, net.input_shape[1], 0)
    if net.input_shape[0] != 3:
        images = Images(images.pixels[:, : net.input_shape[0]], images.labels, images.mean[:1], images.std[:1])
    with ScoreCache(tmp_path / "scores.db") as cache:
        evaluate = SharedWeights(net, images, images, share=share, cache=cache)
        assert math.isnan(evaluate([poisoned])[0]["accuracy"])
        for _ in range(2):  # the second time from the cache
            with Study(None, net.space) as study:
                best = search(RandomSearch(net.space), evaluate, study, trials=30, batch=5)
                failed = [trial for trial in study.trials() if trial.failed]
                assert {trial.failed for trial in failed} == {"evaluate returned accuracy=nan, loss=nan"}
                assert math.isfinite(best.metrics["accuracy"])
                assert not math.isnan(best.metrics["loss"])


def test_a_metric_beside_the_searched_one_must_be_finite_too() -> None:
    space = TOY_SPACES["chain"]().space
    with Study(None, space) as study, pytest.raises(RunError, match=r"evaluate returned loss=inf"):
        search(
            RandomSearch(space),
            lambda archs: [{"accuracy": 0.9, "loss": math.inf} for _ in archs],
            study,
            trials=9,
            max_failures=2,
        )


def test_a_network_whose_outputs_are_not_finite_is_not_exported(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    network[0].weight.data.fill_(math.nan)
    with pytest.raises(InputError, match=r"the output of the network is not finite .*; train it again"):
        export(network, tmp_path / "out", arch={}, space="toy", preprocess=Preprocess(4, (0.5,), (0.5,), ()))
    assert not list(tmp_path.iterdir())


def test_one_changed_byte_in_a_tensor_file_is_refused_by_name(tmp_path: Path) -> None:
    state, weights = tmp_path / "state.pt", tmp_path / "w.safetensors"
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    save_state(state, {"step": 1, "model": net.state_dict()})
    save_weights(weights, net, {"space": "x"})
    draws = random.Random(0)
    for path, name in ((state, r"state\.pt"), (weights, r"w\.safetensors")):
        content = path.read_bytes()
        for at in [0, 8, len(content) - 1, *draws.sample(range(len(content)), 100)]:
            damaged = bytearray(content)
            damaged[at] ^= 1 << draws.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=name):
                load_state(path) if path == state else load_weights(path, net)
        path.write_bytes(content)
    assert load_state(state)["step"] == 1
    assert load_weights(weights, net) == {"space": "x", "format_version": "3"}


def test_files_without_a_checksum_are_of_older_releases_only(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = nn.Linear(2, 2)
    for version, ok in (("2", True), ("3", False)):
        save_file(net.state_dict(), tmp_path / "w", {"supernet": json.dumps({"format_version": version})})
        torch.save({"format": int(version), "step": 4}, tmp_path / "s")
        if ok:
            assert load_weights(tmp_path / "w", net)["format_version"] == version
            assert load_state(tmp_path / "s")["step"] == 4
        else:
            with pytest.raises(InputError, match="w is damaged"):
                load_weights(tmp_path / "w", net)
            with pytest.raises(InputError, match="s is damaged"):
                load_state(tmp_path / "s")


def test_weights_of_nan_are_noticed_on_loading(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    net.bias.data.fill_(math.nan)
    save_weights(tmp_path / "w.safetensors", net, {})
    with pytest.raises(
        InputError, match=r"w\.safetensors holds values that are not finite, the first in tensor 'bias'"
    ):
        load_weights(tmp_path / "w.safetensors", nn.Linear(2, 2))
