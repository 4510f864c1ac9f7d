"""Images and networks that the tests of scoring with shared weights have in common."""

import torch
from torch import Tensor, nn

from supernet import Chain
from supernet.data.images import Images
from supernet.scoring.batch_norm import BatchStatistics, Inherit, Recalibrate

POLICIES = [Inherit(), BatchStatistics(), Recalibrate(3, 16)]


def random_images(n: int, size: int, seed: int) -> Images:
    """Returns `n` random images of five classes."""
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 5, (n,), generator=draws)
    return Images(pixels, labels, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))


def randomized_norms(net: Chain) -> Chain:
    """Gives the batch norms values as after training, because default values would hide a mistake."""
    draws = torch.Generator().manual_seed(3)
    for norm in (part for part in net.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)):
        for tensor, low, high in (
            (norm.running_mean, -1, 1),
            (norm.running_var, 0.5, 2),
            (norm.weight, 0.5, 2),
            (norm.bias, -1, 1),
        ):
            tensor.data.uniform_(low, high, generator=draws)
    return net


class DropoutHead(nn.Module):
    """A classifier with so much dropout that scores would show it if it were active."""

    stride = 0

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 5
        self.drop, self.fc = nn.Dropout(0.9), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.mean(dim=(2, 3))))
