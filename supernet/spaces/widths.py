"""Published networks with searched channel counts, one decision per group of layers that must agree.

Channels that meet in a sum, a depthwise convolution or a batch norm share one decision (MorphNet, Gordon et al., 2018,
§4.2). Every builder takes `headroom`, the ratio of the largest width of a group to its width in the published network;
`WidthChain.seed` has the published widths. The smallest option is one channel, or 0 to leave out a residual branch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supernet.blocks.elastic import AS_GIVEN, Elastic, ElasticBlock, ElasticHead, ElasticLayer
from supernet.blocks.plain import ConvBNAct, ConvBNReLU6
from supernet.chain import Chain, Layout
from supernet.errors import InputError
from supernet.space import Arch


@dataclass(frozen=True, kw_only=True)
class WidthLayer:
    """A convolution or linear layer described by width groups; its costs are functions of the widths.

    Attributes:
        name: step and number.
        reads: groups whose concatenated channels are its input; empty for the image.
        makes: group of its output channels; empty if their number is fixed.
        inputs, outputs: numbers of channels that belong to no group.
        positions: output pixels.
        taps: kernel height times width.
        depthwise: every channel has its own kernel.
        branch: groups; the layer exists only if none of them is 0.
        extra: parameters per output channel beside the weights: scale and shift, or a bias.
    """

    name: str
    reads: tuple[str, ...] = ()
    makes: str = ""
    inputs: int = 0
    outputs: int = 0
    positions: int = 1
    taps: int = 1
    depthwise: bool = False
    branch: tuple[str, ...] = ()
    extra: int = 0

    def ends(self, widths: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns the input and output channels: sums of the entries of `widths`, numbers or tensors."""
        read = sum((widths[name] for name in self.reads), 0) if self.reads else self.inputs
        return read, widths[self.makes] if self.makes else self.outputs

    def weights(self, widths: Mapping[str, int]) -> int:
        """Returns the number of elements of the weight."""
        if not all(widths[name] for name in self.branch):
            return 0
        inputs, outputs = self.ends(widths)
        return int(self.taps * outputs * (1 if self.depthwise else inputs))

    def macs(self, widths: Mapping[str, int]) -> int:
        """Returns the multiply-accumulates for one image."""
        return self.positions * self.weights(widths)

    def params(self, widths: Mapping[str, int]) -> int:
        """Returns the number of trainable parameters, including batch norm and bias."""
        there = all(widths[name] for name in self.branch)
        return self.weights(widths) + self.extra * int(self.ends(widths)[1]) * there


