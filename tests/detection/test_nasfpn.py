"""NAS-FPN: its space, its supernet alone and in detectors, and the published pyramid."""

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from detection import (
    Detector,
    DetectorCosts,
    DetectorNetwork,
    DetectorPreprocess,
    Labelled,
    create_detector,
    create_detector_network,
    load_backbone,
)
from detection.nasfpn.plain import DropBlock, MergingConv, MergingPyramid, PyramidInputs, attention, pool_same, resample
from detection.nasfpn.published import NASFPN_NETWORKS, create_nasfpn, published_nasfpn
from detection.nasfpn.space import (
    ATTENTION,
    SUM,
    WIRINGS,
    Cell,
    Wiring,
    pyramid_space,
    values_of,
    wiring_arch,
    wiring_of,
)
from detection.nasfpn.supernet import SearchablePyramid, read_out
from detection.pyramid import LevelNorms
from helpers.detector_cases import CLASSES, fixed_backbone, images, same, targets, tiny, tiny_network
from supernet import Arch, Chain, SearchSpace
from supernet.chain import Layout
from supernet.cost import count
from supernet.errors import InputError
from supernet.export import export, load_exported
from supernet.scoring.batch_norm import recalibrate_bn
from supernet.scoring.prefix import PrefixSharing
from supernet.scoring.trie import Trie
from supernet.testing import check_space, randomize

WIDTH = 4


def sample(space: SearchSpace, number: int, seed: int = 0) -> Iterator[Arch]:
    """Random architectures of a space."""
    rng = random.Random(seed)
    return (space.sample(rng) for _ in range(number))


