"""AttentiveNAS: parameters and MACs of the released models, to the digit, at their own resolutions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from supernet import GENOTYPES, create_network, create_supernet
from supernet.chain import Chain, largest
from supernet.config import Preprocess
from supernet.cost import CostTable, CostWindow, count
from supernet.export import export
from supernet.space import Arch
from supernet.spaces import build
from supernet.spaces.attentivenas_stages import STAGES

PUBLISHED = {
    "attentivenas-a0": (8_954_184, 203_389_568),
    "attentivenas-a1": (9_452_872, 279_238_816),
    "attentivenas-a2": (11_149_824, 316_730_080),
    "attentivenas-a3": (12_784_928, 356_518_400),
    "attentivenas-a4": (11_809_640, 443_530_752),
    "attentivenas-a5": (12_597_464, 490_520_064),
    "attentivenas-a6": (15_154_792, 709_007_232),
}
# widths of stem, stages and head; depths; kernels; expansions; pixels; parameters; MACs
ROWS = [
    ("16 16 24 32 64 112 192 216 1792", "1333331", "3333333", "1444466", 192, 8_954_184, 203_389_568),
    ("24 24 32 40 72 128 216 224 1984", "2566882", "5555555", "1666666", 288, 23_404_080, 1_939_335_808),
    ("16 16 24 40 64 128 216 224 1792", "2534741", "3533553", "1656466", 256, 13_058_776, 807_219_200),
    ("16 24 32 32 64 112 208 216 1792", "2356331", "3333333", "1454466", 256, 9_732_664, 523_827_712),
    ("16 24 32 32 72 128 200 216 1984", "2555682", "3353535", "1455666", 224, 19_988_480, 818_748_944),
    ("24 16 32 40 72 120 216 224 1792", "1443751", "5335535", "1566466", 288, 14_286_272, 1_052_023_072),
    ("24 16 32 40 64 120 200 216 1792", "1556331", "3335533", "1655566", 256, 10_018_176, 736_051_200),
    ("16 24 24 32 64 128 216 216 1984", "1335561", "3533535", "1656466", 224, 15_583_800, 576_970_592),
]


@pytest.fixture(scope="module")
def published_size() -> Chain:
    with torch.device("meta"):
        return build("attentivenas", "supernet", {})


def arch_of(chain: Chain, widths: str, depths: str, kernels: str, expansions: str) -> Arch:
    stem, *middle, head = map(int, widths.split())
    values = {"stem.width": stem, "head.width": head}
    for number, row in enumerate(zip(middle, depths, kernels, expansions, strict=True), start=1):
        values |= {f"stage{number}.{name}": int(value) for name, value in zip(NAMES, row, strict=True)}
    names = {choice.name for choice in chain.space.choices}
    return chain.space.canonical({name: value for name, value in values.items() if name in names})


NAMES = ("width", "depth", "kernel", "expand")


@pytest.mark.parametrize("rows", [ROWS[:2], pytest.param(ROWS[2:], marks=pytest.mark.slow)], ids=["extremes", "others"])
def test_counts_of_the_released_code_to_the_digit(published_size: Chain, rows: list[tuple[Any, ...]]) -> None:
    tables: dict[int, CostTable] = {}
    for *decided, size, params, macs in rows:
        table = tables.setdefault(size, CostTable(published_size, (3, size, size)))
        costs = table(arch_of(published_size, *decided))
        assert (costs["params"], costs["macs"]) == (params, macs)


def test_number_of_architectures_and_exact_extremes(published_size: Chain) -> None:
    assert published_size.space.size() * 4 == 440_301_256_704  # at four resolutions
    assert len(STAGES) == 7
    with torch.device("meta"):
        small = build("attentivenas", "supernet", {"table": STAGES[:2], "input_size": 32})
    table = CostTable(small)
    assert table.extremes("macs") is not None
    low, high = table.extremes("macs") or (0, 0)
    assert high == table(largest(small.space))["macs"]
    assert CostWindow(table, "macs", low, high).count == small.space.size()


def test_every_published_network_has_counts() -> None:
    named = {name for name, network in GENOTYPES.items() if network.space == "attentivenas"}
    assert named == PUBLISHED.keys() | {"alphanet-a5-small"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "attentivenas-a0" else pytest.mark.slow) for name in PUBLISHED]
)
def test_published_networks_to_the_digit(name: str) -> None:
    size = GENOTYPES[name].settings["input_size"]
    costs = count(create_network(name), (3, size, size))
    assert (costs["params"], costs["macs"]) == PUBLISHED[name]


@pytest.mark.slow
def test_alphanet_a5_small_in_millions() -> None:
    name = "alphanet-a5-small"
    size = GENOTYPES[name].settings["input_size"]
    assert round(count(create_network(name), (3, size, size))["macs"] / 1e6) == 491


@pytest.mark.slow
def test_a_subnet_is_exported(tmp_path: Path) -> None:
    supernet = create_supernet("attentivenas", num_classes=3, input_size=32, table=STAGES[:3])
    arch, preprocess = largest(supernet.space), Preprocess(32, (0.5,) * 3, (0.5,) * 3, tuple("abc"))
    report = export(supernet.subnet(arch), tmp_path / "out", arch=arch, space="attentivenas", preprocess=preprocess)
    assert report["differences"]["model.py"] == 0
