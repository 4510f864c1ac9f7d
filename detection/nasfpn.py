"""NAS-FPN (Ghiasi et al., 2019): the space of merging cells, its supernet, and RetinaNet on it.

A pyramid is given one map per level and makes one per level of them. Each of its cells merges two of the maps that are
there, resampled to the level of the cell's output, which then is there too. The last cells are the outputs, one per
level in an order that is decided.
"""

import copy
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from detection.backbone import Backbone, MapStep, SearchableMapStep, as_backbone
from detection.detector import Detector, DetectorNetwork
from detection.inputs import ImageBatch
from detection.nasfpn_plain import MergingConv, MergingPyramid, PyramidInputs, merge
from detection.pyramid import Norm, draw_weights
from detection.resnet import resnet_50
from detection.retinanet import OCTAVE, RATIOS, RetinaBoxes, RetinaPredictor, initialize_retinanet
from supernet.errors import InputError, nearest
from supernet.searchable import Layouts, Part, Searchable, parameters_of, realize
from supernet.space import Arch, Choice, SearchSpace, Value
from supernet.spaces.nasnet import initialize_passing

SUM, ATTENTION = "sum", "gp"
Gate = Literal["tf", "mmcv"]
NECK = "neck"


# -- the space --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """One merging cell; maps and levels count from 0, the finest first, and cells' maps follow those of the input.

    Attributes:
        level: of the output.
        op: "sum" or "gp".
        first, second: the operands; of "gp" the one of the coarser level first, of equal levels the earlier one. It is
            the one that gates in TensorFlow's code.
        leftovers: added to the result, ascending.
    """

    level: int
    op: str
    first: int
    second: int
    leftovers: tuple[int, ...] = ()


class Wiring(NamedTuple):
    """A pyramid: its cells in order, on `levels` levels of which the finest is P`finest`."""

    cells: tuple[Cell, ...]
    levels: int
    finest: int

    @property
    def free(self) -> int:
        """How many cells come before the outputs."""
        return len(self.cells) - self.levels

    @property
    def output_order(self) -> tuple[str, ...]:
        """The names of the output levels, in the order of their cells."""
        return tuple(f"P{self.finest + cell.level}" for cell in self.cells[self.free :])


def pyramid_space(
    *, levels: int = 5, finest: int = 3, cells: int = 7, ops: Sequence[str] = (SUM, ATTENTION)
) -> SearchSpace:
    """The decisions of one pyramid; 3.0e15 pyramids with seven cells on P3 to P7.

    In order: `levels`, which is no decision but says what the others mean; per cell `cell{k}.inputs`, an unordered pair
    of the maps that are there, e.g. "P4+cell1"; its level, which is `cell{k}.level` before the outputs and
    `cell{k}.output` among them, where it counts the levels that have no output yet, the finest first (the last output
    has one left); `cell{k}.op`.

    Args:
        finest: the number of the finest level, the logarithm of its stride.
        cells: their number, of which the last `levels` are the outputs.
        ops: of "sum" and "gp", global-pooling attention.

    Raises:
        InputError: a single level, fewer cells than levels, or an unknown operation.
    """
    if levels < 2 or cells < levels:
        raise InputError(
            f"a pyramid has two levels or more and a cell for each at least, not levels={levels}, cells={cells}"
        )
    if not ops or set(ops) - {SUM, ATTENTION}:
        raise InputError(f"operations of merging cells are some of {SUM!r} and {ATTENTION!r}, not {tuple(ops)!r}")
    names = [f"P{finest + level}" for level in range(levels)]
    choices = [Choice("levels", (f"{names[0]}-{names[-1]}",))]
    there, free = list(names), cells - levels
    for number in range(1, cells + 1):
        name = f"cell{number}"
        choices.append(Choice(f"{name}.inputs", tuple("+".join(pair) for pair in itertools.combinations(there, 2))))
        if number <= free:
            choices.append(Choice(f"{name}.level", tuple(names)))
        elif number < cells:
            choices.append(Choice(f"{name}.output", range(cells - number + 1)))
        choices.append(Choice(f"{name}.op", tuple(ops)))
        there.append(name)
    return SearchSpace("nasfpn", choices, one_per_pyramid)


@functools.lru_cache(maxsize=4096)
def wiring_of(arch: Arch) -> Wiring:
    """What the decisions of `pyramid_space` describe, with the leftovers of the released TensorFlow code.

    When an output cell is built, every map of its level that no cell has read so far, the cell itself included, is
    added to it; a later cell may still read it. So each map is used, and no part of a pyramid feeds nothing.
    """
    finest, coarsest = (int(number) for number in re.findall(r"\d+", str(arch["levels"])))
    levels, number = coarsest - finest + 1, sum(name.endswith(".inputs") for name in arch)
    names = [f"P{finest + level}" for level in range(levels)]
    of, left = list(range(levels)), list(range(levels))  # levels of the maps, levels without output
    read: set[int] = set()
    cells: list[Cell] = []
    leftovers: tuple[int, ...]
    for name in (f"cell{k + 1}" for k in range(number)):
        one, other = (names.index(part) for part in str(arch[f"{name}.inputs"]).split("+"))
        read |= {one, other}
        op, leftovers = str(arch[f"{name}.op"]), ()
        if f"{name}.level" in arch:
            level = names.index(str(arch[f"{name}.level"]))
        else:
            level = left.pop(int(arch.get(f"{name}.output", 0)))
            leftovers = _unread(of, level, read)
        cells.append(Cell(level, op, *_operands(op, one, other, of), leftovers))
        of.append(level)
        names.append(name)
    return Wiring(tuple(cells), levels, finest)


def _unread(levels: Sequence[int], level: int, read: set[int]) -> tuple[int, ...]:
    return tuple(state for state, at in enumerate(levels) if at == level and state not in read)


def _operands(op: str, one: int, other: int, levels: Sequence[int]) -> tuple[int, int]:
    one, other = sorted((one, other))
    return (other, one) if op == ATTENTION and levels[other] > levels[one] else (one, other)


def values_of(wiring: Wiring) -> dict[str, Value]:
    """The decisions of `pyramid_space` that describe a pyramid whose leftovers are those of the rule."""
    cells, levels, finest, free = wiring.cells, wiring.levels, wiring.finest, wiring.free
    names = [f"P{finest + level}" for level in range(levels)] + [f"cell{k + 1}" for k in range(len(cells))]
    values: dict[str, Value] = {"levels": f"{names[0]}-{names[levels - 1]}"}
    left = list(range(levels))
    for k, cell in enumerate(cells):
        name = f"cell{k + 1}"
        values[f"{name}.inputs"] = "+".join(names[state] for state in sorted((cell.first, cell.second)))
        values[f"{name}.op"] = cell.op
        if k < free:
            values[f"{name}.level"] = names[cell.level]
        elif k < len(cells) - 1:
            values[f"{name}.output"] = left.index(cell.level)
            left.remove(cell.level)
    return values


def one_per_pyramid(arch: Arch) -> dict[str, Value]:
    """The representative of all decisions of one pyramid.

    Cells may stand in any order in which each reads earlier maps and the outputs come last, as long as the leftovers
    stay what they are; and where a cell sums, it does not matter which of its maps are operands and which leftovers.
    The operands of an attention at equal levels do not commute. Equal pyramids are equal networks, of which other
    shared weights may serve the same cell.
    """
    return values_of(canonical_wiring(wiring_of(arch)))


def canonical_wiring(wiring: Wiring) -> Wiring:
    """The smallest of the descriptions of a pyramid, compared cell by cell.

    The next cell is the one with the smallest description of those that may come next; where several have the same,
    each is tried, and where the rest cannot be completed, the next smallest.
    """
    inputs = wiring.levels

    def place(labels: dict[int, int], made: tuple[Cell, ...], read: frozenset[int]) -> tuple[Cell, ...] | None:
        if len(made) == len(wiring.cells):
            return made
        outputs = len(made) >= wiring.free
        ready: dict[Cell, list[int]] = {}
        for k in range(wiring.free, len(wiring.cells)) if outputs else range(wiring.free):
            if k + inputs not in labels:
                for written in _written(wiring.cells[k], labels, made, read, inputs, outputs=outputs):
                    ready.setdefault(written, []).append(k)
        for written in sorted(ready):
            after = read | {written.first, written.second}
            found = [place({**labels, k + inputs: len(made) + inputs}, (*made, written), after) for k in ready[written]]
            complete = [cells for cells in found if cells is not None]
            if complete:
                return min(complete)
        return None

    cells = place({level: level for level in range(inputs)}, (), frozenset())
    assert cells is not None  # the given order is one
    return wiring._replace(cells=cells)


def _written(
    cell: Cell, labels: Mapping[int, int], made: Sequence[Cell], read: frozenset[int], inputs: int, *, outputs: bool
) -> Iterator[Cell]:
    """The descriptions of a cell as the next one, behind those made already; none if it cannot come next."""
    needed = (cell.first, cell.second, *cell.leftovers)
    if any(state not in labels for state in needed):
        return
    levels = [*range(inputs), *(one.level for one in made)]
    first, second, *rest = (labels[state] for state in needed)
    pairs = itertools.combinations(sorted((first, second, *rest)), 2) if cell.op == SUM else [(first, second)]
    for one, other in pairs:
        leftovers = _unread(levels, cell.level, {*read, one, other}) if outputs else ()
        same = {one, other, *leftovers} == {first, second, *rest}
        if same and _operands(cell.op, one, other, levels) == (one, other):
            yield Cell(cell.level, cell.op, one, other, leftovers)


# -- published --------------------------------------------------------------------------------------------------------

WIRINGS: dict[str, Wiring] = {
    "nasfpn-7": Wiring(
        (
            Cell(1, ATTENTION, 3, 1),
            Cell(1, SUM, 1, 5),
            Cell(0, SUM, 0, 6),
            Cell(1, SUM, 6, 7),
            Cell(2, ATTENTION, 8, 7, (2,)),
            Cell(4, ATTENTION, 9, 6, (4,)),
            Cell(3, ATTENTION, 10, 9),
        ),
        levels=5,
        finest=3,
    )
}
"""Published pyramids; "nasfpn-7" is the one of Figure 6, as in TensorFlow's released code."""


