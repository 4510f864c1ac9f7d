"""Surrogates: models that learn scores from index vectors and say how sure they are, behind one interface.

An index vector is what `SearchSpace.to_indices` gives. Scores are standardised by the caller.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from supernet.seeding import derive_seed
from supernet.space import SearchSpace

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


class Encoding:
    """Index vectors as numbers whose squared differences count decisions.

    Each decision is a group of columns. An unordered one has a column per option, so that two different options are at
    squared distance 1; an ordered one has its position from 0 to 1; an inactive one is zero. Each set of decisions with
    the same options is a further group: the share of its decisions that take each option, or their mean position. It
    says how much of an operation a network has, wherever it stands.

    Attributes:
        group: (columns,), the group of each column.
        groups: how many there are.
    """

    def __init__(self, space: SearchSpace) -> None:
        choices = space.choices
        positions = {choice.name: position for position, choice in enumerate(choices)}
        self._parents = [  # per choice with a condition: its position, its parent's, and which of its options serve
            (j, positions[c.when[0]], np.array([value in c.when[1] for value in space[c.when[0]].options]))
            for j, c in enumerate(choices)
            if c.when is not None
        ]
        self._options = [1 if choice.ordered else len(choice.options) for choice in choices]
        self._steps = np.array([max(1, len(c.options) - 1) if c.ordered else 0 for c in choices])
        self._starts = np.cumsum([0, *self._options])
        alike: dict[tuple[object, bool], list[int]] = {}
        for position, choice in enumerate(choices):
            alike.setdefault((choice.options, choice.ordered), []).append(position)
        self._alike = [np.array(members) for members in alike.values() if len(members) > 1]
        widths = [*self._options, *(self._options[members[0]] for members in self._alike)]
        self.groups = len(widths)
        self.group = np.repeat(np.arange(self.groups), widths)

    def active(self, indices: Indices) -> NDArray[np.bool_]:
        """(architectures, choices): whose conditions hold."""
        on = np.ones(indices.shape, dtype=bool)
        for position, parent, serves in self._parents:
            on[:, position] = on[:, parent] & serves[indices[:, parent]]
        return on

    def canonical(self, indices: Indices) -> Indices:
        """The same with inactive choices at their first option."""
        return np.where(self.active(indices), indices, 0)

    def __call__(self, indices: Indices) -> Floats:
        """(architectures, columns)"""
        rows, on = np.arange(len(indices)), self.active(indices)
        columns = np.zeros((len(indices), int(self._starts[-1])))
        for j, steps in enumerate(self._steps):
            start = self._starts[j]
            if steps:
                columns[:, start] = on[:, j] * indices[:, j] / steps
            else:
                columns[rows, start + indices[:, j]] = on[:, j] * math.sqrt(0.5)
        shares = [
            sum(columns[:, self._starts[j] : self._starts[j + 1]] for j in members) / len(members)
            for members in self._alike
        ]
        return np.hstack([columns, *shares])


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


class GaussianProcess:
    """A Gaussian process whose covariance falls with the weighted number of differing decisions.

    k(a, b) = s · exp(−Σ w_g · d_g(a, b)) over the groups of `Encoding`: for unordered decisions the overlap kernel of
    categorical Bayesian optimisation, a weight per decision (automatic relevance determination). The weights, s and the
    noise maximise the marginal likelihood (Rasmussen & Williams, 2006, eq. 5.8) times a log-normal prior, which says
    that two random architectures are alike by about exp(−2/3) unless the data know better.

    Args:
        space: of the index vectors.
        most: observations that the posterior is given, those of `subset` where there are more.
        most_learnt: the same for the learning of the weights.
    """

    def __init__(self, space: SearchSpace, *, most: int = 512, most_learnt: int = 256) -> None:
        self._encode = Encoding(space)
        self._most = most
        self._most_learnt = most_learnt
        groups = self._encode.groups
        self._prior = np.concatenate([np.full(groups, -math.log(max(1, len(space)))), [0.0, -4.0]])  # of logarithms
        self._spread = np.concatenate([np.full(groups, 1.5), [1.0, 1.5]])
        self._logs = self._prior.copy()  # weights, s, noise

    @property
    def weights(self) -> Floats:
        """(groups,): of the decisions, then of the sets with the same options."""
        weights: Floats = np.exp(self._logs[:-2])
        return weights

    def fit(self, indices: Indices, scores: Floats) -> None:
        """Learns the weights from where they stand, then the posterior."""
        kept = subset(scores, self._most_learnt)
        found = minimize(
            self._loss,
            self._logs,
            args=(self._encode(indices[kept]), scores[kept]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-12.0, 4.0)] * len(self._logs),
            options={"maxiter": 30},
        )
        self._logs = found.x
        self.update(indices, scores)

    def update(self, indices: Indices, scores: Floats) -> None:
        """The posterior of these data with the weights that were learnt."""
        kept = subset(scores, self._most)
        self._data = self._encode(indices[kept])
        covariance = self._kernel(self._data, self._data, self._logs)
        covariance[np.diag_indices_from(covariance)] += math.exp(self._logs[-1]) + JITTER
        self._factor = cholesky(covariance, lower=True, overwrite_a=True)
        self._dual = cho_solve((self._factor, True), scores[kept])

    def predict(self, indices: Indices) -> Prediction:
        """The posterior at the candidates."""
        logs, points = self._logs, self._encode(indices)
        cross = self._kernel(self._data, points, logs)  # (observations, candidates)
        half = solve_triangular(self._factor, cross, lower=True)

        def covariance(position: int) -> Floats:
            column: Floats = self._kernel(points, points[position : position + 1], logs)[:, 0]
            column -= half[:, position] @ half
            return column

        factors: list[Floats] = []  # of the joint covariance, made for the first draw

        def draw(rng: np.random.Generator) -> Floats:
            if not factors:
                joint = self._kernel(points, points, logs) - half.T @ half
                joint[np.diag_indices_from(joint)] += 1e-6 * math.exp(logs[-2])
                factors.append(cholesky(joint, lower=True, overwrite_a=True))
            path: Floats = mean + factors[0] @ rng.standard_normal(len(mean))
            return path

        mean: Floats = self._dual @ cross
        variance = math.exp(logs[-2]) - np.einsum("ij,ij->j", half, half)
        return Prediction(mean, variance, covariance=covariance, draw=draw, noise=math.exp(logs[-1]))

    def _kernel(self, first: Floats, second: Floats, logs: Floats) -> Floats:
        scale = np.exp(0.5 * logs[:-2])[self._encode.group]
        a, b = first * scale, second * scale
        squared = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None] - 2.0 * (a @ b.T)
        kernel: Floats = np.exp(logs[-2] - np.maximum(squared, 0.0))
        return kernel

    def _loss(self, logs: Floats, points: Floats, scores: Floats) -> tuple[float, Floats]:
        """Negative logarithm of marginal likelihood times prior, and its gradient."""
        kernel = self._kernel(points, points, logs)
        noise = math.exp(logs[-1])
        covariance = kernel.copy()
        covariance[np.diag_indices_from(covariance)] += noise + JITTER
        try:
            factor = cholesky(covariance, lower=True, overwrite_a=True)
        except LinAlgError:  # a step of the line search too far
            return 1e10, np.zeros_like(logs)
        inverse = cho_solve((factor, True), np.eye(len(scores)))
        dual = inverse @ scores
        slope = 0.5 * (inverse - np.outer(dual, dual))  # of the loss by the covariance
        inner = slope * kernel
        moved = 2.0 * (inner.sum(axis=1) @ points**2 - np.sum(points * (inner @ points), axis=0))  # by column
        by_weight = -np.bincount(self._encode.group, moved, self._encode.groups) * np.exp(logs[:-2])
        z = (logs - self._prior) / self._spread
        loss = 0.5 * float(scores @ dual) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(z @ z)
        return loss, np.concatenate([by_weight, [inner.sum(), np.trace(slope) * noise]]) + z / self._spread


class Ensemble:
    """Small networks on `Encoding`, each trained without one part of the data; their disagreement is the uncertainty.

    Each member has one hidden layer and a linear bypass, weights of its own, and leaves out every `members`-th
    observation, as the surrogates of progressive NAS do (Liu et al., ECCV 2018, § 3.4, with five members). Adam on all
    data at once, in NumPy: the networks are too small for anything else to be faster.

    Args:
        space: of the index vectors.
        seed: of the initial weights.
        members: of the ensemble, at least 2.
        hidden: units of the hidden layer.
        steps: of a `fit`; an `update` goes on with a tenth of them.
        decay: of the weights, per step and relative to the step size.
        most: observations that they are given, those of `subset` where there are more.
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
        """Trains fresh networks."""
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
        """Trains the present networks a little further."""
        self._train(indices, scores, max(1, self._steps // 10))

    def predict(self, indices: Indices) -> Prediction:
        """Mean and covariance of the members; a draw is one of them."""
        outputs = self._forward(self._encode(indices))[1][:, :, 0]  # (members, candidates)
        mean = outputs.mean(axis=0)
        apart = (outputs - mean) / math.sqrt(self._members - 1)
        return Prediction(
            mean,
            np.sum(apart**2, axis=0),
            covariance=lambda position: apart[:, position] @ apart,
            draw=lambda rng: outputs[rng.integers(self._members)],
            noise=self._noise,
        )

    def _forward(self, points: Floats) -> tuple[Floats, Floats]:
        """Hidden units (members, n, hidden) and outputs (members, n, 1)."""
        weights = self._weights
        hidden = np.maximum(points @ weights["in"] + weights["bias"], 0.0)
        return hidden, hidden @ weights["out"] + points @ weights["bypass"] + weights["level"]

    def _train(self, indices: Indices, scores: Floats, steps: int) -> None:
        kept = subset(scores, self._most)
        points, target = self._encode(indices[kept]), scores[kept][None, :, None]
        member = np.arange(self._members)[:, None, None]
        share = (np.arange(len(kept))[None, :, None] % self._members != member).astype(float)  # what each is shown
        if len(kept) <= 2 * self._members:
            share[:] = 1.0  # too few to leave any out
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
