"""Faster R-CNN with a feature pyramid (Lin et al., 2017) as steps of a chain, built from torchvision's modules."""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from detection.backbone import Backbone
from detection.detector import Detector
from detection.elastic_maps import neck_step
from detection.inputs import DetectorState, ImageBatch, Maps, Target
from detection.pyramid import (
    Anchors,
    FeaturePyramid,
    Norm,
    Sizes,
    draw_small,
    draw_weights,
    initialize_pyramid,
    level_names,
    norm_layer,
)

RATIOS = (0.5, 1.0, 2.0)
POOLED = 7  # rows and columns that regions are pooled to

RegionPredictions = tuple[Maps, dict[str, list[Tensor]], Tensor, list[Target] | None]
"""The pyramid; lists with one tensor per level, `objectness`, (N, A, H_i, W_i), and `deltas`, (N, 4·A, H_i, W_i), for A
anchors per position; image sizes and targets as in `DetectorState`."""


class RegionHead(nn.Module):
    """The region proposal head, which scores the anchors on every level.

    The pyramid stays in the state, since the second stage reads it too.

    Args:
        in_channels: channels of the pyramid.
        anchors: number of anchors per position.
        convs: number of 3×3 convolutions before the two 1×1 ones.
    """

    def __init__(self, in_channels: int, anchors: int, *, convs: int = 1) -> None:
        super().__init__()
        self.in_channels, self.anchors, self.convs = in_channels, anchors, convs
        self.head = RPNHead(in_channels, anchors, convs)

    def forward(self, state: DetectorState) -> RegionPredictions:
        """Returns the `RegionPredictions` of a `DetectorState`."""
        maps, sizes, targets = state
        objectness, deltas = self.head(list(maps))
        return maps, {"objectness": objectness, "deltas": deltas}, sizes, targets

    def out_layout(self, layout: Any) -> Any:
        """Returns the layouts of the pyramid; no step reads the predictions as maps."""
        maps, *_ = layout
        return maps, None, None, None


class ConvFCHead(nn.Module):
    """torchvision's box head: convolutions and one linear layer on pooled regions, "4conv1fc" (Wu & He, 2018).

    Shapes: (regions, in_channels, 7, 7) to (regions, hidden), also for no regions.

    Args:
        in_channels: channels of the regions and of the convolutions.
        convs: number of 3×3 convolutions.
        hidden: units of the linear layer.
        norm: normalisation after each convolution.
    """

    def __init__(self, in_channels: int, *, convs: int = 4, hidden: int = 1024, norm: Norm = "none") -> None:
        super().__init__()
        self.in_channels, self.convs, self.hidden, self.norm = in_channels, convs, hidden, norm
        self.layers = FastRCNNConvFCHead(
            (in_channels, POOLED, POOLED), [in_channels] * convs, [hidden], norm_layer(norm, in_channels)
        )

    def forward(self, regions: Tensor) -> Tensor:
        """Returns one row per region."""
        if len(regions) == 0:  # recalibration would count them as a batch
            return regions.new_zeros(0, self.hidden)
        rows: Tensor = self.layers(regions)
        return rows


