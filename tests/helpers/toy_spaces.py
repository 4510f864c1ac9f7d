"""Four small supernets that together hold every difficulty of the real ones.

`chain`: single-path choices, one of them an identity. `loose`: two cells that share decisions; which nodes are loose
ends decides how many channels the next cell reads. `sliced`: widths and kernels cut from one tensor, with a residual
tie. `detector`: a tuple of feature maps in the state and torchvision's dense head at the end.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detection.retinanet import FeaturePyramid, RetinaHead
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct, InvertedResidual
from supernet.chain import Chain, Hidden, Layout, Layouts, Part, Searchable, parameters_of
from supernet.space import Arch, Choice, SearchSpace


def chain(*, num_classes: int = 5, input_size: int = 16, in_channels: int = 3, phase: str = "supernet") -> Chain:
    """Three choices; the middle one may be an identity."""

    def options(width: int, out: int, stride: int) -> dict[str, nn.Module]:
        return {
            "conv": ConvBNAct(width, out, kernel=3, stride=stride),
            "mb": InvertedResidual(width, out, kernel=3, expansion=2, stride=stride),
        }

    steps = [
        ("stem", ConvBNAct(in_channels, 8, kernel=3)),
        ("a", ChoiceBlock(options(8, 12, 2))),
        ("b", ChoiceBlock({"skip": nn.Identity(), **options(12, 12, 1)})),
        ("c", ChoiceBlock(options(12, 16, 2))),
        ("head", ClassifierHead(16, num_classes, hidden=24)),
    ]
    return Chain("toy-chain", steps, input_shape=(in_channels, input_size, input_size))


# -- loose ends -------------------------------------------------------------------------------------------------------

OPS = ("conv1", "conv3", "pool")
NODES = 3


class LooseConv(Searchable):
    """1×1 convolution over whichever hidden states are present: one weight per producing state, then batch norm."""

    def __init__(self, states: int, width: int, out: int) -> None:
        super().__init__()
        self.width, self.out = width, out
        self.bank = nn.ParameterDict({str(i): nn.Parameter(torch.empty(out, width, 1, 1)) for i in range(states)})
        for weight in self.bank.values():
            nn.init.kaiming_normal_(weight)
        self.bn = nn.BatchNorm2d(out)
        self.space = SearchSpace("loose-conv")

    def _weight(self, ids: Sequence[int]) -> Tensor:
        return torch.cat([self.bank[str(i)] for i in ids or (0,)], dim=1)

    def forward(self, state: Any, arch: Arch) -> Tensor:
        tensor, ids = state if isinstance(state, Hidden) else (state, ())
        return self.bn(functional.conv2d(tensor, self._weight(ids)))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        assert isinstance(layout, Layout)
        return Layout(self.out, layout.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        assert isinstance(layout, Layout)
        layer = ConvBNAct(layout.channels, self.out, act=False).to(self.bn.weight.device)
        layer.conv.weight.data = self._weight(layout.ids).detach().clone()
        layer.bn = copy.deepcopy(self.bn)
        return layer

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        assert isinstance(layout, Layout)
        yield from ((self.bank[str(i)], ()) for i in layout.ids or (0,))
        yield from parameters_of([self.bn])


class PlainCell(nn.Module):
    """Nodes that each apply one op to one earlier state; `outputs` are concatenated."""

    def __init__(
        self, squeeze: nn.Module, ops: nn.ModuleList, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.squeeze, self.ops, self.inputs, self.outputs = squeeze, ops, inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        states = [self.squeeze(x)]
        for op, source in zip(self.ops, self.inputs):  # noqa: B905
            states.append(op(states[source]))
        return torch.cat([states[i] for i in self.outputs], dim=1)


class LooseCell(Searchable):
    """Up to three nodes; a state that no node reads is an output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.squeeze = LooseConv(NODES + 1, width, width)
        self.ops = nn.ModuleDict()
        choices = [Choice("nodes", (2, 3))]
        for node in range(1, NODES + 1):
            when = ("nodes", (3,)) if node == 3 else None
            choices.append(Choice(f"node{node}.input", tuple(range(node)), when))
            choices.append(Choice(f"node{node}.op", OPS, when))
            for source in range(node):
                makers = (ConvBNAct(width, width), ConvBNAct(width, width, kernel=3), nn.MaxPool2d(3, 1, 1))
                self.ops.update({f"{node}-{source}-{op}": op_module for op, op_module in zip(OPS, makers, strict=True)})
        self.space = SearchSpace("loose-cell", choices)

    def _nodes(self, arch: Arch) -> list[tuple[int, int, nn.Module]]:
        inputs = []
        for node in range(1, int(arch["nodes"]) + 1):
            source = int(arch[f"node{node}.input"])
            inputs.append((node, source, self.ops[f"{node}-{source}-{arch[f'node{node}.op']}"]))
        return inputs

    def _outputs(self, arch: Arch) -> tuple[int, ...]:
        nodes = self._nodes(arch)
        used = {source for _, source, _ in nodes}
        return tuple(node for node, _, _ in nodes if node not in used)

    def forward(self, state: Any, arch: Arch) -> Hidden:
        states = {0: self.squeeze(state, Arch())}
        for node, source, op in self._nodes(arch):
            states[node] = op(states[source])
        ids = self._outputs(arch)
        return Hidden(torch.cat([states[i] for i in ids], dim=1), ids)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        assert isinstance(layout, Layout)
        ids = self._outputs(arch)
        return Layout(self.width * len(ids), layout.stride, ids)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        nodes = self._nodes(arch)
        ops = nn.ModuleList(copy.deepcopy(op) for _, _, op in nodes)
        inputs = tuple(source for _, source, _ in nodes)
        return PlainCell(self.squeeze.materialize(Arch(), layout), ops, inputs, self._outputs(arch))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        yield from self.squeeze.active_parts(Arch(), layout)
        yield from parameters_of(op for _, _, op in self._nodes(arch))


