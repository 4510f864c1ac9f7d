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
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


def shuffle_choice(in_channels: int, out_channels: int, **settings: Any) -> ChoiceBlock:
    """One block: four units, each with its own projection branch at stride 2; settings as of `ShuffleUnit`."""
    units = {name: ShuffleUnit(in_channels, out_channels, **op, **settings) for name, op in OPERATIONS.items()}
    return ChoiceBlock(units)


def channel_choice(in_channels: int, out_channels: int, **settings: Any) -> ElasticShuffle:
    """One block of `spos-channels`: the four units at their widest, int(1.6 · half the output) in the middle."""
    mids = {scale: int(out_channels // 2 * scale) for scale in SCALES}
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
    """Stages of choice blocks, each made by `block`; the first block of each halves the resolution."""
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

    As in SPOS, the choice blocks of the supernet phase carry batch norm without scale and shift (§3.3 and its code).
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
    dropout: float,
    block: Callable[..., Searchable] = shuffle_choice,
) -> Chain:
    """The skeleton that SPOS and DetNAS share: stride-2 stem, four stages, 1×1 to 1,024, linear layer without bias."""
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, stem, kernel=3, stride=2))]
    steps += shuffle_stages(stem, widths, depths, shuffle=shuffle, affine=affine, block=block)
    steps.append(("head", ClassifierHead(widths[-1], num_classes, hidden=1024, dropout=dropout, bias=False)))
    return Chain(name, steps, input_shape=(in_channels, input_size, input_size))


def _spos(
    name: str,
    block: Callable[..., Searchable],
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "parity",
) -> Chain:
    final = phase == "standalone"
    return _imagenet(
        name,
        (64, 160, 320, 640),
        (4, 4, 8, 4),
        stem=16,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=final,
        dropout=0.1 if final else 0.0,
        block=block,
    )


def spos(**settings: Any) -> Chain:
    """The SPOS space: 20 blocks of four operations, 4**20 architectures (Guo et al., 2020, Table 1).

    The choice blocks of the supernet carry batch norm without scale and shift, as the released code does; the final
    network has both, and dropout 0.1.

    Args:
        settings: num_classes=1000, input_size=224 (pixels), in_channels=3, phase="supernet", shuffle="parity".
    """
    return _spos("spos", shuffle_choice, **settings)


def spos_channels(**settings: Any) -> Chain:
    """The SPOS space with searched channels: per block an operation and a scale, 32**20 architectures.

    The decisions of a block are `op`, then `scale`: the main branch has int(scale · half the output channels) channels
    between its layers, scales 0.2, 0.4 … 1.6. The released code holds one network over these eight scales and no
    supernet with channels; the paper speaks of ten scales, up to 2.0, and of slices of tensors kept at their widest
    (Guo et al., 2020, channel number search). Here every operation owns its widest weights and a scale takes their
    leading channels; batch norm as in `spos`. Settings as in `spos`.
    """
    return _spos("spos-channels", channel_choice, **settings)


def _detnas(
    name: str,
    widths: Sequence[int],
    depths: Sequence[int],
    *,
    stem: int,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    shuffle: str = "interleave",
    affine: bool = True,
) -> Chain:
    return _imagenet(
        name,
        widths,
        depths,
        stem=stem,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        shuffle=shuffle,
        affine=affine or phase == "standalone",
        dropout=0.0,
    )


def detnas_300m(**settings: Any) -> Chain:
    """The small DetNAS space: 20 blocks of four operations, 4**20 architectures (Chen et al., 2019, Table 1).

    Args:
        settings: num_classes=1000, input_size=224 (pixels), in_channels=3, phase="supernet", shuffle="interleave", and
            affine=True: of batch norm in the supernet's choice blocks, which was not published.
    """
    return _detnas("detnas-300m", (64, 160, 320, 640), (4, 4, 8, 4), stem=16, **settings)


def detnas_1_3g(**settings: Any) -> Chain:
    """The large DetNAS space: 40 blocks of four operations, 4**40 architectures; settings as in `detnas_300m`."""
    return _detnas("detnas-1.3g", (96, 240, 480, 960), (8, 8, 16, 8), stem=48, **settings)


def detnas_3_8g(**settings: Any) -> Chain:
    """The 1.3G space with stages 1.8 times as wide, the stem set apart; the paper scaled the 1.3G winner to it."""
    return _detnas("detnas-3.8g", (172, 432, 864, 1728), (8, 8, 16, 8), stem=72, **settings)
