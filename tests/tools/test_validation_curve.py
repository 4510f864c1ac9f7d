"""A retraining of a detector is scored after every epoch, and its best weights are kept beside the last ones."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from detection import DetectorNetwork
from detection.config import DetectionData
from detection.data import DetectionSplits, load
from detection.metric import DetectionMetric
from detection.task import Detection
from helpers.detector_cases import sampled_arch, tiny, tiny_network
from helpers.scripts import Call
from supernet.chain import Chain
from supernet.config import Train
from supernet.files import read_json
from supernet.train import train_standalone
from supernet.training.checkpoint import load_weights
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.validation import BEST, ValidationCurve, best_epoch


@functools.cache
def _data() -> DetectionSplits:
    return load(DetectionData("digits", size=64, compose=(8, 4, 4), calibration=4))


def _network() -> DetectorNetwork:
    arch = sampled_arch(tiny("retinanet"))
    return tiny_network(
        "retinanet", arch=arch, num_classes=10, head_convs=1, generator=torch.Generator().manual_seed(1)
    )


def _train(folder: Path, *stops: int | None) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains in a folder and stops in between; every part goes on in a fresh process's state."""
    data, history = _data(), list[dict[str, float]]()
    metric = DetectionMetric(data.validation)
    for stop in (*stops, None):
        network = _network()
        curve = ValidationCurve(lambda net: metric(net, data.validation, 4), "map", folder / BEST, {"space": "toy"})
        history = train_standalone(
            network,
            data,
            Train(epochs=3, batch=4, lr=0.01),
            task=Detection(),
            state=folder / "state.pt",
            log=folder / "events",
            held_out=curve,
            until=stop,
            verbose=False,
        )
    return network, history


def test_the_curve_and_the_best_weights_are_those_of_an_uninterrupted_training(tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    for folder in (whole, interrupted):
        folder.mkdir()
    network, history = _train(whole)
    _, again = _train(interrupted, 1, 2)
    assert history == again
    assert [sorted(name for name in row if name.startswith("validation")) for row in history] == [
        ["validation_map", "validation_map50", "validation_map75"]
    ] * 3
    assert (whole / BEST).read_bytes() == (interrupted / BEST).read_bytes()
    values = [row["validation_map"] for row in history]
    best = best_epoch(whole / BEST, "map")
    assert best == {"best_epoch": 1 + values.index(max(values)), "best_validation_map": max(values)}
    kept = _network()
    assert load_weights(whole / BEST, kept)["space"] == "toy"
    data = _data()
    score = DetectionMetric(data.validation)(kept.eval(), data.validation, 4)
    assert score["map"] == max(values)
    last = DetectionMetric(data.validation)(network.eval(), data.validation, 4)
    assert last["map"] == values[-1]
    assert any((whole / "events").iterdir())


def test_worse_weights_leave_the_file_as_it_is(tmp_path: Path) -> None:
    scores = iter((0.2, 0.1, 0.2, 0.3))
    curve = ValidationCurve(lambda _: {"map": next(scores)}, "map", tmp_path / BEST, {})
    chain = Chain("standalone", [("network", nn.Conv2d(1, 1, 1))])
    epochs = []
    for epoch in (1, 2, 3, 4):
        assert curve(chain, epoch)["validation_map"] > 0
        epochs.append(best_epoch(tmp_path / BEST, "map")["best_epoch"])
    assert epochs == [1, 1, 1, 4]


def test_a_classifier_is_retrained_until_it_improves_no_more(tiny_run: Path, call: Call) -> None:
    space = open_run(tiny_run).space
    arch = space.normal_form(space.from_indices([0] * len(space))).to_json()
    flags = ("--epochs", 30, "--patience", 2, "--lr", 0.5, "--seed", 7)
    code, _, err = call("retrain", tiny_run, "--arch", arch, *flags)
    assert code == 0, err
    (folder,) = (tiny_run / "retrain").glob("*-seed7")
    rows, result = read_json(folder / "history.json")["epochs"], read_json(folder / "result.json")
    scores = [row["validation_accuracy"] for row in rows]
    best = scores.index(max(scores))
    assert len(rows) == best + 3 < 30
    assert result["best_epoch"] == best + 1
    assert result["validation_accuracy"] == pytest.approx(scores[best])
    last, kept = load_file(folder / "network.safetensors"), load_file(folder / "best.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in last.items())
