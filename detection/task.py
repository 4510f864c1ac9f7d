"""The task of detection for `supernet.training.loop`: the sum of a detector's losses on images with boxes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from detection.config import DetectionAugment
from detection.data.batches import Batch, training_batches
from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits
from detection.inputs import ImageBatch, Labelled
from supernet.checked import Checked
from supernet.config import Train
from supernet.errors import InputError
from supernet.scoring.batch_norm import single_values_explained
from supernet.space import Arch
from supernet.training.task import LossMetrics, PathLoss, memory_format

ONE_VALUE = "raise train.batch to two images for each process or more, or data.size, or take norm='group'"


@dataclass(frozen=True)
class Detection(Checked):
    """The detection task, whose training metrics are `loss`, the sum of the detector's losses, and each loss by name.

        train_supernet(detector, load(data), Train(epochs=12, batch=16), task=Detection(data.augment, data.workers))

    Attributes:
        augment: random transformations of training images and their boxes.
        workers: number of processes that make batches; with 0 the training process makes them.
    """

    augment: DetectionAugment = field(default_factory=DetectionAugment)
    workers: Annotated[int, Ge(0), Le(1024)] = 0

    def check(self, config: Train, processes: int) -> None:
        """Refuses settings that only classifiers have.

        Raises:
            InputError: distillation or label smoothing.
        """
        if config.distill or config.label_smoothing:
            name = "distill" if config.distill else "label_smoothing"
            raise InputError(f"train.{name}={getattr(config, name)} is for classifiers; leave it out for a detector")

    def check_network(self, network: nn.Module, data: DetectionSplits) -> None:
        """Checks that a detector has as many classes as the data.

        Raises:
            InputError: it has another number.
        """
        classes = next((module.classes for module in network.modules() if isinstance(module, ImageBatch)), None)
        if classes is not None and classes != len(data.classes):
            raise InputError(
                f"the detector has {classes:,} classes, and the data have {len(data.classes):,}; build it with "
                f"num_classes={len(data.classes)}"
            )

    def batches(self, data: DetectionSplits, config: Train, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Yields training batches; see `detection.data.batches.training_batches`.

        Raises:
            InputError: images without boxes.
        """
        if not isinstance(data.train, DetectionSet):
            raise InputError(
                f"data.train is a {type(data.train).__name__}, without boxes; a detector trains on "
                "detection.data.load(...), a classifier without task=Detection()"
            )
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
        """Returns a function from an architecture to the sum of its losses on a batch and the losses by name."""
        images, targets = batch
        device = images[0].device.type
        if isinstance(images, Tensor):
            images = images.contiguous(memory_format=memory_format(config))

        def loss_of(arch: Arch) -> tuple[Tensor, LossMetrics]:
            with single_values_explained(ONE_VALUE), torch.autocast(device, torch.bfloat16, enabled=config.bf16):
                losses = {name: value.float() for name, value in network(Labelled(images, targets), arch).items()}
            total = torch.stack(list(losses.values())).sum()
            return total, {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}

        return loss_of

    def guess(self, data: DetectionSplits) -> float:
        """Returns an upper estimate of the loss of untrained heads, for RetinaNet and for Faster R-CNN."""
        return 4.0
