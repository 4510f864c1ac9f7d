"""Can the ranking be trusted? Compares shared-weight scores with the truth, trivial rankers and training noise.

The report gives Kendall's τ with its interval, for all networks, for the top and for bands of similar cost, since a
global τ hides failures among the good networks. Rankers that need no training stand beside it (Yu et al., 2020: a
search has to be compared with random ones).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.checked import is_number, is_whole, shown
from supernet.errors import InputError
from supernet.ranking.calibrate import fit_ridge, one_hot
from supernet.ranking.depth import layers
from supernet.ranking.statistics import (
    Floats,
    Interval,
    Top,
    bootstrap_interval,
    json_safe,
    kendall,
    replicate,
    resamples,
    share_better,
    spearman,
    top,
)
from supernet.ranking.truth import finite
from supernet.space import Arch, SearchSpace

Values = Mapping[Arch, float | None]
Bools = NDArray[np.bool_]

SHARED, RANDOM = "shared weights", "random"
EDGES = (0.35, 0.50, 0.65)  # of the largest MACs
SIZES = (10, 20, 35, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400)


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """τ among the networks whose MACs, as shares of the largest, are above `low` and at most `high`."""

    low: float
    high: float
    n: int
    tau: Interval


@dataclass(frozen=True)
class Agreement:
    """How well one ranker agrees with the truth.

    Attributes:
        name: the ranker's name.
        tau: Kendall's τ-b.
        rho: Spearman's ρ.
        ahead: τ of the shared weights minus this one's, on the same resamples; NaN for the shared weights themselves.
        tops: the quality of the top k, for each k.
        better: the share of networks that are truly better than the one with the highest score: its mean over the
            resamples, since the first choice among all networks is a single draw.
        bands: τ within bands of MACs.
    """

    name: str
    tau: Interval
    rho: Interval
    ahead: Interval
    tops: tuple[Top, ...]
    better: float
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class Ceiling:
    """The noise ceiling: agreement between repeated trainings of the same networks.

    Attributes:
        runs: trainings per network.
        n: networks trained in all runs.
        seed_to_seed: mean τ between two runs.
        seed_to_rest: mean τ between one run and the mean of the others: what a single training reaches as a ranker.
        exact: τ between a ranking by expected accuracy and the mean of all runs, assuming that both are jointly normal:
            the correlation is sin(πτ/2), its reliability follows Spearman (1910) and Brown (1910).
        bands: seed-to-seed τ within bands of MACs.
        exact_bands: `exact` within them.
    """

    runs: int
    n: int
    seed_to_seed: float
    seed_to_rest: float
    exact: float
    bands: tuple[float, ...]
    exact_bands: tuple[float, ...]


@dataclass(frozen=True)
class EqualTrainings:
    """The number of stand-alone trainings with which a ridge on one-hot decisions ranks as well as the shared weights.

    Attributes:
        trainings: interpolated between the sizes tried, in their logarithm; NaN outside their range.
        beyond: whether more trainings than the largest size are needed.
        curve: the number of labels with the mean τ on the networks without a label, per size.
        draws: random sets of labels per size.
    """

    trainings: float
    beyond: bool
    curve: tuple[tuple[int, float], ...]
    draws: int


@dataclass(frozen=True)
class Picks:
    """The true ranks of the networks that each ranker puts first within a limit on MACs.

    Attributes:
        limit: the limit as a share of the largest MACs.
        n: the number of networks within it.
        picks: true rank of the network that a ranker puts first, by ranker.
        tens: best true rank among the ten networks that a ranker puts first, by ranker.
        wins: whether the shared weights' pick beats those of MACs, of depth then MACs, and of random.
    """

    limit: float
    n: int
    picks: dict[str, float]
    tens: dict[str, float]
    wins: bool


@dataclass(frozen=True)
class Report:
    """All results about a ranking.

    Attributes:
        n: the number of networks with a score and a truth.
        failed: for every requested network without one of them: what is missing, by the network's key.
        rankers: each ranker's agreement with the truth; the shared weights come first, where there are scores.
        ceiling: the noise ceiling; None without repeated trainings.
        equal_trainings: None without scores, or where n is too small to draw labels from.
        limits: picks within limits on MACs.
        stability: τ with other scores of the same networks (an earlier checkpoint, another seed), by their name.
        verdict: the result in plain words.
    """

    n: int
    failed: dict[str, str]
    rankers: tuple[Agreement, ...]
    ceiling: Ceiling | None
    equal_trainings: EqualTrainings | None
    limits: tuple[Picks, ...]
    stability: dict[str, float]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Returns a document for `json.dump`; NaN and None become null."""
        document: dict[str, Any] = json_safe({"format": 1, **asdict(self)})
        return document


