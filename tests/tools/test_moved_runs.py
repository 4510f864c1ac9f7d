"""A run and its images may be moved; the digest says whether they are the same."""

import shutil
from pathlib import Path

import pytest

from helpers.images import make_folder
from helpers.scripts import Call, one_line, run_script
from supernet.files import read_json
from supernet_tools.pipeline.runs import config_of

TINY = ("--space", "shufflenet-small", "--space-settings", "depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
SMALL = (
    "--data.size",
    8,
    "--data.calibration",
    8,
    "--train.epochs",
    1,
    "--train.batch",
    8,
    "--train.warmup-epochs",
    0,
    "--retrain.batch",
    8,
)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder of images and a run, both named by relative paths."""
    (tmp_path / "project").mkdir()
    make_folder(tmp_path / "project" / "photos", images=24)
    monkeypatch.chdir(tmp_path / "project")
    command = ("train_supernet", "spos-images", *TINY, *SMALL, "--data.source", "photos", "--out", "runs/x")
    assert run_script(*command) == 0
    return tmp_path / "project"


def test_a_run_and_its_images_move_together_and_apart(
    trained: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = trained.rename(tmp_path / "moved")
    run = moved / "runs" / "x"
    shutil.rmtree(run / "images")  # decoded ones
    assert Path(config_of(run).data.source).resolve() == moved / "photos"
    few = ("--searcher", "random", "--trials", 2)
    assert call("search", run, *few)[0] == 0
    photos = (moved / "photos").rename(tmp_path / "elsewhere")
    one_line(call("search", run, *few, "--name", "b"), "there is no data set 'photos'")
    assert call("search", run, *few, "--name", "b", "--data.source", photos)[0] == 0
    other = make_folder(tmp_path / "other", images=26)
    shutil.rmtree(run / "images")
    one_line(call("search", run, *few, "--name", "c", "--data.source", other), "another set of images", "digest")
    again = ("train_supernet", "spos-images", *TINY, *SMALL, "--out", run)
    one_line(call(*again, "--data.source", other), "another set of images")
    assert (
        call(*again, "--data.source", photos, "--retrain.epochs", 3)[0] == 0
    )  # another recipe of retrainings is no other run
    document = read_json(run / "run.json")
    assert document["config"]["data"]["source"] == str(photos)
    assert document["config"]["retrain"]["epochs"] == 3
    assert call("search", run, *few, "--name", "d")[0] == 0