class PoolClassifier(nn.Module):
    """Global average pooling and a linear layer."""

    stride = 0

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.fc = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


def loose(*, num_classes: int = 5, input_size: int = 16, in_channels: int = 3, phase: str = "supernet") -> Chain:
    """Two cells under one name share their decisions; the consumer after them reads one to three states."""
    steps = [
        ("stem", ConvBNAct(in_channels, 6, kernel=3, stride=2)),
        ("cell", LooseCell(6)),
        ("cell", LooseCell(6)),
        ("collect", LooseConv(NODES + 1, 6, 16)),
        ("head", PoolClassifier(16, num_classes)),
    ]
    return Chain("toy-loose", steps, input_shape=(in_channels, input_size, input_size))


# -- slices -----------------------------------------------------------------------------------------------------------

WIDTHS, KERNELS, WIDEST = range(4, 13, 4), (3, 5), 12


class ResidualBlock(nn.Module):
    """k×k convolution to `mid`, 3×3 to `out_channels`, plus a 1×1 projection of the input."""

    def __init__(self, in_channels: int, mid: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.in_channels, self.mid, self.out_channels, self.kernel = in_channels, mid, out_channels, kernel
        self.first = ConvBNAct(in_channels, mid, kernel=kernel)
        self.second = ConvBNAct(mid, out_channels, kernel=3, act=False)
        self.project = ConvBNAct(in_channels, out_channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.project(x))


def _cut(out: int, before: int, kernel: int, largest: int) -> tuple[slice, ...]:
    """Leading channels and the centre of the kernel."""
    start = (largest - kernel) // 2
    return (slice(out), slice(before), slice(start, start + kernel), slice(start, start + kernel))


class SlicedBlock(Searchable):
    """A residual block at its largest; architectures use leading channels and central taps of the same tensors."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.full = ResidualBlock(before, WIDEST, WIDEST, max(KERNELS))
        choices = [
            Choice("width", WIDTHS, ordered=True),
            Choice("mid", WIDTHS, ordered=True),
            Choice("kernel", KERNELS),
        ]
        self.space = SearchSpace("sliced-block", choices)

    def _cuts(self, arch: Arch, before: int) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """The one place that says which elements each layer uses, in the order first, second, project."""
        width, mid, kernel = int(arch["width"]), int(arch["mid"]), int(arch["kernel"])
        yield "first", _cut(mid, before, kernel, max(KERNELS))
        yield "second", _cut(width, mid, 3, 3)
        yield "project", _cut(width, before, 1, 1)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        first, second, project = self._cuts(arch, x.shape[1])
        x_first = functional.relu(self._layer(x, *first))
        return functional.relu(self._layer(x_first, *second) + self._layer(x, *project))

    def _layer(self, x: Tensor, name: str, cut: tuple[slice, ...]) -> Tensor:
        layer = getattr(self.full, name)
        weight, bn, out = layer.conv.weight[cut], layer.bn, cut[0]
        x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        stats = (bn.running_mean[out], bn.running_var[out], bn.weight[out], bn.bias[out])
        return functional.batch_norm(x, *stats, self.training, bn.momentum, bn.eps)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        assert isinstance(layout, Layout)
        return Layout(int(arch["width"]), layout.stride)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        assert isinstance(layout, Layout)
        sizes = int(arch["mid"]), int(arch["width"]), int(arch["kernel"])
        block = ResidualBlock(layout.channels, *sizes).to(self.full.first.conv.weight.device)
        for name, cut in self._cuts(arch, layout.channels):
            source, target = getattr(self.full, name), getattr(block, name)
            target.conv.weight.data = source.conv.weight.detach()[cut].clone()
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                getattr(target.bn, tensor).data = getattr(source.bn, tensor).detach()[cut[0]].clone()
        return block

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        assert isinstance(layout, Layout)
        for name, cut in self._cuts(arch, layout.channels):
            layer = getattr(self.full, name)
            yield layer.conv.weight, cut
            yield layer.bn.weight, cut[:1]
            yield layer.bn.bias, cut[:1]


class SlicedClassifier(Searchable):
    """Pooling and a linear layer that reads the leading channels present."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDEST, classes)
        self.space = SearchSpace("sliced-classifier")

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        return functional.linear(x.mean(dim=(2, 3)), self.fc.weight[:, : x.shape[1]], self.fc.bias)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layout:
        return Layout(self.fc.out_features, 0)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        assert isinstance(layout, Layout)
        classifier = PoolClassifier(layout.channels, self.fc.out_features).to(self.fc.weight.device)
        classifier.fc.weight.data = self.fc.weight.detach()[:, : layout.channels].clone()
        classifier.fc.bias.data = self.fc.bias.detach().clone()
        return classifier

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        assert isinstance(layout, Layout)
        yield self.fc.weight, (slice(None), slice(layout.channels))
        yield self.fc.bias, ()


def sliced(*, num_classes: int = 5, input_size: int = 16, in_channels: int = 3, phase: str = "supernet") -> Chain:
    """Two sliced blocks; the second reads as many channels as the first one's width."""
    steps = [
        ("stem", ConvBNAct(in_channels, 6, kernel=3, stride=2)),
        ("a", SlicedBlock(6)),
        ("b", SlicedBlock(WIDEST)),
        ("head", SlicedClassifier(num_classes)),
    ]
    return Chain("toy-sliced", steps, input_shape=(in_channels, input_size, input_size))


# -- detector ---------------------------------------------------------------------------------------------------------


class PlainTap(nn.Module):
    """Applies a module to the last feature map and appends the result to the tuple."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Any) -> tuple[Tensor, ...]:
        maps = maps if isinstance(maps, tuple) else (maps,)
        return (*maps, self.block(maps[-1]))


class Tap(Searchable):
    """A searchable stage whose output is kept beside the earlier ones."""

    def __init__(self, block: Searchable) -> None:
        super().__init__()
        self.block = block
        self.space = block.space

    def forward(self, state: Any, arch: Arch) -> tuple[Tensor, ...]:
        maps = state if isinstance(state, tuple) else (state,)
        return (*maps, self.block(maps[-1], arch))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        maps = layout if isinstance(layout, tuple) else (layout,)
        return (*maps, self.block.out_layout(arch, maps[-1]))

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        last = layout[-1] if isinstance(layout, tuple) else layout
        return PlainTap(self.block.materialize(arch, last))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        return self.block.active_parts(arch, layout[-1] if isinstance(layout, tuple) else layout)


def detector(*, num_classes: int = 5, input_size: int = 32, in_channels: int = 3, phase: str = "supernet") -> Chain:
    """Two searched stages, a feature pyramid over three levels and RetinaNet's towers."""

    def stage(width: int, out: int) -> Tap:
        ops = {
            "conv": ConvBNAct(width, out, kernel=3, stride=2),
            "mb": InvertedResidual(width, out, kernel=5, expansion=2, stride=2),
        }
        return Tap(ChoiceBlock(ops))

    steps = [
        ("stem", ConvBNAct(in_channels, 8, kernel=3, stride=2)),
        ("stage1", stage(8, 12)),
        ("stage2", stage(12, 16)),
        ("neck", FeaturePyramid((8, 12, 16), 8)),
        ("head", RetinaHead(8, 3, num_classes, levels=3)),
    ]
    return Chain("toy-detector", steps, input_shape=(in_channels, input_size, input_size))


TOY_SPACES = {"chain": chain, "loose": loose, "sliced": sliced, "detector": detector}