# -- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """The networks with a score and a truth, as arrays."""

    space: SearchSpace
    archs: list[Arch]
    truth: Floats
    share: Floats  # of the largest MACs
    runs: Floats  # (trainings, networks)


def fidelity(
    scores: Values | None,
    truth: Values,
    *,
    space: SearchSpace,
    costs: Mapping[Arch, Mapping[str, float]],
    repeats: Mapping[Arch, Sequence[float]] | None = None,
    others: Mapping[str, Values] | None = None,
    checkpoints: Mapping[str, Values] | None = None,
    depth: Callable[[Arch], float] | None = None,
    largest: float | None = None,
    ks: Sequence[int] = (1, 10, 50),
    times: int = 500,
    draws: int = 20,
    seed: int = 0,
) -> Report:
    """Compares shared-weight scores with the truth.

    Args:
        scores: score of each network, higher is better; None or NaN where scoring failed. None in place of the mapping
            means that there is no supernet: only the trivial rankers and the ceiling are reported.
        truth: accuracy of each network after stand-alone training. Networks without an entry in `scores` are ignored.
        space: the networks' search space.
        costs: `macs` and `params` of each network.
        repeats: accuracies of repeated trainings, for the noise ceiling and as labels of `EqualTrainings`.
        others: further rankers, e.g. calibrated scores.
        checkpoints: other scores of the same networks, for stability.
        depth: returns a network's number of layers; `layers` by default. The rankers by depth are left out in a space
            where all networks are equally deep.
        largest: the MACs that bands and limits are shares of; the largest of the networks by default.
        ks: sizes of the top.
        times: bootstrap resamples.
        draws: random label sets per size of `EqualTrainings`.
        seed: the seed of all draws.

    Raises:
        InputError: two architectures are the same network, fewer than two networks have a score and a truth, one has no
            costs, or a number is out of range.
    """
    _check_arguments(scores, truth, ks=ks, largest=largest, times=times, draws=draws, seed=seed)
    requested = list(truth if scores is None else scores)
    _check_distinct(requested, space)
    failed = _failures(requested, scores, truth)
    archs = [arch for arch in requested if arch.key not in failed]
    if len(archs) < 2:
        raise InputError(f"{len(archs)} of {len(requested)} networks have a score and a truth; a ranking needs two")
    if lacking := [arch for arch in archs if not {"macs", "params"} <= set(costs.get(arch, ()))]:
        raise InputError(f"costs has no macs and params of {lacking[0]}; give those of every network")
    macs = _array(archs, {arch: cost["macs"] for arch, cost in costs.items()})
    sample = _Sample(
        space, archs, _array(archs, truth), macs / (largest or float(macs.max())), _repeated(archs, repeats or {})
    )
    rankers: dict[str, Floats] = {} if scores is None else {SHARED: _array(archs, scores)}
    rankers |= {name: _array(archs, values) for name, values in (others or {}).items()}
    trivial = _trivial(sample, costs, depth or layers, seed)
    rankers |= trivial
    agreements = _agreements(sample, rankers, ks=ks, index=resamples(len(archs), times, seed))
    ceiling = _ceiling(sample)
    equal = None if scores is None else _equal_trainings(sample, agreements[0].tau.value, draws, seed)
    stability = {name: _stability(archs, rankers[SHARED], other) for name, other in (checkpoints or {}).items()}
    return Report(
        len(archs),
        failed,
        agreements,
        ceiling,
        equal,
        _limits(sample, rankers),
        stability,
        _verdict(len(archs), len(failed), agreements, set(trivial), ceiling, equal),
    )


