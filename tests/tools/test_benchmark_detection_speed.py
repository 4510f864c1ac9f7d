"""The benchmark of detectors: its metric against pycocotools, and its stopwatch.

That candidates get the same scores both ways is tested with the cached trunk features (tests/scoring).
"""

import re
import time

import pytest

from helpers.scripts import Call
from supernet_tools.benchmarks.detection_speed import Stopwatch


@pytest.mark.slow  # tests/detection/test_detection_metric.py compares the metric itself
def test_the_metric_agrees_with_pycocotools(call: Call) -> None:
    pytest.importorskip("pycocotools")
    code, said, err = call("benchmarks.detection_speed", "map", "--images", 4, "--detections", 5, 9, "--runs", 1)
    assert code == 0, err
    differences = re.findall(r"│ (\d\.\de[+-]\d+) +│", said)
    assert len(differences) == 2, said
    assert max(map(float, differences)) < 1e-9


def test_time_in_an_inner_part_does_not_count_for_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    stopwatch = Stopwatch()
    with monkeypatch.context() as patch:
        patch.setattr(time, "process_time", lambda: next(ticks))
        with stopwatch.part("outer"), stopwatch.part("inner"):
            pass
    assert stopwatch.seconds == {"outer": 1.0 + 4.0, "inner": 2.0}
