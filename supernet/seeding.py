"""Seeds derived from names and numbers, so that every random stream is a pure function of (seed, purpose, step)."""

import contextlib
import hashlib
import random
from collections.abc import Iterator


def derive_seed(*parts: object) -> int:
    """Returns a 63-bit seed from any printable parts, the same in every process and on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> random.Random:
    """Returns a `random.Random` for the random stream that `parts` name."""
    return random.Random(derive_seed(*parts))


@contextlib.contextmanager
def restored_generators(device: str = "cpu") -> Iterator[None]:
    """Restores the global generators of Python, numpy and torch (CPU and CUDA) when the block ends.

    Args:
        device: the torch device that the block uses. The generators of CUDA are saved if it is a CUDA device or if CUDA
            is in use already; otherwise saving them would initialise CUDA for nothing.
    """
    import numpy
    import torch

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
