"""Prepares images for a detector and names what it detects; the functions are copied into model.py."""

from typing import Any

import torch
from torch import nn

from supernet.export.runtime.weights import _loaded

LEADING = 1  # modules in the graphs; the exporter writes the number of the exported network


def finish(outputs: object) -> list[dict[str, torch.Tensor]]:
    """Turns what model.pt2 or model.onnx returns for a batch, tensors by name, into the detections of each image."""
    network = _loaded()[0]
    assert isinstance(network, nn.Sequential)
    state_of = getattr(network[LEADING], "state_of", None)
    with torch.no_grad():
        state = outputs if state_of is None else state_of(outputs)
        detections: list[dict[str, torch.Tensor]] = network[LEADING:](state)
    return detections


def _prepared(image: torch.Tensor, preprocess: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Resizes one uint8 image by torchvision, as in training, and normalises it.

    Returns:
        (C, height, width), and the factors that turn x1, y1, x2 and y2 of its boxes into pixels of the original.
    """
    from torchvision.transforms.v2 import functional as transforms

    mean, std = (torch.tensor(preprocess[name]).view(-1, 1, 1) for name in ("mean", "std"))
    if image.dtype is not torch.uint8 or image.dim() != 3 or image.shape[0] != mean.numel():
        raise ValueError(f"an image is uint8, ({mean.numel()}, H, W), not {image.dtype}, {tuple(image.shape)}")
    size, longest = preprocess["input_size"], preprocess.get("longest", 0)
    sides, target = image.shape[-2:], (size, size)
    if longest:  # the shorter side is resized to the size, unless the longer one would exceed this
        factor = min(size / min(sides), longest / max(sides))
        target = (max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor)))
    x = transforms.resize(image, list(target), antialias=True)
    scale = torch.tensor([sides[1] / target[1], sides[0] / target[0]]).repeat(2)
    return (x.float() / 255 - mean) / std, scale


def predict(images: torch.Tensor | list[torch.Tensor]) -> list[list[tuple[str | int, float, tuple[float, ...]]]]:
    """Detects the objects in images, one by one: padded to the size of another one, an image would look different.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), or a list of (C, H, W), of any sizes.

    Returns:
        per image a list of (class name, score, (x1, y1, x2, y2)), most likely first, in pixels of the image given;
        labels in place of names where there are no names.
    """
    network, preprocess = _loaded()
    if isinstance(images, torch.Tensor):
        images = list(images[None] if images.dim() == 3 else images)
    names = preprocess["classes"]
    results = []
    for image in images:
        x, scale = _prepared(image, preprocess)
        with torch.no_grad():
            (detected,) = network(x[None])
        labels, scores = detected["labels"].tolist(), detected["scores"].tolist()
        boxes = (detected["boxes"] * scale).tolist()
        results.append(
            [
                (names[label - 1] if names else label, score, tuple(box))
                for label, score, box in zip(labels, scores, boxes, strict=True)
            ]
        )
    return results
