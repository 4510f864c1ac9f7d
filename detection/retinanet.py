"""RetinaNet (Lin et al., 2017b) as steps of a chain.

Pyramid, head, box coding and non-maximum suppression are torchvision's.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms, remove_small_boxes, sigmoid_focal_loss

from detection.backbone import Backbone
from detection.detector import Detector
from detection.elastic_maps import neck_step
from detection.inputs import DetectorState, ImageBatch, Target
from detection.pyramid import Anchors, Norm, Sizes, Tower, draw_small, initialize_pyramid, level_names
from detection.pyramid import FeaturePyramid as FeaturePyramid

RATIOS = (0.5, 1.0, 2.0)
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # three sizes per octave
SMALLEST = 0.01  # pixels of the shorter side of a detection, as in torchvision's two-stage detectors
PRIOR = 0.01  # initial probability of every class at every anchor

RetinaPredictions = tuple[dict[str, list[Tensor]], Tensor, list[Target] | None]
"""Predictions, image sizes and targets, the last two as in `DetectorState`.

Predictions are lists with one tensor per level: `cls_logits`, (N, H_i, W_i, A, classes), and `bbox_regression`,
(N, H_i, W_i, A, 4), for A anchors per position."""


class RetinaHead(nn.Module):
    """torchvision's RetinaNet head: a classification and a box tower, shared by all levels (Lin et al., 2017b).

    Shapes: maps (N, in_channels, H_i, W_i) to `cls_logits`, (N, A·ΣH_i·W_i, classes), and `bbox_regression`,
    (N, A·ΣH_i·W_i, 4), for A anchors per position.

    Args:
        in_channels: channels of the pyramid.
        anchors: number of anchors per position.
        classes: number of classes without the background.
        levels: number of maps; if it gets fewer, they are the last of them.
        convs: number of 3×3 convolutions in each tower.
        norm: normalisation after each of them; batch norm has statistics, scale and shift of its own for every level
            (see `LevelNorms`), group norm one scale and shift for all.
    """

    def __init__(
        self, in_channels: int, anchors: int, classes: int, *, levels: int, convs: int = 4, norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.in_channels, self.anchors, self.classes, self.levels = in_channels, anchors, classes, levels
        self.convs, self.norm = convs, norm
        self.head = RetinaNetHead(in_channels, anchors, classes)
        self.head.classification_head.conv = Tower(in_channels, convs=convs, norm=norm, levels=levels)
        self.head.regression_head.conv = Tower(in_channels, convs=convs, norm=norm, levels=levels)

    def of_level(self, x: Tensor, level: int) -> dict[str, Tensor]:
        """Returns the raw outputs of a level, `cls_logits`, (N, H, W, A, classes), and `bbox_regression`, (…, 4)."""
        classification, regression = self.head.classification_head, self.head.regression_head
        raw = {
            "cls_logits": classification.cls_logits(classification.conv(x, level)),
            "bbox_regression": regression.bbox_reg(regression.conv(x, level)),
        }
        n, _, height, width = x.shape
        # `contiguous()` would be traced with an assertion that the map has more than one position
        return {
            name: out.view(n, self.anchors, -1, height, width)
            .permute(0, 3, 4, 1, 2)
            .clone(memory_format=torch.contiguous_format)
            for name, out in raw.items()
        }

    def of_maps(self, maps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Returns the raw outputs of each map."""
        return [self.of_level(x, level) for level, x in enumerate(maps, start=self.levels - len(maps))]

    def forward(self, maps: Any) -> Any:
        """Returns the raw outputs, before anchors and non-maximum suppression."""
        levels = self.of_maps(maps)
        return {name: torch.cat([level[name].flatten(1, 3) for level in levels], dim=1) for name in levels[0]}

    def out_layout(self, layout: Any) -> Any:
        """Returns None: no step reads the outputs as maps."""
        return None


class RetinaPredictor(RetinaHead):
    """`RetinaHead` as a step of a detector, which keeps levels and positions apart and passes sizes and targets on."""

    def forward(self, state: DetectorState) -> RetinaPredictions:
        """Returns the `RetinaPredictions` of a `DetectorState`."""
        maps, sizes, targets = state
        levels = self.of_maps(maps)
        return {name: [level[name] for level in levels] for name in levels[0]}, sizes, targets


