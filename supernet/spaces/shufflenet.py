"""ShuffleNetV2 choice spaces of SPOS (Guo et al., 2020) and DetNAS (Chen et al., 2019).

Every block chooses one of four operations, in this order of index vectors: `shuffle3`, `shuffle5`, `shuffle7`
(ShuffleNet units with that depthwise kernel) and `xception` (three 3×3 depthwise-separable convolutions).
"""

from collections.abc import Sequence

from torch import nn

from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct, ShuffleUnit
from supernet.searchable import Chain
from supernet.spaces import Phase


def shuffle_choice(in_channels: int, out_channels: int, *, stride: int, shuffle: str, affine: bool) -> ChoiceBlock:
    """One block: four units, each with its own projection branch at stride 2."""

    def unit(kernel: int, xception: bool = False) -> ShuffleUnit:
        return ShuffleUnit(
            in_channels, out_channels, kernel=kernel, xception=xception, stride=stride, shuffle=shuffle, affine=affine
        )

    return ChoiceBlock({"shuffle3": unit(3), "shuffle5": unit(5), "shuffle7": unit(7), "xception": unit(3, True)})


def shuffle_stages(
    in_channels: int, widths: Sequence[int], depths: Sequence[int], *, shuffle: str, affine: bool
) -> list[tuple[str, nn.Module]]:
    """Stages of choice blocks; the first block of each halves the resolution."""
    steps: list[tuple[str, nn.Module]] = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for block in range(depth):
            stride = 2 if block == 0 else 1
            choice = shuffle_choice(in_channels, width, stride=stride, shuffle=shuffle, affine=affine)
            steps.append((f"stage{stage}.block{block}", choice))
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
