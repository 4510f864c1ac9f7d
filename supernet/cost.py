"""What an architecture costs: MACs, parameters and activations, exactly and fast.

Truth is a trace of the standalone network (`count`). `CostTable` gives the same figures as a sum over the chain's
steps, each counted once per (step, its decisions, its input) on the meta device.

MACs are the multiply-accumulates of convolutions and linear layers for one input; bias, batch norm, pooling and
activations count nothing. Parameters are the trainable ones, batch-norm statistics excluded. Activations are the
output elements of convolutions and linear layers.
"""

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from supernet.errors import InputError, nearest
from supernet.searchable import Chain, Layouts, Searchable, materialize, step_layout
from supernet.space import Arch, Value

if TYPE_CHECKING:
    from supernet.window import CostWindow

COSTS = ("macs", "params", "activations")
SAME_SHAPE = {"native_batch_norm", "relu", "relu_", "hardtanh", "hardtanh_"}  # names of operators; none is counted
MOST_OPTIONS = 4096  # per step; beyond it the extremes of a space are not enumerated
TRIES = 10_000  # draws within one limit before the others are taken to leave nothing
MOST_LISTED = 20_000  # architectures of a space whose costs are listed one by one: 6 s at 0.3 ms each


class _Counter(TorchDispatchMode):
    """Adds up the convolutions and matrix products that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SAME_SHAPE:  # torch takes 2 ms to infer the shape of a batch norm
            return (args[0], *args[3:5]) if name == "native_batch_norm" else args[0]
        out = func(*args, **(kwargs or {}))
        if name == "convolution":
            weight, transposed = args[1], args[6]
            moved = args[0] if transposed else out
            self._add(moved.numel() * weight[0].numel(), out)
        elif name in ("mm", "addmm"):
            self._add(out.numel() * args[-1].shape[0], out)
        return out

    def _add(self, macs: int, out: Tensor) -> None:
        self.macs += macs
        self.activations += out.numel()


def meta_copy(module: nn.Module) -> Any:
    """The module on the meta device: shapes without storage, whatever its size."""
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _run(module: nn.Module, state: Any) -> tuple[dict[str, int], Any]:
    with torch.no_grad(), _Counter() as counter:
        out = module(state)
    params = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return {"macs": counter.macs, "params": params, "activations": counter.activations}, out


def count(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Trace an ordinary network.

    Args:
        module: of one tensor argument. It is not run itself, only its shapes are.
        input_shape: (C, H, W) of one input.

    Returns:
        `macs`, `params`, `activations` for a batch of one.
    """
    return _run(meta_copy(module).eval(), torch.empty(1, *input_shape, device="meta"))[0]


class Entry(NamedTuple):
    """A step's costs and what it hands on."""

    cost: dict[str, int]
    state: Any  # meta tensors
    layout: Layouts


State = tuple[Layouts, Any]
"""What a step hands on, as far as costs can tell: its layout and the shapes of its tensors."""
Edge = tuple[Arch, int, State]
"""One option of a step: its decisions, its cost, and the state it leads to."""


def _state(entry: Entry) -> State:
    return entry.layout, shapes(entry.state)


