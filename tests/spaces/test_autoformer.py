"""AutoFormer: parameters and MACs of the released supernets' networks, to the digit."""

from pathlib import Path

import pytest
import torch

from supernet import GENOTYPES, create_network, create_supernet
from supernet.blocks.transformer import relative_positions
from supernet.chain import largest
from supernet.config import Preprocess
from supernet.cost import CostTable, count
from supernet.export import export
from supernet.spaces import build

# size; channels; heads and ratios per block; parameters; MACs with the products of attention and relative positions
ROWS = [
    ("tiny", 240, "4 4 4 4 4 4 4 4 4 4 4 4 4 4", "4 4 4 4 4 4 4 4 4 4 4 4 4 4", 10_517_272, 2_541_425_024),
    (
        "tiny",
        192,
        "3 3 3 3 3 3 3 3 3 3 3 3",
        "3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5 3.5",
        5_366_056,
        1_345_368_576,
    ),
    ("tiny", 192, "3 3 3 3 3 3 3 3 3 3 4 3 3", "3.5 3.5 3 3.5 3 3 4 4 3.5 4 3.5 4 3.5", 5_867_944, 1_481_938_432),
    ("tiny", 216, "3 3 3 4 3 4 4 3 4 3 3 3 3 3", "4 3.5 3.5 4 4 3.5 4 4 3.5 4 3.5 4 4 3.5", 8_061_400, 1_965_107_776),
    (
        "tiny",
        240,
        "4 3 3 3 4 3 3 4 3 4 4 3 3 3",
        "3.5 3.5 3.5 3.5 3.5 3.5 3.5 4 3.5 4 3.5 3.5 3.5 3.5",
        9_269_944,
        2_206_909_568,
    ),
    ("small", 448, "7 7 7 7 7 7 7 7 7 7 7 7 7 7", "4 4 4 4 4 4 4 4 4 4 4 4 4 4", 34_790_440, 7_684_024_320),
    ("small", 320, "5 5 5 5 5 5 5 5 5 5 5 5", "3 3 3 3 3 3 3 3 3 3 3 3", 13_057_320, 3_065_331_200),
    ("small", 384, "6 6 5 7 5 5 5 6 6 7 7 6 7", "3 3.5 3 3.5 4 4 4 4 4 4 4 3.5 4", 22_891_432, 5_161_400_832),
    ("small", 384, "5 6 7 6 6 6 6 6 7 5 7 5 6", "3 3 4 3.5 4 4 4 3 3.5 3 4 3 4", 22_153_192, 5_016_156_672),
    ("small", 448, "6 7 5 5 7 5 5 5 7 6 5 5", "3.5 4 3.5 3 3.5 4 3.5 4 3 4 3.5 4", 26_300_104, 5_719_697_920),
    (
        "base",
        624,
        "10 10 10 10 10 10 10 10 10 10 10 10 10 10 10 10",
        "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4",
        76_882_264,
        16_537_806_208,
    ),
    ("base", 528, "9 9 9 9 9 9 9 9 9 9 9 9 9 9", "3 3 3 3 3 3 3 3 3 3 3 3 3 3", 41_687_896, 9_300_287_616),
    (
        "base",
        576,
        "9 9 9 9 9 10 9 9 10 9 10 9 9 10",
        "3.5 3.5 4 3.5 4 3.5 3.5 3 4 4 3 4 3 3.5",
        53_691_688,
        11_691_179_008,
    ),
    (
        "base",
        576,
        "10 9 9 9 10 9 10 10 9 10 9 9 9 9 9",
        "4 3.5 3 3 3.5 4 3.5 3 3.5 4 3.5 4 3 4 3.5",
        57_171_688,
        12_473_177_600,
    ),
    (
        "base",
        576,
        "10 10 10 9 10 9 10 10 9 9 9 10 9 9 10 9",
        "3.5 3.5 3 3 3 4 3 3 4 4 4 4 4 3 3 3",
        60_282_856,
        13_202_424_320,
    ),
]
PUBLISHED = {
    "autoformer-tiny-published": (5_867_944, 1_481_938_432),
    "autoformer-small-published": (22_891_432, 5_161_400_832),
    "autoformer-base-published": (53_691_688, 11_691_179_008),
}


