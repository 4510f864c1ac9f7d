"""The reports on trust from outside: the shipped table without a run, a tiny supernet, and the control arm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHORT = ("--data.size", "8", "--train.epochs", "1", "--train.batch", "128", "--retrain.epochs", "1")


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fidelity") / "run"
    script("train_supernet", "macro-digits", *SHORT, "--out", out)
    return out


def test_the_published_ceilings_without_a_run() -> None:
    said = script("fidelity", "--table-only", "--resamples", 20)
    assert "3,969 networks" in said
    assert "│ depth                │ 0.679" in said
    assert "seed to seed 0.879" in said


def test_a_supernet_is_compared_with_the_table_and_with_retrainings(trained: Path) -> None:
    said = script("fidelity", trained, "--truth", "table", "--n", 30, "--resamples", 20, "--name", "table")
    report = json.loads((trained / "fidelity" / "table.json").read_text())
    assert "Kendall" in said
    assert report["settings"]["n"] == "30"
    health = json.loads((trained / "history.json").read_text())["health"]
    assert sum(health["visits"]["stage1.block0.op"].values()) == 8  # steps of one path
    said = script("fidelity", trained, "--truth", "retrain", "--n", 3, "--resamples", 20)
    assert len(list((trained / "retrain").glob("*/result.json"))) == 3
    assert "3 networks" in said


def test_a_search_is_compared_with_random_networks(trained: Path) -> None:
    script("search", trained, "--searcher", "random", "--trials", 6)
    said = script("retrain", trained, "--search", "random", "--top", 2, "--random", 2)
    assert said.count("top") >= 2
    assert "random" in said
