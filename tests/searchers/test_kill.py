"""A search killed by SIGKILL at random moments and started again has the trials of an uninterrupted search."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import searchers

ROOT = Path(searchers.__path__[0]).parent
TRIALS = 84

SCRIPT = """
import json, sys, time
from searchers import AgingEvolution, RandomSearch, Study, search
from supernet.space import Choice, SearchSpace

STAGES = (2, 3, 3)
OPS = ("identity", "mb3_k3", "mb6_k5")

def identities_last(arch):
    values = {}
    for stage, depth in enumerate(STAGES, 1):
        names = [f"stage{stage}.block{block}" for block in range(1, depth)]
        kept = [arch[name] for name in names if arch[name] != "identity"]
        values.update(zip(names, kept + ["identity"] * (len(names) - len(kept))))
    return values

choices = [Choice(f"stage{s}.block{b}", OPS) for s, depth in enumerate(STAGES, 1) for b in range(depth)]
space = SearchSpace("macro", choices, identities_last)

def evaluate(archs):
    results = []
    for arch in archs:
        time.sleep(float(sys.argv[4]))
        results.append({"accuracy": int(arch.key[:6], 16) / 7, "loss": int(arch.key[6:12], 16) / 3})
    return results

searcher = {
    "random": lambda: RandomSearch(space, seed=5),
    "evolution": lambda: AgingEvolution(space, seed=5, population_size=12, tournament_size=5, identity=0.2),
}[sys.argv[2]]()
with Study(sys.argv[1], space) as study:
    print("open", flush=True)
    report = lambda trial: print(trial.number, flush=True)
    search(searcher, evaluate, study, trials=int(sys.argv[5]), batch=int(sys.argv[3]), on_trial=report)
    print(json.dumps([[t.number, dict(t.arch), t.key, dict(t.metrics), t.repeat, t.batch] for t in study.trials()]))
"""


def start(path: Path, name: str, batch: int, *, sleep: float, trials: int) -> subprocess.Popen[str]:
    """Starts the search as a process, which prints a line when the study is open and one per new trial."""
    command = [sys.executable, "-c", SCRIPT, *map(str, (path, name, batch, sleep, trials))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[list[Any], int]:
    """All trials of the study, and how many of them this process added."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = output.splitlines()
    return json.loads(lines[-1]), len(lines) - 2


def kill(process: subprocess.Popen[str], lines: int, delay: float) -> int:
    """Kills the process `delay` seconds after a number of lines; returns how many trials it had reported by then."""
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return max(0, lines + len(rest) - 1)


@pytest.mark.parametrize(
    ("name", "batch", "kills"),
    [
        pytest.param(*case, marks=[] if case in (("random", 1, 2), ("evolution", 7, 2)) else pytest.mark.slow)
        for case in itertools.product(("random", "evolution"), (1, 7), (2, 10))
    ],
)
def test_a_killed_search_ends_as_the_uninterrupted_one(name: str, batch: int, kills: int, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"kill moments: Random({seed})")  # pytest shows it if the test fails
    rng = random.Random(seed)
    whole, added = finish(start(tmp_path / "whole.db", name, batch, sleep=0, trials=TRIALS))
    assert added == len(whole) == TRIALS
    reported = 0
    for _ in range(kills):
        process = start(tmp_path / "killed.db", name, batch, sleep=0.003, trials=10**6)
        lines = rng.randint(0, TRIALS // (kills + 1))
        reported += kill(process, lines, rng.uniform(0, 0.03 if lines else 0.2))  # starting up takes about 0.1 s
    trials, added = finish(start(tmp_path / "killed.db", name, batch, sleep=0, trials=TRIALS))
    assert trials[:TRIALS] == whole
    lost = len(trials) - added - reported
    assert 0 <= lost <= kills * batch  # recorded, but killed before it was reported
    assert any(repeat for *_, repeat, _ in whole) == (name == "evolution")
