"""The fidelity script with the shipped table and with a tiny supernet, and retraining against random networks."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.scripts import Call, one_line, run_script
from helpers.tiny import TINY
from searchers import Study
from supernet import Arch
from supernet.config import Data
from supernet.errors import RunError
from supernet_tools.benchmarks import race
from supernet_tools.fidelity import Fidelity, true_ranking
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.runs import kind_of, open_run
from supernet_tools.pipeline.search import searched_top
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.train import prepare

FEW = ("--bn-batches", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fidelity") / "run"
    narrow = ("--space-settings", "widths=[16, 32, 64]", "stem=8", "head=80")
    assert run_script("train_supernet", "macro-digits", *TINY, *narrow, "--out", out) == 0
    return out


def test_the_table_alone_gives_the_published_ceilings(call: Call) -> None:
    code, said, err = call("fidelity", "--table-only", "--resamples", 2)
    assert code == 0, err
    assert "3,969 networks" in said
    assert "│ depth                │ 0.679" in said
    assert "seed to seed 0.879" in said


def test_a_supernet_is_compared_with_the_table(trained: Path, call: Call) -> None:
    code, said, err = call("fidelity", trained, "--n", 12, "--resamples", 5, "--labels", 4, "--name", "table", *FEW)
    assert code == 0, err
    report = json.loads((trained / "fidelity" / "table.json").read_text())
    assert "Kendall" in said
    assert report["settings"]["n"] == "12"
    assert report["n"] == report["ceiling"]["n"] == 12
    names = [ranker["name"] for ranker in report["rankers"]]
    assert names[:3] == ["shared weights", "shared loss", "calibrated, 4 labels"]
    kept = race.scores_of(race.Races(), race.shipped_table(), trained / "fidelity" / "table.json")
    assert len(set(kept.values())) > 1
    assert len(kept) == 12  # the benchmark of races takes its scores from the report
    health = json.loads((trained / "history.json").read_text())["health"]
    assert sum(health["visits"]["stage1.block0.op"].values()) == 4  # steps of one path


def test_a_supernet_is_compared_with_retrainings_that_are_kept(tiny_run: Path, call: Call) -> None:
    flags = ("--truth", "retrain", "--n", 2, "--resamples", 5, "--score", "loss")
    code, said, err = call("fidelity", tiny_run, *flags)
    assert code == 0, err
    assert "2 networks" in said
    results = sorted((tiny_run / "retrain").glob("*-seed0/result.json"))
    assert len(results) == 2
    before = [path.stat().st_mtime_ns for path in results]
    assert call("fidelity", tiny_run, *flags)[0] == 0
    assert [path.stat().st_mtime_ns for path in results] == before


def test_bands_of_cells_do_not_depend_on_the_networks_that_are_drawn(tmp_path: Path) -> None:
    """The largest network of such a space is not known, so that of the file stands for it."""
    config = SupernetRun(space="nasbench201", space_settings=("channels=4", "cells=1"), data=Data("digits", size=8))
    run = prepare(kind_of(config)).run(tmp_path)
    indices = [(3, 3, 3, 3, 3, 3), (1, 0, 0, 1, 0, 0), (2, 0, 0, 1, 0, 0), (4, 0, 0, 1, 0, 2)]
    text = "arch,accuracy\n" + "".join(f"{''.join(map(str, row))},0.{place}\n" for place, row in enumerate(indices, 1))
    (tmp_path / "cells.csv").write_text(text)
    truth, macs = tmp_path / "cells.csv", run.cost(run.space.from_indices(indices[0]))["macs"]
    for seed in range(4):
        archs, _, settings = true_ranking(Fidelity(truth=str(truth), n=1, seed=seed), run)
        assert len(archs) == 1
        assert settings["largest"] == macs


def test_truth_from_a_file_and_weights_of_another_run(trained: Path, call: Call, tmp_path: Path) -> None:
    rows = "".join(f"{i:04d}0000,{0.5 + 0.01 * i}\n" for i in (1, 2, 11, 12, 22)) + "22000000,\n"
    (tmp_path / "mine.csv").write_text("arch,accuracy\n" + rows)
    flags = ("--truth", tmp_path / "mine.csv", "--n", 0, "--checkpoints", trained, "--resamples", 5, *FEW)
    code, said, err = call("fidelity", trained, *flags)
    assert code == 0, err
    report = json.loads((trained / "fidelity" / "mine-accuracy-n6-seed0.json").read_text())
    assert list(report["stability"].values()) == pytest.approx([1.0])
    assert list(report["failed"].values()) == ["no truth"]
    assert report["n"] == 5
    assert "failed: " in said


def test_what_no_ranking_can_use_is_refused_before_anything_is_scored(
    trained: Path, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "one.csv").write_text("arch,accuracy\n20000000,0.5\n10000000,\n")
    (tmp_path / "twice.csv").write_text("arch,accuracy\n20000000,0.5\n20000000,0.6\n")
    for flags, fragments in (
        (("--labels", 2), ("--labels 2", "at least 3")),
        (("--n", 1), ("--n 1", "at least 2")),
        (("--checkpoints", trained / "run.json"), ("run.json",)),
        (("--checkpoints", tmp_path / "none"), ("none",)),
        (("--truth", tmp_path / "one.csv"), ("1 of 2 networks", "one.csv")),
        (("--truth", tmp_path / "twice.csv"), ("twice.csv, line 3",)),
    ):
        one_line(call("fidelity", trained, *flags), *fragments)


def test_names_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A run called "[bold]" lost its name, and one called "[/b]" ended the command after its work."""
    print_table("a [/b] run", ("[bold]", "what"), [("[/red]", ":smile:"), ("x[0]", 1.5)])
    out = capsys.readouterr().out
    for text in ("a [/b] run", "[bold]", "[/red]", ":smile:", "x[0]", "1.5000"):
        assert text in out


