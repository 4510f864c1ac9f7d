"""Training images read from disk while training, decoded and varied in worker processes."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from supernet.config import Augment
from supernet.data.augment import augment as vary
from supernet.data.augment import crop_boxes
from supernet.data.decode import UNREADABLE, Problem, Source, fit, problem, report_unreadable
from supernet.data.opening import as_rgb
from supernet.data.steps import Step, StepDataset, check_share, torch_generator, worker_loader
from supernet.errors import InputError
from supernet.seeding import derive_seed

if TYPE_CHECKING:
    from PIL import Image


Piece = tuple[Tensor, Tensor, list[Problem]]
"""uint8 images, labels, and the images that could not be read."""

RETRIES = 100
"""Unreadable images in a row after which a run gives up even if it leaves unreadable images out."""


@dataclass(frozen=True)
class Stream:
    """Labelled training images on disk, and the normalisation that networks expect.

    Attributes:
        source: images with random access; or a function that takes the number of images per batch and opens an
            iterable data set of (PIL image, label) for one epoch, like timm's readers of web data sets.
        length: number of images in an epoch.
        size: height and width that images get, in pixels.
        classes: number of classes.
        mean, std: float32, (3, 1, 1), on the scale 0..1; their device is where batches go.
        index: int64, positions in `source` that are used; all if None.
        workers: processes that decode; 0 for the training process itself.
        skip_unreadable: replace an image that cannot be read by the next one, with a warning, instead of stopping.
    """

    source: Source | Callable[[int], "IterableDataset[Any]"]
    length: int
    size: int
    classes: int
    mean: Tensor
    std: Tensor
    index: Tensor | None = None
    workers: int = 4
    skip_unreadable: bool = False

    def __len__(self) -> int:
        return self.length

    @property
    def exact(self) -> bool:
        """Whether a batch depends on seed and step alone; if not, training can only resume at an epoch's start."""
        return not callable(self.source)

    def to(self, device: torch.device | str) -> "Stream":
        """The same stream, its batches moved to a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to float32, zero mean and unit variance per channel."""
        return (pixels.float() / 255 - self.mean) / self.std

    def batches(
        self, augment: Augment, *, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Returns batches like `supernet.data.training.training_batches`, but uint8 and not normalised.

        Raises:
            InputError: a batch that is too large or that the processes cannot share, a start within an epoch of a
                source without random access, an image that cannot be read, a label without a class, or a reader that
                ends before its epoch.
        """
        check_share(batch, rank, world, self.length)
        steps = self.length // batch
        if not self.exact and start % steps:
            raise InputError(
                f"this data set can only be read from the start of an epoch, a multiple of {steps} steps, and the "
                f"training stopped at step {start}; start again in another folder"
            )
        share = _Share(augment, self.size, batch, seed, rank, world)
        pieces = self._by_step(share, start) if self.exact else self._by_epoch(share, start // steps, steps)
        return self._checked(pieces)

    def _by_step(self, share: "_Share", start: int) -> Iterator[Piece]:
        index = torch.arange(self.length) if self.index is None else self.index
        steps = _StreamSteps(self.source, index, share, skip=self.skip_unreadable)  # type: ignore[arg-type]
        yield from steps.loader(start, workers=self.workers, pin_memory=self._pin)

    def _by_epoch(self, share: "_Share", first: int, steps: int) -> Iterator[Piece]:
        """Starts new workers in each epoch: state that readers carry from one to the next would be lost on resume."""
        for epoch in itertools.count(first):
            dataset = self.source(share.batch // share.world)  # type: ignore[operator]
            if hasattr(dataset, "set_loader_cfg"):
                dataset.set_loader_cfg(num_workers=self.workers)
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            done = 0
            seed = derive_seed(share.seed, "epoch", epoch)
            shard = _Shard(dataset, share, epoch)
            loader = worker_loader(shard, seed=seed, workers=self.workers, pin_memory=self._pin)
            for done, piece in enumerate(loader, start=1):
                yield piece
                if done == steps:
                    break
            if done < steps:
                raise InputError(
                    f"the reader of the training images ended after {done} of the {steps} steps of an epoch; "
                    f"it may have fewer shards than data.workers={self.workers}, or fewer images than it says"
                )

    @property
    def _pin(self) -> bool:
        return self.mean.device.type == "cuda"

    def _checked(self, pieces: Iterator[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
        """Reports unreadable images and labels without a class, and moves batches to the device."""
        reported: set[Problem] = set()
        for pixels, labels, problems in pieces:
            new = [problem for problem in problems if problem not in reported]
            if new:
                report_unreadable(new, skip=self.skip_unreadable)
                reported.update(new)
            if problems and labels.min() < 0:  # and none of the next RETRIES images could be read either
                report_unreadable(problems, skip=False)
            if labels.min() < 0 or labels.max() >= self.classes:
                low, high = int(labels.min()), int(labels.max())
                raise InputError(f"labels from {low} to {high} were read, and there are {self.classes} classes")
            device = self.mean.device
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Share:
    """How images are varied, and which images of each step belong to one process."""

    augment: Augment
    size: int
    batch: int
    seed: int
    rank: int
    world: int

    def varied(self, image: "Image.Image", *place: int) -> Tensor:
        """Returns the image varied by random draws that depend on seed and place alone, uint8, (3, size, size)."""
        from torchvision.transforms.v2 import functional as transforms

        draws = torch_generator(self.seed, "image", *place)
        if self.augment.scale < 1:
            size = image.height, image.width
            box = crop_boxes(1, size, scale=self.augment.scale, generator=draws)[0].tolist()
            image = transforms.resized_crop(image, *box, [self.size, self.size])
        return vary(fit(image, self.size)[None], replace(self.augment, scale=1.0), generator=draws)[0]


class _StreamSteps(StepDataset[Piece]):
    """Training images of a source with random access by step."""

    def __init__(self, source: Source, index: Tensor, share: _Share, *, skip: bool) -> None:
        super().__init__(len(index), batch=share.batch, seed=share.seed, rank=share.rank, world=share.world)
        self._source, self._index, self._share, self._skip = source, index, share, skip

    def read(self, step: Step) -> Piece:
        """Returns the batch of a step; a label of -1 marks an image for which no readable one was found."""
        share, count = self._share, len(step.positions)
        pixels = torch.zeros(count, 3, share.size, share.size, dtype=torch.uint8)
        labels = torch.full((count,), -1)
        problems: list[Problem] = []
        for row, position in enumerate(step.positions):
            for attempt in range(RETRIES if self._skip else 1):
                number = int(self._index[step.order[(position + attempt) % len(step.order)]])
                try:
                    image, label = self._source[number]
                    pixels[row], labels[row] = share.varied(image, step.epoch, number), label
                    break
                except UNREADABLE as error:
                    problems.append(problem(self._source, number, error))
        return pixels, labels, problems


@dataclass
class _Shard(IterableDataset[Piece]):
    """Batches of an iterable data set. Each worker of each process yields different ones; it restarts at the end."""

    dataset: "IterableDataset[Any]"
    share: _Share
    epoch: int

    def __iter__(self) -> Iterator[Piece]:
        share, (first, stride) = self.share, self._own()
        local = share.batch // share.world
        images: list[Tensor] = []
        labels: list[int] = []
        number, before = 0, -1
        while number > before:
            before = number
            for image, label in itertools.islice(iter(self.dataset), first, None, stride):
                images.append(share.varied(as_rgb(image), self.epoch, first, number))
                labels.append(int(label))
                number += 1
                if len(images) == local:
                    yield torch.stack(images), torch.tensor(labels), []
                    images, labels = [], []

    def _own(self) -> tuple[int, int]:
        """Returns the first image and the stride of this worker.

        timm's readers divide the images among workers by themselves, and among processes if torch.distributed is on.
        """
        share, worker = self.share, get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        replicas = getattr(getattr(self.dataset, "reader", None), "dist_num_replicas", None)
        if replicas is None:
            return share.rank * workers + worker_id, share.world * workers
        return (0, 1) if replicas == share.world else (share.rank, share.world)
