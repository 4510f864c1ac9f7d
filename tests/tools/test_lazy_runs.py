"""Images are decoded once: by the training, and by no later command of the same run."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

from helpers.images import make_folder
from helpers.scripts import Call, one_line, run_script
from searchers import Study
from supernet_tools.pipeline.runs import open_run

RECIPE = (
    "spos-images",
    "--space-settings",
    "depths=[1, 1, 1]",
    "widths=[8, 16, 24]",
    "stem=4",
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
EPOCHS = RECIPE.index("--train.epochs") + 1
UNTRAINED = (*RECIPE[:EPOCHS], 0, "--lead-epochs", 0, *RECIPE[EPOCHS + 1 :])


@contextlib.contextmanager
def counted_images() -> Iterator[list[str]]:
    """The image files that are opened meanwhile."""
    files: list[str] = []
    open_image: Callable[..., PIL.Image.Image] = PIL.Image.open

    def counted(file: object, *arguments: object, **options: object) -> PIL.Image.Image:
        files.append(str(file))
        return open_image(file, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.Image, "open", counted)
        yield files


@pytest.fixture
def decoded() -> Iterator[list[str]]:
    """The image files that are opened while a test runs."""
    with counted_images() as files:
        yield files


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photographs") / "set", images=IMAGES // 2)


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose winner is retrained; the training opens each image once, search and retraining open none."""
    out = tmp_path_factory.mktemp("lazy") / "run"
    with counted_images() as files:
        assert run_script("train_supernet", *RECIPE, "--data.source", photographs, "--out", out) == 0
        assert len(files) == len(set(files)) == IMAGES
        assert run_script("search", out, "--searcher", "random", "--trials", 2) == 0
        assert run_script("retrain", out, "--search", "random") == 0
        assert len(files) == IMAGES
    return out


def test_without_the_cache_every_command_decodes(
    photographs: Path, tmp_path: Path, call: Call, decoded: list[str]
) -> None:
    out = tmp_path / "run"
    source = ("--data.source", photographs, "--data.cache", "off")
    assert call("train_supernet", *UNTRAINED, *source, "--out", out)[0] == 0
    assert len(decoded) == IMAGES
    assert not (out / "images").exists()
    assert call("retrain", out, "--arch", smallest(out))[0] == 0
    assert len(decoded) == 2 * IMAGES


def smallest(run: Path) -> str:
    """The JSON of an architecture of a run."""
    return open_run(run, trained=False).space.from_indices([0, 0, 0]).to_json()


def test_images_that_changed_are_noticed(photographs: Path, tmp_path: Path, call: Call) -> None:
    copy, out = tmp_path / "set", tmp_path / "run"
    shutil.copytree(photographs, copy)
    assert call("train_supernet", *UNTRAINED, "--data.source", copy, "--out", out)[0] == 0
    PIL.Image.new("RGB", (20, 12), "white").save(copy / "cat" / "0.png")
    refused = call("retrain", out, "--arch", smallest(out))
    one_line(
        refused,
        "was made with another set of images",
        "restore it, repeat the training command with --accept-changed-data",
    )


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


def test_reading_a_run_s_images_and_weights_does_without_slow_libraries(trained: Path) -> None:
    """timm and torchvision take seconds to load, which every search would begin with."""
    code = (
        "import sys; from pathlib import Path; from supernet_tools.pipeline.runs import open_run; "
        f"run = open_run(Path({str(trained)!r})); run.data, run.supernet, run.cost; "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
    assert not {"timm", "torchvision", "torch._dynamo", "tensorboard"} & set(done.stdout.split())
