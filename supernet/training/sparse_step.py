"""Optimizer steps on the used elements of shared parameters only."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.chain import Part
from supernet.training.distributed import used_elements


def step_active(optimizer: torch.optim.Optimizer, parts: Iterable[Part]) -> None:
    """`optimizer.step()` that leaves alone the elements outside `parts` of partly used parameters.

    Parameters without a gradient are skipped by the optimizer itself. Of a sliced one, decay and momentum would also
    move the elements that no architecture of the step used. So the optimizer is shown the used ones alone, and computes
    what it would for the materialised network, norms of whole tensors included. Three kinds of sliced parameters are
    stepped whole, and the other elements and their state put back: those in their first step, whose state is not there
    yet; those whose state is not element-wise (Adafactor); those whose used elements are no box, such as the union of
    a wide and a tall slice.

    Args:
        optimizer: any of timm.
        parts: of all architectures of the step; the union counts.
    """
    states = getattr(optimizer, "_base_optimizer", optimizer).state  # Lookahead keeps all in the one that it wraps
    copies = not type(optimizer).__module__.startswith("torch.optim")  # torch's own take any strides
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
            for one in narrowed:
                one.restore()
    with torch.no_grad():
        for other in kept:
            other.put_back(states[other.parameter])


def _sliced(parts: Iterable[Part]) -> list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]]:
    """The partly used parameters, with the index of their used elements; a mask where these are no box."""
    indices = dict[nn.Parameter, list[tuple[slice, ...]]]()
    for parameter, index in parts:
        indices.setdefault(parameter, []).append(index)
    partly = {parameter: given for parameter, given in indices.items() if all(given)}
    once = [(parameter, given[0]) for parameter, given in partly.items() if len(given) == 1]
    several = [(parameter, index) for parameter, given in partly.items() if len(given) > 1 for index in given]
    return [*once, *used_elements(several)]


def _is_elementwise(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether there is state, and all of it is single numbers and tensors of the parameter's shape."""
    for value in state.values():
        if isinstance(value, Tensor):
            if value.shape != parameter.shape and value.numel() != 1:
                return False
        elif not isinstance(value, int | float | None):
            return False
    return bool(state)


class _Narrowed:
    """A parameter whose data, gradient and state are its used elements until `restore`."""

    def __init__(
        self, parameter: nn.Parameter, state: dict[str, Any], index: tuple[slice, ...], *, copies: bool
    ) -> None:
        self.parameter, self.state, self.index, self.copies = parameter, state, index, copies
        self.data, self.grad = parameter.data, parameter.grad
        assert self.grad is not None
        shape = self.data.shape
        self.whole = {n: t for n, t in state.items() if isinstance(t, Tensor) and t.shape == shape}
        parameter.grad = None  # must have the shape of the data at all times
        parameter.data = self._cut(self.data)
        parameter.grad = self._cut(self.grad)
        self.cut = {name: self._cut(tensor) for name, tensor in self.whole.items()}
        state.update(self.cut)

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor[self.index].clone() if self.copies else tensor[self.index]

    def restore(self) -> None:
        """Everything whole again, with what the step made of the used elements."""
        parameter, now = self.parameter, self.parameter.data
        for name, value in self.state.items():
            if name in self.whole:
                if self.copies or value is not self.cut[name]:
                    self.whole[name][self.index] = value
                self.state[name] = self.whole[name]
            elif (
                isinstance(value, Tensor) and value.shape == now.shape and now.ndim
            ):  # as Lookahead's, after some steps
                made = _unused(value, like=self.data, copied=torch.equal(value, now))
                made[self.index] = value
                self.state[name] = made
        parameter.grad = None
        if self.copies:
            self.data[self.index] = now
        parameter.data, parameter.grad = self.data, self.grad


class _Kept:
    """What a parameter and its state were before a step, to be put back where `index` does not say used."""

    def __init__(self, parameter: nn.Parameter, state: Mapping[str, Any], index: tuple[slice, ...] | Tensor) -> None:
        self.parameter, self.value = parameter, parameter.detach().clone()
        self.states = {n: t.clone() for n, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape}
        self.mask = torch.zeros_like(parameter, dtype=torch.bool)
        self.mask[index] = True

    def put_back(self, state: Mapping[str, Any]) -> None:
        """After the step, into parameter and state."""
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
    """What new state is where nothing was used: the weight, if the state began as a copy of weights; else 0."""
    return like.to(state.dtype, copy=True) if copied else torch.zeros_like(like, dtype=state.dtype)
