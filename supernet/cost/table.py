"""The costs of a supernet's architectures, exactly and fast.

The reference is a trace (`count`) of the network with the layers of the standalone phase. `CostTable` gives the same
numbers as a sum over the chain's steps. Each step is counted once per (step, its decisions, its input), on the meta
device.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from supernet.chain import Chain, Layouts, Searchable, materialize, step_layout
from supernet.checked import Count, Rule, checked_arguments, shown
from supernet.cost.count import COSTS, meta_copy, trace
from supernet.errors import InputError, nearest
from supernet.space import Arch, Value

MOST_OPTIONS = 4096  # options of a step; beyond it extremes are not enumerated
MOST_EDGES = 4 * MOST_OPTIONS  # options of a step times the layouts of its input, such as resolutions and widths
MOST_LISTED = 20_000  # architectures of a space whose costs are listed one by one: 6 s at 0.3 ms each
MOST_ENTRIES = 20_000  # of about 5 KB, so 100 MB; a new architecture of NASNet cells adds six


class Entry(NamedTuple):
    """A step's costs, and the state and layout that it passes on."""

    cost: dict[str, Any]
    state: Any  # meta tensors
    layout: Layouts


State = tuple[Layouts, Any]
"""What the costs of later steps depend on: the layout that a step passes on and the shapes of its tensors."""
Edge = tuple[Arch, float, State]
"""One option of a step: its decisions, its cost, and the state it leads to."""


def _state(entry: Entry) -> State:
    return entry.layout, shapes(entry.state)


Shape = Annotated[
    Sequence[Count] | None, Rule("channels, height and width in pixels", lambda shape: shape is None or len(shape) == 3)
]
"""The shape of one input; None for the supernet's own."""


