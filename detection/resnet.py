"""torchvision's ResNets in stages, as fixed backbones of detectors, and what their published weights are called."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from supernet.blocks.plain import PooledClassifier
from supernet.chain import Chain


class ResNetStem(nn.Sequential):
    """7×7 convolution of stride 2, batch norm, ReLU, 3×3 max pooling of stride 2 (He et al., 2016).

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
        """A quarter of the size."""
        return dataclasses.replace(layout, channels=self.out_channels, stride=self.stride * layout.stride)


class ResNetStage(nn.Sequential):
    """A stage of torchvision's residual blocks, the stride in the first one's (first) 3×3 convolution.

    Shapes: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride); of bottlenecks out_channels = 4·width,
    of basic blocks width.
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
        """That of the last block."""
        return dataclasses.replace(layout, channels=self.out_channels, stride=self.stride * layout.stride)


def resnet_10(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """One basic block in every stage: the backbone that NAS-FPN was searched with (TensorFlow's detection models).

    As in torchvision's ResNets of basic blocks, and not in TensorFlow's, the first stage has no convolution in its
    shortcut.
    """
    return _chain("resnet-10", (1, 1, 1, 1), num_classes, input_size, bottleneck=False)


def resnet_18(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """torchvision's ResNet-18 as a chain without decisions; its tensors stand in torchvision's order."""
    return _chain("resnet-18", (2, 2, 2, 2), num_classes, input_size, bottleneck=False)


def resnet_50(*, num_classes: int = 1000, input_size: int = 224) -> Chain:
    """torchvision's ResNet-50 as a chain without decisions; its tensors stand in torchvision's order."""
    return _chain("resnet-50", (3, 4, 6, 3), num_classes, input_size, bottleneck=True)


def _chain(name: str, depths: tuple[int, ...], num_classes: int, input_size: int, *, bottleneck: bool) -> Chain:
    steps: list[tuple[str, nn.Module]] = [("stem", ResNetStem())]
    channels = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
        made = ResNetStage(channels, width, blocks=blocks, stride=1 if stage == 1 else 2, bottleneck=bottleneck)
        steps.append((f"layer{stage}", made))
        channels = made.out_channels
    steps.append(("head", PooledClassifier(channels, num_classes)))
    return Chain(name, steps, input_shape=(3, input_size, input_size))


def from_torchvision(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a ResNet of torchvision or timm by the names of these chains, without the classifier; others as
    they are.
    """
    if "conv1.weight" not in tensors or "layer1.0.conv1.weight" not in tensors:
        return tensors
    stem = {"conv1": "stem.0", "bn1": "stem.1"}
    renamed = {re.sub(r"^(conv1|bn1)\b", lambda found: stem[found[1]], name): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name.startswith(("stem.", "layer"))}
