"""Endless training batches as a function of seed and step."""

import itertools
from collections.abc import Iterator

import torch

from supernet.config import Augment
from supernet.data.augment import augment as vary
from supernet.data.images import Batch, Images
from supernet.data.stream import Stream
from supernet.seeding import derive_seed

# -- training batches -------------------------------------------------------------------------------------------------


def training_batches(
    train: Images | Stream, augment: Augment, *, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless training batches from step `start` on, an epoch being `len(train) // batch` steps.

    Args:
        train: shuffled anew in each epoch; the images left over at an epoch's end are dropped.
        augment: how images are varied, but for mixing, which is `supernet.data.augment.mix`.
        batch: images of a step over all processes.
        seed: of order and variation.
        start: step of the first batch. For a train split that is `exact` the batches from there on are the same as of
            an iterator that started earlier.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.

    Returns:
        of images, float32, (batch / world, C, H, W), normalised, and labels, int64, (batch / world,).

    Raises:
        InputError: a start within an epoch of a stream that cannot be positioned there; later on, see
            `Stream.batches`.
    """
    assert batch <= len(train)
    assert batch % world == 0
    place = {"batch": batch, "seed": seed, "start": start, "rank": rank, "world": world}
    pieces = train.batches(augment, **place) if isinstance(train, Stream) else _batches(train, augment, **place)
    return ((train.normalize(pixels), labels) for pixels, labels in pieces)


def _batches(
    train: Images, augment: Augment, *, batch: int, seed: int, start: int, rank: int, world: int
) -> Iterator[Batch]:
    steps = len(train) // batch
    epoch, order = -1, torch.empty(0)
    for step in itertools.count(start):
        if step // steps != epoch:
            epoch = step // steps
            order = torch.randperm(len(train), generator=_generator(seed, "epoch", epoch))
        position = step % steps
        index = order[position * batch : (position + 1) * batch][rank::world].to(train.labels.device)
        draws = _generator(seed, "augment", step)
        yield vary(train.pixels[index], augment, generator=draws, rank=rank, world=world), train.labels[index]


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))
