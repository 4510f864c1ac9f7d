"""Curves of a supernet's training on images that are not trained on: a small, a large and random architectures."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from supernet.chain import Chain, largest
from supernet.cost import CostTable
from supernet.scoring.shared_weights import SharedWeights
from supernet.seeding import derive_seed, generator

POINTS = 10
"""Points of a curve; more would cost small trainings too much."""
RANDOM = 2
"""Random architectures, the same at every point."""
COMPARED = 16
"""Random architectures among which the small and the large one are chosen, beside the first and the last options."""
IMAGES = (100, 512)
"""Fewest and most images of the search-validation split; in between a twentieth of the training split."""


class HeldOutCurves:
    """Scores the same few architectures of a supernet about ten times while it trains, the only one after every epoch.

    Args:
        supernet: that is trained.
        data: with the splits `train` and `validation`.
        scorer: returns the evaluator of a supernet on some of the validation images.
        metrics: the names of the metrics that are recorded.
        table: costs of the space, which tell what is small and large.
        epochs: the number of epochs of the training.
        seed: the seed of the random architectures and the images.
    """

    def __init__(
        self,
        supernet: Chain,
        data: Any,
        scorer: Callable[[Chain, Any], SharedWeights],
        metrics: Sequence[str],
        table: CostTable,
        *,
        epochs: int,
        seed: int,
    ) -> None:
        space, rng = supernet.space, generator(seed, "held out")
        drawn = [space.normal_form(space.sample(rng)) for _ in range(COMPARED)]
        ends = (space.from_indices([0] * len(space)), largest(space))
        by_cost = sorted({*drawn, *map(space.normal_form, ends)}, key=lambda arch: (table(arch)["macs"], arch.key))
        self.archs = {"small": [by_cost[0]], "large": [by_cost[-1]], "random": drawn[:RANDOM]}
        self.every, self.epochs = max(epochs // POINTS, 1), epochs
        if len(by_cost) == 1 and space.size() == 1:  # an ordinary network, such as a detector on a fixed backbone
            self.archs, self.every = {"network": by_cost}, 1
        fewest, most = IMAGES
        count = min(max(len(data.train) // 20, fewest), most, len(data.validation))
        shuffled = torch.Generator().manual_seed(derive_seed(seed, "held-out images"))
        self._images = data.validation.subset(torch.randperm(len(data.validation), generator=shuffled)[:count])
        self._scorer, self._metrics = scorer, tuple(metrics)

    def __call__(self, supernet: Chain, epoch: int) -> dict[str, float]:
        """Returns the finite mean metrics by name, as "small_accuracy", or nothing after an epoch without a point.

        Args:
            supernet: in any mode, which it keeps.
            epoch: number of the epoch that has ended, from 1.
        """
        if epoch % self.every and epoch != self.epochs:
            return {}
        modes = [(module, module.training) for module in supernet.modules()]
        supernet.eval()
        try:
            evaluate = self._scorer(supernet, self._images)
            distinct = list(dict.fromkeys(arch for archs in self.archs.values() for arch in archs))
            scores = dict(zip(distinct, evaluate(distinct), strict=True))  # in one request, which shares their prefixes
            means = {
                f"{name}_{metric}": statistics.fmean(scores[arch][metric] for arch in archs)
                for name, archs in self.archs.items()
                for metric in self._metrics
            }
            return {name: mean for name, mean in means.items() if math.isfinite(mean)}
        finally:
            for module, mode in modes:
                module.training = mode
