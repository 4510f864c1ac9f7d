"""Can the ranking be trusted? Shared-weight scores against the truth, trivial rankers and the noise of training itself.

Kendall's τ with its interval, the top and slices of similar cost apart (a global τ hides failures among the good), and
all of it beside rankers that need no training (Yu et al., 2020: a search has to be compared with random ones).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.errors import InputError
from supernet.ranking.calibrate import fit_ridge, one_hot
from supernet.ranking.depth import layers
from supernet.ranking.statistics import (
    Floats,
    Interval,
    Top,
    interval,
    json_safe,
    kendall,
    replicate,
    resamples,
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
    """τ among the networks whose MACs lie in a range, given as shares of the largest: above `low`, up to `high`."""

    low: float
    high: float
    n: int
    tau: Interval


@dataclass(frozen=True)
class Agreement:
    """How well one ranker agrees with the truth.

    Attributes:
        name: of the ranker.
        tau: Kendall's τ-b.
        rho: Spearman's ρ.
        ahead: τ of the shared weights less this one's, on the same resamples; NaN for the shared weights themselves.
        tops: for each k.
        bands: τ within bands of MACs.
    """

    name: str
    tau: Interval
    rho: Interval
    ahead: Interval
    tops: tuple[Top, ...]
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class Ceiling:
    """What noise allows: agreement between repeated trainings of the same networks.

    Attributes:
        runs: trainings per network.
        n: networks trained in all runs.
        seed_to_seed: mean τ between two runs.
        seed_to_rest: mean τ between one run and the mean of the others: what one true training would reach as a ranker.
        exact: τ that networks ranked by their expected accuracy would have with the mean of all runs, if both are
            jointly normal: by sin(πτ/2) for the correlation and Spearman (1910) and Brown (1910) for its reliability.
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
class Worth:
    """The number of stand-alone trainings after which a ridge on one-hot decisions ranks as well as the shared weights.

    Attributes:
        trainings: between the sizes tried, interpolated in their logarithm; NaN beyond the largest or below the least.
        beyond: it takes more than the largest size.
        curve: per number of labels the mean τ on the networks without label.
        draws: random sets of labels per size.
    """

    trainings: float
    beyond: bool
    curve: tuple[tuple[int, float], ...]
    draws: int


@dataclass(frozen=True)
class Window:
    """What each ranker picks from the networks within a limit of MACs, by true rank.

    Attributes:
        limit: share of the largest MACs.
        n: networks within it.
        picks: ranker to true rank of its first.
        tens: ranker to best true rank among its first ten.
        wins: the shared weights' pick beats those of MACs, depth then MACs, and random.
    """

    limit: float
    n: int
    picks: dict[str, float]
    tens: dict[str, float]
    wins: bool


@dataclass(frozen=True)
class Report:
    """Everything that is known of a ranking.

    Attributes:
        n: networks with a score and a truth.
        failed: key of every network asked for that lacks one of them, with what it lacks.
        rankers: agreement with the truth; the shared weights first, where there are scores.
        ceiling: None without repeated trainings.
        worth: None without scores, or where n is too small to draw labels from.
        windows: picks within limits of MACs.
        stability: name of other scores of the same networks (an earlier checkpoint, another seed) to their τ.
        verdict: in plain words.
    """

    n: int
    failed: dict[str, str]
    rankers: tuple[Agreement, ...]
    ceiling: Ceiling | None
    worth: Worth | None
    windows: tuple[Window, ...]
    stability: dict[str, float]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """A document for `json.dump`; what has no value is null."""
        document: dict[str, Any] = json_safe({"format": 1, **asdict(self)})
        return document


