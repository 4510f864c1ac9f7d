"""Cells as graphs: a decision per edge, nodes that sum what reaches them (NAS-Bench-201)."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from supernet.blocks.plain import GraphCell, sum_nodes
from supernet.chain import Layout, Layouts, Part, Searchable, parameters_of, weightless_among
from supernet.chain.copying import copy_module
from supernet.space import Arch, Choice, SearchSpace, Value

Edge = tuple[int, int]
"""`(source, target)` of an edge."""


def edges(nodes: int) -> list[Edge]:
    """Returns every pair of an earlier and a later node, sorted by target, then source."""
    return [(source, target) for target in range(1, nodes) for source in range(target)]


def decision(edge: Edge) -> str:
    """Returns the name of the decision on an edge, such as `node2.from0`."""
    return f"node{edge[1]}.from{edge[0]}"


def live(present: list[Edge], last: int) -> list[Edge]:
    """Returns the edges on a path from node 0 to node `last`; the others have no input or no consumer.

    Args:
        present: sorted by target, then source.
    """
    reached, leading = {0}, {last}
    for source, target in present:
        if source in reached:
            reached.add(target)
    for source, target in reversed(present):
        if target in leading:
            leading.add(source)
    return [edge for edge in present if edge[0] in reached and edge[1] in leading]


class SumCell(Searchable):
    """A complete graph of `nodes` nodes: node 0 is the input, every other the sum of its edges, the last the output.

    Every edge chooses one of `options` and has its own weights for each. Only edges on a path from the input to the
    output are run, trained and materialised; a cell without such a path returns zeros.

    Args:
        options: name to a function that builds the operation, in the order of index vectors; None stands for no edge.
            All operations keep the shape.
    """

    def __init__(self, options: Mapping[str, Callable[[], nn.Module] | None], *, nodes: int = 4) -> None:
        super().__init__()
        self.last = nodes - 1
        self.edges = edges(nodes)
        self.absent = frozenset(name for name, make in options.items() if make is None)
        self.ops = nn.ModuleDict(
            {_key(edge, name): make() for edge in self.edges for name, make in options.items() if make is not None}
        )
        self.space = SearchSpace("sum-cell", [Choice(decision(edge), tuple(options)) for edge in self.edges])

    def _live(self, arch: Arch) -> list[tuple[int, int, nn.Module]]:
        """Returns `(source, target, module)` of the edges on a path."""
        chosen = {edge: str(arch[decision(edge)]) for edge in self.edges}
        present = [edge for edge, name in chosen.items() if name not in self.absent]
        return [(*edge, self.ops[_key(edge, chosen[edge])]) for edge in live(present, self.last)]

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return sum_nodes(state, self._live(arch), self.last)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout of the input, without ids."""
        assert isinstance(layout, Layout)
        return Layout(layout.channels, layout.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `GraphCell` of copies of the operations on live edges."""
        edges = self._live(arch)
        ops = nn.ModuleList(copy_module(op) for _, _, op in edges)
        return GraphCell(ops, tuple((source, target) for source, target, _ in edges), last=self.last)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields all parameters of the operations on live edges."""
        return parameters_of(op for _, _, op in self._live(arch))

    def weightless_options(self) -> dict[str, frozenset[Value]]:
        """Returns the absent edge and the operations without parameters."""
        return {
            decision(edge): weightless_among(
                {str(name): [self.ops[_key(edge, str(name))] if name not in self.absent else None] for name in options}
            )
            for edge, options in ((edge, self.space.choices[i].options) for i, edge in enumerate(self.edges))
        }


def _key(edge: Edge, name: str) -> str:
    return f"{edge[0]}-{edge[1]}-{name}"
