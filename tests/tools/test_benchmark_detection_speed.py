"""The benchmark of scoring detectors: both sides give the same scores, and every part of the time is counted."""

import re
import time

import pytest

from helpers.scripts import Call
from supernet_tools.benchmarks.detection_speed import PARTS, REST, Stopwatch

SMALL = (
    "--scoring.data.size",
    64,
    "--scoring.data.compose",
    16,
    4,
    4,
    "--scoring.batches",
    1,
    "--scoring.width",
    8,
    "--scoring.convs",
    1,
    "--scoring.steps",
    2,
)


def check_comparison(said: str) -> None:
    """Asserts that a table has all parts and that no score differs between the two sides."""
    for part in (*PARTS, REST, "in all"):
        assert f"│ {part}" in said, said
    assert float(re.findall(r"largest\s+difference\s+of\s+a\s+score\s+([\d.e+-]+);", said)[-1]) < 1e-6, said
    assert "time ratio" in said


def test_generations_are_scored_both_ways(call: Call) -> None:
    few = ("--backbone", "shufflenet-small", "--networks", 5, "--after", 1)
    code, said, err = call("benchmarks.detection_speed", "generation", *SMALL, *few)
    assert code == 0, err
    check_comparison(said)
    assert "generation 1" in said


def test_the_metric_agrees_with_pycocotools(call: Call) -> None:
    pytest.importorskip("pycocotools")
    code, said, err = call("benchmarks.detection_speed", "map", "--images", 4, "--detections", 5, 9, "--runs", 1)
    assert code == 0, err
    differences = re.findall(r"│ (\d\.\de[+-]\d+) +│", said)
    assert len(differences) == 2, said
    assert max(map(float, differences)) < 1e-9


def test_time_in_an_inner_part_does_not_count_for_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "process_time", lambda: next(ticks))
    stopwatch = Stopwatch()
    with stopwatch.part("outer"), stopwatch.part("inner"):
        pass
    assert stopwatch.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}
