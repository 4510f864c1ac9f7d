"""Data sets by name: embedded, CIFAR, folders, timm readers and user functions."""

import dataclasses
import hashlib
import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.augment import check_augment
from supernet.data.decode import Labelled, Source, decode
from supernet.data.embedded import cifar, digits
from supernet.data.folder import folder, relabel
from supernet.data.images import Images, Splits
from supernet.data.split import _split_index, split
from supernet.data.stream import Stream
from supernet.data.timm import Reader, class_names, decode_iterable, images_in, open_timm, timm_factory, timm_reader
from supernet.errors import InputError
from supernet.memory import check_memory

# -- loading ----------------------------------------------------------------------------------------------------------


def load(config: Data, *, cache: Path | None = None) -> Splits:
    """Read, decode and split a data set.

    Args:
        config: the source, and how images are prepared and split.
        cache: folder in which decoded images are kept for later calls, such as the folder of a run; None for no cache.
            `config.cache` may name another folder or turn it off.

    Raises:
        InputError: a setting out of range, a source that is not there, a folder without images or with a class that
            lacks some, unreadable images, more images than fit in memory, or a split without images or without those of
            a class that another split has.
    """
    if config.calibration < 1 or config.size < 1 or config.workers < 0:
        raise InputError(
            f"data.calibration={config.calibration} and data.size={config.size} must be at least 1, "
            f"data.workers={config.workers} at least 0"
        )
    check_augment(config.augment, config.size)
    if config.source == "digits":
        return split(config, *digits(config.size))
    if config.source in ("cifar10", "cifar100"):
        pixels, labels, classes, test = cifar(config)
        return split(config, pixels, labels, classes, test)
    if config.source.startswith("timm:"):
        return _timm(config)
    if config.source and Path(config.source).is_dir():
        return _folder(config, Path(config.source))
    if re.fullmatch(r"[\w.]+:\w+", config.source):
        return _function(config)
    raise InputError(
        f"there is no data set {config.source!r}: data.source is 'digits', 'cifar10', 'cifar100', a folder with one "
        "folder per class, 'timm:NAME' or 'package.module:function'"
    )


def _function(config: Data) -> Splits:
    module, _, name = config.source.partition(":")
    try:
        function: Callable[[Data], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the data set {config.source!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    splits = function(config)
    if not isinstance(splits, Splits):
        raise InputError(f"{config.source!r} returned {type(splits).__name__}, not the Splits that `split` makes")
    return splits


def _folder(config: Data, root: Path) -> Splits:
    inner = root / "train" if (root / "train").is_dir() else root
    train, test = folder(inner), None
    held = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if inner != root and held is not None:
        test = folder(held, fewest=1).numbered_as(train.classes, inner)
    if config.stream:
        return _streamed(config, train, None, test)
    images = len(train) + (0 if test is None else len(test))
    check_memory(images, config.size, remedy="read them while training: --data.stream")
    pixels, labels = decode(train, torch.arange(len(train)), config)
    lost = sorted(set(train.labels.tolist()) - set(labels.tolist()))
    if lost:
        raise InputError(f"no image in {inner / train.classes[lost[0]]} can be read; repair some or remove the folder")
    decoded = None if test is None else decode(test, torch.arange(len(test)), config)
    return split(config, pixels, labels, train.classes, decoded)


# -- streams ----------------------------------------------------------------------------------------------------------


def _timm(config: Data) -> Splits:
    train = timm_reader(config, config.train_split)
    if config.validation_split and config.validation_split == config.test_split:
        warnings.warn(
            f"data.validation_split and data.test_split are both {config.test_split!r}: the final report will be on "
            "the images that chose the architecture",
            stacklevel=3,
        )
    if train is None:
        return _iterated(config)
    held = [_held(config, train, name) for name in ("validation_split", "test_split")]
    # A reader of its own for the workers: open files would be shared with them.
    return _streamed(config, train, *held, fresh=timm_reader(config, config.train_split))


def _held(config: Data, train: Reader, name: str) -> Reader | None:
    split_name = getattr(config, name)
    held = timm_reader(config, split_name) if split_name else None
    if held is None:
        return None
    # Where timm finds no folder of the split's name it takes the root itself, with the training images in it.
    origins = [getattr(reader.dataset, "reader", reader.dataset) for reader in (train, held)]
    if all(hasattr(origin, "samples") for origin in origins) and origins[0].root == origins[1].root:
        raise InputError(
            f"{config.root!r} has no split {split_name!r} apart from the training images; give data.{name} another "
            "name, or '' to hold out a share of them"
        )
    where = (f"{config.source} {split_name}", f"{config.source} {config.train_split}")
    return dataclasses.replace(held, labels=relabel(held, train.classes, where=where), classes=train.classes)


def _streamed(
    config: Data, train: Source, validation: Source | None, test: Source | None, *, fresh: Source | None = None
) -> Splits:
    """Splits whose training images stay on disk; the others are decoded."""
    index = _split_index(
        config, train.labels, train.classes, *(None if part is None else part.labels for part in (test, validation))
    )
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
    return _assemble(
        config,
        fresh or train,
        decoded,
        train.classes,
        digest=sha.hexdigest()[:16],
        length=len(index["train"]),
        index=index["train"],
    )


def _iterated(config: Data) -> Splits:
    """Splits of a reader that can only be iterated over."""
    for name in ("validation_split", "test_split"):
        if not getattr(config, name):
            raise InputError(
                f"{config.source!r} can only be read in order, so no share of it can be held out: name a split in "
                f"data.{name}"
            )
    training = open_timm(config, config.train_split)
    decoded, lengths = {}, []
    for part, name, most in (
        ("calibration", config.train_split, config.calibration),
        ("validation", config.validation_split, None),
        ("test", config.test_split, None),
    ):
        decoded[part] = decode_iterable(open_timm(config, name), config, most=most)
        lengths.append(len(decoded[part][1]))
    classes = class_names(training, torch.cat([labels for _, labels in decoded.values()]))
    length = images_in(training)
    text = f"{config.source} {config.train_split} {config.validation_split} {config.test_split} {length} {lengths}"
    return _assemble(
        config,
        timm_factory(config, config.train_split),
        decoded,
        classes,
        length=length,
        digest=hashlib.sha256(f"{text} {config.size}".encode()).hexdigest()[:16],
    )


def _assemble(
    config: Data,
    source: Any,
    decoded: dict[str, Labelled],
    classes: tuple[str, ...],
    *,
    digest: str,
    length: int,
    index: Tensor | None = None,
) -> Splits:
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
    return Splits(stream, **parts, classes=classes, digest=digest)