def random_maps(*sizes: int, width: int = WIDTH, seed: int = 0) -> tuple[Tensor, ...]:
    """Random maps, (2, width, size, size), one per size."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, width, size, size, generator=generator) for size in sizes)


# -- the space --------------------------------------------------------------------------------------------------------


def test_the_space_has_the_published_size() -> None:
    pairs = math.prod(math.comb(5 + cell, 2) for cell in range(7))
    assert pyramid_space().size() == pairs * 5**2 * math.factorial(5) * 2**7 == 3_017_710_080_000_000
    assert pyramid_space(cells=9).size() == pairs * math.comb(12, 2) * math.comb(13, 2) * 5**4 * 120 * 2**9
    ordered = pyramid_space(ordered=True)
    assert ordered.size() == 2**7 * pairs * 5**2 * math.factorial(5) * 2**7  # 3.9e17
    names = [choice.name for choice in ordered.choices]  # the four decisions of a cell in the order of § 3.1
    assert names[1:9] == [f"cell{k}.{part}" for k in (1, 2) for part in ("first", "second", "level", "op")]
    assert names[9:13] == [f"cell3.{part}" for part in ("first", "second", "output", "op")]


def test_a_small_space_contains_every_pyramid_once() -> None:
    """Compared with a brute-force enumeration over pairs, levels and operations of cells, with one output per level."""
    space = pyramid_space(levels=2, finest=4, cells=3)
    cells = [
        [(pair, level, op) for pair in itertools.combinations(range(maps), 2) for level in (0, 1) for op in (SUM, "gp")]
        for maps in (2, 3, 4)
    ]
    expected = {wiring for wiring in itertools.product(*cells) if {wiring[1][1], wiring[2][1]} == {0, 1}}
    pyramids = [
        tuple((tuple(sorted((c.first, c.second))), c.level, c.op) for c in wiring_of(arch).cells)
        for arch in space.enumerate()
    ]
    assert len(pyramids) == len(set(pyramids)) == space.size() == 576
    assert set(pyramids) == expected


@pytest.mark.parametrize("ordered", [False, True])
def test_sampled_pyramids_are_legal(ordered: bool) -> None:
    space = pyramid_space(ordered=ordered)
    for arch in sample(space, 2_000):
        wiring = wiring_of(arch)
        assert sorted(cell.level for cell in wiring.cells[2:]) == [0, 1, 2, 3, 4]
        read: set[int] = set()
        for number, cell in enumerate(wiring.cells):
            used = {cell.first, cell.second, *cell.leftovers}
            assert len(used) == 2 + len(cell.leftovers)
            assert max(used) < 5 + number
            assert not read & set(cell.leftovers)
            read |= used
        assert read >= set(range(7))  # the inputs and the two cells before the outputs
        if not ordered:
            assert values_of(wiring) == dict(arch)
        assert wiring_of(space.canonical(values_of(wiring))) == wiring


def test_ordered_operands_express_the_pyramids_that_pairs_leave_out() -> None:
    """Where an attention merges two maps of one level, either may gate; the two pyramids differ."""
    pyramid, pairs = SearchablePyramid(WIDTH, ordered=True), SearchablePyramid(WIDTH)
    randomize(pyramid, seed=0)
    pyramid.eval()
    pairs.load_state_dict(pyramid.state_dict())  # the same weights serve both
    maps, changed = random_maps(16, 8, 4, 2, 1), 0
    for arch in sample(pairs.space, 60):
        wiring = wiring_of(arch)
        levels = [*range(5), *(cell.level for cell in wiring.cells)]
        swapped = [
            cell._replace(first=cell.second, second=cell.first)
            if cell.op == ATTENTION and levels[cell.first] == levels[cell.second]
            else cell
            for cell in wiring.cells
        ]
        if swapped == list(wiring.cells):
            continue
        other = wiring._replace(cells=tuple(swapped), ordered=True)
        first, second = (pyramid.space.canonical(values_of(w)) for w in (wiring._replace(ordered=True), other))
        assert (wiring_of(first).cells, wiring_of(second).cells) == (wiring.cells, other.cells)
        assert pyramid.space.normal_form(first) != pyramid.space.normal_form(second)
        assert wiring_of(pairs.space.canonical(values_of(other._replace(ordered=False)))) == wiring  # indistinguishable
        with torch.no_grad():
            changed += not all(map(torch.equal, pyramid(maps, first), pyramid(maps, second)))
    assert changed > 10


def _leftovers_by_counting(wiring: Wiring) -> list[tuple[int, ...]]:
    """Leftovers of each cell, from counts of the cells that read a map, leftovers included."""
    levels = [*range(wiring.levels), *(cell.level for cell in wiring.cells)]
    consumers, leftovers = [0] * len(levels), []
    for number, cell in enumerate(wiring.cells):
        consumers[cell.first] += 1
        consumers[cell.second] += 1
        earlier = range(wiring.levels + number if number >= wiring.free else 0)
        leftovers.append(tuple(s for s in earlier if levels[s] == cell.level and consumers[s] == 0))
        for state in leftovers[-1]:
            consumers[state] += 1
    return leftovers


def test_leftovers_are_the_maps_of_a_level_that_no_cell_has_read() -> None:
    later = 0
    for arch in sample(pyramid_space(), 500):
        wiring = wiring_of(arch)
        assert [cell.leftovers for cell in wiring.cells] == _leftovers_by_counting(wiring)
        for number, cell in enumerate(wiring.cells):
            after = {state for c in wiring.cells[number + 1 :] for state in (c.first, c.second)}
            later += bool(after & set(cell.leftovers))
    assert later > 20  # a leftover may be read again


# -- normal forms -----------------------------------------------------------------------------------------------------


def _graph(wiring: Wiring) -> tuple[Any, ...]:
    """A pyramid regardless of the order of its cells: its smallest description under all renamings of the cells."""
    n, free, total = wiring.levels, wiring.free, len(wiring.cells)
    described = []
    for first, last in itertools.product(
        itertools.permutations(range(free)), itertools.permutations(range(free, total))
    ):
        name = [*range(n), *(n + new for new in (*first, *last))]
        rows = []
        for number, cell in enumerate(wiring.cells):
            operands, leftovers = (name[cell.first], name[cell.second]), [name[s] for s in cell.leftovers]
            if cell.op == SUM:
                maps: tuple[Any, Any] = ((), tuple(sorted([*operands, *leftovers])))
            else:
                maps = (operands, tuple(sorted(leftovers)))
            rows.append((name[n + number], cell.level, cell.op, *maps))
        described.append(tuple(sorted(rows)))
    return min(described)


@pytest.mark.parametrize(
    ("cells", "ops", "ordered"),
    [
        (3, (SUM, ATTENTION), False),
        (4, (SUM,), False),
        (4, (ATTENTION,), False),
        (3, (ATTENTION,), True),
        pytest.param(3, (SUM, ATTENTION), True, marks=pytest.mark.slow),
        pytest.param(4, (ATTENTION,), True, marks=pytest.mark.slow),
    ],
)
def test_every_graph_has_one_normal_form(cells: int, ops: tuple[str, ...], ordered: bool) -> None:
    space = pyramid_space(levels=2, cells=cells, ops=ops, ordered=ordered)
    by_graph: dict[Any, set[Arch]] = {}
    for arch in space.enumerate():
        normal = space.normal_form(arch)
        assert space.normal_form(normal) == normal
        graph = _graph(wiring_of(arch))
        assert _graph(wiring_of(normal)) == graph
        by_graph.setdefault(graph, set()).add(normal)
    assert all(len(normals) == 1 for normals in by_graph.values())
    normals = {normal for equivalents in by_graph.values() for normal in equivalents}
    assert len(normals) == len(by_graph)
    assert len(by_graph) < 0.9 * space.size()


def test_normal_forms_compute_the_same() -> None:
    """If all cells have the same weights, equivalent pyramids have equal outputs."""
    pyramid = SearchablePyramid(WIDTH)
    randomize(pyramid, seed=0)
    for conv in pyramid.convs.values():
        conv.load_state_dict(pyramid.convs["0-0"].state_dict())
    pyramid.eval()
    maps, moved = random_maps(16, 8, 4, 2, 1), 0
    with torch.no_grad():
        for arch in sample(pyramid.space, 60):
            normal = pyramid.space.normal_form(arch)
            moved += normal != arch
            for output, of_normal in zip(pyramid(maps, arch), pyramid(maps, normal), strict=True):
                torch.testing.assert_close(output, of_normal, rtol=1e-4, atol=1e-4)
    assert moved > 30


# -- the published pyramid --------------------------------------------------------------------------------------------


def test_the_published_pyramid_is_in_the_space() -> None:
    ordered = pyramid_space(ordered=True)
    assert wiring_of(wiring_arch("nasfpn-7", ordered)) == WIRINGS["nasfpn-7"]._replace(ordered=True)
    assert wiring_arch("nasfpn-7", ordered)["cell6.first"] == "cell5"  # the coarser map, which gates
    space = pyramid_space()
    arch = wiring_arch("nasfpn-7", space)
    assert arch in space
    wiring = wiring_of(arch)
    assert wiring == WIRINGS["nasfpn-7"]
    assert [3 + cell.level for cell in wiring.cells[2:]] == [3, 4, 5, 7, 6]  # the order of the outputs
    assert [(number, cell.leftovers) for number, cell in enumerate(wiring.cells) if cell.leftovers] == [
        (4, (2,)),  # the input P5, at P5
        (5, (4,)),  # P7, at P7
    ]
    assert wiring.cells[0] == Cell(1, ATTENTION, 3, 1)


def _published_by_hand(maps: tuple[Tensor, ...], end: list[nn.Module]) -> tuple[Tensor, ...]:
    """The pyramid of the released TensorFlow code, written out."""

    def up(x: Tensor, factor: int) -> Tensor:
        return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)

    def gp(coarser: Tensor, finer: Tensor) -> Tensor:
        return coarser + coarser.flatten(2).max(dim=2).values.sigmoid()[:, :, None, None] * finer

    down = functional.max_pool2d
    p3, p4, p5, p6, p7 = maps
    c1 = end[0](gp(up(p6, 4), p4))
    c2 = end[1](p4 + c1)
    out3 = end[2](p3 + up(c2, 2))
    out4 = end[3](c2 + down(out3, 2))
    out5 = end[4](gp(down(out4, 2), down(out3, 4)) + p5)
    out7 = end[5](gp(down(out5, 4), down(c2, 8)) + p7)
    out6 = end[6](gp(up(out7, 2), down(out5, 2)))
    return out3, out4, out5, out6, out7


def test_the_published_pyramid_computes_what_the_paper_draws() -> None:
    pyramid = SearchablePyramid(WIDTH)
    randomize(pyramid, seed=1)
    pyramid.eval()
    maps, arch = random_maps(32, 16, 8, 4, 2), wiring_arch("nasfpn-7", pyramid.space)
    end: list[nn.Module] = [pyramid.convs[f"{number}-{level}"] for number, level in enumerate((1, 1, 0, 1, 2, 4, 3))]
    with torch.no_grad():
        for output, expected in zip(pyramid(maps, arch), _published_by_hand(maps, end), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_a_cell_ends_with_relu_convolution_and_norm() -> None:
    conv = MergingConv(WIDTH)
    randomize(conv, seed=2)
    conv.eval()
    (x,) = random_maps(6)
    with torch.no_grad():
        expected = conv.bn(functional.conv2d(x.clamp(min=0), conv.conv.weight, conv.conv.bias, padding=1))
        assert torch.equal(conv(x), expected)
        assert (conv(x) < 0).any()  # no activation follows
    assert MergingConv(WIDTH, bias=False).conv.bias is None


def test_drop_block_drops_squares_within_the_map() -> None:
    """The share of the paper, 1 - keep, in blocks of its size that lie within the map; nothing outside training."""
    torch.manual_seed(0)
    x = torch.ones(64, 8, 16, 12)
    drop = DropBlock(0.1, 3)
    out = drop(x)
    assert out.mean().item() == pytest.approx(1.0)
    dropped = out == 0
    assert 0.06 < dropped.float().mean().item() < 0.1  # blocks overlap
    whole = nn.functional.max_pool2d(-dropped.float(), 3, 1) == -1  # squares of zeros
    covered = nn.functional.max_pool2d(nn.functional.pad(whole.float(), (2, 2, 2, 2)), 3, 1) == 1
    assert torch.equal(covered, dropped)
    assert not torch.equal(dropped[0, 0], dropped[0, 1])  # every channel has its own
    assert drop(x[..., :2, :2]).unique().numel() <= 2  # smaller than a block
    assert torch.equal(drop.eval()(x), x)
    pyramid = SearchablePyramid(WIDTH, drop_block=0.5)
    arch, maps = wiring_arch("nasfpn-7", pyramid.space), random_maps(16, 8, 4, 2, 1)
    materialized = pyramid.materialize(arch, None)
    for module in (lambda: pyramid(maps, arch), lambda: materialized(maps)):
        assert all((output == 0).any() for output in module())
    materialized.eval()
    assert not any((output == 0).any() for output in materialized(maps))


def test_the_two_gates() -> None:
    coarser, finer = random_maps(4, 4, seed=3)
    maximum, mean = coarser.flatten(2).amax(2)[..., None, None], finer.flatten(2).mean(2)[..., None, None]
    torch.testing.assert_close(attention(coarser, finer, "tf"), coarser + maximum.sigmoid() * finer)
    torch.testing.assert_close(attention(coarser, finer, "mmcv"), finer + mean.sigmoid() * coarser)
    pyramids = [SearchablePyramid(WIDTH, gate=gate).eval() for gate in ("tf", "mmcv")]  # type: ignore[arg-type]
    pyramids[1].load_state_dict(pyramids[0].state_dict())
    arch = wiring_arch("nasfpn-7", pyramids[0].space)
    tf, mmcv = (pyramid(random_maps(16, 8, 4, 2, 1), arch) for pyramid in pyramids)
    assert not torch.allclose(tf[0], mmcv[0])


def test_sizes_that_are_not_powers_of_two() -> None:
    """Padding is TensorFlow's SAME, the smaller half first; upsampled maps are cropped to the size of their level."""
    row = torch.arange(7.0).view(1, 1, 1, 7)
    assert pool_same(row.expand(1, 1, 7, 7), 4)[0, 0, 0].tolist() == [3, 6]
    assert pool_same(row.expand(1, 1, 7, 7).mT, 4)[0, 0, :, 0].tolist() == [3, 6]
    assert pool_same(row.flip(3).expand(1, 1, 6, 7), 4)[0, 0, 0].tolist() == [6, 2]
    assert pool_same(-1 - row, 2).tolist() == [[[[-1, -3, -5, -7]]]]  # the padding is not zero
    assert resample(row[..., :2], -1, (1, 3)).tolist() == [[[[0, 0, 1]]]]
    maps = PyramidInputs((3, WIDTH, 5), WIDTH)(
        (torch.randn(2, 3, 21, 13), torch.randn(2, WIDTH, 11, 7), torch.randn(2, 5, 6, 4))
    )
    assert [tuple(x.shape[2:]) for x in maps] == [(21, 13), (11, 7), (6, 4), (3, 2), (2, 1)]
    pyramid = SearchablePyramid(WIDTH)
    for arch in sample(pyramid.space, 5):
        assert [x.shape for x in pyramid(maps, arch)] == [x.shape for x in maps]


