"""Statistics of rankings: agreement with bootstrap intervals, what a top k is worth, and two groups compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from supernet.errors import InputError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], float]

LEVEL = 0.95
DEFINED = 0.9  # share of resamples that must have a value before their percentiles are called an interval


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if math.isfinite(self.low) else "")


def json_safe(value: Any) -> Any:
    """A nested value for `json.dump`: tuples as lists, what is not finite as null."""
    if isinstance(value, Mapping):
        return {name: json_safe(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [json_safe(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kendall(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's τ-b, corrected for ties on both sides; NaN for fewer than two values or where a side is constant."""
    return _defined(_kendall, scores, truth)


def _kendall(a: Floats, b: Floats) -> Any:
    # The p-value is not used: asymptotically it is the cheapest, but divides by n - 2.
    return stats.kendalltau(a, b, variant="b", method="asymptotic" if len(a) > 2 else "exact").statistic


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """Spearman's ρ, ties at their mean rank; NaN for fewer than two values or where a side is constant."""
    return _defined(lambda a, b: stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic, scores, truth)


def _defined(statistic: Callable[[Floats, Floats], Any], scores: ArrayLike, truth: ArrayLike) -> float:
    a, b = np.asarray(scores, float), np.asarray(truth, float)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"scores and truth are of the same networks, but have shapes {a.shape} and {b.shape}")
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    return float(statistic(a, b))


# -- intervals --------------------------------------------------------------------------------------------------------


def resamples(size: int, times: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap indices, (times, size); rankers that are given the same ones are compared in pairs."""
    return np.random.default_rng(seed).integers(size, size=(times, size))


def replicate(
    statistic: Statistic, scores: Floats, truth: Floats, *, draws: NDArray[np.int64], within: NDArray[np.bool_]
) -> Floats:
    """The statistic of the members of `within` in every resample."""
    kept = (draw[within[draw]] for draw in draws)
    return np.array([statistic(scores[index], truth[index]) for index in kept], float)


def interval(value: float, replicates: Floats) -> Interval:
    """Percentile interval (Efron & Tibshirani, 1993, §13.3), over the resamples in which the statistic has a value."""
    finite = replicates[np.isfinite(replicates)]
    if not math.isfinite(value) or not len(finite) or len(finite) < DEFINED * len(replicates):
        return Interval(value)
    low, high = np.quantile(finite, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


# -- the top ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Top:
    """What the k networks with the highest scores are worth; where scores tie, the mean over all ways to break ties.

    Attributes:
        k: how many networks are taken, all where there are fewer.
        precision: share of them among the true top k, with its Wilson interval.
        regret: how far the best of them is below the best of all, in units of the truth.
        rank: true rank of the best of them, 1 for the best of all.
    """

    k: int
    precision: Interval
    regret: float
    rank: float


def top(scores: ArrayLike, truth: ArrayLike, k: int) -> Top:
    """The `k` networks with the highest scores, judged by the truth."""
    s, t = np.asarray(scores, float), np.asarray(truth, float)
    if k < 1 or not len(s):
        raise InputError(f"the top {k} of {len(s)} networks is nothing; give at least one of each")
    k = min(k, len(s))
    hits = float(membership(s, k) @ membership(t, k))
    wilson = stats.binomtest(round(hits), k).proportion_ci(LEVEL, "wilson")
    ranks = stats.rankdata(-t, "min")
    return Top(
        k,
        Interval(hits / k, float(wilson.low), float(wilson.high)),
        float(t.max()) - _expected_max(s, t, k),
        -_expected_max(s, -ranks, k),
    )


def membership(values: Floats, k: int) -> Floats:
    """The probability that each is among the `k` highest when ties are broken at random."""
    edge = np.sort(values)[-k]
    above, tied = values > edge, values == edge
    return np.asarray(above + tied * (k - above.sum()) / tied.sum(), float)


def _expected_max(scores: Floats, values: Floats, k: int) -> float:
    """The mean, over random tie-breaking, of the largest value among the `k` highest scores."""
    edge = np.sort(scores)[-k]
    sure = values[scores > edge]
    tied = np.sort(values[scores == edge])[::-1]
    drawn, floor = k - len(sure), sure.max() if len(sure) else -math.inf
    expected, none = 0.0, 1.0  # `none`: the probability that nothing better than this one is drawn
    for place, value in enumerate(tied):
        left = len(tied) - place
        chance = drawn / left if left > drawn else 1.0  # given that no better one is drawn
        expected += none * chance * max(float(value), float(floor))
        none *= 1 - chance
    return expected


# -- two groups -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first group's mean less the second's.

    Attributes:
        mean: with its 95 % interval.
        p: two-sided.
        sizes: of the groups.
        detectable: the smallest true difference that would be found at 5 % with probability 0.8; NaN where a group of
            one shows no spread.
    """

    mean: Interval
    p: float
    sizes: tuple[int, int]
    detectable: float


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Two independent groups of unequal variance (Welch, 1947)."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if not len(a) or not len(b):
        raise InputError(f"groups of {len(a)} and {len(b)} cannot be compared; give at least one of each")
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Difference(Interval(mean), math.nan, (len(a), len(b)), math.nan)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(Interval(mean, mean, mean), float(mean == 0), (len(a), len(b)), 0.0)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    return _student(mean, error, freedom, (len(a), len(b)))


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Values that belong together two and two, as trainings of one seed (Student, 1908)."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    mean, sizes = float(gaps.mean()), (len(gaps), len(gaps))
    if len(gaps) < 2:
        return Difference(Interval(mean), math.nan, sizes, math.nan)
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    if error == 0:
        return Difference(Interval(mean, mean, mean), float(mean == 0), sizes, 0.0)
    return _student(mean, error, len(gaps) - 1, sizes)


def _student(mean: float, error: float, freedom: float, sizes: tuple[int, int]) -> Difference:
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(Interval(mean, mean - half, mean + half), p, sizes, error * _detectable(freedom))


def _detectable(freedom: float, power: float = 0.8) -> float:
    """The true difference, in standard errors, that a two-sided t-test finds with this probability."""
    critical = float(stats.t.ppf((1 + LEVEL) / 2, freedom))

    def missing(shift: float) -> float:  # the far tail counts nothing where power is high, and scipy loses it
        return float(stats.nct.sf(critical, freedom, shift)) - power

    high = critical + 1
    while missing(high) < 0:
        high += 1
    return float(optimize.brentq(missing, 0.0, high))
