"""How the C library keeps the memory of tensors that were freed."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = (64 * 2**20, 32 * 2**20)  # older versions of glibc refuse more than 32 MiB
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of freed tensors of up to 64 MiB for the next ones.

    By default glibc gives large tensors back to the system at once, which fills the pages of the next one with zeros: a
    fifth of the time of a training step with large maps. The process holds its largest use until it ends, so this is
    for programs that train or score and then end, as the scripts of this project do.

    Returns:
        whether it has an effect; it has none with another C library than glibc, or where the environment sets malloc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _SETTINGS):
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
