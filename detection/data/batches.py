"""Training batches of a detection set."""

import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detection.config import DetectionAugment
from detection.data.augment import vary
from detection.data.images import DetectionSet, Pixels, gathered
from detection.inputs import Target
from supernet.errors import InputError
from supernet.seeding import derive_seed

Batch = tuple[Pixels, list[Target]]


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
        steps,
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        generator=draws,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_interrupts,
    )
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