def wiring_arch(name: str, space: SearchSpace, *, prefix: str = "", shift: int = 0) -> Arch:
    """A published pyramid as decisions of a space.

    Args:
        name: in `WIRINGS`.
        space: of `pyramid_space`, or one that holds its decisions below `prefix`, e.g. "neck". Other decisions are not
            part of the answer.
        shift: moves all levels by as many: -1 reads P3 to P7 as P2 to P6, for backbones of other strides.

    Raises:
        InputError: no such pyramid, or the space lacks a level of it, or has another number of cells.
    """
    if name not in WIRINGS:
        raise InputError(f"there is no published pyramid {name!r}; {nearest(name, WIRINGS)}")
    start = f"{prefix}." if prefix else ""
    wiring = WIRINGS[name]._replace(finest=WIRINGS[name].finest + shift)
    given = str(space[f"{start}levels"].options[0])
    finest, coarsest = (int(number) for number in re.findall(r"\d+", given))
    lacking = [n for n in range(wiring.finest, wiring.finest + wiring.levels) if not finest <= n <= coarsest]
    if lacking:
        raise InputError(
            f"the pyramid {name!r} names the level P{lacking[0]}, but this one has {given} only; give a backbone of "
            "strides 8, 16 and 32 with levels=3 and pooled_levels=2"
        )
    values = {start + key: value for key, value in values_of(wiring).items()}
    own = [choice.name for choice in space.choices if choice.name.startswith(start)]
    if values[f"{start}levels"] != given or sum(key.endswith(".inputs") for key in own) != len(wiring.cells):
        raise InputError(
            f"the pyramid {name!r} has {len(wiring.cells)} cells on {values[start + 'levels']}, and this space "
            f"{sum(key.endswith('.inputs') for key in own)} on {given}; build it with the former"
        )
    return Arch(values)


