"""A set of images with boxes, in memory or read from disk when they are used."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from detection.data.augment import Resize
from detection.data.coco import Annotations
from supernet.checked import shown
from supernet.data.batches import digest
from supernet.data.cache import Entry, cache_key, cached
from supernet.data.decode import UNREADABLE, report_animated
from supernet.data.opening import FRAMES, open_image
from supernet.data.steps import check_size
from supernet.errors import InputError
from supernet.memory import free_memory

Pixels = Tensor | list[Tensor]
"""Images of one size, (N, 3, H, W), or of several, (3, h, w) each."""

HASHED = 2**28
"""Up to this many bytes of image files, a digest is over their contents; above, over their names and sizes."""


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Images with boxes, decoded in memory or read from disk when they are used; either way resized only then.

    Attributes:
        annotations: names and sizes of the images, boxes, labels and categories.
        resize: the rule for their size as detectors see them.
        mean, std: float32, (3, 1, 1), on the scale 0..1; their device is where batches go.
        root: folder of the image files; None for images that have none.
        pixels: decoded images, uint8, (3, H, W) each as stored; None for images that are read from `root`.
        resized: the images as detectors see them, uint8, (3, h, w) each; None for images that are resized when they are
            used.
    """

    annotations: Annotations
    resize: Resize
    mean: Tensor
    std: Tensor
    root: Path | None = None
    pixels: tuple[Tensor, ...] | None = None
    resized: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def exact(self) -> bool:
        """Whether a training batch is a function of seed and step alone: always."""
        return True

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, … in order."""
        return self.annotations.classes

    @property
    def scales(self) -> Tensor:
        """Stored pixels per pixel that a detector sees, in x and y, float64, (N, 2)."""
        return self.annotations.sizes.flip(1).double() / torch.tensor(self._seen_sizes()).flip(1)

    def _seen_sizes(self) -> list[tuple[int, int]]:
        """Height and width of every image as detectors see it."""
        return [self.resize.of(*size) for size in self.annotations.sizes.tolist()]

    def groups(self, size: int) -> list[Tensor]:
        """Returns the positions of all images in groups of at most `size` that detectors see at one height and width.

        An image of such a batch is padded as it would be alone, so its detections do not depend on the other images.

        Raises:
            InputError: a size below 1.
        """
        check_size(size)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for position, shape in enumerate(self._seen_sizes()):
            by_shape.setdefault(shape, []).append(position)
        return [group for positions in by_shape.values() for group in torch.tensor(positions).split(size)]

    def subset(self, index: Tensor) -> "DetectionSet":
        """Returns the images at these positions, in this order.

        Raises:
            InputError: a position without an image, or something else than positions.
        """
        whole = isinstance(index, Tensor) and index.dim() == 1 and index.dtype in (torch.int64, torch.int32)
        if not whole or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self)):
            raise InputError(f"index={shown(index)} should be positions of {len(self)} images, from 0")
        rows = index.tolist()
        pixels = None if self.pixels is None else tuple(self.pixels[i] for i in rows)
        resized = None if self.resized is None else tuple(self.resized[i] for i in rows)
        return dataclasses.replace(self, annotations=self.annotations.subset(index), pixels=pixels, resized=resized)

    def to(self, device: torch.device | str) -> "DetectionSet":
        """Returns the same set with its batches moved to a device."""
        return dataclasses.replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def normalize(self, pixels: Pixels) -> Pixels:
        """Converts uint8 to float32 with zero mean and unit variance per channel, on the set's device."""
        if isinstance(pixels, Tensor):
            return (pixels.to(self.mean.device, non_blocking=True).float() / 255 - self.mean) / self.std
        return [
            (image.to(self.mean.device, non_blocking=True).float() / 255 - self.mean) / self.std for image in pixels
        ]

    def image(self, index: int) -> Tensor:
        """Returns one image as a viewer shows it, which is what its boxes refer to, uint8, (3, H, W).

        Raises:
            InputError: the file cannot be read, its size differs from the one in the annotation file, or there is no
                such image.
        """
        if not hasattr(index, "__index__") or not 0 <= index < len(self):
            raise InputError(f"index={shown(index)} should be the position of one of {len(self)} images, from 0")
        if self.pixels is not None:
            return self.pixels[index]
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[Tensor, bool]:
        """Returns the image in a file, and whether the file holds several, of which it is the first."""
        assert self.root is not None
        path = self.root / self.annotations.name(index)
        what = f"the image {path} (id {int(self.annotations.ids[index])})"
        try:
            opened = open_image(path)
            pixels: Tensor = pil_to_tensor(opened)
        except UNREADABLE as error:
            raise InputError(f"{what} cannot be read ({error}); repair it, or remove it and its annotations") from error
        if list(pixels.shape[-2:]) != self.annotations.sizes[index].tolist():
            height, width = self.annotations.sizes[index].tolist()
            exchanged = list(pixels.shape[-2:]) == [width, height]
            turned = " (the sides are exchanged: images are turned as their EXIF data say)" if exchanged else ""
            raise InputError(
                f"{what} has {pixels.shape[-1]}×{pixels.shape[-2]} pixels, but {width}×{height} in its annotation "
                f"file, so its boxes would be wrong; repair either{turned}"
            )
        return pixels, FRAMES in opened.info

    def seen(self, index: int) -> Tensor:
        """Returns one image as a detector sees it, but not normalised, uint8, (3, h, w)."""
        return self.resize(self.image(index)) if self.resized is None else self.resized[index]

    def batches(self, size: int) -> Iterator[tuple[Pixels, Tensor]]:
        """Yields normalised images and their positions in this set, int64, (n,), in order.

        Images of several sizes come as a list, which a detector pads to one size; scores are computed on `groups`.

        Raises:
            InputError: a size below 1.
        """
        check_size(size)
        for positions in torch.arange(len(self)).split(size):
            yield self.normalize(gathered([self.seen(i) for i in positions.tolist()])), positions

    def images(self) -> "DetectionSet":
        """Returns the same set with all images in memory as detectors see them, for `SharedWeights`.

        Raises:
            InputError: they need more memory than is free, or as `image`.
        """
        sizes = self._seen_sizes()
        needed, free = sum(3 * height * width for height, width in sizes), free_memory()
        if free is not None and needed > free:
            height, width = (max(sides) for sides in zip(*sizes, strict=True))
            raise InputError(
                f"{len(self)} images of up to {width}×{height} need {needed / 1e9:.1f} GB of memory and "
                f"{free / 1e9:.1f} GB are free; lower data.size, or score with fewer images"
            )
        with _threads() as pool:
            return dataclasses.replace(self, resized=tuple(pool.map(self.seen, range(len(self)))))

    def decoded(self, limit: int, *, cache: Path | None = None) -> "DetectionSet":
        """Returns the same set decoded in memory, or the set itself if that takes more than `limit` bytes.

        Args:
            limit: in bytes.
            cache: file in which the decoded images are kept; one that holds them already is mapped. None for no cache.

        Raises:
            InputError: see `image`.
        """
        if self.pixels is not None or self.decoded_bytes > limit:
            return self
        root, names = self.root, self.annotations.names
        assert root is not None

        def key() -> str:
            sizes = digest([self.annotations.sizes])
            files = ((bytes(names[i]), os.path.join(root, self.annotations.name(i))) for i in range(len(self)))
            return cache_key(os.path.realpath(root), len(self), sizes, files=files)

        def decode() -> Entry:
            pixels = torch.empty(self.decoded_bytes, dtype=torch.uint8)

            def read(i: int) -> None:
                image, several = self._read(i)
                views[i].copy_(image)
                if several:
                    animated.append(i)

            views = self._views(pixels)
            animated: list[int] = []
            with _threads() as pool:
                list(pool.map(read, range(len(self))))
            return Entry({"pixels": pixels}, animated=[self.annotations.name(i) for i in sorted(animated)])

        entry = cached(cache, key, decode)
        report_animated(entry.animated)
        return dataclasses.replace(self, pixels=self._views(entry.tensors["pixels"]))

    def _views(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns each image, (3, H, W), as a view of the bytes of all images."""
        sizes = self.annotations.sizes.tolist()
        parts = pixels.split([3 * height * width for height, width in sizes])
        return tuple(part.view(3, *size) for part, size in zip(parts, sizes, strict=True))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all images once decoded."""
        return int(3 * self.annotations.sizes.prod(1).sum())

    @property
    def held_bytes(self) -> int:
        """Bytes of the decoded images that are in memory."""
        return 0 if self.pixels is None else self.decoded_bytes

    def identity(self) -> str:
        """Returns a digest of annotations and images; for large sets of names and sizes instead (`HASHED`)."""
        sha = hashlib.sha256(self.annotations.identity().encode())
        paths = [] if self.root is None else [self.root / self.annotations.name(i) for i in range(len(self))]
        sizes = [os.path.getsize(path) for path in paths]
        if not paths:
            for image in self.pixels or ():
                sha.update(image.contiguous().numpy().data)
        elif sum(sizes) > HASHED:
            sha.update(repr(sizes).encode())
        else:
            for path in paths:
                sha.update(path.read_bytes())
        return sha.hexdigest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def gathered(images: Sequence[Tensor]) -> Pixels:
    """Returns images, (3, h, w) each, as one tensor if they have the same size."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)
