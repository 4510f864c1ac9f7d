"""A run goes on after its images were repaired, removed or left out: with one flag, and a record of what changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.images import make_folder
from helpers.scripts import Call, one_line
from helpers.tiny import TINY_SPACE
from supernet.config import Data
from supernet.data.load import load
from supernet.data.steps import epoch_order
from supernet.errors import InputError
from supernet_tools.pipeline.runs import open_run

FLAG = "--accept-changed-data"


def arguments(source: Path, out: Path) -> list[object]:
    """A run of two epochs of four steps that saves after each of them."""
    data = ("--data.source", source, "--data.size", 8, "--data.workers", 0, "--data.calibration", 8, "--data.stream")
    train = (
        "--train.batch",
        4,
        "--train.epochs",
        2,
        "--train.save-seconds",
        0,
        "--train.lr",
        0.001,
        "--retrain.batch",
        4,
    )
    return ["quickstart", *data, *train, *TINY_SPACE, "--out", out]


def facts(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "run.json").read_text())
    return document


@pytest.fixture
def stopped(tmp_path: Path, call: Call) -> tuple[list[object], Path, bytes]:
    """A streamed run that a damaged image has stopped in its fourth step; the image, and what it held before."""
    source, out = make_folder(tmp_path / "images", images=14), tmp_path / "run"
    train = load(Data(str(source), stream=True, size=8, workers=0)).train
    assert len(train) == 18
    last = next(
        i for i in epoch_order(18, seed=0, epoch=0)[12:16].tolist() if i >= 8
    )  # the first 8 are decoded at once
    broken = Path(train.source.name(int(train.index[last])))  # type: ignore[index, union-attr]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40].ljust(len(whole), b"\0"))  # of the same size, so it is noticed only when it is read
    args = arguments(source, out)
    code, _, err = call("train_supernet", *args)
    assert code == 2
    assert f"the image {broken} cannot be read" in err.splitlines()[-1]
    assert (out / "state.pt").exists()
    return args, broken, whole


def test_after_a_repair(stopped: tuple[list[object], Path, bytes], tmp_path: Path, call: Call) -> None:
    args, broken, whole = stopped
    broken.write_bytes(whole + b"repaired")
    before = facts(tmp_path / "run")
    one_line(call("train_supernet", *args), "made with another set of images", "the same numbers of images", FLAG)
    assert facts(tmp_path / "run") == before
    code, _, err = call("train_supernet", *args, FLAG)
    assert code == 0, err
    assert "goes on with changed data: digest" in err
    after = facts(tmp_path / "run")
    (change,) = after["data_changes"]
    assert change["after_steps"] == 3
    assert change["data"] == before["data"]
    assert change["digest"] == before["data"]["digest"] != after["data"]["digest"]
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2]
    assert history["data_changed_from"] == [change["digest"]]
    assert call("train_supernet", *args)[0] == 0  # without the flag from now on
    assert open_run(tmp_path / "run").data.digest == after["data"]["digest"]


@pytest.mark.slow  # the test before repairs the image
def test_after_leaving_the_image_out(stopped: tuple[list[object], Path, bytes], tmp_path: Path, call: Call) -> None:
    args, _, _ = stopped
    skip = [*args, "--data.skip-unreadable"]
    one_line(call("train_supernet", *skip), "data.skip_unreadable is False there and True here", FLAG)
    code, _, err = call("train_supernet", *skip, FLAG)
    assert code == 0, err
    assert "goes on with changed data: data.skip_unreadable False -> True" in err
    after = facts(tmp_path / "run")
    assert after["config"]["data"]["skip_unreadable"] is True
    assert after["data_changes"][0]["changed"] == ["data.skip_unreadable False -> True"]
    assert call("train_supernet", *skip)[0] == 0


@pytest.mark.slow  # the first test of this file repairs an image
def test_after_removing_it_and_more(stopped: tuple[list[object], Path, bytes], tmp_path: Path, call: Call) -> None:
    args, broken, _ = stopped
    for number in range(7):
        (broken.parent / f"{number}.png").unlink(missing_ok=True)
    broken.unlink(missing_ok=True)
    one_line(call("train_supernet", *args), "train images 18 -> 1", FLAG)
    code, _, err = call("train_supernet", *args, FLAG)
    assert code == 0, err
    assert "images trained on may now be held out" in err
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2]


def test_a_finished_run_goes_on_too_and_other_classes_never(tmp_path: Path, call: Call) -> None:
    source, out = make_folder(tmp_path / "images", images=14), tmp_path / "run"
    args = arguments(source, out)
    code, _, err = call("train_supernet", *args)
    assert code == 0, err
    first = facts(out)["data"]["digest"]
    Image.new("RGB", (20, 12)).save(source / "cat" / "new.png")
    with pytest.raises(InputError, match=f"another set of images .* {FLAG}"):
        open_run(out).data.digest  # noqa: B018
    weights = (out / "supernet.safetensors").read_bytes()
    assert call("train_supernet", *args, FLAG)[0] == 0
    assert (out / "supernet.safetensors").read_bytes() == weights
    opened = open_run(out)
    assert opened.data.digest != first
    assert opened.earlier_digests == (first,)
    assert opened.supernet.space.name
    make_folder(source, ("eel",))
    one_line(call("train_supernet", *args, FLAG), "classes was ('cat', 'dog') and is ('cat', 'dog', 'eel') now")
