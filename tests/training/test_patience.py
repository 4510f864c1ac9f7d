"""A training ends once its held-out score has not improved for a while, and goes on identically after a kill."""

import math
from pathlib import Path

import pytest
import torch

from helpers.toy_spaces import TOY_SPACES
from supernet import Chain
from supernet.config import Data, Train
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.errors import InputError
from supernet.train import compare_rates, train_supernet

SCORES = (0.2, 0.5, 0.4, 0.5, 0.3, 0.9, 0.1, 0.1)
"""Of the epochs, from the first on; a score that is only reached again is no improvement."""


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(Data("digits", size=8, calibration=64))


def toy() -> Chain:
    torch.manual_seed(0)
    return TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1)


def trained(digits: Splits, patience: int, state: Path | None = None, until: int | None = None) -> tuple[Chain, list]:
    """A supernet and the history of its training, whose held-out scores are given."""
    net = toy()
    history = train_supernet(
        net,
        digits,
        Train(epochs=8, batch=256, lr=0.05, patience=patience),
        held_out=lambda _, epoch: {"given": SCORES[epoch - 1]},
        watch="given",
        state=state,
        until=until,
        verbose=False,
    )
    return net, history


@pytest.mark.parametrize(("patience", "epochs"), [(0, 8), (1, 3), (3, 5), (4, 8), (8, 8)])
def test_the_epochs_since_the_best_are_counted(digits: Splits, patience: int, epochs: int) -> None:
    _, history = trained(digits, patience)
    assert len(history) == epochs
    _, whole = trained(digits, 0)
    assert [row["lr"] for row in history] == [row["lr"] for row in whole[:epochs]]  # the schedule stays that of all


def test_a_stopped_training_ends_at_the_same_epoch_with_the_same_weights(digits: Splits, tmp_path: Path) -> None:
    net, history = trained(digits, 3)
    for until in (2, 4, None, None):  # the last finds nothing to do
        again, rows = trained(digits, 3, tmp_path / "state.pt", until)
        assert rows == history[: len(rows)]
    assert len(rows) == len(history) == 5
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_score_that_never_comes_ends_nothing(digits: Splits) -> None:
    config = Train(epochs=3, batch=256, lr=0.05, patience=1)
    history = train_supernet(toy(), digits, config, held_out=lambda *_: {}, watch="given", verbose=False)
    assert len(history) == 3


def test_a_score_that_is_no_number_is_no_improvement(digits: Splits) -> None:
    """Nor does it count before there was a finite one."""
    config, scores = Train(epochs=6, batch=256, lr=0.05, patience=2), (math.nan, 0.5, math.nan, math.inf, 0.9, 0.9)
    given = {"held_out": lambda _, epoch: {"given": scores[epoch - 1]}, "watch": "given", "verbose": False}
    assert len(train_supernet(toy(), digits, config, **given)) == 4


def test_patience_needs_something_to_watch(digits: Splits) -> None:
    with pytest.raises(InputError, match="patience=2 waits for a better score on held-out images, and none is watched"):
        train_supernet(toy(), digits, Train(epochs=1, patience=2))
    assert compare_rates(toy(), digits, Train(batch=256, patience=2), rates=(0.01,), steps=3)  # tries are never ended
