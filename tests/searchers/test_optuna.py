"""The Optuna adapter: what the sampler is asked for and what is reported to it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import searchers
from helpers.searcher_cases import CONDITIONAL, LIMITS, AtMost, Counter, chain_space, trial
from searchers import OptunaSearcher, RandomSearch, Study, search
from searchers.testing import evaluate, searched, stand_in
from supernet.errors import InputError
from supernet.space import Arch

optuna = pytest.importorskip("optuna")
COMPLETE, PRUNED, FAIL = (optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL"))
SPACE = chain_space()
FAST: dict[str, Any] = {"sampler": "RandomSampler"}


def recorded(searcher: OptunaSearcher) -> list[Any]:
    """The trials as the sampler sees them."""
    return list(searcher._study.get_trials(deepcopy=False))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("TPESampler", {"n_startup_trials": 5, "multivariate": True}),
        ("NSGAIISampler", {"population_size": 6}),
        ("QMCSampler", {"scramble": True}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_any_sampler_searches_and_repeats_itself(sampler: str, options: dict[str, Any]) -> None:
    runs = [searched(OptunaSearcher(CONDITIONAL, sampler=sampler, options=options), 25, batch=3) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({t.key for t in runs[0]}) == 25


def test_a_class_serves_as_a_name_does() -> None:
    by_class = OptunaSearcher(SPACE, sampler=optuna.samplers.RandomSampler)
    assert by_class.ask(9) == OptunaSearcher(SPACE, **FAST).ask(9)


def test_tpe_learns_through_the_adapter() -> None:
    """Mean of the last 20 of 60 scores against that of random search, three seeds."""

    def late(make: Any) -> float:
        runs = [searched(make(CONDITIONAL, seed=seed), 60) for seed in range(3)]
        return sum(t.metrics["accuracy"] for run in runs for t in run[40:]) / 60

    assert late(OptunaSearcher) > late(RandomSearch) + 5


def test_each_score_is_reported_once_with_the_parameters_that_were_active() -> None:
    searcher = OptunaSearcher(CONDITIONAL, **FAST)
    trials = searched(searcher, 40, batch=4)
    reported = [t for t in recorded(searcher) if t.state == COMPLETE]
    assert [t.value for t in reported if t.value == t.value] != []
    values = {t.key: t.metrics["accuracy"] for t in trials}
    by_params = {tuple(sorted(t.params.items(), key=str)): t.value for t in reported}
    for t in trials:
        active = CONDITIONAL.active(t.arch)
        params = {c.name: c.index(t.arch[c.name]) if c.ordered else t.arch[c.name] for c in active}
        assert by_params[tuple(sorted(params.items(), key=str))] == values[t.key]


def test_a_minimised_metric_is_reported_with_its_sign() -> None:
    searcher = OptunaSearcher(SPACE, metric="-accuracy", **FAST)
    (arch,) = searcher.ask(1)
    searcher.tell([trial(0, arch, 7.5, space=SPACE)])
    assert searcher._study.best_value == -7.5


def test_known_proposals_are_reported_at_once_and_the_last_networks_are_found_at_random() -> None:
    space = chain_space(3)
    searcher = OptunaSearcher(space, **FAST)
    with Study(None, space) as study:
        search(searcher, Counter(), study, trials=10**6)
        assert (study.evaluations, len(study)) == (15, 15)
        assert study.ended == "OptunaSearcher has nothing new to propose after 15 trials"
        values = {t.metrics["accuracy"] for t in study.trials()}
    states = [t.state for t in recorded(searcher)]
    assert states.count(COMPLETE) > 15
    assert not {t.value for t in recorded(searcher) if t.state == COMPLETE} - values


def test_proposals_outside_the_limits_are_pruned_and_never_evaluated() -> None:
    limit = AtMost({"k5": 1})
    searcher = OptunaSearcher(SPACE, feasible=limit, **FAST)
    trials = searched(searcher, 12, batch=3)
    assert all(limit(t.arch) for t in trials)
    assert {t.state for t in recorded(searcher)} >= {COMPLETE, PRUNED}
    for record in recorded(searcher):
        assert (record.state == PRUNED) == (not limit(Arch(record.params)))


def test_a_converged_sampler_is_replaced_by_random_draws() -> None:
    class Stuck(optuna.samplers.RandomSampler):  # type: ignore[misc]
        """Proposes the first option of everything."""

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return distribution.choices[0]

    searcher = OptunaSearcher(SPACE, sampler=Stuck)
    assert len({t.key for t in searched(searcher, 50, batch=5)}) == 50


def test_failures_and_a_warm_start_reach_the_sampler() -> None:
    def fragile(archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        return [None if int(arch.key, 16) % 3 == 0 else {"accuracy": stand_in(arch)} for arch in archs]

    first = RandomSearch(CONDITIONAL)
    searcher = OptunaSearcher(CONDITIONAL, feasible=LIMITS["conditional"], **FAST)
    with Study(None, CONDITIONAL) as study:
        search(first, evaluate, study, trials=30)
        legal = sum(LIMITS["conditional"](t.arch) for t in study.trials())
        search(searcher, fragile, study, trials=60, resume="warm")
        failed = sum(bool(t.failed) for t in study.trials())
        assert len({t.key for t in study.trials()}) == 60
    states = [t.state for t in recorded(searcher)]
    assert 0 < failed <= states.count(FAIL)
    assert states[:legal] == [COMPLETE] * legal


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "TpeSampler"}, "no sampler 'TpeSampler'; did you mean 'TPESampler'"),
        ({"options": {"n_startups": 3}}, "cannot be created with {'n_startups': 3}"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        OptunaSearcher(SPACE, **settings)


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'supernet\[optuna\]'"):
        OptunaSearcher(SPACE)


def test_optuna_prints_nothing_and_its_verbosity_stays() -> None:
    code = """
import optuna
from searchers import OptunaSearcher
from supernet.space import Choice, SearchSpace
before = optuna.logging.get_verbosity()
OptunaSearcher(SearchSpace("two", [Choice("a", (1, 2))])).ask(2)
assert optuna.logging.get_verbosity() == before
"""
    root = Path(searchers.__path__[0]).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
