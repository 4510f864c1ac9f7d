"""The weight-sharing contract: `Searchable` modules that take the architecture as an argument, folded by a `Chain`.

A step learns of its predecessors through the `Layout` of what they hand on, never by looking at their decisions.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from supernet.chain.layout import Layouts, plain_layout
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

Part = tuple[nn.Parameter, tuple[slice, ...]]
"""A parameter and the index of its used elements; `()` is all of it."""


class Searchable(nn.Module):
    """A module with decisions: one set of weights that serves every architecture of `space`.

    `forward` is a function of its arguments: it keeps no memory of the last architecture and writes nothing but
    batch-norm buffers. For every architecture, `forward(state, arch)` and `materialize(arch, layout)(state)` agree bit
    for bit in eval mode on CPU.
    """

    space: SearchSpace

    def forward(self, state: Any, arch: Arch) -> Any:
        """The state after this step."""
        raise NotImplementedError

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """The layout of what `forward` returns for a state of `layout`; computed without touching a weight."""
        raise NotImplementedError

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """An ordinary module of one argument with its own copy of exactly the weights that `arch` uses."""
        raise NotImplementedError

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The parameters that `forward` uses under `arch`, with the index of the used elements (`()` for all)."""
        raise NotImplementedError

    def active_parameters(self, arch: Arch, layout: Layouts) -> Iterator[nn.Parameter]:
        """The parameters that receive a gradient under `arch`, each once."""
        seen: set[int] = set()
        for parameter, _ in self.active_parts(arch, layout):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def spread(self, arch: Arch) -> None:
        """Let every option begin as a copy of the one that `arch` chooses; in place.

        Raises:
            InputError: options of other form, or decisions that are not such options.
        """
        if self.space.choices:
            raise InputError(
                f"{self.space.choices[0].name!r} of {type(self).__name__} is no choice between layers of one form; "
                "leave out the lead"
            )

    def bind(self, arch: Arch) -> "Bound":
        """This module with the architecture filled in; the weights stay shared."""
        return Bound(self, arch)


class Bound(nn.Module):
    """A searchable at one architecture, for code that calls `module(x)`; shares the weights."""

    def __init__(self, searchable: Searchable, arch: Arch) -> None:
        super().__init__()
        self.searchable = searchable
        self.arch = searchable.space.canonical(arch)

    def forward(self, state: Any) -> Any:
        """The searchable's state after its last step."""
        return self.searchable(state, self.arch)


def step_layout(step: nn.Module, arch: Arch, layout: Layouts) -> Layouts:
    """The layout that any step, searchable or ordinary, hands on."""
    return step.out_layout(arch, layout) if isinstance(step, Searchable) else plain_layout(step, layout)


def materialize(step: nn.Module, arch: Arch, layout: Layouts) -> nn.Module:
    """An ordinary module from any step; an ordinary one is copied."""
    return step.materialize(arch, layout) if isinstance(step, Searchable) else copy.deepcopy(step)


def parameters_of(modules: Iterable[nn.Module]) -> Iterator[Part]:
    """Every parameter of the modules, whole, in the order of `parameters()`."""
    waiting = [*modules][::-1]
    while waiting:  # called in every step: a plain stack takes a quarter of the time of `parameters()`
        module = waiting.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter, ()
        waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
