"""A signal to a whole process group, as terminals and schedulers send it: one line, and the same command goes on."""

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from helpers.images import make_folder
from helpers.scripts import Call, run_script
from helpers.tiny import TINY, TINY_SPACE

SAID = {
    signal.SIGTERM: (143, "terminated; finished work is saved, and the same command goes on from it"),
    signal.SIGINT: (130, "interrupted; finished work is saved, and the same command goes on from it"),
}


def interrupted(number: signal.Signals, begun: Callable[[], bool], name: str, *arguments: object) -> None:
    """Runs a script in a session of its own, signals all its processes once it has begun, and checks what it says."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()  # the libraries are loaded already
        if child == 0:
            _run_in_a_session(output.fileno(), name, *arguments)
        ended, status = 0, 0
        while not begun() and not ended:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.killpg(child, number)
            _, status = os.waitpid(child, 0)
        output.seek(0)
        err = output.read()
    code, line = SAID[number]
    assert os.waitstatus_to_exitcode(status) == code, err
    assert err.splitlines()[-1] == line
    assert "Traceback" not in err
    assert "error" not in err


def _run_in_a_session(output: int, name: str, *arguments: object) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        code = run_script(name, *arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def recipe(tmp_path: Path, *more: object) -> tuple[object, ...]:
    """A training of 15 steps whose images two workers read while training."""
    images = make_folder(tmp_path / "images")
    sizes = ("--data.size", 8, "--train.batch", 4, "--train.epochs", 5, "--train.save-seconds", 0, "--train.lr", 0.01)
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


def recorded(study: Path) -> int:
    """Returns the number of trials in a study that another process writes."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{study}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:  # no file or no table yet
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("number", SAID)
def test_a_retraining_and_a_search_go_on_after_a_signal_to_their_group(number: signal.Signals, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_script("train_supernet", *recipe(tmp_path), "--out", whole) == 0
    shutil.copytree(whole, stopped)
    search = ("--searcher", "random", "--trials", 40, "--force")  # the supernet has learned nothing from a few images
    study = stopped / "search/random/study.db"
    interrupted(number, lambda: recorded(study) > 0, "search", stopped, *search)
    for out in (stopped, whole):
        assert run_script("search", out, *search) == 0

    def begun() -> bool:
        return bool(list(stopped.glob("retrain/*/state.pt")))

    interrupted(number, begun, "retrain", stopped, "--search", "random")
    for out in (stopped, whole):
        assert run_script("retrain", out, "--search", "random") == 0
    weights = [next(out.glob("retrain/*/network.safetensors")).read_bytes() for out in (stopped, whole)]
    assert weights[0] == weights[1]


def test_a_command_that_has_saved_nothing_says_so(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a signal comes while images are read, of a training, of a search and of the same search after one trial."""
    out = tmp_path / "run"
    train = ("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", out)
    search = ("search", out, "--searcher", "random", "--trials", 3, "--batch", 1)

    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    nothing = "interrupted before it saved any work; the same command begins where this one did\n"
    with monkeypatch.context() as patch:
        patch.setattr("supernet_tools.pipeline.classifier.load", press)
        assert call(*train) == (130, "", nothing)
    assert not out.exists()
    assert call(*train)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("supernet_tools.pipeline.classifier.load", press)
        code, _, err = call(*search)
        assert (code, err) == (130, nothing)
    with monkeypatch.context() as patch:
        patch.setattr("searchers.random_search.RandomSearch.tell", press)  # after the trial is recorded
        code, _, err = call(*search)
        assert (code, err.splitlines()[-1]) == SAID[signal.SIGINT]
