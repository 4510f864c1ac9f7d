"""Resolution as a decision: the contract, costs, shared prefixes, transformers, and what is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

from helpers.scoring_cases import random_images
from supernet import create_network, create_supernet
from supernet.blocks.resolution import Resize, without_resize
from supernet.blocks.transformer import positioned
from supernet.chain import largest
from supernet.cost import CostTable, LatencyTable, count
from supernet.errors import InputError
from supernet.evaluate import Matched, SharedWeights
from supernet.spaces.elastic import ElasticChain, elastic
from supernet.testing import check_space, randomize

SETTINGS = {"model": "lcnet_035", "num_classes": 5, "input_size": 48, "drop": 1}


def supernet(**settings: object) -> ElasticChain:
    chain = create_supernet(
        "elastic", **{**SETTINGS, "resolutions": (32, 40), **settings}, generator=torch.Generator().manual_seed(0)
    )
    assert isinstance(chain, ElasticChain)
    return chain


def test_the_contract_and_the_costs_of_every_resolution() -> None:
    """40 pixels is not a multiple of the stride of 32."""
    net = supernet()
    assert net.space["input.resolution"].options == (32, 40, 48)
    check_space(net, archs=1)
    full, table = largest(net.space), CostTable(net)
    for pixels in (32, 40, 48):
        arch = net.space.canonical({**full, "input.resolution": pixels})
        network, size = without_resize(net.subnet(arch))
        assert size == pixels
        assert table(arch)["macs"] == count(network, (3, pixels, pixels))["macs"]
    whole = elastic(timm.create_model("lcnet_035", num_classes=5), input_size=48)
    assert table(full) == CostTable(whole)(largest(whole.space))


def test_scores_follow_and_prefixes_are_shared_per_resolution() -> None:
    net = supernet().eval()
    randomize(net, 0)
    calibration, images = random_images(32, 48, 1), random_images(32, 48, 2)
    full = largest(net.space)
    archs = [
        net.space.canonical({**full, "input.resolution": pixels, "stage5.depth": depth})
        for pixels in (32, 48)
        for depth in (1, 2)
    ]
    scorer = SharedWeights(net, calibration, images, bn=Matched(1, 32), batch=32)
    together = scorer(archs)
    assert scorer.steps_run < scorer.steps_asked
    assert together == SharedWeights(net, calibration, images, bn=Matched(1, 32), batch=32, share=False)(archs)
    x = next(iter(images.batches(32)))[0]
    network, _ = without_resize(scorer.subnet(archs[0]))
    small = functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False, antialias=True)
    with torch.no_grad():
        assert torch.equal(network(small), scorer.subnet(archs[0])(x))


def test_the_time_of_resizing_is_not_that_of_the_network(tmp_path: Path) -> None:
    net = supernet(resolutions=(32,))
    table = LatencyTable(net, seconds=1e-4, file=tmp_path / "latency.jsonl")
    table(largest(net.space))
    lines = [json.loads(line) for line in (tmp_path / "latency.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line.get("step", "").startswith("0 ")]


def test_positions_of_a_transformer_are_interpolated_as_in_timm() -> None:
    positions, token = torch.randn(8, 1 + 16), torch.zeros(8)
    first, grid = positioned(torch.zeros(1, 8, 3, 3), token, positions)
    expected = timm.layers.resample_abs_pos_embed(positions.t()[None], [3, 3], [4, 4])[0].t()
    assert torch.allclose(grid[0].flatten(1), expected[:, 1:], atol=1e-6)
    assert torch.equal(first[0], positions[:, 0])
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2, embed_dim=32, num_heads=4)
    net = elastic(model, resolutions=(32, 48))
    assert net.space["input.resolution"].options == (32, 48, 64)
    check_space(net, archs=1)
    with pytest.raises(InputError, match="40 pixels are not a multiple of the patch of 16; give 32"):
        elastic(model, resolutions=(40,))


def test_resolutions_that_cannot_be_are_named() -> None:
    with pytest.raises(InputError, match=r"resolutions=\(64,\) should be whole numbers of pixels up to 48"):
        supernet(resolutions=(64,))
    with pytest.raises(InputError, match=r"a resolution of 16 pixels is too small for the space 'elastic'.*least 32"):
        supernet(resolutions=(16,))
    assert "input.resolution" not in largest(supernet(resolutions=()).space)


def test_a_network_from_scratch_resizes_its_images() -> None:
    arch = largest(supernet().space)
    network = create_network("elastic", arch={**arch, "input.resolution": 32}, **SETTINGS, resolutions=(32, 40))
    assert isinstance(network[0], Resize)
    assert network(torch.zeros(2, 3, 48, 48)).shape == (2, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "sizes", "settings"),
    [
        ("ofa-mobilenetv3", (128, 160), {"width": 0.35}),  # all taps of its kernels of 7 meet a last map of 4 × 4
        ("attentivenas", (32, 64), {}),
    ],
)
def test_other_spaces_have_resolutions_too(space: str, sizes: tuple[int, int], settings: dict[str, object]) -> None:
    net = create_supernet(space, num_classes=5, input_size=sizes[1], resolutions=sizes[:1], **settings)  # type: ignore[arg-type]
    check_space(net, archs=1)
