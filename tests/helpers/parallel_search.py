"""A search that two processes of a torchrun make for `test_parallel.py`; the study is written to a folder.

Rank 1 is killed in the first start while it scores; torchrun then starts both again, and they finish the search.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from helpers.scoring_cases import random_images
from helpers.toy_spaces import sliced
from searchers import AgingEvolution, Study, search
from supernet import Arch, Chain
from supernet.cost import CostTable
from supernet.errors import RunError
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.metrics import Metrics
from supernet.scoring.parallel import ParallelEvaluator
from supernet.scoring.shared_weights import SharedWeights
from supernet.training.distributed import World, process_group

TRIALS, BATCH = 24, 6
KILLED_AT = 3  # the call in which rank 1 dies


class Scorer:
    """Scores with shared weights; the process is killed in the call `killed_at`."""

    def __init__(self, net: Chain, killed_at: int | None) -> None:
        self._scores = SharedWeights(
            net, random_images(32, 16, 1), random_images(40, 16, 2), bn=Recalibrate(2, 16), batch=20
        )
        self._calls, self._killed_at = 0, killed_at

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics]:
        self._calls += 1
        if self._calls == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._scores(archs)


def make(study: Path, world: World, killed_at: int | None = None) -> None:
    """Makes the search, or resumes it."""
    torch.manual_seed(0)
    net = sliced()
    parallel = ParallelEvaluator(Scorer(net, killed_at), net.space, world, costs=CostTable(net), balance="macs")
    if not world.main:
        parallel.serve()
        return
    try:
        with Study(study, net.space) as record:
            searcher = AgingEvolution(net.space, population_size=8, tournament_size=3)
            search(searcher, parallel, record, trials=TRIALS, batch=BATCH)
    finally:
        parallel.close()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_start:  # torchrun ends rank 0 as soon as it sees that rank 1 is gone; rank 0 shall see it too
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with process_group("cpu") as world:
        try:
            make(folder / "both.db", world, KILLED_AT if first_start and world.rank == 1 else None)
        except RunError as error:
            print(f"rank {world.rank}: {error}", file=sys.stderr, flush=True)
            raise
