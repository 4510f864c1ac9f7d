"""torchrun for functions: its agent and its restarts, but its processes are forked, so that libraries load once."""

import multiprocessing
import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(main: Callable[[Path], None], folder: Path, *, processes: int = 2, restarts: int = 1) -> str:
    """Runs a function in every rank, as `torchrun --standalone` runs a script; a failed start is repeated.

    The agent has a process of its own, since it handles signals and leaves threads behind.

    Returns:
        what the agent and the ranks said.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    with tempfile.NamedTemporaryFile("w+") as output:
        process = multiprocessing.get_context("fork").Process(target=_agent, args=(config, main, folder, output.name))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.terminate()
        said = output.read()
    assert process.exitcode == 0, said
    return said


def _agent(config: LaunchConfig, main: Callable[[Path], None], folder: Path, output: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # not those of pytest
    elastic_launch(config, main)(folder)
    sys.stdout.flush()