class WidthChain(Chain):
    """A supernet in which every decision is a width.

    Args:
        name, input_shape: see `Chain`.
        steps: `(name, module)` in order; every module is `Elastic`.
        seed: the widths of the published network.

    Raises:
        InputError: a step is not elastic, a decision is not a width, or `seed` lies outside the space.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        seed: Mapping[str, int],
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__(name, steps, input_shape=input_shape)
        groups = {entry.makes for _, entry, _ in self.elastic_layers()}
        other = [choice.name for choice in self.space.choices if choice.name not in groups]
        if other:
            raise InputError(f"the decision {other[0]!r} of {name!r} is not a width; fix it, or use a Chain")
        self.seed = self.space.canonical(seed)

    def elastic_layers(self) -> Iterator[tuple[str, ElasticLayer, int]]:
        """Yields `(name, layer, stride of its step's input)` for every layer, with groups named as in the space.

        `AS_GIVEN` stands for the channels of the image.
        """
        incoming, stride = AS_GIVEN, 1
        for step_name, step in self.steps:
            if not isinstance(step, Elastic):
                raise InputError(
                    f"step {step_name!r} is a {type(step).__name__}; the steps of a WidthChain are Elastic"
                )
            output: str | None = incoming
            entries = step.elastic_layers()
            for number, entry in enumerate(entries):
                reads = incoming if entry.reads == AS_GIVEN else f"{step_name}.{entry.reads}"
                output = entry.makes and f"{step_name}.{entry.makes}"
                output = incoming if output == AS_GIVEN else output
                branch = tuple(f"{step_name}.{name}" for name in entry.branch)
                yield f"{step_name}.{number}", ElasticLayer(entry.layer, reads, output, entry.stride, branch), stride
            incoming = output or AS_GIVEN
            out = step.out_layout(Arch({c.name: c.options[-1] for c in step.space.choices}), Layout(1, stride))
            assert isinstance(out, Layout)
            stride = int(out.stride)

    def layers(self) -> tuple[WidthLayer, ...]:
        """Returns all layers in order; for a normal form, their costs sum up to those of `CostTable`."""
        rows = []
        for name, entry, before in self.elastic_layers():
            layer, stride = entry.layer, before * entry.stride
            if isinstance(layer, ConvBNAct):
                inputs, outputs, depthwise = layer.in_channels, layer.out_channels, layer.groups > 1
                taps, extra = layer.kernel**2, 2 if layer.affine else 0
            else:
                inputs, outputs, depthwise, taps, extra = layer.in_features, layer.out_features, False, 1, 1
            height, width = (-(-side // stride) if stride else 1 for side in self.input_shape[1:])
            rows.append(
                WidthLayer(
                    name=name,
                    reads=(entry.reads,) if entry.reads != AS_GIVEN else (),
                    makes=entry.makes or "",
                    inputs=inputs,
                    outputs=outputs,
                    positions=height * width,
                    taps=taps,
                    depthwise=depthwise,
                    branch=entry.branch,
                    extra=extra,
                )
            )
        return tuple(rows)

    def scales(self, arch: Arch) -> dict[str, list[Tensor]]:
        """Returns, per group, the batch-norm scales of the layers of `arch` that produce its channels, (width,) each.

        The list is empty if no such layer has a batch norm with scale, or if the width of the group is 0.
        """
        by_width: dict[str, list[Tensor]] = {choice.name: [] for choice in self.space.choices}
        for _, entry, _ in self.elastic_layers():
            layer, there = entry.layer, all(arch[name] for name in entry.branch)
            if entry.makes and there and isinstance(layer, ConvBNAct) and layer.affine:
                by_width[entry.makes].append(layer.bn.weight[: int(arch[entry.makes])])
        return by_width

    @torch.no_grad()
    def permute(self, orders: Mapping[str, Tensor]) -> None:
        """Reorders the leading channels of groups in place; architectures that use all of them compute the same.

        Args:
            orders: per group a permutation of 0 to n - 1, (n,); channel i becomes the former channel `order[i]`.
        """
        for _, entry, _ in self.elastic_layers():
            layer = entry.layer
            if entry.makes is not None and entry.makes in orders:
                for tensor in layer.state_dict().values():
                    if tensor.ndim:
                        _reorder(tensor, orders[entry.makes])
            depthwise = isinstance(layer, ConvBNAct) and layer.groups > 1
            if entry.reads in orders and not depthwise:
                weight = layer.conv.weight if isinstance(layer, ConvBNAct) else layer.weight
                _reorder(weight.transpose(0, 1), orders[entry.reads])

    @torch.no_grad()
    def reset_scales(self, first: Mapping[str, int]) -> None:
        """Resets batch norm to scale 1 and shift 0 for the channels of each group from `first` on, in place."""
        for _, entry, _ in self.elastic_layers():
            layer, start = entry.layer, first.get(entry.makes or AS_GIVEN)
            if start is not None and isinstance(layer, ConvBNAct) and layer.affine:
                layer.bn.weight[start:] = 1.0
                layer.bn.bias[start:] = 0.0


def _reorder(tensor: Tensor, order: Tensor) -> None:
    """Permutes the leading rows in place."""
    tensor[: len(order)] = tensor[order]


# -- building ---------------------------------------------------------------------------------------------------------


Row = tuple[str, int, dict[str, Any]]
"""A layer: the decision on its output channels, their published number, and the settings of the layer."""


class _Builder:
    """Collects the steps of a chain, built at `headroom` times the published widths."""

    def __init__(self, in_channels: int, *, headroom: float, affine: bool, layer: type[ConvBNAct] = ConvBNAct) -> None:
        if headroom < 1:
            raise InputError(f"headroom={headroom} is below the published widths; give at least 1")
        self.headroom, self.affine, self.layer = headroom, affine, layer
        self.steps: list[tuple[str, nn.Module]] = []
        self.seed: dict[str, int] = {}
        self.width = self.widest = in_channels

    def add(self, name: str, rows: Sequence[Row], *, shortcut: bool = False, **settings: Any) -> None:
        """Adds a block of layers; a layer with the setting `depthwise` is depthwise.

        Args:
            shortcut: whether an identity skips the block if the shape is kept; with the setting `project`, a projection
                does so otherwise.
        """
        project = settings.pop("project", False)
        stride, out, before, body, makes = 1, rows[-1][1], self.widest, [], []
        for _, _, options in rows:
            stride *= options.get("stride", 1)
        keeps = shortcut and stride == 1 and out == self.width
        for number, (decision, width, options) in enumerate(rows):
            last = keeps and number == len(rows) - 1
            output = AS_GIVEN if last else decision
            widest = self.widest if output == AS_GIVEN else max(width, int(width * self.headroom))
            layer_options = {key: value for key, value in options.items() if key != "depthwise"}
            groups = widest if options.get("depthwise") else 1
            body.append(self.layer(before, widest, groups=groups, affine=self.affine, **layer_options))
            makes.append(output)
            before = widest
            if output != AS_GIVEN:
                self.seed[f"{name}.{decision}"] = width
        beside: nn.Module | None = nn.Identity() if keeps else None
        if shortcut and project and not keeps:
            beside = self.layer(self.widest, before, stride=stride, act=False, affine=self.affine)
        self.steps.append((name, ElasticBlock(body, makes, shortcut=beside, **settings)))
        self.width, self.widest = out, before

    def chain(self, name: str, *, classes: int, input_shape: tuple[int, int, int], dropout: float = 0.0) -> WidthChain:
        """Returns the chain of the steps, followed by a classifier."""
        steps = [*self.steps, ("head", ElasticHead(self.widest, classes, dropout=dropout))]
        return WidthChain(name, steps, seed=self.seed, input_shape=input_shape)


# -- networks ---------------------------------------------------------------------------------------------------------


def plain_small_widths(
    *,
    num_classes: int = 10,
    input_size: int = 16,
    in_channels: int = 3,
    headroom: float = 2.0,
    affine: bool = True,
    widths: Sequence[int] = (16, 32, 64),
) -> WidthChain:
    """Blocks of two 3×3 convolutions without shortcuts, for images of 8 to 64 pixels.

    All blocks but the first halve the resolution. Every layer has a decision of its own, `block{i}.mid` and
    `block{i}.out`, both from 1.
    """
    net = _Builder(in_channels, headroom=headroom, affine=affine)
    for number, width in enumerate(widths):
        first: dict[str, Any] = {"kernel": 3, "stride": 2 if number else 1}
        net.add(f"block{number}", [("mid", width, first), ("out", width, {"kernel": 3})])
    return net.chain("plain-small-widths", classes=num_classes, input_shape=(in_channels, input_size, input_size))


def resnet_20_widths(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    headroom: float = 2.0,
    affine: bool = True,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 3,
) -> WidthChain:
    """ResNet-20 for CIFAR (He et al., 2016, §4.2), stages of basic blocks of 16, 32 and 64 channels.

    The sums of stage 1 reach back to the stem: `stem.width`; those of a later stage have `stage{s}.block0.out`. Within
    a block there is `mid`, from 0. Shortcuts that change the shape are projections (option B), since zero-padded ones
    (option A) would tie the channels of all stages.

    Args:
        blocks: the number of blocks per stage; 6 n + 2 layers for n.
        affine: batch norm with scale and shift, which MorphNet needs.
    """
    net = _Builder(in_channels, headroom=headroom, affine=affine)
    net.add("stem", [("width", widths[0], {"kernel": 3})])
    for stage, width in enumerate(widths, start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            rows: list[Row] = [
                ("mid", width, {"kernel": 3, "stride": stride}),
                ("out", width, {"kernel": 3, "act": False}),
            ]
            net.add(f"stage{stage}.block{block}", rows, shortcut=True, project=True, act=True)
    return net.chain("resnet-20-widths", classes=num_classes, input_shape=(in_channels, input_size, input_size))


def resnet_50_widths(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    headroom: float = 2.0,
    affine: bool = True,
    base: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
) -> WidthChain:
    """ResNet-50 (He et al., 2016, Table 1) with the stride in the 3×3 convolution, as torchvision has it.

    Decisions: `stem.width`; per block `mid1` and `mid2`, from 0; per stage `stage{s}.block0.out`, which its sums share.

    Args:
        base: channels of the stem; stage s has bottlenecks of base · 2**(s - 1) and four times as many around them.
        depths: blocks of each stage.
    """
    net = _Builder(in_channels, headroom=headroom, affine=affine)
    pool = nn.MaxPool2d(3, 2, 1)
    net.add("stem", [("width", base, {"kernel": 7, "stride": 2})], tail=pool, tail_stride=2)
    for stage, depth in enumerate(depths, start=1):
        mid = base * 2 ** (stage - 1)
        for block in range(depth):
            stride = 2 if stage > 1 and block == 0 else 1
            middle: dict[str, Any] = {"kernel": 3, "stride": stride}
            rows: list[Row] = [("mid1", mid, {}), ("mid2", mid, middle), ("out", 4 * mid, {"act": False})]
            net.add(f"stage{stage}.block{block}", rows, shortcut=True, project=True, act=True)
    return net.chain("resnet-50-widths", classes=num_classes, input_shape=(in_channels, input_size, input_size))


MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first: Sandler et al., 2018, Table 2."""


