"""Free memory: control groups of both versions, nested and inside containers, read from real files."""

from pathlib import Path

import torch

from supernet.memory import free_memory

GIB = 2**30


def system(root: Path, files: dict[str, object]) -> Path:
    """Writes files below a root that stands for /."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="ascii")
    return root


def meminfo(free: int) -> dict[str, object]:
    return {"proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable: {free // 1024} kB"}


def group2(folder: str, *, limit: object, used: int, cache: int = 0) -> dict[str, object]:
    """The files of a control group of version 2."""
    statistics = f"anon {used - cache}\nactive_file {cache // 4}\ninactive_file {cache - cache // 4}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": statistics,
    }


def group1(folder: str, *, limit: int, used: int, cache: int = 0) -> dict[str, object]:
    """The files of a control group of version 1."""
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_active_file 0\ntotal_inactive_file {cache}",
    }


VERSION_2 = {"proc/self/mountinfo": "24 19 0:21 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"}
VERSION_1 = {
    "proc/self/mountinfo": "30 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "31 25 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
}


def test_this_machine_has_memory() -> None:
    free = free_memory()
    assert free is not None
    assert 2**26 < free < 2**45
    assert free_memory(torch.device("meta")) is None


def test_without_control_groups_the_system_decides(tmp_path: Path) -> None:
    assert free_memory(root=system(tmp_path, meminfo(3 * GIB))) == 3 * GIB


def test_the_tightest_of_nested_groups_of_version_2_decides(tmp_path: Path) -> None:
    files = meminfo(64 * GIB) | VERSION_2 | {"proc/self/cgroup": "0::/slurm/job/step"}
    files |= group2("sys/fs/cgroup/slurm/job/step", limit="max", used=GIB)
    files |= group2("sys/fs/cgroup/slurm/job", limit=8 * GIB, used=2 * GIB)
    files |= group2("sys/fs/cgroup/slurm", limit=32 * GIB, used=30 * GIB, cache=5 * GIB)
    assert free_memory(root=system(tmp_path, files)) == 6 * GIB
    assert free_memory(root=system(tmp_path, group2("sys/fs/cgroup/slurm", limit=32 * GIB, used=30 * GIB))) == 2 * GIB
    assert free_memory(root=system(tmp_path, meminfo(GIB))) == GIB


def test_file_caches_of_a_group_count_as_free(tmp_path: Path) -> None:
    files = meminfo(64 * GIB) | VERSION_2 | {"proc/self/cgroup": "0::/"}
    files |= group2("sys/fs/cgroup", limit=8 * GIB, used=8 * GIB, cache=7 * GIB)
    assert free_memory(root=system(tmp_path, files)) == 7 * GIB
    full = group2("sys/fs/cgroup", limit=8 * GIB, used=9 * GIB)
    assert free_memory(root=system(tmp_path, full)) == 0


def test_nested_groups_of_version_1(tmp_path: Path) -> None:
    files = meminfo(64 * GIB) | VERSION_1 | {"proc/self/cgroup": "5:cpu:/other\n4:memory:/batch/job\n0::/"}
    files |= group1("sys/fs/cgroup/memory/batch/job", limit=16 * GIB, used=4 * GIB, cache=GIB)
    files |= group1("sys/fs/cgroup/memory/batch", limit=2**63 - 4096, used=40 * GIB)
    assert free_memory(root=system(tmp_path, files)) == 13 * GIB


def test_a_container_that_sees_only_its_own_groups(tmp_path: Path) -> None:
    mounts = "31 25 0:28 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    files = meminfo(64 * GIB) | {"proc/self/mountinfo": mounts, "proc/self/cgroup": "4:memory:/docker/1f/inner"}
    files |= group1("sys/fs/cgroup/memory", limit=4 * GIB, used=GIB)
    files |= group1("sys/fs/cgroup/memory/inner", limit=2 * GIB, used=GIB)
    assert free_memory(root=system(tmp_path, files)) == GIB
    outside = {"proc/self/cgroup": "4:memory:/docker/1f2"}  # another group whose name only begins like the mounted one
    assert free_memory(root=system(tmp_path, outside)) == 3 * GIB
