"""The search loop from outside: budgets, repeats, ends, resume and errors."""

import json
import logging
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers.searcher_cases import MAKERS, OURS, REPEAT, AtMost, Counter, chain_space, noise, small_evolution
from searchers import AgingEvolution, RandomSearch, Study, Trial, search
from searchers.loop import settings_of
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

SPACE = chain_space()


def run(name: str, *, trials: int = 60, batch: int = 1, **settings: Any) -> list[Trial]:
    """The trials of one uninterrupted search."""
    with Study(None, SPACE) as study:
        search(MAKERS[name](SPACE, **settings), Counter(), study, trials=trials, batch=batch)
        return study.trials()


class Scripted:
    """A searcher that proposes a fixed list of architectures in order."""

    def __init__(self, space: SearchSpace, archs: Sequence[Arch] = (), *, metric: str = "accuracy") -> None:
        self.space = space
        self.archs = list(archs)
        self.metric = metric
        self.left = list(archs)
        self.reported: list[Trial] = []

    def ask(self, n: int) -> list[Arch]:
        taken, self.left = self.left[:n], self.left[n:]
        return taken

    def tell(self, trials: Sequence[Trial]) -> None:
        self.reported += trials


# -- what is evaluated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", OURS)
def test_each_network_is_evaluated_once_and_as_its_normal_form(name: str, batch: int) -> None:
    evaluate = Counter()
    with Study(None, SPACE) as study:
        search(MAKERS[name](SPACE), evaluate, study, trials=100, batch=batch)
        assert len(set(evaluate.shown)) == len(evaluate.shown) == study.evaluations
        assert all(arch == SPACE.normal_form(arch) for arch in evaluate.shown)
        assert all(1 <= len(call) <= batch for call in evaluate.calls)
        trials = study.trials()
    assert [t.number for t in trials] == list(range(100))
    first: dict[str, Trial] = {}
    for trial in trials:
        assert trial.repeat == (trial.key in first)
        assert trial.metrics == first.setdefault(trial.key, trial).metrics
    assert [SPACE.normal_form(t.arch) for t in trials if not t.repeat] == evaluate.shown
    assert any(t.repeat for t in trials) == (name in REPEAT)


def test_repeats_within_one_batch_are_evaluated_once() -> None:
    a, b = SPACE.from_indices((1, 0, 2, 0, 0, 0)), SPACE.from_indices((0, 1, 0, 2, 0, 0))
    c = SPACE.from_indices((2, 2, 2, 2, 2, 2))
    searcher, evaluate = Scripted(SPACE, [a, b, c, a]), Counter()
    with Study(None, SPACE) as study:
        search(searcher, evaluate, study, trials=4, batch=4)
        assert evaluate.calls == [[SPACE.normal_form(a), c]]
        assert [t.repeat for t in study.trials()] == [False, True, False, True]
        assert [t.arch for t in searcher.reported] == [a, b, c, a]
        assert [t.seconds > 0 for t in study.trials()] == [True, False, True, False]


def test_the_best_evaluated_trial_is_returned_and_ties_go_to_the_earliest() -> None:
    archs = [SPACE.from_indices((1, i, j, 1, 1, 1)) for i in (1, 2) for j in (1, 2)]

    def evaluate(shown: Sequence[Arch]) -> list[dict[str, float]]:
        return [{"accuracy": 1.0 if arch == archs[0] else 5.0, "loss": float(arch != archs[3])} for arch in shown]

    for metric, best in (("accuracy", 1), ("-accuracy", 0), ("-loss", 3)):
        with Study(None, SPACE) as study:
            assert search(Scripted(SPACE, archs, metric=metric), evaluate, study, trials=4).number == best


def test_on_trial_sees_each_new_trial_once_and_in_order() -> None:
    seen: list[Trial] = []
    with Study(None, SPACE) as study:
        search(small_evolution(SPACE), Counter(), study, trials=10, batch=3, on_trial=seen.append)
        search(small_evolution(SPACE), Counter(), study, trials=20, batch=3, on_trial=seen.append)
        assert seen == study.trials()


# -- ends ----------------------------------------------------------------------------------------------------------


def test_the_budgets_end_the_search_exactly() -> None:
    for trials, evaluations, batch in ((20, None, 7), (1000, 33, 7), (1000, 33, 1), (5, 33, 8)):
        with Study(None, SPACE) as study:
            search(small_evolution(SPACE), Counter(), study, trials=trials, evaluations=evaluations, batch=batch)
            if evaluations is None or trials < evaluations:
                assert (len(study), study.ended) == (trials, f"{trials} trials are done")
            else:
                assert (study.evaluations, study.ended) == (evaluations, f"{evaluations} networks are evaluated")
                assert evaluations < len(study) < trials
                assert not study.trials()[-1].repeat