@torch.no_grad()
def test_graphs_of_any_size_stay_small() -> None:
    """The sizes of a level's maps are one expression in all cells; those that grew by cell took hours to trace."""
    pyramid = SearchablePyramid(WIDTH)
    arch = next(sample(pyramid.space, 1))
    merged = pyramid.materialize(arch, (Layout(WIDTH),) * 5)
    network = nn.Sequential(PyramidInputs((WIDTH,), WIDTH, pooled=4), merged).eval()
    sizes = {2: torch.export.Dim("height", min=1), 3: torch.export.Dim("width", min=1)}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            network,
            ((torch.randn(1, WIDTH, 48, 72),),),
            dynamic_shapes=((sizes,),),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    values = [value for node in program.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)]
    longest = max(len(str(side)) for value in values for side in value.shape)
    assert longest < 200
    for height, width in ((48, 72), (33, 20), (1, 97)):
        maps = (torch.randn(1, WIDTH, height, width),)
        assert all(map(torch.equal, program.module()(maps), network(maps)))


# -- published counts -------------------------------------------------------------------------------------------------


def test_parameters_and_macs_are_the_published_ones() -> None:
    with torch.device("meta"):
        detector, arch = published_nasfpn("nasfpn-r50-7at256")
        network = detector.subnet(arch)
    necks = [child for name, child in network.named_children() if name.startswith(("inputs", "neck"))]
    assert len(necks) == 8
    neck = sum(p.numel() for step in necks for p in step.parameters())
    assert neck == 7 * 7 * (9 * 256**2 + 256 + 512) + (512 + 1024 + 2048) * 256 + 3 * (256 + 512) == 29_858_816
    costs = count(network, (3, 640, 640))
    assert (round(costs["params"] / 1e6, 1), round(costs["macs"] / 1e9, 1)) == (60.1, 140.3)
    with torch.device("meta"):
        detector, arch = published_nasfpn("nasfpn-r50-7at384")
        assert round(sum(p.numel() for p in detector.subnet(arch).parameters()) / 1e6, 1) == 103.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [("nasfpn-r50-7at256", 1024, 359.1), ("nasfpn-r50-7at256", 1280, 561.0), ("nasfpn-r50-7at384", 1280, 1040.7)],
)
def test_macs_of_the_other_published_rows(name: str, size: int, macs: float) -> None:
    with torch.device("meta"):
        detector, arch = published_nasfpn(name, image_size=size)
        assert round(count(detector.subnet(arch), detector.input_shape)["macs"] / 1e9, 1) == macs


