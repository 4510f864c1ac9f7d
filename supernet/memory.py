"""How much memory is free, and checks that refuse a data set or a supernet that cannot fit before work begins."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from supernet.errors import InputError


def free_memory(device: torch.device | None = None, *, root: Path = Path("/")) -> int | None:
    """Returns the bytes that new data can take; None if the system does not say.

    For a CUDA device it is the device's free memory. For the CPU it is what the system can give without swapping,
    including file caches that it would give up, and no more than what every enclosing control group (container, batch
    job) still allows.

    Args:
        device: the CPU by default.
        root: where `proc` and `sys` are mounted.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device is not None and device.type != "cpu":
        return None
    amounts = list(_control_groups(root))
    system = _table(root / "proc/meminfo").get("MemAvailable:")
    if system is not None:
        amounts.append(system * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:  # not Linux
        amounts.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(amounts)) if amounts else None


def _control_groups(root: Path) -> Iterator[int]:
    """Yields the bytes that this process's control group and each enclosing one still allow, if they have a limit.

    /proc/self/cgroup names the group of each hierarchy, and /proc/self/mountinfo where the hierarchy is mounted; a
    container may see only the part below its own group. Of version 1 only the hierarchy "memory" matters.
    """
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):  # "4:memory:/docker/1f" (version 1) or "0::/docker/1f" (version 2)
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            groups["cgroup2" if number == "0" else "cgroup"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = (filesystem.split() + [""] * 3)[:3]
        if kind not in groups or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        mounted, point = mount.split()[3:5]  # which group is at the mount point, and where that is
        top = root / point.lstrip("/")
        group = top
        if f"{groups[kind]}/".startswith(f"{mounted.rstrip('/')}/"):
            group = top / groups[kind][len(mounted) :].strip("/")
        for folder in (group, *group.parents):
            yield from _remaining(folder, version=2 if kind == "cgroup2" else 1)
            if folder == top:
                break


def _remaining(group: Path, *, version: int) -> Iterator[int]:
    """Yields the limit of a control group minus its usage, not counting file caches; nothing without a limit."""
    if version == 2:
        limit, usage, caches = "memory.max", "memory.current", ("active_file", "inactive_file")
    else:
        limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        caches = ("total_active_file", "total_inactive_file")
    try:
        allowed, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, usage))
    except (OSError, ValueError):  # no such group or file, or the limit is "max"
        return
    statistics = _table(group / "memory.stat")
    yield allowed - used + sum(statistics.get(name, 0) for name in caches)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _table(path: Path) -> dict[str, int]:
    """Returns a file of lines "name number" as a dictionary."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def check_fits(name: str, parameters: int) -> None:
    """Checks that the weights of a supernet fit in the memory of the default device.

    Args:
        name: the name of the supernet, for the message.
        parameters: how many it has.

    Raises:
        InputError: they do not fit; the message gives the estimate.
    """
    device, size = torch.get_default_device(), parameters * torch.get_default_dtype().itemsize
    free = free_memory(device)
    if free is not None and size > free:
        raise InputError(
            f"the supernet {name!r} would hold {parameters:,} parameters, {size / 2**30:,.1f} GiB, but {device.type} "
            f"memory has {free / 2**30:,.1f} GiB free; lower filters or repeats, or name fewer ops (single "
            "architectures do not need it: create_network)"
        )


def check_memory(images: int, size: int, *, channels: int = 3, remedy: str) -> None:
    """Checks that images fit in memory once decoded.

    Args:
        images: how many.
        size: height and width in pixels.
        channels: per image.
        remedy: end of the message.

    Raises:
        InputError: they need more memory than is free.
    """
    # Twice, since the splits are copies. Statistics of up to 2**28 values are taken in float32, of more by a histogram.
    values = images * channels * size**2
    needed, free = 2 * values + 4 * min(values, 2**28), free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{images} images of {size}×{size} need {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
            f"{remedy}"
        )