by_size = pytest.mark.parametrize(
    "size", ["tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "base"))]
)


@by_size
def test_counts_of_the_released_code_to_the_digit(size: str) -> None:
    with torch.device("meta"):
        table = CostTable(build(f"autoformer-{size}", "supernet", {"ratios": (3, 3.5, 4)}))
    for dim, heads, ratios, params, macs in [row[1:] for row in ROWS if row[0] == size]:
        values: dict[str, float] = dict(largest(table.space))  # type: ignore[arg-type]
        values |= {"embed.dim": dim, "body.depth": len(heads.split())}
        for number, (head, ratio) in enumerate(zip(heads.split(), ratios.split(), strict=True)):
            values |= {f"body.block{number}.heads": int(head), f"body.block{number}.ratio": float(ratio)}
        costs = table(table.space.canonical(values))
        assert (costs["params"], costs["macs"] + costs["matmul_macs"]) == (params, macs)


NUMBERS = {
    "tiny": 3 * (4**12 + 4**13 + 4**14),
    "small": 3 * (9**12 + 9**13 + 9**14),
    "base": 3 * (6**14 + 6**15 + 6**16),
}


@by_size
def test_number_of_architectures(size: str) -> None:
    with torch.device("meta"):
        assert build(f"autoformer-{size}", "supernet", {}).space.size() == NUMBERS[size]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "tiny" in name else pytest.mark.slow) for name in PUBLISHED]
)
def test_published_networks_to_the_digit(name: str) -> None:
    costs = count(create_network(name), (3, 224, 224))
    assert (costs["params"], costs["macs"] + costs["matmul_macs"]) == PUBLISHED[name]


def test_every_published_network_has_counts() -> None:
    assert PUBLISHED.keys() == {n for n, network in GENOTYPES.items() if network.space.startswith("autoformer")}


def test_relative_positions_are_clipped_distances_and_apart_for_the_class_token() -> None:
    rows, columns = relative_positions(2, 3, reach=1)
    assert rows.shape == columns.shape == (7, 7)
    for table in (rows, columns):
        assert not table[0].any()
        assert not table[:, 0].any()
    places = [(row, column) for row in range(2) for column in range(3)]
    for first, (row, column) in enumerate(places, start=1):
        for second, (other_row, other_column) in enumerate(places, start=1):
            assert rows[first, second] == max(-1, min(1, other_row - row)) + 2
            assert columns[first, second] == max(-1, min(1, other_column - column)) + 2


def test_fewer_heads_take_the_biases_of_their_own_channels() -> None:
    """The released code cuts the biases of query, key and value as one vector, at other channels than the weights."""
    settings = {"dims": (8,), "heads": (1, 2), "ratios": (2,), "depths": (1,), "patch": 8, "input_size": 16}
    supernet = create_supernet("autoformer-tiny", num_classes=3, **settings)  # type: ignore[arg-type]
    layer = supernet.get_submodule("body.blocks.0.full.key")
    with torch.no_grad():
        layer.bias.copy_(torch.arange(128.0))
    arch = supernet.space.canonical({**largest(supernet.space), "body.block0.heads": 1})
    assert supernet.subnet(arch).get_parameter("body.0.key.bias").tolist() == list(range(64))


def test_every_tensor_is_set_by_the_initialisation() -> None:
    settings = {"dims": (8, 12), "heads": (1, 2), "ratios": (1.5, 2), "depths": (1, 2), "patch": 8, "input_size": 16}
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    nets = [create_supernet("autoformer-tiny", num_classes=3, generator=draw, **settings) for draw in draws]  # type: ignore[arg-type]
    first, same, other = ([*net.state_dict().values()] for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    differ = [name for name, a, b in zip(nets[0].state_dict(), first, other, strict=True) if not torch.equal(a, b)]
    assert {name.rpartition(".")[2] for name in differ} == {"weight", "token", "positions", "tables"}
    network = create_network("autoformer-tiny", arch=largest(nets[0].space), num_classes=3, **settings)  # type: ignore[arg-type]
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.slow
def test_a_subnet_is_exported(tmp_path: Path) -> None:
    settings = {"dims": (8, 12), "heads": (1, 2), "ratios": (1.5, 2), "depths": (1, 2), "patch": 8, "input_size": 16}
    supernet = create_supernet("autoformer-tiny", num_classes=3, **settings)  # type: ignore[arg-type]
    arch, preprocess = largest(supernet.space), Preprocess(16, (0.5,) * 3, (0.5,) * 3, tuple("abc"))
    report = export(supernet.subnet(arch), tmp_path / "out", arch=arch, space="autoformer-tiny", preprocess=preprocess)
    assert report["differences"]["model.py"] == 0
