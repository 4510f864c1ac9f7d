"""Prepares images for a classifier and names its outputs; the functions are copied into model.py."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.data.opening import as_rgb, open_image
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


def _from_image(image: Any, channels: int) -> torch.Tensor:
    """Returns an image of Pillow, or the file of one, as uint8, (1, channels, H, W), turned as a viewer shows it."""
    opened = open_image(image) if isinstance(image, str | Path) else as_rgb(image)
    shown = opened.convert("L") if channels == 1 else opened
    pixels = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8)
    return pixels.reshape(shown.height, shown.width, -1).permute(2, 0, 1)[None]


def predict(images: Any) -> Any:
    """Classifies images.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), of any size; or the path of an image file, an image of Pillow, or a
            list of these, which need Pillow.

    Returns:
        per image a list of (class name, probability), most likely first; for one path or image of Pillow its list
        alone. The raw outputs of a network without class names.
    """
    network, preprocess = _loaded()
    many = isinstance(images, list | tuple)
    if isinstance(images, torch.Tensor):
        x = _prepared(images, preprocess)
    else:
        channels = len(preprocess["mean"])
        parts = [_prepared(_from_image(image, channels), preprocess) for image in (images if many else [images])]
        x = torch.cat(parts)
    with torch.no_grad():
        outputs = network(x)
    if not preprocess["classes"]:
        return outputs
    named = _named(outputs, preprocess["classes"])
    return named if many or isinstance(images, torch.Tensor) else named[0]


def _main(files: list[str]) -> int:
    """Prints the five most likely classes of image files; returns how many could not be read."""
    if not files:
        print("usage: python model.py IMAGE...")
        return 2
    unreadable = 0
    for file in files:
        try:
            ranked = predict(file)[:5]
        except (OSError, SyntaxError, ValueError) as error:
            print(f"{file}: cannot be read as an image ({error})")
            unreadable += 1
            continue
        print(f"{file}: " + ", ".join(f"{name} {probability:.4f}" for name, probability in ranked))
    return min(unreadable, 1)
