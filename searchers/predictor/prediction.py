"""The interface of surrogates and the predictions that they return.

An index vector is a result of `SearchSpace.to_indices`. Callers standardise the scores.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
"""(architectures, choices): the option number of each choice."""
Floats = NDArray[np.float64]


JITTER = 1e-8  # on the diagonal of a covariance of scores with unit variance


class Prediction:
    """A joint normal distribution of the candidates' scores.

    Args:
        mean: (candidates,).
        variance: (candidates,), of the score itself, without the noise of an evaluation.
        covariance: gives the covariance of the candidate at a position with all candidates, (candidates,).
        draw: samples a function from the posterior and returns its values at the candidates, (candidates,).
        noise: the variance of an evaluation.
    """

    def __init__(
        self,
        mean: Floats,
        variance: Floats,
        *,
        covariance: Callable[[int], Floats],
        draw: Callable[[np.random.Generator], Floats],
        noise: float,
    ) -> None:
        self.mean = mean
        self.draw = draw
        self._variance = variance
        self._covariance = covariance
        self._noise = noise
        self._believed: list[Floats] = []

    @property
    def std(self) -> Floats:
        """The standard deviations, (candidates,)."""
        deviation: Floats = np.sqrt(np.maximum(self._variance, 1e-12))
        return deviation

    def believe(self, position: int) -> None:
        """Updates the distribution as if a candidate had been evaluated and had scored its mean.

        This is the kriging believer (Ginsbourger, Le Riche & Carraro, 2010): the means of all candidates stay, and the
        variances of similar ones shrink. `draw` is not affected, since the draws of a batch differ anyway.
        """
        column = self._covariance(position) - sum((u * u[position] for u in self._believed), np.zeros(len(self.mean)))
        scale = math.sqrt(max(column[position], 0.0) + self._noise + JITTER)
        self._believed.append(column / scale)
        self._variance = self._variance - self._believed[-1] ** 2


class Surrogate(Protocol):
    """A model of the score."""

    def fit(self, indices: Indices, scores: Floats) -> None:
        """Fits the model to (n, choices) index vectors and their (n,) scores."""

    def update(self, indices: Indices, scores: Floats) -> None:
        """Takes the data in place of the earlier data at a fraction of the cost of `fit`, which must come first."""

    def predict(self, indices: Indices) -> Prediction:
        """Predicts the scores of (candidates, choices) index vectors."""


def subset(scores: Floats, most: int) -> NDArray[np.int64]:
    """Returns the positions, ascending, of at most `most` observations for a model that cannot take them all.

    Half of them are the highest scores, where the search goes on; the others are spread evenly over the rest in the
    order of evaluation, so that the model still knows which networks are bad.
    """
    if len(scores) <= most:
        return np.arange(len(scores))
    best = np.argsort(-scores, kind="stable")[: most // 2]
    rest = np.setdiff1d(np.arange(len(scores)), best)
    others = rest[np.linspace(0, len(rest) - 1, most - len(best)).astype(int)]
    return np.sort(np.concatenate([best, others]))
