"""The global random generators of Python, numpy and torch, which callers find as they left them."""

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch


@contextlib.contextmanager
def restored_generators(device: str = "cpu") -> Iterator[None]:
    """Restores the global generators of Python, numpy and torch (CPU and CUDA) when the block ends.

    Args:
        device: the torch device that the block uses. The generators of CUDA are saved if it is a CUDA device or if CUDA
            is in use already; otherwise saving them would initialise CUDA for nothing.
    """
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    uses_cuda = torch.device(device).type == "cuda" or torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if uses_cuda else None
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
