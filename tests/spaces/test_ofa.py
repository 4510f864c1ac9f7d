"""Once-for-all's MobileNetV3: counts of the released code, its kernel matrices and its order of channels."""

import pytest
import torch
from torch import nn

from supernet import GENOTYPES, create_network, create_supernet
from supernet.blocks.mbconv import ElasticMBConv, sort_channels
from supernet.blocks.mobile import ConvNormAct, SqueezeExcite
from supernet.chain import Chain, Layout, largest
from supernet.cost import CostTable, count
from supernet.space import Arch
from supernet.spaces import build
from supernet.testing import randomize

# kernels and expansions of 20 positions (inactive ones included), depths, pixels, parameters, MACs
ROWS = [
    ("77777777777777777777", "66666666666666666666", "44444", 224, 7_664_760, 566_170_656),
    ("33333333333333333333", "33333333333333333333", "22222", 224, 3_410_792, 121_278_672),
    ("77777777777777777777", "66666666666666666666", "44444", 192, 7_664_760, 417_292_160),
    ("33333333333333333333", "33333333333333333333", "22222", 192, 3_410_792, 89_841_344),
    ("77777777777777777777", "66666666666666666666", "44444", 160, 7_664_760, 291_318_048),
    ("33333333333333333333", "33333333333333333333", "22222", 160, 3_410_792, 63_240_528),
    ("77777777777777777777", "66666666666666666666", "44444", 128, 7_664_760, 188_248_320),
    ("33333333333333333333", "33333333333333333333", "22222", 128, 3_410_792, 41_476_224),
    ("33333333333333333333", "66666666666666666666", "44444", 224, 7_299_960, 433_141_536),
    ("55555555555555555555", "66666666666666666666", "44444", 224, 7_445_880, 486_353_184),
    ("77777777777777777777", "33333333333333333333", "44444", 224, 4_554_328, 292_708_368),
    ("77777777777777777777", "44444444444444444444", "44444", 224, 5_440_072, 383_711_424),
    ("77777777777777777777", "66666666666666666666", "22222", 224, 4_837_928, 282_627_744),
    ("77777777777777777777", "66666666666666666666", "33333", 224, 6_251_344, 424_399_200),
    ("33333333333333333333", "44444444444444444444", "33333", 224, 4_481_136, 225_006_656),
    ("55357555557373533757", "66343636446344466364", "34324", 128, 5_316_280, 98_302_848),
    ("37577737553757337333", "64334643464636463666", "33243", 168, 5_732_424, 190_908_224),
    ("73533337755337333377", "64664633664644466643", "34234", 208, 5_423_632, 270_581_200),
    ("53337537353553337337", "66663336366343433633", "24232", 220, 4_324_248, 230_270_432),
    ("37375735333755533753", "63643446463663363346", "32434", 148, 5_154_712, 133_156_624),
    ("35757757557537735735", "63643344646466636446", "34224", 152, 5_606_624, 147_728_576),
    ("75333755777535775773", "34346346466334444343", "44242", 128, 4_229_944, 95_393_024),
]

PUBLISHED = {
    "ofa-lg-g8-11ms": (4_965_160, 103_373_272),
    "ofa-lg-g8-24ms": (5_809_576, 229_846_296),
    "ofa-389m": (8_386_544, 389_487_856),
    "ofa-595m": (9_135_928, 595_189_032),
    "ofa-note10-16ms": (4_932_272, 162_464_384),
    "ofa-note10-30ms": (7_465_896, 339_352_816),
    "ofa-note10-50ms": (9_057_064, 554_390_264),
    "ofa-note10-8ms": (3_761_168, 75_802_880),
    "ofa-note8-31ms": (4_595_536, 100_520_248),
    "ofa-note8-65ms": (5_296_672, 219_899_816),
    "ofa-pixel1-143ms": (9_221_888, 641_756_192),
    "ofa-pixel1-28ms": (5_196_680, 108_572_320),
    "ofa-pixel1-58ms": (5_809_576, 229_846_296),
    "ofa-pixel2-25ms": (4_137_152, 79_266_240),
    "ofa-pixel2-50ms": (4_687_720, 165_999_448),
    "ofa-s7edge-29ms": (3_830_224, 66_444_032),
    "ofa-s7edge-58ms": (4_623_312, 144_701_952),
}


