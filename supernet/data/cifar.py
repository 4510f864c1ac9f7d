"""The sources "cifar10" and "cifar100": torchvision's files, with their own test split."""

import torch

from supernet.config import Data
from supernet.data.images import Splits
from supernet.data.split import split
from supernet.errors import InputError
from supernet.memory import check_memory


def load_cifar(config: Data) -> Splits:
    """Returns CIFAR-10 or CIFAR-100, resized to `config.size`.

    Raises:
        InputError: the files are not in `config.root`, and downloading them is off or fails.
    """
    from torchvision import datasets
    from torchvision.transforms.v2.functional import resize

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    parts = []
    for train in (True, False):
        try:
            part = kind(config.root, train=train, download=config.download)
        except (RuntimeError, OSError) as error:
            remedy = "set data.download=True to fetch it"
            if config.download:
                remedy = "is the network there, and the folder writable?"
            raise InputError(f"{config.source} is not in the folder {config.root!r} ({error}); {remedy}") from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        if config.size != pixels.shape[-1]:
            check_memory(len(pixels), config.size, remedy="lower data.size")
            sides = [config.size, config.size]
            pixels = torch.cat([resize(chunk, sides, antialias=True) for chunk in pixels.split(1000)])
        parts.append((pixels, torch.tensor(part.targets)))
    return split(config, *parts[0], tuple(part.classes), parts[1])
