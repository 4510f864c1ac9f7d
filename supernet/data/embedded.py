"""The digits that scikit-learn ships, and CIFAR from torchvision's files."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from supernet.config import Data
from supernet.errors import InputError

if TYPE_CHECKING:
    pass

from supernet.data.decode import Labelled
from supernet.memory import check_memory

# -- digits and CIFAR -------------------------------------------------------------------------------------------------


def digits(size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """scikit-learn's 1,797 scans: pixels, uint8, (N, 1, size, size), labels and class names."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.from_numpy(scans.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    if size != pixels.shape[-1]:
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return (pixels * 255).round().to(torch.uint8), torch.from_numpy(scans.target).long(), tuple("0123456789")


def cifar(config: Data) -> tuple[Tensor, Tensor, tuple[str, ...], Labelled]:
    """CIFAR-10 or CIFAR-100: pixels, labels, class names, and pixels and labels of its test split.

    Raises:
        InputError: the files are not in `config.root`, and fetching them is off or fails.
    """
    from torchvision import datasets
    from torchvision.transforms.v2.functional import resize

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    parts = []
    for train in (True, False):
        try:
            part = kind(config.root, train=train, download=config.download)
        except (RuntimeError, OSError) as error:
            remedy = "fetch it: --data.download"
            if config.download:
                remedy = "is the network there, and the folder writable?"
            raise InputError(f"the folder {config.root!r} holds no {config.source} ({error}); {remedy}") from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        if config.size != pixels.shape[-1]:
            check_memory(len(pixels), config.size, remedy="lower --data.size")
            side = [config.size, config.size]
            pixels = torch.cat([resize(some, side, antialias=True) for some in pixels.split(1000)])
        parts.append((pixels, torch.tensor(part.targets)))
    return *parts[0], tuple(part.classes), parts[1]
