"""The source "timm:NAME": readers of timm and torchvision, with random access or read in order."""

import dataclasses
import hashlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.decode import Labelled, fit
from supernet.data.images import Splits
from supernet.data.opening import as_rgb, open_image
from supernet.data.split import assemble_stream, relabel, split_streamed, warn_if_fewer
from supernet.errors import InputError
from supernet.memory import check_memory

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Reader:
    """A data set of timm or torchvision with random access.

    Attributes:
        dataset: of timm or torchvision. Each use opens its own: a reader of tar files keeps handles, which processes
            must not share.
        title: its name in messages.
        labels: int64, (N,).
        classes: names in the order of labels.
        threads: how many threads may read at a time.
    """

    dataset: Any
    title: str
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        reader = getattr(self.dataset, "reader", None)
        if reader is None:  # a data set of torchvision, which decodes by itself
            return as_rgb(self.dataset[index][0]), int(self.labels[index])
        with reader[index][0] as file:  # timm's own __getitem__ silently takes the next one
            return open_image(file), int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the reader's name of an image if it has one, its number otherwise."""
        try:
            return f"{self.title} {self.dataset.filename(index)}"
        except (AttributeError, AssertionError, KeyError):
            return f"{self.title} number {index}"

    def identity(self, index: Tensor) -> str:
        """Returns a digest of the title and the positions."""
        return hashlib.sha256(f"{self.title} {len(self)} {index.tolist()}".encode()).hexdigest()


def load_timm(config: Data) -> Splits:
    """Opens the splits of a "timm:NAME" source; the training images are read while training.

    Raises:
        InputError: see `load`.
    """
    train = timm_reader(config, config.train_split)
    if config.validation_split and config.validation_split == config.test_split:
        warnings.warn(
            f"data.validation_split and data.test_split are both {config.test_split!r}: the final report will be on "
            "the images that chose the architecture",
            stacklevel=3,
        )
    if train is None:
        return _iterated(config)
    validation, test = (_held_out(config, train, name) for name in ("validation_split", "test_split"))
    # The workers get a reader of their own, since open files would be shared with them.
    return split_streamed(config, train, validation, test, fresh=timm_reader(config, config.train_split))


def _held_out(config: Data, train: Reader, name: str) -> Reader | None:
    """Returns the reader of the split that a field of the config names; None if it names none."""
    split_name = getattr(config, name)
    reader = timm_reader(config, split_name) if split_name else None
    if reader is None:
        return None
    # Where timm finds no folder of the split's name it takes the root itself, with the training images in it.
    origins = [getattr(reader.dataset, "reader", reader.dataset) for reader in (train, reader)]
    if all(hasattr(origin, "samples") for origin in origins) and origins[0].root == origins[1].root:
        raise InputError(
            f"{config.root!r} has no split {split_name!r} apart from the training images; give data.{name} another "
            "name, or '' to hold out a share of them"
        )
    where = (f"{config.source} {split_name}", f"{config.source} {config.train_split}")
    return dataclasses.replace(reader, labels=relabel(reader, train.classes, where=where), classes=train.classes)


def _iterated(config: Data) -> Splits:
    """Returns the splits of a reader that can only be read in order."""
    for name in ("validation_split", "test_split"):
        if not getattr(config, name):
            raise InputError(
                f"{config.source!r} can only be read in order, so no share of it can be held out: name a split in "
                f"data.{name}"
            )
    training = open_timm(config, config.train_split)
    warn_if_fewer(config.calibration, images_in(training), default=Data.calibration)
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
    return assemble_stream(
        config,
        timm_factory(config, config.train_split),
        decoded,
        classes,
        length=length,
        digest=hashlib.sha256(f"{text} {config.size}".encode()).hexdigest()[:16],
    )


