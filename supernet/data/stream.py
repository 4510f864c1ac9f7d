"""Training images that are read from disk while training: decoded and varied in worker processes."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from supernet.config import Augment
from supernet.data.augment import augment as vary
from supernet.data.augment import crop_boxes
from supernet.data.decode import UNREADABLE, Problem, Source, fit, problem, report_unreadable
from supernet.errors import InputError
from supernet.seeding import derive_seed

if TYPE_CHECKING:
    from PIL import Image


Piece = tuple[Tensor, Tensor, list[Problem]]
"""uint8 images, labels, and what could not be read on the way."""

RETRIES = 100
"""Unreadable images in a row after which even a run that leaves such out gives up."""


@dataclass(frozen=True)
class Stream:
    """Labelled training images on disk, and the normalisation that networks expect.

    Attributes:
        source: with random access; or a function of the images per batch that opens an iterable data set of
            (PIL image, label) for one epoch, as timm's readers of web data sets are.
        length: number of images in an epoch.
        size: height and width that images get, in pixels.
        classes: number of classes.
        mean, std: float32, (3, 1, 1), on the scale 0..1; their device is where batches go.
        index: int64, positions in `source` that are used; all if None.
        workers: processes that decode; 0 for the training process itself.
        skip_unreadable: take the next image for one that cannot be read, with a warning, instead of stopping.
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
        """Whether a batch is a function of seed and step alone; if not, training goes on at an epoch's start only."""
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
        """As `supernet.data.training.training_batches`, but not normalised.

        Raises:
            InputError: a start within an epoch where that cannot be found again, an image that cannot be read, a label
                without a class, or a reader that ends before its epoch.
        """
        steps = self.length // batch
        assert steps > 0
        assert batch % world == 0
        if not self.exact and start % steps:
            raise InputError(
                f"this data set can only be read from an epoch's start, a multiple of {steps} steps, and the training "
                f"stopped at step {start}; start again in another folder"
            )
        share = _Share(augment, self.size, batch, seed, rank, world)
        pieces = self._by_step(share, start) if self.exact else self._by_epoch(share, start // steps, steps)
        return self._moved(pieces)

    def _by_step(self, share: "_Share", start: int) -> Iterator[Piece]:
        index = torch.arange(self.length) if self.index is None else self.index
        steps = _Steps(self.source, index, share, skip=self.skip_unreadable)  # type: ignore[arg-type]
        yield from self._loader(steps, share.seed, sampler=itertools.count(start))

    def _by_epoch(self, share: "_Share", first: int, steps: int) -> Iterator[Piece]:
        """Workers start anew with each epoch: what the readers keep from one to the next would not survive a stop."""
        for epoch in itertools.count(first):
            dataset = self.source(share.batch // share.world)  # type: ignore[operator]
            if hasattr(dataset, "set_loader_cfg"):
                dataset.set_loader_cfg(num_workers=self.workers)
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            given = 0
            seed = derive_seed(share.seed, "epoch", epoch)
            for given, piece in enumerate(self._loader(_Shard(dataset, share, epoch), seed), start=1):
                yield piece
                if given == steps:
                    break
            if given < steps:
                raise InputError(
                    f"the reader of the training images ended after {given} of the {steps} steps of an epoch; "
                    f"it may have fewer shards than data.workers={self.workers}, or fewer images than it says"
                )

    def _loader(self, dataset: "Dataset[Piece]", seed: int, sampler: Any = None) -> "DataLoader[Piece]":
        draws = torch.Generator().manual_seed(seed)  # the loader would take its workers' seeds from the global one
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.workers,
            generator=draws,
            pin_memory=self.mean.device.type == "cuda",
            collate_fn=_unchanged,
        )

    def _moved(self, pieces: Iterator[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
        seen: set[Problem] = set()
        for pixels, labels, problems in pieces:
            new = [one for one in problems if one not in seen]
            if new:
                report_unreadable(new, skip=self.skip_unreadable)
                seen.update(new)
            if problems and labels.min() < 0:  # nor could the next RETRIES be
                report_unreadable(problems, skip=False)
            if labels.min() < 0 or labels.max() >= self.classes:
                low, high = int(labels.min()), int(labels.max())
                raise InputError(f"labels from {low} to {high} were read, and there are {self.classes} classes")
            device = self.mean.device
            yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _unchanged(piece: Any) -> Any:
    return piece


@dataclass(frozen=True)
class _Share:
    """What one process wants of each step."""

    augment: Augment
    size: int
    batch: int
    seed: int
    rank: int
    world: int

    def varied(self, image: "Image.Image", *place: int) -> Tensor:
        """uint8 (3, size, size), a function of image, seed and place alone."""
        from torchvision.transforms.v2 import functional as transforms

        draws = torch.Generator().manual_seed(derive_seed(self.seed, "image", *place))
        if self.augment.scale < 1:
            size = image.height, image.width
            box = crop_boxes(1, size, scale=self.augment.scale, generator=draws)[0].tolist()
            image = transforms.resized_crop(image, *box, [self.size, self.size])
        return vary(fit(image, self.size)[None], replace(self.augment, scale=1.0), generator=draws)[0]


@dataclass
class _Steps(Dataset[Piece]):
    """Item k is the batch of step k, so that any worker can make it, and a resumed training asks for the same ones."""

    source: Source
    index: Tensor
    share: _Share
    skip: bool = field(kw_only=True)
    epoch: int = -1
    order: Tensor = field(default_factory=lambda: torch.empty(0))

    def __getitem__(self, step: int) -> Piece:
        share, length = self.share, len(self.index)
        epoch, position = divmod(step, length // share.batch)
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed(derive_seed(share.seed, "epoch", epoch))
            self.epoch, self.order = epoch, torch.randperm(length, generator=shuffle)
        wanted = range(position * share.batch + share.rank, (position + 1) * share.batch, share.world)
        pixels = torch.zeros(len(wanted), 3, share.size, share.size, dtype=torch.uint8)
        labels = torch.full((len(wanted),), -1)
        problems: list[Problem] = []
        for row, at in enumerate(wanted):
            for attempt in range(RETRIES if self.skip else 1):
                number = int(self.index[self.order[(at + attempt) % length]])
                try:
                    image, label = self.source[number]
                    pixels[row], labels[row] = share.varied(image, epoch, number), label
                    break
                except UNREADABLE as error:
                    problems.append(problem(self.source, number, error))
        return pixels, labels, problems


@dataclass
class _Shard(IterableDataset[Piece]):
    """Batches of an iterable data set, in each worker of each process others; it starts again when it ends."""

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
                images.append(share.varied(image.convert("RGB"), self.epoch, first, number))
                labels.append(int(label))
                number += 1
                if len(images) == local:
                    yield torch.stack(images), torch.tensor(labels), []
                    images, labels = [], []

    def _own(self) -> tuple[int, int]:
        """First image and stride of this worker. timm's readers share out the images among workers by themselves, and
        among processes if torch.distributed is on."""
        share, worker = self.share, get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        replicas = getattr(getattr(self.dataset, "reader", None), "dist_num_replicas", None)
        if replicas is None:
            return share.rank * workers + worker_id, share.world * workers
        return (0, 1) if replicas == share.world else (share.rank, share.world)
