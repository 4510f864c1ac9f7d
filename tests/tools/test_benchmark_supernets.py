"""The comparison of searchers on trained supernets: each network is scored once, also across a kill."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import Call, one_line, run_script
from helpers.tiny import TINY

ROOT = Path(__file__).parents[2]
SPACE = ("--space-settings", "depths=[1, 2, 1]", "widths=[8, 16, 24]", "stem=4")  # 256 networks
FLAGS = ("--seeds", 2, "--evaluations", 12, "--batch", 4, "--points", 6, 12, 50, "--images", 100, "--bn-batches", 1)
NAMES = ("random", "aging-evolution:population_size=4", "nsga2:population_size=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained for four steps, without cached scores."""
    out = tmp_path_factory.mktemp("supernets") / "run"
    assert run_script("train_supernet", "quickstart", *TINY, *SPACE, "--out", out) == 0
    for scores in out.glob("scores.db*"):
        scores.unlink()
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def rows(run: Path) -> int:
    """Returns the number of scores in the cache of a run."""
    with sqlite3.connect(run / "scores.db") as cache:
        if not cache.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchone():
            return 0
        return int(cache.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def counts(said: str) -> tuple[int, int]:
    """Returns the printed numbers of distinct networks and of those from the cache."""
    match = re.search(r"([\d,]+)\s+distinct\s+networks,\s+([\d,]+)\s+of\s+them", said)
    assert match is not None, said
    return int(match[1]), int(match[2])


def curves(out: Path) -> Any:
    """Returns the curves that a benchmark wrote."""
    return json.loads((out / "supernet-run.json").read_text())["curves"]


@pytest.mark.slow  # tests/tools/test_tools_detection.py runs the same command
def test_searchers_share_one_score_per_network(run: Path, call: Call, tmp_path: Path) -> None:
    """A second call scores nothing and prints the same; curves are running maxima of the scores."""
    pytest.importorskip("plotly")
    flags = ("supernet", run, *FLAGS, "--searchers", *NAMES, "pnas", "--out", tmp_path / "out")
    code, said, err = call("benchmarks.search", *flags)
    assert code == 0, err
    first = curves(tmp_path / "out")
    assert set(first) == set(NAMES)
    assert "pnas is left out of shufflenet-small: space 'shufflenet-small' has no ladder" in said
    assert all(len(best) == 12 and best == sorted(best) for runs in first.values() for best in runs)
    networks, cached = counts(said)
    assert 12 < networks <= 12 * 2 * 3 + 3 * 2 * 3  # a batch may go beyond the last evaluation that counts
    assert (cached, rows(run)) == (0, networks)
    code, again, err = call("benchmarks.search", *flags)
    assert code == 0, err
    assert counts(again) == (networks, networks)
    assert rows(run) == networks
    assert curves(tmp_path / "out") == first
    best = max(runs[-1] for searches in first.values() for runs in searches)
    with sqlite3.connect(run / "scores.db") as cache:
        metrics = [json.loads(text) for (text,) in cache.execute("SELECT metrics FROM scores")]
    assert best == -min(row["loss"] for row in metrics)  # 12 evaluations end a batch of 4
    html = (tmp_path / "out" / "supernet-run.html").read_text(encoding="utf-8")
    assert "best score found" in html


@pytest.mark.slow  # tests/scoring/test_scores.py kills a writer of the cache
def test_a_killed_comparison_goes_on_with_its_scores(run: Path, call: Call, tmp_path: Path) -> None:
    """After SIGKILL, the same command takes finished scores from the cache and ends like an uninterrupted run."""
    pytest.importorskip("plotly")
    few = ("--seeds", 1, "--evaluations", 8, "--batch", 4, "--images", 50, "--bn-batches", 1)
    flags = ("supernet", run, *few, "--searchers", *NAMES[:2], "--score", "accuracy", "--out", tmp_path / "out")
    command = [sys.executable, "tools/benchmarks/search.py", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (run / "scores.db").exists() or rows(run) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    scored = rows(run)
    code, said, err = call("benchmarks.search", *flags)
    assert code == 0, err
    networks, cached = counts(said)
    assert 2 <= cached == scored < networks
    resumed = curves(tmp_path / "out")
    for scores in run.glob("scores.db*"):
        scores.unlink()
    assert call("benchmarks.search", *flags)[0] == 0
    assert curves(tmp_path / "out") == resumed


def test_invalid_comparisons_are_refused_in_one_line(run: Path, call: Call, tmp_path: Path) -> None:
    one_line(call("benchmarks.search", "supernet", run, "--images", 10_000), "images=10000", "search-validation")
    one_line(call("benchmarks.search", "supernet", run, "--score", "map"), "no metric 'map'", "accuracy, loss")
    one_line(call("benchmarks.search", "supernet", run, run), "two runs have folders of the same name")
    one_line(call("benchmarks.search", "supernet", run, "--searchers", "random:metric=macs"), "follows from score")
    one_line(call("benchmarks.search", "supernet", run, "--seeds", 0), "seeds=0")
    one_line(call("benchmarks.search", "supernet", tmp_path / "nowhere"), "nowhere")
