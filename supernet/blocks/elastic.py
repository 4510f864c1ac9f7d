"""Widths, kernels and depths sliced from one set of weights: leading channels, central taps, first blocks.

The forward pass, the materialised layer and the active parts all use one slicing function, `sliced(tensor, cut)`, so
they cannot differ.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.copying import copy_option
from supernet.blocks.plain import ConvBNAct, PooledClassifier, Residual, ShuffleUnit
from supernet.blocks.slicing import Cut, cut_layer, leading, run_linear, run_sliced, sliced_parts, sliced_state
from supernet.chain import Layout, Layouts, Part, Searchable, materialize, parameters_of, step_layout
from supernet.chain.copying import copy_module
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value, compose

# -- a choice of units whose middle is searched -----------------------------------------------------------------------


class ElasticShuffle(Searchable):
    """Several shuffle units at their largest width; `op` selects one, `scale` the number of its middle channels.

    The leading channels are used, so the weights of a narrow architecture are part of those of a wide one.

    Args:
        operations: name to `kernel` and `xception` of its unit, in the order of index vectors.
        mids: scale to channels between the main branch's layers, ascending.
        stride, shuffle, affine: those of every unit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        operations: Mapping[str, Mapping[str, Any]],
        mids: Mapping[float, int],
        stride: int = 1,
        shuffle: str = "parity",
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels, self.stride, self.mids = out_channels, stride, dict(mids)
        common: dict[str, Any] = {"mid": max(mids.values()), "stride": stride, "shuffle": shuffle, "affine": affine}
        self.units = nn.ModuleDict(
            {name: ShuffleUnit(in_channels, out_channels, **op, **common) for name, op in operations.items()}
        )
        choices = [Choice("op", tuple(operations)), Choice("scale", tuple(mids), ordered=True)]
        self.space = SearchSpace("elastic-shuffle", choices)

    def _chosen(self, arch: Arch) -> tuple[ShuffleUnit, int]:
        """The unit and its number of middle channels."""
        unit = self.units[str(arch["op"])]
        assert isinstance(unit, ShuffleUnit)
        return unit, self.mids[float(arch["scale"])]

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        unit, mid = self._chosen(arch)
        passed, x = unit.branches(state)
        for layer, cut in _cuts(unit, mid):
            x = run_sliced(layer, cut, x)
        return torch.cat([passed, x], dim=1)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """The same for every architecture."""
        assert isinstance(layout, Layout)
        return Layout(self.out_channels, layout.stride * self.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """A `ShuffleUnit` with `mid` middle channels."""
        unit, mid = self._chosen(arch)
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            narrow = ShuffleUnit(
                unit.in_channels,
                unit.out_channels,
                kernel=unit.kernel,
                xception=unit.xception,
                mid=mid,
                stride=unit.stride,
                shuffle=unit.shuffle,
                affine=unit.affine,
            )
        for (layer, cut), (target, _) in zip(_cuts(unit, mid), _cuts(narrow, mid), strict=True):
            target.load_state_dict(sliced_state(layer, cut), assign=True)
        if unit.stride == 2:
            narrow.proj = copy_module(unit.proj)
        return narrow

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The leading channels of the main branch's layers; the projection whole."""
        unit, mid = self._chosen(arch)
        for layer, cut in _cuts(unit, mid):
            yield from sliced_parts(layer, cut)
        if unit.stride == 2:
            yield from parameters_of([unit.proj])

    def copy_options(self, arch: Arch) -> None:
        """Copies all channels of the chosen unit into the others (see `supernet.blocks.copying.copy_option`)."""
        copy_option(dict(self.units.items()), str(arch["op"]))


def _cuts(unit: ShuffleUnit, mid: int) -> Iterator[tuple[ConvBNAct, Cut]]:
    """Yields the layers of the main branch in order, each with its slice for `mid` middle channels."""
    for layer, (before, after) in zip(unit.main, pairwise(unit.main_widths(mid)), strict=True):
        assert isinstance(layer, ConvBNAct)
        yield layer, (slice(after), slice(before if layer.groups == 1 else 1))


# -- steps whose channel counts are decisions -------------------------------------------------------------------------

AS_GIVEN = ""
"""Instead of the name of a decision: as many channels as the step receives."""


class ElasticLayer(NamedTuple):
    """A layer of an elastic step and the decisions on the numbers of its input and output channels.

    Attributes:
        layer: the layer at its largest width.
        reads, makes: the decisions on the number of its input and output channels; `AS_GIVEN` for as many as the step
            receives, and None for a fixed number.
        stride: pixels of the step's input per pixel of the layer's output; 0 after global pooling.
        branch: decisions; the layer exists only if none of them is 0.
    """

    layer: ConvBNAct | nn.Linear
    reads: str
    makes: str | None
    stride: int
    branch: tuple[str, ...] = ()


class Elastic(Searchable):
    """A step that lists the width decisions of its layers; layers that meet in a sum or a depthwise layer share one."""

    def elastic_layers(self) -> list[ElasticLayer]:
        """Returns all layers, each after those whose output it reads."""
        raise NotImplementedError


def whole_branches(arch: Arch) -> dict[str, Value]:
    """Sets all widths of a branch to 0 if one of them is, since the branch is then left out."""
    gone = any(name.startswith("mid") and value == 0 for name, value in arch.items())
    return {name: 0 if gone and name.startswith("mid") else value for name, value in arch.items()}


class ElasticBlock(Elastic):
    """A sequence of convolutions with searched output channels, with or without a shortcut around it.

    Architectures use the leading channels. If there is a shortcut, the inner widths may be 0: the convolutions are then
    left out and only the shortcut remains. Any other width is at least 1.

    Args:
        body: the layers at their largest width, dense or depthwise.
        makes: per layer the decision on its output channels; `AS_GIVEN` for as many as the step receives. A depthwise
            layer has the same decision as its input, and the last layer before the sum with `nn.Identity` has
            `AS_GIVEN`. With a shortcut, the names of the inner decisions begin with `mid`.
        shortcut: `nn.Identity`, a projection without activation, or None.
        act: whether a ReLU follows the sum; if the shortcut is an identity, the input must be the output of a ReLU.
        tail: a module without weights behind the block, such as pooling.
        tail_stride: the stride of `tail`.
        kernels: sizes to choose from (decision `kernel`) for all layers whose kernel is the largest of them; smaller
            kernels use the central taps.

    Raises:
        InputError: `makes` breaks one of these rules.
    """

    def __init__(
        self,
        body: Sequence[ConvBNAct],
        makes: Sequence[str],
        *,
        shortcut: nn.Module | None = None,
        act: bool = False,
        tail: nn.Module | None = None,
        tail_stride: int = 1,
        kernels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.body, self.shortcut, self.tail = nn.ModuleList(body), shortcut, tail
        self.makes, self.act, self.tail_stride, self.kernels = tuple(makes), act, tail_stride, tuple(kernels)
        inner = set(makes[:-1]) - {makes[-1], AS_GIVEN} if shortcut is not None else set()
        self.branch = tuple(name for name in dict.fromkeys(makes) if name in inner)
        self._check()
        choices = []
        for name in dict.fromkeys(name for name in makes if name != AS_GIVEN):
            widest = body[makes.index(name)].out_channels
            choices.append(Choice(name, range(0 if name in inner else 1, widest + 1), ordered=True))
        if self.kernels:
            choices.append(Choice("kernel", self.kernels, ordered=True))
        self.space = SearchSpace("elastic-block", choices, whole_branches if len(inner) > 1 else None)

    @property
    def _row(self) -> list[tuple[ConvBNAct, str, str]]:
        """Per layer of the body the decisions on its input and output channels."""
        layers = cast("Iterable[ConvBNAct]", self.body)
        return list(zip(layers, (AS_GIVEN, *self.makes), self.makes, strict=False))

    def _check(self) -> None:
        makes = self.makes
        for layer, reads, writes in self._row:
            if layer.groups not in (1, layer.out_channels) or (layer.groups > 1 and reads != writes):
                raise InputError(
                    f"a layer of {layer.groups} groups reads {reads!r} and makes {writes!r}; give a dense layer, or a "
                    "depthwise one with the same decision for both"
                )
        if len(makes) != len(self.body) or (isinstance(self.shortcut, nn.Identity) and makes[-1] != AS_GIVEN):
            raise InputError(f"makes={makes} needs a name per layer, and ends with {AS_GIVEN!r} beside an identity")
        if any(not name.startswith("mid") for name in self.branch):
            raise InputError(f"the widths within a branch are {self.branch}; give them names that begin with 'mid'")

    def elastic_layers(self) -> list[ElasticLayer]:
        """Returns the layers of the body, then the projection."""
        layers, stride = [], 1
        for layer, reads, writes in self._row:
            stride *= layer.stride
            layers.append(ElasticLayer(layer, reads, writes, stride, self.branch))
        if isinstance(self.shortcut, ConvBNAct):
            layers.append(ElasticLayer(self.shortcut, AS_GIVEN, self.makes[-1], stride))
        return layers

    def _cuts(self, arch: Arch, before: int) -> tuple[list[tuple[ConvBNAct, Cut]], list[tuple[ConvBNAct, Cut]]]:
        """Returns the layers of the body (none if it is left out) and of the shortcut, each with its slice."""
        widths: dict[str | None, int] = {name: int(value) for name, value in arch.items()}
        widths[AS_GIVEN] = before
        largest, kernel = max(self.kernels, default=0), widths.get("kernel", 0)
        selected: tuple[list[tuple[ConvBNAct, Cut]], list[tuple[ConvBNAct, Cut]]] = ([], [])
        for layer, reads, makes, _, branch in self.elastic_layers():
            if all(widths[name] for name in branch):
                assert isinstance(layer, ConvBNAct)
                taps = {"kernel": kernel, "largest": largest} if kernel and layer.kernel == largest else {}
                cut = leading(widths[makes], widths[reads] if layer.groups == 1 else 1, **taps)
                selected[layer is self.shortcut].append((layer, cut))
        return selected

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to (N, width of the last layer, H / stride, W / stride)."""
        body, beside = self._cuts(arch, state.shape[1])
        x = state
        for layer, cut in body:
            x = run_sliced(layer, cut, x)
        if self.shortcut is not None:
            other = run_sliced(*beside[0], state) if beside else state
            x = x + other if body else other
            x = functional.relu(x) if self.act and (body or beside) else x
        return x if self.tail is None else self.tail(x)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `Residual`, or only its body or its shortcut, followed by the tail."""
        assert isinstance(layout, Layout)
        body, beside = self._cuts(arch, layout.channels)
        row = [cut_layer(layer, cut) for layer, cut in body]
        block: nn.Module = row[0] if len(row) == 1 else nn.Sequential(*row)
        if self.shortcut is not None and body:
            block = Residual(block, cut_layer(*beside[0]) if beside else nn.Identity(), act=self.act)
        elif self.shortcut is not None:
            block = cut_layer(*beside[0], act=self.act) if beside else nn.Identity()
        return block if self.tail is None else nn.Sequential(block, copy_module(self.tail))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """Returns the layout with the width of the last layer."""
        assert isinstance(layout, Layout)
        last, stride = self.makes[-1], self.elastic_layers()[len(self.body) - 1].stride * self.tail_stride
        return Layout(layout.channels if last == AS_GIVEN else int(arch[last]), layout.stride * stride)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading channels and central taps of the layers in use."""
        assert isinstance(layout, Layout)
        body, beside = self._cuts(arch, layout.channels)
        for layer, cut in body + beside:
            yield from sliced_parts(layer, cut)


class ElasticHead(Elastic):
    """Global average pooling, dropout and a linear layer that reads as many channels as the step receives.

    Args:
        in_channels: the largest number.
        classes: number of logits.
        dropout: probability of the dropout before the linear layer.
    """

    def __init__(self, in_channels: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.full = PooledClassifier(in_channels, classes, dropout=dropout)
        self.space = SearchSpace("elastic-head")

    def elastic_layers(self) -> list[ElasticLayer]:
        """Returns the linear layer."""
        return [ElasticLayer(self.full.fc, AS_GIVEN, None, 0)]

    def _cut(self, before: int) -> Cut:
        return leading(self.full.classes, before)

    def forward(self, state: Tensor, arch: Arch) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        return run_linear(self.full.fc, self._cut(state.shape[1]), self.full.drop(state.mean(dim=(2, 3))))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        """The logits."""
        return Layout(self.full.classes, 0)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `PooledClassifier` for the channels that it receives."""
        assert isinstance(layout, Layout)
        with torch.device("meta"):
            classifier = PooledClassifier(layout.channels, self.full.classes, dropout=self.full.dropout)
        classifier.fc.load_state_dict(sliced_state(self.full.fc, self._cut(layout.channels)), assign=True)
        return classifier

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the leading columns and the bias."""
        assert isinstance(layout, Layout)
        return sliced_parts(self.full.fc, self._cut(layout.channels))


class ElasticDepth(Searchable):
    """The first `depth` of several consecutive steps (once-for-all, Cai et al., 2020).

    The decisions of step i have the prefix `block{i}.` and are active while it is used.

    Args:
        blocks: steps, searchable or ordinary; each must accept the output of any earlier one.
        depths: numbers to choose from, ascending.

    Raises:
        InputError: a depth outside 0 to `len(blocks)`.
    """

    def __init__(self, blocks: Sequence[nn.Module], depths: Sequence[int]) -> None:
        super().__init__()
        if not depths or not 0 <= min(depths) <= max(depths) <= len(blocks):
            raise InputError(f"depths={tuple(depths)} must lie between 0 and {len(blocks)}, the number of blocks")
        self.blocks = nn.ModuleList(blocks)
        choices = [Choice("depth", tuple(depths), ordered=True)]
        for index, block in enumerate(blocks):
            reached = tuple(depth for depth in depths if depth > index)
            for choice in block.space.choices if isinstance(block, Searchable) and reached else ():
                parent, values = choice.when or ("", ())
                when = (f"block{index}.{parent}", values) if choice.when else ("depth", reached)
                choices.append(Choice(f"block{index}.{choice.name}", choice.options, when, choice.ordered))
        parts = {f"block{i}": block.space for i, block in enumerate(blocks) if isinstance(block, Searchable)}
        self.space = SearchSpace._of("elastic-depth", choices, compose("elastic-depth", parts).forms)

    def inner_steps(self, arch: Arch) -> list[tuple[nn.Module, Arch]]:
        """Returns the steps used, each with its decisions."""
        blocks = self.blocks[: int(arch["depth"])]
        return [(block, arch.sub(f"block{index}")) for index, block in enumerate(blocks)]

    def forward(self, state: Any, arch: Arch) -> Any:
        """The state after the last step used."""
        for block, sub in self.inner_steps(arch):
            state = block(state, sub) if isinstance(block, Searchable) else block(state)
        return state

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """The layout after the last step used."""
        for block, sub in self.inner_steps(arch):
            layout = step_layout(block, sub, layout)
        return layout

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """The steps used, in an `nn.Sequential`."""
        blocks = []
        for block, sub in self.inner_steps(arch):
            blocks.append(materialize(block, sub, layout))
            layout = step_layout(block, sub, layout)
        return nn.Sequential(*blocks)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The parts of the steps used."""
        for block, sub in self.inner_steps(arch):
            yield from block.active_parts(sub, layout) if isinstance(block, Searchable) else parameters_of([block])
            layout = step_layout(block, sub, layout)
