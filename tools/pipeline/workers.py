"""Runs a command in several processes on this machine, as torchrun does, by a flag."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from supernet.errors import InputError

STARTED_BY = "SUPERNET_WORKERS"
"""Environment variable of every process of such a group: the number of processes."""
PATIENCE = 20.0
"""Seconds that the other processes have to end after the first one."""


@contextlib.contextmanager
def workers(count: int) -> Iterator[None]:
    """Starts this command `count - 1` more times, as the other ranks of a process group, and ends them at the end.

    Call it before torch is imported: unless `OMP_NUM_THREADS` is set, the processes share out the cores of the machine.
    Ctrl-C and SIGTERM reach the first process only, which ends the others; if it is killed, they notice and end.

    Args:
        count: processes in all; 1 starts none.

    Raises:
        InputError: the command already runs under torchrun.
    """
    if count == 1 or os.environ.get(STARTED_BY):
        yield
        return
    if "RANK" in os.environ:
        raise InputError(f"workers={count}: torchrun has started the processes already; leave out one of the two")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    common = {
        STARTED_BY: str(count),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    others = [_started(os.environ | common | _rank(rank)) for rank in range(1, count)]
    own = common | _rank(0)
    os.environ.update(own)
    try:
        yield
        for other in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.wait(PATIENCE)
    finally:
        for name in own:
            os.environ.pop(name, None)
        for other in others:
            if other.poll() is None:
                other.kill()
            other.wait()


def _rank(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _started(environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Starts the same command in a session of its own, which a terminal's Ctrl-C does not reach."""
    command = [sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
