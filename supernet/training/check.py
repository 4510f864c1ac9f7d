"""Checks of a training before anything is built."""

from random import Random

import torch
from torch import nn

from supernet.blocks.cells.plain import Output
from supernet.chain import Chain
from supernet.checked import checked_arguments
from supernet.config import Augment, Train
from supernet.errors import InputError, nearest
from supernet.training.distributed import World, check_device, current
from supernet.training.optim import create_optimizer
from supernet.training.task import Classification, Task, TrainingData


@checked_arguments
def check_training(
    config: Train,
    data: TrainingData,
    augment: Augment | None = None,
    world: World | None = None,
    *,
    task: Task | None = None,
    prefix: str = "",
) -> None:
    """Checks that a training can start.

    Args:
        config: the optimisation recipe.
        data: the splits; only the size of `train` is read.
        augment: the augmentation of a classification, if no `task` is given.
        world: the process group; the current one by default.
        task: what is learnt; a classification by default.
        prefix: what messages put before the name of a field, such as "retrain.".

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
        raise InputError(
            f"the batch of {config.batch} is larger than the training split of {len(data.train)} images; lower "
            f"{prefix}batch"
        )
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


def check_network(chain: Chain, data: TrainingData) -> None:
    """Checks by two black images that a classifier reads the images of a data set and has as many outputs as classes.

    Nothing is drawn, and no statistics change. Data that do not say their number of channels are left to the training.

    Raises:
        InputError: the network cannot read such images, or has another number of outputs.
    """
    channels, size = getattr(data, "in_channels", None), getattr(data, "size", None)
    tensor = next(chain.parameters(), None)
    if not isinstance(channels, int) or not isinstance(size, int) or tensor is None:
        return
    modes = [(module, module.training) for module in chain.modules()]
    images = torch.zeros(2, channels, size, size, device=tensor.device, dtype=tensor.dtype)
    try:
        with torch.no_grad():
            out = chain.eval()(images, chain.space.sample(Random(0)))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the network cannot read images of {channels} channels and {size}×{size} pixels, as the data are "
            f"({reason}); build it with in_channels={channels} and input_size={size}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    logits = out.logits if isinstance(out, Output) else out
    if isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[1] != len(data.classes):
        raise InputError(
            f"the network has {logits.shape[1]:,} outputs, and the data have {len(data.classes):,} classes; build it "
            f"with num_classes={len(data.classes)}"
        )
