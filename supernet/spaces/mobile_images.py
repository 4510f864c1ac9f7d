"""A space of small mobile networks for folders of photographs, whose costs span a factor of more than ten."""

from collections.abc import Sequence

from torch import nn

from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.spaces.nasbench_macro import identities_last, macro_layer

STRIDES = (1, 2, 2, 2)


def mobile_images(
    *,
    num_classes: int = 10,
    input_size: int = 64,
    in_channels: int = 3,
    widths: Sequence[int] = (16, 24, 48, 96),
    depths: Sequence[int] = (2, 3, 3, 2),
    stem: int = 16,
    stem_stride: int = 2,
    head: int = 256,
) -> Chain:
    """Four stages of inverted residuals or identities for images of 16 to 224 pixels: 3**10 = 59,049 architectures.

    The layers are those of NAS-Bench-Macro (Su et al., 2021), options in index order: `identity` (1×1 convolution and
    batch norm where the shape changes), `mb3_k3` and `mb6_k5`. The first layer of the last three stages has stride 2.

    Args:
        num_classes: size of the logits.
        input_size: pixels; at least 8 times `stem_stride`, so that the last feature maps have a pixel.
        in_channels: the number of image channels.
        widths: channels of the four stages.
        depths: layers of the four stages.
        stem: channels of the first convolution.
        stem_stride: its stride; 1 for images below 48 pixels.
        head: channels before the classifier.

    Raises:
        InputError: other than four stages, or images too small.
    """
    if len(widths) != len(STRIDES) or len(depths) != len(STRIDES):
        raise InputError(f"widths={tuple(widths)} and depths={tuple(depths)} should be four numbers each")
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(in_channels, stem, kernel=3, stride=stem_stride))]
    channels = stem
    for stage, (width, depth, stride) in enumerate(zip(widths, depths, STRIDES, strict=True), start=1):
        for block in range(depth):
            layer = macro_layer(channels, width, stride=stride if block == 0 else 1)
            steps.append((f"stage{stage}.block{block}", layer))
            channels = width
    steps.append(("head", ClassifierHead(channels, num_classes, hidden=head)))
    shape = (in_channels, input_size, input_size)
    return Chain("mobile-images", steps, input_shape=shape, normal_form=identities_last)
