"""What a training optimises: its batches, the loss of an architecture, and the metrics that are recorded."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from supernet.blocks.cells.plain import Output
from supernet.config import Augment, Train
from supernet.data.ahead import ahead
from supernet.data.augment import mix
from supernet.data.images import Batch, Images, Splits
from supernet.data.training import training_batches
from supernet.errors import InputError
from supernet.seeding import derive_seed
from supernet.space import Arch

LossMetrics = dict[str, Tensor]
"""The recorded metrics of an architecture: scalars by name, without gradients; "loss" is the first."""
PathLoss = Callable[[Arch], tuple[Tensor, LossMetrics]]
"""Maps an architecture to the loss to differentiate and the metrics to record."""


class TrainingSet(Protocol):
    """Images to train on."""

    def __len__(self) -> int:
        """Returns the number of images."""

    @property
    def exact(self) -> bool:
        """Whether a batch is a function of seed and step alone, so that training can resume within an epoch."""


class TrainingData(Protocol):
    """The splits of a data set, as far as the loop reads them."""

    @property
    def train(self) -> TrainingSet:
        """The training split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def digest(self) -> str:
        """Identifies the data."""

    def to(self, device: torch.device | str) -> "TrainingData":
        """Returns the same data on a device."""


class Task(Protocol):
    """How a network learns from one kind of data. Everything random in it is a function of seed, step and rank."""

    def check(self, config: Train, processes: int) -> None:
        """Raises `InputError` if a training with this number of processes cannot start."""

    def batches(self, data: Any, config: Train, *, start: int, rank: int, world: int) -> Iterator[Any]:
        """Yields endless batches from step `start` on: this process's share, `batch / world` images."""

    def paths(self, network: nn.Module, batch: Any, data: Any, config: Train, *, step: int, rank: int) -> PathLoss:
        """Returns the loss on a batch as a function of the architecture; it is called for each of the step in order."""

    def guess(self, data: Any) -> float:
        """Returns the loss of a network that guesses; a spike is measured against no less than this."""


@dataclass(frozen=True)
class Classification:
    """Learns labels of images by cross-entropy; records `loss` and `accuracy` of the sampled paths in training mode.

    Attributes:
        augment: how training images are augmented and mixed.
        teacher: a network in eval mode that stays as it is; all architectures also learn its predictions on the same
            images (Hinton et al., 2015, at a temperature of 1).
        teacher_weight: of the cross-entropy with these predictions, beside that with the labels, which has 1.
    """

    augment: Augment = field(default_factory=Augment)
    teacher: nn.Module | None = None
    teacher_weight: float = 1.0

    def check(self, config: Train, processes: int) -> None:
        """Raises `InputError` if mixing cannot pair the images of a process."""
        mixes = self.augment.mixup or self.augment.cutmix
        if mixes and (config.batch // processes) % 2:
            raise InputError(
                f"mixup and cutmix pair images, but each process has {config.batch // processes}; choose an even number"
            )

    def batches(self, data: Splits, config: Train, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Yields images, (n, C, H, W), and labels, (n,)."""
        batches = training_batches(
            data.train, self.augment, batch=config.batch, seed=config.seed, start=start, rank=rank, world=world
        )
        in_memory = isinstance(data.train, Images) and data.train.pixels.device.type == "cpu"
        return ahead(batches) if config.prefetch and in_memory else batches

    def paths(self, network: nn.Module, batch: Batch, data: Splits, config: Train, *, step: int, rank: int) -> PathLoss:
        """Returns the cross-entropy of an architecture; with `distill` all but the first learn from the first."""
        images, labels = batch
        images = images.contiguous(memory_format=memory_format(config))
        targets = labels
        if self.augment.mixup or self.augment.cutmix:
            seed = derive_seed(config.seed, "mix", step, rank)
            classes, smoothing = len(data.classes), config.label_smoothing
            images, targets = mix(images, labels, self.augment, classes=classes, smoothing=smoothing, seed=seed)
        first = True
        taught = None if self.teacher is None else _predictions(self.teacher, images, config)

        def loss_of(arch: Arch) -> tuple[Tensor, LossMetrics]:
            nonlocal targets, first
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
                out = network(images, arch)
            logits = (out.logits if isinstance(out, Output) else out).float()
            main = _cross_entropy(config, logits, targets)
            loss = main
            if isinstance(out, Output):
                loss = main + config.auxiliary * _cross_entropy(config, out.aux.float(), targets)
            if taught is not None:
                loss = loss + self.teacher_weight * _cross_entropy(config, logits, taught)
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
            if config.distill and first:  # the first of a sandwich is the largest, the others learn from it
                targets = logits.detach().softmax(1)
            first = False
            return loss, {"loss": main.detach(), "accuracy": accuracy}

        return loss_of

    def guess(self, data: Splits) -> float:
        """Returns the cross-entropy of equal probabilities."""
        return math.log(max(len(data.classes), 2))


@torch.no_grad()
def _predictions(teacher: nn.Module, images: Tensor, config: Train) -> Tensor:
    """Returns the probabilities that a frozen network gives, (N, classes)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
        logits: Tensor = teacher.to(images.device)(images)
    return logits.float().softmax(1)


def memory_format(config: Train) -> torch.memory_format:
    """Returns how images and weights are stored in memory."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def _cross_entropy(config: Train, logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy with labels, (N,), which are smoothed, or with soft targets, (N, classes)."""
    smoothing = config.label_smoothing if targets.ndim == 1 else 0.0
    return nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
