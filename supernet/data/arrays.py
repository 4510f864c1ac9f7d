"""Images from Python: arrays of pixels and labels, or any map-style data set of (image, label), become splits."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from supernet.checked import shown
from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.split import split
from supernet.errors import InputError
from supernet.memory import check_memory
from supernet.user_code import calling

SOURCE = "the given images"
"""The source in messages and in the recipe."""
CHUNK = 1024
"""Images that are resized at once."""


def splits_from(source: Any, config: Data | None = None, classes: Sequence[str] = ()) -> Splits | None:
    """Returns the splits of a pair of images and labels or of a data set; None for anything else.

    A tuple of two is the pair. A list, or a longer tuple, is a data set if its first item may be an image and a label.

    Args:
        source, config, classes: see `splits_of` and `splits_of_dataset`.

    Raises:
        InputError: see there.
    """
    if isinstance(source, tuple) and len(source) == 2:
        return splits_of(*source, config, classes)
    if isinstance(source, str | Tensor | np.ndarray):
        return None
    if isinstance(source, tuple | list) and not (source and isinstance(source[0], tuple | list)):
        return None
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return splits_of_dataset(source, config, classes)
    return None


def splits_of(images: Any, labels: Any, config: Data | None = None, classes: Sequence[str] = ()) -> Splits:
    """Returns the splits of images in memory.

    Args:
        images: numpy or torch, (N, H, W), (N, C, H, W) or (N, H, W, C) with one or three channels: integers 0..255, or
            floating-point numbers 0..1. Images of another size than `config.size`, or that are not square, are resized
            bilinearly with antialiasing.
        labels: N whole numbers from 0, or texts, which name the classes.
        config: how they are split and resized; by default square images keep their size.
        classes: names in the order of the labels; by default the texts in alphabetical order, or the numbers.

    Raises:
        InputError: images or labels of another form, or of one class only; the message describes them.
    """
    pixels = _pixels(images)
    numbers, names = _labels(labels, len(pixels), classes)
    return _splits(pixels, numbers, names, config)


def splits_of_dataset(dataset: Any, config: Data | None = None, classes: Sequence[str] = ()) -> Splits:
    """Returns the splits of a data set of torch, or of anything with a length whose items are (image, label).

    Its images are read once and kept in memory. A data set with random augmentation therefore yields each
    image in one variant only; leave augmentation to `config.augment`.

    Args:
        dataset: items are an image (a PIL image, or an array or tensor as in `splits_of` without the N) and a label.
        config, classes: see `splits_of`; the names are those of `dataset.classes` if it has them.

    Raises:
        InputError: it has no length or no items, fails, or an item has another form; the message names the item.
    """
    what = f"the data set {type(dataset).__name__}"
    names = tuple(map(str, classes or getattr(dataset, "classes", ())))
    with calling(what):
        length = len(dataset) if hasattr(dataset, "__len__") else 0
    if not length:
        raise InputError(f"{what} has no length or no items; give a map-style data set of (image, label)")
    size = None if config is None else config.size
    images: list[Tensor] = []
    labels: list[Any] = []
    for number in range(length):
        with calling(what):
            item = dataset[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {number} of {what} is {type(item).__name__}, not a pair of an image and a label")
        image = _pixels(_array(item[0])[None], what=f"the image of item {number} of {what}")
        size = size or (image.shape[-1] if image.shape[-1] == image.shape[-2] else Data.size)
        if not number:
            check_memory(length, size, channels=image.shape[1], remedy="lower data.size")
        images.append(_resized(image, size)[0])
        if images[-1].shape != images[0].shape:
            raise InputError(
                f"item {number} of {what} has {images[-1].shape[0]} channels and item 0 has {images[0].shape[0]}; "
                "convert all images to one kind"
            )
        labels.append(item[1].item() if isinstance(item[1], Tensor | np.generic) else item[1])
    numbers, names = _labels(labels, length, names)
    return _splits(torch.stack(images), numbers, names, config)


def _splits(pixels: Tensor, labels: Tensor, classes: tuple[str, ...], config: Data | None) -> Splits:
    height, width = pixels.shape[-2:]
    if config is None:
        config = Data(SOURCE, size=width if height == width else Data.size)
    config = dataclasses.replace(config, source=SOURCE)
    if not (labels != labels[0]).any():
        raise InputError(f"{SOURCE} are of one class only, {classes[int(labels[0])]!r}; there is nothing to learn")
    if (height, width) != (config.size, config.size):
        check_memory(len(pixels), config.size, channels=pixels.shape[1], remedy="lower data.size")
        pixels = torch.cat([_resized(chunk, config.size) for chunk in pixels.split(CHUNK)])
    return split(config, pixels.contiguous(), labels, classes)


def _resized(pixels: Tensor, size: int) -> Tensor:
    """Resizes images, uint8, (N, C, H, W), to uint8, (N, C, size, size)."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    resized = functional.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _writable(images: Any) -> Any:
    """Returns an array that torch can share: a copy if it is read-only."""
    array = np.asarray(images)
    return array if array.flags.writeable else array.copy()