def fake(monkeypatch: pytest.MonkeyPatch, *, failing: set[str]) -> list[tuple[Arch, Any]]:
    """Replaces retraining by a function of seed and key that takes no time; those of the `failing` keys diverge."""
    asked: list[tuple[Arch, Any]] = []

    def retrain(run: object, arch: Arch, train: Any, **_: object) -> dict[str, float]:
        asked.append((arch, train))
        if arch.key in failing:
            raise RunError("the loss is not finite")
        return {"test_accuracy": 0.5 + int(arch.key[:4], 16) / 2**18 + 0.01 * train.seed}

    monkeypatch.setattr("supernet_tools.pipeline.retrain.retrain_stage", retrain)
    return asked


def test_a_search_is_compared_with_random_networks(trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    search = ("--searcher", "random", "--name", "mine", "--trials", 5, "--max-macs", "1.3e5", *FEW)
    assert call("search", trained, *search)[0] == 0
    asked = fake(monkeypatch, failing=set())
    code, said, err = call("retrain", trained, "--search", "mine", "--top", 3, "--random", 3, "--seeds", 2, "--seed", 7)
    assert code == 0, err
    document = json.loads((trained / "fidelity" / "control-mine.json").read_text())
    assert document["limits"] == {"macs": 1.3e5}
    assert "macs <= 130k" in said
    arms = document["top"], document["random"]
    assert len({row["key"] for arm in arms for row in arm}) == 6
    assert all(row["macs"] <= 1.3e5 for arm in arms for row in arm)
    assert [train.seed for _, train in asked] == [7, 8] * 6  # the same seeds for every network
    assert len({(train.epochs, train.lr) for _, train in asked}) == 1
    opened = open_run(trained)
    with Study(trained / "search" / "mine" / "study.db", opened.space) as study:
        known = {t.key: t.metrics["accuracy"] for t in study.trials()}
    assert [known[row["key"]] for row in document["top"]] == sorted(known.values(), reverse=True)[:3]
    means = [sum(sum(row["test_accuracy"]) / 2 for row in arm) / 3 for arm in arms]
    assert document["over_networks"]["mean"]["value"] == pytest.approx(means[0] - means[1])
    assert document["over_networks"]["sizes"] == [3, 3]
    assert document["over_networks"]["detectable"] > 0
    assert document["over_seeds"]["sizes"] == [2, 2]
    assert "would have been seen" in " ".join(said.split())
    assert document["verdict"] in said


def test_failed_retrainings_are_counted(trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("search", trained, "--searcher", "random", "--name", "few", "--trials", 2, *FEW)[0] == 0
    opened = open_run(trained)
    best, _ = searched_top(opened, "few", 2)
    fake(monkeypatch, failing={best[0].key})
    code, said, err = call("retrain", trained, "--search", "few", "--top", 2, "--random", 2)
    assert code == 0, err
    document = json.loads((trained / "fidelity" / "control-few.json").read_text())
    assert document["failed"] == [best[0].key]
    assert document["top"][0]["test_accuracy"] == [None]
    assert document["over_networks"]["sizes"] == [1, 2]
    assert best[0].key in document["verdict"]
    assert "no interval; give --top 2 or more" in document["verdict"]
    assert "failed" in said
    fake(monkeypatch, failing={arch.key for arch in best})
    code, _, err = call("retrain", trained, "--search", "few", "--top", 2, "--random", 2)
    assert code == 1
    assert "nothing to compare" in err


def test_what_cannot_be_compared_is_refused(trained: Path, call: Call) -> None:
    for name, arguments, message in (
        ("fidelity", (), "--table-only"),
        ("fidelity", (trained, "--table-only"), "--table-only"),
        ("retrain", (trained, "--top", 3), "--random of at least 1"),
        ("retrain", (trained, "--top", 1, "--random", 1, "--search", "none"), "no search 'none'"),
    ):
        code, out, err = call(name, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