class CostTable:
    """The costs of a supernet's architectures, `CostTable(supernet)(arch)`; equal to `count(supernet.subnet(arch))`.

    Args:
        supernet: only its shapes are kept.
        input_shape: (C, H, W); the supernet's own by default.

    Attributes:
        costs: their names.
    """

    costs: tuple[str, ...] = COSTS

    def __init__(self, supernet: Chain, input_shape: Sequence[int] | None = None) -> None:
        self.space = supernet.space
        self.input_shape = tuple(input_shape or supernet.input_shape)
        self._chain: Chain = meta_copy(supernet).eval()
        self._start = Entry(
            dict.fromkeys(self.costs, 0), torch.empty(1, *self.input_shape, device="meta"), supernet.input_layout
        )
        self._entries: dict[tuple[Any, ...], Entry] = {}

    def __call__(self, arch: Arch) -> dict[str, int]:
        """`macs`, `params`, `activations` of one architecture."""
        entry = self._start
        total = dict(entry.cost)
        for index, name in enumerate(self._chain.step_names):
            entry = self._step(index, arch.sub(name), entry)
            for cost in self.costs:
                total[cost] += entry.cost[cost]
        return total

    def _step(self, index: int, arch: Arch, before: Entry) -> Entry:
        key = (index, arch, _state(before))
        entry = self._entries.get(key)
        if entry is None:
            step = self._chain.blocks[index]
            cost, state = _run(materialize(step, arch, before.layout).eval(), before.state)
            last = index == len(self._chain.blocks) - 1
            entry = Entry(cost, state, None if last else step_layout(step, arch, before.layout))
            self._entries[key] = entry
        return entry

    @cached_property
    def _graph(self) -> list[dict[State, list[tuple[Arch, Entry]]]] | None:
        """Per step and state that can reach it, every option of the step; None if that cannot be enumerated."""
        names = self._chain.step_names
        sizes = [step.space.size() for step in self._chain.blocks if isinstance(step, Searchable)]
        if len(set(names)) < len(names) or any(size > MOST_OPTIONS for size in sizes):
            return None
        reached, graph = {_state(self._start): self._start}, []
        for index, step in enumerate(self._chain.blocks):
            archs = list(step.space.enumerate()) if isinstance(step, Searchable) else [Arch()]
            options = {
                state: [(arch, self._step(index, arch, before)) for arch in archs] for state, before in reached.items()
            }
            reached = {_state(entry): entry for edges in options.values() for _, entry in edges}
            graph.append(options)
        return graph

    def edges(self, cost: str) -> list[dict[State, list[Edge]]] | None:
        """Per step and state that can reach it, per option: `(decisions of the step, cost, state after it)`.

        Returns:
            None where steps share decisions or have more than `MOST_OPTIONS` options.
        """
        if self._graph is None:
            return None
        return [
            {state: [(arch, e.cost[cost], _state(e)) for arch, e in options] for state, options in step.items()}
            for step in self._graph
        ]

    @cached_property
    def listing(self) -> list[tuple[Arch, dict[str, int]]] | None:
        """Every architecture with its costs; None for a space of more than `MOST_LISTED`."""
        return [(arch, self(arch)) for arch in self.space.enumerate()] if self.space.size() <= MOST_LISTED else None

    def by_indices(self, cost: str) -> Callable[[Sequence[int]], int]:
        """The cost of the architecture with these indices, as a function.

        A lookup per step (microseconds) where no step's cost depends on earlier decisions and no choice on another, and
        the whole table's way otherwise.
        """
        space, steps = self.space, self.edges(cost)
        nested = any(choice.when is not None for choice in space.choices)
        if steps is None or nested or any(len(states) > 1 for states in steps):
            return lambda indices: self(space.from_indices(indices))[cost]
        place = {choice.name: i for i, choice in enumerate(space.choices)}
        parts: list[tuple[tuple[int, ...], dict[tuple[int, ...], int]]] = []
        for number, states in enumerate(steps):
            known: dict[tuple[int, ...], int] = {}
            at: tuple[int, ...] = ()
            for options in states.values():
                for arch, spent, _ in options:
                    named = self.named(number, arch)
                    at = tuple(place[name] for name in named)
                    known[tuple(space[name].index(value) for name, value in named.items())] = spent
            parts.append((at, known))
        return lambda indices: sum(known[tuple([indices[i] for i in at])] for at, known in parts)

    def named(self, step: int, arch: Arch) -> dict[str, Value]:
        """The decisions of a step under their names in the whole space."""
        prefix = self._chain.step_names[step]
        return {f"{prefix}.{name}": value for name, value in arch.items()}

    def extremes(self, cost: str) -> tuple[int, int] | None:
        """The smallest and largest `cost` of any architecture, exactly; None where `edges` has no answer."""
        steps = self.edges(cost)
        if steps is None:
            return None
        bounds: dict[State, tuple[int, int]] = {_state(self._start): (0, 0)}
        for edges in steps:
            found: dict[State, list[tuple[int, int]]] = {}
            for state, options in edges.items():
                for _, spent, after in options:
                    low, high = bounds[state]
                    found.setdefault(after, []).append((low + spent, high + spent))
            bounds = {at: (min(low for low, _ in w), max(high for _, high in w)) for at, w in found.items()}
        return min(low for low, _ in bounds.values()), max(high for _, high in bounds.values())


