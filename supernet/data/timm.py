"""Readers of timm, with random access or iterated over."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from supernet.config import Data
from supernet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

from supernet.data.decode import Labelled, fit
from supernet.memory import check_memory

# -- timm -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """A data set of timm or torchvision with random access.

    Attributes:
        dataset: opened anew for every use: a reader of tar files keeps handles, which processes must not share.
        title: what messages call it.
    """

    dataset: Any
    title: str
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        from PIL import Image

        reader = getattr(self.dataset, "reader", None)
        if reader is None:  # of torchvision: decodes itself
            return self.dataset[index][0].convert("RGB"), int(self.labels[index])
        with reader[index][0] as file, Image.open(file) as image:  # timm's own __getitem__ silently takes the next one
            return image.convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        """The reader's name of an image where it has one."""
        try:
            return f"{self.title} {self.dataset.filename(index)}"
        except (AttributeError, AssertionError, KeyError):
            return f"{self.title} number {index}"

    def identity(self, index: Tensor) -> str:
        """Digest of the title and the positions."""
        return hashlib.sha256(f"{self.title} {len(self)} {index.tolist()}".encode()).hexdigest()


def open_timm(config: Data, split: str, **options: Any) -> Any:
    """A split of a "timm:…" source as timm's factory makes it.

    Raises:
        InputError: a package, the root or the split is missing; with what timm says about it.
    """
    from timm.data import create_dataset

    name = config.source.removeprefix("timm:")
    if "/" not in name and not Path(config.root).exists():  # timm asserts it without a word
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
    return dataset


def timm_reader(config: Data, split: str) -> Reader | None:
    """A split of a "timm:…" source with random access; None for a reader that can only be iterated over."""
    from torch.utils.data import IterableDataset

    dataset = open_timm(config, split)
    if isinstance(dataset, IterableDataset):
        return None
    labels = _labels(dataset)
    reader = getattr(dataset, "reader", None)
    threads = min(8, os.cpu_count() or 1) if reader is None or hasattr(reader, "samples") else 1
    if type(reader).__name__ == "ReaderImageInTar":
        threads = 1  # one position in the file for all
    return Reader(dataset, f"{config.source} {split}", labels, class_names(dataset, labels), threads)


def timm_factory(config: Data, split: str) -> Callable[[int], Any]:
    """What opens a training split for one epoch, given the images per batch: iterable readers round up to them."""
    return partial(_open_training, config, split)


def _open_training(config: Data, split: str, batch: int) -> Any:
    return open_timm(config, split, is_training=True, batch_size=batch)


def _labels(dataset: Any) -> Tensor:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        found: Iterable[Any] = getattr(dataset, "targets", ())
        if len(dataset) and not len(found):  # type: ignore[arg-type]
            found = (dataset[i][1] for i in range(len(dataset)))
    elif hasattr(reader, "targets"):
        found = reader.targets
    elif hasattr(reader, "iter_targets"):
        found = reader.iter_targets()
    else:
        found = [label for _, label in reader.samples]
    return torch.tensor([int(label) for label in found])


def class_names(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """Names in the order of labels where the data set has some, numbers otherwise."""
    origin = getattr(dataset, "reader", dataset)
    numbers = getattr(origin, "class_to_idx", None) or getattr(origin, "class_name_to_idx", None) or {}
    names = {number: str(name) for name, number in reversed(numbers.items())}
    return tuple(names.get(number, str(number)) for number in range(max([*names, int(labels.max())]) + 1))


def images_in(dataset: Any) -> int:
    """Length of an iterable data set, before it is rounded up to whole batches per worker."""
    return int(getattr(getattr(dataset, "reader", None), "num_samples", 0) or len(dataset))


def decode_iterable(dataset: Any, config: Data, *, most: int | None) -> Labelled:
    """Read an iterable data set into memory, or its first `most` images: pixels and labels as in `decode`."""
    count = images_in(dataset) if most is None else most
    check_memory(count, config.size, remedy="lower data.size, or give a smaller split")
    pairs = [(fit(image.convert("RGB"), config.size), int(label)) for image, label in itertools.islice(dataset, most)]
    if not pairs:
        raise InputError(f"{config.source!r} yields no images for a split of {count}; is data.root complete?")
    return torch.stack([pixels for pixels, _ in pairs]), torch.tensor([label for _, label in pairs])