def test_an_exhausted_space_ends_with_a_message(caplog: pytest.LogCaptureFixture) -> None:
    space = chain_space(3, form=False)
    for searcher in (RandomSearch(space), small_evolution(space)):
        with Study(None, space) as study, caplog.at_level(logging.INFO, logger="searchers"):
            best = search(searcher, Counter(), study, trials=10**9, batch=5)
            assert study.ended == "the space is exhausted: all 27 architectures are evaluated"
            assert study.ended in caplog.text
            assert best.metrics["accuracy"] == max(map(noise, space.enumerate()))
        caplog.clear()


def test_a_space_with_fewer_networks_than_architectures_ends_too() -> None:
    space = chain_space(3)
    networks = {space.normal_form(arch).key for arch in space.enumerate()}
    assert len(networks) == 15
    with Study(None, space) as study:
        search(RandomSearch(space), Counter(), study, trials=10**9, batch=4)
        assert {t.key for t in study.trials()} == networks
        assert len(study) == 15
        assert study.ended == "RandomSearch has nothing new to propose after 15 trials"
    with Study(None, space) as study:
        search(small_evolution(space), Counter(), study, trials=10**9)
        assert study.evaluations == 15
        assert study.ended == "the last 1,000 trials brought no new network (15 are evaluated)"


def test_a_space_of_one_architecture_ends_after_it() -> None:
    space = SearchSpace("one", [Choice("a", ("x",))])
    for searcher in (RandomSearch(space), AgingEvolution(space, population_size=1)):
        with Study(None, space) as study:
            assert search(searcher, Counter(), study, trials=100).arch == Arch({"a": "x"})
            assert len(study) == 1


def test_a_searcher_that_proposes_nothing_at_all_is_an_error() -> None:
    with Study(None, SPACE) as study, pytest.raises(InputError, match="there are no trials"):
        search(Scripted(SPACE), Counter(), study, trials=5)


# -- resume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", ["random", "evolution", "reinforce"])
def test_interrupted_anywhere_a_search_repeats_the_uninterrupted_one(name: str, batch: int) -> None:
    """A searcher that repeats no network, one that does, and one that is restored from snapshots.

    The contract checks every searcher at a few interruptions.
    """
    whole = run(name, batch=batch, seed=3)
    for stop in range(0, math.ceil(60 / batch) - 1, 4 if batch == 1 else 1):
        with Study(None, SPACE) as study:
            interrupted = Counter(fail_at=stop)
            try:
                search(MAKERS[name](SPACE, seed=3), interrupted, study, trials=60, batch=batch)
            except KeyboardInterrupt:
                assert len(study) < 60
            resumed = Counter()
            search(MAKERS[name](SPACE, seed=3), resumed, study, trials=60, batch=batch)
            assert study.trials() == whole
            assert not set(interrupted.shown) & set(resumed.shown)


def test_a_run_depends_on_the_seed_alone() -> None:
    for name in ("random", "evolution"):  # the contract checks every searcher
        assert run(name, seed=1) == run(name, seed=1)
        assert run(name, seed=1) != run(name, seed=2)


def test_a_search_is_extended_by_a_larger_budget() -> None:
    with Study(None, SPACE) as study:
        search(small_evolution(SPACE), Counter(), study, trials=25)
        search(small_evolution(SPACE), Counter(), study, trials=60)
        assert study.trials() == run("evolution")


def test_an_ask_that_returned_fewer_is_replayed_as_it_was_asked() -> None:
    space = chain_space(3)
    with Study(None, space) as study:
        search(RandomSearch(space), Counter(), study, trials=100, batch=7)
        assert [(asked, len(batch)) for asked, batch in study.batches()] == [(7, 7), (7, 7), (7, 1)]
        before = study.trials()
        search(RandomSearch(space), Counter(), study, trials=100, batch=7)
        assert study.trials() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, "seed=0, and now with seed=5"),
        ({"population_size": 11}, "population_size=10, and now with population_size=11"),
        ({"metric": "-loss"}, "metric='accuracy', and now with metric='-loss'"),
        ({"feasible": AtMost({"k5": 3})}, "no limits, and now with the limits k5 <= 3"),
    ],
)
def test_a_changed_setting_is_named_with_both_values(change: dict[str, Any], words: str) -> None:
    with Study(None, SPACE) as study:
        search(small_evolution(SPACE), Counter(), study, trials=15)
        with pytest.raises(InputError) as caught:
            search(small_evolution(SPACE, **change), Counter(), study, trials=30)
        assert words in str(caught.value)
        assert 'resume="warm"' in str(caught.value)
        assert len(study) == 15


