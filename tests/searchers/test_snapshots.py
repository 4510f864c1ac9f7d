"""A search restored from a snapshot equals the uninterrupted one, and an unreadable snapshot is ignored."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import searchers
from helpers.searcher_cases import CONDITIONAL, LIMITS, SPACES, Counter, chain_space, small_reinforce
from searchers import RandomSearch, Reinforce, Study, Trial, loop, search
from supernet.space import Arch, SearchSpace

SPACE = chain_space(form=False)


def copied(searcher: Reinforce) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in searcher.controller.weights.items()}


class Counted(Reinforce):
    """Counts its calls of `ask`."""

    asks = 0

    def ask(self, n: int) -> list[Arch]:
        self.asks += 1
        return super().ask(n)


def run(space: SearchSpace, path: Path | None, stops: Sequence[int] = ()) -> tuple[list[Trial], Counted]:
    """The trials of a search of 60 in batches of 7, interrupted at these evaluations, and its last searcher."""

    def make() -> Counted:
        return Counted(space, feasible=LIMITS[space.name.rstrip("6")], hidden=8, minibatch=10)

    for stop in stops:
        with Study(path, space) as study, pytest.raises(KeyboardInterrupt):
            search(make(), Counter(fail_at=stop), study, trials=60, batch=7)
    with Study(path, space) as study:
        searcher = make()
        search(searcher, Counter(), study, trials=60, batch=7)
        return study.trials(), searcher


@pytest.mark.parametrize(("space", "every"), [("chain", 0.0), ("conditional", 0.0), ("chain", 1e9)])
def test_an_interrupted_search_continues_from_its_snapshot(
    space: str, every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 7 end within minibatches of 10, so that a snapshot holds samples that wait for either."""
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", every)
    whole, uninterrupted = run(SPACES[space], None)
    trials, resumed = run(SPACES[space], tmp_path / "study.db", (2, 3, 1))
    assert trials == whole
    assert all(torch.equal(w, copied(uninterrupted)[name]) for name, w in copied(resumed).items())
    assert resumed.asks == (3 if every == 0 else 9)


def test_a_finished_search_is_extended_from_the_snapshot_at_its_end(tmp_path: Path) -> None:
    trials, asks = [], []
    for budget in (35, 70):
        with Study(tmp_path / "study.db", SPACE) as study:
            searcher = Counted(SPACE, hidden=8, minibatch=10)
            search(searcher, Counter(), study, trials=budget, batch=7)
            trials, asks = study.trials(), [*asks, searcher.asks]
    with Study(None, SPACE) as study:
        search(Counted(SPACE, hidden=8, minibatch=10), Counter(), study, trials=70, batch=7)
        assert study.trials() == trials
    assert asks == [5, 5]


@pytest.mark.parametrize("state", [b"", b"{}", b"\x00" * 100, "other"])
def test_an_unreadable_snapshot_is_ignored(state: bytes | str, caplog: pytest.LogCaptureFixture) -> None:
    if isinstance(state, str):
        state = small_reinforce(CONDITIONAL).snapshot()
    with Study(None, SPACE) as study:
        search(small_reinforce(SPACE), Counter(), study, trials=25)
        study.set_snapshot(state)
        search(small_reinforce(SPACE), Counter(), study, trials=50)
        trials = study.trials()
    assert "is replayed from its start" in caplog.text
    with Study(None, SPACE) as study:
        search(small_reinforce(SPACE), Counter(), study, trials=50)
        assert study.trials() == trials


def test_a_warm_start_drops_the_snapshot_of_the_search_before(tmp_path: Path) -> None:
    with Study(tmp_path / "study.db", SPACE) as study:
        search(small_reinforce(SPACE), Counter(), study, trials=25)
        assert study.snapshot is not None
        assert study.snapshot[0] == 25
        search(RandomSearch(SPACE), Counter(), study, trials=30, resume="warm")
        assert study.snapshot is None


KILLED = """
import sys, time
from searchers import Reinforce, Study, loop, search
from supernet.space import Choice, SearchSpace
loop.SNAPSHOT_SECONDS = 0.02
space = SearchSpace("bandit", [Choice(f"block{i}", ("k3", "k5", "k7", "skip")) for i in range(4)])
def evaluate(archs):
    time.sleep(float(sys.argv[2]))
    return [{"accuracy": int(arch.key[:6], 16) / 7} for arch in archs]
with Study(sys.argv[1], space) as study:
    print("open", flush=True)
    searcher = Reinforce(space, hidden=8, minibatch=10)
    search(searcher, evaluate, study, trials=200, batch=3, on_trial=lambda trial: print(trial.number, flush=True))
    print([(trial.number, trial.key, dict(trial.metrics), trial.repeat, trial.batch) for trial in study.trials()])
"""


@pytest.mark.slow
def test_a_killed_search_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    root = Path(searchers.__path__[0]).parent

    def start(name: str, sleep: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), str(sleep)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    whole = start("whole.db", 0).communicate()[0].splitlines()[-1]
    rng = random.Random(seed := random.randrange(10**6))
    print(f"kill moments: Random({seed})")
    for _ in range(6):
        process = start("killed.db", 0.01)
        assert process.stdout is not None
        for _ in range(rng.randint(1, 40)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert start("killed.db", 0).communicate()[0].splitlines()[-1] == whole
