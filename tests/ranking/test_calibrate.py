"""Calibrated ranking: ridge against a direct solution, labels of chosen networks only, better picks from bias."""

import math
import statistics
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from supernet import Arch, Choice, SearchSpace, create_supernet
from supernet.errors import InputError
from supernet.ranking.calibrate import FEWEST, Calibration, calibrated_ranking, fit_ridge, one_hot
from supernet.ranking.depth import layers
from supernet.ranking.statistics import kendall
from supernet.spaces.nasbench_macro import arch_of, table

MACRO = create_supernet("nasbench-macro").space
SMALL = SearchSpace("small", [Choice(f"c{i}", ("a", "b", "c")) for i in range(3)])
ARCHS = list(SMALL.enumerate())


@cache
def half() -> dict[Arch, float]:
    """Returns the true accuracy of the distinct networks with up to half of the largest MACs."""
    largest = max(row["macs"] for row in table().values())
    archs = dict.fromkeys(map(MACRO.normal_form, table()))
    return {arch: table()[arch]["accuracy"] for arch in archs if table()[arch]["macs"] <= largest / 2}


def biased(seed: int) -> dict[Arch, float]:
    """Returns noisy scores with a penalty on depth and options, as shared weights give them."""
    rng = np.random.default_rng(seed)
    decisions = one_hot(MACRO, list(half())) @ rng.normal(0, 0.2, 24)
    noise = rng.normal(0, 0.3, len(half()))
    return {
        arch: 0.8 * value - 0.45 * layers(arch) + float(decision + error)
        for (arch, value), decision, error in zip(half().items(), decisions, noise, strict=True)
    }


def rank(arch: Arch) -> int:
    return 1 + sum(value > half()[arch] for value in half().values())


def calibrated(seed: int, labels: int, **options: float | None) -> Calibration:
    def label(archs: Sequence[Arch]) -> list[float]:  # one training each, not the mean of three
        return [table()[arch][f"accuracy_{1 + seed % 3}"] for arch in archs]

    return calibrated_ranking(biased(seed), label, space=MACRO, labels=labels, **options)  # type: ignore[arg-type]


# -- features and ridge -----------------------------------------------------------------------------------------------


def test_one_hot_is_of_the_normal_form_and_of_active_decisions() -> None:
    same = one_hot(MACRO, [arch_of("00020000"), arch_of("00002000")])
    assert same.shape == (2, 24)
    assert (same[0] == same[1]).all()
    assert same.sum() == 16
    assert same[0, 3 * 3 + 2] == 1  # stage2.block1 comes first, with its third option
    when = SearchSpace("when", [Choice("d", (1, 2)), Choice("k", (3, 5), when=("d", (2,)))])
    assert one_hot(when, [Arch({"d": 1, "k": 3}), Arch({"d": 2, "k": 3})]).tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize("penalty", [0.3, 1.0, 10.0])
def test_ridge_is_the_penalised_least_squares(penalty: float) -> None:
    rng = np.random.default_rng(0)
    features, prior = one_hot(SMALL, ARCHS), rng.normal(size=27)
    truth = 2 * prior + features @ rng.normal(size=9) + rng.normal(size=27)
    model = fit_ridge(features, truth, prior=prior, penalty=penalty)
    # the same as one augmented least-squares problem: √penalty · w = 0 beside the data
    design = np.hstack([np.ones((27, 1)), prior[:, None], features - features.mean(0)])
    shrink = np.hstack([np.zeros((9, 2)), math.sqrt(penalty) * np.eye(9)])
    solution = np.linalg.lstsq(np.vstack([design, shrink]), np.concatenate([truth, np.zeros(9)]), rcond=None)[0]
    assert [model.intercept, model.slope] == pytest.approx(solution[:2].tolist())
    assert model.weights == pytest.approx(solution[2:])
    assert model(features, prior) == pytest.approx(design @ solution)


def test_an_infinite_penalty_leaves_the_order_of_the_prior() -> None:
    rng = np.random.default_rng(0)
    features, prior = one_hot(SMALL, ARCHS), rng.normal(size=27)
    model = fit_ridge(features, prior + rng.normal(size=27), prior=prior, penalty=math.inf)
    assert kendall(model(features, prior), prior) == pytest.approx(1)


def test_the_penalty_is_chosen_by_leaving_labels_out() -> None:
    rng = np.random.default_rng(0)
    features, prior = one_hot(SMALL, ARCHS), rng.normal(size=27)
    additive = prior + features @ rng.normal(0, 3, 9) + rng.normal(0, 0.1, 27)
    assert fit_ridge(features, additive, prior=prior, penalty=None).penalty <= 1
    unbiased = prior + rng.normal(0, 0.5, 27)
    assert fit_ridge(features, unbiased, prior=prior, penalty=None).penalty >= 10


