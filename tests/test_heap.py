"""The allocator keeps freed tensors, and leaves the user's settings alone."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from supernet.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(10):
    held = [torch.ones(7_000_000) for _ in range(6)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(mode: str, **environment: str) -> tuple[str, int]:
    """Returns what the function returned, and the page faults of a process that takes and frees 168 MB 10 times."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        capture_output=True,
        text=True,
        check=True,
        env={**{name: value for name, value in os.environ.items() if "MALLOC" not in name}, **environment},
    )
    returned, count = done.stdout.split()
    return returned, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_tensors_are_used_again() -> None:
    returned, kept = faults("keep")
    if returned == "False":
        pytest.skip("another allocator than glibc's")
    assert kept < faults("leave")[1] - 200_000  # 9 times 168 MB in pages of 4 KiB are 369,000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_settings_of_the_environment_win() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
