"""Detection in image files, and pictures of the results."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from detection.config import DetectorPreprocess
from detection.data.augment import Resize
from detection.inputs import Target
from detection.metric import check_boxes
from supernet.checked import Count, Probability, checked_arguments, is_whole, shown
from supernet.data.decode import UNREADABLE
from supernet.data.opening import open_image
from supernet.errors import InputError

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")
MIN_SIDE = 480
"""Pictures are enlarged by the largest whole factor that keeps their longer side within these pixels."""


def read_image(path: Path) -> Tensor:
    """Returns the image in a file as a viewer shows it, uint8, (3, H, W).

    Raises:
        InputError: the file cannot be read as an image.
    """
    try:
        pixels: Tensor = pil_to_tensor(open_image(path))
    except UNREADABLE as error:
        raise InputError(f"the image {path} cannot be read ({error}); repair it or leave it out") from error
    return pixels


@torch.no_grad()
def detect(network: nn.Module, pixels: Tensor, preprocess: DetectorPreprocess) -> Target:
    """Returns the detections in one image, with boxes in pixels of this image.

    Args:
        network: a detector in eval mode.
        pixels: uint8, (3, H, W), of any size.
        preprocess: image size and normalisation that the network was trained with.

    Raises:
        InputError: pixels of another type or shape.
    """
    _check_pixels(pixels)
    resized = Resize(preprocess.input_size, preprocess.longest)(pixels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    device = next(network.parameters()).device
    (detections,) = network(((resized.float() / 255 - mean) / std)[None].to(device))
    y, x = (before / after for before, after in zip(pixels.shape[-2:], resized.shape[-2:], strict=True))
    boxes = detections["boxes"].cpu() * torch.tensor((x, y, x, y))
    return {"boxes": boxes, "scores": detections["scores"].cpu(), "labels": detections["labels"].cpu()}


@checked_arguments
def set_thresholds(
    network: nn.Module,
    *,
    score: Probability | None = None,
    overlap: Probability | None = None,
    detections: Count | None = None,
) -> None:
    """Changes the thresholds of a detector in place, which may be a network of this project or of an export.

    Args:
        network: a detector, whose last step has the thresholds.
        score: lowest score of a detection, 0 to 1.
        overlap: IoU above which the weaker of two boxes of a class is suppressed, 0 to 1.
        detections: most detections per image, at least 1.

    Raises:
        InputError: the network has no such thresholds, or a value is out of range.
    """
    last = [network, *network.children()][-1]
    names = {"score_threshold": score, "overlap": overlap, "detections": detections}
    two_stage = getattr(last, "roi", None)  # torchvision's RoIHeads, which keeps thresholds of its own
    for name, value in names.items():
        if value is None:
            continue
        if not hasattr(last, name):
            raise InputError(f"the last step of this network is a {type(last).__name__}, which has no {name}")
        setattr(last, name, value)
        if two_stage is not None:
            own = {"score_threshold": "score_thresh", "overlap": "nms_thresh", "detections": "detections_per_img"}
            setattr(two_stage, own[name], value)


def _check_pixels(pixels: Tensor) -> None:
    """Raises `InputError` for anything but an image."""
    if not isinstance(pixels, Tensor) or pixels.dtype is not torch.uint8 or pixels.dim() != 3 or len(pixels) != 3:
        raise InputError(f"pixels={shown(pixels)} should be torch.uint8, (3, H, W)")


def _check_detections(detections: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """Raises `InputError` for detections without a tensor or of another shape, and for a label without a class."""
    check_boxes("detections", [detections], ("labels", "scores"))
    labels = detections["labels"].tolist()
    if wrong := [label for label in labels if not is_whole(label, 1, len(classes))]:
        raise InputError(
            f"the label {wrong[0]} has no name: {len(classes)} classes have the labels 1 to {len(classes)}"
        )


@checked_arguments
def draw_detections(
    pixels: Tensor,
    detections: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    threshold: Probability = 0.5,
    truth: Mapping[str, Tensor] | None = None,
) -> tuple[Image.Image, int]:
    """Returns a picture of an image with its detections, enlarged if it is small, and the number of drawn detections.

    Args:
        pixels: uint8, (3, H, W).
        detections: `boxes` in pixels of the image, `scores`, and `labels` from 1 on.
        classes: names of labels 1, 2 and so on.
        threshold: lowest score of a detection that is drawn.
        truth: true `boxes`, which are outlined in white below the detections.

    Raises:
        InputError: other pixels, detections without a tensor or of another shape, or a label without a class.
    """
    _check_pixels(pixels)
    _check_detections(detections, classes)
    if truth is not None:
        check_boxes("truth", [truth], ())
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, MIN_SIDE // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for x1, y1, x2, y2 in [] if truth is None else (truth["boxes"] * factor).tolist():
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline="white")
    kept = (detections["scores"] >= threshold).nonzero().flatten().tolist()
    for i in reversed(kept):  # draws the best last, on top
        x1, y1, x2, y2 = (detections["boxes"][i] * factor).tolist()
        label = int(detections["labels"][i])
        color = COLORS[(label - 1) % len(COLORS)]
        draw.rectangle((x1, y1, x2, y2), outline=color, width=2)
        text, at = f"{classes[label - 1]} {detections['scores'][i]:.2f}", (x1 + 2, max(0.0, y1 - 17))
        draw.rectangle(draw.textbbox(at, text, font=font), fill=color)
        draw.text(at, text, fill="white", font=font)
    return picture, len(kept)


CSV_COLUMNS = ("file", "category_id", "category", "score", "x1", "y1", "x2", "y2")


def coco_results(
    image_id: int, file: str, detections: Mapping[str, Tensor], preprocess: DetectorPreprocess
) -> list[dict[str, Any]]:
    """Returns the detections in one image in COCO's format of results, best first.

    Args:
        image_id: the id of the image, e.g. that in the annotations, by which results are scored.
        file: name of the image, which every result carries as `file_name`.
        detections: `boxes` in pixels of the image, `scores`, and `labels` from 1 on.
        preprocess: with the names of the labels and their ids; without ids the labels stand for them.

    Returns:
        dicts of `image_id`, `file_name`, `category_id`, `category`, `bbox` (x, y, width and height in pixels of the
        image as a viewer shows it) and `score`.

    Raises:
        InputError: detections without a tensor or of another shape, or a label without a class.
    """
    _check_detections(detections, preprocess.classes)
    results = []
    for label, score, (x1, y1, x2, y2) in zip(
        detections["labels"].tolist(), detections["scores"].tolist(), detections["boxes"].tolist(), strict=True
    ):
        results.append(
            {
                "image_id": image_id,
                "file_name": file,
                "category_id": preprocess.category_ids[label - 1] if preprocess.category_ids else label,
                "category": preprocess.classes[label - 1],
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 6),
            }
        )
    return results


def csv_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns `coco_results` as a table with a row of `CSV_COLUMNS` for each; the corners are in pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        x, y, width, height = result["bbox"]
        corners = (x, y, round(x + width, 3), round(y + height, 3))
        writer.writerow((result["file_name"], result["category_id"], result["category"], result["score"], *corners))
    return text.getvalue()
