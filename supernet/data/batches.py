"""Image sets as evaluators read them: batches by number, and what tells one set from another."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from supernet.data.images import Images

Self = TypeVar("Self", bound="ImageSet")


class ImageSet(Protocol):
    """What can be scored on: `Images`, or a set that is larger than memory and reads a batch when it is asked for.

    A set that is not `Images` has a method `identity()`, a digest of its images and of what is to be found in them, and
    if it resizes them an attribute `resize` whose `repr` says how. Labels of its images are their positions.
    """

    @property
    def mean(self) -> Tensor:
        """Float32, (C, 1, 1), on the scale 0..1."""

    @property
    def std(self) -> Tensor:
        """As `mean`."""

    def __len__(self) -> int: ...

    def to(self: Self, device: torch.device | str) -> Self:
        """The same set, its batches on a device."""

    def subset(self: Self, index: Tensor) -> Self:
        """The images at these positions, in this order."""

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Normalised images and their labels, in order."""


class Batches:
    """The first batches of a set, each made when it is asked for: normalised images as the set returns them.

    Args:
        images: the set.
        size: images per batch; the last one of a whole set may have fewer.
        count: how many batches; all by default.
    """

    def __init__(self, images: ImageSet, size: int, count: int | None = None) -> None:
        self._images, self._positions = images, torch.arange(len(images)).split(size)[:count]

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Any:
        """One batch."""
        positions = self._positions[number]
        return next(iter(self._images.subset(positions).batches(len(positions))))[0]

    def labels(self, number: int) -> Tensor:
        """The labels of one batch, int64, (n,): of images that are not in memory, their positions in the set."""
        positions = self._positions[number]
        return self._images.labels[positions] if isinstance(self._images, Images) else positions


def identity(*sets: ImageSet) -> str:
    """16 hex digits over all that scores on these sets depend on."""
    sha = hashlib.sha256()
    for part in sets:
        if isinstance(part, Images):
            _update(sha, (part.pixels, part.labels, part.mean, part.std))
        else:
            sha.update(f"{part.identity()} {getattr(part, 'resize', None)!r}".encode())  # type: ignore[attr-defined]
            _update(sha, (part.mean, part.std))
    return sha.hexdigest()[:16]


def digest(tensors: Iterable[Tensor]) -> str:
    """16 hex digits of SHA-256 over the contents."""
    sha = hashlib.sha256()
    _update(sha, tensors)
    return sha.hexdigest()[:16]


def _update(sha: Any, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
