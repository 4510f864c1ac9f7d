"""Whether a supernet fits in memory, asked before it is built."""

from pathlib import Path

import torch

from supernet.errors import InputError

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
