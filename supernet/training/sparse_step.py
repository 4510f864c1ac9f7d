"""Optimizer steps on the used elements of shared parameters only."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.chain import Part
from supernet.training.distributed import used_elements


def step_active(optimizer: torch.optim.Optimizer, parts: Iterable[Part]) -> None:
    """Makes a step of the optimizer that leaves the unused elements of partly used parameters as they are.

    The optimizer itself skips parameters without a gradient. In a sliced parameter, however, decay and momentum would
    also move the elements that no architecture of the step used. Therefore the optimizer sees only the used elements,
    and computes what it would for the materialised network, including norms of whole tensors. Three kinds of sliced
    parameters are stepped as a whole, after which their unused elements and state are restored: those in their first
    step, which have no state yet; those whose state is not element-wise (Adafactor); and those whose used elements do
    not form a box, such as the union of a wide and a tall slice.

    Args:
        optimizer: any of timm's.
        parts: the active parts of all architectures of the step; their union counts.
    """
    states = getattr(optimizer, "_base_optimizer", optimizer).state  # Lookahead keeps the state in the one it wraps
    copies = not type(optimizer).__module__.startswith("torch.optim")  # torch's own accept any strides
    narrowed, kept = list[_Narrowed](), list[_Kept]()
    for parameter, index in _sliced(parts):
        if parameter.grad is not None:
            state = states.get(parameter, {})
            if isinstance(index, tuple) and _is_elementwise(state, parameter):
                narrowed.append(_Narrowed(parameter, state, index, copies=copies))
            else:
                kept.append(_Kept(parameter, state, index))
    try:
        optimizer.step()
    finally:
        with torch.no_grad():
            for cut in narrowed:
                cut.restore()
    with torch.no_grad():
        for whole in kept:
            whole.put_back(states[whole.parameter])


def _sliced(parts: Iterable[Part]) -> list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]]:
    """Returns the partly used parameters with the index of their used elements: a slice, or a mask if not a box."""
    indices = dict[nn.Parameter, list[tuple[slice, ...]]]()
    for parameter, index in parts:
        indices.setdefault(parameter, []).append(index)
    partly = {parameter: slices for parameter, slices in indices.items() if all(slices)}  # () is the whole parameter
    once = [(parameter, slices[0]) for parameter, slices in partly.items() if len(slices) == 1]
    several = [(parameter, index) for parameter, slices in partly.items() if len(slices) > 1 for index in slices]
    return [*once, *used_elements(several)]


def _is_elementwise(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Returns whether there is state and all of it is single numbers or tensors of the parameter's shape."""
    for value in state.values():
        if isinstance(value, Tensor):
            if value.shape != parameter.shape and value.numel() != 1:
                return False
        elif not isinstance(value, int | float | None):
            return False
    return bool(state)


class _Narrowed:
    """A parameter whose data, gradient and state are cut to its used elements until `restore`."""

    def __init__(
        self, parameter: nn.Parameter, state: dict[str, Any], index: tuple[slice, ...], *, copies: bool
    ) -> None:
        self.parameter, self.state, self.index, self.copies = parameter, state, index, copies
        self.data, self.grad = parameter.data, parameter.grad
        assert self.grad is not None
        shape = self.data.shape
        self.whole = {n: t for n, t in state.items() if isinstance(t, Tensor) and t.shape == shape}
        parameter.grad = None  # must always have the shape of the data
        parameter.data = self._cut(self.data)
        parameter.grad = self._cut(self.grad)
        self.cut = {name: self._cut(tensor) for name, tensor in self.whole.items()}
        state.update(self.cut)

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor[self.index].clone() if self.copies else tensor[self.index]

    def restore(self) -> None:
        """Makes everything whole again, with the new values of the used elements."""
        parameter, now = self.parameter, self.parameter.data
        for name, value in self.state.items():
            if name in self.whole:
                if self.copies or value is not self.cut[name]:
                    self.whole[name][self.index] = value
                self.state[name] = self.whole[name]
            elif isinstance(value, Tensor) and value.shape == now.shape and now.ndim:
                # State that appears after some steps, like Lookahead's.
                whole = _unused(value, like=self.data, copied=torch.equal(value, now))
                whole[self.index] = value
                self.state[name] = whole
        parameter.grad = None
        if self.copies:
            self.data[self.index] = now
        parameter.data, parameter.grad = self.data, self.grad


class _Kept:
    """The values of a parameter and its state before a step, to restore the elements outside `index` after it."""

    def __init__(self, parameter: nn.Parameter, state: Mapping[str, Any], index: tuple[slice, ...] | Tensor) -> None:
        self.parameter, self.value = parameter, parameter.detach().clone()
        self.states = {n: t.clone() for n, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape}
        self.mask = torch.zeros_like(parameter, dtype=torch.bool)
        self.mask[index] = True

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Restores the unused elements of parameter and state after the step."""
        parameter, mask = self.parameter, self.mask
        after = parameter.detach().clone()
        parameter.copy_(torch.where(mask, parameter, self.value))
        for name, now in state.items():
            if isinstance(now, Tensor) and now.shape == parameter.shape:
                if name not in self.states:
                    copied = torch.equal(now, self.value) or torch.equal(now, after)
                    self.states[name] = _unused(now, like=self.value, copied=copied)
                now.copy_(torch.where(mask, now, self.states[name]))


def _unused(state: Tensor, *, like: Tensor, copied: bool) -> Tensor:
    """Returns new state for unused elements: the weights, if the state starts as a copy of weights, and otherwise 0."""
    return like.to(state.dtype, copy=True) if copied else torch.zeros_like(like, dtype=state.dtype)