# -- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """The networks that have everything, as arrays."""

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
    """Compare shared-weight scores with the truth.

    Args:
        scores: per network, higher is better; None or NaN where scoring failed. None for no supernet at all: then the
            trivial rankers and the ceiling are reported.
        truth: accuracy after a training of its own; may hold more networks than `scores`, which are then not asked for.
        space: of the networks.
        costs: `macs` and `params` of each.
        repeats: accuracies of repeated trainings, for the noise ceiling and as labels of `Worth`.
        others: further rankers, e.g. calibrated scores.
        checkpoints: other scores of the same networks, for stability.
        depth: layers of a network; `layers` by default. A space where all have the same loses the rankers by depth.
        largest: MACs that bands and limits are shares of; the largest of the networks by default.
        ks: sizes of the top.
        times: bootstrap resamples.
        draws: random label sets per size of `Worth`.
        seed: of all draws.

    Raises:
        InputError: two architectures that are one network, or fewer than two networks with score and truth.
    """
    asked = list(truth if scores is None else scores)
    _check_distinct(asked, space)
    failed = _failures(asked, scores, truth)
    archs = [arch for arch in asked if arch.key not in failed]
    if len(archs) < 2:
        raise InputError(f"{len(archs)} of {len(asked)} networks have a score and a truth; a ranking needs two")
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
    worth = None if scores is None else _worth(sample, agreements[0].tau.value, draws, seed)
    stability = {name: _stability(archs, rankers[SHARED], other) for name, other in (checkpoints or {}).items()}
    return Report(
        len(archs),
        failed,
        agreements,
        ceiling,
        worth,
        _windows(sample, rankers),
        stability,
        _verdict(len(archs), len(failed), agreements, set(trivial), ceiling, worth),
    )


def _check_distinct(archs: Sequence[Arch], space: SearchSpace) -> None:
    forms: dict[str, Arch] = {}
    for arch in archs:
        twin = forms.setdefault(space.normal_form(arch).key, arch)
        if twin is not arch:
            raise InputError(f"{arch.to_json()} and {twin.to_json()} are one network; rank distinct networks")


def _failures(asked: Sequence[Arch], scores: Values | None, truth: Values) -> dict[str, str]:
    failed = {}
    for arch in asked:
        lacks = [
            name
            for name, values in (("score", scores), ("truth", truth))
            if values is not None and not finite(values.get(arch))
        ]
        if lacks:
            failed[arch.key] = "no " + " and no ".join(lacks)
    return failed


def _array(archs: Sequence[Arch], values: Values) -> Floats:
    found = (values.get(arch) for arch in archs)
    return np.array([math.nan if value is None else value for value in found], float)


def _repeated(archs: Sequence[Arch], repeats: Mapping[Arch, Sequence[float]]) -> Floats:
    """(trainings, networks), NaN for networks that lack a training."""
    runs = max((len(repeats.get(arch, ())) for arch in archs), default=0)
    table = np.full((runs, len(archs)), math.nan)
    for column, arch in enumerate(archs):
        known = repeats.get(arch, ())
        table[: len(known), column] = known
    return table


def _trivial(
    sample: _Sample, costs: Mapping[Arch, Mapping[str, float]], depth: Callable[[Arch], float], seed: int
) -> dict[str, Floats]:
    """Rankers that need no training. The regression is fitted to the truth itself, which flatters it."""
    archs = sample.archs
    macs = sample.share
    deep = np.array([depth(sample.space.normal_form(arch)) for arch in archs], float)
    found = {"MACs": macs, "params": _array(archs, {arch: costs[arch]["params"] for arch in archs})}
    if len(set(deep.tolist())) > 1:
        columns = np.stack([np.ones(len(archs)), deep, macs], 1)
        found["depth"] = deep
        found["depth, then MACs"] = deep + 0.5 * macs / max(float(macs.max()), 1.0)
        found["depth + MACs, fitted"] = columns @ np.linalg.lstsq(columns, sample.truth, rcond=None)[0]
    return found | {RANDOM: np.random.default_rng(seed).permutation(len(archs)).astype(float)}


def _bands(share: Floats) -> list[tuple[float, float, Bools]]:
    edges = (0.0, *EDGES, math.inf)
    return [(low, high, (share > low) & (share <= high)) for low, high in itertools.pairwise(edges)]


def _agreements(
    sample: _Sample, rankers: Mapping[str, Floats], *, ks: Sequence[int], index: NDArray[np.int64]
) -> tuple[Agreement, ...]:
    whole, truth = np.ones(len(sample.archs), bool), sample.truth
    found: list[Agreement] = []
    first: Floats | None = None
    for name, scores in rankers.items():
        taus = replicate(kendall, scores, truth, draws=index, within=whole)
        tau = kendall(scores, truth)
        ahead = Interval(math.nan)
        if first is None and name == SHARED:
            first = taus
        elif first is not None:
            ahead = interval(found[0].tau.value - tau, first - taus)
        bands = []
        for low, high, inside in _bands(sample.share):
            value = kendall(scores[inside], truth[inside])
            repeated = replicate(kendall, scores, truth, draws=index, within=inside)
            bands.append(Band(low, high, int(inside.sum()), interval(value, repeated)))
        rho = interval(spearman(scores, truth), replicate(spearman, scores, truth, draws=index, within=whole))
        untold = np.zeros(len(scores)) if name == RANDOM else scores  # ties: the mean over all orders
        tops = tuple(top(untold, truth, k) for k in ks)
        found.append(Agreement(name, interval(tau, taus), rho, ahead, tops, tuple(bands)))
    return tuple(found)


