"""Searchable cells with loose ends and their consumers; the number of channels between cells depends on the cell.

A loose end is a hidden state that no block of its cell reads; the output of a cell is the concatenation of its loose
ends, as in ENAS and NASNet. A consumer has one parameter per state that a cell may output and concatenates those of the
states that are present (`Layout.ids`), which gives exactly the weight of its materialised copy.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.cells.graph import CONCAT, CellGraph, graph_of
from supernet.blocks.cells.ops import IDENTITY
from supernet.blocks.cells.plain import (
    AuxiliaryHead,
    BlockCell,
    CellClassifier,
    ConvNorm,
    DropPath,
    FactorizedReduction,
    Operand,
    Output,
    halves,
    run_blocks,
    split_state,
)
from supernet.chain import Hidden, Layout, Layouts, Part, Searchable, parameters_of, weightless_among
from supernet.chain.copying import copy_module
from supernet.space import Arch, SearchSpace, Value

MakeOp = Callable[[str, int, int], nn.Module]
"""Builds an operation from (name, in_channels, stride)."""
_NOTHING = Arch()


class Source(NamedTuple):
    """The input that a consumer must support.

    Attributes:
        width: channels of one state.
        stride: input pixels per pixel.
        ids: the states that may be present; none for a tensor that is always the same.
    """

    width: int
    stride: int
    ids: tuple[int, ...] = ()


def hidden(state: Any) -> Hidden:
    """Returns a tensor with the ids of its states; a plain tensor has none."""
    return state if isinstance(state, Hidden) else Hidden(state, ())


class StateWeights(nn.Module):
    """The weights of a 1×1 convolution or linear layer without bias, one layer per state that may be present."""

    def __init__(self, source: Source, out: int, *, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.layers = nn.ModuleDict()
        for state in source.ids or (0,):
            layer = nn.Linear(source.width, out, bias=False) if linear else nn.Conv2d(source.width, out, 1, bias=False)
            self.layers[str(state)] = layer

    def _chosen_weights(self, ids: Sequence[int]) -> list[Tensor]:
        return [self.layers[str(i)].get_parameter("weight") for i in ids or (0,)]

    def weight(self, ids: Sequence[int]) -> Tensor:
        """Returns the weight for these states, (out, channels of the states, …)."""
        weights = self._chosen_weights(ids)
        return weights[0] if len(weights) == 1 else torch.cat(weights, dim=1)

    def copied(self, ids: Sequence[int]) -> nn.Parameter:
        """Returns a copy of the weight as a new parameter."""
        return nn.Parameter(self.weight(ids).detach().clone())

    def parts(self, ids: Sequence[int]) -> Iterator[Part]:
        """Yields the parameters of these states."""
        return ((self.layers[str(i)].get_parameter("weight"), ()) for i in ids or (0,))


class LooseConv(Searchable):
    """ReLU, 1×1 convolution over the states that are present, batch norm; to `out` channels.

    Args:
        passing: whether an input that already has `out` channels is returned unchanged.
    """

    def __init__(self, source: Source, out: int, *, passing: bool = False, **norm: Any) -> None:
        super().__init__()
        self.out, self.passing, self.norm = out, passing, norm
        self.space = SearchSpace("loose-conv")
        if not self._passes(source.width if not source.ids else 0):
            self.state_weights = StateWeights(source, out)
            self.bn = nn.BatchNorm2d(out, **norm)

    def _passes(self, channels: int) -> bool:
        return self.passing and channels == self.out

    def forward(self, state: Any, arch: Arch = _NOTHING) -> Tensor:
        """(N, channels of the states, H, W) to (N, out, H, W)."""
        tensor, ids = hidden(state)
        if self._passes(tensor.shape[1]):
            return tensor
        out: Tensor = self.bn(functional.conv2d(functional.relu(tensor), self.state_weights.weight(ids)))
        return out

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the same layout for every input."""
        assert isinstance(layout, Layout)
        return Layout(self.out, layout.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `ConvNorm` or an identity."""
        assert isinstance(layout, Layout)
        if self._passes(layout.channels):
            return nn.Identity()
        with torch.device("meta"):
            layer = ConvNorm(layout.channels, self.out, **self.norm)
        layer.conv.weight, layer.bn = self.state_weights.copied(layout.ids), copy_module(self.bn)
        return layer

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the weights of the states that are present, and those of the batch norm."""
        assert isinstance(layout, Layout)
        if not self._passes(layout.channels):
            yield from self.state_weights.parts(layout.ids)
            yield from parameters_of([self.bn])


class LooseReduction(Searchable):
    """A ReLU and a `FactorizedReduction` over the states that are present; to `out` channels at half the size."""

    def __init__(self, source: Source, out: int, **norm: Any) -> None:
        super().__init__()
        self.out, self.norm = out, norm
        self.space = SearchSpace("loose-reduction")
        self.even_weights = StateWeights(source, out // 2)
        self.odd_weights = StateWeights(source, out - out // 2)
        self.bn = nn.BatchNorm2d(out, **norm)

    def forward(self, state: Any, arch: Arch = _NOTHING) -> Tensor:
        """(N, channels of the states, H, W) to (N, out, ceil(H / 2), ceil(W / 2))."""
        tensor, ids = hidden(state)
        even, odd = halves(functional.relu(tensor))
        first = functional.conv2d(even, self.even_weights.weight(ids))
        second = functional.conv2d(odd, self.odd_weights.weight(ids))
        out: Tensor = self.bn(torch.cat([first, second], dim=1))
        return out

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the same layout for every input."""
        assert isinstance(layout, Layout)
        return Layout(self.out, layout.stride * 2)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `FactorizedReduction`."""
        assert isinstance(layout, Layout)
        with torch.device("meta"):
            reduction = FactorizedReduction(layout.channels, self.out, **self.norm)
        reduction.conv1.weight, reduction.conv2.weight = (
            self.even_weights.copied(layout.ids),
            self.odd_weights.copied(layout.ids),
        )
        reduction.bn = copy_module(self.bn)
        return reduction

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the weights of the states that are present, and those of the batch norm."""
        assert isinstance(layout, Layout)
        yield from self.even_weights.parts(layout.ids)
        yield from self.odd_weights.parts(layout.ids)
        yield from parameters_of([self.bn])


class LooseCell(Searchable):
    """A cell of blocks; its output concatenates the loose ends and any other states that are chosen.

    Weights belong to (block, input, operation), for both sides of the block. A block that applies the same operation to
    the same input on both sides runs it twice; its materialised copy has two, which training can make different.

    The state is the pair of the last two cells' outputs, `(previous, current)`, or the stem's output alone; then that
    is state 1 as it is (Zoph et al., 2018; TensorFlow's released code).

    Args:
        current, previous: the possible inputs; no `previous` directly behind the stem.
        space: made by `cell_space`.
        filters: channels of every state.
        stride: the stride of operations that read one of the two inputs.
        op: builds the operations.
        keep_previous, keep: see `BlockCell`.
        lazy: whether operations are built when an architecture first uses them, on the meta device; a single network
            needs few of the hundreds.
        norm: `eps` and `momentum` of the batch norms.
    """

    def __init__(
        self,
        current: Source,
        previous: Source | None,
        *,
        space: SearchSpace,
        filters: int,
        op: MakeOp,
        stride: int = 1,
        keep_previous: bool = False,
        keep: float = 1.0,
        lazy: bool = False,
        **norm: Any,
    ) -> None:
        super().__init__()
        self.space, self.filters, self.stride, self.keep_previous, self.keep = (
            space,
            filters,
            stride,
            keep_previous,
            keep,
        )
        self.squeeze = LooseConv(current, filters, **norm)
        self.fit: Searchable | None = None
        if previous is not None and previous.stride != current.stride:
            self.fit = LooseReduction(previous, filters, **norm)
        elif previous is not None:
            self.fit = LooseConv(previous, filters, passing=True, **norm)
        self.raw = filters if previous is not None else current.width  # channels of state 1
        self.ops, self.joins = nn.ModuleDict(), nn.ModuleDict()
        self._make = op if lazy else None
        last = 1
        for choice in space.choices:
            block, _, field = choice.name.partition(".")
            number = block.removeprefix("block")
            if field == "left":
                last = int(number) + 2
                for source, name in [] if lazy else _options(space, block):
                    self.ops[_key(last - 2, source, name)] = self._made(op, source, name)
            elif field == "combine" and CONCAT in choice.options:
                self.joins[number] = ConvNorm(2 * filters, filters, **norm)
        self.output_fits = nn.ModuleDict()
        for state, width in ((0, filters), (1, self.raw)):
            if stride == 2:
                self.output_fits[str(state)] = FactorizedReduction(width, filters, relu=False, **norm)
            elif width != filters:
                self.output_fits[str(state)] = ConvNorm(width, filters, relu=False, **norm)
        self.drop = DropPath(keep)
        self.source = Source(filters, current.stride * stride, tuple(range(last + 1)))

    def set_progress(self, t: float) -> None:
        """Sets how much of the training is over, from 0 to 1."""
        self.drop.set_progress(t)

    def weightless_options(self) -> dict[str, frozenset[Value]]:
        """Returns the operations that have no parameters on some input of their block."""
        weightless: dict[str, frozenset[Value]] = {}
        for choice in self.space.choices:
            block, _, field = choice.name.partition(".")
            if field in ("left_op", "right_op"):
                places: dict[str, list[nn.Module]] = {str(name): [] for name in choice.options}
                for source, name in _options(self.space, block):
                    if name in places:
                        places[name].append(self._op(int(block.removeprefix("block")), source, name))
                weightless[choice.name] = weightless_among(places)
        return weightless

    def _made(self, op: MakeOp, source: int, name: str) -> nn.Module:
        return op(name, self.raw if source == 1 else self.filters, self.stride if source < 2 else 1)

    def _op(self, block: int, source: int, name: str) -> nn.Module:
        key = _key(block, source, name)
        if self._make is not None and key not in self.ops:
            with torch.device("meta"):
                self.ops[key] = self._made(self._make, source, name)
        return self.ops[key]

    def _chosen(self, graph: CellGraph) -> tuple[list[Operand], list[nn.Module | None]]:
        """Operands and joins, as `run_blocks` takes them."""
        operands = [(s, self._op(block, s, op), op != IDENTITY) for block, s, op in graph.operands]
        joins = [
            self.joins[str(number)] if block.combine == CONCAT else None for number, block in enumerate(graph.blocks)
        ]
        return operands, joins

    def _output_fits(self, graph: CellGraph) -> dict[str, nn.Module]:
        return {str(s): self.output_fits[str(s)] for s in graph.outputs if str(s) in self.output_fits}

    def forward(self, state: Any, arch: Arch) -> tuple[Any, ...]:
        """`(previous, current)`, (N, C, H, W) each, or the stem's output, to the pair of the next two inputs."""
        previous, current, rest = split_state(state)
        graph = graph_of(arch)
        states = [self.squeeze(current), hidden(current).tensor if self.fit is None else self.fit(previous)]
        run_blocks(states, *self._chosen(graph), self.drop)
        fits = self._output_fits(graph)
        out = [fits[str(s)](states[s]) if str(s) in fits else states[s] for s in graph.outputs]
        output = Hidden(torch.cat(out, dim=1), graph.outputs)
        return (previous if self.keep_previous else current, output, *rest)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layouts of the kept input and of the output, with the ids of its states."""
        previous, current = _two(layout)
        outputs = graph_of(arch).outputs
        output = Layout(self.filters * len(outputs), current.stride * self.stride, outputs)
        return (previous if self.keep_previous else current, output)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `BlockCell`."""
        previous, current = _two(layout)
        graph = graph_of(arch)
        operands, joins = self._chosen(graph)
        fits = self._output_fits(graph)
        cell = BlockCell(
            self.squeeze.materialize(_NOTHING, current),
            nn.Identity() if self.fit is None else self.fit.materialize(_NOTHING, previous),
            nn.ModuleList(copy_module(op) for _, op, _ in operands),
            inputs=tuple(source for source, _, _ in operands),
            outputs=graph.outputs,
            joins=nn.ModuleDict({str(i): copy_module(join) for i, join in enumerate(joins) if join is not None})
            if any(joins)
            else None,
            output_fits=nn.ModuleDict({name: copy_module(fit) for name, fit in fits.items()}) if fits else None,
            keep_previous=self.keep_previous,
            keep=self.keep,
            undropped=tuple(i for i, (_, _, falls) in enumerate(operands) if not falls) if self.keep < 1 else (),
        )
        cell.set_progress(self.drop.progress)
        return cell

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the parameters that fit the inputs, of the chosen operations and joins, and that fit the outputs."""
        previous, current = _two(layout)
        graph = graph_of(arch)
        operands, joins = self._chosen(graph)
        yield from self.squeeze.active_parts(_NOTHING, current)
        if self.fit is not None:
            yield from self.fit.active_parts(_NOTHING, previous)
        yield from parameters_of(op for _, op, _ in operands)
        yield from parameters_of(join for join in joins if join is not None)
        yield from parameters_of(self._output_fits(graph).values())


def _options(space: SearchSpace, block: str) -> list[tuple[int, str]]:
    """Returns all `(state, operation)` that either side of a block may use."""
    names = dict.fromkeys([*space[f"{block}.left_op"].options, *space[f"{block}.right_op"].options])
    sources = dict.fromkeys([*space[f"{block}.left"].options, *space[f"{block}.right"].options])
    return [(int(source), str(name)) for source in sources for name in names]


def _key(block: int, source: int, name: str) -> str:
    return f"{block}-{source}-{name}"


def _two(layout: Layouts) -> tuple[Layout, Layout]:
    """Returns the layouts of the previous and the current output; behind the stem, both are that of the stem."""
    previous, current = (layout, layout) if isinstance(layout, Layout) else layout or (None, None)
    assert isinstance(previous, Layout)
    assert isinstance(current, Layout)
    return previous, current


class LooseClassifier(Searchable):
    """ReLU, global average pooling, dropout, linear layer over the states of the last cell that are present."""

    def __init__(self, source: Source, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.classes = classes
        self.space = SearchSpace("loose-classifier")
        self.drop = nn.Dropout(dropout)
        self.state_weights = StateWeights(source, classes, linear=True)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, state: Any, arch: Arch) -> Tensor | Output:
        """The logits, (N, classes); with those of the auxiliary head where they are in the state."""
        _, current, rest = split_state(state)
        tensor, ids = hidden(current)
        pooled = functional.relu(tensor).mean(dim=(2, 3))
        logits = functional.linear(self.drop(pooled), self.state_weights.weight(ids), self.bias)
        return Output(logits, rest[0]) if rest else logits

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the layout of the logits."""
        return Layout(self.classes, 0)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `CellClassifier`."""
        _, current = _two(layout)
        with torch.device("meta"):
            classifier = CellClassifier(current.channels, self.classes, dropout=self.drop.p)
        classifier.fc.weight = self.state_weights.copied(current.ids)
        classifier.fc.bias = nn.Parameter(self.bias.detach().clone())
        return classifier

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the weights of the states that are present, and the bias."""
        _, current = _two(layout)
        yield from self.state_weights.parts(current.ids)
        yield self.bias, ()


class LooseAuxiliary(Searchable):
    """An `AuxiliaryHead` over the states of the last cell that are present; the identity outside training."""

    def __init__(
        self, source: Source, classes: int, *, size: tuple[int, int], hidden: tuple[int, int] = (128, 768), **norm: Any
    ) -> None:
        super().__init__()
        self.norm = norm
        self.space = SearchSpace("loose-auxiliary")
        self.state_weights = StateWeights(source, hidden[0])
        self.classes, self.size, self.hidden = classes, size, hidden
        self.tail = AuxiliaryHead(1, classes, size=size, hidden=hidden, **norm).tail

    def forward(self, state: Any, arch: Arch) -> Any:
        """The state; in training with the logits, (N, classes), behind it."""
        if not self.training:
            return state
        tensor, ids = hidden(state[1])
        x = functional.avg_pool2d(functional.relu(tensor), 5, 3)
        return (*state, self.tail(functional.conv2d(x, self.state_weights.weight(ids))))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout of the input, since only the last step receives the logits."""
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns an `AuxiliaryHead`."""
        _, current = _two(layout)
        with torch.device("meta"):
            head = AuxiliaryHead(current.channels, self.classes, size=self.size, hidden=self.hidden, **self.norm)
        head.conv.weight, head.tail = self.state_weights.copied(current.ids), copy_module(self.tail)
        return head

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the weights of the states that are present, and those of all layers behind them."""
        _, current = _two(layout)
        yield from self.state_weights.parts(current.ids)
        yield from parameters_of([self.tail])
