"""Which learning rate suits a supernet, tried in short trainings."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from supernet.chain import Chain
from supernet.chain.copying import copy_module
from supernet.checked import checked_arguments, is_whole
from supernet.config import Augment, Train
from supernet.errors import InputError, RunError
from supernet.seeding import derive_seed
from supernet.training.check import check_training
from supernet.training.loop import train_supernet
from supernet.training.sampling import ArchSampler
from supernet.training.task import Classification, Task, TrainingData

FACTORS = (1 / 27, 1 / 9, 1 / 3, 1, 3, 9)
"""What the rate of a recipe is multiplied by; three is as fine as a short training can tell."""
PASSES = 3


@checked_arguments
def compare_rates(
    supernet: Chain,
    data: TrainingData,
    config: Train,
    *,
    sampler: ArchSampler | None = None,
    augment: Augment | None = None,
    task: Task | None = None,
    rates: Sequence[float] = (),
    steps: int = 90,
) -> dict[float, float]:
    """Trains copies of a supernet for a few steps with several learning rates, and returns their losses.

    All see the same batches and the same architectures: three passes over a random part of the training images, under
    the schedule of the recipe shortened to these steps. A rate that is good for so few steps is at most a little too
    high for a whole training. The supernet and the global generators are left as they were.

    Args:
        supernet, data, config, sampler, augment, task: as in `train_supernet`.
        rates: peak learning rates; those from 1/27 to 9 times that of `config` if empty.
        steps: updates per rate.

    Returns:
        the mean training loss of the last pass by rate, and infinity where the training diverged.

    Raises:
        InputError: see `check_training`; a rate or the number of steps is out of range; or images that are streamed.
    """
    task = task or Classification(augment or Augment())
    check_training(config, data, task=task)
    if not is_whole(steps, PASSES, 10**6):
        raise InputError(f"steps={steps!r} should be an integer from {PASSES} to 1,000,000")
    rates = tuple(rates) or tuple(config.lr * factor for factor in FACTORS)
    short = dataclasses.replace(config, epochs=PASSES, warmup_epochs=PASSES / 10, ema=0.0, patience=0)
    trials = {rate: dataclasses.replace(short, lr=rate) for rate in rates}  # refuses what is no rate
    images = min(steps // PASSES * config.batch, len(data.train))
    seeded = torch.Generator().manual_seed(derive_seed(config.seed, "images for rates"))
    if not hasattr(data.train, "subset"):
        raise InputError("images that are read while training cannot be tried in parts; set data.stream to false")
    part = data.train.subset(torch.randperm(len(data.train), generator=seeded)[:images])
    data = dataclasses.replace(cast(Any, data), train=part)  # a dataclass in every package
    losses = {}
    for rate, trial in trials.items():
        try:
            history = train_supernet(copy_module(supernet), data, trial, sampler=sampler, task=task, verbose=False)
        except RunError:
            losses[rate] = math.inf
        else:
            losses[rate] = history[-1]["loss"]
    return losses