def test_a_published_network_detects() -> None:
    network = create_nasfpn(
        "nasfpn-r50-7at256", num_classes=CLASSES, image_size=128, repeats=1, generator=torch.Generator().manual_seed(0)
    )
    classifier = torchvision.models.resnet50(weights=None)
    load_backbone(network, classifier)
    assert torch.equal(network.get_parameter("backbone.stem.block.0.weight"), classifier.conv1.weight)
    with torch.no_grad():
        detections = network.eval()(images(128, 100, number=1))
    assert detections[0]["boxes"].shape[1] == 4
    with pytest.raises(InputError, match="no NAS-FPN network 'nasfpn-r50'; did you mean 'nasfpn-r50-7at"):
        create_nasfpn("nasfpn-r50")
    assert NASFPN_NETWORKS["nasfpn-r50-7at384"] == (384, 1280)


# -- the contract -----------------------------------------------------------------------------------------------------


class ToyMaps(nn.Module):
    """Convolutions that make maps of strides 2, 4 and 8 from an image."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, WIDTH, 2, 2), nn.Conv2d(WIDTH, 5, 2, 2)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return tuple(maps)

    def out_layout(self, layout: Any) -> Any:
        return Layout(6, 2), Layout(WIDTH, 4), Layout(5, 8)


def pyramids_without_detector(**settings: Any) -> Chain:
    """Two stacked pyramids on toy maps."""
    pyramids = [("neck", SearchablePyramid(WIDTH, finest=1, **settings)) for _ in range(2)]
    steps = [("maps", ToyMaps()), ("inputs", PyramidInputs((6, WIDTH, 5), WIDTH)), *pyramids]
    return Chain("pyramid", steps, input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    "settings", [{}, {"gate": "mmcv", "bias": False, "cells": 5, "ordered": True}], ids=["tf", "mmcv"]
)
def test_pyramids_keep_the_contract_of_a_space(settings: dict[str, Any]) -> None:
    chain = pyramids_without_detector(**settings)
    described = {name: value for name, value in settings.items() if name in ("cells", "ordered")}
    assert chain.space.size() == pyramid_space(**described).size()  # both repeats share the choices
    check_space(chain, archs=2)


NECK: dict[str, Any] = {"neck": "nasfpn", "repeats": 2, "head_convs": 1}


def with_searched_neck(**settings: Any) -> Detector:
    """A tiny RetinaNet with two repeats of a searched pyramid."""
    return tiny("retinanet", **{**NECK, **settings})


@pytest.mark.parametrize("backbone", ["searched", pytest.param("fixed", marks=pytest.mark.slow)])
def test_detectors_keep_the_contract_of_a_space(backbone: str) -> None:
    detector = with_searched_neck(**({"backbone": fixed_backbone(), "repeats": 1} if backbone == "fixed" else {}))
    searched = {choice.name.partition(".")[0] for choice in detector.space.choices}
    assert searched == ({"neck"} if backbone == "fixed" else {"backbone", "neck"})
    check_space(detector, archs=1, inputs=Labelled(images(), targets()))


def test_networks_need_values_for_all_that_is_searched() -> None:
    joint = with_searched_neck()
    arch = joint.space.sample(random.Random(1))
    network = tiny_network("retinanet", **NECK, arch=arch, phase="supernet")
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in joint.subnet(arch).parameters())
    body = fixed_backbone()
    of_neck = {name: value for name, value in arch.items() if name.startswith("neck.")}
    assert isinstance(tiny_network("retinanet", **NECK, backbone=body, arch=of_neck), DetectorNetwork)
    with pytest.raises(InputError, match=r"lacks 'neck\.levels'"):
        tiny_network("retinanet", **NECK, arch={n: value for n, value in arch.items() if n.startswith("backbone.")})


def test_costs_and_shared_prefixes() -> None:
    """Repeats share their choices, so different necks have no common repeat; backbones cost as below an FPN."""
    detector = with_searched_neck(seed=7).eval()
    first = detector.space.sample(random.Random(4))
    other = Arch({**first, "neck.cell7.op": {SUM: ATTENTION, ATTENTION: SUM}[str(first["neck.cell7.op"])]})
    costs, plain = DetectorCosts(detector), DetectorCosts(tiny("retinanet"))
    body = Arch({name: value for name, value in first.items() if name.startswith("backbone.")})
    assert costs(first)["backbone_macs"] == plain(body)["backbone_macs"]
    network = tiny_network("retinanet", **NECK, arch=first)
    assert costs(first)["params"] == sum(p.numel() for p in network.parameters())
    sharing, trie = PrefixSharing(detector, memory_format=torch.contiguous_format), Trie(detector, [first, other])
    assert trie.size == len(detector.step_modules) + 4  # two repeats, head and boxes
    outputs: dict[int, Any] = {}
    sharing.calibrate(trie, [images(seed=5)])
    sharing.outputs(trie, [images(seed=9)], outputs.__setitem__)
    for number, arch in enumerate((first, other)):
        network = detector.subnet(arch)
        recalibrate_bn(network, [images(seed=5)])
        with torch.no_grad():
            assert same(outputs[number], network(images(seed=9)))
    assert not same(outputs[0], outputs[1])


def test_a_published_backbone_leaves_the_neck_to_search() -> None:
    settings: dict[str, Any] = {
        "backbone": "detnas-coco-retinanet-300m",
        "neck": "nasfpn",
        "head_width": 8,
        "repeats": 1,
        "num_classes": 3,
    }
    with torch.device("meta"):
        detector = create_detector("retinanet", **settings)
    assert detector.space.size() == pyramid_space().size()
    arch = wiring_arch("nasfpn-7", detector.space, prefix="neck")
    network = create_detector_network("retinanet", arch=arch, **settings)
    with torch.no_grad():
        detections = network.eval()(images(128, 128, number=1))
    assert detections[0]["boxes"].shape[1] == 4


# -- reading out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anytime", [False, True])
def test_heads_can_read_the_pyramid_after_any_repeat(anytime: bool) -> None:
    detector = with_searched_neck(repeats=3, seed=5, norm="batch", anytime=anytime).eval()
    arch = detector.space.sample(random.Random(2))
    network = detector.subnet(arch).eval()
    outputs = []
    for repeats in (1, 2, 3):
        cut = read_out(detector, repeats)
        assert cut.step_names.count("neck") == repeats
        with torch.no_grad():
            outputs.append(cut(images(), arch))
            assert same(outputs[-1], read_out(network, repeats)(images()))
            assert same(outputs[-1], cut.subnet(arch)(images()))
        assert {id(p) for p in cut.parameters()} <= {id(p) for p in detector.parameters()}
    with torch.no_grad():
        assert same(outputs[2], detector(images(), arch))
    assert len(detector.step_modules) == len(detector.step_names)
    assert detector.step_names.count("neck") == 3
    assert not torch.equal(outputs[0][0]["scores"][:5], outputs[2][0]["scores"][:5])
    for wrong in (0, 4):
        with pytest.raises(InputError, match=f"has 3 repeats .* cannot be read after {wrong}; give 1 to 3"):
            read_out(detector, wrong)


def test_deep_supervision_trains_every_read_out() -> None:
    """The losses are the means of those of the read-outs, each of which has batch norm of its own in the heads."""
    detector = with_searched_neck(repeats=2, seed=5, norm="batch", anytime=True)
    network = detector.subnet(detector.space.sample(random.Random(2))).train()
    inputs = Labelled(images(), targets())
    losses, first = network(inputs), read_out(network, 1).train()(inputs)
    pyramids = [part for part in network.modules() if isinstance(part, MergingPyramid)]
    assert [pyramid.keeps for pyramid in pyramids] == [False, True]
    pyramids[1].keeps = False  # the heads then read the last repeat alone
    last = network(inputs)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, (first[name] + last[name]) / 2)
        assert not torch.allclose(first[name], last[name])
    sum(losses.values()).backward()
    heads = {name: p for name, p in network.named_parameters() if name.startswith("head")}
    assert all(p.grad is not None for p in heads.values())
    levels = next(part for part in network.modules() if isinstance(part, LevelNorms))
    assert len(levels) == 2 * len(detector.step_modules[-1].strides)
    means = [norm.running_mean for norm in levels]
    assert not torch.equal(means[0], means[len(means) // 2])
    plain = with_searched_neck(repeats=2, norm="batch")
    assert len(next(part for part in plain.modules() if isinstance(part, LevelNorms))) == len(levels) // 2


@pytest.mark.slow
def test_exported_detectors_detect_the_same(tmp_path: Path) -> None:
    detector = with_searched_neck(seed=6)
    arch = detector.space.sample(random.Random(3))
    network = detector.subnet(arch).eval()
    preprocess = DetectorPreprocess(input_size=64, mean=(0.4,) * 3, std=(0.2,) * 3, classes=("a", "b", "c"))
    result = export(network, tmp_path / "nasfpn", arch=arch, space="nasfpn", preprocess=preprocess)
    assert result["requires"] == ["torch", "torchvision"]
    assert result["differences"]["model.py"] == 0.0
    with torch.no_grad():
        assert same(load_exported(tmp_path / "nasfpn")(images()), network(images()))


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named() -> None:
    for levels, message in ((4, "level P7.*P3-P6 only; give a backbone of strides"), (3, "level P6.*P3-P5 only")):
        with pytest.raises(InputError, match=message):
            wiring_arch("nasfpn-7", pyramid_space(levels=levels))
    with pytest.raises(InputError, match="has the level P6, but this space has P1-P5 only"):
        wiring_arch("nasfpn-7", with_searched_neck().space, prefix="neck")
    with pytest.raises(InputError, match=r"has 7 cells on P3-P7, but this space has 6 on P3-P7"):
        wiring_arch("nasfpn-7", pyramid_space(cells=6))
    with pytest.raises(InputError, match="no published pyramid 'nasfpn-8'; did you mean 'nasfpn-7'"):
        wiring_arch("nasfpn-8", pyramid_space())
    with pytest.raises(InputError, match="levels=5, cells=4"):
        pyramid_space(cells=4)
    with pytest.raises(InputError, match=r"not \('max',\)"):
        pyramid_space(ops=("max",))
    with pytest.raises(InputError, match="'tf' or 'mmcv', not 'max'"):
        SearchablePyramid(WIDTH, gate="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'faster-rcnn-fpn' has no neck 'nasfpn'"):
        tiny("faster-rcnn-fpn", neck="nasfpn")
    with pytest.raises(InputError, match="no neck 'nasfnp'; did you mean 'nasfpn'"):
        with_searched_neck(neck="nasfnp")
    with pytest.raises(InputError, match="repeats=0"):
        with_searched_neck(repeats=0)
    with pytest.raises(InputError, match="smaller than the largest stride of the detector, 32"):
        create_detector("retinanet", backbone=fixed_backbone(), neck="nasfpn", image_size=16, head_width=8)