def mobilenetv2_widths(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    headroom: float = 2.0,
    affine: bool = True,
    stem: int = 32,
    table: Sequence[tuple[int, int, int, int]] = MOBILENETV2,
    last: int = 1280,
    dropout: float = 0.2,
) -> WidthChain:
    """MobileNetV2 (Sandler et al., 2018, Table 2), ReLU6.

    Decisions: `stem.width`, which the depthwise convolution of the first block shares; per block the expanded `mid`,
    shared by its depthwise convolution, from 0 where a shortcut goes around it and from 1 elsewhere; `out` of the first
    block of each row, which its sums share; `last.width`.
    """
    net = _Builder(in_channels, headroom=headroom, affine=affine, layer=ConvBNReLU6)
    net.add("stem", [("width", stem, {"kernel": 3, "stride": 2})])
    for stage, (expansion, width, depth, first) in enumerate(table, start=1):
        for block in range(depth):
            middle: dict[str, Any] = {"kernel": 3, "stride": first if block == 0 else 1, "depthwise": True}
            mid = net.width * expansion
            expand = [("mid", mid, {}), ("mid", mid, middle)] if expansion > 1 else [(AS_GIVEN, mid, middle)]
            net.add(f"stage{stage}.block{block}", [*expand, ("out", width, {"act": False})], shortcut=True)
    net.add("last", [("width", last, {})])
    shape = (in_channels, input_size, input_size)
    return net.chain("mobilenetv2-widths", classes=num_classes, input_shape=shape, dropout=dropout)
