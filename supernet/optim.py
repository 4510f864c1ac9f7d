"""Optimizer, schedule, averaged weights and compiled blocks of a training; and the step that spares unused elements."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.config import Train
from supernet.searchable import Part, Searchable


def create_optimizer(module: nn.Module, config: Train) -> torch.optim.Optimizer:
    """timm's optimizer of that name; weights with one dimension are not decayed."""
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    return optimizer


def create_schedule(optimizer: torch.optim.Optimizer, config: Train, per_epoch: int) -> Any:
    """timm's schedule in steps, `step_update(step)`: linear warm-up, then `config.schedule` down to the floor."""
    from timm.scheduler import CosineLRScheduler, PolyLRScheduler

    floor = config.lr if config.schedule == "constant" else config.lr * config.lr_floor
    settings: dict[str, Any] = {
        "t_initial": max(per_epoch * config.epochs, 1),
        "lr_min": floor,
        "warmup_t": round(per_epoch * config.warmup_epochs),
        "warmup_lr_init": config.lr / 10,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    if config.schedule == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **settings)
    return CosineLRScheduler(optimizer, **settings)


def create_ema(module: nn.Module, config: Train) -> Any:
    """timm's moving average of weights and buffers, or None.

    Weights that a step did not use are averaged with their unchanged values: the average is over time, not over uses.
    """
    if not config.ema:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(module, decay=config.ema)


def step_active(optimizer: torch.optim.Optimizer, parts: Iterable[Part]) -> None:
    """`optimizer.step()` that leaves alone the elements outside `parts` of partly used parameters.

    Parameters without a gradient are skipped by the optimizer itself. For a sliced one, decay and momentum would also
    move the elements that no architecture of the step used; those and their optimizer state are put back.

    Args:
        optimizer: any that keeps element-wise state in tensors of the parameter's shape.
        parts: of all architectures of the step; the union counts.
    """
    parts = list(parts)
    whole = {id(parameter) for parameter, index in parts if index == ()}
    masks: dict[nn.Parameter, Tensor] = {}
    for parameter, index in parts:
        if id(parameter) not in whole:
            masks.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))[index] = True
    before = {parameter: (parameter.detach().clone(), _element_state(optimizer, parameter)) for parameter in masks}
    optimizer.step()
    with torch.no_grad():
        for parameter, (value, states) in before.items():
            parameter.copy_(torch.where(masks[parameter], parameter, value))
            for name, now in optimizer.state[parameter].items():
                if isinstance(now, Tensor) and now.shape == parameter.shape:
                    now.copy_(torch.where(masks[parameter], now, states.get(name, torch.zeros_like(now))))


def _element_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    state: Mapping[str, Any] = optimizer.state.get(parameter, {})
    return {k: v.clone() for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


@contextlib.contextmanager
def compiled(module: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Every candidate block runs compiled inside; each is compiled once and serves all paths.

    A supernet compiled as a whole would be one graph per path until the recompile limit. Steps with sliced weights stay
    eager, since their modules are not called but read.
    """
    blocks = list(_ordinary(module)) if enabled else []
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # what `compile` sets; state-dict keys never changed


def _ordinary(module: nn.Module) -> Iterator[nn.Module]:
    """The largest ordinary modules below searchables and plain containers."""
    for child in module.children():
        if isinstance(child, Searchable | nn.ModuleList | nn.ModuleDict):
            yield from _ordinary(child)
        elif any(True for _ in child.parameters()):
            yield child