def _ceiling(sample: _Sample) -> Ceiling | None:
    full = np.isfinite(sample.runs).all(0)
    if len(sample.runs) < 2 or full.sum() < 2:
        return None
    runs, count = sample.runs[:, full], len(sample.runs)

    def seeds(inside: Bools) -> float:
        pairs = itertools.combinations(runs[:, inside], 2)
        return float(np.mean([kendall(one, other) for one, other in pairs]))

    rest = [kendall(run, np.delete(runs, i, 0).mean(0)) for i, run in enumerate(runs)]
    bands = tuple(seeds(inside) for _, _, inside in _bands(sample.share[full]))
    whole = seeds(np.ones(runs.shape[1], bool))
    exact = tuple(_exact(band, count) for band in bands)
    return Ceiling(count, runs.shape[1], whole, float(np.mean(rest)), _exact(whole, count), bands, exact)


def _exact(tau: float, runs: int) -> float:
    single = math.sin(math.pi * max(tau, 0.0) / 2)  # NaN stays NaN
    mean = runs * single / (1 + (runs - 1) * single)
    return 2 / math.pi * math.asin(min(math.sqrt(mean), 1.0))


def _worth(sample: _Sample, tau: float, draws: int, seed: int) -> Worth | None:
    """A label is one training where repeats are known, and whatever the truth is otherwise."""
    features, rng = one_hot(sample.space, sample.archs), np.random.default_rng(seed)
    labels = np.where(np.isfinite(sample.runs[0]), sample.runs[0], sample.truth) if len(sample.runs) else sample.truth
    n, curve = len(sample.archs), []
    for size in (size for size in SIZES if size <= n // 2):
        found = []
        for _ in range(draws):
            order = rng.permutation(n)
            told, rest = order[:size], order[size:]
            predicted = fit_ridge(features[told], labels[told])(features[rest])
            found.append(kendall(predicted, sample.truth[rest]))
        curve.append((size, float(np.nanmean(found)) if np.isfinite(found).any() else math.nan))
        if curve[-1][1] >= tau:
            break
    if not curve or not math.isfinite(tau):
        return None
    return Worth(_crossing(curve, tau), curve[-1][1] < tau, tuple(curve), draws)


def _crossing(curve: Sequence[tuple[int, float]], tau: float) -> float:
    """Where the curve first reaches τ; NaN if it starts there or never does."""
    for (few, low), (many, high) in itertools.pairwise(curve):
        if low < tau <= high:
            part = (tau - low) / (high - low)
            return float(few * (many / few) ** part)
    return math.nan


def _windows(sample: _Sample, rankers: Mapping[str, Floats]) -> tuple[Window, ...]:
    found = []
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
        found.append(Window(limit, len(truth), picks, tens, wins))
    return tuple(found)


def _stability(archs: Sequence[Arch], scores: Floats, other: Values) -> float:
    values = _array(archs, other)
    both = np.isfinite(values)
    return kendall(scores[both], values[both])


# -- words ------------------------------------------------------------------------------------------------------------


def _verdict(
    n: int, failed: int, rankers: Sequence[Agreement], trivial: set[str], ceiling: Ceiling | None, worth: Worth | None
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
        text += "and no trivial ranker can be compared."
    elif best.ahead.low > 0:
        text += f"better than every trivial ranker: {best.name}, the best of them, has {best.tau}."
    elif best.ahead.high < 0:
        text += f"worse than {best.name}, which needs no training and has {best.tau}: do not trust them."
    else:
        text += f"no better than {best.name}, which needs no training and has {best.tau}, as far as {n:,} can tell."
    if worth is not None:
        text += " " + _worth_in_words(worth)
    return text + noise + lost


def _worth_in_words(worth: Worth) -> str:
    last = worth.curve[-1][0]
    if worth.beyond:
        return f"More than {last} stand-alone trainings would be needed for a ridge on decisions to rank as well."
    if not math.isfinite(worth.trainings):
        return f"{last} stand-alone trainings, or fewer, and a ridge on decisions rank as well."
    return f"About {worth.trainings:.0f} stand-alone trainings and a ridge on decisions rank as well."
