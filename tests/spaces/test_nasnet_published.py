"""The published networks of cells: parameters and MACs to the digit, shapes along the way, settings."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from supernet import create_network, create_supernet, memory
from supernet.blocks.cells.graph import cell_space
from supernet.blocks.cells.ops import NASNET_OPS, PNASNET_OPS
from supernet.blocks.cells.plain import BlockCell, Output
from supernet.config import Preprocess
from supernet.cost import count
from supernet.errors import InputError
from supernet.export import export
from supernet.memory import free_memory
from supernet.spaces import GENOTYPES, NETWORKS, SPACES, builder
from supernet.spaces.nasnet import Skeleton, supernet_parameters
from supernet.spaces.published_cells import CELLS, arch_of
from supernet.testing import randomize

# name: parameters, MACs / 1e6 (auxiliary heads and batch-norm statistics apart); None: not published
ROWS: dict[str, tuple[int, float | None]] = {
    "nasnet-a-mobile": (5_289_978, 563.6),
    "nasnet-a-large": (88_753_150, 23_783.4),
    "nasnet-a-cifar": (3_346_538, 544.3),
    "pnasnet-5-mobile": (5_064_487, 587.3),
    "pnasnet-5-large": (86_057_668, 24_937.4),
    "pnasnet-5-cifar": (3_189_082, 574.9),
    "amoebanet-a-cifar-32": (2_567_754, None),
    "amoebanet-b-mobile": (5_258_700, 555.1),
}
MORE: dict[str, tuple[int, float | None]] = {
    "amoebanet-a-190": (86_718_797, 23_133.7),
    "amoebanet-c-228": (155_272_667, 41_129.5),
    "amoebanet-a-mobile": (5_086_930, 554.7),
    "amoebanet-a-448": (468_151_184, 126_520.8),  # 126.5 thousand million are known
    "amoebanet-a-cifar-36": (3_218_266, None),
    "amoebanet-b-512": (557_277_864, 298_794.0),  # 298.8 thousand million are known
    "amoebanet-c-mobile": (6_353_815, 676.9),
    "amoebanet-d-256": (121_911_016, 14_193.5),
}
# proxies of the searches: network, settings
PROXIES: list[tuple[str, dict[str, Any], tuple[int, float]]] = [
    ("pnasnet-5-cifar", {"repeats": 2, "filters": 24}, (559_090, 112.0)),
    ("amoebanet-a-cifar-32", {"repeats": 3, "filters": 24}, (843_322, 139.3)),
    ("amoebanet-a-448", {"input_size": 299}, (468_151_184, 103.9e3)),
]


def weightless(name: str, **settings: Any) -> nn.Sequential:
    """A published network on the meta device."""
    network = NETWORKS[name]
    with torch.device("meta"):
        chain = builder(network.space)(phase="standalone", **{**network.settings, **settings})
        return chain.subnet(arch_of(CELLS[network.cells], chain.space)).eval()


@cache
def published(name: str) -> nn.Sequential:
    return weightless(name)


def size(name: str, **settings: Any) -> int:
    imagenet = 224 if NETWORKS[name].space.endswith("imagenet") else 32
    return int({"input_size": imagenet, **NETWORKS[name].settings, **settings}["input_size"])


@cache
def counts(name: str) -> dict[str, int]:
    return count(published(name), (3, size(name), size(name)))


def check(actual: dict[str, int], row: tuple[int, float | None], digits: int = 1) -> None:
    assert actual["params"] == row[0]
    if row[1] is not None:
        assert round(actual["macs"] / 1e6, digits) == row[1]


def test_every_network_has_a_row() -> None:
    assert {*ROWS, *MORE, "enas-micro-cifar"} == NETWORKS.keys()
    assert not NETWORKS.keys() & GENOTYPES.keys()
    assert {network.space for network in NETWORKS.values()} <= SPACES.keys()
    assert {network.cells for network in NETWORKS.values()} == CELLS.keys()


LONG = {"nasnet-a-large", "pnasnet-5-large", "pnasnet-5-cifar", "amoebanet-a-cifar-32"}
"""Networks that are built in the slow tests alone: each takes a second, and others have their cells."""


def of_each(names: Iterable[str]) -> Any:
    """Runs a test with each network."""
    marked = (pytest.param(name, marks=pytest.mark.slow if name in LONG else []) for name in names)
    return pytest.mark.parametrize("name", marked)


@of_each(ROWS)
def test_published_counts_to_the_digit(name: str) -> None:
    check(counts(name), ROWS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_published_counts_to_the_digit(name: str) -> None:
    check(counts(name), MORE[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "row"), PROXIES)
def test_counts_of_other_sizes(name: str, settings: dict[str, Any], row: tuple[int, float]) -> None:
    side = size(name, **settings)
    check(count(weightless(name, **settings), (3, side, side)), row, -2 if row[1] > 1e5 else 1)


@of_each(("nasnet-a-large", "pnasnet-5-large"))
def test_macs_of_the_large_networks_to_the_last_digit(name: str) -> None:
    assert counts(name)["macs"] == {"nasnet-a-large": 23_783_414_658, "pnasnet-5-large": 24_937_395_792}[name]


# channels and side behind each cell
TRACES: dict[str, list[tuple[int, int]]] = {
    "nasnet-a-mobile": [(44, 56), (88, 28), *[(264, 28)] * 4, (352, 14), *[(528, 14)] * 4, (704, 7), *[(1056, 7)] * 4],
    "nasnet-a-large": [
        (168, 83),
        (336, 42),
        *[(1008, 42)] * 6,
        (1344, 21),
        *[(2016, 21)] * 6,
        (2688, 11),
        *[(4032, 11)] * 6,
    ],
    "nasnet-a-cifar": [*[(192, 32)] * 6, (256, 16), *[(384, 16)] * 6, (512, 8), *[(768, 8)] * 6],
    "pnasnet-5-mobile": [(65, 56), (135, 28), *[(270, 28)] * 3, *[(540, 14)] * 3, *[(1080, 7)] * 3],
    "pnasnet-5-large": [(270, 83), (540, 42), *[(1080, 42)] * 4, *[(2160, 21)] * 4, *[(4320, 11)] * 4],
}


@of_each(TRACES)
def test_shapes_along_the_way(name: str) -> None:
    network, side = published(name), size(name)
    state: Any = network[0](torch.empty(1, 3, side, side, device="meta"))
    assert state.shape[1] == {"nasnet-a-large": 96, "nasnet-a-cifar": 96, "pnasnet-5-large": 96}.get(name, 32)
    shapes = []
    for step in network[1:-1]:
        state = step(state)
        assert state[1].shape[2] == state[1].shape[3]
        shapes.append(tuple(state[1].shape[1:3]))
    assert shapes == TRACES[name]
    assert network[-1](state).shape == (1, 10 if "cifar" in name else 1000)


def test_filters_of_the_cells() -> None:
    """The stem cells of PNASNet at mobile size have an odd number."""
    filters = [part.squeeze.out_channels for part in published("pnasnet-5-mobile")[1:-1]]  # type: ignore[union-attr]
    assert filters == [13, 27, *[54] * 3, *[108] * 3, *[216] * 3]


def test_batch_norm_of_both_skeletons() -> None:
    for name, eps, momentum in (("nasnet-a-mobile", 1e-3, 3e-4), ("nasnet-a-cifar", 1e-5, 0.1)):
        norms = [part for part in published(name).modules() if isinstance(part, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum, norm.affine) for norm in norms} == {(eps, momentum, True)}


def test_drop_path_by_depth_and_dropout() -> None:
    def keeps(name: str) -> list[float]:
        return [part.keep for part in published(name) if isinstance(part, BlockCell)]

    large = keeps("nasnet-a-large")  # 22 cells, to 0.7
    assert large == pytest.approx([1 - 0.3 * (i + 1) / 22 for i in range(22)])
    assert keeps("nasnet-a-cifar")[-1] == pytest.approx(0.6)
    assert set(keeps("nasnet-a-mobile")) == {1.0}
    assert set(keeps("amoebanet-a-190")) == {0.7}  # in time alone
    assert [published(name)[-1].dropout for name in ("nasnet-a-large", "nasnet-a-cifar")] == [0.5, 0.0]


def test_inputs_among_the_outputs_are_fitted_without_relu() -> None:
    """AmoebaNet-C hands on state 0 of its reductions, NASNet-A the stem behind its first cell on small images."""
    reduction = next(part for part in published("amoebanet-c-228") if isinstance(part, BlockCell))
    assert reduction.outputs == (0, 2, 3, 4, 5, 6)
    assert [(key, type(fit).__name__, fit.relu) for key, fit in reduction.output_fits.items()] == [  # type: ignore[union-attr]
        ("0", "FactorizedReduction", False)
    ]
    first, second = published("nasnet-a-cifar")[1:3]
    assert isinstance(first, BlockCell)
    assert isinstance(second, BlockCell)
    assert [(key, type(fit).__name__, fit.relu) for key, fit in first.output_fits.items()] == [  # type: ignore[union-attr]
        ("1", "ConvNorm", False)
    ]
    assert second.output_fits is None


@pytest.mark.slow
def test_published_networks_are_exported(tmp_path: Path) -> None:
    for name, side in (("nasnet-a-mobile", 64), ("pnasnet-5-mobile", 63), ("amoebanet-b-mobile", 65)):
        network = create_network(name, filters=16, repeats=1, num_classes=4, input_size=side)
        randomize(network, seed=0)
        preprocess = Preprocess(side, (0.5,) * 3, (0.5,) * 3, tuple("abcd"))
        parity = export(network, tmp_path / name, arch={}, space=NETWORKS[name].space, preprocess=preprocess)
        assert max(parity["differences"].values()) <= 1e-5
        source = (tmp_path / name / "model.py").read_text()
        assert "class BlockCell" in source
        assert "supernet" not in source


@pytest.mark.slow  # test_a_network_trains_with_its_auxiliary_head
def test_an_auxiliary_head_at_two_thirds() -> None:
    plain = published("nasnet-a-large")
    network = weightless("nasnet-a-large", auxiliary=True)
    assert len(network) == len(plain) + 1
    # behind the last cell before the second reduction, on 21×21 pixels: pooled to 6×6
    added = 2016 * 128 + 2 * 128 + 128 * 768 * 36 + 2 * 768 + 768 * 1000 + 1000
    state = network[:16](torch.empty(2, 3, 331, 331, device="meta"))
    assert type(network[16]).__name__ == "AuxiliaryHead"
    assert state[1].shape == (2, 2016, 21, 21)
    costs = count(network, (3, 331, 331))
    assert costs["params"] == counts("nasnet-a-large")["params"] + added
    assert costs["macs"] == counts("nasnet-a-large")["macs"]  # it runs in training alone


def test_a_network_trains_with_its_auxiliary_head() -> None:
    network = create_network(
        "nasnet-a-cifar", filters=4, repeats=1, auxiliary=True, auxiliary_channels=(4, 8), num_classes=3
    )
    x = torch.randn(2, 3, 32, 32)
    out = network.train()(x)
    assert isinstance(out, Output)
    assert out.logits.shape == out.aux.shape == (2, 3)
    assert isinstance(network.eval()(x), torch.Tensor)
    out.aux.sum().backward()
    assert network[0].conv.weight.grad is not None
    assert network[-1].fc.weight.grad is None
    with pytest.raises(InputError, match=r"auxiliary head pools over 5×5 pixels, but reads a map of 4×4"):
        create_network("nasnet-a-cifar", input_size=8, filters=4, repeats=1, auxiliary=True)


def test_an_unknown_network_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'nasnet-a-mobile'"):
        create_network("nasnet-a-mobil")
    with pytest.raises(InputError, match=r"no setting 'filter'; did you mean 'filters'\?"):
        create_network("nasnet-a-mobile", filter=3)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_supernet_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 0 < free < 2**45
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    with pytest.raises(
        InputError, match=r"'nasnet-small' would hold [\d,]+ parameters, [\d,.]+ GiB, but cpu memory has"
    ):
        create_supernet("nasnet-small")
    network = create_network("nasnet-a-cifar", filters=8, repeats=1, input_size=8)  # single networks are not
    assert len(network) == 7


@pytest.mark.parametrize(
    ("name", "settings"),
    [("nasnet-small", {}), pytest.param("pnasnet-imagenet", {"filters": 9, "repeats": 1}, marks=pytest.mark.slow)],
)
def test_the_estimate_is_exact(name: str, settings: dict[str, int]) -> None:
    supernet = create_supernet(name, blocks=2, **settings)
    with torch.device("meta"):
        eager = builder(name)(blocks=2, **settings)
    for chain in (supernet, eager):
        assert supernet_parameters(*LOOKED_AT[name]) == sum(p.numel() for p in chain.parameters())


def test_nasnet_fits_in_memory() -> None:
    nasnet = cell_space(NASNET_OPS, combiners=("add", "concat"))
    parameters = supernet_parameters(
        Skeleton(filters=32, repeats=6, ops=NASNET_OPS), {"normal": nasnet, "reduce": nasnet}
    )
    assert parameters == 144_528_874  # at 32 filters, N = 6
    assert parameters < 300e6


LOOKED_AT = {
    "nasnet-small": (
        Skeleton(filters=8, repeats=1, blocks=2),
        dict.fromkeys(("normal", "reduce"), cell_space(NASNET_OPS, blocks=2, combiners=("add", "concat"))),
    ),
    "pnasnet-imagenet": (
        Skeleton(imagenet=True, filters=9, repeats=1, num_classes=1000),
        {"cell": cell_space(PNASNET_OPS, blocks=2, fewer=True)},
    ),
}
