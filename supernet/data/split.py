"""Splits a data set by seed, in memory or with the training images left on disk."""

import hashlib
import warnings
from typing import Any

import torch
from torch import Tensor

from supernet.checked import checked_arguments
from supernet.config import Data
from supernet.data.decode import Labelled, Source, decode
from supernet.data.images import Images, Splits
from supernet.data.steps import torch_generator
from supernet.data.stream import Stream
from supernet.errors import InputError
from supernet.memory import check_memory

STRATIFIED_BELOW = 20
"""A held-out split with fewer images per class is drawn class by class: chance might make one class half of it."""
HISTOGRAM_FROM = 2**28
"""Above this many values, mean and deviation come from a 256-level histogram, since a float32 copy might not fit."""


@checked_arguments
def split(
    config: Data,
    pixels: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    test: Labelled | None = None,
    *,
    validation: Labelled | None = None,
) -> Splits:
    """Splits images in memory by seed, for every source and for a user's own function.

    Args:
        config: `seed`, and the shares of `validation` and `test`.
        pixels: uint8, (N, C, H, W), square.
        labels: int64, (N,), from 0.
        classes: names in the order of labels.
        test, validation: pixels and labels of the source's own splits; without them a share of the images is held out.

    Raises:
        InputError: images and labels that do not fit together, an empty split, or a class that `train` lacks and
            another split has.
    """
    for images, numbers in [(pixels, labels), *(part for part in (test, validation) if part is not None)]:
        for what, value in (("images", images), ("labels", numbers)):
            if not isinstance(value, Tensor):
                raise InputError(
                    f"the {what} of `split` are torch tensors, not {type(value).__name__}; supernet.data.load((images, "
                    "labels)) takes arrays of numpy too"
                )
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
    index = _split_index(config, labels, classes, *(None if part is None else part[1] for part in (test, validation)))
    warn_if_fewer(config.calibration, len(index["train"]), default=Data.calibration)
    mean, std = _statistics(pixels, index["train"])
    warn_if_constant(pixels, index["train"])
    everything = Images(pixels, labels, mean, std)
    parts = {
        "train": everything.subset(index["train"]),
        "calibration": everything.subset(index["train"][: config.calibration]),
        "validation": everything.subset(index["validation"]) if validation is None else Images(*validation, mean, std),
        "test": everything.subset(index["test"]) if test is None else Images(*test, mean, std),
    }
    sha = hashlib.sha256()
    for part in parts.values():
        for tensor in (part.pixels, part.labels):
            sha.update(tensor.contiguous().numpy().data)  # the buffer itself, since a copy might not fit in memory
    return Splits(**parts, classes=classes, digest=sha.hexdigest()[:16])


def split_streamed(
    config: Data, train: Source, validation: Source | None, test: Source | None, *, fresh: Source | None = None
) -> Splits:
    """Splits a source by seed; its training images stay on disk, and those of the other splits are decoded.

    Args:
        config: `seed`, sizes and shares of the splits, and how images are read.
        train: what is split.
        validation, test: the source's own splits; without them shares of `train` are held out.
        fresh: another reader of the same images for the training workers, where `train` keeps files open.

    Raises:
        InputError: as `split`, unreadable images, or more images than fit in memory.
    """
    index = _split_index(
        config, train.labels, train.classes, *(None if part is None else part.labels for part in (test, validation))
    )
    warn_if_fewer(config.calibration, len(index["train"]), default=Data.calibration)
    parts: dict[str, tuple[Source, Tensor]] = {
        "calibration": (train, index["train"][: config.calibration]),
        "validation": (train, index["validation"]),
        "test": (train, index["test"]),
    }
    for name, source in (("validation", validation), ("test", test)):
        if source is not None:
            parts[name] = (source, torch.arange(len(source)))
    images = sum(len(positions) for _, positions in parts.values())
    check_memory(images, config.size, remedy="lower data.validation, data.test, data.calibration or data.size")
    sha = hashlib.sha256(f"{config.size} {train.identity(index['train'])}".encode())
    decoded = {}
    for name, (source, positions) in parts.items():
        sha.update(source.identity(positions).encode())
        decoded[name] = decode(source, positions, config)
    return assemble_stream(
        config,
        fresh or train,
        decoded,
        train.classes,
        digest=sha.hexdigest()[:16],
        length=len(index["train"]),
        index=index["train"],
    )


