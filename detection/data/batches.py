"""Training batches of a detection set."""

from collections.abc import Iterator

import torch

from detection.config import DetectionAugment
from detection.data.augment import Resize, joined, vary
from detection.data.coco import Annotations
from detection.data.images import DetectionSet, Pixels, gathered
from detection.inputs import Target
from supernet.checked import Positive, checked_arguments
from supernet.data.steps import Step, StepDataset, check_share, torch_generator
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
        InputError: while iterating, a batch that is too large or that the processes cannot share; and see
            `DetectionSet.image`.
    """
    check_share(batch, rank, world, len(train))
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
        self._weights = image_weights(train.annotations, augment.balance) if augment.balance else None
        landscape = train.annotations.sizes[:, 0] <= train.annotations.sizes[:, 1]
        self._landscape = landscape if augment.aspect_groups and landscape.unique().numel() > 1 else None
        self._drawn = (-1, torch.empty(0))  # an epoch and its images in training order

    def _images(self, step: Step) -> torch.Tensor:
        """Returns the images of the step's epoch in training order."""
        if self._weights is None and self._landscape is None:
            return step.order
        if self._drawn[0] != step.epoch:
            images = step.order
            if self._weights is not None:
                generator = torch_generator(self._seed, "balance", step.epoch)
                images = torch.multinomial(self._weights, len(step.order), replacement=True, generator=generator)
            if self._landscape is not None:
                generator = torch_generator(self._seed, "aspect", step.epoch)
                images = grouped_by_format(images, self._landscape, batch=self._joint, generator=generator)
            self._drawn = (step.epoch, images)
        return self._drawn[1]

    def read(self, step: Step) -> Batch | InputError:
        """Returns the varied images and boxes of a step, or the error of the first image that cannot be read."""
        images, targets = [], []
        augment, resize, order = self._augment, self._train.resize, self._images(step)
        if augment.sizes:
            generator = torch_generator(self._seed, "size", step.number)
            resize = resize.at(augment.sizes[int(torch.randint(len(augment.sizes), (), generator=generator))])
        for position in step.positions:
            generator = torch_generator(self._seed, "augment", step.number, position % self._joint)
            try:
                image, target = self._varied(int(order[position]), resize, generator)
                if augment.mosaic and float(torch.rand((), generator=generator)) < augment.mosaic:
                    others = torch.randint(len(self._train), (3,), generator=generator).tolist()
                    parts = [(image, target), *(self._varied(other, resize, generator) for other in others)]
                    image, target = joined(parts, torch.rand(2, generator=generator))
            except InputError as error:
                return error
            images.append(image)
            targets.append(target)
        return gathered(images), targets

    def _varied(self, index: int, resize: Resize, generator: torch.Generator) -> tuple[torch.Tensor, Target]:
        draws = torch.rand(4, generator=generator)
        return vary(self._train.image(index), self._train.annotations.target(index), self._augment, resize, draws)


def grouped_by_format(
    images: torch.Tensor, landscape: torch.Tensor, *, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Returns the images of an epoch in an order whose batches are in landscape or in portrait format.

    The batches come in random order. Only the fewer than `batch` images that are left over of each format are mixed, in
    one batch. Images that no batch has room for stay at the end, so that each is left out as often as without groups.

    Args:
        images: positions of the images in training order, int64, (n,).
        landscape: whether each image of the set is at least as wide as high, bool, (N,).
        batch: images of a step.
        generator: the random stream that orders the batches.
    """
    used = images[: len(images) // batch * batch]
    formats = [used[landscape[used]], used[~landscape[used]]]
    whole = [len(group) // batch * batch for group in formats]
    parts = [group[:length] for group, length in zip(formats, whole, strict=True)]
    rest = [group[length:] for group, length in zip(formats, whole, strict=True)]
    batches = torch.cat([*parts, *rest]).view(-1, batch)
    order = torch.randperm(len(batches), generator=generator)
    return torch.cat([batches[order].flatten(), images[len(used) :]])


@checked_arguments
def image_weights(annotations: Annotations, threshold: Positive) -> torch.Tensor:
    """Returns how often each image should be drawn, at least 1, float64, (N,).

    It is the largest of sqrt(threshold / f) over the classes in the image, where f is the share of images with the
    class (Gupta et al., 2019, §B). Crowds do not count as objects.

    Args:
        annotations: the annotations of the images.
        threshold: share of images below which a class is rare, above 0.

    Raises:
        InputError: something else than annotations, or a share that is not above 0.
    """
    image = torch.arange(len(annotations)).repeat_interleave(annotations.starts.diff())
    present = torch.zeros(len(annotations), len(annotations.classes), dtype=torch.bool)
    single = ~annotations.crowd
    present[image[single], annotations.labels[single] - 1] = True
    shares = present.double().mean(0).clamp_min(1 / max(len(annotations), 1))
    factors = (threshold / shares).sqrt().clamp_min(1)
    return (present * factors).amax(1).clamp_min(1)
