"""The supernet of NAS-FPN's pyramids (Ghiasi et al., 2019), and RetinaNet on it.

A pyramid has one input and one output map per level. Each of its cells merges two of the maps that exist so far,
resampled to the level of the cell, and adds the result to them. The last cells are the outputs, one per level, in an
order that is searched.
"""

import copy
import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from detection.backbone import Backbone, MapStep, SearchableMapStep
from detection.detector import Detector, DetectorNetwork
from detection.elastic_maps import neck_step
from detection.inputs import ImageBatch
from detection.nasfpn.plain import MergingConv, MergingPyramid, PyramidInputs, merge
from detection.nasfpn.space import ATTENTION, SUM, pyramid_space, wiring_of
from detection.pyramid import LevelNorms, Norm, draw_weights
from detection.retinanet import OCTAVE, RATIOS, RetinaBoxes, RetinaPredictor, initialize_retinanet
from supernet.chain import Layouts, Part, Searchable, initialize_copying, parameters_of
from supernet.chain.copying import copy_module
from supernet.checked import checked_arguments
from supernet.errors import InputError
from supernet.space import Arch

Gate = Literal["tf", "mmcv"]
NECK = "neck"
"""Name of the steps that hold the pyramids; repeats share it, and thereby their choices."""


class SearchablePyramid(Searchable):
    """All pyramids of `pyramid_space` with shared weights: one convolution per cell and output level.

    Shapes: `levels` maps (N, width, H_i, W_i), the finest first, to maps of the same shapes; pyramids can be stacked.

    Args:
        width: channels of all maps.
        levels, finest, cells, ops, ordered: see `pyramid_space`.
        gate: how the attention gates, "tf" or "mmcv"; see `detection.nasfpn.plain.attention`.
        bias: whether the convolutions before batch norm have a bias.
        keeps: see `MergingPyramid`.
        eps, momentum: those of batch norm.
        drop_block, drop_block_size: see `MergingConv`.

    Raises:
        InputError: the gate is unknown; see also `pyramid_space`.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: int = 5,
        finest: int = 3,
        cells: int = 7,
        ops: Sequence[str] = (SUM, ATTENTION),
        ordered: bool = False,
        gate: Gate = "tf",
        bias: bool = True,
        keeps: bool = False,
        eps: float = 1e-5,
        momentum: float = 0.1,
        drop_block: float = 0.0,
        drop_block_size: int = 3,
    ) -> None:
        super().__init__()
        self.levels, self.keeps = levels, keeps
        if gate not in ("tf", "mmcv"):
            raise InputError(f"the gate of the attention must be 'tf' or 'mmcv', not {gate!r}")
        self.space = pyramid_space(levels=levels, finest=finest, cells=cells, ops=ops, ordered=ordered)
        self.gate = gate
        self.convs = nn.ModuleDict(
            {
                f"{cell}-{level}": MergingConv(
                    width,
                    bias=bias,
                    eps=eps,
                    momentum=momentum,
                    drop_block=drop_block,
                    drop_block_size=drop_block_size,
                )
                for cell in range(cells)
                for level in range(levels)
            }
        )

    def _active_convs(self, arch: Arch) -> list[nn.Module]:
        """The convolution of each cell."""
        return [self.convs[f"{number}-{cell.level}"] for number, cell in enumerate(wiring_of(arch).cells)]

    def forward(self, maps: tuple[Tensor, ...], arch: Arch) -> tuple[Tensor, ...]:
        """Returns one map per level, the finest first; it reads the last ones that it gets."""
        outputs = merge(maps[-self.levels :], wiring_of(arch).cells, self._active_convs(arch), self.gate)
        return (*maps, *outputs) if self.keeps and self.training else outputs

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout of the input."""
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `MergingPyramid`."""
        convs = nn.ModuleList(copy_module(conv) for conv in self._active_convs(arch))
        cells = tuple((c.level, c.op, c.first, c.second, c.leftovers) for c in wiring_of(arch).cells)
        return MergingPyramid(convs, cells, gate=self.gate, keeps=self.keeps)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the convolutions of the cells at their levels."""
        return parameters_of(self._active_convs(arch))


