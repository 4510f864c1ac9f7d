"""Curves of a small, a large and random architectures on images that are not trained on."""

import json
from pathlib import Path

import pytest

from helpers.scripts import Call
from supernet_tools.pipeline import train as stage

SPACE = ("--space-settings", "depths=[1, 1, 1]", "widths=[16, 24, 32]", "stem=8")
COMMAND = ("train_supernet", "quickstart", *SPACE, "--data.size", 8, "--train.batch", 128, "--train.epochs", 2)
NAMES = ("large_accuracy", "small_accuracy", "random_accuracy")


def trained(call: Call, out: Path) -> tuple[bytes, list[dict[str, float]]]:
    code, _, err = call(*COMMAND, "--out", out)
    assert code == 0, err
    return (out / "supernet.safetensors").read_bytes(), json.loads((out / "history.json").read_text())["epochs"]


def test_curves_are_recorded_and_leave_the_training_as_it_is(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, rows = trained(call, tmp_path / "with")
    assert all(0 <= row[name] <= 1 for row in rows for name in NAMES)
    assert len({row[name] for row in rows for name in NAMES}) > 2
    with monkeypatch.context() as patched:
        patched.setattr(stage, "_curves", lambda parts: None)
        without, bare = trained(call, tmp_path / "without")
    assert without == weights
    assert bare == [{key: value for key, value in row.items() if key not in NAMES} for row in rows]