# -- the supernet -----------------------------------------------------------------------------------------------------


class SearchablePyramid(Searchable):
    """All pyramids of `pyramid_space` with shared weights, one convolution per (cell, output level).

    Shapes: `levels` maps (N, width, H_i, W_i), the finest first, to the same; so pyramids can be stacked.

    Args:
        levels, finest, cells, ops: see `pyramid_space`.
        gate: of the attention, "tf" or "mmcv"; see `detection.nasfpn_plain.attended`.
        bias: of the convolutions before batch norm.

    Raises:
        InputError: see `pyramid_space`; an unknown gate.
    """

    def __init__(
        self, width: int, *, levels: int = 5, finest: int = 3, cells: int = 7, ops: Sequence[str] = (SUM, ATTENTION),
        gate: Gate = "tf", bias: bool = True, eps: float = 1e-5, momentum: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        if gate not in ("tf", "mmcv"):
            raise InputError(f"the gate of the attention is 'tf' or 'mmcv', not {gate!r}")
        self.space, self.gate = pyramid_space(levels=levels, finest=finest, cells=cells, ops=ops), gate
        self.convs = nn.ModuleDict(
            {
                f"{cell}-{level}": MergingConv(width, bias=bias, eps=eps, momentum=momentum)
                for cell in range(cells)
                for level in range(levels)
            }
        )

    def _chosen(self, arch: Arch) -> list[nn.Module]:
        return [self.convs[f"{number}-{cell.level}"] for number, cell in enumerate(wiring_of(arch).cells)]

    def forward(self, maps: tuple[Tensor, ...], arch: Arch) -> tuple[Tensor, ...]:
        """One map per level, the finest first."""
        return merge(maps, wiring_of(arch).cells, self._chosen(arch), self.gate)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """That of the input."""
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """A `MergingPyramid`."""
        convs = nn.ModuleList(copy.deepcopy(conv) for conv in self._chosen(arch))
        cells = tuple((c.level, c.op, c.first, c.second, c.leftovers) for c in wiring_of(arch).cells)
        return MergingPyramid(convs, cells, gate=self.gate)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The convolutions of the cells at their levels."""
        return parameters_of(self._chosen(arch))


D = TypeVar("D", Detector, DetectorNetwork)


def read_out(detector: D, repeats: int) -> D:
    """The detector whose heads read its pyramid after so many repeats; it shares the weights.

    Raises:
        InputError: the detector has fewer repeats.
    """
    steps = list(detector.blocks if isinstance(detector, Detector) else detector.children())
    necks = [number for number, step in enumerate(steps) if _merges(step)]
    if not 1 <= repeats <= len(necks):
        raise InputError(f"the pyramid is repeated {len(necks)} times, so it cannot be read after {repeats}")
    kept = [number for number in range(len(steps)) if number not in necks[repeats:]]
    if isinstance(detector, DetectorNetwork):
        return DetectorNetwork(*(steps[number] for number in kept)).train(detector.training)
    made = copy.copy(detector)
    made._modules = dict(detector._modules)  # a copy shares them
    made.blocks = nn.ModuleList(steps[number] for number in kept)
    made.step_names = tuple(detector.step_names[number] for number in kept)
    return made


def _merges(step: nn.Module) -> bool:
    return isinstance(step, MapStep | SearchableMapStep) and isinstance(step.block, MergingPyramid | SearchablePyramid)


def retinanet_nasfpn(
    backbone: Backbone, *, num_classes: int, image_size: tuple[int, int], head_width: int = 256, repeats: int = 7,
    cells: int = 7, pooled_levels: int = 2, ops: Sequence[str] = (SUM, ATTENTION), gate: Gate = "tf",
    bias: bool = True, head_convs: int = 4, norm: Norm = "batch", anchor_scale: float = 4.0, **boxes: Any,
) -> Detector:  # fmt: skip
    """RetinaNet on stacked NAS-FPN pyramids; on C3 to C5 their levels are P3 to P7.

    Images are padded to the backbone's largest stride, in TensorFlow's code to the pyramid's: equal for the published
    sizes, which are multiples of both.

    Args:
        head_width: channels of pyramids and towers.
        repeats: pyramids, of the same decisions and with weights of their own.
        cells, ops: see `pyramid_space`.
        pooled_levels: further levels, by max pooling of the backbone's last.
        gate, bias: see `SearchablePyramid`.
        head_convs: convolutions of each tower.
        norm: of the towers; NAS-FPN was published with batch norm everywhere.
        anchor_scale: side of a level's smallest anchor over its stride.
        boxes: thresholds, limits and focal loss of `RetinaBoxes`.

    Raises:
        InputError: no repeat, strides of the backbone that do not double, and see `SearchablePyramid`.
    """
    given = tuple(backbone.out_channels)
    if repeats < 1 or pooled_levels < 0:
        raise InputError(f"a pyramid is repeated once at least, not repeats={repeats}, pooled_levels={pooled_levels}")
    if any(after != 2 * before for before, after in itertools.pairwise(given)):
        raise InputError(f"NAS-FPN resamples by powers of two, and {backbone.name!r} has maps of the strides {given}")
    strides = (*given, *(given[-1] * 2**step for step in range(1, pooled_levels + 1)))
    inputs = PyramidInputs(tuple(backbone.out_channels.values()), head_width, pooled=pooled_levels, bias=bias)
    finest = round(math.log2(strides[0]))
    pyramids = [
        SearchablePyramid(head_width, levels=len(strides), finest=finest, cells=cells, ops=ops, gate=gate, bias=bias)
        for _ in range(repeats)
    ]
    sizes = tuple(tuple(int(anchor_scale * stride * octave) for octave in OCTAVE) for stride in strides)
    anchors = len(RATIOS) * len(OCTAVE)
    return Detector(
        "retinanet-nasfpn",
        backbone,
        ImageBatch(divisor=given[-1], stride=strides[-1], classes=num_classes),
        [
            ("inputs", MapStep(inputs, "all")),
            *((NECK, SearchableMapStep(pyramid, "all")) for pyramid in pyramids),
            ("head", RetinaPredictor(head_width, anchors, num_classes, convs=head_convs, norm=norm)),
            ("boxes", RetinaBoxes(strides, sizes, RATIOS, **boxes)),
        ],
        image_size=image_size,
        heads_init=initialize_nasfpn,
    )


def initialize_nasfpn(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initial weights of pyramids and head: uniform of variance 1 / fan-in for the former, as torchvision's FPN.

    Cells of a supernet begin by passing their input on (`initialize_passing`), so that what a level hands on means
    the same whichever cells it came through.
    """
    initialize_retinanet(module, generator)
    for part in module.modules():
        if isinstance(part, SearchablePyramid):
            initialize_passing(part, generator)
        elif isinstance(part, PyramidInputs | MergingPyramid):
            draw_weights(part, functools.partial(nn.init.kaiming_uniform_, a=1, generator=generator))


# -- published networks -----------------------------------------------------------------------------------------------

NASFPN_NETWORKS = {"nasfpn-r50-7at256": (256, 640), "nasfpn-r50-7at384": (384, 1280)}
"""Name to channels and image size, of seven repeats on ResNet-50 (Table 1)."""
COCO_IDS = 91
"""Logits per anchor in TensorFlow's code, one per COCO id: the published costs are those of so many classes."""


def published_nasfpn(
    name: str, *, num_classes: int = COCO_IDS, image_size: int | None = None, **settings: Any
) -> tuple[Detector, Arch]:
    """A network of `NASFPN_NETWORKS` as a detector without initial weights and the architecture that was published.

    Raises:
        InputError: no such network.
    """
    if name not in NASFPN_NETWORKS:
        raise InputError(f"there is no network {name!r}; {nearest(name, NASFPN_NETWORKS)}")
    width, size = NASFPN_NETWORKS[name]
    side = image_size or size
    body = as_backbone(resnet_50(), levels=3)
    detector = retinanet_nasfpn(
        body, num_classes=num_classes, image_size=(side, side), head_width=width, **{"repeats": 7, **settings}
    )
    return detector, wiring_arch("nasfpn-7", detector.space, prefix=NECK)


def create_nasfpn(
    name: str, *, num_classes: int = COCO_IDS, image_size: int | None = None, generator: torch.Generator | None = None,
    **settings: Any,
) -> DetectorNetwork:  # fmt: skip
    """A network of `NASFPN_NETWORKS` with fresh weights; `load_backbone` gives it a trained `resnet_50`'s.

    Args:
        image_size: in pixels, of its costs; the published one where None.
        generator: of the initial weights; torch's global generator if None.
        settings: further arguments of `retinanet_nasfpn`.
    """
    with torch.device("meta"):
        detector, arch = published_nasfpn(name, num_classes=num_classes, image_size=image_size, **settings)
        network = detector.subnet(arch)
    made = realize(network, detector.init, generator)
    assert isinstance(made, DetectorNetwork)
    return made
