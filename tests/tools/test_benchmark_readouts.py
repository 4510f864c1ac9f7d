"""The benchmark of detectors that are read after fewer repeats."""

import re
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line


def test_wrong_numbers_are_named(call: Call, tmp_path: Path) -> None:
    for flags, words in ((("--repeats", 1), "repeats=1 should be"), (("--seeds", 0), "seeds=0 should be")):
        one_line(call("benchmarks.readouts", *flags, "--out", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_read_outs_are_compared_and_kept(call: Call, tmp_path: Path) -> None:
    flags = ("--compose", 16, 4, 4, "--epochs", 1, "--seeds", 2, "--out", tmp_path / "out")
    code, table, err = call("benchmarks.readouts", *flags)
    assert code == 0, err
    assert re.findall(r"read after \d of 2", table) == 2 * ["read after 1 of 2", "read after 2 of 2"]
    assert len(re.findall(r"difference", table)) == 2
    files = sorted((tmp_path / "out").glob("*/retrain/*/readouts.json"))
    assert len(files) == 4
    code, again, err = call("benchmarks.readouts", *flags)
    assert (code, again) == (0, table), err