def test_a_changed_batch_searcher_or_limit_is_named() -> None:
    tight, loose = AtMost({"k5": 2}), AtMost({"k5": 3})
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE, feasible=tight), Counter(), study, trials=6)
        with pytest.raises(InputError, match="batch=1, and now with batch=2"):
            search(RandomSearch(SPACE, feasible=tight), Counter(), study, trials=9, batch=2)
        with pytest.raises(InputError, match="searcher='RandomSearch', and now with searcher='AgingEvolution'"):
            search(small_evolution(SPACE, feasible=tight), Counter(), study, trials=9)
        with pytest.raises(InputError, match="with the limits k5 <= 2, and now with the limits k5 <= 3"):
            search(RandomSearch(SPACE, feasible=loose), Counter(), study, trials=9)


def test_settings_are_the_arguments_of_the_constructor() -> None:
    searcher = AgingEvolution(SPACE, seed=4, population_size=7, feasible=AtMost({"k5": 2}))
    settings = settings_of(searcher)
    assert settings == {
        "searcher": "AgingEvolution",
        "space": SPACE.digest(),
        "seed": 4,
        "metric": "accuracy",
        "feasible": {"k5": 2},
        "population_size": 7,
        "tournament_size": 25,
        "identity": 0.05,
        "aging": True,
    }
    assert json.loads(json.dumps(settings)) == settings


def test_a_replay_that_differs_from_the_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with Study(path, SPACE) as study:
        search(RandomSearch(SPACE), Counter(), study, trials=9, batch=3)
        other = next(arch for arch in SPACE.enumerate() if arch not in [t.arch for t in study.trials()])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE trials SET arch = ? WHERE number = 4", (other.to_json(),))
    with Study(path, SPACE) as study, pytest.raises(InputError, match=f"replaying trial 4 of study .*{other.key}"):
        search(RandomSearch(SPACE), Counter(), study, trials=12, batch=3)


def test_a_searcher_that_is_not_fresh_is_refused() -> None:
    searcher = small_evolution(SPACE)
    with Study(None, SPACE) as study:
        search(searcher, Counter(), study, trials=15)
        with pytest.raises(InputError, match="not fresh"):
            search(searcher, Counter(), study, trials=30)


def test_a_warm_start_reports_everything_once_and_evaluates_nothing_again() -> None:
    first, second = Counter(), Counter()
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), first, study, trials=20, batch=4)
        searcher = Scripted(SPACE, [study.trials()[5].arch, SPACE.from_indices((1,) * 6)])
        search(searcher, second, study, trials=22, resume="warm")
        assert searcher.reported == study.trials()
        assert study.trials()[20].repeat
        assert second.shown == [SPACE.from_indices((1,) * 6)]


def test_an_interrupted_warm_start_resumes_exactly() -> None:
    def warm(*, stop: int | None) -> list[Trial]:
        with Study(None, SPACE) as study:
            search(RandomSearch(SPACE), Counter(), study, trials=20, batch=4)
            searcher = small_evolution(SPACE, seed=8)
            try:
                search(searcher, Counter(fail_at=stop), study, trials=60, batch=2, resume="warm")
            except KeyboardInterrupt:
                search(small_evolution(SPACE, seed=8), Counter(), study, trials=60, batch=2)
            return study.trials()

    assert warm(stop=None) == warm(stop=6)


def test_random_search_after_a_warm_start_repeats_nothing_recorded() -> None:
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), Counter(), study, trials=40, batch=4)
        search(RandomSearch(SPACE), Counter(), study, trials=80, resume="warm")
        assert len({t.key for t in study.trials()}) == study.evaluations == 80


def test_a_warm_start_needs_the_searched_metric_in_every_record() -> None:
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), lambda archs: [{"accuracy": 1.0} for _ in archs], study, trials=4)
        with pytest.raises(InputError, match=f"{study.trials()[0].key} was scored without 'latency'"):
            search(small_evolution(SPACE, metric="-latency"), Counter(), study, trials=9, resume="warm")
        assert study.settings is not None
        assert study.settings["searcher"] == "RandomSearch"


def test_a_warm_start_is_not_ended_by_the_repeats_of_the_search_before() -> None:
    space = chain_space(3)
    arch = next(space.enumerate())
    with Study(None, space) as study:
        search(Scripted(space, [arch] * 2000), Counter(), study, trials=5000)
        assert (len(study), study.ended) == (1001, "the last 1,000 trials brought no new network (1 are evaluated)")
        search(RandomSearch(space), Counter(), study, trials=5000, resume="warm")
        assert study.evaluations == 15


