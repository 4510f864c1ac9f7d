"""Predictions of surrogates and what a surrogate offers."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
"""(architectures, choices): the number of each option."""
Floats = NDArray[np.float64]


JITTER = 1e-8  # on the diagonal of a covariance of scores with unit variance


class Prediction:
    """Scores of candidates as a joint normal distribution.

    Args:
        mean: (candidates,)
        variance: (candidates,), of the score itself, without the noise of an evaluation.
        covariance: of one candidate, by its position, with all: (candidates,).
        draw: one function of the posterior at the candidates: (candidates,).
        noise: variance of an evaluation.
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
        """(candidates,)"""
        deviation: Floats = np.sqrt(np.maximum(self._variance, 1e-12))
        return deviation

    def believe(self, position: int) -> None:
        """Goes on as if a candidate had been evaluated and had scored its mean.

        That is the kriging believer (Ginsbourger, Le Riche & Carraro, 2010): the means of all candidates stay, and
        what is near becomes surer. `draw` is not affected, since draws of a batch differ by themselves.
        """
        column = self._covariance(position) - sum((u * u[position] for u in self._believed), np.zeros(len(self.mean)))
        scale = math.sqrt(max(column[position], 0.0) + self._noise + JITTER)
        self._believed.append(column / scale)
        self._variance = self._variance - self._believed[-1] ** 2


class Surrogate(Protocol):
    """A model of the score."""

    def fit(self, indices: Indices, scores: Floats) -> None:
        """Learns everything from (n, choices) index vectors and their (n,) scores."""

    def update(self, indices: Indices, scores: Floats) -> None:
        """Takes up other data, usually a few more, at a fraction of the cost of `fit`; after a first `fit`."""

    def predict(self, indices: Indices) -> Prediction:
        """Of (candidates, choices) index vectors."""


def subset(scores: Floats, most: int) -> NDArray[np.int64]:
    """Which observations a model is given when there are more than it can take, in order.

    The better half of `most` are the highest scores, where the search goes on; the others are spread evenly over the
    rest in the order told, so that the model still knows what is bad.
    """
    if len(scores) <= most:
        return np.arange(len(scores))
    best = np.argsort(-scores, kind="stable")[: most // 2]
    rest = np.setdiff1d(np.arange(len(scores)), best)
    spread = rest[np.linspace(0, len(rest) - 1, most - len(best)).astype(int)]
    return np.sort(np.concatenate([best, spread]))