def _array(image: Any) -> Any:
    """Returns an image of any library as an array or tensor."""
    return image if isinstance(image, Tensor) else np.asarray(image)


def _pixels(images: Any, what: str = "the images") -> Tensor:
    """Returns images of the forms that `splits_of` takes as uint8, (N, C, H, W). Raises `InputError` for others."""
    try:
        array = images.detach().cpu() if isinstance(images, Tensor) else torch.as_tensor(_writable(images))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are {type(images).__name__}, which is not an array of numbers ({error})") from error
    kind = (
        f"{type(images).__module__.partition('.')[0]} {str(array.dtype).removeprefix('torch.')}, {tuple(array.shape)}"
    )
    form = "(N, H, W), (N, C, H, W) or (N, H, W, C) with one or three channels"
    if array.dim() == 3:
        array = array[:, None]
    elif array.dim() == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.permute(0, 3, 1, 2)
    if array.dim() != 4 or array.shape[1] not in (1, 3) or not array.numel():
        raise InputError(f"{what} should be {form}, not {kind}")
    if array.dtype == torch.uint8:
        return array
    if array.dtype == torch.bool:
        return array.to(torch.uint8) * 255
    if array.dtype.is_complex:
        raise InputError(f"{what} are {kind}; give real numbers")
    low, high = array.amin().item(), array.amax().item()
    if array.dtype.is_floating_point:
        if not 0 <= low <= high <= 1:
            raise InputError(f"{what} are {kind} from {low:g} to {high:g}; floating-point images are from 0 to 1")
        return (array.float() * 255).round().to(torch.uint8)
    if not 0 <= low <= high <= 255:
        raise InputError(f"{what} are {kind} from {low} to {high}; whole numbers are from 0 to 255")
    return array.to(torch.uint8)


MOST_CLASSES = 1_000_000


def _labels(labels: Any, count: int, classes: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Returns labels as int64, (N,), and the names of the classes. Raises `InputError` for labels that do not fit."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise InputError(f"the labels are {shown(labels)}; give one whole number or text for each image")
    values = [value.item() if isinstance(value, Tensor | np.generic) and not value.shape else value for value in values]
    if len(values) != count:
        raise InputError(f"there are {count:,} images and {len(values):,} labels; give one label for each image")
    if isinstance(classes, str) or not isinstance(classes, Sequence) or len(set(map(str, classes))) < len(classes):
        raise InputError(f"classes={shown(classes)} should be different names, one for each class")
    names = tuple(map(str, classes))
    if all(isinstance(value, str) for value in values):
        names = names or tuple(sorted(set(values)))
        unknown = next((value for value in values if value not in names), None)
        if unknown is not None:
            raise InputError(f"the label {unknown!r} is none of the classes {', '.join(names[:10])}")
        return torch.tensor([names.index(value) for value in values]), names
    wrong = [value for value in values if not isinstance(value, int) or value < 0]
    if wrong:
        raise InputError(f"the label {shown(wrong[0])} is neither a whole number from 0 nor a text")
    if max(values) >= MOST_CLASSES:
        raise InputError(f"the label {shown(max(values))} is too large; there are at most {MOST_CLASSES:,} classes")
    names = names or tuple(map(str, range(max(values) + 1)))
    if max(values) >= len(names):
        raise InputError(f"the label {max(values)} has no name: there are {len(names)} classes, and labels begin at 0")
    return torch.tensor(values), names