def test_a_few_labels_do_not_reverse_the_score() -> None:
    features, prior = one_hot(SMALL, ARCHS[:4]), np.array([1.0, 2, 3, 4])
    model = fit_ridge(features, -prior, prior=prior, penalty=math.inf)
    assert model.slope > 0
    assert model(features, prior).mean() == pytest.approx(-2.5)


# -- ranking ----------------------------------------------------------------------------------------------------------


def test_twenty_labels_improve_the_pick() -> None:
    seeds = range(9)
    before = statistics.median(rank(max(scores, key=scores.__getitem__)) for scores in map(biased, seeds))
    rankings = [calibrated(seed, 20) for seed in seeds]
    after = statistics.median(rank(ranking.pick) for ranking in rankings)
    assert before > 30
    assert after <= 12
    gains = [
        kendall(list(ranking.scores.values()), list(half().values()))
        - kendall(list(biased(seed).values()), list(half().values()))
        for seed, ranking in zip(seeds, rankings, strict=True)
    ]
    assert statistics.median(gains) > 0


def test_only_the_chosen_are_labelled() -> None:
    scores = biased(0)
    requests: list[list[Arch]] = []

    def label(archs: Sequence[Arch]) -> list[float]:
        requests.append(list(archs))
        return [half()[arch] for arch in archs]

    ranking = calibrated_ranking(scores, label, space=MACRO, labels=20, rounds=4)
    flat = [arch for archs in requests for arch in archs]
    assert [len(archs) for archs in requests] == [5, 5, 5, 5]
    assert len(set(flat)) == 20
    assert list(ranking.labels) == flat
    assert requests[0] == sorted(scores, key=lambda arch: -scores[arch])[:5]
    # accuracies that were not requested have no influence
    hidden = {arch: half()[arch] for arch in flat}
    again = calibrated_ranking(scores, lambda archs: [hidden[a] for a in archs], space=MACRO, labels=20, rounds=4)
    assert (again.scores, again.labels, again.pick) == (ranking.scores, ranking.labels, ranking.pick)


def test_later_rounds_follow_the_corrected_score() -> None:
    """Option `a` of c0 is overrated: it fills the first round, and later rounds choose others."""
    order = np.random.default_rng(0).permutation(27)
    true = {arch: float(order[i]) for i, arch in enumerate(ARCHS)}
    scores = {arch: value + 40 * (arch["c0"] == "a") for arch, value in true.items()}
    rounds: list[list[Arch]] = []

    def label(archs: Sequence[Arch]) -> list[float]:
        rounds.append(list(archs))
        return [true[arch] - 40 * (arch["c0"] == "a") for arch in archs]

    calibrated_ranking(scores, label, space=SMALL, labels=16, rounds=4)
    shares = [statistics.fmean(arch["c0"] == "a" for arch in archs) for archs in rounds]
    assert shares[0] == 1
    assert shares[-1] < 0.5


def test_failures_use_up_labels_and_are_named() -> None:
    scores: dict[Arch, float | None] = {arch: float(i) for i, arch in enumerate(ARCHS)}
    scores[ARCHS[0]], scores[ARCHS[1]] = None, math.nan
    best = ARCHS[-1]
    ranking = calibrated_ranking(
        scores,
        lambda archs: [None if arch == best else float(ARCHS.index(arch)) for arch in archs],
        space=SMALL,
        labels=8,
    )
    assert ranking.failed == (best,)
    assert len(ranking.labels) == 7
    assert set(ranking.scores) == set(ARCHS[2:])
    nothing = calibrated_ranking(scores, lambda archs: [None] * len(archs), space=SMALL, labels=5)
    assert nothing.model is None
    assert nothing.pick == best
    assert len(nothing.failed) == 5


def test_budgets_are_kept() -> None:
    scores = {arch: float(i) for i, arch in enumerate(ARCHS)}
    for labels, rounds, sizes in ((3, 4, [3]), (5, 4, [3, 1, 1]), (10, 1, [10]), (99, 2, [14, 13])):
        asked: list[int] = []

        def label(archs: Sequence[Arch], asked: list[int] = asked) -> list[float]:
            asked.append(len(archs))
            return [scores[arch] for arch in archs]

        calibrated_ranking(scores, label, space=SMALL, labels=labels, rounds=rounds)
        assert asked == sizes
    with pytest.raises(InputError, match=f"at least {FEWEST}"):
        calibrated_ranking(scores, label, space=SMALL, labels=2)
    with pytest.raises(InputError, match="none of 1"):
        calibrated_ranking({ARCHS[0]: None}, label, space=SMALL)
    with pytest.raises(InputError, match="returned 0 values for 4 candidates"):
        calibrated_ranking(scores, lambda archs: [], space=SMALL, labels=16)
