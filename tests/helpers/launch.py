"""torchrun for functions: its agent and its restarts, but its processes are forked, so that libraries load once."""

import uuid
from collections.abc import Callable
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(main: Callable[[Path], None], folder: Path, *, processes: int = 2, restarts: int = 1) -> None:
    """Runs a function in every rank, as `torchrun --standalone` runs a script; a failed start is repeated."""
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
    elastic_launch(config, main)(folder)
