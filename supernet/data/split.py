"""Splits by seed of images in memory."""

import hashlib

import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.decode import Labelled
from supernet.data.images import Batch, Images, Splits
from supernet.data.training import _generator
from supernet.errors import InputError

COUNTED = 2**28
"""Values from which on statistics are taken by counting levels: a float32 copy of larger sets could exhaust memory."""


# -- splitting --------------------------------------------------------------------------------------------------------


def split(
    config: Data, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], test: Labelled | None = None
) -> Splits:
    """Splits by seed of images in memory, for every source and for functions of one's own.

    Args:
        config: `seed`, and the shares of `validation` and `test`.
        pixels: uint8, (N, C, H, W), square.
        labels: int64, (N,), from 0.
        classes: names in the order of labels.
        test: pixels and labels of a test split of its own; otherwise it is held out of the images.

    Raises:
        InputError: images and labels that do not fit together, an empty split, or a class that `train` lacks and
            another split has.
    """
    for images, numbers in [(pixels, labels), *([test] if test is not None else [])]:
        if images.dtype is not torch.uint8 or images.dim() != 4 or images.shape[-1] != images.shape[-2]:
            raise InputError(f"images are uint8, (N, C, size, size), not {images.dtype}, {tuple(images.shape)}")
        if numbers.shape != images.shape[:1] or numbers.dtype is not torch.int64:
            raise InputError(
                f"{len(images)} images need as many int64 labels, not {numbers.dtype}, {tuple(numbers.shape)}"
            )
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(classes):
            raise InputError(
                f"labels are from {int(numbers.min())} to {int(numbers.max())}, and there are {len(classes)} classes"
            )
    index = _split_index(config, labels, classes, None if test is None else test[1])
    mean, std = _statistics(pixels, index["train"])
    everything = Images(pixels, labels, mean, std)
    parts = {
        "train": everything.subset(index["train"]),
        "calibration": everything.subset(index["train"][: config.calibration]),
        "validation": everything.subset(index["validation"]),
        "test": everything.subset(index["test"]) if test is None else Images(*test, mean, std),
    }
    sha = hashlib.sha256()
    for part in parts.values():
        for tensor in (part.pixels, part.labels):
            sha.update(tensor.contiguous().numpy().data)  # the buffer itself: a copy could exhaust the memory
    return Splits(**parts, classes=classes, digest=sha.hexdigest()[:16])


def _split_index(
    config: Data, labels: Tensor, classes: tuple[str, ...], test: Tensor | None, validation: Tensor | None = None
) -> dict[str, Tensor]:
    """Positions in the training images per split, by seed; none are held out for a split with labels of its own."""
    for name, share in (("validation", config.validation), ("test", config.test)):
        if not 0 <= share < 1:
            raise InputError(f"data.{name}={share} is a share of the images, at least 0 and less than 1")
    order = torch.randperm(len(labels), generator=_generator(config.seed, "split"))
    n_test = 0 if test is not None else round(config.test * len(order))
    n_validation = 0 if validation is not None else round(config.validation * (len(order) - n_test))
    index = dict(zip(("test", "validation", "train"), order.tensor_split([n_test, n_test + n_validation]), strict=True))
    held = {
        "validation": labels[index["validation"]] if validation is None else validation,
        "test": labels[index["test"]] if test is None else test,
    }
    if min(len(index["train"]), *map(len, held.values())) == 0:
        raise InputError(
            f"{config.source!r} has {len(labels)} images: too few for validation={config.validation} and "
            f"test={config.test}; every split needs at least one"
        )
    known = set(labels[index["train"]].tolist())
    for name, numbers in held.items():
        missing = sorted(set(numbers.tolist()) - known)
        if missing:
            raise InputError(
                f"the {name} split has images of the class {classes[missing[0]]!r} and the training split has none: "
                f"more classes in {name} than in train; add images of it, or try another data.seed"
            )
    return index


def _statistics(pixels: Tensor, index: Tensor) -> Batch:
    """Mean and deviation per channel, (C, 1, 1), on the scale 0..1."""
    channels = pixels.shape[1]
    if len(index) * pixels[0].numel() <= COUNTED:
        scaled = pixels[index].float().div_(255)
        mean, std = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3))
    else:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for some in index.split(4096):
            for channel in range(channels):
                counts[channel] += torch.bincount(pixels[some, channel].flatten(), minlength=256)
        total = counts.sum(1, keepdim=True)
        center = (counts * levels).sum(1, keepdim=True) / total
        deviation = ((counts * (levels - center) ** 2).sum(1) / (total[:, 0] - 1)).sqrt()
        mean, std = center[:, 0].float(), deviation.float()
    return mean.view(-1, 1, 1), std.view(-1, 1, 1).clamp_min(1e-3)
