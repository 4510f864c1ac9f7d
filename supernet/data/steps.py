"""Training batches by step number, for every data set: the order within an epoch, and worker processes."""

import contextlib
import itertools
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.checked import is_whole, shown
from supernet.errors import InputError
from supernet.seeding import derive_seed

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What terminals and schedulers send to stop a command, to all of its processes at once."""


def torch_generator(*parts: object) -> torch.Generator:
    """Returns a CPU generator for the random stream that `parts` name."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def check_size(size: int) -> None:
    """Raises `InputError` unless a size can be that of batches."""
    if not is_whole(size, 1):
        raise InputError(f"size={shown(size)} should be a number of images per batch, from 1")


def check_share(batch: int, rank: int, world: int, images: int) -> None:
    """Checks the share of a process in the batches of a training.

    Args:
        batch: images of a step over all processes.
        rank, world: the process and their number.
        images: training images.

    Raises:
        InputError: a batch that is too large or that the processes cannot share, or no such process.
    """
    if not is_whole(batch, 1, images) or not is_whole(world, 1) or batch % world or not is_whole(rank, 0, world - 1):
        raise InputError(
            f"batch={shown(batch)}, rank={shown(rank)} and world={shown(world)} do not fit: a batch has at most the "
            f"{images:,} training images and the same number for each process"
        )


def epoch_order(length: int, *, seed: int, epoch: int) -> Tensor:
    """Returns the order of the training images in an epoch, int64, (length,)."""
    return torch.randperm(length, generator=torch_generator(seed, "epoch", epoch))


@dataclass(frozen=True)
class Step:
    """The images of one training step that belong to this process.

    Attributes:
        number: the step, counted from the start of the training.
        epoch: the epoch it belongs to.
        positions: where its images stand in `order`.
        order: the images of the epoch in training order, int64, (length,).
    """

    number: int
    epoch: int
    positions: range
    order: Tensor


class StepDataset(Dataset[T], ABC, Generic[T]):
    """A data set whose item k is the batch of step k, so that any worker can make it and a resumed training continues.

    Args:
        length: number of training images; those left over at the end of an epoch are dropped.
        batch: images of a step over all processes.
        seed: the seed of the order.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.
    """

    def __init__(self, length: int, *, batch: int, seed: int, rank: int, world: int) -> None:
        self._length, self._batch, self._seed, self._rank, self._world = length, batch, seed, rank, world
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, number: int) -> T:
        epoch, position = divmod(number, self._length // self._batch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._length, seed=self._seed, epoch=epoch)
        positions = range(position * self._batch + self._rank, (position + 1) * self._batch, self._world)
        return self.read(Step(number, epoch, positions, self._order))

    @abstractmethod
    def read(self, step: Step) -> T:
        """Returns the batch of a step."""

    def loader(self, start: int, *, workers: int, pin_memory: bool = False) -> "DataLoader[T]":
        """Returns endless batches from step `start` on, made ahead of time by `workers` processes (0: by this one)."""
        steps = itertools.count(start)
        return worker_loader(self, seed=self._seed, workers=workers, pin_memory=pin_memory, sampler=steps)


def worker_loader(
    dataset: "Dataset[T]", *, seed: int, workers: int, pin_memory: bool, sampler: Any = None
) -> "DataLoader[T]":
    """Returns a loader of ready-made batches that leaves the global generator alone and whose workers ignore Ctrl-C.

    Args:
        dataset: its items are batches.
        seed: the seed of the workers.
        workers: processes; 0 for this one.
        pin_memory: copy batches to pinned memory, for CUDA.
        sampler: the items and their order; for an iterable data set, None.
    """
    return _Loader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),  # otherwise the workers' seeds come from the global generator
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_interrupts,
    )


class _Loader(DataLoader[T]):
    """Starts its workers while signals wait.

    A worker inherits that, so that none can end it before it ignores them: the process that trains would take it for
    killed, and a worker that was still starting would print a traceback.
    """

    def __iter__(self) -> Any:
        with _waiting_signals():
            return super().__iter__()


@contextlib.contextmanager
def _waiting_signals() -> Iterator[None]:
    """Lets signals that end a training wait in this thread until the block ends."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unchanged(item: Any) -> Any:
    return item


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach all processes; the one that trains finishes its step and then ends the workers."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
