"""What `supernet.training.loop` learns with a detector: the sum of its losses on images with boxes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from detection.config import DetectionAugment
from detection.data.batches import Batch, training_batches
from detection.data.load import DetectionSplits
from detection.inputs import Labelled
from supernet.config import Train
from supernet.errors import InputError
from supernet.space import Arch
from supernet.training.task import Figures, PathLoss, memory_format


@dataclass(frozen=True)
class Detection:
    """Images to boxes; figures are `loss`, the sum of the detector's losses, and each of them by its own name.

        train_supernet(detector, load(data), Train(epochs=12, batch=16), task=Detection(data.augment, data.workers))

    Attributes:
        augment: how training images and their boxes are varied.
        workers: processes that make batches; 0 for the training process itself.
    """

    augment: DetectionAugment = field(default_factory=DetectionAugment)
    workers: int = 0

    def check(self, config: Train, processes: int) -> None:
        """Refuses what only classifiers have."""
        if config.distill or config.label_smoothing:
            name = "distill" if config.distill else "label_smoothing"
            raise InputError(
                f"{name}={getattr(config, name)} is for classifiers; a detector's losses have no such form"
            )

    def batches(self, data: DetectionSplits, config: Train, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """See `detection.data.batches.training_batches`."""
        return training_batches(
            data.train,
            self.augment,
            batch=config.batch,
            seed=config.seed,
            start=start,
            rank=rank,
            world=world,
            workers=self.workers,
        )

    def paths(
        self, network: nn.Module, batch: Batch, data: DetectionSplits, config: Train, *, step: int, rank: int
    ) -> PathLoss:
        """The summed losses of one architecture after another."""
        images, targets = batch
        if isinstance(images, Tensor):
            images = images.contiguous(memory_format=memory_format(config))

        def loss_of(arch: Arch) -> tuple[Tensor, Figures]:
            with torch.autocast(images[0].device.type, torch.bfloat16, enabled=config.bf16):
                losses = {name: value.float() for name, value in network(Labelled(images, targets), arch).items()}
            total = torch.stack(list(losses.values())).sum()
            return total, {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}

        return loss_of

    def guess(self, data: DetectionSplits) -> float:
        """About what untrained heads begin with: focal loss and the cross-entropies of two stages lie below this."""
        return 4.0