def test_a_warm_start_under_new_limits_returns_and_breeds_only_what_fits() -> None:
    limit = AtMost({"k5": 1})
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), lambda archs: [{"accuracy": many(arch)} for arch in archs], study, trials=40)
        searcher = small_evolution(SPACE, feasible=limit, identity=0.5)
        best = search(searcher, lambda archs: [{"accuracy": 0.0} for _ in archs], study, trials=80, resume="warm")
        assert limit(best.arch)
        assert all(limit(t.arch) for t in study.trials()[40:])


def many(arch: Arch) -> float:
    """The number of costly layers, so that the best architecture without limits is far outside them."""
    return float(sum(value == "k5" for value in arch.values()))


# -- limits and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_proposals_keep_the_limits(name: str) -> None:
    limit = AtMost({"k5": 1})
    evaluate = Counter()
    with Study(None, SPACE) as study:
        search(MAKERS[name](SPACE, feasible=limit), evaluate, study, trials=13, batch=3)
        assert all(map(limit, evaluate.shown))
        assert len(study) == 13


@pytest.mark.parametrize("name", MAKERS)
def test_limits_that_nothing_meets_are_explained(name: str) -> None:
    with Study(None, SPACE) as study, pytest.raises(InputError) as caught:
        search(MAKERS[name](SPACE, feasible=AtMost({"k5": -1})), Counter(), study, trials=5)
    assert "within the limits {'k5': -1}; the smallest k5 of this space is 0" in str(caught.value)


def test_an_infeasible_or_foreign_proposal_is_a_bug_and_is_not_evaluated() -> None:
    evaluate = Counter()
    limited = Scripted(SPACE, [SPACE.from_indices((2,) * 6)])
    limited.feasible = AtMost({"k5": 1})  # type: ignore[attr-defined]
    for searcher in (limited, Scripted(SPACE, [Arch({"layer0": "k7"})])):
        with Study(None, SPACE) as study, pytest.raises(AssertionError):
            search(searcher, evaluate, study, trials=5)
    assert evaluate.calls == []


def broken(result: Any) -> Any:
    """An evaluator that scores five networks and then returns `result` for each."""
    good = Counter()

    def evaluate(archs: Sequence[Arch]) -> Sequence[Mapping[str, float]]:
        return good(archs) if len(good.shown) < 5 else [result for _ in archs]

    return evaluate


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"acuracy": 1.0}, "without 'accuracy'"),
        ({}, "without 'accuracy'"),
        ({"accuracy": "high"}, "metrics must be numbers"),
        (71.3, "return a mapping"),
    ],
)
def test_a_result_without_a_score_is_named_and_the_record_stays(result: Any, words: str) -> None:
    with Study(None, SPACE) as study:
        with pytest.raises(InputError) as caught:
            search(RandomSearch(SPACE), broken(result), study, trials=30)
        assert words in str(caught.value)
        sixth = run("random", trials=6)[-1]
        assert sixth.key in str(caught.value)
        assert len(study) == 5
        search(RandomSearch(SPACE), Counter(), study, trials=30)
        assert study.trials() == run("random", trials=30)


def test_too_few_or_too_many_results_are_refused() -> None:
    for extra in (-1, 1):
        with Study(None, SPACE) as study, pytest.raises(InputError, match=f"returned {4 + extra} results for 4"):
            search(
                RandomSearch(SPACE),
                lambda archs, extra=extra: [{"accuracy": 1.0}] * (len(archs) + extra),  # type: ignore[misc]
                study,
                trials=8,
                batch=4,
            )


@pytest.mark.parametrize("bad", [{"trials": 0}, {"batch": 0}, {"evaluations": 0}, {"batch": -1}, {"resume": "exakt"}])
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    name, value = next(iter(bad.items()))
    with Study(None, SPACE) as study, pytest.raises(InputError, match=f"{name}={value!r}"):
        search(RandomSearch(SPACE), Counter(), study, **{"trials": 5, **bad})


def test_a_searcher_over_another_space_is_refused() -> None:
    with Study(None, SPACE) as study, pytest.raises(InputError, match=r"'chain4'.*'chain6'"):
        search(RandomSearch(chain_space(4)), Counter(), study, trials=5)


def test_a_conditional_space_is_searched_without_waste() -> None:
    choices = [Choice("depth", (1, 2)), Choice("a", OPS := ("x", "y", "z")), Choice("b", OPS, when=("depth", (2,)))]
    space = SearchSpace("conditional", choices)
    assert space.size() == 12
    for name in MAKERS:
        with Study(None, space) as study:
            search(MAKERS[name](space, seed=Random(0).randrange(9)), Counter(), study, trials=10_000)
            assert study.evaluations == 12, name
            assert study.ended == "the space is exhausted: all 12 architectures are evaluated"