def _check_arguments(scores: Any, truth: Any, *, ks: Any, largest: Any, times: Any, draws: Any, seed: Any) -> None:
    """Raises `InputError` for an argument of `fidelity` that is of another type or out of range."""
    for name, values in (("scores", scores), ("truth", truth)):
        if not isinstance(values, Mapping) and (values is not None or name == "truth"):
            raise InputError(f"{name}={shown(values)} should be a mapping from architectures to numbers")
    if not isinstance(ks, Sequence) or not all(is_whole(k, 1) for k in ks):
        raise InputError(f"ks={shown(ks)} should be a sequence of whole numbers from 1")
    if largest is not None and not (is_number(largest) and 0 < largest < math.inf):
        raise InputError(f"largest={shown(largest)} should be MACs above 0, or None for those of the largest network")
    for name, value in (("times", times), ("draws", draws), ("seed", seed)):
        if not is_whole(value, 0):
            raise InputError(f"{name}={shown(value)} should be a whole number from 0")


def _check_distinct(archs: Sequence[Arch], space: SearchSpace) -> None:
    forms: dict[str, Arch] = {}
    for arch in archs:
        twin = forms.setdefault(space.normal_form(arch).key, arch)
        if twin is not arch:
            raise InputError(f"{arch.to_json()} and {twin.to_json()} are the same network; rank distinct networks")


def _failures(requested: Sequence[Arch], scores: Values | None, truth: Values) -> dict[str, str]:
    """Returns what is missing for each network that has no finite score or truth, by key."""
    failed = {}
    for arch in requested:
        lacks = [
            name
            for name, values in (("score", scores), ("truth", truth))
            if values is not None and not finite(values.get(arch))
        ]
        if lacks:
            failed[arch.key] = "no " + " and no ".join(lacks)
    return failed


def _array(archs: Sequence[Arch], values: Values) -> Floats:
    """Returns the networks' values, NaN for those without one."""
    column = (values.get(arch) for arch in archs)
    return np.array([math.nan if value is None else value for value in column], float)


def _repeated(archs: Sequence[Arch], repeats: Mapping[Arch, Sequence[float]]) -> Floats:
    """Returns the accuracies of repeated trainings, (trainings, networks), with NaN for missing ones."""
    runs = max((len(repeats.get(arch, ())) for arch in archs), default=0)
    table = np.full((runs, len(archs)), math.nan)
    for column, arch in enumerate(archs):
        known = repeats.get(arch, ())
        table[: len(known), column] = known
    return table


def _trivial(
    sample: _Sample, costs: Mapping[Arch, Mapping[str, float]], depth: Callable[[Arch], float], seed: int
) -> dict[str, Floats]:
    """Returns rankers that need no training. The regression is fitted to the truth itself, which flatters it."""
    archs = sample.archs
    macs = sample.share
    deep = np.array([depth(sample.space.normal_form(arch)) for arch in archs], float)
    rankers = {"MACs": macs, "params": _array(archs, {arch: costs[arch]["params"] for arch in archs})}
    if len(set(deep.tolist())) > 1:
        columns = np.stack([np.ones(len(archs)), deep, macs], 1)
        rankers["depth"] = deep
        rankers["depth, then MACs"] = deep + 0.5 * macs / max(float(macs.max()), 1.0)
        rankers["depth + MACs, fitted"] = columns @ np.linalg.lstsq(columns, sample.truth, rcond=None)[0]
    return rankers | {RANDOM: np.random.default_rng(seed).permutation(len(archs)).astype(float)}


