"""A signal to a whole process group, as terminals and schedulers send it: one line, and the same command goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.images import make_folder
from helpers.scripts import run_script

ROOT = Path(__file__).parents[2]
SAID = {
    signal.SIGTERM: (143, "terminated; finished work is saved, and the same command goes on from it"),
    signal.SIGINT: (130, "interrupted; finished work is saved, and the same command goes on from it"),
}


def interrupted(number: signal.Signals, begun: Callable[[], bool], name: str, *arguments: object) -> None:
    """Runs a script in a session of its own, signals all its processes once it has begun, and checks what it says."""
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, cwd=ROOT
    ) as process:
        while not begun() and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=120)
    code, line = SAID[number]
    assert process.returncode == code, err
    assert err.splitlines()[-1] == line
    assert "Traceback" not in err
    assert "error" not in err


def recipe(tmp_path: Path, *more: object) -> tuple[object, ...]:
    """A training of 30 steps whose images two workers read while training."""
    images = make_folder(tmp_path / "images")
    sizes = ("--data.size", 8, "--train.batch", 4, "--train.epochs", 10, "--train.save-seconds", 0, "--train.lr", 0.01)
    space = ("--space-settings", "depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
    retrain = ("--retrain.batch", 4, "--retrain.epochs", 10, "--retrain.save-seconds", 0, "--retrain.lr", 0.01)
    stream = ("--data.source", images, "--data.stream", "--data.workers", 2)
    return ("quickstart", *stream, *sizes, *space, *retrain, *more)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_training_with_workers_goes_on_after_a_signal_to_its_group(number: signal.Signals, tmp_path: Path) -> None:
    settings, whole, stopped = recipe(tmp_path), tmp_path / "whole", tmp_path / "stopped"
    interrupted(number, (stopped / "state.pt").exists, "train_supernet", *settings, "--out", stopped)
    assert not (stopped / "supernet.safetensors").exists()
    for out in (stopped, whole):
        assert run_script("train_supernet", *settings, "--out", out) == 0
    assert (stopped / "supernet.safetensors").read_bytes() == (whole / "supernet.safetensors").read_bytes()
    assert not list(stopped.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number", SAID)
def test_a_retraining_and_a_search_go_on_after_a_signal_to_their_group(number: signal.Signals, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_script("train_supernet", *recipe(tmp_path), "--out", whole) == 0
    shutil.copytree(whole, stopped)
    search = ("--searcher", "random", "--trials", 40)
    interrupted(number, (stopped / "search/random/study.db").exists, "search", stopped, *search)
    for out in (stopped, whole):
        assert run_script("search", out, *search) == 0

    def begun() -> bool:
        return bool(list(stopped.glob("retrain/*/state.pt")))

    interrupted(number, begun, "retrain", stopped, "--search", "random")
    for out in (stopped, whole):
        assert run_script("retrain", out, "--search", "random") == 0
    weights = [next(out.glob("retrain/*/network.safetensors")).read_bytes() for out in (stopped, whole)]
    assert weights[0] == weights[1]
