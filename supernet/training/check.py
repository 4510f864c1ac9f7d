"""Checks of a training before anything is built."""

import contextlib
from collections.abc import Iterator
from random import Random

import torch
from torch import nn

from supernet.blocks.cells.plain import Output
from supernet.blocks.resolution import ElasticResolution, Resize
from supernet.chain import Chain, Layout, Layouts, plain_layout
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


def check_fit(chain: Chain, data: TrainingData, task: Task) -> None:
    """Checks that a network fits the data it is to learn from; a task may have a method `check_network` for that.

    Raises:
        InputError: see `check_network`, and that method of the task.
    """
    if isinstance(task, Classification):
        check_network(chain, data)
    elif (check := getattr(task, "check_network", None)) is not None:
        check(chain, data)


def check_network(chain: Chain, data: TrainingData) -> None:
    """Checks by two black images that a classifier reads the images of a data set and has as many outputs as classes.

    Nothing is drawn, and no statistics change. Data that do not say their number of channels are left to the training.

    Raises:
        InputError: the network cannot read such images, they are smaller than its largest stride, or it has another
            number of outputs.
    """
    channels, size = getattr(data, "in_channels", None), getattr(data, "size", None)
    tensor = next(chain.parameters(), None)
    if not isinstance(channels, int) or not isinstance(size, int) or tensor is None:
        return
    if size < (stride := _largest_stride(chain)):
        raise InputError(
            f"the images have {size} pixels, and the last feature maps of the network one pixel per {stride:g} pixels "
            f"of an image: they would see padding alone; give images of at least {stride:g} pixels"
        )
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


def _largest_stride(chain: Chain) -> float:
    """Returns the most image pixels per pixel of a feature map, as far as layouts say; 0 if images are resized."""
    if any(isinstance(module, Resize | ElasticResolution) for module in chain.modules()):
        return 0
    most = 0.0
    with contextlib.suppress(Exception):  # parts that declare nothing, or something else by these names, end the search
        for step, _, before in chain.walk(chain.space.sample(Random(0))):
            for layout in _layouts(step, before):
                most = max(most, layout.stride if isinstance(layout, Layout) else 0)
    return most


def _layouts(module: nn.Module, layout: Layouts) -> Iterator[Layouts]:
    """Yields the layouts before an ordinary module and before the parts in it."""
    yield layout
    if isinstance(module, nn.Sequential):
        for part in module:
            yield from _layouts(part, layout)
            layout = plain_layout(part, layout)