def assemble_stream(
    config: Data,
    source: Any,
    decoded: dict[str, Labelled],
    classes: tuple[str, ...],
    *,
    digest: str,
    length: int,
    index: Tensor | None = None,
) -> Splits:
    """Returns the splits of streamed training images, normalised as ImageNet.

    Args:
        config: how the stream is read.
        source: the `source` of a `Stream`.
        decoded: pixels and labels of "calibration", "validation" and "test".
        classes: names in the order of labels.
        digest: see `Splits`.
        length: training images of an epoch.
        index: their positions in the source; all if None.
    """
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    stream = Stream(
        source,
        length,
        config.size,
        len(classes),
        mean,
        std,
        index=index,
        workers=config.workers,
        skip_unreadable=config.skip_unreadable,
    )
    parts = {name: Images(*part, mean, std) for name, part in decoded.items()}
    if len(parts["calibration"]):
        warn_if_constant(parts["calibration"].pixels, torch.arange(len(parts["calibration"])))
    return Splits(stream, **parts, classes=classes, digest=digest)


def warn_if_fewer(calibration: int, images: int, *, default: int) -> None:
    """Warns if a training split has fewer images than were asked for to calibrate; the default means "up to" it."""
    if images < calibration != default:
        warnings.warn(
            f"data.calibration={calibration:,} is more than the {images:,} images of the training split: these "
            "recalibrate batch norm",
            stacklevel=3,
        )


def warn_if_constant(pixels: Tensor, index: Tensor) -> None:
    """Warns if the images at these positions are all the same, so that there is nothing to learn from them."""
    first = pixels[index[0]]
    if len(index) > 1 and all(torch.equal(pixels[i], first) for i in index.tolist()):
        warnings.warn(
            f"all {len(index)} training images are the same after decoding: there is nothing to learn", stacklevel=3
        )


def relabel(source: Source, classes: tuple[str, ...], *, where: tuple[str, str]) -> Tensor:
    """Returns the labels of a held-out source in the order of the training classes, int64, (N,).

    Args:
        source: the held-out images.
        classes: names of the training classes.
        where: names of both sources in the message.

    Raises:
        InputError: a class that the training images lack.
    """
    unknown = sorted(set(source.classes) - set(classes))
    if unknown:
        raise InputError(f"{where[0]} has the class {unknown[0]!r}, which {where[1]} lacks; the classes must agree")
    return torch.tensor([classes.index(name) for name in source.classes])[source.labels]


