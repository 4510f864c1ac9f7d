"""Whether a supernet fits in memory, asked before it is built."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from supernet.errors import InputError

if TYPE_CHECKING:
    pass


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def available_memory(device: torch.device) -> int | None:
    """Free bytes of a device; for the CPU what the system can give without swapping. None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass  # not Linux
    for limit, used in zip(_LIMITS, _USED, strict=True):  # of a container
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found) if found else None


def check_fits(name: str, parameters: int) -> None:
    """Nothing if the weights of a supernet fit in the memory of the default device.

    Raises:
        InputError: they do not; names the estimate.
    """
    device, size = torch.get_default_device(), parameters * torch.get_default_dtype().itemsize
    free = available_memory(device)
    if free is not None and size > free:
        raise InputError(
            f"the supernet {name!r} would hold {parameters:,} parameters, {size / 2**30:,.1f} GiB, but {device.type} "
            f"memory has {max(free, 0) / 2**30:,.1f} GiB to spare; lower filters or repeats, or name fewer ops (single "
            "architectures do not need it: create_network)"
        )


def check_memory(images: int, size: int, *, channels: int = 3, remedy: str) -> None:
    """Whether images would fit in memory once decoded.

    Raises:
        InputError: they need more than is free; it ends with `remedy`.
    """
    # Twice: the splits are copies. Statistics of up to 2**28 values are taken in float32, of more by counting levels.
    values = images * channels * size**2
    needed, free = 2 * values + 4 * min(values, 2**28), free_memory()
    if needed > free:
        raise InputError(
            f"{images} images of {size}×{size} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
            f"{remedy}"
        )


def free_memory() -> int:
    """Bytes that new data can take, counting caches that the system would give up for it where it tells of them."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
