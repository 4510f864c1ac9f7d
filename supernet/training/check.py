"""Checks of a training before anything is built."""

import torch
from torch import nn

from supernet.config import Augment, Train
from supernet.errors import InputError, nearest
from supernet.training.distributed import World, check_device, current
from supernet.training.optim import create_optimizer
from supernet.training.task import Classification, Task, TrainingData


def check_training(
    config: Train,
    data: TrainingData,
    augment: Augment | None = None,
    world: World | None = None,
    *,
    task: Task | None = None,
) -> None:
    """Checks that a training can start.

    Args:
        config: the optimisation recipe.
        data: the splits; only the size of `train` is read.
        augment: of a classification, if no `task` is given.
        world: the process group; the current one by default.
        task: what is learnt; a classification by default.

    Raises:
        InputError: no epochs, a batch that is larger than the training split or not divisible
            among the processes, an unknown optimizer, a device that is not available, or options that exclude each
            other.
    """
    from timm.optim import list_optimizers

    world = world or current()
    task = task or Classification(augment or Augment())
    if not config.epochs:
        raise InputError("epochs=0 trains nothing; it should be at least 1")
    if config.batch > len(data.train):
        raise InputError(f"the batch of {config.batch} is larger than the training split of {len(data.train)} images")
    if config.batch % world.size:
        raise InputError(
            f"the batch of {config.batch} images cannot be divided among {world.size} processes; choose a multiple"
        )
    task.check(config, world.size)
    if config.optimizer not in list_optimizers():
        raise InputError(f"timm has no optimizer {config.optimizer!r}; {nearest(config.optimizer, list_optimizers())}")
    try:
        create_optimizer(nn.utils.skip_init(nn.Linear, 1, 1), config)  # initialising would draw random numbers
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the optimizer {config.optimizer!r} refuses lr={config.lr}, momentum={config.momentum}, "
            f"weight_decay={config.weight_decay} ({error}); 'sgd' has Nesterov momentum, 'momentum' is without"
        ) from error
    if config.sync_bn and torch.device(config.device).type != "cuda":
        raise InputError(f"sync_bn needs CUDA, but the device is {config.device!r}; turn it off, or recalibrate later")
    check_device(world.device(config.device))
