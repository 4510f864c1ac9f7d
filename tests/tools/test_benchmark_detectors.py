"""The script that compares the detector of a search with plain, published and random ones."""

import json
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line, run_script

DATA = ("--data.size", 64, "--data.compose", 8, 4, 4, "--data.calibration", 8, "--scoring-batch", 4)
SMALL = (
    *DATA,
    "--head-width",
    8,
    "--head-convs",
    1,
    "--train.epochs",
    1,
    "--train.batch",
    8,
    "--retrain.epochs",
    1,
    "--retrain.batch",
    8,
    "--start",
    "scratch",
    "--backbone-settings",
    "depths=[1, 1, 1]",
    "widths=[8, 16, 24]",
    "stem=4",
)
FIXED = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})
SEARCH = ("--trials", 4, "--batch", 4, "--bn-batches", 1)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone is searched, with a finished search."""
    out = tmp_path_factory.mktemp("backbones") / "run"
    assert run_script("train_supernet", "detnas-digits", *SMALL, "--out", out) == 0
    assert run_script("search", out, "--searcher", "random", "--name", "few", *SEARCH) == 0
    return out


@pytest.mark.slow  # six retrainings, each of which tests/tools/test_tools_detection.py makes once
def test_a_searched_backbone_is_compared_with_plain_and_random_ones(backbones: Path, call: Call) -> None:
    flags = (backbones, "--search", "few", "--random", 1, "--seeds", 2, "--plain", "shuffle3")
    wider = ("--plain-widths", 16, 32, 48)
    code, out, err = call("benchmarks.detectors", *flags, *wider)
    assert code == 0, err
    report = json.loads((backbones / "compared" / "detectors.json").read_text())
    rows = {row["name"]: row for row in report["networks"]}
    assert list(rows) == ["found", "random 0", "all shuffle3"]
    assert rows["all shuffle3"]["backbone_macs"] >= rows["found"]["backbone_macs"]
    assert all(len(row["test_map"]) == len(row["test_map50"]) == 2 for row in rows.values())
    assert rows["found"]["key"] != rows["random 0"]["key"]
    assert len(report["scores"]) == 4
    assert set(report["differences"]) == {"found less random", "found less plain"}
    expected = [a - b for a, b in zip(rows["found"]["test_map"], rows["all shuffle3"]["test_map"], strict=True)]
    assert report["differences"]["found less plain"]["mean"]["value"] == pytest.approx(sum(expected) / 2)
    assert (backbones / "compared" / "detectors.html").exists()
    results = sorted(backbones.rglob("result.json"))
    assert len(results) == 6
    times = [path.stat().st_mtime_ns for path in results]
    assert call("benchmarks.detectors", *flags, *wider)[:2] == (0, out)
    assert [path.stat().st_mtime_ns for path in results] == times  # nothing is retrained

    one_line(call("benchmarks.detectors", *flags, "--plain-widths", 6, 8, 10), "larger --plain-widths")
    one_line(
        call("benchmarks.detectors", *flags, "--plain-widths", 4, 8, 12), "cannot be built with", "widths=(4, 8, 12)"
    )
    one_line(call("benchmarks.detectors", *flags[:-1], "shuffle9"), "shuffle9")
    one_line(call("benchmarks.detectors", *flags[:-2], "--wiring", "nasfpn-7"), "searches the pyramid alone")
    one_line(call("benchmarks.detectors", *flags[:-2], "--fpn"), "needs a run with a fixed backbone")
    one_line(call("benchmarks.detectors", *flags[:6], 1, *flags[7:]), "--seeds 2")


@pytest.mark.slow  # the same command with arms of its own
def test_a_searched_pyramid_is_compared_with_the_published_one_and_fpn(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--settings", "levels=2", "pooled_levels=3", "repeats=1", "cells=7")
    neck = ("--backbone-arch", FIXED, *settings)
    code, _, err = call("train_supernet", "nasfpn-digits", *SMALL, *neck, "--out", out)
    assert code == 0, err
    assert call("search", out, "--searcher", "random", "--name", "few", *SEARCH)[0] == 0
    flags = (out, "--search", "few", "--random", 1, "--seeds", 2, "--wiring", "nasfpn-7")
    code, _, err = call("benchmarks.detectors", *flags, "--wiring-shift", -1, "--fpn")
    assert code == 0, err
    report = json.loads((out / "compared" / "detectors.json").read_text())
    rows = {row["name"]: row for row in report["networks"]}
    assert list(rows) == ["found", "random 0", "nasfpn-7", "fpn"]
    assert rows["nasfpn-7"]["arch"]["neck.cell1.inputs"] == "P3+P5"  # published: P4 and P6
    assert rows["nasfpn-7"]["macs"] != rows["fpn"]["macs"]
    assert {row["backbone_macs"] for row in rows.values()} == {rows["fpn"]["backbone_macs"]}
    assert set(rows["fpn"]["arch"]) == {f"backbone.stage{stage}.block0.op" for stage in (1, 2, 3)}
    one_line(call("benchmarks.detectors", *flags), "P7")
    one_line(call("benchmarks.detectors", *flags[:-2], "--plain", "shuffle3"), "searches the backbone alone")


@pytest.mark.slow  # two retrainings
def test_a_front_of_detectors_is_compared_with_trainings_of_equal_compute(backbones: Path, call: Call) -> None:
    code, out, err = call("benchmarks.detector_front", backbones, "--search", "few", "--share", 3)
    assert code == 0, err
    assert "trainings of 3 times the compute of the one" in out
    assert "inherited minus alone: " in out
    results = [json.loads(path.read_text()) for path in sorted((backbones / "alone").glob("*/result.json"))]
    front = json.loads((backbones / "search/few/front.json").read_text())["networks"]
    assert 1 <= len(front) == len(results)
    assert call("benchmarks.detector_front", backbones, "--search", "few", "--share", 3)[:2] == (0, out)


def test_a_front_of_classifiers_is_refused(tiny_run: Path, call: Call) -> None:
    one_line(call("benchmarks.detector_front", tiny_run), "the run of a classifier", "rivals.py")
