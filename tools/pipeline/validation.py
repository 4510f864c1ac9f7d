"""A retraining's metrics on the validation split after every epoch, and the weights of its best epoch."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from supernet.chain import Chain
from supernet.training.checkpoint import read_metadata, save_weights

BEST = "best.safetensors"
"""The weights of the epoch with the best metric on the validation split, beside those of the last epoch."""


class ValidationCurve:
    """Scores a network after every epoch of its training and keeps the best weights; it changes neither.

    The file is only replaced by better weights. A training that was killed after writing it and goes on from an earlier
    epoch repeats the same epochs and leaves the same file.

    Args:
        score: returns the metrics of a network in eval mode, by name.
        metric: the one that decides what is best; larger is better.
        file: the file of the best weights.
        metadata: kept in the file beside `epoch` and the metric.
    """

    def __init__(
        self, score: Callable[[nn.Module], Mapping[str, float]], metric: str, file: Path, metadata: Mapping[str, str]
    ) -> None:
        self._score, self._metric, self._file, self._metadata = score, metric, file, metadata
        self._best = -math.inf
        if file.exists():
            self._best = json.loads(read_metadata(file)[metric])

    def __call__(self, chain: Chain, epoch: int) -> dict[str, float]:
        """Returns `validation_NAME` of every metric, those that are finite.

        Args:
            chain: whose only step is the network, in any mode, which it keeps.
            epoch: number of the epoch that has ended, from 1.
        """
        (network,) = chain.step_modules
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            scores = {name: value for name, value in self._score(network).items() if math.isfinite(value)}
        finally:
            for module, mode in modes:
                module.training = mode
        value = scores.get(self._metric, -math.inf)
        if value > self._best:
            notes = {**self._metadata, "epoch": str(epoch), self._metric: json.dumps(value)}
            save_weights(self._file, network, notes)
            self._best = value
        return {f"validation_{name}": value for name, value in scores.items()}


def best_epoch(file: Path, metric: str) -> dict[str, float]:
    """Returns `best_epoch` and `best_validation_METRIC` of a file of best weights, nothing if there is none."""
    if not file.exists():
        return {}
    notes = read_metadata(file)
    return {"best_epoch": int(notes["epoch"]), f"best_validation_{metric}": json.loads(notes[metric])}
