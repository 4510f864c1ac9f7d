"""A supernet that is no better than guessing is named after its training and refused by the search."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.scripts import Call, one_line, run_script
from supernet.paths import KILL_AT
from supernet_tools.pipeline.classifier import ClassifierKind

SPACE = ("--space-settings", "depths=[1, 1, 1]", "widths=[16, 24, 32]", "stem=8")
SMALL = (*SPACE, "--data.size", 8, "--data.calibration", 64, "--train.epochs", 3)
STUCK = (*SMALL, "--train.batch", 128, "--train.lr", 1e-9)


@pytest.fixture(scope="module", autouse=True)
def many_probes() -> Iterator[None]:
    """As many random subnets as outside of the tests, since what is said of a supernet depends on their best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierKind, "probes", 16)
        yield


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet that has learned nothing."""
    folder = tmp_path_factory.mktemp("stuck") / "run"
    assert run_script("train_supernet", "quickstart", *STUCK, "--out", folder) == 0
    return folder


def test_a_supernet_at_chance_is_named_and_refused(stuck: Path, tmp_path: Path, call: Call) -> None:
    stuck = shutil.copytree(stuck, tmp_path / "stuck")
    code, out, err = call("train_supernet", "quickstart", *STUCK, "--out", stuck)
    assert code == 0, err
    assert "no better than guessing after 24 steps" in out + err
    record = json.loads((stuck / "run.json").read_text())["shared_weights"]
    assert record["learned"] is False
    assert record["best"] < 0.25
    assert 0.09 < record["guessing"] < 0.15  # ten digits, about equally many
    command = ("search", stuck, "--searcher", "random", "--trials", 3)
    one_line(call(*command), "no better than guessing after 24 steps", "train.lr is 1e-09", "--force")
    assert not (stuck / "search").exists()
    code, out, _ = call(*command, "--force")
    assert code == 0
    assert "search random" in out


def test_the_remedy_works(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "learns"
    code, out, err = call(
        "train_supernet", "quickstart", *SMALL, "--train.batch", 64, "--train.lr", 0.2, "--out", folder
    )
    assert code == 0, err
    assert "guessing" not in out + err
    assert json.loads((folder / "run.json").read_text())["shared_weights"]["learned"] is True
    assert call("search", folder, "--searcher", "random", "--trials", 3)[0] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_the_end_of_a_training_never_leaves_weights_without_the_record(
    stuck: Path, tmp_path: Path, call: Call, step: int
) -> None:
    """Every file operation after the last step: the state is there, the weights and the record are not."""
    whole = json.loads((stuck / "run.json").read_text())
    command = ("train_supernet", "quickstart", *STUCK)
    point, kills, folder = 1, 0, tmp_path / "torn"
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stuck, folder)
        for name in ("supernet.safetensors", "history.json", "scores.db"):
            (folder / name).unlink()
        document = {key: value for key, value in whole.items() if key != "shared_weights"}
        (folder / "run.json").write_text(json.dumps(document))
        child = os.fork()
        if child == 0:
            os.environ[KILL_AT] = str(point)
            torch.set_num_threads(1)
            try:
                call(*command, "--out", folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        left = json.loads((folder / "run.json").read_text())
        assert "shared_weights" in left or not (folder / "supernet.safetensors").exists(), point
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            break
        point, kills = point + step, kills + 1
    assert left["shared_weights"] == whole["shared_weights"]
    assert kills >= 2
