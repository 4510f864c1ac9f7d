"""Once-for-all's MobileNetV3 space (Cai et al., 2020, section 4.1, and its code)."""

from collections.abc import Sequence

from torch import nn

from supernet.blocks.elastic import ElasticDepth
from supernet.blocks.mbconv import ElasticMBConv
from supernet.blocks.mobile import ConvNormAct, MixingClassifier, SqueezeExcite, multiple_of_8
from supernet.blocks.resolution import resolution_step
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.space import Value
from supernet.spaces.create import Phase

STEM, LAST, HIDDEN = 16, 960, 1280
STAGES = (
    (24, 2, False, False),
    (40, 2, True, False),
    (80, 2, False, True),
    (112, 1, True, True),
    (160, 2, True, True),
)
"""Channels, stride of the first block, squeeze-and-excitation, h-swish in place of ReLU: MobileNetV3-Large (Howard et
al., 2019, Table 1)."""


def ofa_mobilenetv3(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    width: float = 1.0,
    kernels: Sequence[int] = (3, 5, 7),
    expansions: Sequence[int] = (3, 4, 6),
    depths: Sequence[int] = (2, 3, 4),
    matrices: bool = True,
    table: Sequence[tuple[int, int, bool, bool]] = STAGES,
    dropout: float = 0.1,
    resolutions: Sequence[int] = (),
) -> Chain:
    """Once-for-all with MobileNetV3's blocks: five stages of two to four blocks, 7,371**5 = 2.18e19 networks.

    Decisions of each of the five stages: `depth` (2, 3, 4), then per block `kernel` (3, 5, 7) and `expand`, the ratio
    of the middle to the input channels (3, 4, 6), which are active while the block is used. Once-for-all draws the
    resolution too: `resolutions=range(128, 224, 4)`.

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: the number of image channels.
        phase: in the supernet smaller kernels are made by the matrices, which a standalone network does not have.
        width: factor on all channels; the released supernets have 1.0 and 1.2.
        kernels, expansions: options of every block, ascending.
        depths: options of every stage, ascending.
        matrices: whether smaller kernels are learned linear functions of larger ones, or their centre.
        table: per stage its channels, the stride of its first block, whether it has squeeze-and-excitation, and whether
            its activation is h-swish.
        dropout: before the last layer.
        resolutions: options of the decision `input.resolution` below `input_size`, which is always one, in pixels; no
            decision by default.
    """
    if not kernels or not expansions or not depths or min(depths) < 1:
        raise InputError(
            f"kernels={tuple(kernels)}, expansions={tuple(expansions)} and depths={tuple(depths)} each need an option, "
            "and a stage at least one block"
        )
    if not 0 < width <= 16:
        raise InputError(f"width={width} should be above 0 and at most 16")
    channels = multiple_of_8(STEM * width)
    first = {
        "depthwise": ConvNormAct(channels, channels, kernel=3, groups=channels, activation=nn.ReLU),
        "project": ConvNormAct(channels, channels),
    }
    stem = ConvNormAct(in_channels, channels, kernel=3, stride=2, activation=nn.Hardswish)
    steps = resolution_step(in_channels, resolutions, input_size)
    steps += [("stem", stem), ("first", ElasticMBConv(first, shortcut=nn.Identity()))]
    for number, (published, stride, squeeze, hard_swish) in enumerate(table, start=1):
        out, blocks = multiple_of_8(published * width), []
        for block in range(max(depths)):
            blocks.append(
                _block(
                    channels,
                    out,
                    stride=stride if block == 0 else 1,
                    squeeze=squeeze,
                    activation=nn.Hardswish if hard_swish else nn.ReLU,
                    kernels=kernels,
                    expansions=expansions,
                    matrices=matrices and phase == "supernet",
                )
            )
            channels = out
        steps.append((f"stage{number}", ElasticDepth(blocks, depths)))
    last = multiple_of_8(LAST * width)
    steps.append(("last", ConvNormAct(channels, last, activation=nn.Hardswish)))
    head = MixingClassifier(last, num_classes, hidden=multiple_of_8(HIDDEN * width), dropout=dropout)
    steps.append(("head", head))
    return Chain("ofa-mobilenetv3", steps, input_shape=(in_channels, input_size, input_size))


def _block(
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    squeeze: bool,
    activation: type[nn.Module],
    kernels: Sequence[int],
    expansions: Sequence[int],
    matrices: bool,
) -> ElasticMBConv:
    """Returns a block at its largest kernel and expansion; squeeze-and-excitation follows the second activation."""
    mids: dict[Value, int] = {expansion: multiple_of_8(round(in_channels * expansion)) for expansion in expansions}
    hidden: dict[Value, int] = {expansion: multiple_of_8(mid // 4) for expansion, mid in mids.items()}
    mid = max(mids.values())
    layers: dict[str, ConvNormAct | SqueezeExcite] = {
        "expand": ConvNormAct(in_channels, mid, activation=activation),
        "depthwise": ConvNormAct(mid, mid, kernel=max(kernels), stride=stride, groups=mid, activation=activation),
    }
    if squeeze:
        layers["squeeze"] = SqueezeExcite(mid, max(hidden.values()), gate=nn.Hardsigmoid)
    layers["project"] = ConvNormAct(mid, out_channels)
    return ElasticMBConv(
        layers,
        searched=("expand", "depthwise"),
        mids=mids,
        squeezes=hidden if squeeze else {},
        kernels=kernels,
        matrices=matrices,
        shortcut=nn.Identity() if stride == 1 and in_channels == out_channels else None,
    )
