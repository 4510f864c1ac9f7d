"""Image sets as evaluators read them: batches by number, and digests that identify a set."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from supernet.checked import is_whole, shown
from supernet.data.images import Images
from supernet.data.steps import check_size
from supernet.errors import InputError

Self = TypeVar("Self", bound="ImageSet")


class ImageSet(Protocol):
    """A set of images to score on: `Images`, or a set larger than memory that reads each batch when it is asked for.

    A set that is not `Images` has a method `identity()`, a digest of its images and annotations, and if it resizes them
    an attribute `resize` whose `repr` says how. The labels of its images are their positions.
    """

    @property
    def mean(self) -> Tensor:
        """Float32, (C, 1, 1), on the scale 0..1."""

    @property
    def std(self) -> Tensor:
        """As `mean`."""

    def __len__(self) -> int: ...

    def to(self: Self, device: torch.device | str) -> Self:
        """Returns the same set with its batches on a device."""

    def subset(self: Self, index: Tensor) -> Self:
        """Returns the images at these positions, in this order."""

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Yields normalised images and their labels, in order."""


class Batches:
    """The first batches of a set, each read when it is asked for; normalised images as the set returns them.

    Args:
        images: the set.
        size: images per batch; the last one of a whole set may have fewer.
        count: how many batches; all by default.
        alike: whether a batch holds images of one height and width, where the set has a method `groups(size)` that says
            which; the order is then that of the groups.

    Raises:
        InputError: a size below 1, or a negative number of batches.
    """

    def __init__(self, images: ImageSet, size: int, count: int | None = None, *, alike: bool = False) -> None:
        check_size(size)
        if count is not None and not is_whole(count, 0):
            raise InputError(f"count={shown(count)} should be a number of batches, from 0, or None for all")
        groups = getattr(images, "groups", None) if alike else None
        positions = torch.arange(len(images)).split(size) if groups is None else groups(size)
        self._images, self._positions = images, positions[:count]

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Any:
        """Returns the images of one batch."""
        positions = self._positions[number]
        return next(iter(self._images.subset(positions).batches(len(positions))))[0]

    def labels(self, number: int) -> Tensor:
        """Returns the labels of one batch, int64, (n,); for a set that is not `Images`, the positions of its images."""
        positions = self._positions[number]
        return self._images.labels[positions] if isinstance(self._images, Images) else positions


def identity(*sets: ImageSet) -> str:
    """Returns 16 hex digits over everything in these sets that scores depend on."""
    sha = hashlib.sha256()
    for part in sets:
        if isinstance(part, Images):
            _update(sha, (part.pixels, part.labels, part.mean, part.std))
        else:
            sha.update(f"{part.identity()} {getattr(part, 'resize', None)!r}".encode())  # type: ignore[attr-defined]
            _update(sha, (part.mean, part.std))
    return sha.hexdigest()[:16]


def digest(tensors: Iterable[Tensor]) -> str:
    """Returns 16 hex digits of SHA-256 over the contents."""
    sha = hashlib.sha256()
    _update(sha, tensors)
    return sha.hexdigest()[:16]


def _update(sha: Any, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
