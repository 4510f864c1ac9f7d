"""NAS-FPN (Ghiasi et al., 2019): the space of merging cells, its supernet, and RetinaNet on it.

A pyramid is given one map per level and makes one per level of them. Each of its cells merges two of the maps that are
there, resampled to the level of the cell's output, which then is there too. The last cells are the outputs, one per
level in an order that is decided.
"""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from detection.backbone import Backbone, MapStep, SearchableMapStep
from detection.detector import Detector, DetectorNetwork
from detection.inputs import ImageBatch
from detection.nasfpn.plain import MergingConv, MergingPyramid, PyramidInputs, merge
from detection.nasfpn.space import ATTENTION, SUM, pyramid_space, wiring_of
from detection.pyramid import Norm, draw_weights
from detection.retinanet import OCTAVE, RATIOS, RetinaBoxes, RetinaPredictor, initialize_retinanet
from supernet.chain import Layouts, Part, Searchable, parameters_of
from supernet.errors import InputError
from supernet.space import Arch
from supernet.spaces.nasnet import initialize_passing

Gate = Literal["tf", "mmcv"]
NECK = "neck"


# -- the supernet -----------------------------------------------------------------------------------------------------


class SearchablePyramid(Searchable):
    """All pyramids of `pyramid_space` with shared weights, one convolution per (cell, output level).

    Shapes: `levels` maps (N, width, H_i, W_i), the finest first, to the same; so pyramids can be stacked.

    Args:
        levels, finest, cells, ops: see `pyramid_space`.
        gate: of the attention, "tf" or "mmcv"; see `detection.nasfpn.plain.attended`.
        bias: of the convolutions before batch norm.

    Raises:
        InputError: see `pyramid_space`; an unknown gate.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: int = 5,
        finest: int = 3,
        cells: int = 7,
        ops: Sequence[str] = (SUM, ATTENTION),
        gate: Gate = "tf",
        bias: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
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
    backbone: Backbone,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    head_width: int = 256,
    repeats: int = 7,
    cells: int = 7,
    pooled_levels: int = 2,
    ops: Sequence[str] = (SUM, ATTENTION),
    gate: Gate = "tf",
    bias: bool = True,
    head_convs: int = 4,
    norm: Norm = "batch",
    anchor_scale: float = 4.0,
    score_threshold: float = 0.05,
    candidates: int = 1000,
    overlap: float = 0.5,
    detections: int = 300,
    positive: float = 0.5,
    negative: float = 0.4,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> Detector:
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
        score_threshold, candidates, overlap, detections, positive, negative, focal_alpha, focal_gamma: see
            `RetinaBoxes`.

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
    boxes = RetinaBoxes(
        strides,
        sizes,
        RATIOS,
        score_threshold=score_threshold,
        candidates=candidates,
        overlap=overlap,
        detections=detections,
        positive=positive,
        negative=negative,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
    )
    return Detector(
        "retinanet-nasfpn",
        backbone,
        ImageBatch(divisor=given[-1], stride=strides[-1], classes=num_classes),
        [
            ("inputs", MapStep(inputs, "all")),
            *((NECK, SearchableMapStep(pyramid, "all")) for pyramid in pyramids),
            ("head", RetinaPredictor(head_width, anchors, num_classes, convs=head_convs, norm=norm)),
            ("boxes", boxes),
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