def _bands(share: Floats) -> list[tuple[float, float, Bools]]:
    """Returns each band's bounds and which networks lie in it."""
    edges = (0.0, *EDGES, math.inf)
    return [(low, high, (share > low) & (share <= high)) for low, high in itertools.pairwise(edges)]


def _agreements(
    sample: _Sample, rankers: Mapping[str, Floats], *, ks: Sequence[int], index: NDArray[np.int64]
) -> tuple[Agreement, ...]:
    whole, truth = np.ones(len(sample.archs), bool), sample.truth
    agreements: list[Agreement] = []
    first: Floats | None = None
    for name, scores in rankers.items():
        taus = replicate(kendall, scores, truth, draws=index, within=whole)
        tau = kendall(scores, truth)
        ahead = Interval(math.nan)
        if first is None and name == SHARED:
            first = taus
        elif first is not None:
            ahead = bootstrap_interval(agreements[0].tau.value - tau, first - taus)
        bands = []
        for low, high, inside in _bands(sample.share):
            value = kendall(scores[inside], truth[inside])
            repeated = replicate(kendall, scores, truth, draws=index, within=inside)
            bands.append(Band(low, high, int(inside.sum()), bootstrap_interval(value, repeated)))
        rhos = replicate(spearman, scores, truth, draws=index, within=whole)
        rho = bootstrap_interval(spearman(scores, truth), rhos)
        # equal scores for all networks give the mean over all random rankings
        ranked = np.zeros(len(scores)) if name == RANDOM else scores
        tops = tuple(top(ranked, truth, k) for k in ks)
        shares = replicate(share_better, ranked, truth, draws=index, within=whole)
        better = float(shares.mean()) if len(shares) else share_better(ranked, truth)
        agreements.append(Agreement(name, bootstrap_interval(tau, taus), rho, ahead, tops, better, tuple(bands)))
    return tuple(agreements)


def _ceiling(sample: _Sample) -> Ceiling | None:
    full = np.isfinite(sample.runs).all(0)
    if len(sample.runs) < 2 or full.sum() < 2:
        return None
    runs, count = sample.runs[:, full], len(sample.runs)

    def seed_to_seed(inside: Bools) -> float:
        pairs = itertools.combinations(runs[:, inside], 2)
        return float(np.mean([kendall(first, second) for first, second in pairs]))

    rest = [kendall(run, np.delete(runs, i, 0).mean(0)) for i, run in enumerate(runs)]
    bands = tuple(seed_to_seed(inside) for _, _, inside in _bands(sample.share[full]))
    whole = seed_to_seed(np.ones(runs.shape[1], bool))
    exact = tuple(_exact(band, count) for band in bands)
    return Ceiling(count, runs.shape[1], whole, float(np.mean(rest)), _exact(whole, count), bands, exact)


def _exact(tau: float, runs: int) -> float:
    """Returns `Ceiling.exact` for the τ between two runs."""
    single = math.sin(math.pi * max(tau, 0.0) / 2)  # NaN stays NaN
    mean = runs * single / (1 + (runs - 1) * single)
    return 2 / math.pi * math.asin(min(math.sqrt(mean), 1.0))


