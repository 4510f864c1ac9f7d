"""The weight-sharing contract: `Searchable` modules that take the architecture as an argument, folded by a `Chain`.

A step sees its predecessors only through the `Layout` of its input, never through their decisions.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from supernet.chain.copying import copy_module
from supernet.chain.layout import Layouts, plain_layout
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace, Value

Part = tuple[nn.Parameter, tuple[slice, ...]]
"""A parameter and the index of the elements in use; `()` stands for all of them."""


class Searchable(nn.Module):
    """A module with decisions: one set of weights that serves every architecture of `space`.

    `forward` is a function of its arguments: it does not remember the last architecture and writes nothing but
    batch-norm buffers. For every architecture, `forward(state, arch)` and `materialize(arch, layout)(state)` agree bit
    for bit in eval mode on the CPU.

    Attributes:
        space: the decisions.
        timed: whether the module belongs to the network whose latency is measured; a preparation of its input does not.
    """

    space: SearchSpace
    timed: bool = True

    def forward(self, state: Any, arch: Arch) -> Any:
        """Returns the state after this step."""
        raise NotImplementedError

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout of the output of `forward` for a state of `layout`, without reading a weight."""
        raise NotImplementedError

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns an ordinary module of one argument with its own copy of exactly the weights that `arch` uses."""
        raise NotImplementedError

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the parameters that `forward` uses under `arch`, with the index of the used elements (see `Part`)."""
        raise NotImplementedError

    def active_parameters(self, arch: Arch, layout: Layouts) -> Iterator[nn.Parameter]:
        """Yields the parameters that receive a gradient under `arch`, each once."""
        seen: set[int] = set()
        for parameter, _ in self.active_parts(arch, layout):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def inner_steps(self, arch: Arch) -> list[tuple[nn.Module, Arch]] | None:
        """Returns the steps that this one runs one after another and nothing else, each with its decisions.

        Costs are then counted per inner step. None if the module does more than that.
        """
        return None

    def copy_options(self, arch: Arch) -> None:
        """Copies the weights of the option that `arch` chooses into all other options, in place.

        Raises:
            InputError: the options differ too much, or the decisions are not between options.
        """
        if self.space.choices:
            raise InputError(
                f"{self.space.choices[0].name!r} of {type(self).__name__} does not choose between similar layers, so "
                "none can start as a copy of another; leave out the lead"
            )

    def weightless_options(self) -> dict[str, frozenset[Value]]:
        """Returns the options that have nothing to train, such as an identity or a pooling, by choice.

        Only for choices with other options beside them; none unless a class says so.
        """
        return {}

    def bind(self, arch: Arch) -> "Bound":
        """Returns this module with the architecture filled in; the weights stay shared."""
        return Bound(self, arch)


class Bound(nn.Module):
    """A searchable at one architecture, for code that calls `module(x)`; it shares the weights."""

    def __init__(self, searchable: Searchable, arch: Arch) -> None:
        super().__init__()
        self.searchable = searchable
        self.arch = searchable.space.canonical(arch)

    def forward(self, state: Any) -> Any:
        """Returns the output of the searchable."""
        return self.searchable(state, self.arch)


def step_layout(step: nn.Module, arch: Arch, layout: Layouts) -> Layouts:
    """Returns the layout after any step, searchable or ordinary."""
    return step.out_layout(arch, layout) if isinstance(step, Searchable) else plain_layout(step, layout)


def materialize(step: nn.Module, arch: Arch, layout: Layouts) -> nn.Module:
    """Returns an ordinary module from any step; an ordinary one is copied."""
    return step.materialize(arch, layout) if isinstance(step, Searchable) else copy_module(step)


def parameters_of(modules: Iterable[nn.Module]) -> Iterator[Part]:
    """Yields every parameter of the modules as a whole part, in the order of `parameters()`."""
    stack = [*modules][::-1]
    while stack:  # called in every training step: a plain stack takes a quarter of the time of `parameters()`
        module = stack.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter, ()
        stack.extend(child for child in reversed(module._modules.values()) if child is not None)


def weightless_among(options: Mapping[str, Iterable[nn.Module | None]]) -> frozenset[Value]:
    """Returns the options one of whose modules has no parameters, or is None; nothing if that holds for all options.

    Args:
        options: name to the modules that the option stands for in different places.
    """
    bare = {name for name, modules in options.items() if any(m is None or _is_bare(m) for m in modules)}
    return frozenset(bare) if len(bare) < len(options) else frozenset()


def _is_bare(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None
