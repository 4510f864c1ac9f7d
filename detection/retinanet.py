"""RetinaNet (Lin et al., 2017b) as steps of a chain: torchvision's pyramid, head, box coding and suppression."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, sigmoid_focal_loss

from detection.backbone import Backbone, MapStep
from detection.detector import Detector
from detection.inputs import DetectorState, ImageBatch, Target
from detection.pyramid import Anchors, Norm, Sizes, draw_small, initialize_pyramid, tower
from detection.pyramid import FeaturePyramid as FeaturePyramid

RATIOS = (0.5, 1.0, 2.0)
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # three sizes per octave
PRIOR = 0.01  # of every class at every anchor, at first

RetinaPredictions = tuple[dict[str, list[Tensor]], Tensor, list[Target] | None]
"""Raw predictions per level, `cls_logits` (N, H_i, W_i, A, classes) and `bbox_regression` (N, H_i, W_i, A, 4); sizes
and targets as in `DetectorState`."""


class RetinaHead(nn.Module):
    """RetinaNet's classification and box towers, shared by all levels (Lin et al., 2017b), by torchvision.

    Shapes: maps (N, in_channels, H_i, W_i) to `cls_logits` (N, A·ΣH_i·W_i, classes) and `bbox_regression`
    (N, A·ΣH_i·W_i, 4), A anchors per position.

    Args:
        convs: 3×3 convolutions of each tower.
        norm: after each of them; its statistics are shared by all levels, as its weights are.
    """

    def __init__(self, in_channels: int, anchors: int, classes: int, *, convs: int = 4, norm: Norm = "none") -> None:
        super().__init__()
        self.in_channels, self.anchors, self.classes, self.convs, self.norm = in_channels, anchors, classes, convs, norm
        self.head = RetinaNetHead(in_channels, anchors, classes)
        self.head.classification_head.conv = tower(in_channels, convs, norm)
        self.head.regression_head.conv = tower(in_channels, convs, norm)

    def forward(self, maps: Any) -> Any:
        """Returns the raw outputs, before anchors and non-maximum suppression."""
        out: dict[str, Tensor] = self.head(list(maps))
        return out

    def out_layout(self, layout: Any) -> Any:
        """No step reads the outputs as maps."""
        return None


class RetinaPredictor(RetinaHead):
    """`RetinaHead` as a step of a detector: it keeps levels and positions apart, and hands on the rest of the state."""

    def forward(self, state: DetectorState) -> RetinaPredictions:
        """Returns the `RetinaPredictions` of a `DetectorState`."""
        maps, sizes, targets = state
        raw: dict[str, list[Tensor]] = {"cls_logits": [], "bbox_regression": []}
        for level in maps:
            (n, _, height, width), out = level.shape, self.head([level])
            for name, tensor in out.items():
                raw[name].append(tensor.view(n, height, width, self.anchors, tensor.shape[-1]))
        return raw, sizes, targets


class RetinaBoxes(nn.Module):
    """The last step: losses in training, detections otherwise. It has no weights, and cannot be traced.

    Args:
        strides: of the levels.
        sizes, ratios: of the anchors; see `Anchors`.
        score_threshold: of the detections.
        candidates: boxes per level and image that enter the suppression.
        overlap: IoU above which the weaker of two boxes of a class is suppressed.
        detections: the most per image.
        positive, negative: IoU of anchors and targets from which an anchor is positive, and below which it is negative.
        focal_alpha, focal_gamma: of the focal loss (Lin et al., 2017b, equation 5); NAS-FPN was trained with 0.25, 1.5.
    """

    traceable = False

    def __init__(
        self,
        strides: tuple[int, ...],
        sizes: Sizes,
        ratios: tuple[float, ...],
        *,
        score_threshold: float = 0.05,
        candidates: int = 1000,
        overlap: float = 0.5,
        detections: int = 300,
        positive: float = 0.5,
        negative: float = 0.4,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.strides, self.sizes, self.ratios, self.score_threshold = strides, sizes, ratios, score_threshold
        self.candidates, self.overlap, self.detections = candidates, overlap, detections
        self.positive, self.negative = positive, negative
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.anchors = Anchors(strides, sizes, ratios)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(positive, negative, allow_low_quality_matches=True)

    def forward(self, state: RetinaPredictions) -> Any:
        """`{"classification", "bbox_regression"}` in training, one dict of detections per image otherwise.

        On the meta device, where costs are counted, there is nothing to detect.
        """
        raw, sizes, targets = state
        logits, deltas = ([level.float().flatten(1, 3) for level in raw[name]] for name in raw)  # (N, H·W·A, …)
        if logits[0].is_meta:
            return []
        grids = [(level.shape[1], level.shape[2]) for level in raw["cls_logits"]]
        anchors = self.anchors(grids, logits[0].device)
        if targets is not None:
            return self.losses(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(anchors), targets)
        return [
            self.detect([level[i] for level in logits], [level[i] for level in deltas], anchors, (height, width))
            for i, (height, width) in enumerate(sizes.tolist())
        ]

    def losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Focal loss and L1 loss, each over the positive anchors of an image, then the mean over images."""
        classification, regression = [], []
        for scores, moves, target in zip(logits, deltas, targets, strict=True):
            boxes = target["boxes"].to(anchors)
            matched = anchors.new_full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
            if len(boxes):
                matched = self.matcher(box_iou(boxes, anchors))
            positive = torch.where(matched >= 0)[0]
            found, number = matched[positive], max(1, len(positive))
            wanted = torch.zeros_like(scores)
            wanted[positive, target["labels"][found] - 1] = 1.0
            counted = matched != Matcher.BETWEEN_THRESHOLDS
            focal = sigmoid_focal_loss(
                scores[counted], wanted[counted], alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
            )
            classification.append(focal / number)
            aims = self.coder.encode_single(boxes[found], anchors[positive])
            regression.append(nn.functional.l1_loss(moves[positive], aims, reduction="sum") / number)
        return {
            "classification": torch.stack(classification).mean(),
            "bbox_regression": torch.stack(regression).mean(),
        }

    def detect(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Target:
        """The detections in one image, from the predictions of every level."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for scores, moves, places in zip(logits, deltas, anchors, strict=True):
            classes = scores.shape[1]
            flat = scores.sigmoid().flatten()
            likely = torch.where(flat > self.score_threshold)[0]
            best, order = flat[likely].topk(min(self.candidates, len(likely)))
            likely = likely[order]
            at = likely // classes
            boxes = clip_boxes_to_image(self.coder.decode_single(moves[at], places[at]), size)
            found.append((boxes, best, likely % classes + 1))
        boxes, best, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = batched_nms(boxes, best, labels, self.overlap)[: self.detections]
        return {"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]}

    def out_layout(self, layout: Any) -> None:
        """No step comes after."""
        return None


def retinanet(
    backbone: Backbone,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    head_width: int = 256,
    head_convs: int = 4,
    norm: Norm = "none",
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
    """RetinaNet on the levels of a backbone and two more; on C3 to C5 these are P3 to P7.

    Args:
        head_width: channels of pyramid and towers.
        head_convs: convolutions of each tower.
        norm: of pyramid and towers; RetinaNet was published without, DetNAS has synchronised batch norm "everywhere".
        anchor_scale: side of a level's smallest anchor over its stride.
        score_threshold, candidates, overlap, detections, positive, negative, focal_alpha, focal_gamma: see
            `RetinaBoxes`.
    """
    pyramid = FeaturePyramid(tuple(backbone.out_channels.values()), head_width, extra="convs", norm=norm)
    strides = (*backbone.out_channels, *(max(backbone.out_channels) * step for step in (2, 4)))
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
        "retinanet",
        backbone,
        ImageBatch(divisor=max(backbone.out_channels), stride=strides[-1], classes=num_classes),
        [
            ("neck", MapStep(pyramid, "all")),
            ("head", RetinaPredictor(head_width, anchors, num_classes, convs=head_convs, norm=norm)),
            ("boxes", boxes),
        ],
        image_size=image_size,
        heads_init=initialize_retinanet,
    )


def initialize_retinanet(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initial weights of pyramid and head, wherever they are inside (Lin et al., 2017b, §4.1)."""
    initialize_pyramid(module, generator)
    for part in module.modules():
        if isinstance(part, RetinaHead):
            draw_small(part, generator)
            nn.init.constant_(part.head.classification_head.cls_logits.bias, -math.log((1 - PRIOR) / PRIOR))
