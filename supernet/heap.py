"""How the C library keeps the memory of tensors that were freed."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 32 * 2**20  # larger tensors would leave gaps, which cost more than a tenth of the memory
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of freed tensors of up to 32 MiB for the next ones.

    By default glibc gives the memory of a step's tensors back to the system, which fills the pages of the next one's
    with zeros: a tenth to a quarter of the time of a training step. The process holds its largest use until it ends, so
    this is for programs that train or score and then end, as the scripts of this project do.

    Returns:
        whether it has an effect; it has none with another C library than glibc, or where the environment sets malloc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _SETTINGS):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
