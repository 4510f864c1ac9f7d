"""The space of AttentiveNAS (Wang et al., 2021) and AlphaNet, after BigNAS (Yu et al., 2020)."""

from collections.abc import Sequence

from torch import nn

from supernet.blocks.elastic_stage import ElasticConv, ElasticMixingHead, ElasticStage
from supernet.blocks.mobile import ConvNormAct
from supernet.blocks.resolution import resolution_step
from supernet.chain import Chain
from supernet.spaces.attentivenas_stages import HEAD, KERNELS, STAGES, STEM, Stage


def attentivenas(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    stem: Sequence[int] = STEM,
    table: Sequence[Stage] = STAGES,
    kernels: Sequence[int] = KERNELS,
    head: Sequence[int] = HEAD,
    ratio: int = 6,
    dropout: float = 0.2,
    resolutions: Sequence[int] = (),
) -> Chain:
    """Seven stages of MBConv blocks with one width, depth, kernel and expansion each: 110,075,314,176 architectures.

    Decisions in order: `stem.width`; of each stage `width`, `depth`, `kernel` and `expand` where there are several
    options; `head.width`. The papers search the resolution too (192, 224, 256 or 288 pixels), which makes 4.4e11:
    `input_size=288, resolutions=(192, 224, 256)`.

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: the number of image channels.
        stem: options of the first convolution's channels.
        table: the stages: widths, depths, expansions, stride of the first block, squeeze-and-excitation.
        kernels: options of every stage.
        head: options of the features before the last layer.
        ratio: channels of the last convolution per channel of the last stage.
        dropout: before the last layer.
        resolutions: options of the decision `input.resolution` below `input_size`, which is always one, in pixels; no
            decision by default.
    """
    first = ConvNormAct(in_channels, max(stem), kernel=3, stride=2, activation=nn.SiLU)
    steps = [*resolution_step(in_channels, resolutions, input_size), ("stem", ElasticConv(first, stem))]
    channels = max(stem)
    for number, row in enumerate(table, start=1):
        stage = Stage(*row)
        steps.append(
            (
                f"stage{number}",
                ElasticStage(
                    channels,
                    widths=stage.widths,
                    depths=stage.depths,
                    kernels=kernels,
                    expansions=stage.expansions,
                    stride=stage.stride,
                    squeeze=stage.squeeze,
                ),
            )
        )
        channels = max(stage.widths)
    steps.append(("head", ElasticMixingHead(channels, num_classes, ratio=ratio, widths=head, dropout=dropout)))
    return Chain("attentivenas", steps, input_shape=(in_channels, input_size, input_size))