class RegionBoxes(nn.Module):
    """The last step of Faster R-CNN: proposals, region pooling and the box head.

    It returns losses in training and detections otherwise, and cannot be traced. Regions are pooled from the levels
    that come from the backbone, as published, and not from the additional coarsest one.

    Args:
        in_channels: channels of the pyramid.
        classes: number of classes without the background.
        strides: strides of all levels of the pyramid in pixels.
        sizes, ratios: sizes and aspect ratios of the anchors; see `Anchors`.
        pooled_levels: from how many of the finest levels regions are pooled.
        convs, hidden, norm: see `ConvFCHead`.
        proposals: most proposals per image in evaluation; costs are counted with exactly this number.
        train_proposals: most proposals per image in training.
        candidates, train_candidates: how many boxes per level and image at most enter the non-maximum suppression of
            proposals, in evaluation and in training.
        score_threshold, overlap, detections: see `RetinaBoxes`.
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
            nn.Identity(),  # anchors and predictions come from earlier steps
            nn.Identity(),
            0.7,
            0.3,
            256,
            0.5,
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
        """Returns region pooling at the known strides, which torchvision would infer from its first images and keep."""
        strides = self.strides[: self.pooled_levels]
        pooling = MultiScaleRoIAlign([str(level) for level in range(len(strides))], POOLED, 2)
        pooling.scales = [1 / stride for stride in strides]
        pooling.map_levels = LevelMapper(round(math.log2(strides[0])), round(math.log2(strides[-1])))
        return pooling

    def forward(self, state: RegionPredictions) -> Any:
        """Returns the four losses of torchvision's `FasterRCNN` in training, else one dict of detections per image.

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
        all_objectness, all_deltas = concat_box_prediction_layers(objectness, deltas)
        boxes = self.rpn.box_coder.decode(all_deltas.detach(), anchors).view(len(shapes), -1, 4)
        proposals, _ = self.rpn.filter_proposals(boxes, all_objectness, shapes, counts)
        if targets is None:
            rows = torch.cat([all_objectness.view(len(shapes), -1), boxes.flatten(1)], 1)
            return self._detect(maps, proposals, shapes, rows.isfinite().all(1).tolist())
        targets = [{**target, "boxes": target["boxes"].to(anchors[0])} for target in targets]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        true_deltas = self.rpn.box_coder.encode(matched, anchors)
        objectness_loss, region_loss = self.rpn.compute_loss(all_objectness, all_deltas, labels, true_deltas)
        # the losses are computed in torchvision's order, so that one seed samples the same anchors and regions
        return self._losses(maps, proposals, shapes, targets) | {
            "loss_objectness": objectness_loss,
            "loss_rpn_box_reg": region_loss,
        }

    def _predict(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits (regions, classes + 1), background first, and box deltas (regions, 4·(classes + 1))."""
        logits, deltas = self.roi.box_predictor(self.roi.box_head(regions))
        return logits.float(), deltas.float()

    def _regions(self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        named = OrderedDict((str(level), x) for level, x in enumerate(maps))
        regions: Tensor = self.roi.box_roi_pool(named, proposals, shapes)
        return regions

    def _losses(
        self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]], targets: list[Target]
    ) -> dict[str, Tensor]:
        proposals, _, labels, true_deltas = self.roi.select_training_samples(proposals, targets)
        logits, deltas = self._predict(self._regions(maps, proposals, shapes))
        if not len(logits):  # without a proposal or target in any image the mean would be NaN
            return {"loss_classifier": logits.sum(), "loss_box_reg": deltas.sum()}
        classifier, regression = fastrcnn_loss(logits, deltas, labels, true_deltas)
        return {"loss_classifier": classifier, "loss_box_reg": regression}

    def _detect(
        self, maps: Maps, proposals: list[Tensor], shapes: list[tuple[int, int]], finite: list[bool]
    ) -> list[Target]:
        """Returns the detections in each image.

        torchvision drops boxes of NaN, and a diverged network would seem to see nothing. An image in which something is
        not finite has one detection of score NaN instead: such a network has no score.
        """
        logits, deltas = self._predict(self._regions(maps, proposals, shapes))
        counts = [len(boxes) for boxes in proposals]
        rows = torch.cat([logits, deltas], 1).isfinite().all(1).split(counts)
        per_image = zip(*self.roi.postprocess_detections(logits, deltas, proposals, shapes), strict=True)
        detections = []
        for (boxes, scores, labels), sound, regions in zip(per_image, finite, rows, strict=True):
            if not (sound and regions.all()):
                boxes, scores, labels = boxes.new_zeros(1, 4), scores.new_full((1,), math.nan), labels.new_ones(1)
            detections.append({"boxes": boxes, "scores": scores, "labels": labels})
        return detections

    def named(self, state: RegionPredictions) -> dict[str, Tensor]:
        """Returns the pyramid and the region predictions as the outputs of a graph, `features_p2` and so on by level.

        Shapes: `features_pK`, (N, C, H, W), `objectness_pK`, (N, A, H, W), and `deltas_pK`, (N, 4·A, H, W), of the
        level of stride 2**K; `sizes`, int64, (N, 2).
        """
        maps, raw, sizes, _ = state
        levels = level_names(self.strides)
        parts = {"features": maps, **raw}
        named = {f"{name}_{level}": x for name in parts for level, x in zip(levels, parts[name], strict=True)}
        return {**named, "sizes": sizes}

    def state_of(self, named: dict[str, Tensor]) -> RegionPredictions:
        """Returns the `RegionPredictions` of the outputs of a graph; see `named`."""
        levels = level_names(self.strides)
        maps = tuple(named[f"features_{level}"] for level in levels)
        raw = {name: [named[f"{name}_{level}"] for level in levels] for name in ("objectness", "deltas")}
        return maps, raw, named["sizes"], None

    def out_layout(self, layout: Any) -> None:
        """Returns None: it is the last step."""
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
    anchor_ratios: Sequence[float] = RATIOS,
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
        backbone: see `as_backbone`.
        num_classes: number of classes without the background.
        image_size: height and width in pixels at which costs are counted.
        head_width: channels of the pyramid and of the box head's convolutions.
        head_convs: number of convolutions in the box head.
        norm: normalisation in the pyramid and the box head.
        anchor_scale: side of a level's anchors divided by its stride.
        anchor_ratios: heights of the anchors divided by their widths.
        region_convs: number of convolutions in the region proposal head.
        hidden: units of the box head's linear layer.
        proposals, train_proposals, candidates, train_candidates, score_threshold, overlap, detections: see
            `RegionBoxes`.
    """
    levels = len(backbone.out_channels)
    pyramid = functools.partial(FeaturePyramid, out_channels=head_width, extra="pool", norm=norm)
    strides = (*backbone.out_channels, 2 * max(backbone.out_channels))
    sizes = tuple((int(anchor_scale * stride),) for stride in strides)
    boxes = RegionBoxes(
        head_width,
        num_classes,
        strides,
        sizes,
        tuple(anchor_ratios),
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
            ("neck", neck_step(backbone, pyramid)),
            ("regions", RegionHead(head_width, len(anchor_ratios), convs=region_convs)),
            ("boxes", boxes),
        ],
        image_size=image_size,
        heads_init=initialize_faster_rcnn,
    )


def initialize_faster_rcnn(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialises every pyramid and Faster R-CNN head in a module as torchvision does."""
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
