"""Prepares images for a classifier and names its outputs; the functions are copied into model.py."""

from typing import Any

import torch
from torch import nn

from supernet.export.runtime.weights import _loaded


def _resized(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resizes images (N, C, H, W) with values from 0 to 255 to (height, width), rounding to whole numbers."""
    if x.shape[-2:] == size:
        return x
    antialias = mode in ("bilinear", "bicubic")
    return nn.functional.interpolate(x, size, mode=mode, antialias=antialias).clamp(0, 255).round()


def _prepared(images: torch.Tensor, preprocess: dict[str, Any]) -> torch.Tensor:
    """Resizes, crops and normalises uint8 images as in training; returns (N, C, input_size, input_size)."""
    mean, std = (torch.tensor(preprocess[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    if images.dtype is not torch.uint8 or images.dim() not in (3, 4) or images.shape[-3] != mean.numel():
        raise ValueError(f"images are uint8, (N, {mean.numel()}, H, W), not {images.dtype}, {tuple(images.shape)}")
    x = images.reshape(-1, *images.shape[-3:]).float()
    size, mode, sides = preprocess["input_size"], preprocess["interpolation"], x.shape[-2:]
    if sides != (size, size):  # the shorter side is resized to the size, then the centre is cropped, as in training
        height, width = (size * side // min(sides) for side in sides)
        x = _resized(x, (height, width), mode)
        top, left = round((height - size) / 2), round((width - size) / 2)
        x = x[..., top : top + size, left : left + size]
    return (x / 255 - mean) / std


def _named(logits: torch.Tensor, names: list[str]) -> list[list[tuple[str, float]]]:
    """Returns per image the (class name, probability) of every class, most likely first."""
    ranked = logits.softmax(dim=1).sort(dim=1, descending=True)
    return [
        [(names[index], probability) for index, probability in zip(indices, values, strict=True)]
        for indices, values in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
    ]


def predict(images: torch.Tensor) -> object:
    """Classifies images.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), of any size.

    Returns:
        per image a list of (class name, probability), most likely first; the raw outputs of a network without class
        names.
    """
    network, preprocess = _loaded()
    with torch.no_grad():
        outputs = network(_prepared(images, preprocess))
    return _named(outputs, preprocess["classes"]) if preprocess["classes"] else outputs
