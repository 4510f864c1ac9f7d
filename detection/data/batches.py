"""Training batches of a detection set."""

from collections.abc import Iterator

import torch

from detection.config import DetectionAugment
from detection.data.augment import vary
from detection.data.images import DetectionSet, Pixels, gathered
from detection.inputs import Target
from supernet.data.steps import Step, StepDataset, torch_generator
from supernet.errors import InputError

Batch = tuple[Pixels, list[Target]]


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
    """Returns endless training batches from step `start` on, with `len(train) // batch` steps per epoch.

    A batch is a function of seed and step alone, whatever the start and the number of workers; and an image is varied
    the same way whatever the number of processes.

    Args:
        train: reshuffled in each epoch; the images left over at an epoch's end are dropped.
        augment: how images are varied.
        batch: images of a step over all processes.
        seed: the seed of order and variation.
        start: step of the first batch.
        rank, world: this process and their number; it gets the images `rank`, `rank + world`, … of each step.
        workers: processes that make batches ahead of time; 0 for this one.

    Returns:
        normalised images, (batch / world, 3, h, w) or a list of (3, h, w), and for each image its `boxes`, float32,
        (n, 4): x1, y1, x2, y2 in pixels, and `labels`, int64, (n,), from 1, on the train split's device. Crowd regions
        are left out; an image may have no boxes.

    Raises:
        InputError: while iterating, see `DetectionSet.image`.
    """
    assert batch <= len(train)
    assert batch % world == 0
    steps = _DetectionSteps(train, augment, batch=batch, seed=seed, rank=rank, world=world)
    for item in steps.loader(start, workers=workers):
        if isinstance(item, InputError):
            raise item
        pixels, targets = item
        device = train.mean.device
        yield train.normalize(pixels), [{name: t.to(device) for name, t in target.items()} for target in targets]


class _DetectionSteps(StepDataset[Batch | InputError]):
    """Training batches by step. Errors are returned as values: a loader would bury their message in a traceback."""

    def __init__(
        self, train: DetectionSet, augment: DetectionAugment, *, batch: int, seed: int, rank: int, world: int
    ) -> None:
        super().__init__(len(train), batch=batch, seed=seed, rank=rank, world=world)
        self._train, self._augment, self._joint, self._seed = train, augment, batch, seed

    def read(self, step: Step) -> Batch | InputError:
        """Returns the varied images and boxes of a step, or the error of the first image that cannot be read."""
        images, targets = [], []
        for position in step.positions:
            index = int(step.order[position])
            draws = torch.rand(4, generator=torch_generator(self._seed, "augment", step.number, position % self._joint))
            try:
                image = self._train.image(index)
            except InputError as error:
                return error
            target = self._train.annotations.target(index)
            image, target = vary(image, target, self._augment, self._train.resize, draws)
            images.append(image)
            targets.append(target)
        return gathered(images), targets
