"""Predictor-guided search: surrogates agree with formulas written out; the searcher solves a published table."""

import math
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.stats import norm, spearmanr

from helpers.searcher_cases import CONDITIONAL, LIMITS, AtMost, chain_space, noise, trial
from searchers import PredictorSearch, RandomSearch, Study, Trial, search
from searchers.predictor.encoding import Encoding
from searchers.predictor.ensemble import Ensemble
from searchers.predictor.gaussian_process import GaussianProcess
from searchers.predictor.prediction import Floats, Indices, Surrogate, subset
from searchers.predictor.search import _Candidates, compressed, log_expected_improvement
from searchers.testing import evaluate, searched, stand_in
from supernet.errors import InputError
from supernet.space import Choice, SearchSpace

SPACE = chain_space(6, form=False)
KINDS: dict[str, Callable[..., Surrogate]] = {"gp": GaussianProcess, "ensemble": Ensemble}


def data(space: SearchSpace, n: int, seed: int = 0) -> tuple[Indices, Floats]:
    """Index vectors of random networks and their standardised stand-in scores."""
    rng = Random(seed)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(n)))
    scores = np.array([stand_in(arch) for arch in archs])
    return np.array([space.to_indices(arch) for arch in archs]), (scores - scores.mean()) / scores.std()


# -- surrogates --------------------------------------------------------------------------------------------------------


def test_squared_differences_count_decisions() -> None:
    """Against the definition, on a space with scales, conditions and decisions that share their options."""
    encode = Encoding(CONDITIONAL)
    rows, _ = data(CONDITIONAL, 60)
    points, on = encode(rows), encode.active(rows)
    archs = [CONDITIONAL.from_indices(row.tolist()) for row in rows]
    assert [[c in CONDITIONAL.active(arch) for c in CONDITIONAL.choices] for arch in archs] == on.tolist()
    for i, j in zip(range(0, 60, 2), range(1, 60, 2), strict=False):
        if max(i, j) >= len(rows):
            break
        distances = np.bincount(encode.group, (points[i] - points[j]) ** 2, encode.groups)
        for position, choice in enumerate(CONDITIONAL.choices):
            a, b = rows[i, position], rows[j, position]
            both, one = on[i, position] and on[j, position], on[i, position] != on[j, position]
            last = len(choice.options) - 1
            if choice.ordered:
                a, b = a * on[i, position], b * on[j, position]
                expected = ((a - b) / last) ** 2
            else:
                expected = float(a != b) if both else 0.5 * one
            assert distances[position] == pytest.approx(expected)
        assert encode.groups == len(CONDITIONAL) + 1  # a and b have the same options
        shares = [
            [sum(r[k] == o and w[k] for k in (1, 2)) / 2 for o in range(3)] for r, w in zip(rows, on, strict=True)
        ]
        assert distances[-1] == pytest.approx(0.5 * np.sum((np.array(shares[i]) - shares[j]) ** 2))


def test_the_gradient_of_the_marginal_likelihood_is_right() -> None:
    model, (rows, scores) = GaussianProcess(CONDITIONAL), data(CONDITIONAL, 30)
    points, rng = model._encode(rows), np.random.default_rng(0)
    for _ in range(3):
        logs = model._prior + 0.5 * rng.standard_normal(len(model._prior))
        slope = model._loss(logs, points, scores)[1]
        error = check_grad(
            lambda x: model._loss(x, points, scores)[0], lambda x: model._loss(x, points, scores)[1], logs
        )
        assert error < 1e-4 * np.linalg.norm(slope)


def test_the_posterior_is_that_of_the_formula() -> None:
    model, (rows, scores) = GaussianProcess(SPACE), data(SPACE, 40)
    model.fit(rows[:30], scores[:30])
    s, variance = math.exp(model._logs[-2]), math.exp(model._logs[-1])
    points = model._encode(rows)
    weighted = [np.bincount(model._encode.group, (a - b) ** 2, model._encode.groups) for a in points for b in points]
    kernel = s * np.exp(-(np.array(weighted) @ model.weights)).reshape(len(rows), len(rows))
    inverse = np.linalg.inv(kernel[:30, :30] + (variance + 1e-8) * np.eye(30))
    joint = kernel[30:, 30:] - kernel[30:, :30] @ inverse @ kernel[:30, 30:]
    prediction = model.predict(rows[30:])
    np.testing.assert_allclose(prediction.mean, kernel[30:, :30] @ inverse @ scores[:30], atol=1e-7)
    np.testing.assert_allclose(prediction.std, np.sqrt(np.diag(joint)), atol=1e-6)
    rng = np.random.default_rng(0)
    draws = np.array([prediction.draw(rng) for _ in range(4_000)])
    np.testing.assert_allclose(draws.mean(axis=0), prediction.mean, atol=0.08 * math.sqrt(s))
    np.testing.assert_allclose(np.cov(draws.T), joint, atol=0.12 * s)


