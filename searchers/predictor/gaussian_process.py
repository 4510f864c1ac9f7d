"""A Gaussian process over categorical and ordered decisions."""

import math

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from searchers.predictor.encoding import Encoding
from searchers.predictor.prediction import JITTER, Floats, Indices, Prediction, subset
from supernet.space import SearchSpace


class GaussianProcess:
    """A Gaussian process whose covariance falls with the weighted number of differing decisions.

    k(a, b) = s · exp(−Σ w_g · d_g(a, b)) over the groups of `Encoding`: the overlap kernel of categorical Bayesian
    optimisation for unordered decisions, with a weight per decision (automatic relevance determination). The weights, s
    and the noise maximise the marginal likelihood (Rasmussen & Williams, 2006, eq. 5.8) times a log-normal prior. Under
    the prior, two random architectures correlate by about exp(−2/3).

    Args:
        space: the space of the index vectors.
        most: the largest number of observations of the posterior; `subset` chooses them if there are more.
        most_learnt: the same for fitting the weights.
    """

    def __init__(self, space: SearchSpace, *, most: int = 512, most_learnt: int = 256) -> None:
        self._encode = Encoding(space)
        self._most = most
        self._most_learnt = most_learnt
        groups = self._encode.groups
        self._prior = np.concatenate([np.full(groups, -math.log(max(1, len(space)))), [0.0, -4.0]])  # of logarithms
        self._prior_std = np.concatenate([np.full(groups, 1.5), [1.0, 1.5]])
        self._logs = self._prior.copy()  # weights, s, noise

    @property
    def weights(self) -> Floats:
        """(groups,), for the decisions and then for the sets of decisions with the same options."""
        weights: Floats = np.exp(self._logs[:-2])
        return weights

    def fit(self, indices: Indices, scores: Floats) -> None:
        """Fits the weights, starting from their current values, and then the posterior."""
        kept = subset(scores, self._most_learnt)
        result = minimize(
            self._loss,
            self._logs,
            args=(self._encode(indices[kept]), scores[kept]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-12.0, 4.0)] * len(self._logs),
            options={"maxiter": 30},
        )
        self._logs = result.x
        self.update(indices, scores)

    def update(self, indices: Indices, scores: Floats) -> None:
        """Computes the posterior of these data with the weights of the last fit."""
        kept = subset(scores, self._most)
        self._data = self._encode(indices[kept])
        covariance = self._kernel(self._data, self._data, self._logs)
        covariance[np.diag_indices_from(covariance)] += math.exp(self._logs[-1]) + JITTER
        self._factor = cholesky(covariance, lower=True, overwrite_a=True)
        self._dual = cho_solve((self._factor, True), scores[kept])

    def predict(self, indices: Indices) -> Prediction:
        """Returns the posterior at the candidates."""
        logs, points = self._logs, self._encode(indices)
        cross = self._kernel(self._data, points, logs)  # (observations, candidates)
        half = solve_triangular(self._factor, cross, lower=True)

        def covariance(position: int) -> Floats:
            column: Floats = self._kernel(points, points[position : position + 1], logs)[:, 0]
            column -= half[:, position] @ half
            return column

        factors: list[Floats] = []  # of the joint covariance, computed for the first draw

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
        """The negative logarithm of marginal likelihood times prior, and its gradient."""
        kernel = self._kernel(points, points, logs)
        noise = math.exp(logs[-1])
        covariance = kernel.copy()
        covariance[np.diag_indices_from(covariance)] += noise + JITTER
        try:
            factor = cholesky(covariance, lower=True, overwrite_a=True)
        except LinAlgError:  # the line search went too far
            return 1e10, np.zeros_like(logs)
        inverse = cho_solve((factor, True), np.eye(len(scores)))
        dual = inverse @ scores
        slope = 0.5 * (inverse - np.outer(dual, dual))  # gradient of the loss by the covariance
        inner = slope * kernel
        moved = 2.0 * (inner.sum(axis=1) @ points**2 - np.sum(points * (inner @ points), axis=0))  # by column
        by_weight = -np.bincount(self._encode.group, moved, self._encode.groups) * np.exp(logs[:-2])
        z = (logs - self._prior) / self._prior_std
        loss = 0.5 * float(scores @ dual) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(z @ z)
        return loss, np.concatenate([by_weight, [inner.sum(), np.trace(slope) * noise]]) + z / self._prior_std