def _split_index(
    config: Data, labels: Tensor, classes: tuple[str, ...], test: Tensor | None, validation: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns the positions in the training images of each split, int64, drawn by seed.

    Args:
        config: `seed`, and the shares of `validation` and `test`.
        labels: int64, (N,), of the training images.
        classes: names in the order of labels.
        test, validation: labels of a split that the source has already; nothing is held out for it.

    Raises:
        InputError: an empty split, or a class that `train` lacks and another split has.
    """
    rest = torch.randperm(len(labels), generator=torch_generator(config.seed, "split"))
    n_test = 0 if test is not None else round(config.test * len(rest))
    n_validation = 0 if validation is not None else round(config.validation * (len(rest) - n_test))
    index = {}
    for name, size in (("test", n_test), ("validation", n_validation)):
        chosen = _in_proportion(labels[rest], size) if size < STRATIFIED_BELOW * len(classes) else torch.arange(size)
        others = torch.ones(len(rest), dtype=torch.bool)
        others[chosen] = False
        index[name], rest = rest[chosen], rest[others]
    index["train"] = rest
    if len(index["train"]):
        _spread_classes(labels, index)
    held_out = {
        "validation": labels[index["validation"]] if validation is None else validation,
        "test": labels[index["test"]] if test is None else test,
    }
    if min(len(index["train"]), *map(len, held_out.values())) == 0:
        raise InputError(
            f"{config.source!r} has {len(labels)} images: too few for validation={config.validation} and "
            f"test={config.test}; every split needs at least one"
        )
    trained = set(labels[index["train"]].tolist())
    for name, numbers in held_out.items():
        missing = sorted(set(numbers.tolist()) - trained)
        if missing:
            raise InputError(
                f"the {name} split has images of the class {classes[missing[0]]!r} and the training split has none: "
                f"more classes in {name} than in train; add images of it, or try another data.seed"
            )
    return index


def _in_proportion(labels: Tensor, size: int) -> Tensor:
    """Returns positions of images, int64, (size,), in order: the first of each class, by its share of all images."""
    counts = torch.bincount(labels)
    shares = counts.double() * size / max(1, len(labels))
    quotas = shares.long()
    most = (shares - quotas).sort(descending=True, stable=True).indices[: size - int(quotas.sum())]
    quotas[most] += 1
    positions = [(labels == label).nonzero().flatten()[:quota] for label, quota in enumerate(quotas.tolist())]
    return torch.cat(positions).sort().values if positions else torch.arange(0)


def _spread_classes(labels: Tensor, index: dict[str, Tensor]) -> None:
    """Exchanges images between the splits in place, until every class is in each split as far as its images suffice.

    A class with a single image belongs to the training split, one with two also to the validation split. The sizes of
    the splits stay, and nothing changes where the draw has given every split every class.
    """
    splits = [name for name in ("train", "validation", "test") if len(index[name])]
    counts = {name: torch.bincount(labels[index[name]], minlength=int(labels.max()) + 1) for name in splits}
    total = torch.stack(list(counts.values())).sum(0)
    for rank, name in enumerate(splits):
        for label in ((counts[name] == 0) & (total > rank)).nonzero().flatten().tolist():
            common = int(counts[name].argmax())
            if counts[name][common] < 2:
                break  # the split is too small for all classes
            # A split may give its only image of a class to one that comes before it.
            givers = [other for other in splits if counts[other][label] > (splits.index(other) < rank)]
            giver = max(givers, key=lambda other: int(counts[other][label]))
            spare = int((labels[index[giver]] == label).nonzero()[0])
            taken = int((labels[index[name]] == common).nonzero()[0])
            index[giver][spare], index[name][taken] = index[name][taken].clone(), index[giver][spare].clone()
            for number, there, back in ((label, name, giver), (common, giver, name)):
                counts[there][number] += 1
                counts[back][number] -= 1


def _statistics(pixels: Tensor, index: Tensor, *, histogram_from: int = HISTOGRAM_FROM) -> tuple[Tensor, Tensor]:
    """Returns the mean and standard deviation per channel, float32, (C, 1, 1), on the scale 0..1."""
    channels = pixels.shape[1]
    if len(index) * pixels[0].numel() <= histogram_from:
        scaled = pixels[index].float().div_(255)
        mean, std = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3))
    else:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for chunk in index.split(4096):
            for channel in range(channels):
                counts[channel] += torch.bincount(pixels[chunk, channel].flatten(), minlength=256)
        total = counts.sum(1, keepdim=True)
        center = (counts * levels).sum(1, keepdim=True) / total
        deviation = ((counts * (levels - center) ** 2).sum(1) / (total[:, 0] - 1)).sqrt()
        mean, std = center[:, 0].float(), deviation.float()
    return mean.view(-1, 1, 1), std.view(-1, 1, 1).clamp_min(1e-3)
