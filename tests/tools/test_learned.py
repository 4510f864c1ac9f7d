"""A supernet that is no better than guessing is named after its training and refused by the search."""

import json
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line

SPACE = ("--space-settings", "depths=[1, 1, 1]", "widths=[16, 24, 32]", "stem=8")
SMALL = (*SPACE, "--data.size", 8, "--train.batch", 64, "--train.epochs", 3)


@pytest.fixture
def stuck(tmp_path: Path, call: Call) -> Path:
    folder = tmp_path / "stuck"
    code, out, err = call("train_supernet", "quickstart", *SMALL, "--train.lr", 1e-9, "--out", folder)
    assert code == 0, err
    assert "no better than guessing after 51 steps" in out + err
    return folder


def test_a_supernet_at_chance_is_named_and_refused(stuck: Path, call: Call) -> None:
    record = json.loads((stuck / "run.json").read_text())["shared_weights"]
    assert record["learned"] is False
    assert record["best"] < 0.25
    assert 0.09 < record["guessing"] < 0.15  # ten digits, about equally many
    command = ("search", stuck, "--searcher", "random", "--trials", 3)
    one_line(call(*command), "no better than guessing after 51 steps", "train.lr is 1e-09", "--force")
    assert not (stuck / "search").exists()
    code, out, _ = call(*command, "--force")
    assert code == 0
    assert "search random" in out


def test_the_remedy_works(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "learns"
    code, out, err = call("train_supernet", "quickstart", *SMALL, "--train.lr", 0.2, "--out", folder)
    assert code == 0, err
    assert "guessing" not in out + err
    assert json.loads((folder / "run.json").read_text())["shared_weights"]["learned"] is True
    assert call("search", folder, "--searcher", "random", "--trials", 3)[0] == 0