class CostTable:
    """The costs of the networks that a search hands over, by architecture.

    `CostTable(create_supernet(space))(arch)` equals `count(create_network(space, arch=arch))`. A supernet may have
    fewer parameters than that, such as batch norm without scale and shift (see `Chain.standalone`).

    A subclass adds a cost by extending `costs` and overriding `step`.

    Args:
        supernet: only its shapes are kept.
        input_shape: (C, H, W); the supernet's own by default.

    Attributes:
        costs: the names of the costs.
        start: the state before the first step, at no cost.
    """

    costs: tuple[str, ...] = COSTS

    @checked_arguments
    def __init__(self, supernet: Chain, input_shape: Shape = None) -> None:
        self.space = supernet.space
        self.input_shape = tuple(input_shape or supernet.input_shape)
        if self.input_shape[0] != supernet.input_shape[0]:
            channels = supernet.input_shape[0]
            raise InputError(f"input_shape={self.input_shape} should have {channels} channels, as the supernet reads")
        self._chain = standalone_chain(supernet).eval()
        self.start = Entry(
            dict.fromkeys(self.costs, 0), torch.empty(1, *self.input_shape, device="meta"), self._chain.input_layout
        )
        self._entries: OrderedDict[tuple[Any, ...], Entry] = OrderedDict()  # the least recently used first

    def __call__(self, arch: Arch) -> dict[str, Any]:
        """Returns every cost of one architecture by name, for one input.

        Raises:
            InputError: `arch` is not an architecture.
        """
        if not isinstance(arch, Arch):
            raise InputError(f"{shown(arch)} is not an architecture; space.canonical(values) makes one of a dictionary")
        entry = self.start
        total = dict(entry.cost)
        for index, name in enumerate(self._chain.step_names):
            try:
                entry = self.step(index, arch.sub(name), entry)
            except LookupError:
                self.space.canonical(arch)  # names a decision that is missing or unknown
                raise
            for cost in self.costs:
                total[cost] += entry.cost[cost]
        return total

    def step(self, index: int, arch: Arch, before: Entry) -> Entry:
        """Returns the entry of one step.

        Args:
            index: position of the step in the chain.
            arch: the decisions of this step.
            before: the entry of the preceding step, or `start`.
        """
        step, last = self._chain.step_module(index), index == len(self._chain.step_names) - 1
        return self._counted((index,), step, arch, before, last=last)

    def _counted(self, path: tuple[int, ...], step: nn.Module, arch: Arch, before: Entry, *, last: bool) -> Entry:
        """Returns the entry of a step, or of a step inside it; `path` numbers it from the chain inwards."""
        key = (path, arch, _state(before))
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry
        inner = step.inner_steps(arch) if isinstance(step, Searchable) else None
        if inner is None:
            cost, state = trace(materialize(step, arch, before.layout).eval(), before.state)
            entry = Entry(cost, state, None if last else step_layout(step, arch, before.layout))
        else:
            cost, entry = dict.fromkeys(COSTS, 0), before
            for number, (part, sub) in enumerate(inner):
                entry = self._counted((*path, number), part, sub, entry, last=last and number == len(inner) - 1)
                cost = {name: value + entry.cost[name] for name, value in cost.items()}
            entry = Entry(cost, entry.state, entry.layout)
        self._entries[key] = entry
        if len(self._entries) > MOST_ENTRIES:
            self._entries.popitem(last=False)
        return entry

    def resolution(self, cost: str) -> float:
        """Returns the number of which all values of a cost are multiples."""
        return 1

    @cached_property
    def _graph(self) -> list[dict[State, list[tuple[Arch, Entry]]]] | None:
        """Every option of each step, per state that can reach the step; None if they cannot be enumerated."""
        if not self._has_few_edges():
            return None
        reached, graph = {_state(self.start): self.start}, []
        for index, step in enumerate(self._chain.step_modules):
            archs = list(step.space.enumerate()) if isinstance(step, Searchable) else [Arch()]
            options = {
                state: [(arch, self.step(index, arch, before)) for arch in archs] for state, before in reached.items()
            }
            reached = {_state(entry): entry for edges in options.values() for _, entry in edges}
            graph.append(options)
        return graph

    def _has_few_edges(self) -> bool:
        """Returns whether steps have decisions of their own, and no step has too many options or edges.

        Every width of a step is another input of the next one, so few options a step may still have many edges.
        """
        names, steps = self._chain.step_names, self._chain.step_modules
        sizes = [step.space.size() if isinstance(step, Searchable) else 1 for step in steps]
        if len(set(names)) < len(names) or any(size > MOST_OPTIONS for size in sizes):
            return False
        layouts = {self.start.layout}
        for step, size in zip(steps, sizes, strict=True):
            if size * len(layouts) > MOST_EDGES:
                return False
            archs = list(step.space.enumerate()) if isinstance(step, Searchable) else [Arch()]
            layouts = {step_layout(step, arch, layout) for arch in archs for layout in layouts}
        return True

    def edges(self, cost: str) -> list[dict[State, list[Edge]]] | None:
        """Returns the options of each step as edges between states, per state that can reach the step.

        Returns:
            One mapping per step, from state to edges `(decisions of the step, cost, state after it)`; None where steps
            share decisions, or a step has more than `MOST_OPTIONS` options or `MOST_EDGES` edges.
        """
        if self._graph is None:
            return None
        return [
            {state: [(arch, e.cost[cost], _state(e)) for arch, e in options] for state, options in step.items()}
            for step in self._graph
        ]

    @cached_property
    def listing(self) -> list[tuple[Arch, dict[str, Any]]] | None:
        """Every architecture with its costs; None for a space of more than `MOST_LISTED`."""
        return [(arch, self(arch)) for arch in self.space.enumerate()] if self.space.size() <= MOST_LISTED else None

    def by_indices(self, cost: str) -> Callable[[Sequence[int]], float]:
        """Returns a function from an architecture's indices to its cost.

        The function takes a lookup per step (microseconds) where no step's cost depends on earlier decisions and no
        choice on another. Otherwise it evaluates the table.
        """
        space, steps = self.space, self.edges(cost)
        nested = any(choice.when is not None for choice in space.choices)
        if steps is None or nested or any(len(states) > 1 for states in steps):
            return lambda indices: self(space.from_indices(indices))[cost]
        place = {choice.name: i for i, choice in enumerate(space.choices)}
        parts: list[tuple[tuple[int, ...], dict[tuple[int, ...], float]]] = []
        for number, states in enumerate(steps):
            known: dict[tuple[int, ...], float] = {}
            at: tuple[int, ...] = ()
            for options in states.values():
                for arch, spent, _ in options:
                    named = self.named(number, arch)
                    at = tuple(place[name] for name in named)
                    known[tuple(space[name].index(value) for name, value in named.items())] = spent
            parts.append((at, known))
        return lambda indices: sum(known[tuple([indices[i] for i in at])] for at, known in parts)

    def named(self, step: int, arch: Arch) -> dict[str, Value]:
        """Returns the decisions of a step under their names in the whole space."""
        prefix = self._chain.step_names[step]
        return {f"{prefix}.{name}": value for name, value in arch.items()}

    def extremes(self, cost: str) -> tuple[float, float] | None:
        """Returns the exact smallest and largest `cost` of any architecture, or None where `edges` returns None."""
        if cost not in self.costs:
            raise InputError(f"there is no cost {cost!r}; {nearest(cost, self.costs)}")
        steps = self.edges(cost)
        if steps is None:
            return None
        bounds: dict[State, tuple[float, float]] = {_state(self.start): (0, 0)}
        for edges in steps:
            sums: dict[State, list[tuple[float, float]]] = {}
            for state, options in edges.items():
                low, high = bounds[state]
                for _, spent, after in options:
                    sums.setdefault(after, []).append((low + spent, high + spent))
            bounds = {
                state: (min(low for low, _ in pairs), max(high for _, high in pairs)) for state, pairs in sums.items()
            }
        return min(low for low, _ in bounds.values()), max(high for _, high in bounds.values())


def amount(cost: str, value: float) -> str:
    """Formats a cost for a message, with its unit if it has one."""
    return f"{value:,.4g} ms" if cost.endswith("_ms") else f"{value:,.0f}"


def standalone_chain(supernet: Chain) -> Chain:
    """Returns the chain on the meta device whose subnets are the networks that are trained from scratch."""
    if supernet.standalone is None:
        chain: Chain = meta_copy(supernet)
        return chain
    with torch.device("meta"):
        return supernet.standalone()


def shapes(state: Any) -> Any:
    """Returns the shapes of a state's tensors, in the nesting of the state."""
    if isinstance(state, Tensor):
        return tuple(state.shape)
    if isinstance(state, Mapping):
        return tuple((name, shapes(part)) for name, part in state.items())
    if isinstance(state, tuple | list):
        return tuple(map(shapes, state))
    return tree_map(lambda leaf: leaf, state)
