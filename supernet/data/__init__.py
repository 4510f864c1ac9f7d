"""Labelled images: where they come from, how they are split, and the batches that training and scoring read.

There is one module per source (`embedded`, `cifar`, `folder`, `timm`, `function`), and `load` picks one by name. Images
are decoded once to uint8, and kept in a file for later commands (`cache`), or they are streamed. The package imports
torch, torchvision, timm and Pillow for the sources that need them, `supernet.config` and ground modules of `supernet`,
and nothing that knows a network.
"""

from supernet.data.images import Batch, Images, Splits
from supernet.data.load import load
from supernet.data.split import split
from supernet.data.training import training_batches

__all__ = ["Batch", "Images", "Splits", "load", "split", "training_batches"]