def _equal_trainings(sample: _Sample, tau: float, draws: int, seed: int) -> EqualTrainings | None:
    """Fits ridges to growing sets of labels: a single training where repeats are known, and the truth otherwise."""
    features, rng = one_hot(sample.space, sample.archs), np.random.default_rng(seed)
    labels = np.where(np.isfinite(sample.runs[0]), sample.runs[0], sample.truth) if len(sample.runs) else sample.truth
    n, curve = len(sample.archs), []
    for size in (size for size in SIZES if size <= n // 2):
        taus = []
        for _ in range(draws):
            order = rng.permutation(n)
            labelled, rest = order[:size], order[size:]
            predicted = fit_ridge(features[labelled], labels[labelled])(features[rest])
            taus.append(kendall(predicted, sample.truth[rest]))
        curve.append((size, float(np.nanmean(taus)) if np.isfinite(taus).any() else math.nan))
        if curve[-1][1] >= tau:
            break
    if not curve or not math.isfinite(tau):
        return None
    return EqualTrainings(_crossing(curve, tau), curve[-1][1] < tau, tuple(curve), draws)


def _crossing(curve: Sequence[tuple[int, float]], tau: float) -> float:
    """Returns the number of labels at which the curve first reaches τ; NaN if it starts above τ or never reaches it."""
    for (few, low), (many, high) in itertools.pairwise(curve):
        if low < tau <= high:
            part = (tau - low) / (high - low)
            return float(few * (many / few) ** part)
    return math.nan


def _limits(sample: _Sample, rankers: Mapping[str, Floats]) -> tuple[Picks, ...]:
    """Returns the rankers' picks within each limit that leaves at least two networks."""
    limits = []
    for limit in (*EDGES, math.inf):
        inside = sample.share <= limit
        if inside.sum() < 2:
            continue
        truth = sample.truth[inside]
        known = {name: (np.zeros(len(truth)) if name == RANDOM else s[inside]) for name, s in rankers.items()}
        known = {name: np.nan_to_num(s, nan=-math.inf) for name, s in known.items()}
        picks = {name: top(s, truth, 1).rank for name, s in known.items()}
        tens = {name: top(s, truth, 10).rank for name, s in known.items()}
        rivals = [picks[name] for name in ("MACs", "depth, then MACs", RANDOM) if name in picks]
        wins = SHARED in picks and picks[SHARED] < min(rivals)
        limits.append(Picks(limit, len(truth), picks, tens, wins))
    return tuple(limits)


def _stability(archs: Sequence[Arch], scores: Floats, other: Values) -> float:
    """Returns τ between two sets of scores, over the networks that have both."""
    values = _array(archs, other)
    both = np.isfinite(values)
    return kendall(scores[both], values[both])


# -- words ------------------------------------------------------------------------------------------------------------


def _verdict(
    n: int,
    failed: int,
    rankers: Sequence[Agreement],
    trivial: set[str],
    ceiling: Ceiling | None,
    equal: EqualTrainings | None,
) -> str:
    lost = f" {failed} more failed and are left out." if failed else ""
    noise = f" Two trainings of the same networks agree at {ceiling.seed_to_seed:.3f}." if ceiling else ""
    known = [ranker for ranker in rankers if ranker.name in trivial and math.isfinite(ranker.tau.value)]
    best = max(known, key=lambda ranker: ranker.tau.value, default=None)
    if rankers[0].name != SHARED:
        text = f"Of the trivial rankers {best.name} is best over {n:,} networks: τ {best.tau}." if best else ""
        return text + noise + lost
    shared = rankers[0]
    text = f"The shared weights rank {n:,} networks at τ {shared.tau}, "
    if not math.isfinite(shared.tau.value):
        return f"The scores of {n:,} networks, or their truths, are all the same: there is no ranking." + lost
    if best is None:
        text += "and there is no trivial ranker to compare them with."
    elif best.ahead.low > 0:
        text += f"better than every trivial ranker: {best.name}, the best of them, has {best.tau}."
    elif best.ahead.high < 0:
        text += f"worse than {best.name}, which needs no training and has {best.tau}: do not trust them."
    else:
        text += f"no better than {best.name}, which needs no training and has {best.tau}, on these {n:,} networks."
    if equal is not None:
        text += " " + _trainings_in_words(equal)
    return text + noise + lost


def _trainings_in_words(equal: EqualTrainings) -> str:
    last = equal.curve[-1][0]
    if equal.beyond:
        return f"More than {last} stand-alone trainings would be needed for a ridge on decisions to rank as well."
    if not math.isfinite(equal.trainings):
        return f"{last} stand-alone trainings, or fewer, and a ridge on decisions rank as well."
    return f"About {equal.trainings:.0f} stand-alone trainings and a ridge on decisions rank as well."
