"""Correcting shared scores without labels: a few architectures are fine-tuned for equally many steps.

Shared weights are trained unevenly. Options without weights need no training and look better than they will be; options
that are trained rarely, and deep networks, look worse. A few steps on their own, from the shared weights, already rank
architectures better, but that is too expensive for every candidate of a search. The bias is nearly additive in the
options, so a few such probes are enough to learn it: a ridge regression predicts the score after fine-tuning from the
shared score and the options.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from supernet.checked import arguments_explained
from supernet.errors import InputError
from supernet.ranking.calibrate import Floats, Ridge, fit_ridge, one_hot
from supernet.space import Arch, SearchSpace, Value

FEWEST = 8
"""Probes that a correction needs at least."""
SINGLE = 0.3
"""Weight of one option at one place beside the same option at all like places, which has 1."""


def option_features(space: SearchSpace, archs: Sequence[Arch]) -> Floats:
    """Returns how often each architecture takes each option, and where, (architectures, features).

    Choices with the same options, such as the operations on the edges of a cell, share columns that count an option
    over all of them. A few probes cannot tell what an option does at every single place, but what it does on average;
    the one-hot decisions follow with less weight.

    Args:
        space: the space of the architectures; their normal forms count.
        archs: to describe.
    """
    single = one_hot(space, archs)
    groups: dict[tuple[Value, ...], int] = {}
    columns: list[int] = []
    width = 0
    for choice in space.choices:
        options = tuple(choice.options)
        if options not in groups:
            groups[options] = width
            width += len(options)
        columns += [groups[options] + i for i in range(len(options))]
    counts = np.zeros((len(archs), width))
    for column, place in enumerate(columns):
        counts[:, place] += single[:, column]
    return np.hstack([counts, SINGLE * single])


@dataclass(frozen=True)
class Correction:
    """Predicts the score after fine-tuning from the shared score and the options.

    Attributes:
        space: the space of the architectures.
        model: the regression.
        center, scale: mean and deviation of the shared scores of the probes.
        probes: the score of each probe after fine-tuning.
    """

    space: SearchSpace
    model: Ridge
    center: float
    scale: float
    probes: Mapping[Arch, float]

    def __call__(self, shared: Mapping[Arch, float]) -> dict[Arch, float]:
        """Returns the predicted score of every architecture, higher is better, on the scale of the probes."""
        archs = list(shared)
        prior = (np.array([shared[arch] for arch in archs]) - self.center) / self.scale
        predicted = self.model(option_features(self.space, archs), prior) if archs else np.zeros(0)
        return dict(zip(archs, predicted.tolist(), strict=True))


@arguments_explained
def fit_correction(space: SearchSpace, probes: Mapping[Arch, float], shared: Mapping[Arch, float]) -> Correction:
    """Learns how shared scores differ from scores after fine-tuning.

    Args:
        space: the space of the architectures.
        probes: score of each probe after fine-tuning, higher is better.
        shared: shared score of each probe, higher is better; others may be among them.

    Raises:
        InputError: fewer than `FEWEST` probes, one without a shared score, or a score that is not finite.
    """
    archs = list(probes)
    if lacking := [arch for arch in archs if arch not in shared]:
        raise InputError(f"the probe {lacking[0].key} has no shared score; give one for each of them")
    truth, prior = np.array([probes[a] for a in archs]), np.array([shared[a] for a in archs])
    if len(archs) < FEWEST:
        raise InputError(f"{len(archs)} probes are too few to correct a ranking; fine-tune at least {FEWEST}")
    for arch, values in zip(archs, zip(truth, prior, strict=True), strict=True):
        if not np.isfinite(values).all():
            raise InputError(f"the probe {arch.key} has the scores {values}, which are not finite; leave it out")
    center, scale = float(prior.mean()), float(prior.std()) or 1.0
    model = fit_ridge(option_features(space, archs), truth, prior=(prior - center) / scale, penalty=None)
    return Correction(space, model, center, scale, dict(probes))
