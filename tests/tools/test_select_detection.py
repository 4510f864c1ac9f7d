"""Detectors race by mAP: a killed race goes on to the identical result."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from helpers.races import killed_race
from helpers.scripts import run_script
from supernet.files import read_json
from supernet.ranking.rivals import simple_networks
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.select import published_networks

SPACE = ("--backbone-settings", "depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
DATA = ("--data.size", 64, "--data.compose", 40, 12, 12, "--data.calibration", 16, "--scoring-batch", 6)
HEADS = ("--head-width", 8, "--head-convs", 1)
EPOCHS = ("--train.epochs", 1, "--train.batch", 8, "--retrain.epochs", 2, "--retrain.batch", 8)
TRAIN = ("detnas-digits", "--start", "scratch", *DATA, *HEADS, *EPOCHS, *SPACE)
FLAGS = ("--search", "random", "--trainings", 4, "--random", 1, "--shares", 0.5, "--bn-batches", 1)


@pytest.mark.slow
def test_a_killed_race_of_detectors_goes_on_to_the_identical_result(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_script("train_supernet", *TRAIN, "--out", whole) == 0
    assert run_script("search", whole, "--searcher", "random", "--trials", 4, "--bn-batches", 1) == 0
    shutil.copytree(whole, killed)
    assert run_script("select_network", whole, *FLAGS) == 0
    assert killed_race(killed, *FLAGS) == signal.SIGKILL
    assert not (killed / "select/scratch.json").exists()
    assert run_script("select_network", killed, *FLAGS) == 0
    expected, result = (read_json(folder / "select/scratch.json") for folder in (whole, killed))
    assert {**result, "minutes": 0} == {**expected, "minutes": 0}
    assert result["metric"] == "validation_map"
    assert {"search", "simple"} <= {row["arm"] for row in result["networks"]}
    assert len(result["test_map"]) == len(result["winner"]["scores"]) >= 1


def test_the_published_pyramid_races_on_the_levels_that_the_run_has(tmp_path: Path) -> None:
    fixed = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})
    neck = ("--neck", "nasfpn", "--backbone-arch", fixed, "--settings", "levels=3", "repeats=1", "cells=7")
    command = ("nasfpn-digits", "--start", "scratch", *DATA, *HEADS, *SPACE, *neck, "--train.epochs", 0)
    assert run_script("train_supernet", *command, "--retrain.batch", 8, "--out", tmp_path / "run") == 0
    run = open_run(tmp_path / "run", trained=False)
    ((name, arch),) = published_networks(run).items()
    assert name == f"nasfpn-7 on {arch['neck.levels'].replace('-', ' to ')}"
    assert arch["neck.levels"] == run.space["neck.levels"].options[0]
    pairs = [arch[f"neck.cell{cell}.op"] for cell in range(1, 8)]
    assert pairs == ["gp", "sum", "sum", "sum", "gp", "gp", "gp"]  # Figure 6 of the paper
    names = simple_networks(
        run.space, cost=lambda arch: 0.0, feasible=lambda arch: True, rng=random.Random(0), published={name: arch}
    )
    assert {name, "option 2 of every decision"} <= set(names)
    assert run.space.normal_form(arch) in names.values()
