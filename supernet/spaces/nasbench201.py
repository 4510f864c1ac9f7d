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

    Between stages stands a residual block that halves the resolution. All cells share one set of six decisions, not
    their weights. Index vectors list the edges by target, then source, as the benchmark's strings do: 0→1, 0→2, 1→2,
    0→3, 1→3, 2→3 (`cell.node1.from0` … `cell.node3.from2`). Options in index order: `none` (no edge), `skip_connect`,
    `nor_conv_1x1` and `nor_conv_3x3` (ReLU, convolution, batch norm), `avg_pool_3x3` (padding is not counted).
    15,625 architectures.

    Only edges on a path from a cell's input to its output exist; without one the cell gives zeros. Two figures of the
    benchmark differ for that reason where an architecture has other edges: its parameters and FLOPs count their
    weights too, and there a convolution behind a node without input adds its batch norm's shift, a constant.

    5,260 distinct networks (see `one_per_network`). The benchmark counts 6,466: it identifies one convolution
    read twice with two convolutions of one input, and distinguishes networks that differ in absent edges only.

    As in the released weight-sharing searches, the cells of the supernet phase carry batch norm without scale and
    shift.

    Args:
        input_size: pixels, a multiple of 4.
        channels: of the first stage; doubled at each further one.
        cells: per stage.
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
    """The architecture with the smallest index vector among those that describe the same network.

    Edges off every path are `none` in it. The others may have moved: skip connections make different graphs equal, and
    a sum has no order. Convolutions keep their number; which edge's shared weights serve them may change.
    """
    indices = tuple(OPTIONS.index(str(arch[name])) for name in NAMES)
    return dict(zip(NAMES, (OPTIONS[index] for index in _representatives()[indices]), strict=True))


@functools.cache
def _representatives() -> dict[tuple[int, ...], tuple[int, ...]]:
    """Index vector to the smallest one of the same network, for all 15,625; 0.2 s."""
    first: dict[str, tuple[int, ...]] = {}
    vectors = itertools.product(range(len(OPTIONS)), repeat=len(EDGES))  # in ascending order
    return {vector: first.setdefault(_signature(vector), vector) for vector in vectors}


def _signature(indices: tuple[int, ...]) -> str:
    """The output as an expression in which every convolution has a number; equal for equal networks only.

    Convolutions that apply one operation to equal inputs can be told apart only by who reads them, so all their
    numberings are tried and the first expression in alphabetical order is taken.
    """
    ops = {edge: OPTIONS[index] for edge, index in zip(EDGES, indices, strict=True) if index}
    graph = {edge: ops[edge] for edge in live(list(ops), NODES - 1)}
    output, terms = _expressions(graph, {})
    alike: dict[str, list[Edge]] = defaultdict(list)
    for edge, term in terms.items():
        if "conv" in graph[edge]:
            alike[term].append(edge)
    if all(len(group) == 1 for group in alike.values()):
        return output
    orders = itertools.product(*(itertools.permutations(group) for group in alike.values()))
    numberings = ({edge: str(n) for group in order for n, edge in enumerate(group)} for order in orders)
    return min(_expressions(graph, numbers)[0] for numbers in numberings)


def _expressions(graph: Mapping[Edge, str], numbers: Mapping[Edge, str]) -> tuple[str, dict[Edge, str]]:
    """The last node, and the operation on each edge that has one, written out down to the cell's input."""
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
