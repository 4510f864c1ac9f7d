"""A supernet that is no better than guessing is named after its training and refused by the search."""

import itertools
import json
import math
import os
import shutil
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from helpers.scripts import Call, one_line, run_script
from supernet.paths import KILL_AT
from supernet_tools.pipeline.classifier import ClassifierKind
from supernet_tools.pipeline.learned import Agreement

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


def test_a_rare_class_that_is_found_is_learnt_although_the_frequent_one_is_named_as_often_rightly(
    tmp_path: Path, call: Call
) -> None:
    """One image in five is bright, and one label in ten is wrong, so no network has an accuracy far above 0.8."""
    rng = np.random.default_rng(0)
    for i in range(300):
        bright, wrong = i % 5 == 0, i % 10 in (5, 6) and i % 20 > 9
        pixels = rng.integers(0, 128, (8, 8, 3)) + 100 * bright
        folder = tmp_path / "images" / ("fault" if bright != wrong else "fine")
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
    command = ("train_supernet", "quickstart", *SMALL, "--data.source", tmp_path / "images", "--train.batch", 16)
    code, out, err = call(*command, "--train.lr", 0.05, "--retrain.batch", 16, "--out", tmp_path / "rare")
    assert code == 0, err
    record = json.loads((tmp_path / "rare" / "run.json").read_text())["shared_weights"]
    error = math.sqrt(record["guessing"] * (1 - record["guessing"]) / record["images"])
    assert record["best"] < record["guessing"] + 3 * error  # the accuracy alone shows nothing
    assert record["learned"] is True
    assert "guessing" not in out + err


@pytest.mark.parametrize(
    ("predicted", "labels", "accuracy", "kappa"),
    [
        ([0] * 8, [0, 0, 0, 0, 0, 0, 1, 2], 0.75, 0.0),  # the most frequent class
        ([0, 1, 2, 0], [0, 1, 2, 0], 1.0, 1.0),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0.0, -1.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0, 0.0),
    ],
)
def test_agreement_is_beyond_what_the_classes_named_and_the_classes_there_make_likely(
    predicted: list[int], labels: list[int], accuracy: float, kappa: float
) -> None:
    scored = agreement(predicted, labels)
    assert (scored["accuracy"], scored["kappa"]) == pytest.approx((accuracy, kappa))


def test_deviations_of_an_agreement_are_those_over_all_orders_of_the_labels() -> None:
    predicted, labels = [0, 0, 1, 2, 2, 1, 0], [0, 0, 0, 1, 2, 2, 1]
    right = [
        sum(a == b for a, b in zip(predicted, order, strict=True)) for order in itertools.permutations(labels)
    ]  # all 5,040
    expected = (3 - statistics.mean(right)) / statistics.pstdev(right)
    assert agreement(predicted, labels)["deviations"] == pytest.approx(expected)
    shown = Agreement().combine([Agreement().of_batch(torch.full((2, 3), math.nan), torch.tensor([0, 1]))])
    assert all(math.isnan(value) for value in shown.values())


def agreement(predicted: list[int], labels: list[int]) -> dict[str, float]:
    """The metric of these predictions, in two batches."""
    logits, classes = torch.eye(max(*predicted, *labels) + 1)[predicted], torch.tensor(labels)
    metric = Agreement()
    return metric.combine([metric.of_batch(logits[i::2], classes[i::2]) for i in (0, 1)])


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
