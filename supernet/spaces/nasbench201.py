"""NAS-Bench-201 (Dong & Yang, 2020): one cell of six edges with five operations, repeated 15 times, on small images."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping

from torch import nn

from supernet.blocks.plain import ConvBNAct, NormClassifier, PooledResidual, ReLUConvBN
from supernet.blocks.sum_cell import Edge, SumCell, decision, edges, live
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.space import Arch, Value
from supernet.spaces.create import Phase

OPTIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = edges(NODES)
NAMES = tuple(f"cell.{decision(edge)}" for edge in EDGES)


def nasbench201(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    channels: int = 16,
    cells: int = 5,
) -> Chain:
    """3×3 stem to 16 channels; three stages of five equal cells, 16, 32, 64 channels; batch norm, ReLU, linear layer.

    A residual block between stages halves the resolution. All cells share one set of six decisions, but not their
    weights. Index vectors list the edges by target, then source, as the benchmark's strings do: 0→1, 0→2, 1→2,
    0→3, 1→3, 2→3 (`cell.node1.from0` … `cell.node3.from2`). Options in index order: `none` (no edge), `skip_connect`,
    `nor_conv_1x1` and `nor_conv_3x3` (ReLU, convolution, batch norm), `avg_pool_3x3` (padding is not counted).
    15,625 architectures.

    Only edges on a path from the input of a cell to its output exist; a cell without such a path returns zeros. For
    architectures with other edges, the benchmark differs in two respects: its parameters and FLOPs count their weights
    too, and a convolution behind a node without input adds the shift of its batch norm, a constant.

    5,260 distinct networks (see `one_per_network`). The benchmark counts 6,466: it identifies one convolution
    read twice with two convolutions of one input, and distinguishes networks that differ in absent edges only.

    As in the released weight-sharing searches, the cells of the supernet phase have batch norm without scale and
    shift.

    Args:
        input_size: pixels, a multiple of 4.
        channels: channels of the first stage, doubled at each further one.
        cells: number per stage.
    """
    if input_size % 4:
        raise InputError(f"input_size={input_size} must be a multiple of 4, so that it can be halved twice")
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, channels, kernel=3, act=False))]
    for stage in range(3):
        width = channels * 2**stage
        if stage:
            steps.append((f"reduction{stage}", PooledResidual(width // 2, width)))
        steps += [("cell", SumCell(_operations(width, phase == "standalone"), nodes=NODES)) for _ in range(cells)]
    steps.append(("head", NormClassifier(width, num_classes)))
    shape = (in_channels, input_size, input_size)
    return Chain("nasbench201", steps, input_shape=shape, normal_form=one_per_network)


def _operations(width: int, affine: bool) -> dict[str, Callable[[], nn.Module] | None]:
    makers: tuple[Callable[[], nn.Module] | None, ...] = (
        None,
        nn.Identity,
        functools.partial(ReLUConvBN, width, width, kernel=1, affine=affine),
        functools.partial(ReLUConvBN, width, width, kernel=3, affine=affine),
        functools.partial(nn.AvgPool2d, 3, 1, 1, count_include_pad=False),
    )
    return dict(zip(OPTIONS, makers, strict=True))


def one_per_network(arch: Arch) -> dict[str, Value]:
    """Returns the architecture with the smallest index vector of all that describe the same network.

    Edges that lie on no path become `none`. The others may move, since skip connections make different graphs equal and
    sums have no order. The number of convolutions stays, but the edge whose shared weights they use may change.
    """
    indices = tuple(OPTIONS.index(str(arch[name])) for name in NAMES)
    return dict(zip(NAMES, (OPTIONS[index] for index in _representatives()[indices]), strict=True))


@functools.cache
def _representatives() -> dict[tuple[int, ...], tuple[int, ...]]:
    """Maps each of the 15,625 index vectors to the smallest one of the same network, in 0.2 s."""
    first: dict[str, tuple[int, ...]] = {}
    vectors = itertools.product(range(len(OPTIONS)), repeat=len(EDGES))  # in ascending order
    return {vector: first.setdefault(_signature(vector), vector) for vector in vectors}


def _signature(indices: tuple[int, ...]) -> str:
    """Returns the output as an expression with numbered convolutions, which is equal only for equal networks.

    Convolutions that apply the same operation to equal inputs differ only in their consumers, so all their numberings
    are tried and the first expression in alphabetical order is returned.
    """
    ops = {edge: OPTIONS[index] for edge, index in zip(EDGES, indices, strict=True) if index}
    graph = {edge: ops[edge] for edge in live(list(ops), NODES - 1)}
    output, terms = _expressions(graph, {})
    equal_terms: dict[str, list[Edge]] = defaultdict(list)
    for edge, term in terms.items():
        if "conv" in graph[edge]:
            equal_terms[term].append(edge)
    if all(len(group) == 1 for group in equal_terms.values()):
        return output
    orders = itertools.product(*(itertools.permutations(group) for group in equal_terms.values()))
    numberings = ({edge: str(n) for group in order for n, edge in enumerate(group)} for order in orders)
    return min(_expressions(graph, numbers)[0] for numbers in numberings)


def _expressions(graph: Mapping[Edge, str], numbers: Mapping[Edge, str]) -> tuple[str, dict[Edge, str]]:
    """Returns the last node and the operation on each edge, as expressions of the input of the cell."""
    nodes: dict[int, list[str]] = {0: ["x"]}
    terms: dict[Edge, str] = {}
    for (source, target), op in graph.items():
        if op == "skip_connect":
            added = nodes[source]
        else:
            added = [f"{op}{numbers.get((source, target), '')}({'+'.join(nodes[source])})"]
            terms[source, target] = added[0]
        nodes[target] = sorted(nodes.get(target, []) + added)
    return "+".join(nodes.get(NODES - 1, [])), terms
