"""The source "digits": the scans that scikit-learn ships."""

import torch
from torch.nn import functional

from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.split import split
from supernet.memory import check_memory


def load_digits(config: Data) -> Splits:
    """Returns scikit-learn's 1,797 scans, gray and resized to `config.size`."""
    from sklearn import datasets

    scans = datasets.load_digits()
    pixels = torch.from_numpy(scans.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    if config.size != pixels.shape[-1]:
        check_memory(len(pixels), config.size, channels=4, remedy="lower data.size")  # bytes of a float32
        pixels = functional.interpolate(pixels, size=(config.size, config.size), mode="bilinear", antialias=True)
    labels = torch.from_numpy(scans.target).long()
    return split(config, (pixels * 255).round().to(torch.uint8), labels, tuple("0123456789"))
