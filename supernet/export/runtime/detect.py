"""Prepares images for a detector and names what it detects; the functions are copied into model.py."""

from typing import Any

import torch
from torch import nn

from supernet.export.runtime.weights import _loaded, _resized

LEADING = 1  # modules in the graphs; the exporter writes the number of the exported network


def finish(outputs: object) -> list[dict[str, torch.Tensor]]:
    """Turns what model.pt2 returns for a batch into the detections of each image."""
    network = _loaded()[0]
    assert isinstance(network, nn.Sequential)
    with torch.no_grad():
        detections: list[dict[str, torch.Tensor]] = network[LEADING:](outputs)
    return detections


def _prepared(image: torch.Tensor, preprocess: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Resizes and normalises one uint8 image; also returns the factors that turn its boxes into pixels of the original.

    Returns:
        (C, height, width), and the factors of x1, y1, x2 and y2.
    """
    mean, std = (torch.tensor(preprocess[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    if image.dtype is not torch.uint8 or image.dim() != 3 or image.shape[0] != mean.numel():
        raise ValueError(f"an image is uint8, ({mean.numel()}, H, W), not {image.dtype}, {tuple(image.shape)}")
    size, longest = preprocess["input_size"], preprocess.get("longest", 0)
    sides, target = image.shape[-2:], (size, size)
    if longest:  # the shorter side is resized to the size, unless the longer one would exceed this
        factor = min(size / min(sides), longest / max(sides))
        target = (max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor)))
    x = _resized(image[None].float(), target, preprocess["interpolation"])
    scale = torch.tensor([sides[1] / target[1], sides[0] / target[0]]).repeat(2)
    return ((x / 255 - mean) / std)[0], scale


def predict(images: torch.Tensor | list[torch.Tensor]) -> list[list[tuple[str | int, float, tuple[float, ...]]]]:
    """Detects the objects in images.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), or a list of (C, H, W), of any sizes.

    Returns:
        per image a list of (class name, score, (x1, y1, x2, y2)), most likely first, in pixels of the image given;
        labels in place of names where there are no names.
    """
    network, preprocess = _loaded()
    if isinstance(images, torch.Tensor):
        images = list(images[None] if images.dim() == 3 else images)
    prepared = [_prepared(image, preprocess) for image in images]
    with torch.no_grad():
        detections = network([x for x, _ in prepared])
    names = preprocess["classes"]
    results = []
    for detected, (_, scale) in zip(detections, prepared, strict=True):
        labels, scores = detected["labels"].tolist(), detected["scores"].tolist()
        boxes = (detected["boxes"] * scale).tolist()
        results.append(
            [
                (names[label - 1] if names else label, score, tuple(box))
                for label, score, box in zip(labels, scores, boxes, strict=True)
            ]
        )
    return results