@pytest.fixture(scope="module")
def published_size() -> Chain:
    with torch.device("meta"):
        return build("ofa-mobilenetv3", "supernet", {})


def arch_of(chain: Chain, kernels: str, expansions: str, depths: str) -> Arch:
    values: dict[str, int] = {}
    for number, (kernel, expansion) in enumerate(zip(kernels, expansions, strict=True)):
        name = f"stage{number // 4 + 1}.block{number % 4}"
        values |= {f"{name}.kernel": int(kernel), f"{name}.expand": int(expansion)}
    return chain.space.canonical(values | {f"stage{i}.depth": int(depth) for i, depth in enumerate(depths, 1)})


def check_counts(chain: Chain, rows: list[tuple[str, str, str, int, int, int]]) -> None:
    tables: dict[int, CostTable] = {}
    for kernels, expansions, depths, size, params, macs in rows:
        table = tables.setdefault(size, CostTable(chain, (3, size, size)))
        costs = table(arch_of(chain, kernels, expansions, depths))
        assert (costs["params"], costs["macs"]) == (params, macs)


def test_counts_of_the_released_code_to_the_digit(published_size: Chain) -> None:
    check_counts(published_size, [row for row in ROWS if row[3] == 128])


@pytest.mark.slow
def test_counts_at_every_size_to_the_digit(published_size: Chain) -> None:
    check_counts(published_size, ROWS)


def test_number_of_networks_and_parameters_of_the_supernets(published_size: Chain) -> None:
    assert published_size.space.size() == 7371**5
    assert sum(p.numel() for p in published_size.parameters()) == 7_678_880  # 14,120 of them in 40 matrices
    with torch.device("meta"):
        wide = build("ofa-mobilenetv3", "supernet", {"width": 1.2})
    assert sum(p.numel() for p in wide.parameters()) == 10_715_752


@pytest.mark.slow
def test_counts_of_the_wide_supernet() -> None:
    with torch.device("meta"):
        wide = build("ofa-mobilenetv3", "supernet", {"width": 1.2})
    twenty = ["7" * 20, "6" * 20, "44444", 224, 10_701_632, 843_101_040], ["3" * 20, "3" * 20, "22222", 224]
    check_counts(wide, [tuple(twenty[0]), (*twenty[1], 4_602_456, 193_078_200)])  # type: ignore[list-item]


def test_every_published_network_has_counts() -> None:
    assert PUBLISHED.keys() == {name for name, network in GENOTYPES.items() if network.space == "ofa-mobilenetv3"}


FAST = {"ofa-note10-8ms", "ofa-389m"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PUBLISHED]
)
def test_published_networks_to_the_digit(name: str) -> None:
    size = GENOTYPES[name].settings["input_size"]
    costs = count(create_network(name), (3, size, size))
    assert (costs["params"], costs["macs"]) == PUBLISHED[name]


def test_the_table_counts_what_a_trace_counts() -> None:
    chain = small()
    table = CostTable(chain)
    for depth in (1, 2):
        arch = chain.space.canonical({**largest(chain.space), "stage1.depth": depth})
        standalone = create_network("ofa-mobilenetv3", arch=arch, **SMALL)
        assert table(arch) == count(standalone, chain.input_shape)


SMALL = {
    "width": 0.5,
    "num_classes": 4,
    "input_size": 32,
    "depths": (1, 2),
    "table": ((8, 2, True, False), (12, 1, True, True)),
}


def small() -> Chain:
    return create_supernet("ofa-mobilenetv3", generator=torch.Generator().manual_seed(0), **SMALL)  # type: ignore[arg-type]


# -- smaller kernels --------------------------------------------------------------------------------------------------


def depthwise_block(**settings: object) -> ElasticMBConv:
    layers = {"depthwise": ConvNormAct(1, 1, kernel=7), "project": ConvNormAct(1, 1)}
    return ElasticMBConv(layers, kernels=(3, 5, 7), **settings)  # type: ignore[arg-type]


def kernel_of(block: ElasticMBConv, size: int) -> list[list[float]]:
    network = block.materialize(Arch({"kernel": size}), Layout(1))
    weight: list[list[float]] = network.get_parameter("depthwise.conv.weight")[0, 0].tolist()
    return weight


