"""Images are decoded once: by the training, and by no later command of the same run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from helpers.images import make_folder
from helpers.scripts import Call, one_line, run_script
from searchers import Study
from supernet_tools.pipeline.runs import open_run

RECIPE = (
    "spos-images",
    "--space",
    "nasbench-macro",
    "--data.size",
    8,
    "--data.calibration",
    8,
    "--train.epochs",
    1,
    "--train.batch",
    8,
    "--retrain.epochs",
    1,
    "--train.lr",
    0.01,
    "--retrain.batch",
    8,
    "--retrain.lr",
    0.01,
)
IMAGES = 40


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The image files that are opened while a test runs."""
    files: list[str] = []
    open_image: Callable[..., PIL.Image.Image] = PIL.Image.open

    def counted(file: object, *arguments: object, **options: object) -> PIL.Image.Image:
        files.append(str(file))
        return open_image(file, *arguments, **options)

    monkeypatch.setattr(PIL.Image, "open", counted)
    return files


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photographs") / "set", images=IMAGES // 2)


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose winner is retrained, so that it can be exported."""
    out = tmp_path_factory.mktemp("lazy") / "run"
    assert run_script("train_supernet", *RECIPE, "--data.source", photographs, "--out", out) == 0
    assert run_script("search", out, "--searcher", "random", "--trials", 2) == 0
    assert run_script("retrain", out, "--search", "random") == 0
    return out


def test_a_training_decodes_each_image_once(photographs: Path, tmp_path: Path, call: Call, decoded: list[str]) -> None:
    recipe = (*RECIPE, "--data.source", photographs)
    assert call("train_supernet", *recipe, "--out", tmp_path / "run")[0] == 0
    assert len(decoded) == len(set(decoded)) == IMAGES
    assert call("train_supernet", *recipe, "--out", tmp_path / "run")[0] == 0  # finished: only its score is printed
    assert call("search", tmp_path / "run", "--searcher", "random", "--trials", 2)[0] == 0
    assert len(decoded) == IMAGES
    decoded.clear()
    recipe = (*recipe, "--data.cache", "off")
    assert call("train_supernet", *recipe, "--out", tmp_path / "uncached")[0] == 0
    assert not (tmp_path / "uncached" / "images").exists()
    assert call("search", tmp_path / "uncached", "--searcher", "random", "--trials", 2)[0] == 0
    assert len(decoded) == 2 * IMAGES


def test_images_that_changed_are_noticed(photographs: Path, tmp_path: Path, call: Call) -> None:
    copy, out = tmp_path / "set", tmp_path / "run"
    shutil.copytree(photographs, copy)
    assert call("train_supernet", *RECIPE, "--data.source", copy, "--out", out)[0] == 0
    PIL.Image.new("RGB", (20, 12), "white").save(copy / "cat" / "0.png")
    one_line(call("search", out, "--trials", 2), "was made with another set of images", "restore it or train again")


def test_commands_that_need_no_image_read_none(trained: Path, tmp_path: Path, call: Call, decoded: list[str]) -> None:
    code, _, err = call("export", trained, "--search", "random")
    assert code == 0, err
    folder = next((trained / "export").iterdir())
    assert json.loads((folder / "preprocess.json").read_text())["classes"] == ["cat", "dog"]
    code, _, err = call("draw", trained, "--arch", folder / "arch.json", "--out", tmp_path / "network.svg")
    assert code == 0, err
    assert call("evaluate", "--help")[0] == 0
    one_line(call("search", trained, "--trials", 2, "--max-macs", 1), "macs")
    one_line(call("search", trained, "--trials", 2, "--settings", "population_size=2.9"), "population_size='2.9'")
    with Study(trained / "search" / "random" / "study.db", open_run(trained).space):
        one_line(call("search", trained, "--searcher", "random", "--trials", 3), "another process")
    assert decoded == []
    assert call("evaluate", trained, "--search", "random")[0] == 0  # reads the images that the training has kept
    assert decoded == []


def test_a_run_opens_only_what_is_asked_for(trained: Path, decoded: list[str]) -> None:
    run = open_run(trained)
    assert run.summary.classes == ("cat", "dog")
    assert run.summary.n_train + run.summary.n_validation + run.summary.n_test == IMAGES
    assert run.cost.extremes("macs") is not None
    assert all(parameter.is_meta for parameter in run._skeleton.parameters())
    assert "supernet" not in vars(run)
    assert "data" not in vars(run)
    assert run.data is run.data
    assert decoded == []
