"""The source of image folders with one folder per class, decoded into memory or streamed."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.cache import Entry, cache_file, cache_key, cached
from supernet.data.decode import Labelled, read_images, report_unreadable
from supernet.data.images import Splits
from supernet.data.split import relabel, split, split_streamed
from supernet.errors import InputError
from supernet.memory import check_memory

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Files:
    """The image files of a folder with one folder per class."""

    root: Path
    names: "numpy.ndarray[Any, numpy.dtype[numpy.bytes_]]"
    """Paths below the root. One array: a list of a million strings would be copied into every worker process."""
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = min(8, os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        from PIL import Image

        with Image.open(self.name(index)) as file:
            return file.convert("RGB"), int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def identity(self, index: Tensor) -> str:
        """Returns a digest of names, sizes and labels."""
        sha = hashlib.sha256()
        for i in index.tolist():
            sha.update(self.names[i] + f" {os.path.getsize(self.name(i))} {self.labels[i]}\n".encode())
        return sha.hexdigest()

    def numbered_as(self, classes: tuple[str, ...], other: Path) -> "Files":
        """Returns the files with their labels in the order of `classes`, those of the training images in `other`.

        Raises:
            InputError: a class that is not among them.
        """
        return replace(self, labels=relabel(self, classes, where=(str(self.root), str(other))), classes=classes)


def folder(root: Path, *, fewest: int = 2) -> Files:
    """Lists the images of a folder with one folder per class; names that start with a dot are ignored.

    Raises:
        InputError: no images, a class without images, or fewer than `fewest` classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = tuple(sorted(item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith(".")))
    files: list[tuple[tuple[str, ...], int]] = []
    for label, name in enumerate(classes):
        for place, folders, names in os.walk(root / name):
            folders[:] = [item for item in folders if not item.startswith(".")]
            parts = Path(place).relative_to(root).parts
            for file in names:
                if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith("."):
                    files.append(((*parts, file), label))
    if not files:
        raise InputError(f"{root} holds no images: it needs one folder per class with files such as .jpg or .png")
    present = {label for _, label in files}
    if len(present) < fewest:
        raise InputError(f"{root} holds images of one class only, {classes[files[0][1]]!r}; there is nothing to learn")
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise InputError(f"the class folder {root / empty[0]} holds no images; fill or remove it")
    files.sort()
    paths = numpy.array([os.fsencode(os.path.join(*parts)) for parts, _ in files])
    return Files(root, paths, torch.tensor([label for _, label in files]), classes)


def load_folder(config: Data, cache: Path | None = None) -> Splits:
    """Reads and splits a folder, which may hold `train` and `test` (or `val`) with the class folders below.

    Args:
        config: `source` is the folder.
        cache: folder in which decoded images are kept for later calls; None for no cache.

    Raises:
        InputError: see `load`.
    """
    root = Path(config.source)
    inner = root / "train" if (root / "train").is_dir() else root
    train, test = folder(inner), None
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if inner != root and test_folder is not None:
        test = folder(test_folder, fewest=1).numbered_as(train.classes, inner)
    if config.stream:
        return split_streamed(config, train, None, test)
    images = len(train) + (0 if test is None else len(test))
    check_memory(images, config.size, remedy="set data.stream=True to read them while training")
    parts = [train] if test is None else [train, test]
    decoded = _decoded(parts, config, cache)
    pixels, labels = decoded[0]
    lost = sorted(set(train.labels.tolist()) - set(labels.tolist()))
    if lost:
        raise InputError(f"no image in {inner / train.classes[lost[0]]} can be read; repair some or remove the folder")
    return split(config, pixels, labels, train.classes, decoded[1] if test is not None else None)


def _decoded(parts: list[Files], config: Data, cache: Path | None) -> list[Labelled]:
    """Returns pixels and labels of all readable files of each part, from the cache if it knows these files."""
    source = (os.path.realpath(config.source), config.size, config.skip_unreadable)

    def key() -> str:
        files = ((part.names[i], part.name(i)) for part in parts for i in range(len(part)))
        return cache_key(source, [(os.path.realpath(part.root), len(part)) for part in parts], files=files)

    def decode() -> Entry:
        decoded = [read_images(part, torch.arange(len(part)), config) for part in parts]
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(decoded):
            tensors |= {f"pixels{number}": part.pixels, f"readable{number}": part.readable}
        return Entry(tensors, [problem for part in decoded for problem in part.problems])

    entry = cached(None if cache is None else cache_file(cache, *source), key, decode)
    if entry.problems:
        report_unreadable(entry.problems, skip=True)
    return [
        (entry.tensors[f"pixels{number}"], part.labels[entry.tensors[f"readable{number}"]])
        for number, part in enumerate(parts)
    ]