@torch.no_grad()
def test_smaller_kernels_are_linear_functions_of_larger_ones() -> None:
    block = depthwise_block(matrices=True)
    conv, matrices = block.body["depthwise"].conv, block.matrices
    conv.weight.copy_(torch.arange(49.0).view(1, 1, 7, 7))
    i, j = torch.arange(25.0).view(-1, 1), torch.arange(25.0)
    matrices["5"].copy_(((3 * i + 5 * j) % 11 - 5).view(5, 5, 5, 5))
    matrices["3"].copy_(((2 * i[:9] + 7 * j[:9]) % 13 - 6).view(3, 3, 3, 3))
    assert kernel_of(block, 7) == conv.weight[0, 0].tolist()
    assert kernel_of(block, 5) == [
        [2, 9, -193, 166, -223],
        [48, 0, 161, -74, -1],
        [105, 2, 9, -193, 166],
        [-223, 48, 0, 161, -74],
        [-1, 105, 2, 9, -193],
    ]
    assert kernel_of(block, 3) == [[-546, -318, 2419], [528, 756, -1733], [-660, -432, -204]]


@torch.no_grad()
def test_matrices_begin_as_the_identity_and_without_them_the_centre_is_used() -> None:
    for block in (depthwise_block(matrices=True), depthwise_block()):
        weight = block.body["depthwise"].conv.weight
        for margin, size in ((1, 5), (2, 3)):
            assert kernel_of(block, size) == weight[0, 0, margin:-margin, margin:-margin].tolist()


# -- the order of channels --------------------------------------------------------------------------------------------


def channels_block(*, squeeze: bool = False) -> ElasticMBConv:
    layers: dict[str, ConvNormAct | SqueezeExcite] = {
        "expand": ConvNormAct(8, 48, activation=nn.ReLU),
        "depthwise": ConvNormAct(48, 48, kernel=3, groups=48, activation=nn.ReLU),
    }
    if squeeze:
        layers["squeeze"] = SqueezeExcite(48, 16, gate=nn.Hardsigmoid)
    layers["project"] = ConvNormAct(48, 8)
    mids = {3: 24, 4: 32, 6: 48}
    squeezes = {3: 8, 4: 8, 6: 16} if squeeze else {}
    return ElasticMBConv(layers, searched=("expand", "depthwise"), mids={**mids}, squeezes={**squeezes})


@torch.no_grad()
def set_importance(block: ElasticMBConv) -> None:
    """Gives channel j the importance 8 · (29j mod 48 + 1), and its number as the shift of a batch norm."""
    channels = torch.arange(48.0)
    weight = (29 * channels % 48 + 1) * (-1) ** channels
    block.body["project"].conv.weight.copy_(weight.view(1, 48, 1, 1).expand(8, 48, 1, 1))
    block.body["depthwise"].bn.bias.copy_(channels)


def test_channels_are_sorted_by_importance_within_the_sets_that_are_kept() -> None:
    block = channels_block()
    set_importance(block)
    block.sort_channels()
    order = block.body["depthwise"].bn.bias.int().tolist()
    first = "43,38,33,28,23,18,13,8,3,46,41,36,31,26,21,16,11,6,1,44,39"
    assert order[:21] == [int(number) for number in first.split(",")]

    block = channels_block()
    set_importance(block)
    block.sort_channels(keep=(4,))
    order = block.body["depthwise"].bn.bias.int().tolist()
    second = "28,23,18,13,8,3,31,26,21,16,11,6,1,29,24,19,14,9,4,27"
    assert order[:20] == [int(number) for number in second.split(",")]
    assert order[32:] == [43, 38, 33, 46, 41, 36, 44, 39, 34, 47, 42, 37, 32, 45, 40, 35]


@torch.no_grad()
def test_sorting_changes_the_largest_network_by_rounding_and_smaller_ones_by_more() -> None:
    block = channels_block(squeeze=True)
    randomize(block, 0)
    block.eval()
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    archs = {expand: Arch({"expand": expand}) for expand in (3, 6)}
    before = {expand: block(x, arch) for expand, arch in archs.items()}
    sort_channels(nn.ModuleList([block]))
    assert torch.allclose(block(x, archs[6]), before[6], atol=1e-5)
    assert not torch.allclose(block(x, archs[3]), before[3], atol=1e-2)
    importance = block.body["squeeze"].expand.weight.abs().sum(dim=(0, 2, 3))
    assert importance.tolist() == sorted(importance.tolist(), reverse=True)
