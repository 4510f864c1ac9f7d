"""Endless training batches as a function of seed and step, from memory or from a stream."""

import functools
import itertools
from collections.abc import Generator, Iterator

from supernet.checked import Count, Natural, checked_arguments
from supernet.config import Augment
from supernet.data.augment import augment as vary
from supernet.data.images import Batch, Images
from supernet.data.steps import check_share, epoch_order, torch_generator
from supernet.data.stream import Stream


@checked_arguments
def training_batches(
    train: Images | Stream,
    augment: Augment,
    *,
    batch: Count,
    seed: int,
    start: Natural = 0,
    rank: Natural = 0,
    world: Count = 1,
) -> Generator[Batch, None, None]:
    """Returns endless training batches from step `start` on, with `len(train) // batch` steps per epoch.

    Args:
        train: reshuffled in each epoch; the images left over at an epoch's end are dropped.
        augment: how images are varied; mixing is done later by `supernet.data.augment.mix`.
        batch: images of a step over all processes.
        seed: the seed of order and variation.
        start: step of the first batch. If the training split is `exact`, the batches from there on are the same as
            those of an iterator that started earlier.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.

    Returns:
        normalised images, float32, (batch / world, C, H, W), and labels, int64, (batch / world,).

    Raises:
        InputError: a batch that is too large or that the processes cannot share, or a start within an epoch of a stream
            that can only be read from an epoch's start; further errors come while iterating, see `Stream.batches`.
    """
    check_share(batch, rank, world, len(train))
    read = train.batches if isinstance(train, Stream) else functools.partial(_batches, train)
    batches = read(augment, batch=batch, seed=seed, start=start, rank=rank, world=world)
    return ((train.normalize(pixels), labels) for pixels, labels in batches)


def _batches(
    train: Images, augment: Augment, *, batch: int, seed: int, start: int, rank: int, world: int
) -> Iterator[Batch]:
    steps = len(train) // batch
    epoch = -1
    for step in itertools.count(start):
        if step // steps != epoch:
            epoch = step // steps
            order = epoch_order(len(train), seed=seed, epoch=epoch)
        position = step % steps
        index = order[position * batch : (position + 1) * batch][rank::world].to(train.labels.device)
        draws = torch_generator(seed, "augment", step)
        yield vary(train.pixels[index], augment, generator=draws, rank=rank, world=world), train.labels[index]