def test_weights_say_which_decision_matters() -> None:
    rows, _ = data(SPACE, 80)
    model = GaussianProcess(SPACE)
    values = (rows[:, 2] == 1) - 1.0 * (rows[:, 2] == 2)
    model.fit(rows, (values - values.mean()) / values.std())
    assert np.argmax(model.weights) == 2
    others = np.delete(model.weights[:6], 2)
    assert model.weights[2] > 10 * others.max()


def test_to_believe_is_to_be_told_the_mean() -> None:
    """The believer's posterior is the one of the data with the candidates added at their means."""
    model, (rows, scores) = GaussianProcess(SPACE), data(SPACE, 60)
    model.fit(rows[:30], scores[:30])
    believing = model.predict(rows[30:])
    before = believing.mean.copy()
    for position in (4, 11):
        believing.believe(position)
    model.update(np.concatenate([rows[:30], rows[[34, 41]]]), np.concatenate([scores[:30], believing.mean[[4, 11]]]))
    refitted = model.predict(rows[30:])
    np.testing.assert_allclose(believing.mean, before)
    np.testing.assert_allclose(refitted.mean, believing.mean, atol=1e-6)
    np.testing.assert_allclose(refitted.std, believing.std, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_surrogate_predicts_what_it_was_not_shown_and_is_surer_of_what_it_was(kind: str) -> None:
    model, (rows, scores) = KINDS[kind](SPACE), data(SPACE, 140)
    model.fit(rows[:80], scores[:80])
    model.update(rows[:90], scores[:90])
    shown, hidden = model.predict(rows[:90]), model.predict(rows[90:])
    assert spearmanr(hidden.mean, scores[90:]).statistic > 0.8
    assert shown.std.mean() < 0.9 * hidden.std.mean()
    assert np.isfinite(hidden.draw(np.random.default_rng(0))).all()


def test_an_ensemble_is_the_same_for_a_seed_and_draws_its_members() -> None:
    rows, scores = data(SPACE, 60)
    models = [Ensemble(SPACE, seed=seed) for seed in (0, 0, 1)]
    for model in models:
        model.fit(rows[:40], scores[:40])
    first, same, other = (model.predict(rows[40:]) for model in models)
    assert np.array_equal(first.mean, same.mean)
    assert not np.array_equal(first.mean, other.mean)
    rng = np.random.default_rng(0)
    draws = {first.draw(rng).tobytes() for _ in range(60)}
    assert len(draws) == 5
    np.testing.assert_allclose(np.mean([np.frombuffer(d) for d in draws], axis=0), first.mean)
    before = first.std[3]
    first.believe(3)
    assert first.std[3] < before


def test_a_subset_keeps_the_best_half_and_spreads_over_the_rest() -> None:
    scores = np.random.default_rng(0).permutation(1_000).astype(float)
    kept = subset(scores, 100)
    assert len(set(kept.tolist())) == 100
    assert kept.tolist() == sorted(kept.tolist())
    assert set(np.argsort(-scores)[:50]) <= set(kept.tolist())
    assert np.histogram(kept, bins=4, range=(0, 1_000))[0].min() >= 15
    assert subset(scores[:100], 100).tolist() == list(range(100))


def test_a_large_history_is_capped() -> None:
    """2,000 observations are learnt from within a second or two, and what lies beyond the cap still counts."""
    space = SearchSpace("twelve", [Choice(f"block{i}", ("k3", "k5", "k7", "xception")) for i in range(12)])
    rows, scores = data(space, 2_000)
    model = GaussianProcess(space)
    began = time.process_time()
    model.fit(rows, scores)
    model.predict(rows[:500])
    assert time.process_time() - began < 4  # 0.4 s on an idle core
    assert len(model._data) == 512


# -- acquisition -------------------------------------------------------------------------------------------------------


def test_expected_improvement_is_the_integral_and_does_not_underflow() -> None:
    for mean, std, best in ((0.0, 1.0, 0.5), (1.0, 0.3, 0.2), (-2.0, 0.5, 1.0), (0.0, 1.0, 5.9), (0.0, 1.0, 6.1)):
        integral, _ = quad(lambda y, m=mean, s=std, b=best: (y - b) * norm.pdf(y, m, s), best, best + 12 * std)
        value = log_expected_improvement(np.array([mean]), np.array([std]), best)[0]
        assert value == pytest.approx(math.log(integral), abs=0.01)
    far = log_expected_improvement(np.linspace(-200, 3, 2_000), np.ones(2_000), 1.0)
    assert np.isfinite(far).all()
    assert (np.diff(far) > 0).all()


def test_compression_keeps_the_order_and_tames_what_diverged() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(90, 1, size=60)
    diverged = np.concatenate([scores, [10.0]])
    assert (np.argsort(compressed(diverged)) == np.argsort(diverged)).all()
    top = scores > np.median(scores)
    spread = [np.ptp(compressed(s)[:60][top]) for s in (scores, diverged)]
    assert spread[1] > 0.5 * spread[0]  # standardised alone it would be 0.1
    assert compressed(scores).mean() == pytest.approx(0)
    assert compressed(scores).std() == pytest.approx(1)
    assert compressed(np.full(5, 3.0)).tolist() == [0.0] * 5
    assert np.isfinite(compressed(np.array([1.0, 2.0, 2.0, 2.0]))).all()  # nothing above the median


# -- the searcher ------------------------------------------------------------------------------------------------------

VARIANTS = [(kind, acquisition) for kind in KINDS for acquisition in ("ei", "ucb", "thompson")]


@pytest.mark.parametrize(("kind", "acquisition"), VARIANTS)
def test_every_variant_learns_within_limits_and_never_repeats(kind: Any, acquisition: Any) -> None:
    """The mean of the last 15 of 40 scores is 59 to 63 over seeds and variants, random search's 48 to 51."""
    limit = AtMost({"k5": 2})
    runs = [
        searched(make(SPACE, feasible=limit, **settings), 40, batch=4)
        for make, settings in (
            (PredictorSearch, {"surrogate": kind, "acquisition": acquisition}),
            (RandomSearch, {}),
        )
    ]
    assert len({t.key for t in runs[0]}) == 40
    assert all(limit(t.arch) for t in runs[0])
    late, chance = (sum(t.metrics["accuracy"] for t in run[25:]) / 15 for run in runs)
    assert late > chance + 6


def test_the_shortlist_is_the_first_networks_that_may_be_proposed() -> None:
    """The result is distinct new normal forms within the limits, in the order of the rows."""
    space, limit = chain_space(6), AtMost({"k5": 2})
    archs = list(space.enumerate())
    Random(0).shuffle(archs)
    forms = dict.fromkeys(space.normal_form(arch) for arch in archs if limit(arch))
    rows = [space.to_indices(form) for form in forms]
    candidates = _Candidates(space, limit)
    for row in rows[:5]:
        candidates.forget(row)
    candidate_rows = np.array([space.to_indices(arch) for arch in archs])
    assert list(map(tuple, candidates.legal(candidate_rows, 20).tolist())) == rows[5:25]
    assert len(candidates.legal(candidate_rows, 1_000)) == len(rows) - 5


def test_a_batch_spreads_out() -> None:
    """With deviations alone the picks of one batch are far from each other, since each is believed."""
    space = chain_space(8, form=False)
    searcher = PredictorSearch(space, acquisition="ucb", beta=1e6)
    first = searcher.ask(8)
    searcher.tell([trial(i, arch, stand_in(arch), space=space) for i, arch in enumerate(first)])
    rows = np.array([space.to_indices(arch) for arch in searcher.ask(8)])
    apart = [int((a != b).sum()) for i, a in enumerate(rows) for b in rows[:i]]
    assert min(apart) >= 3
    assert sum(apart) / len(apart) > 4.5


def test_what_is_asked_for_and_not_told_counts_as_evaluated() -> None:
    """Proposals asked for one by one without scores in between spread out as a batch does."""
    space = chain_space(8, form=False)
    searcher = PredictorSearch(space, acquisition="ucb", beta=1e6)
    searcher.tell([trial(i, arch, stand_in(arch), space=space) for i, arch in enumerate(searcher.ask(8))])
    rows = np.array([space.to_indices(searcher.ask(1)[0]) for _ in range(6)])
    assert min(int((a != b).sum()) for i, a in enumerate(rows) for b in rows[:i]) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_constant_scores_are_searched_to_the_end(kind: Any) -> None:
    space = chain_space(3)  # 15 networks
    with Study(None, space) as study:
        search(
            PredictorSearch(space, surrogate=kind, initial=3), lambda a: [{"accuracy": 1.0}] * len(a), study, trials=99
        )
        assert (study.evaluations, len(study)) == (15, 15)


def test_failures_teach_nothing_and_are_not_proposed_again() -> None:
    """A part of the space fails: the surrogate sees only the rest, and no network is proposed twice."""
    searcher = PredictorSearch(SPACE)
    seen: set[str] = set()
    for number in range(40):
        (arch,) = searcher.ask(1)
        assert arch.key not in seen
        seen.add(arch.key)
        bad = arch["layer0"] == "k5"
        metrics = {} if bad else {"accuracy": noise(arch)}
        searcher.tell([Trial.of(SPACE, arch, metrics, number=number, failed="no memory" if bad else "")])
    fine = [SPACE.from_indices(row) for row in searcher._rows]
    assert 0 < len(fine) < 40
    assert all(arch["layer0"] != "k5" for arch in fine)


def test_trials_outside_the_limits_train_the_surrogate_but_are_no_bases() -> None:
    """After a warm start with the best networks outside, the surrogate knows them, and every proposal is inside."""
    limit = LIMITS["conditional"]
    rng = Random(0)
    archs = list(dict.fromkeys(CONDITIONAL.sample(rng) for _ in range(60)))
    outside = [arch for arch in archs if not limit(arch)]
    searcher = PredictorSearch(CONDITIONAL, feasible=limit)
    searcher.tell([trial(i, arch, 200.0, space=CONDITIONAL) for i, arch in enumerate(outside)])
    assert len(searcher._scores) == len({CONDITIONAL.normal_form(a).key for a in outside})
    assert all(limit(arch) for arch in searcher.ask(20))


def test_a_minimised_metric_is_followed_down() -> None:
    def loss(archs: Any) -> list[dict[str, float]]:
        return [{"loss": 100 - stand_in(arch)} for arch in archs]

    up = searched(PredictorSearch(CONDITIONAL), 30, batch=2)
    down = searched(PredictorSearch(CONDITIONAL, metric="-loss"), 30, batch=2, evaluator=loss)
    assert [t.arch for t in up] == [t.arch for t in down]  # only differences of scores count


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"surrogate": "gaussian"}, "surrogate='gaussian' should be 'gp' or 'ensemble'"),
        ({"acquisition": "thomson"}, "acquisition='thomson' should be 'ei', 'ucb' or 'thompson'"),
        ({"initial": 1}, "initial=1 should be greater"),
        ({"beta": -1.0}, "beta=-1.0 should be greater"),
        ({"beta": math.nan}, "beta=nan should be a finite number"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        PredictorSearch(SPACE, **settings)


# -- against a published table, and the clock --------------------------------------------------------------------------


def needed(seeds: range) -> tuple[list[int], list[int]]:
    """Distinct evaluations to the best of NAS-Bench-Macro and to the first of its top ten."""
    from supernet.spaces.nasbench_macro import nasbench_macro, table

    space, published = nasbench_macro().space, table()
    accuracy = {(form := space.normal_form(arch)).key: published[form]["accuracy"] for arch in published}
    ranked = sorted(accuracy, key=lambda key: -accuracy[key])
    best, ten = [], []
    for seed in seeds:
        searcher, keys = PredictorSearch(space, seed=seed), list[str]()
        while ranked[0] not in keys:
            (arch,) = searcher.ask(1)
            keys.append(space.normal_form(arch).key)
            searcher.tell([Trial.of(space, arch, {"accuracy": accuracy[keys[-1]]}, number=len(keys))])
        best.append(len(keys))
        ten.append(next(i for i, key in enumerate(keys, start=1) if key in ranked[:10]))
    return best, ten


@pytest.mark.slow
def test_a_hundred_searches_of_the_published_table() -> None:
    """The upper ends of the 95 % intervals."""
    for evaluations, most in zip(needed(range(2_000, 2_100)), (50, 20), strict=True):
        mean, half = np.mean(evaluations), 1.96 * np.std(evaluations, ddof=1) / 10
        print(f"{mean:.1f} ± {half:.1f}")
        assert mean + half < most


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "acquisition"), [("gp", "ei"), ("gp", "thompson"), ("ensemble", "ei")])
def test_ten_thousand_trials_cost_twenty_milliseconds_each(kind: Any, acquisition: Any) -> None:
    space = SearchSpace("twenty", [Choice(f"block{i}", ("k3", "k5", "k7", "xception")) for i in range(20)])
    with Study(None, space) as study:
        began = time.process_time()
        search(PredictorSearch(space, surrogate=kind, acquisition=acquisition), evaluate, study, trials=10_000)
        each = (time.process_time() - began) / 10_000
        assert len({t.key for t in study.trials()}) == 10_000
    print(f"{kind}, {acquisition}: {1000 * each:.1f} ms a trial")
    assert each < 0.020
