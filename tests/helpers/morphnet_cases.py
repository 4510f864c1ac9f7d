"""A small MorphNet search with real trainings, for tests in this process and in one that is killed."""

import functools
import os
import signal
from pathlib import Path
from typing import Any

import torch

from searchers import MorphNet, Study, Trial, search
from supernet import create_supernet
from supernet.config import Data, Train
from supernet.cost import CostTable, Feasible
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch
from supernet.spaces.widths import WidthChain
from supernet.train import train_supernet

CONFIG = Train(epochs=4, batch=128, lr=0.1, schedule="constant", warmup_epochs=0.0, save_seconds=0.0)
SETTINGS: dict[str, Any] = {"input_size": 8, "in_channels": 1, "widths": (4, 33)}


@functools.cache
def digits() -> Splits:
    return load(Data(size=8))


def supernet(**settings: Any) -> WidthChain:
    """Small, but with more architectures in a step than a cost table lists."""
    generator = torch.Generator().manual_seed(0)
    chain = create_supernet("plain-small-widths", generator=generator, **{**SETTINGS, **settings})
    assert isinstance(chain, WidthChain)
    return chain


class Shrinking:
    """A training function as a user would write it; on request it kills its process at a given step."""

    def __init__(self, folder: Path | None = None, *, config: Train = CONFIG, kill: tuple[str, int] | None = None):
        self.folder, self.config, self.kill = folder, config, kill
        self.history: dict[str, list[dict[str, float]]] = {}
        self.steps = 0

    def __call__(self, chain: WidthChain, arch: Arch, penalty: Any, run: str) -> None:
        def sampler(step: int) -> tuple[Arch, ...]:
            self.steps += 1
            if (run, step) == self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return (arch,)

        state = None if self.folder is None else self.folder / f"{run}.pt"
        self.history[run] = train_supernet(
            chain, digits(), self.config, sampler=sampler, penalty=penalty, state=state, verbose=False
        )


def searcher(train: Any, *, net: WidthChain | None = None, share: float = 0.6, **settings: Any) -> MorphNet:
    """Two rounds of one λ that shrinks, on a share of the seed's MACs."""
    net = supernet() if net is None else net
    table = CostTable(net)
    feasible = Feasible(table, {"macs": share * table(net.seed)["macs"]})
    defaults = {"rounds": 2, "scan": (2.0,), "threshold": 0.05, "fill": 0.01, **settings}
    return MorphNet(net.space, supernet=net, train=train, feasible=feasible, **defaults)


def searched(morph: MorphNet, path: Path | None = None, *, trials: int = 10) -> list[Trial]:
    evaluate = SharedWeights(morph.supernet, digits().calibration, digits().validation)
    with Study(path, morph.space) as study:
        search(morph, morph.scored(evaluate), study, trials=trials)
        return study.trials()
