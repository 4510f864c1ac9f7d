"""What a training will take, measured on a few of its steps."""

import contextlib
import statistics
import sys
import threading
import time

import torch
from torch import Tensor

from supernet.chain import Chain
from supernet.chain.copying import copy_module
from supernet.checked import checked_arguments
from supernet.config import Augment, Train
from supernet.generators import restored_generators
from supernet.training.check import check_fit, check_training
from supernet.training.distributed import current
from supernet.training.loop import book_losses, train_step
from supernet.training.optim import compiled
from supernet.training.sampling import ArchSampler, uniform
from supernet.training.state import TrainingState, prepare
from supernet.training.task import Classification, Task, TrainingData

STEPS = 3  # that are run and timed


@checked_arguments
def plan_training(
    supernet: Chain,
    data: TrainingData,
    config: Train,
    *,
    sampler: ArchSampler | None = None,
    augment: Augment | None = None,
    task: Task | None = None,
) -> dict[str, float]:
    """Estimates what a training will take from three of its steps, run on a copy.

    Nothing is written, and the supernet and the global generators are left as they were.

    Args:
        supernet, data, config, sampler, augment, task: as in `train_supernet`.

    Returns:
        `parameters`; `active_parameters`, the mean over the paths that were run; `steps`; `seconds_per_step`, the
        median; `seconds` of the whole training; `peak_bytes` of memory (of the device on CUDA, otherwise of this
        process), including the optimizer state of options that were not sampled yet; `disk_bytes` of the checkpoint
        and the weights, counting both versions while one replaces the other.

    Raises:
        InputError: see `check_training` and `supernet.training.check.check_fit`.
    """
    task = task or Classification(augment or Augment())
    sampler = sampler or uniform(supernet.space, config.seed)
    check_training(config, data, task=task)
    check_fit(supernet, data, task)
    world = current()
    with restored_generators(world.device(config.device)):
        state = prepare(copy_module(supernet), data, config, task=task, sampler=sampler, world=world)
        seconds, active = _timed_steps(state)
    parameters = sum(parameter.numel() for parameter in state.chain.parameters())
    weights = sum(tensor.nbytes for tensor in state.chain.state_dict().values())
    state_bytes = {
        parameter: sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
        for parameter, values in state.optimizer.state.items()
    }
    per_element = sum(state_bytes.values()) / max(sum(parameter.numel() for parameter in state_bytes), 1)
    not_sampled = sum(parameter.numel() for parameter in state.chain.parameters() if parameter not in state_bytes)
    checkpoint = weights * (2 if config.ema else 1) + parameters * per_element
    return {
        "parameters": parameters,
        "active_parameters": statistics.mean(active),
        "steps": state.total,
        "seconds_per_step": statistics.median(seconds),
        "seconds": statistics.median(seconds) * state.total,
        "peak_bytes": _peak_bytes(state.device) + not_sampled * per_element,
        "disk_bytes": 2 * checkpoint + weights,
    }


def _timed_steps(state: TrainingState) -> tuple[list[float], list[int]]:
    """Returns the seconds of each step, and the active parameters of each path."""
    chain, config, world = state.chain, state.config, state.world
    seconds, active = [], []
    batches = state.task.batches(state.data, config, start=0, rank=world.rank, world=world.size)
    with contextlib.closing(batches), compiled(chain, enabled=config.compile):  # type: ignore[type-var]  # a generator
        for step in range(STEPS):
            began = time.perf_counter()
            train_step(state, next(batches), threading.Event())
            book_losses(state)  # waits for the device
            seconds.append(time.perf_counter() - began)
            active += [sum(p.numel() for p in chain.active_parameters(arch)) for arch in state.sampler(step)]
    return seconds, active


def _peak_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