def shapes(state: Any) -> Any:
    """The shapes of a state's tensors, nested as it is."""
    if isinstance(state, Tensor):
        return tuple(state.shape)
    if isinstance(state, Mapping):
        return tuple((name, shapes(part)) for name, part in state.items())
    if isinstance(state, tuple | list):
        return tuple(map(shapes, state))
    return tree_map(lambda leaf: leaf, state)


class Feasible:
    """Whether an architecture is within limits: the one route for constraints in a search.

    Args:
        cost: gives the costs of an architecture.
        limits: cost name to the largest allowed value, e.g. `{"macs": 3e8}`.

    Raises:
        InputError: an unknown cost, or a limit below the cheapest architecture (whose cost is named).
    """

    def __init__(self, cost: CostTable, limits: Mapping[str, float]) -> None:
        self.cost = cost
        self.limits = dict(limits)
        for name, limit in limits.items():
            if name not in cost.costs:
                raise InputError(f"there is no cost {name!r}; {nearest(name, cost.costs)}")
            extremes = cost.extremes(name)
            if extremes is not None and limit < extremes[0]:
                raise InputError(
                    f"no architecture of {cost.space.name!r} has {name} <= {limit:,.0f}; "
                    f"the cheapest has {extremes[0]:,} and the dearest {extremes[1]:,}"
                )

    def __call__(self, arch: Arch) -> bool:
        """True if every limit holds."""
        if not self.limits:
            return True
        return self._keeps(self.cost(arch))

    def sample(self, rng: Random) -> Arch:
        """One architecture, each of those within the limits equally likely.

        With one limit no draw is rejected. With more, draws within the one that the fewest architectures keep are
        rejected by the others. A space whose costs can be neither counted nor listed (see `CostWindow`) is drawn from
        by its own `sample` and rejected by all.

        Raises:
            InputError: nothing fits, or none of `TRIES` draws does.
        """
        tightest = min(self._windows, key=lambda window: window.count, default=None)
        for _ in range(TRIES):
            arch = self.cost.space.sample(rng) if tightest is None else tightest.sample(rng)
            if self(arch):
                return arch
        drawn = "" if tightest is None else f" with {tightest.cost} <= {tightest.high:,.0f}"
        raise InputError(f"none of {TRIES:,} architectures{drawn} is within all limits; {self.explain()}")

    def count(self) -> int | None:
        """The exact number of architectures within the limits.

        Returns:
            None where two or more limits, or costs that cannot be counted, meet a space too large to be listed.
        """
        if not self.limits:
            return self.cost.space.size()
        if len(self.limits) == 1 and self.cost.edges(next(iter(self.limits))) is not None:
            return self._windows[0].count
        listing = self.cost.listing
        return None if listing is None else sum(self._keeps(costs) for _, costs in listing)

    def explain(self) -> str:
        """The limits, each cost's range over the space, and for a single limit how many architectures keep it."""
        parts = []
        for name, limit in self.limits.items():
            extremes = self.cost.extremes(name)
            span = "" if extremes is None else f" (the space spans {extremes[0]:,} to {extremes[1]:,})"
            parts.append(f"{name} <= {limit:,.0f}{span}")
        count = self.count() if len(self.limits) == 1 else None
        fit = f"; {_short(count)} of {_short(self.cost.space.size())} architectures fit" if count else ""
        return "the limits are " + ", ".join(parts) + fit

    @cached_property
    def _windows(self) -> "list[CostWindow]":
        """The architectures within each limit that can be counted."""
        # By name, as the package's own lazy exports: the windows are built on this module.
        window = importlib.import_module("supernet.window").CostWindow
        countable = [name for name in self.limits if self.cost.edges(name) is not None or self.cost.listing is not None]
        return [window(self.cost, name, high=self.limits[name]) for name in countable]

    def _keeps(self, costs: Mapping[str, float]) -> bool:
        return all(costs[name] <= limit for name, limit in self.limits.items())


def _short(number: int) -> str:
    """`6,561` or `1.1e12`."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.1e}".replace("e+", "e")
