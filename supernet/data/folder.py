"""Image folders with one folder per class."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from supernet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

from supernet.data.decode import Source

# -- folders ----------------------------------------------------------------------------------------------------------


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
        """Path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def identity(self, index: Tensor) -> str:
        """Digest of names, sizes and labels."""
        sha = hashlib.sha256()
        for i in index.tolist():
            sha.update(self.names[i] + f" {os.path.getsize(self.name(i))} {self.labels[i]}\n".encode())
        return sha.hexdigest()

    def numbered_as(self, classes: tuple[str, ...], other: Path) -> "Files":
        """With the labels that these names have in `other`. Raises `InputError` for a class that is not there."""
        return replace(self, labels=relabel(self, classes, where=(str(self.root), str(other))), classes=classes)


def relabel(source: Source, classes: tuple[str, ...], *, where: tuple[str, str]) -> Tensor:
    """Labels of a held-out source in the order of the training classes. Raises `InputError` for a class without one."""
    unknown = sorted(set(source.classes) - set(classes))
    if unknown:
        raise InputError(f"{where[0]} has the class {unknown[0]!r}, which {where[1]} lacks; the classes must agree")
    return torch.tensor([classes.index(name) for name in source.classes])[source.labels]


def folder(root: Path, *, fewest: int = 2) -> Files:
    """List a folder with one folder per class; names that start with a dot are passed over.

    Raises:
        InputError: no images, a class without images, or fewer than `fewest` classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = tuple(sorted(item.name for item in os.scandir(root) if item.is_dir() and not item.name.startswith(".")))
    found: list[tuple[tuple[str, ...], int]] = []
    for label, name in enumerate(classes):
        for place, folders, files in os.walk(root / name):
            folders[:] = [item for item in folders if not item.startswith(".")]
            parts = Path(place).relative_to(root).parts
            images = (file for file in files if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith("."))
            found += [((*parts, file), label) for file in images]
    if not found:
        raise InputError(f"{root} holds no images: it needs one folder per class with files such as .jpg or .png")
    present = {label for _, label in found}
    if len(present) < fewest:
        raise InputError(f"{root} holds images of one class only, {classes[found[0][1]]!r}; there is nothing to learn")
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise InputError(f"the class folder {root / empty[0]} holds no images; fill or remove it")
    found.sort()
    names = numpy.array([os.fsencode(os.path.join(*parts)) for parts, _ in found])
    return Files(root, names, torch.tensor([label for _, label in found]), classes)
