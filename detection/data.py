"""Images with boxes: COCO's layout or composed digits, split by seed, resized and varied together with their boxes."""

import dataclasses
import hashlib
import itertools
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from detection import digits
from detection.augment import Resize, vary
from detection.coco import Annotations, read_annotations
from detection.config import DetectionAugment, DetectionData
from detection.inputs import Target
from supernet.data import Images
from supernet.errors import InputError
from supernet.seeding import derive_seed
from supernet.sources import UNREADABLE, free_memory

Pixels = Tensor | list[Tensor]
"""Images of one size, (N, 3, H, W), or of several, (3, h, w) each."""
Batch = tuple[Pixels, list[Target]]

HASHED = 2**28
"""Bytes of image files up to which a digest is over their contents; of more over their names and sizes."""


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Images with boxes, decoded in memory or read from disk when they are used; in either case resized only then.

    Attributes:
        annotations: names and sizes of the images, boxes, labels and categories.
        resize: which size images get.
        mean, std: float32, (3, 1, 1), on the scale 0..1; their device is where batches go.
        root: folder of the image files; None for images that have none.
        pixels: decoded images, uint8, (3, H, W) each as stored; None for images that are read from `root`.
    """

    annotations: Annotations
    resize: Resize
    mean: Tensor
    std: Tensor
    root: Path | None = None
    pixels: tuple[Tensor, ...] | None = None

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
        """Pixels as stored per pixel that a detector sees, float64, (N, 2): of x and y."""
        seen = torch.tensor([self.resize.of(*size) for size in self.annotations.sizes.tolist()])
        return self.annotations.sizes.flip(1).double() / seen.flip(1)

    def subset(self, index: Tensor) -> "DetectionSet":
        """The images at these positions, in this order."""
        pixels = None if self.pixels is None else tuple(self.pixels[i] for i in index.tolist())
        return dataclasses.replace(self, annotations=self.annotations.subset(index), pixels=pixels)

    def to(self, device: torch.device | str) -> "DetectionSet":
        """The same set, its batches moved to a device."""
        return dataclasses.replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def normalize(self, pixels: Pixels) -> Pixels:
        """uint8 to float32, zero mean and unit variance per channel, on the set's device."""
        if isinstance(pixels, Tensor):
            return (pixels.to(self.mean.device, non_blocking=True).float() / 255 - self.mean) / self.std
        return [
            (image.to(self.mean.device, non_blocking=True).float() / 255 - self.mean) / self.std for image in pixels
        ]

    def image(self, index: int) -> Tensor:
        """One image as stored, uint8, (3, H, W).

        Raises:
            InputError: a file that cannot be read, or of another size than its annotation file says.
        """
        if self.pixels is not None:
            return self.pixels[index]
        assert self.root is not None
        path = self.root / self.annotations.name(index)
        what = f"the image {path} (id {int(self.annotations.ids[index])})"
        try:
            with Image.open(path) as file:
                pixels: Tensor = pil_to_tensor(file.convert("RGB"))
        except UNREADABLE as error:
            raise InputError(f"{what} cannot be read ({error}); repair it, or remove it and its annotations") from error
        if list(pixels.shape[-2:]) != self.annotations.sizes[index].tolist():
            height, width = self.annotations.sizes[index].tolist()
            raise InputError(
                f"{what} has {pixels.shape[-1]}×{pixels.shape[-2]} pixels and {width}×{height} by its annotation file: "
                "its boxes would be wrong; repair either"
            )
        return pixels

    def seen(self, index: int) -> Tensor:
        """One image as a detector sees it but for the normalisation, uint8, (3, h, w)."""
        return self.resize(self.image(index))

    def batches(self, size: int) -> Iterator[tuple[Pixels, Tensor]]:
        """Normalised images and their positions in this set, int64, (n,), in order."""
        for positions in torch.arange(len(self)).split(size):
            yield self.normalize(gathered([self.seen(i) for i in positions.tolist()])), positions

    def images(self) -> Images:
        """All images in memory as detectors see them, for `SharedWeights`: their labels are positions in this set, by
        which a `DetectionMetric` finds the boxes. Smaller ones are padded at the right and the bottom, with the mean.

        Raises:
            InputError: they need more memory than is free; later on, see `image`.
        """
        seen = [self.resize.of(*size) for size in self.annotations.sizes.unique(dim=0).tolist()]
        height, width = (max(sides) for sides in zip(*seen, strict=True))
        needed, free = len(self) * 3 * height * width, free_memory()
        if needed > free:
            raise InputError(
                f"{len(self)} images of {width}×{height} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB "
                "are free; lower data.size, or score with fewer images"
            )
        pixels = torch.empty(len(self), 3, height, width, dtype=torch.uint8)
        pixels[:] = (self.mean.cpu() * 255).round().to(torch.uint8)

        def fill(index: int) -> None:
            image = self.seen(index)
            pixels[index, :, : image.shape[1], : image.shape[2]] = image

        with _threads() as pool:
            list(pool.map(fill, range(len(self))))
        return Images(pixels, torch.arange(len(self)), self.mean.cpu(), self.std.cpu()).to(self.mean.device)

    def cached(self, limit: int) -> "DetectionSet":
        """The same set decoded in memory; itself if that takes more than `limit` bytes. Raises as `image` does."""
        if self.pixels is not None or self.decoded_bytes > limit:
            return self
        with _threads() as pool:
            return dataclasses.replace(self, pixels=tuple(pool.map(self.image, range(len(self)))))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all images once decoded."""
        return int(3 * self.annotations.sizes.prod(1).sum())

    @property
    def held_bytes(self) -> int:
        """Bytes of the images in memory."""
        return 0 if self.pixels is None else self.decoded_bytes

    def identity(self) -> str:
        """Digest of annotations and images; of many files by their names and sizes (`HASHED`)."""
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
    """Images, (3, h, w) each, as one tensor if they are of one size."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)


