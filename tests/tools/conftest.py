"""A trained run for the tests of scripts that are not about the training."""

import shutil
from pathlib import Path

import pytest

from helpers.scripts import run_script
from helpers.tiny import TINY, TINY_SPACE


@pytest.fixture(scope="session")
def tiny_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained once for all tests, which only copy it: see `tiny_run` and `copy_of`."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    assert run_script("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", out) == 0
    return out


@pytest.fixture
def tiny_run(tiny_trained: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(tiny_trained, tmp_path / "tiny")
