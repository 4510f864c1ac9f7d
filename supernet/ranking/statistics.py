"""Statistics of rankings: agreement with bootstrap intervals, the quality of a top k, and comparisons of two groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts load when they are used; statistics take a second
from numpy.typing import ArrayLike, NDArray

from supernet.checked import Natural, Seed, Size, checked_arguments, is_whole, shown
from supernet.errors import InputError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], float]

LEVEL = 0.95
DEFINED = 0.9  # share of resamples that must have a value for their percentiles to be an interval


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the bounds are NaN where there is no interval."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if math.isfinite(self.low) else "")


def json_safe(value: Any) -> Any:
    """Returns a nested value for `json.dump`, with tuples as lists and non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {name: json_safe(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [json_safe(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kendall(scores: ArrayLike, truth: ArrayLike) -> float:
    """Returns Kendall's τ-b, corrected for ties on both sides; NaN for fewer than two values or a constant side."""
    return _defined(_kendall, scores, truth)


def _kendall(a: Floats, b: Floats) -> Any:
    # The p-value is not used. The asymptotic one is the cheapest, but it divides by n - 2.
    return scipy.stats.kendalltau(a, b, variant="b", method="asymptotic" if len(a) > 2 else "exact").statistic


def spearman(scores: ArrayLike, truth: ArrayLike) -> float:
    """Returns Spearman's ρ, with ties at their mean rank; NaN for fewer than two values or a constant side."""
    return _defined(_spearman, scores, truth)


def _spearman(a: Floats, b: Floats) -> Any:
    return scipy.stats.spearmanr(a, b).statistic


def _defined(statistic: Callable[[Floats, Floats], Any], scores: ArrayLike, truth: ArrayLike) -> float:
    """Returns the statistic, or NaN where a correlation is not defined."""
    a, b = _numbers(scores, "scores"), _numbers(truth, "truth")
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"scores and truth must be of the same networks, but have shapes {a.shape} and {b.shape}")
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return math.nan
    return float(statistic(a, b))


def _list_of_numbers(values: ArrayLike, name: str) -> Floats:
    """Returns a sequence of values as an array, (n,). Raises `InputError` as `_numbers`, and for other dimensions."""
    numbers = _numbers(values, name)
    if numbers.ndim != 1:
        raise InputError(f"{name}={shown(values)} should be a sequence of numbers, not of shape {numbers.shape}")
    return numbers


def _numbers(values: ArrayLike, name: str) -> Floats:
    """Returns values as an array. Raises `InputError` for NaN and for what is no number."""
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}={shown(values)} should be numbers ({error})") from error
    if np.isnan(numbers).any():
        raise InputError(f"{name}={shown(values)} should be numbers, not NaN; leave out networks without a value")
    return numbers


# -- intervals --------------------------------------------------------------------------------------------------------


@checked_arguments
def resamples(size: Size, times: Natural, seed: Seed) -> NDArray[np.int64]:
    """Returns bootstrap indices, (times, size); rankers evaluated on the same indices are compared in pairs.

    Raises:
        InputError: no networks, or a negative number of resamples.
    """
    return np.random.default_rng(seed).integers(size, size=(times, size))


def replicate(
    statistic: Statistic, scores: Floats, truth: Floats, *, draws: NDArray[np.int64], within: NDArray[np.bool_]
) -> Floats:
    """Returns the statistic in every resample, over the networks for which `within` is true.

    Raises:
        InputError: arrays of different networks.
    """
    if not len(scores) == len(truth) == len(within):
        raise InputError(
            f"scores, truth and within must be of the same networks, but there are {len(scores)}, {len(truth)} and "
            f"{len(within)}"
        )
    kept = (draw[within[draw]] for draw in draws)
    return np.array([statistic(scores[index], truth[index]) for index in kept], float)


def bootstrap_interval(value: float, replicates: Floats) -> Interval:
    """Returns the percentile interval (Efron & Tibshirani, 1993, §13.3) over the resamples with a value.

    Raises:
        InputError: a value that is no number, or replicates that are no array.
    """
    if not isinstance(replicates, np.ndarray) or not isinstance(value, float | int):
        raise InputError(f"value={shown(value)} and replicates={shown(replicates)} should be a number and an array")
    finite = replicates[np.isfinite(replicates)]
    if not math.isfinite(value) or not len(finite) or len(finite) < DEFINED * len(replicates):
        return Interval(value)
    low, high = np.quantile(finite, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of a sample with its interval by Student's t; without one for fewer than two values.

    Raises:
        InputError: something else than a sequence of numbers.
    """
    sample = _list_of_numbers(values, "values")
    if len(sample) < 2:
        return Interval(float(sample[0]) if len(sample) else math.nan)
    mean, error = float(sample.mean()), float(scipy.stats.sem(sample))
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = scipy.stats.t.interval(LEVEL, len(sample) - 1, mean, error)
    return Interval(mean, float(low), float(high))


# -- the top ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Top:
    """The quality of the k networks with the highest scores; where scores tie, the mean over all ways to break ties.

    Attributes:
        k: the number of networks taken; all of them where there are fewer.
        precision: the share of them among the true top k, with its Wilson interval.
        regret: the best truth of all networks minus the best among these, in units of the truth.
        rank: the true rank of the best of them; 1 is the best of all networks.
    """

    k: int
    precision: Interval
    regret: float
    rank: float


def top(scores: ArrayLike, truth: ArrayLike, k: int) -> Top:
    """Judges the `k` networks with the highest scores by the truth.

    Raises:
        InputError: no networks, scores and truth of different ones, or a k below 1.
    """
    s, t = _list_of_numbers(scores, "scores"), _list_of_numbers(truth, "truth")
    if not is_whole(k, 1) or not len(s):
        raise InputError(
            f"the top {shown(k)} of {len(s)} networks is empty; give at least one network and k of at least 1"
        )
    if len(s) != len(t):
        raise InputError(f"scores and truth must be of the same networks, but there are {len(s)} and {len(t)}")
    k = min(k, len(s))
    hits = float(membership(s, k) @ membership(t, k))
    wilson = scipy.stats.binomtest(round(hits), k).proportion_ci(LEVEL, "wilson")
    ranks = scipy.stats.rankdata(-t, "min")
    return Top(
        k,
        Interval(hits / k, float(wilson.low), float(wilson.high)),
        float(t.max()) - _expected_max(s, t, k),
        -_expected_max(s, -ranks, k),
    )


def share_better(scores: ArrayLike, truth: ArrayLike) -> float:
    """Returns the share of networks that are truly better than the one with the highest score, the mean over ties.

    Raises:
        InputError: no networks, or scores and truth of different ones.
    """
    s, t = _list_of_numbers(scores, "scores"), _list_of_numbers(truth, "truth")
    if not len(s) or len(s) != len(t):
        raise InputError(f"there are {len(s)} scores and {len(t)} true values; give both for every network")
    better = len(t) - np.searchsorted(np.sort(t), t[s == s.max()], side="right")
    return float(better.mean() / len(t))


def membership(values: Floats, k: int) -> Floats:
    """Returns each value's probability of being among the `k` highest when ties are broken at random.

    Raises:
        InputError: a k below 1 or above the number of values.
    """
    if not is_whole(k, 1, len(values)):
        raise InputError(f"k={shown(k)} should be from 1 to the number of values, {len(values)}")
    edge = np.sort(values)[-k]
    above, tied = values > edge, values == edge
    return np.asarray(above + tied * (k - above.sum()) / tied.sum(), float)


def _expected_max(scores: Floats, values: Floats, k: int) -> float:
    """Returns the largest value among the `k` highest scores, averaged over random tie-breaking."""
    edge = np.sort(scores)[-k]
    sure = values[scores > edge]
    tied = np.sort(values[scores == edge])[::-1]
    drawn, floor = k - len(sure), sure.max() if len(sure) else -math.inf
    expected, undrawn = 0.0, 1.0  # the probability that no better value is drawn
    for place, value in enumerate(tied):
        left = len(tied) - place
        chance = drawn / left if left > drawn else 1.0  # of this value, given that no better one is drawn
        expected += undrawn * chance * max(float(value), float(floor))
        undrawn *= 1 - chance
    return expected


# -- two groups -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first group's mean minus the second's.

    Attributes:
        mean: the difference with its 95 % interval.
        p: the two-sided p-value.
        sizes: the number of values in each group.
        detectable: the smallest true difference that a test at 5 % finds with probability 0.8; NaN where a group has
            only one value and so no variance.
    """

    mean: Interval
    p: float
    sizes: tuple[int, int]
    detectable: float


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares two independent groups of unequal variance (Welch, 1947).

    Raises:
        InputError: an empty group, or one with something else than numbers.
    """
    a, b = _list_of_numbers(first, "first"), _list_of_numbers(second, "second")
    if not len(a) or not len(b):
        raise InputError(f"groups of {len(a)} and {len(b)} cannot be compared; give at least one value for each")
    mean, sizes = float(a.mean() - b.mean()), (len(a), len(b))
    if min(sizes) < 2:
        return Difference(Interval(mean), math.nan, sizes, math.nan)
    error = math.hypot(float(scipy.stats.sem(a)), float(scipy.stats.sem(b)))
    return _difference(mean, error, sizes, lambda: scipy.stats.ttest_ind(a, b, equal_var=False))


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compares two groups of values that come in pairs, such as trainings with the same seed (Student, 1908)."""
    a, b = _numbers(first, "first"), _numbers(second, "second")
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"groups of shapes {a.shape} and {b.shape} are not pairs; give one value each per pair")
    mean, sizes = float((a - b).mean()), (len(a), len(b))
    if len(a) < 2:
        return Difference(Interval(mean), math.nan, sizes, math.nan)
    return _difference(mean, float(scipy.stats.sem(a - b)), sizes, lambda: scipy.stats.ttest_rel(a, b))


def _difference(mean: float, error: float, sizes: tuple[int, int], test: Callable[[], Any]) -> Difference:
    """Returns what a t-test of scipy says; without variance, for which scipy has no test, equal means have p = 1."""
    if error == 0:
        return Difference(Interval(mean, mean, mean), float(mean == 0), sizes, 0.0)
    result = test()
    low, high = result.confidence_interval(LEVEL)
    return Difference(
        Interval(mean, float(low), float(high)), float(result.pvalue), sizes, error * _detectable(float(result.df))
    )


def _detectable(freedom: float, power: float = 0.8) -> float:
    """Returns the true difference, in standard errors, that a two-sided t-test finds with this probability."""
    critical = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))

    def excess_power(shift: float) -> float:  # the far tail is negligible at high power, and scipy loses it
        return float(scipy.stats.nct.sf(critical, freedom, shift)) - power

    high = critical + 1
    while excess_power(high) < 0:
        high += 1
    return float(scipy.optimize.brentq(excess_power, 0.0, high))
