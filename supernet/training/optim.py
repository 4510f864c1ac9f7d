"""Optimisers, schedules and averaged weights from timm, and compilation block by block."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from supernet.chain import Chain, Searchable
from supernet.config import Train


def create_optimizer(
    module: nn.Module, config: Train, decayed: Collection[nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Creates timm's optimizer of that name; one-dimensional weights are not decayed.

    With `layer_decay` every layer has a group of its own, whose `lr_scale` the schedules of timm apply.

    Args:
        module: has the parameters.
        config: the optimisation recipe.
        decayed: the parameters that weight decay may act on; None for all.
    """
    from timm.optim import create_optimizer_v2
    from timm.optim.muon import Muon as TimmMuon

    from supernet.training.muon import Muon

    grouped = config.layer_decay != 1 or decayed is not None
    parameters = layer_groups(module, config, decayed) if grouped else module
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        parameters, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    if type(optimizer) is TimmMuon:
        optimizer.__class__ = Muon  # with all groups and settings as timm chose them
    return optimizer


def layer_groups(
    module: nn.Module, config: Train, decayed: Collection[nn.Parameter] | None = None
) -> list[dict[str, Any]]:
    """Returns the parameters in groups of one rate each, decayed or not, with the share of the rate that they have.

    The last layer has the whole rate, each earlier one `layer_decay` times that of the next (Clark et al., 2020).
    """
    kept = None if decayed is None else set(map(id, decayed))
    layers = list(_layers(module))
    scales = {
        id(parameter): config.layer_decay ** (len(layers) - 1 - place)
        for place, layer in enumerate(layers)
        for parameter in layer.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        decay = config.weight_decay if parameter.ndim > 1 and (kept is None or id(parameter) in kept) else 0.0
        groups.setdefault((scales.get(id(parameter), 1.0), decay), []).append(parameter)
    return [{"params": group, "lr_scale": scale, "weight_decay": decay} for (scale, decay), group in groups.items()]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the layers from input to output: the steps of a chain, and in place of a stage its blocks."""
    for step in module.step_modules if isinstance(module, Chain) else module.children():
        blocks = getattr(step, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            yield from blocks
        elif type(step) is nn.Sequential:  # a standalone network, whose stages are sequences again
            for part in step.children():
                yield from part.children() if type(part) is nn.Sequential else [part]
        else:
            yield step


def create_schedule(optimizer: torch.optim.Optimizer, config: Train, per_epoch: int) -> Any:
    """Creates timm's schedule by steps, `step_update(step)`: linear warm-up, then `config.schedule` to the floor."""
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
    from timm.scheduler.step_lr import StepLRScheduler

    total = max(per_epoch * config.epochs, 1)
    settings: dict[str, Any] = {
        "warmup_t": round(per_epoch * config.warmup_epochs),
        "warmup_lr_init": config.lr / 10,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    if config.schedule == "step":
        drops = [round(total * drop) + 1 for drop in config.drops]  # timm drops one step before the number in the list
        return MultiStepLRScheduler(optimizer, drops, decay_rate=0.1, **settings)
    if config.schedule == "exponential":
        floor = config.lr * config.lr_floor

        class Floored(StepLRScheduler):  # type: ignore[misc]  # timm's has no lowest rate
            def _get_lr(self, t: int) -> list[float]:
                rates: list[float] = super()._get_lr(t)
                return rates if t < self.warmup_t else [max(rate, floor) for rate in rates]

        every = max(1, round(per_epoch * config.decay_epochs))
        return Floored(optimizer, decay_t=every, decay_rate=config.decay_rate, **settings)
    settings |= {"t_initial": total, "lr_min": config.lr * (1 if config.schedule == "constant" else config.lr_floor)}
    if config.schedule == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **settings)
    return CosineLRScheduler(optimizer, **settings)


def create_ema(module: nn.Module, config: Train) -> Any:
    """Creates timm's moving average of weights and buffers, or returns None if there is to be none.

    Weights that a step did not use are averaged with their unchanged values: the average is over steps, not over uses.
    """
    if not config.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(module, decay=config.ema, use_warmup=config.ema_warmup)


@contextlib.contextmanager
def compiled(module: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Runs candidate blocks compiled inside the context; each is compiled once and serves all paths.

    Compiling the supernet as a whole would make one graph per path, up to the recompile limit. Steps with sliced
    weights stay eager, because their modules are read and never called.
    """
    blocks = list(_ordinary(module)) if enabled else []
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # what `compile` set; the keys of the state dict never changed


def _ordinary(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the largest ordinary modules below searchables and plain containers."""
    for child in module.children():
        if isinstance(child, Searchable | nn.ModuleList | nn.ModuleDict):
            yield from _ordinary(child)
        elif any(True for _ in child.parameters()):
            yield child
