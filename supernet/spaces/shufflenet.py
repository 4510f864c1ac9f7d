"""ShuffleNetV2 choice spaces of SPOS (Guo et al., 2020) and DetNAS (Chen et al., 2019).

Every block chooses one of four operations, in this order of index vectors: `shuffle3`, `shuffle5`, `shuffle7`
(ShuffleNet units with that depthwise kernel) and `xception` (three 3×3 depthwise-separable convolutions).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.elastic import ElasticShuffle
from supernet.blocks.plain import ClassifierHead, ConvBNAct, ShuffleUnit
from supernet.chain import Chain, Searchable
from supernet.spaces.create import Phase

OPERATIONS: dict[str, dict[str, Any]] = {
    "shuffle3": {"kernel": 3},
    "shuffle5": {"kernel": 5},
    "shuffle7": {"kernel": 7},
    "xception": {"kernel": 3, "xception": True},
}
SMALL_WIDTHS, SMALL_DEPTHS = (64, 160, 320, 640), (4, 4, 8, 4)
LARGE_DEPTHS = (8, 8, 16, 8)
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


def shuffle_choice(in_channels: int, out_channels: int, **settings: Any) -> ChoiceBlock:
    """A block of four units, each with its own projection branch at stride 2; further settings are `ShuffleUnit`'s."""
    units = {name: ShuffleUnit(in_channels, out_channels, **op, **settings) for name, op in OPERATIONS.items()}
    return ChoiceBlock(units)


def channel_choice(in_channels: int, out_channels: int, **settings: Any) -> ElasticShuffle:
    """A block of `spos-channels`: the four units at their widest, with int(1.6 · half the output) middle channels."""
    mids = {scale: max(1, int(out_channels // 2 * scale)) for scale in SCALES}
    return ElasticShuffle(in_channels, out_channels, operations=OPERATIONS, mids=mids, **settings)


def shuffle_stages(
    in_channels: int,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    shuffle: str,
    affine: bool,
    block: Callable[..., Searchable] = shuffle_choice,
) -> list[tuple[str, nn.Module]]:
    """The steps of the stages, one `block` each; the first block of a stage halves the resolution."""
    steps: list[tuple[str, nn.Module]] = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for number in range(depth):
            stride = 2 if number == 0 else 1
            choice = block(in_channels, width, stride=stride, shuffle=shuffle, affine=affine)
            steps.append((f"stage{stage}.block{number}", choice))
            in_channels = width
    return steps


def shufflenet_small(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    depths: Sequence[int] = (2, 4, 2),
    widths: Sequence[int] = (48, 96, 192),
    stem: int = 16,
    head: int = 256,
    shuffle: str = "parity",
) -> Chain:
    """The SPOS block on images of 16 to 64 pixels: stem at full resolution, three stages, 4**8 architectures.

    As in SPOS, the choice blocks of the supernet phase have batch norm without scale and shift (§3.3 and its code).
    """
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, stem, kernel=3))]
    steps += shuffle_stages(stem, widths, depths, shuffle=shuffle, affine=phase == "standalone")
    steps.append(("head", ClassifierHead(widths[-1], num_classes, hidden=head)))
    return Chain("shufflenet-small", steps, input_shape=(in_channels, input_size, input_size))


def _imagenet(
    name: str,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    stem: int,
    num_classes: int,
    input_size: int,
    in_channels: int,
    shuffle: str,
    affine: bool,
    dropout: float = 0.0,
    block: Callable[..., Searchable] = shuffle_choice,
) -> Chain:
    """The skeleton of SPOS and DetNAS: stride-2 stem, four stages, 1×1 to 1,024, linear layer without bias."""
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, stem, kernel=3, stride=2))]
    steps += shuffle_stages(stem, widths, depths, shuffle=shuffle, affine=affine, block=block)
    steps.append(("head", ClassifierHead(widths[-1], num_classes, hidden=1024, dropout=dropout, bias=False)))
    return Chain(name, steps, input_shape=(in_channels, input_size, input_size))


def spos(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "parity",
) -> Chain:
    """The SPOS space: 20 blocks of four operations, 4**20 architectures (Guo et al., 2020, Table 1).

    The choice blocks of the supernet have batch norm without scale and shift, as in the released code; the standalone
    network has both, and dropout 0.1.

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: the number of image channels.
        phase: `"supernet"` or `"standalone"`.
        shuffle: see `ShuffleUnit`.
    """
    return _imagenet(
        "spos",
        SMALL_WIDTHS,
        SMALL_DEPTHS,
        stem=16,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=phase == "standalone",
        dropout=0.1 if phase == "standalone" else 0.0,
    )


def spos_channels(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "parity",
) -> Chain:
    """The SPOS space with searched channels: per block an operation and a scale, 32**20 architectures.

    The decisions of a block are `op`, then `scale`: the main branch has int(scale · half the output channels) channels
    between its layers, with scales 0.2, 0.4 … 1.6. The released code contains one network over these eight scales, but
    no supernet with channels; the paper mentions ten scales, up to 2.0, and slices of tensors stored at their largest
    width (Guo et al., 2020, channel number search). Here every operation has its own weights at the largest width, and
    a scale uses their leading channels. Batch norm, dropout and arguments are those of `spos`.
    """
    return _imagenet(
        "spos-channels",
        SMALL_WIDTHS,
        SMALL_DEPTHS,
        stem=16,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=phase == "standalone",
        dropout=0.1 if phase == "standalone" else 0.0,
        block=channel_choice,
    )


def detnas_300m(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "interleave",
    affine: bool = True,
    dropout: float = 0.2,
) -> Chain:
    """The small DetNAS space: 20 blocks of four operations, 4**20 architectures (Chen et al., 2019, Table 1).

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: the number of image channels.
        phase: `"supernet"` or `"standalone"`.
        shuffle: see `ShuffleUnit`.
        affine: whether batch norm in the supernet's choice blocks has scale and shift, which the paper does not say.
        dropout: probability that a channel before the linear layer is dropped, in the supernet too, as in the released
            code. That has `Dropout2d` before the global average pooling, which is the same as dropout behind it.
    """
    return _imagenet(
        "detnas-300m",
        SMALL_WIDTHS,
        SMALL_DEPTHS,
        stem=16,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=affine or phase == "standalone",
        dropout=dropout,
    )


def detnas_1_3g(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "interleave",
    affine: bool = True,
    dropout: float = 0.2,
) -> Chain:
    """The large DetNAS space: 40 blocks of four operations, 4**40 architectures; arguments as in `detnas_300m`."""
    return _imagenet(
        "detnas-1.3g",
        (96, 240, 480, 960),
        LARGE_DEPTHS,
        stem=48,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=affine or phase == "standalone",
        dropout=dropout,
    )


def detnas_3_8g(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "interleave",
    affine: bool = True,
    dropout: float = 0.2,
) -> Chain:
    """The 1.3G space with stages 1.8 times as wide and a stem of 72 channels; arguments as in `detnas_300m`.

    The paper did not search it: it scaled the winner of the 1.3G space to this size.
    """
    return _imagenet(
        "detnas-3.8g",
        (172, 432, 864, 1728),
        LARGE_DEPTHS,
        stem=72,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=affine or phase == "standalone",
        dropout=dropout,
    )
