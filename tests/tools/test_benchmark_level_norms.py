"""The benchmark of batch norms per level of a pyramid."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from detection.pyramid import LevelNorms
from helpers.scripts import Call, one_line
from supernet.errors import InputError
from supernet_tools.benchmarks.level_norms import one_statistic


def test_the_pooled_statistics_are_those_of_one_norm_that_meets_the_levels_in_turn() -> None:
    levels = [torch.randn(8, 4, 6, 6) * scale + scale for scale in (1.0, 3.0, 20.0)]
    own, shared = LevelNorms(4, levels=3), nn.BatchNorm2d(4)
    for _ in range(300):
        for level, x in enumerate(levels):
            own(x, level)
            shared(x)
    pooled = one_statistic(nn.Sequential(own.eval()))[0]
    for norm in pooled:
        torch.testing.assert_close(norm.running_mean, shared.running_mean)
        torch.testing.assert_close(norm.running_var, shared.running_var)
    assert len({float(norm.running_var[0]) for norm in own}) == 3  # the network itself stays


def test_a_network_without_such_norms_is_refused() -> None:
    with pytest.raises(InputError, match="no batch norm per level"):
        one_statistic(nn.BatchNorm2d(4))


def test_wrong_numbers_are_named(call: Call, tmp_path: Path) -> None:
    one_line(call("benchmarks.level_norms", tmp_path, "--seeds", 0), "seeds=0 should be")


@pytest.mark.slow
def test_detectors_are_scored_with_both_statistics(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ("--data.compose", 16, 4, 4, "--retrain.epochs", 1, "--retrain.warmup-epochs", 0)
    code, _, err = call(
        "train_supernet", "detnas-digits", *sizes, "--start", "scratch", "--train.epochs", 0, "--out", run
    )
    assert code == 0, err
    code, table, err = call("benchmarks.level_norms", run, "--seeds", 2)
    assert code == 0, err
    assert len(re.findall(r"one norm per level minus one for all: [-+]?0\.\d+ ± 0\.\d+", table)) == 2, table
