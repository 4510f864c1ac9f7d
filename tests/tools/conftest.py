"""A trained run for the tests of scripts that are not about the training."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.scripts import run_script
from helpers.tiny import TINY, TINY_SPACE
from supernet_tools.pipeline.classifier import ClassifierKind
from supernet_tools.pipeline.detector import DetectorKind


@pytest.fixture(autouse=True)
def fast_exports(forked_runner: None) -> None:
    """How an export is compared is not the question here."""


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command warns that other tests run beside it, which is not the question here."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))


@pytest.fixture(scope="session", autouse=True)
def few_probes() -> Iterator[None]:
    """Lets a training end with the scores of as many random subnets as that of a detector, a quarter of the usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierKind, "probes", DetectorKind.probes)
        yield


@pytest.fixture(scope="session")
def tiny_trained(few_probes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained once for all tests, which only copy it: see `tiny_run` and `copy_of`."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    assert run_script("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", out) == 0
    return out


@pytest.fixture
def tiny_run(tiny_trained: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(tiny_trained, tmp_path / "tiny")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of image files: noise in ten classes."""
    draws = torch.Generator().manual_seed(0)
    for number in range(240):
        folder = tmp_path / "images" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "images"
