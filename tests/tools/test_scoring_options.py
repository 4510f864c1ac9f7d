"""Options of a search that score faster are recorded in its study, and a search that goes on keeps them."""

import json
import sqlite3
from pathlib import Path

import pytest

from helpers.scripts import Call
from supernet.files import read_json, write_json
from supernet_tools.pipeline import scoring_dtype

SEARCH = ("--searcher", "random", "--batch", 6, "--bn-batches", 1)


def metrics_of(run: Path, name: str) -> list[dict[str, float]]:
    with sqlite3.connect(run / "search" / name / "study.db") as db:
        return [json.loads(row[0]) for row in db.execute("SELECT metrics FROM trials ORDER BY number")]


def settings_of(run: Path, name: str) -> dict[str, str]:
    with sqlite3.connect(run / "search" / name / "study.db") as db:
        return dict(json.loads(db.execute("SELECT value FROM meta WHERE name = 'settings'").fetchone()[0]))


def test_a_search_keeps_the_dtype_that_a_probe_has_chosen(
    tiny_run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_dtype, "NETWORKS", 10)
    code, out, err = call("search", tiny_run, *SEARCH, "--name", "auto", "--trials", 6, "--scoring-dtype", "auto")
    assert code == 0, err
    outcome = read_json(tiny_run / "scoring.json")
    assert outcome["bf16"] == (outcome["ratio"] <= 0.9 and outcome["tau"] >= 0.98 and outcome["top"])
    assert f"τ between both is {outcome['tau']:.3f} over {outcome['networks']} networks" in out
    assert settings_of(tiny_run, "auto").get("evaluate.dtype") == ("bfloat16" if outcome["bf16"] else None)
    before = metrics_of(tiny_run, "auto")

    write_json(tiny_run / "scoring.json", outcome | {"bf16": not outcome["bf16"]})  # another outcome, later
    code, out, err = call("search", tiny_run, *SEARCH, "--name", "auto", "--trials", 9, "--scoring-dtype", "auto")
    assert code == 0, err
    assert metrics_of(tiny_run, "auto")[:6] == before
    code, out, err = call("search", tiny_run, *SEARCH, "--name", "new", "--trials", 6, "--scoring-dtype", "auto")
    assert code == 0, err
    assert "τ" not in out  # the outcome is read, not found again
    assert settings_of(tiny_run, "new").get("evaluate.dtype") == (None if outcome["bf16"] else "bfloat16")


def test_a_race_says_what_each_score_is_of(tiny_run: Path, call: Call) -> None:
    flags = (*SEARCH, "--name", "race", "--trials", 12, "--race-top", 1, "--bn-settle", 0.05)
    code, _, err = call("search", tiny_run, *flags)
    assert code == 0, err
    rows = metrics_of(tiny_run, "race")
    assert len(rows) == 12
    assert {"accuracy", "loss", "part", "macs"} <= rows[0].keys()
    assert max(row["part"] for row in rows) == 1
    assert settings_of(tiny_run, "race")["evaluate.race"] == "Race(top=1, part=0.25, level=0.01)"