# -- training batches -------------------------------------------------------------------------------------------------


def training_batches(
    train: DetectionSet,
    augment: DetectionAugment,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless training batches from step `start` on, an epoch being `len(train) // batch` steps.

    A batch is a function of seed and step alone, whatever the start and the number of workers; and an image is varied
    the same way whatever the number of processes.

    Args:
        train: shuffled anew in each epoch; the images left over at an epoch's end are dropped.
        augment: how images are varied.
        batch: images of a step over all processes.
        seed: of order and variation.
        start: step of the first batch.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.
        workers: processes that make batches ahead of time; 0 for this one.

    Returns:
        normalised images, (batch / world, 3, h, w) or a list of (3, h, w), and of each its `boxes`, float32, (n, 4):
        x1, y1, x2, y2 in pixels, and `labels`, int64, (n,), from 1, on the train split's device. Regions marked as
        crowds are no boxes; an image may have none.

    Raises:
        InputError: later on, see `DetectionSet.image`.
    """
    assert batch <= len(train)
    assert batch % world == 0
    steps = _Steps(train, augment, batch=batch, seed=seed, rank=rank, world=world)
    draws = torch.Generator().manual_seed(seed)  # the loader would take its workers' seeds from the global one
    loader = DataLoader(
        steps, batch_size=None, sampler=itertools.count(start), num_workers=workers, generator=draws,
        collate_fn=_unchanged, worker_init_fn=_ignore_interrupts,
    )  # fmt: skip
    for item in loader:
        if isinstance(item, InputError):
            raise item
        pixels, targets = item
        device = train.mean.device
        yield train.normalize(pixels), [{name: t.to(device) for name, t in target.items()} for target in targets]


def _unchanged(item: Any) -> Any:
    return item


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach all processes; the one that trains finishes its step and then ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Steps(Dataset[Batch | InputError]):
    """Item k is the batch of step k, so that any worker can make it, and a resumed training asks for the same ones.
    Errors are handed over as values: a loader would bury their message in a traceback."""

    train: DetectionSet
    augment: DetectionAugment
    batch: int = field(kw_only=True)
    seed: int = field(kw_only=True)
    rank: int = field(kw_only=True)
    world: int = field(kw_only=True)
    epoch: int = -1
    order: Tensor = field(default_factory=lambda: torch.empty(0))

    def __getitem__(self, step: int) -> Batch | InputError:
        epoch, position = divmod(step, len(self.train) // self.batch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = torch.randperm(len(self.train), generator=_generator(self.seed, "epoch", epoch))
        mine = self.order[position * self.batch : (position + 1) * self.batch][self.rank :: self.world]
        images, targets = [], []
        for place, index in zip(itertools.count(self.rank, self.world), mine.tolist(), strict=False):
            draws = torch.rand(4, generator=_generator(self.seed, "augment", step, place))
            try:
                image = self.train.image(index)
            except InputError as error:
                return error
            image, target = vary(image, self.train.annotations.target(index), self.augment, self.train.resize, draws)
            images.append(image)
            targets.append(target)
        return gathered(images), targets


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


# -- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DetectionSplits:
    """The four parts of a data set. `calibration` is drawn from `train`; the others are disjoint.

    Attributes:
        train: for gradients.
        calibration: for batch-norm statistics before an evaluation, not varied.
        validation: for scores during a search.
        test: for the final report.
        digest: 16 hex digits over annotations and images of all parts; see `DetectionSet.identity`.
    """

    train: DetectionSet
    calibration: DetectionSet
    validation: DetectionSet
    test: DetectionSet
    digest: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, … in order."""
        return self.train.classes

    def to(self, device: torch.device | str) -> "DetectionSplits":
        """The same splits, their batches moved to a device."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "calibration", "validation", "test")}
        return dataclasses.replace(self, **parts)


def load(config: DetectionData) -> DetectionSplits:
    """Read and split a data set; what fits into `config.memory` is decoded.

    Raises:
        InputError: a setting out of range, an annotation file or an image that is not there or makes no sense, or a
            split without images or boxes.
    """
    _check(config)
    if config.source == "digits":
        parts = digits.compose(config.size, config.compose, seed=config.seed)
        named = zip(("train", "validation", "test"), parts, strict=True)
        return _splits(
            config, *(_set(config, _composed(part, name), pixels=tuple(part.pixels)) for name, part in named)
        )
    train = _read(config, config.source, config.images, config.memory)
    room = config.memory - train.held_bytes
    validation = test = None
    if config.validation_source:
        validation = _read(config, config.validation_source, config.validation_images or config.images, room, train)
        room -= validation.held_bytes
    if config.test_source:
        test = _read(config, config.test_source, config.test_images or config.images, room, train)
    return split(config, train, validation, test)


def _check(config: DetectionData) -> None:
    if min(config.min_side, config.calibration) < 1 or min(config.workers, config.memory) < 0:
        raise InputError(
            f"data.min_side={config.min_side} and data.calibration={config.calibration} must be at least 1, "
            f"data.workers={config.workers} and data.memory={config.memory} at least 0"
        )
    if config.size < config.min_side or 0 < config.longest < config.size or config.longest < 0:
        raise InputError(
            f"data.size={config.size} must be at least data.min_side={config.min_side}, and "
            f"data.longest={config.longest} 0 or at least data.size"
        )
    if {len(config.mean), len(config.std)} not in ({0}, {3}) or min(config.std, default=1.0) <= 0:
        raise InputError(
            f"data.mean={config.mean} and data.std={config.std} have three values each, of std above 0; or none"
        )
    low, high = config.augment.scale
    if not 0 < low <= high:
        raise InputError(f"augment.scale={low, high} is a range of factors: more than 0, the smaller one first")
    for name, share in (("validation", config.validation), ("test", config.test)):
        if not 0 <= share < 1:
            raise InputError(f"data.{name}={share} is a share of the images, at least 0 and less than 1")


def _set(config: DetectionData, annotations: Annotations, **where: Any) -> DetectionSet:
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (config.mean or (0.0,) * 3, config.std or (1.0,) * 3))
    return DetectionSet(annotations, Resize(config.size, config.longest), mean, std, **where)


def _read(config: DetectionData, source: str, folder: str, room: int, like: DetectionSet | None = None) -> DetectionSet:
    known = None if like is None else like.annotations
    annotations = read_annotations(Path(source), Path(folder), min_side=config.min_side, like=known)
    return _set(config, annotations, root=Path(folder)).cached(room)


def _composed(part: digits.Composed, name: str) -> Annotations:
    count, _, *size = part.pixels.shape
    names: NDArray[np.bytes_] = np.array([f"composed {name} {i}".encode() for i in range(count)])
    sizes, ids = torch.tensor([size]).expand(count, 2), torch.arange(1, count + 1)
    return Annotations.of(names, ids, sizes, part.boxes, part.labels, classes=digits.CLASSES)


# -- splitting --------------------------------------------------------------------------------------------------------


def split(
    config: DetectionData,
    images: DetectionSet,
    validation: DetectionSet | None = None,
    test: DetectionSet | None = None,
) -> DetectionSplits:
    """Splits by seed of a set, for every source.

    Args:
        config: `seed`, `calibration`, and the shares of `validation` and `test`.
        images: what is split.
        validation, test: splits of their own; otherwise they are held out of the images.

    Raises:
        InputError: a split without images, or without boxes other than crowds.
    """
    order = torch.randperm(len(images), generator=_generator(config.seed, "split"))
    n_test = 0 if test is not None else round(config.test * len(order))
    n_validation = 0 if validation is not None else round(config.validation * (len(order) - n_test))
    parts = [images.subset(index) for index in order.tensor_split([n_test, n_test + n_validation])]
    return _splits(config, parts[2], validation or parts[1], test or parts[0])


def _splits(
    config: DetectionData, train: DetectionSet, validation: DetectionSet, test: DetectionSet
) -> DetectionSplits:
    present = []
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        present.append(set(part.annotations.labels[~part.annotations.crowd].tolist()))
        if not present[-1]:
            raise InputError(
                f"the {name} split of {config.source!r} has {len(part)} images and no boxes to find; give more images, "
                "another share or another data.seed"
            )
    missing = sorted(set.union(*present[1:]) - present[0])
    if missing:
        shown = ", ".join(repr(train.classes[label - 1]) for label in missing[:5])
        warnings.warn(f"no training image shows {len(missing)} of the classes held out: {shown}", stacklevel=3)
    calibration = train.subset(torch.arange(min(config.calibration, len(train))))
    mean, std = (calibration.mean, calibration.std) if config.mean else _statistics(calibration)
    parts = {"train": train, "calibration": calibration, "validation": validation, "test": test}
    sha = hashlib.sha256("".join(part.identity() for part in parts.values()).encode())
    normal = {name: dataclasses.replace(part, mean=mean, std=std) for name, part in parts.items()}
    return DetectionSplits(**normal, digest=sha.hexdigest()[:16])


def _statistics(part: DetectionSet) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, (3, 1, 1), of images as detectors see them: counted by levels, without a copy."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for index in range(len(part)):
        for channel, values in enumerate(part.seen(index)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    levels, share = torch.arange(256, dtype=torch.float64) / 255, counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1e-3)
    return mean.float().view(3, 1, 1), std.float().view(3, 1, 1)
