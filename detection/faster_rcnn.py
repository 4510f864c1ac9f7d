"""The two-stage detector on a feature pyramid (Lin et al., 2017) as steps of a chain, of torchvision's parts."""

import functools
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from detection.backbone import Backbone, MapStep
from detection.detector import Detector
from detection.inputs import DetectorState, ImageBatch, Maps, Target
from detection.pyramid import (
    Anchors,
    FeaturePyramid,
    Norm,
    Sizes,
    draw_small,
    draw_weights,
    initialize_pyramid,
    norm_layer,
)

RATIOS = (0.5, 1.0, 2.0)
POOLED = 7  # rows and columns of a region

RegionPredictions = tuple[Maps, dict[str, list[Tensor]], Tensor, list[Target] | None]
"""The pyramid; per level `objectness` (N, A, H_i, W_i) and `deltas` (N, 4·A, H_i, W_i); sizes and targets."""


class RegionHead(nn.Module):
    """The head that scores anchors on every level; the pyramid stays in the state for the second stage.

    Args:
        anchors: per position.
        convs: 3×3 convolutions before the two 1×1 ones.
    """

    def __init__(self, in_channels: int, anchors: int, *, convs: int = 1) -> None:
        super().__init__()
        self.in_channels, self.anchors, self.convs = in_channels, anchors, convs
        self.head = RPNHead(in_channels, anchors, convs)

    def forward(self, state: DetectorState) -> RegionPredictions:
        """`RegionPredictions` predictions from a `DetectorState`."""
        maps, sizes, targets = state
        objectness, deltas = self.head(list(maps))
        return maps, {"objectness": objectness, "deltas": deltas}, sizes, targets

    def out_layout(self, layout: Any) -> Any:
        """The pyramid, and nothing that a step reads as maps."""
        maps, *_ = layout
        return maps, None, None, None


class ConvFCHead(nn.Module):
    """Convolutions and one linear layer on pooled regions: "4conv1fc" (Wu & He, 2018), by torchvision.

    Shapes: (regions, in_channels, 7, 7) to (regions, hidden); none to none, whatever the norm.
    """

    def __init__(self, in_channels: int, *, convs: int = 4, hidden: int = 1024, norm: Norm = "none") -> None:
        super().__init__()
        self.in_channels, self.convs, self.hidden, self.norm = in_channels, convs, hidden, norm
        self.layers = FastRCNNConvFCHead(
            (in_channels, POOLED, POOLED), [in_channels] * convs, [hidden], norm_layer(norm, in_channels)
        )

    def forward(self, regions: Tensor) -> Tensor:
        """One row per region."""
        if len(regions) == 0:  # batch norm would count them as a batch in the mean over batches
            return regions.new_zeros(0, self.hidden)
        rows: Tensor = self.layers(regions)
        return rows


