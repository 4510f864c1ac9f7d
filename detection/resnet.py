"""torchvision's ResNets as chains of stages, for detectors with a fixed backbone, and the names of their weights."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from supernet.blocks.plain import PooledClassifier
from supernet.chain import Chain
from supernet.checked import Pixels, Size, checked_arguments


class ResNetStem(nn.Sequential):
    """The stem: 7×7 convolution of stride 2, batch norm, ReLU, 3×3 max pooling of stride 2 (He et al., 2016).

    Shapes: (N, in_channels, H, W) to (N, out_channels, H / 4, W / 4), rounded up.
    """

    stride = 4

    def __init__(self, in_channels: int = 3, out_channels: int = 64) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.in_channels, self.out_channels = in_channels, out_channels

    def out_layout(self, layout: Any) -> Any:
        """Returns the layout at four times the stride."""
        return dataclasses.replace(layout, channels=self.out_channels, stride=self.stride * layout.stride)


class ResNetStage(nn.Sequential):
    """A stage of torchvision's residual blocks; the first 3×3 convolution of the first block has the stride.

    Shapes: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up; out_channels is 4·width for
    bottleneck blocks and width for basic blocks.

    Args:
        in_channels: channels of the input.
        width: channels of the 3×3 convolutions.
        blocks: number of blocks.
        stride: the stride of the stage, 1 or 2.
        bottleneck: whether blocks are bottlenecks instead of basic blocks.
    """

    def __init__(self, in_channels: int, width: int, *, blocks: int, stride: int, bottleneck: bool = True) -> None:
        block = Bottleneck if bottleneck else BasicBlock
        out = width * block.expansion
        shortcut = None
        if stride != 1 or in_channels != out:
            shortcut = nn.Sequential(nn.Conv2d(in_channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        super().__init__(block(in_channels, width, stride, shortcut), *(block(out, width) for _ in range(blocks - 1)))
        self.in_channels, self.width, self.blocks, self.stride = in_channels, width, blocks, stride
        self.bottleneck, self.out_channels = bottleneck, out

    def out_layout(self, layout: Any) -> Any:
        """Returns the layout after the last block."""
        return dataclasses.replace(layout, channels=self.out_channels, stride=self.stride * layout.stride)


def resnet_10(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """ResNet-10 with one basic block per stage, the backbone of NAS-FPN's search (TensorFlow's detection models).

    As in torchvision's ResNets with basic blocks, but unlike TensorFlow's, the first stage has no convolution in its
    shortcut.
    """
    return _chain("resnet-10", (1, 1, 1, 1), num_classes, input_size, bottleneck=False)


def resnet_18(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """torchvision's ResNet-18 as a chain without choices; its tensors have torchvision's order."""
    return _chain("resnet-18", (2, 2, 2, 2), num_classes, input_size, bottleneck=False)


def resnet_50(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """torchvision's ResNet-50 as a chain without choices; its tensors have torchvision's order."""
    return _chain("resnet-50", (3, 4, 6, 3), num_classes, input_size, bottleneck=True)


@checked_arguments
def _chain(name: str, depths: tuple[int, ...], num_classes: Size, input_size: Pixels, *, bottleneck: bool) -> Chain:
    steps: list[tuple[str, nn.Module]] = [("stem", ResNetStem())]
    channels = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
        layer = ResNetStage(channels, width, blocks=blocks, stride=1 if stage == 1 else 2, bottleneck=bottleneck)
        steps.append((f"layer{stage}", layer))
        channels = layer.out_channels
    steps.append(("head", PooledClassifier(channels, num_classes)))
    return Chain(name, steps, input_shape=(3, input_size, input_size))


def from_torchvision(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the weights of a ResNet of torchvision or timm under the names of these chains, without the classifier.

    Any other state dict is returned unchanged.
    """
    if "conv1.weight" not in tensors or "layer1.0.conv1.weight" not in tensors:
        return tensors
    stem = {"conv1": "stem.0", "bn1": "stem.1"}
    renamed = {re.sub(r"^(conv1|bn1)\b", lambda match: stem[match[1]], name): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name.startswith(("stem.", "layer"))}