class RetinaBoxes(nn.Module):
    """The last step of RetinaNet, which returns losses in training and detections otherwise.

    It has no weights and cannot be traced.

    Args:
        strides: strides of the levels in pixels.
        sizes, ratios: sizes and aspect ratios of the anchors; see `Anchors`.
        score_threshold: lowest score of a detection.
        candidates: most boxes per level and image that enter non-maximum suppression.
        overlap: IoU above which the weaker of two boxes of a class is suppressed.
        detections: most detections returned per image.
        positive, negative: an anchor is positive from the first IoU with a target on, and negative below the second.
        focal_alpha, focal_gamma: parameters of the focal loss (Lin et al., 2017b, equation 5); NAS-FPN was trained
            with 0.25 and 1.5.
        box_weight: what the loss of the boxes is multiplied by.
        huber: the difference, in the units of `BoxCoder`, below which the loss of the boxes is quadratic (Huber, 1964;
            0.1 in the released code of NAS-FPN); 0 for the L1 loss. That code multiplies the loss by 50 and divides it
            by the four coordinates of a box, so that `box_weight` is 12.5.
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
        box_weight: float = 1.0,
        huber: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides, self.sizes, self.ratios, self.score_threshold = strides, sizes, ratios, score_threshold
        self.candidates, self.overlap, self.detections = candidates, overlap, detections
        self.positive, self.negative = positive, negative
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.box_weight, self.huber = box_weight, huber
        self.anchors = Anchors(strides, sizes, ratios)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(positive, negative, allow_low_quality_matches=True)

    def forward(self, state: RetinaPredictions) -> Any:
        """Returns the losses `classification` and `bbox_regression` in training, else one dict of detections per image.

        On the meta device, where costs are counted, it returns no detections.
        """
        raw, sizes, targets = state
        logits, deltas = ([level.float().flatten(1, 3) for level in raw[name]] for name in raw)  # (N, H·W·A, …)
        if logits[0].is_meta:
            return []
        grids = [(level.shape[1], level.shape[2]) for level in raw["cls_logits"][: len(self.strides)]]
        anchors = self.anchors(grids, logits[0].device)
        if targets is not None:
            starts = range(0, len(logits), len(anchors))  # of the predictions for each repeat of a pyramid
            losses = [
                self.losses(
                    torch.cat(logits[start : start + len(anchors)], dim=1),
                    torch.cat(deltas[start : start + len(anchors)], dim=1),
                    torch.cat(anchors),
                    targets,
                )
                for start in starts
            ]
            return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
        return [
            self.detect([level[i] for level in logits], [level[i] for level in deltas], anchors, (height, width))
            for i, (height, width) in enumerate(sizes.tolist())
        ]

    def losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Returns the losses of classes and boxes, divided by each image's positive anchors, then averaged over images.

        Args:
            logits: (N, anchors, classes).
            deltas: (N, anchors, 4).
            anchors: (anchors, 4), as x1, y1, x2, y2 in pixels.
            targets: one per image.
        """
        classification, regression = [], []
        for scores, predicted_deltas, target in zip(logits, deltas, targets, strict=True):
            boxes = target["boxes"].to(anchors)
            matched = anchors.new_full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
            if len(boxes):
                matched = self.matcher(box_iou(boxes, anchors))
            positive = torch.where(matched >= 0)[0]
            matches, number = matched[positive], max(1, len(positive))
            one_hot = torch.zeros_like(scores)
            one_hot[positive, target["labels"][matches] - 1] = 1.0
            counted = matched != Matcher.BETWEEN_THRESHOLDS
            focal = sigmoid_focal_loss(
                scores[counted], one_hot[counted], alpha=self.focal_alpha, gamma=self.focal_gamma, reduction="sum"
            )
            classification.append(focal / number)
            true_deltas = self.coder.encode_single(boxes[matches], anchors[positive])
            regression.append(self.box_loss(predicted_deltas[positive], true_deltas) / number)
        return {
            "classification": torch.stack(classification).mean(),
            "bbox_regression": torch.stack(regression).mean(),
        }

    def box_loss(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Returns the weighted sum of the L1 or Huber losses of encoded boxes, (n, 4)."""
        if self.huber:
            return self.box_weight * nn.functional.huber_loss(predicted, true, reduction="sum", delta=self.huber)
        return self.box_weight * nn.functional.l1_loss(predicted, true, reduction="sum")

    def detect(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
    ) -> Target:
        """Returns the detections in one image; one of score NaN if anything is not finite: it has no score then.

        Args:
            logits: per level, (anchors, classes).
            deltas: per level, (anchors, 4).
            anchors: per level, (anchors, 4).
            size: height and width of the image in pixels, to which boxes are clipped.
        """
        if not torch.stack([level.isfinite().all() for level in (*logits, *deltas)]).all():
            boxes = deltas[0].new_zeros(1, 4)
            return {"boxes": boxes, "scores": boxes.new_full((1,), math.nan), "labels": boxes.new_ones(1).long()}
        candidates: list[tuple[Tensor, Tensor, Tensor]] = []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
            classes = level_logits.shape[1]
            all_scores = level_logits.sigmoid().flatten()
            likely = torch.where(all_scores > self.score_threshold)[0]
            scores, order = all_scores[likely].topk(min(self.candidates, len(likely)))
            likely = likely[order]
            at = likely // classes
            boxes = clip_boxes_to_image(self.coder.decode_single(level_deltas[at], level_anchors[at]), size)
            kept = remove_small_boxes(boxes, SMALLEST)  # those in the padding have no area left
            candidates.append((boxes[kept], scores[kept], likely[kept] % classes + 1))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        kept = batched_nms(boxes, scores, labels, self.overlap)[: self.detections]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}

    def named(self, state: RetinaPredictions) -> dict[str, Tensor]:
        """Returns the predictions as the outputs of a graph, `cls_logits_p3` and so on by level, and `sizes`.

        Shapes: `cls_logits_pK`, (N, H, W, A, classes), and `bbox_regression_pK`, (N, H, W, A, 4), of the level of
        stride 2**K; `sizes`, int64, (N, 2).
        """
        raw, sizes, _ = state
        levels = level_names(self.strides)
        named = {f"{name}_{level}": x for name in raw for level, x in zip(levels, raw[name], strict=True)}
        return {**named, "sizes": sizes}

    def state_of(self, named: dict[str, Tensor]) -> RetinaPredictions:
        """Returns the `RetinaPredictions` of the outputs of a graph; see `named`."""
        levels = level_names(self.strides)
        raw = {name: [named[f"{name}_{level}"] for level in levels] for name in ("cls_logits", "bbox_regression")}
        return raw, named["sizes"], None

    def detected(self, state: RetinaPredictions) -> dict[str, Tensor]:
        """Returns the detections by operations that can be traced, for images of one size.

        They are those of `forward`, except that a network whose outputs are not finite detects nothing here.

        Returns:
            `boxes`, (N, detections, 4), `scores`, (N, detections), and `labels`, int64, (N, detections), best first;
            unused rows have score 0, label 0 and an empty box.
        """
        raw, sizes, _ = state
        parts = [
            self._candidates(logits, deltas, stride, sides, sizes)
            for logits, deltas, stride, sides in zip(
                raw["cls_logits"], raw["bbox_regression"], self.strides, self.sizes, strict=True
            )
        ]
        boxes, scores, labels = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))  # (N, K, …)
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(labels)
        # As in torchvision's batched_nms, boxes of different images and labels are moved apart, so that they cannot
        # overlap: in x by label and in y by image, which keeps coordinates small and their rounding errors too.
        row_height, column_width = sizes[0, 0] + 1, sizes[0, 1] + 1
        offsets = torch.stack([labels * column_width, images * row_height], -1).to(boxes).repeat(1, 1, 2)
        likely = torch.where((scores > 0).flatten())[0]
        kept = likely[nms((boxes + offsets).flatten(0, 1)[likely], scores.flatten()[likely], self.overlap)]
        flags = torch.zeros_like(scores).flatten().index_fill(0, kept, 1.0).view_as(scores)
        left_over = max(0, self.detections - len(parts) * self.candidates)
        best, order = nn.functional.pad(scores * flags, (0, left_over)).topk(self.detections, dim=1)
        detected = best > 0
        order = order * detected
        return {
            "boxes": boxes.gather(1, order[..., None].expand(-1, -1, 4)) * detected[..., None],
            "scores": best,
            "labels": labels.gather(1, order) * detected,
        }

    def _candidates(
        self, logits: Tensor, deltas: Tensor, stride: int, sides: tuple[int, ...], sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the candidates of a level: boxes (N, candidates, 4), scores, 0 where there is none, and labels."""
        (height, width), classes = logits.shape[1:3], logits.shape[4]
        scores = logits.float().sigmoid().flatten(1)  # (N, H·W·A·classes)
        scores = scores * (scores > self.score_threshold)
        scores = nn.functional.pad(scores, (0, self.candidates))  # a small level has fewer boxes than candidates
        scores, order = scores.topk(self.candidates, dim=1)
        order = order * (scores > 0)
        at = order // classes
        rows, columns = (stride * torch.arange(side, device=logits.device).float() for side in (height, width))
        y, x = torch.meshgrid(rows, columns, indexing="ij")  # broadcasting would leave maxima of sizes in graphs
        corners = torch.stack([x, y, x, y], -1).flatten(0, 1)[:, None]  # (H·W, 1, 4)
        cells = self.anchors.generator.generate_anchors(list(sides), list(self.ratios)).to(logits.device)
        anchors = (corners + cells).flatten(0, 1)[at]  # (N, candidates, 4)
        predicted = deltas.float().flatten(1, 3).gather(1, at[..., None].expand(-1, -1, 4))
        boxes = self.coder.decode_single(predicted.flatten(0, 1), anchors.flatten(0, 1)).view(anchors.shape)
        limits = sizes.flip(1).to(boxes).repeat(1, 2)[:, None]  # (N, 1, 4)
        boxes = boxes.clamp_min(0).minimum(limits)
        large = ((boxes[..., 2:] - boxes[..., :2]) >= SMALLEST).all(-1)
        return boxes, scores * large, order % classes + 1

    def out_layout(self, layout: Any) -> None:
        """Returns None: it is the last step."""
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
    """RetinaNet on the levels of a backbone and two coarser ones: P3 to P7 on C3 to C5.

    Args:
        backbone: see `as_backbone`.
        num_classes: number of classes without the background.
        image_size: height and width in pixels at which costs are counted.
        head_width: channels of the pyramid and the towers.
        head_convs: number of convolutions in each tower.
        norm: normalisation in the pyramid and the towers; RetinaNet was published without any, DetNAS has synchronised
            batch norm "everywhere".
        anchor_scale: side of a level's smallest anchor divided by its stride.
        anchor_ratios: heights of the anchors divided by their widths.
        score_threshold, candidates, overlap, detections, positive, negative, focal_alpha, focal_gamma, box_weight,
            huber: see `RetinaBoxes`.
    """
    pyramid = functools.partial(FeaturePyramid, out_channels=head_width, extra="convs", norm=norm)
    strides = (*backbone.out_channels, *(max(backbone.out_channels) * step for step in (2, 4)))
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
        "retinanet",
        backbone,
        ImageBatch(divisor=max(backbone.out_channels), stride=strides[-1], classes=num_classes),
        [
            ("neck", neck_step(backbone, pyramid)),
            (
                "head",
                RetinaPredictor(head_width, anchors, num_classes, levels=len(strides), convs=head_convs, norm=norm),
            ),
            ("boxes", boxes),
        ],
        image_size=image_size,
        heads_init=initialize_retinanet,
    )


def initialize_retinanet(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialises every pyramid and RetinaNet head in a module (Lin et al., 2017b, §4.1)."""
    initialize_pyramid(module, generator)
    for part in module.modules():
        if isinstance(part, RetinaHead):
            draw_small(part, generator)
            nn.init.constant_(part.head.classification_head.cls_logits.bias, -math.log((1 - PRIOR) / PRIOR))