D = TypeVar("D", Detector, DetectorNetwork)


@checked_arguments
def read_out(detector: D, repeats: int) -> D:
    """Returns a detector whose heads read the pyramid after fewer repeats; it shares the weights.

    Without the setting `anytime`, the heads have learnt to read the last repeat only.

    Args:
        detector: a detector with NAS-FPN, or its network.
        repeats: how many of the repeats are kept.

    Raises:
        InputError: the detector has fewer repeats, or no pyramid of NAS-FPN.
    """
    if not isinstance(detector, nn.Module):
        raise InputError(f"detector={detector!r:.80} should be a detector with NAS-FPN")
    necks = [name for name, child in detector.named_children() if _is_pyramid(child)]
    if not necks:
        raise InputError(f"detector={type(detector).__name__} has an ordinary pyramid or none, which has no repeats")
    if not 1 <= repeats <= len(necks):
        raise InputError(
            f"the detector has {len(necks)} repeats of its pyramid, so it cannot be read after {repeats}; "
            f"give 1 to {len(necks)}"
        )
    kept = {name: child for name, child in detector.named_children() if name not in necks[repeats:]}
    for name, child in kept.items():
        if isinstance(child, RetinaPredictor):
            kept[name] = _of_first(child, child.levels * repeats // len(necks)) if _is_anytime(detector) else child
    if isinstance(detector, DetectorNetwork):
        return DetectorNetwork(OrderedDict(kept)).train(detector.training)
    shortened = copy.copy(detector)
    shortened._modules = {**kept}  # the copy shared the dictionary
    names = zip(detector.step_names, detector.step_paths, strict=True)
    remaining = [(name, path) for name, path in names if path not in necks[repeats:]]
    shortened.step_names, shortened.step_paths = zip(*remaining, strict=True)
    return shortened


def _of_first(head: RetinaPredictor, levels: int) -> RetinaPredictor:
    """Returns the head of the first levels, with the same weights."""
    tensors = itertools.chain(head.parameters(), head.buffers())
    shorter = copy.deepcopy(head, {id(tensor): tensor for tensor in tensors})
    shorter.levels = levels
    for part in shorter.modules():
        if isinstance(part, LevelNorms):
            del part[levels:]
    return shorter


def _is_anytime(detector: nn.Module) -> bool:
    """Whether the heads of a detector were made for every repeat of its pyramid."""
    return any(_is_pyramid(child) and getattr(child.block, "keeps", False) for child in detector.children())


def _is_pyramid(step: nn.Module) -> bool:
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
    anytime: bool = False,
    ops: Sequence[str] = (SUM, ATTENTION),
    ordered: bool = False,
    gate: Gate = "tf",
    bias: bool = True,
    drop_block: float = 0.0,
    drop_block_size: int = 3,
    head_convs: int = 4,
    norm: Norm = "batch",
    anchor_scale: float = 4.0,
    anchor_ratios: Sequence[float] = RATIOS,
    score_threshold: float = 0.05,
    candidates: int = 1000,
    overlap: float = 0.5,
    detections: int = 300,
    positive: float = 0.5,
    negative: float = 0.4,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    box_weight: float = 1.0,
    huber: float = 0.0,
) -> Detector:
    """RetinaNet on stacked NAS-FPN pyramids, whose levels are P3 to P7 on C3 to C5.

    Images are padded to the backbone's largest stride; the TensorFlow code pads to the pyramid's, which makes no
    difference for the published sizes, multiples of both.

    Args:
        backbone: see `as_backbone`.
        num_classes: number of classes without the background.
        image_size: height and width in pixels at which costs are counted.
        head_width: channels of the pyramids and the towers.
        repeats: number of stacked pyramids, which share the choices and have weights of their own.
        cells, ops, ordered: see `pyramid_space`.
        pooled_levels: number of levels above the backbone's, max-pooled from its last map.
        anytime: whether the heads are trained on the output of every repeat, by the mean of their losses, so that the
            detector can be read after any of them (`read_out`; deep supervision, § 3 of the paper). The heads share
            their convolutions over the repeats and have batch norm of their own for each.
        gate, bias: see `SearchablePyramid`.
        drop_block, drop_block_size: share of the maps that training drops behind every merging cell, and the side in
            pixels of the squares that are dropped (Ghiasi et al., 2018). The detectors of § 4.4 that are trained with
            DropBlock use 3 pixels.
        head_convs: number of convolutions in each tower.
        norm: normalisation in the towers; NAS-FPN was published with batch norm everywhere.
        anchor_scale: side of a level's smallest anchor divided by its stride.
        anchor_ratios: heights of the anchors divided by their widths.
        score_threshold, candidates, overlap, detections, positive, negative, focal_alpha, focal_gamma, box_weight,
            huber: see `RetinaBoxes`.

    Raises:
        InputError: `repeats` is below 1 or `pooled_levels` below 0; the strides of the backbone do not double; see also
            `SearchablePyramid`.
    """
    backbone_strides = tuple(backbone.out_channels)
    if repeats < 1 or pooled_levels < 0:
        raise InputError(
            f"NAS-FPN needs repeats >= 1 and pooled_levels >= 0, not repeats={repeats}, pooled_levels={pooled_levels}"
        )
    if any(after != 2 * before for before, after in itertools.pairwise(backbone_strides)):
        raise InputError(
            f"NAS-FPN needs strides that double, but {backbone.name!r} has maps of the strides {backbone_strides}"
        )
    strides = (*backbone_strides, *(backbone_strides[-1] * 2**step for step in range(1, pooled_levels + 1)))
    inputs = functools.partial(
        PyramidInputs, width=head_width, pooled=pooled_levels, bias=bias, unchanged=not backbone.elastic
    )
    finest = round(math.log2(strides[0]))
    pyramids = [
        SearchablePyramid(
            head_width,
            levels=len(strides),
            finest=finest,
            cells=cells,
            ops=ops,
            ordered=ordered,
            gate=gate,
            bias=bias,
            keeps=anytime and repeat > 0,
            drop_block=drop_block,
            drop_block_size=drop_block_size,
        )
        for repeat in range(repeats)
    ]
    read = len(strides) * (repeats if anytime else 1)
    sizes = tuple(tuple(int(anchor_scale * stride * octave) for octave in OCTAVE) for stride in strides)
    anchors = len(anchor_ratios) * len(OCTAVE)
    boxes = RetinaBoxes(
        strides,
        sizes,
        tuple(anchor_ratios),
        score_threshold=score_threshold,
        candidates=candidates,
        overlap=overlap,
        detections=detections,
        positive=positive,
        negative=negative,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        box_weight=box_weight,
        huber=huber,
    )
    return Detector(
        "retinanet-nasfpn",
        backbone,
        ImageBatch(divisor=backbone_strides[-1], stride=strides[-1], classes=num_classes),
        [
            ("inputs", neck_step(backbone, inputs)),
            *((NECK, SearchableMapStep(pyramid, "all")) for pyramid in pyramids),
            (
                "head",
                RetinaPredictor(head_width, anchors, num_classes, levels=read, convs=head_convs, norm=norm),
            ),
            ("boxes", boxes),
        ],
        image_size=image_size,
        heads_init=initialize_nasfpn,
    )


def initialize_nasfpn(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialises every pyramid and head in a module, pyramids as torchvision's FPN: uniform with variance 1 / fan-in.

    Cells of a supernet start as copies of their input (`initialize_copying`), so that the features of a level mean the
    same whichever cells they came through.
    """
    initialize_retinanet(module, generator)
    for part in module.modules():
        if isinstance(part, SearchablePyramid):
            initialize_copying(part, generator)
        elif isinstance(part, PyramidInputs | MergingPyramid):
            draw_weights(part, functools.partial(nn.init.kaiming_uniform_, a=1, generator=generator))
