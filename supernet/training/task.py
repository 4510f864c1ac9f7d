"""What a training optimises, as an argument of the one loop: its batches, the loss of an architecture, its figures."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from supernet.blocks.cells.plain import Output
from supernet.config import Augment, Train
from supernet.data.augment import mix
from supernet.data.images import Batch, Splits
from supernet.data.training import training_batches
from supernet.errors import InputError
from supernet.seeding import derive_seed
from supernet.space import Arch

Figures = dict[str, Tensor]
"""Scalars by name without gradients; "loss" is the first."""
PathLoss = Callable[[Arch], tuple[Tensor, Figures]]
"""An architecture to the loss whose gradients are taken, and the figures that are told of it."""


class TrainingSet(Protocol):
    """Images to train on."""

    def __len__(self) -> int:
        """How many."""

    @property
    def exact(self) -> bool:
        """Whether a batch is a function of seed and step alone, so that training can go on within an epoch."""


class TrainingData(Protocol):
    """Splits of a data set, as far as the loop reads them."""

    @property
    def train(self) -> TrainingSet:
        """For gradients."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def digest(self) -> str:
        """What tells the data from others."""

    def to(self, device: torch.device | str) -> "TrainingData":
        """The same data for a device."""


class Task(Protocol):
    """How a network learns from data of one kind. Everything random in it is a function of seed, step and rank."""

    def check(self, config: Train, processes: int) -> None:
        """Whether a training of so many processes can start. Raises `InputError` if not."""

    def batches(self, data: Any, config: Train, *, start: int, rank: int, world: int) -> Iterator[Any]:
        """Endless batches from step `start` on: this process's share, `batch / world` images."""

    def paths(self, network: nn.Module, batch: Any, data: Any, config: Train, *, step: int, rank: int) -> PathLoss:
        """The loss on a batch as a function of the architecture, called for those of the step in order."""

    def guess(self, data: Any) -> float:
        """The loss of a network that knows nothing, which a leap is measured against."""


@dataclass(frozen=True)
class Classification:
    """Images to labels by cross-entropy; figures are `loss` and `accuracy`, of the sampled paths in training mode.

    Attributes:
        augment: how training images are varied and mixed.
    """

    augment: Augment = field(default_factory=Augment)

    def check(self, config: Train, processes: int) -> None:
        """Mixing pairs the images of a process."""
        mixes = self.augment.mixup or self.augment.cutmix
        if mixes and (config.batch // processes) % 2:
            raise InputError(
                f"mixup and cutmix pair images, but each process has {config.batch // processes}; give an even number"
            )

    def batches(self, data: Splits, config: Train, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Images, (n, C, H, W), and labels, (n,)."""
        return training_batches(
            data.train, self.augment, batch=config.batch, seed=config.seed, start=start, rank=rank, world=world
        )

    def paths(self, network: nn.Module, batch: Batch, data: Splits, config: Train, *, step: int, rank: int) -> PathLoss:
        """Cross-entropy of one architecture after another; with `distill` all but the first learn from the first."""
        images, labels = batch
        images = images.contiguous(memory_format=memory_format(config))
        targets = labels
        if self.augment.mixup or self.augment.cutmix:
            seed = derive_seed(config.seed, "mix", step, rank)
            classes, smoothing = len(data.classes), config.label_smoothing
            images, targets = mix(images, labels, self.augment, classes=classes, smoothing=smoothing, seed=seed)
        first = True

        def loss_of(arch: Arch) -> tuple[Tensor, Figures]:
            nonlocal targets, first
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
                out = network(images, arch)
            logits = (out.logits if isinstance(out, Output) else out).float()
            loss = _cross_entropy(config, logits, targets)
            extra = (
                config.auxiliary * _cross_entropy(config, out.aux.float(), targets) if isinstance(out, Output) else 0.0
            )
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
            if config.distill and first:  # the first of a sandwich is the largest; the others follow it
                targets = logits.detach().softmax(1)
            first = False
            return loss + extra, {"loss": loss.detach(), "accuracy": accuracy}

        return loss_of

    def guess(self, data: Splits) -> float:
        """Of equal probabilities."""
        return math.log(max(len(data.classes), 2))


def memory_format(config: Train) -> torch.memory_format:
    """How images and weights lie in memory."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def _cross_entropy(config: Train, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with labels, smoothed, or with soft targets, (N, classes)."""
    smoothing = config.label_smoothing if targets.ndim == 1 else 0.0
    return nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