class RegionBoxes(nn.Module):
    """The last step: proposals, pooled regions and the box head; losses in training, detections otherwise.

    It cannot be traced. Regions are pooled from the levels of the backbone, as published, and not from the last one.

    Args:
        in_channels: of the pyramid.
        classes: without the background.
        strides: of all levels of the pyramid.
        sizes, ratios: of the anchors; see `Anchors`.
        pooled_levels: how many of the finest levels regions are pooled from.
        convs, hidden, norm: of `ConvFCHead`.
        proposals: the most per image in evaluation, and the number at which costs are counted.
        train_proposals: the most per image in training.
        candidates, train_candidates: boxes per level and image that enter the suppression of proposals.
        score_threshold, overlap, detections: as in `RetinaBoxes`.
    """

    traceable = False

    def __init__(
        self,
        in_channels: int,
        classes: int,
        strides: tuple[int, ...],
        sizes: Sizes,
        ratios: tuple[float, ...],
        *,
        pooled_levels: int,
        convs: int = 4,
        hidden: int = 1024,
        norm: Norm = "none",
        proposals: int = 1000,
        train_proposals: int = 2000,
        candidates: int = 1000,
        train_candidates: int = 2000,
        score_threshold: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.strides, self.sizes, self.ratios = (
            in_channels,
            classes,
            strides,
            sizes,
            ratios,
        )
        self.pooled_levels, self.convs, self.hidden, self.norm = pooled_levels, convs, hidden, norm
        self.proposals, self.train_proposals = proposals, train_proposals
        self.candidates, self.train_candidates = candidates, train_candidates
        self.score_threshold, self.overlap, self.detections = score_threshold, overlap, detections
        self.anchors = Anchors(strides, sizes, ratios)
        self.rpn = RegionProposalNetwork(
            nn.Identity(),
            nn.Identity(),
            0.7,
            0.3,
            256,
            0.5,  # anchors and predictions are made before it is asked
            {"training": train_candidates, "testing": candidates},
            {"training": train_proposals, "testing": proposals},
            0.7,
        )
        self.roi = RoIHeads(
            self._pooling(),
            ConvFCHead(in_channels, convs=convs, hidden=hidden, norm=norm),
            FastRCNNPredictor(hidden, classes + 1),
            0.5,
            0.5,
            512,
            0.25,
            None,
            score_threshold,
            overlap,
            detections,
        )

    def _pooling(self) -> MultiScaleRoIAlign:
        """Region pooling at the known strides; torchvision would guess them and keep those of its first images."""
        strides = self.strides[: self.pooled_levels]
        pooling = MultiScaleRoIAlign([str(level) for level in range(len(strides))], POOLED, 2)
        pooling.scales = [1 / stride for stride in strides]
        pooling.map_levels = LevelMapper(round(math.log2(strides[0])), round(math.log2(strides[-1])))
        return pooling

    def forward(self, state: RegionPredictions) -> Any:
        """The four losses of torchvision's `FasterRCNN` in training, one dict of detections per image otherwise.

        On the meta device, where costs are counted, the box head sees `proposals` regions of every image.
        """
        maps, raw, sizes, targets = state
        if maps[0].is_meta:
            self._predict(maps[0].new_empty(len(maps[0]) * self.proposals, self.in_channels, POOLED, POOLED))
            return []
        shapes = [(height, width) for height, width in sizes.tolist()]
        objectness, deltas = ([level.float() for level in raw[name]] for name in ("objectness", "deltas"))
        counts = [level[0].numel() for level in objectness]
        grids = [(level.shape[2], level.shape[3]) for level in maps]
        anchors = [torch.cat(self.anchors(grids, maps[0].device))] * len(shapes)
        flat, moves = concat_box_prediction_layers(objectness, deltas)
        boxes = self.rpn.box_coder.decode(moves.detach(), anchors).view(len(shapes), -1, 4)
        proposals, _ = self.rpn.filter_proposals(boxes, flat, shapes, counts)
        if targets is None:
            return self._detect(maps, proposals, shapes)
        targets = [{**target, "boxes": target["boxes"].to(anchors[0])} for target in targets]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        aims = self.rpn.box_coder.encode(matched, anchors)
        objectness_loss, region_loss = self.rpn.compute_loss(flat, moves, labels, aims)
        # in the order of torchvision's own, so that one seed draws the same samples
        return self._losses(maps, proposals, shapes, targets) | {
            "loss_objectness": objectness_loss,
            "loss_rpn_box_reg": region_loss,
        }

    def _predict(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits, the background first, (regions, classes + 1), and box deltas, (regions, 4·(classes + 1))."""
        logits, moves = self.roi.box_predictor(self.roi.box_head(regions))
        return logits.float(), moves.float()

    def _regions(self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        named = OrderedDict((str(level), x) for level, x in enumerate(maps))
        regions: Tensor = self.roi.box_roi_pool(named, proposals, shapes)
        return regions

    def _losses(
        self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]], targets: list[Target]
    ) -> dict[str, Tensor]:
        proposals, _, labels, aims = self.roi.select_training_samples(proposals, targets)
        logits, moves = self._predict(self._regions(maps, proposals, shapes))
        if not len(logits):  # no proposal and no target in any image: the mean over them would be NaN
            return {"loss_classifier": logits.sum(), "loss_box_reg": moves.sum()}
        classifier, regression = fastrcnn_loss(logits, moves, labels, aims)
        return {"loss_classifier": classifier, "loss_box_reg": regression}

    def _detect(self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]]) -> list[Target]:
        logits, moves = self._predict(self._regions(maps, proposals, shapes))
        found = self.roi.postprocess_detections(logits, moves, proposals, shapes)
        return [
            {"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*found, strict=True)
        ]

    def out_layout(self, layout: Any) -> None:
        """No step comes after."""
        return None


def faster_rcnn_fpn(
    backbone: Backbone,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    head_width: int = 256,
    head_convs: int = 4,
    norm: Norm = "batch",
    anchor_scale: float = 8.0,
    region_convs: int = 1,
    hidden: int = 1024,
    proposals: int = 1000,
    train_proposals: int = 2000,
    candidates: int = 1000,
    train_candidates: int = 2000,
    score_threshold: float = 0.05,
    overlap: float = 0.5,
    detections: int = 100,
) -> Detector:
    """Faster R-CNN with a feature pyramid on the levels of a backbone and one more, pooled from the coarsest.

    DetNAS trains it with synchronised batch norm in the pyramid and the box head, and with the box head "4conv1fc".

    Args:
        num_classes: number of classes without the background.
        image_size: height and width in pixels at which costs are counted.
        head_width: channels of the pyramid and of the box head's convolutions.
        head_convs: number of convolutions in the box head.
        norm: normalisation in the pyramid and the box head.
        anchor_scale: side of a level's anchors divided by its stride.
        region_convs: number of convolutions in the region proposal head.
        hidden: units of the box head's linear layer.
        proposals, train_proposals, candidates, train_candidates, score_threshold, overlap, detections: see
            `RegionBoxes`.
    """
    levels = len(backbone.out_channels)
    pyramid = FeaturePyramid(tuple(backbone.out_channels.values()), head_width, extra="pool", norm=norm)
    strides = (*backbone.out_channels, 2 * max(backbone.out_channels))
    sizes = tuple((int(anchor_scale * stride),) for stride in strides)
    boxes = RegionBoxes(
        head_width,
        num_classes,
        strides,
        sizes,
        RATIOS,
        pooled_levels=levels,
        convs=head_convs,
        hidden=hidden,
        norm=norm,
        proposals=proposals,
        train_proposals=train_proposals,
        candidates=candidates,
        train_candidates=train_candidates,
        score_threshold=score_threshold,
        overlap=overlap,
        detections=detections,
    )
    return Detector(
        "faster-rcnn-fpn",
        backbone,
        ImageBatch(divisor=max(backbone.out_channels), stride=strides[-1], classes=num_classes),
        [
            ("neck", MapStep(pyramid, "all")),
            ("regions", RegionHead(head_width, len(RATIOS), convs=region_convs)),
            ("boxes", boxes),
        ],
        image_size=image_size,
        heads_init=initialize_faster_rcnn,
    )


def initialize_faster_rcnn(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initial weights of pyramid and heads, wherever they are inside, drawn as torchvision draws them."""
    initialize_pyramid(module, generator)
    for part in module.modules():
        if isinstance(part, RegionHead):
            draw_small(part, generator)
        elif isinstance(part, ConvFCHead | FastRCNNPredictor):
            draw_weights(part, functools.partial(_box_layer, generator=generator))


def _box_layer(weight: Tensor, generator: torch.Generator | None) -> None:
    if weight.dim() == 4:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
    else:
        nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
