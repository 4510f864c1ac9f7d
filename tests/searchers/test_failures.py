"""Evaluations that fail: the trial says why, the search goes on, and not for ever."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from helpers.searcher_cases import MAKERS, OURS, Counter, chain_space, noise
from searchers import RandomSearch, Study, search
from searchers.study import score
from supernet.errors import DamagedError, InputError, RunError
from supernet.space import Arch

SPACE = chain_space()
NAN, INF = float("nan"), float("inf")


def bad(arch: Arch) -> bool:
    """About one network in eight, `SPACE`'s all-k5 one among them."""
    return arch["layer0"] == "k5" and arch["layer1"] == "k5"


class Fragile:
    """Raises where a bad architecture is in the batch, or returns `result` for it."""

    def __init__(self, result: Mapping[str, float] | Exception | None) -> None:
        self.result = result
        self.calls: list[list[Arch]] = []

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
        self.calls.append(list(archs))
        if isinstance(self.result, Exception) and any(map(bad, archs)):
            raise self.result
        scores: list[Mapping[str, float] | None] = []
        for arch in archs:
            scores.append(
                self.result if bad(arch) and not isinstance(self.result, Exception) else {"accuracy": noise(arch)}
            )
        return scores


FAILURES = [
    (RuntimeError("CUDA out\nof memory"), "RuntimeError: CUDA out of memory"),
    (None, "evaluate returned None"),
    ({"accuracy": NAN}, "evaluate returned accuracy=nan"),
    ({"accuracy": INF, "loss": 0.5}, "evaluate returned accuracy=inf"),
]


@pytest.mark.parametrize(("result", "reason"), FAILURES, ids=["raises", "none", "nan", "inf"])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_failed_trial_has_its_reason_and_the_search_continues(
    result: Mapping[str, float] | Exception | None, reason: str, batch: int, tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    with Study(path, SPACE) as study:
        best = search(RandomSearch(SPACE), Fragile(result), study, trials=60, batch=batch)
        trials = study.trials()
    assert len(trials) == 60
    failed = [trial for trial in trials if trial.failed]
    assert 3 < len(failed) < 30
    for trial in trials:
        fails = bad(SPACE.normal_form(trial.arch))
        assert (trial.failed, dict(trial.metrics)) == (
            (reason, {}) if fails else ("", {"accuracy": noise(SPACE.normal_form(trial.arch))})
        )
    assert best == max((t for t in trials if not t.failed), key=lambda t: t.metrics["accuracy"])
    with Study(path, SPACE) as study:
        assert study.trials() == trials
        assert study.first_of(failed[0].key) == failed[0]
        assert study.evaluations == 60


def test_only_the_culprit_of_a_batch_fails() -> None:
    evaluate = Fragile(ValueError("bad layer"))
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), evaluate, study, trials=20, batch=20)
        assert [len(call) for call in evaluate.calls] == [20] + [1] * 20
        assert [bool(trial.failed) for trial in study.trials()] == [bad(arch) for arch in evaluate.calls[0]]
        assert any(trial.failed for trial in study.trials())


@pytest.mark.parametrize("name", OURS)
def test_failed_networks_are_not_evaluated_again_and_have_no_children(name: str) -> None:
    evaluate = Fragile(None)
    with Study(None, SPACE) as study:
        search(MAKERS[name](SPACE), evaluate, study, trials=80, batch=4)
        shown = [arch for call in evaluate.calls for arch in call]
        assert len(set(shown)) == len(shown)
        failures = [trial for trial in study.trials() if trial.failed]
        assert failures
        assert all(bad(SPACE.normal_form(trial.arch)) for trial in failures)


def test_failures_in_a_row_end_the_search_with_their_reasons(caplog: pytest.LogCaptureFixture) -> None:
    good = Counter()

    def breaks(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        if len(good.calls) == 5:
            raise OSError("the disk is gone")
        return good(archs)

    with Study(None, SPACE) as study, caplog.at_level(logging.WARNING, logger="searchers"):
        with pytest.raises(RunError) as caught:
            search(RandomSearch(SPACE), breaks, study, trials=100, max_failures=4)
        assert "4 evaluations in a row failed" in str(caught.value)
        assert "OSError: the disk is gone" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert "the disk is gone" in caplog.text
        assert [bool(t.failed) for t in study.trials()] == [False] * 5 + [True] * 3
        search(RandomSearch(SPACE), Counter(), study, trials=100, max_failures=4)  # repaired
        assert [bool(t.failed) for t in study.trials()] == [False] * 5 + [True] * 3 + [False] * 92


def test_a_dead_evaluator_stops_within_the_batch_and_records_none_of_it() -> None:
    calls: list[int] = []

    def dead(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        calls.append(len(archs))
        raise RuntimeError("no device")

    with Study(None, SPACE) as study:
        with pytest.raises(RunError, match=r"20 evaluations in a row failed .*no device"):
            search(RandomSearch(SPACE), dead, study, trials=100, batch=50)
        assert calls == [50] + [1] * 20
        assert len(study) == 0
        search(RandomSearch(SPACE), Counter(), study, trials=100, batch=50)
        assert not any(trial.failed for trial in study.trials())


def test_scattered_failures_do_not_add_up() -> None:
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), Fragile(None), study, trials=120, max_failures=6)
        assert sum(bool(trial.failed) for trial in study.trials()) > 6


def test_max_failures_of_one_tolerates_no_failure() -> None:
    with Study(None, SPACE) as study, pytest.raises(RunError, match="1 evaluations in a row failed"):
        search(RandomSearch(SPACE), Fragile(None), study, trials=120, max_failures=1)
    with Study(None, SPACE) as study, pytest.raises(InputError, match="max_failures=0"):
        search(RandomSearch(SPACE), Fragile(None), study, trials=120, max_failures=0)


def test_ctrl_c_is_not_a_failure() -> None:
    with Study(None, SPACE) as study:
        with pytest.raises(KeyboardInterrupt):
            search(RandomSearch(SPACE), Counter(fail_at=3), study, trials=10)
        assert len(study) == 3


def test_when_everything_failed_the_last_reason_is_the_answer() -> None:
    with Study(None, SPACE) as study:
        with pytest.raises(InputError, match="all failed, the last with: evaluate returned None"):
            search(RandomSearch(SPACE), lambda archs: [None for _ in archs], study, trials=9)
        with pytest.raises(InputError, match=r"trial 0 .* failed and has no score: evaluate returned None"):
            score(study.trials()[0], "accuracy")


def test_failed_trials_of_a_warm_start_need_no_score() -> None:
    with Study(None, SPACE) as study:
        search(RandomSearch(SPACE), Fragile(None), study, trials=30)
        for name in MAKERS:
            before = len(study)
            assert any(trial.failed for trial in study.trials())
            best = search(MAKERS[name](SPACE), Fragile(None), study, trials=before + 5, resume="warm")
            assert before < len(study) <= before + 5
            assert not best.failed


@pytest.mark.parametrize("batch", [1, 4])
def test_a_damaged_file_ends_the_search_and_is_no_failure_of_a_network(batch: int) -> None:
    def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        raise DamagedError("scores.db cannot be read")

    with Study(None, SPACE) as study:
        with pytest.raises(DamagedError, match=r"scores\.db cannot be read"):
            search(RandomSearch(SPACE), evaluate, study, trials=8, batch=batch)
        assert len(study) == 0
