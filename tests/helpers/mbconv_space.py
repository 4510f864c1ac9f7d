"""A space as a user may write it: blocks of their own, of which each decides kernel and expansion or is left out."""

from torch import Tensor, nn

from supernet import Chain
from supernet.blocks.choice import ChoiceBlock


class Stem(nn.Module):
    """A strided convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, 2
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.bn(self.conv(x)))


class MBConv(nn.Module):
    """An inverted residual block (Sandler et al., 2018) with SiLU."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, expand: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.expand, self.stride = kernel, expand, stride
        mid = in_channels * expand
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.SiLU(),
            nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.SiLU(),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + x if self.stride == 1 and self.in_channels == self.out_channels else out


class Head(nn.Module):
    """Mean over the map and a linear classifier."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.out_channels, self.stride = in_channels, num_classes, num_classes, 0
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def build(*, num_classes: int = 10, input_size: int = 48, in_channels: int = 3) -> Chain:
    """Five options per block, four where the resolution or the width changes: 5**5 * 4**3 architectures."""
    steps: list[tuple[str, nn.Module]] = [("stem", Stem(in_channels, 16))]
    before = 16
    for i, (after, stride) in enumerate([(16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (40, 1), (80, 2), (80, 1)]):
        options: dict[str, nn.Module] = {
            f"k{k}e{e}": MBConv(before, after, kernel=k, expand=e, stride=stride) for k in (3, 5) for e in (2, 4)
        }
        if stride == 1 and before == after:
            options["skip"] = nn.Identity()
        steps.append((f"block{i}", ChoiceBlock(options)))
        before = after
    steps.append(("head", Head(before, num_classes)))
    return Chain("own-mbconv", steps, input_shape=(in_channels, input_size, input_size))
