"""An ensemble of small neural networks as a surrogate."""

import math

import numpy as np

from searchers.predictor.encoding import Encoding
from searchers.predictor.prediction import Floats, Indices, Prediction, subset
from supernet.seeding import derive_seed
from supernet.space import SearchSpace


class Ensemble:
    """Small networks on `Encoding`, each trained without a part of the data; their disagreement is the uncertainty.

    Each member has one hidden layer and a linear bypass, has its own weights, and leaves out every `members`-th
    observation, as the surrogates of progressive NAS do (Liu et al., ECCV 2018, § 3.4, with five members). They are
    trained by full-batch Adam in NumPy; the networks are so small that nothing else is faster.

    Args:
        space: the space of the index vectors.
        seed: the seed of the initial weights.
        members: the size of the ensemble, at least 2.
        hidden: the number of units of the hidden layer.
        steps: the training steps of a `fit`; an `update` continues with a tenth of them.
        decay: the weight decay per step, relative to the step size.
        most: the largest number of observations to train on; `subset` chooses them if there are more.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        members: int = 5,
        hidden: int = 32,
        steps: int = 150,
        decay: float = 0.01,
        most: int = 512,
    ) -> None:
        self._encode = Encoding(space)
        self._seed = seed
        self._members = members
        self._hidden = hidden
        self._steps = steps
        self._decay = decay
        self._most = most
        self._fits = 0

    def fit(self, indices: Indices, scores: Floats) -> None:
        """Trains new networks."""
        rng = np.random.default_rng(derive_seed("ensemble", self._seed, self._fits))
        self._fits += 1
        columns = len(self._encode.group)
        shapes = {"in": (columns, self._hidden), "bias": (1, self._hidden), "out": (self._hidden, 1)}
        shapes |= {"bypass": (columns, 1), "level": (1, 1)}
        fan = {"in": self._encode.groups, "out": self._hidden, "bias": 1}
        self._weights = {
            name: rng.standard_normal((self._members, *shape)) / math.sqrt(fan[name])
            if name in fan
            else np.zeros((self._members, *shape))
            for name, shape in shapes.items()
        }
        self._train(indices, scores, self._steps)

    def update(self, indices: Indices, scores: Floats) -> None:
        """Trains the existing networks a little further."""
        self._train(indices, scores, max(1, self._steps // 10))

    def predict(self, indices: Indices) -> Prediction:
        """Predicts the mean and covariance of the members; a draw is one of the members."""
        outputs = self._forward(self._encode(indices))[1][:, :, 0]  # (members, candidates)
        mean = outputs.mean(axis=0)
        deviations = (outputs - mean) / math.sqrt(self._members - 1)
        return Prediction(
            mean,
            np.sum(deviations**2, axis=0),
            covariance=lambda position: deviations[:, position] @ deviations,
            draw=lambda rng: outputs[rng.integers(self._members)],
            noise=self._noise,
        )

    def _forward(self, points: Floats) -> tuple[Floats, Floats]:
        """Returns the hidden units (members, n, hidden) and the outputs (members, n, 1)."""
        weights = self._weights
        hidden = np.maximum(points @ weights["in"] + weights["bias"], 0.0)
        return hidden, hidden @ weights["out"] + points @ weights["bypass"] + weights["level"]

    def _train(self, indices: Indices, scores: Floats, steps: int) -> None:
        kept = subset(scores, self._most)
        points, target = self._encode(indices[kept]), scores[kept][None, :, None]
        member = np.arange(self._members)[:, None, None]
        trained = np.arange(len(kept))[None, :, None] % self._members != member  # (members, n, 1)
        share = trained.astype(float)
        if len(kept) <= 2 * self._members:
            share[:] = 1.0  # there are too few to leave any out
        share /= share.sum(axis=1, keepdims=True)
        first = {name: np.zeros_like(value) for name, value in self._weights.items()}
        second = {name: np.zeros_like(value) for name, value in self._weights.items()}
        for step in range(1, steps + 1):
            hidden, output = self._forward(points)
            error = 2.0 * share * (output - target)
            inner = (error @ self._weights["out"].transpose(0, 2, 1)) * (hidden > 0)
            slopes = {
                "in": points.T @ inner,
                "bias": inner.sum(axis=1, keepdims=True),
                "out": hidden.transpose(0, 2, 1) @ error,
                "bypass": points.T @ error,
                "level": error.sum(axis=1, keepdims=True),
            }
            for name, slope in slopes.items():  # Adam (Kingma & Ba, 2015) with decoupled decay
                first[name] += 0.1 * (slope - first[name])
                second[name] += 0.01 * (slope**2 - second[name])
                ahead = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8)
                self._weights[name] -= 0.02 * (ahead + self._decay * self._weights[name])
        output = self._forward(points)[1]
        self._noise = float(np.mean(np.sum(share * (output - target) ** 2, axis=1)))