def open_timm(config: Data, split: str, **options: Any) -> Any:
    """Opens a split of a "timm:NAME" source through timm's factory.

    Raises:
        InputError: a package, the root or the split is missing; the message quotes timm.
    """
    from timm.data import create_dataset

    name = config.source.removeprefix("timm:")
    if _is_web(name):  # webdataset runs whatever follows "pipe:", and starts curl for addresses
        _check_local(config, (config.root, name.partition("/")[2], split))
    if name.startswith(("wds/", "hfids/")):
        options["input_img_mode"] = ""  # images as they are stored, for `as_rgb`; by default timm converts them
    if "/" not in name and not Path(config.root).exists():  # timm would fail with an empty assertion
        raise InputError(f"{config.source!r} reads files below data.root, and there is no {config.root!r}")
    try:
        dataset: Any = create_dataset(
            name, root=config.root, split=split, download=config.download, seed=config.seed, **options
        )
    except (ImportError, AssertionError, RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"timm cannot open {config.source!r}, split {split!r}, root {config.root!r}: {type(error).__name__}: "
            f"{error}; see the names of readers at timm.data.create_dataset"
        ) from error
    if _is_web(name):
        _check_local(config, dataset.reader.split_info.filenames)  # named by _info.json in the folder
    return dataset


def _is_web(name: str) -> bool:
    return name.partition("/")[0].lower() == "wds"


def _check_local(config: Data, names: Iterable[str]) -> None:
    """Raises `InputError` unless the names in a web data set are those of local files."""
    for name in names:
        if ":" in name:
            raise InputError(
                f"{config.source!r} names {name!r}: a web data set is read from local files only, never through a "
                "command or an address; copy it below data.root"
            )


def timm_reader(config: Data, split: str) -> Reader | None:
    """Returns a reader with random access of a "timm:NAME" split; None if the split can only be read in order."""
    from torch.utils.data import IterableDataset

    dataset = open_timm(config, split)
    if isinstance(dataset, IterableDataset):
        return None
    labels = _labels(dataset)
    reader = getattr(dataset, "reader", None)
    threads = min(8, os.cpu_count() or 1) if reader is None or hasattr(reader, "samples") else 1
    if type(reader).__name__ == "ReaderImageInTar":
        threads = 1  # all threads would share one position in the file
    return Reader(dataset, f"{config.source} {split}", labels, class_names(dataset, labels), threads)


def timm_factory(config: Data, split: str) -> Callable[[int], Any]:
    """Returns a function that opens the training split for one epoch.

    Its argument is the number of images per batch, since readers without random access round their length up to whole
    batches.
    """
    return partial(_open_training, config, split)


def _open_training(config: Data, split: str, batch: int) -> Any:
    return open_timm(config, split, is_training=True, batch_size=batch)


def _labels(dataset: Any) -> Tensor:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        labels: Iterable[Any] = getattr(dataset, "targets", ())
        if len(dataset) and not len(labels):  # type: ignore[arg-type]
            labels = (dataset[i][1] for i in range(len(dataset)))
    elif hasattr(reader, "targets"):
        labels = reader.targets
    elif hasattr(reader, "iter_targets"):
        labels = reader.iter_targets()
    else:
        labels = [label for _, label in reader.samples]
    return torch.tensor([int(label) for label in labels])


def class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """Returns class names in the order of labels if the data set has some, their numbers otherwise."""
    origin = getattr(dataset, "reader", dataset)
    numbers = getattr(origin, "class_to_idx", None) or getattr(origin, "class_name_to_idx", None) or {}
    names = {number: str(name) for name, number in reversed(numbers.items())}
    return tuple(names.get(number, str(number)) for number in range(max([*names, int(labels.max())]) + 1))


def images_in(dataset: Any) -> int:
    """Returns the length of an iterable data set before it is rounded up to whole batches per worker."""
    return int(getattr(getattr(dataset, "reader", None), "num_samples", 0) or len(dataset))


def decode_iterable(dataset: Any, config: Data, *, most: int | None) -> Labelled:
    """Reads an iterable data set into memory, or its first `most` images.

    Returns:
        pixels, uint8, (N, 3, size, size), and labels, int64, (N,).

    Raises:
        InputError: it has no images, or more than fit in memory.
    """
    count = images_in(dataset) if most is None else most
    check_memory(count, config.size, remedy="lower data.size, or give a smaller split")
    pairs = [(fit(as_rgb(image), config.size), int(label)) for image, label in itertools.islice(dataset, most)]
    if not pairs:
        raise InputError(f"{config.source!r} yields no images for a split of {count}; is data.root complete?")
    return torch.stack([pixels for pixels, _ in pairs]), torch.tensor([label for _, label in pairs])
