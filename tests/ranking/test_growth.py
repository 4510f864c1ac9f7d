"""Scores extrapolated to a longer training by how the advantage of size grew."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from helpers.scripts import Call, one_line, run_script
from supernet.ranking.growth import Growth, Slope, extrapolated, growth, slope
from supernet.space import Arch, Choice, SearchSpace

RATE = 0.07
SPACE = SearchSpace("three", [Choice(f"op{i}", ("a", "b", "c")) for i in range(4)])
RUN = ("quickstart", "--space", "nasbench-macro", "--space-settings", "widths=[16, 24, 32]", "stem=8", "head=32")


def slopes_of(rate: float, noise: float = 0.3, seed: int = 0) -> list[Slope]:
    """Slopes of paths whose losses fall by `rate` per unit of ln(MACs) and of ln(steps)."""
    rng = np.random.default_rng(seed)
    slopes = []
    for tenth in range(1, 11):
        sizes = rng.normal(16.0, 0.5, size=400)
        losses = 2 - (0.1 + rate * math.log(tenth - 0.5)) * sizes + rng.normal(0, noise, size=400)
        one = slope(tenth, sizes.tolist(), losses.tolist())
        assert one is not None
        slopes.append(one)
    return slopes


def test_the_rate_of_growth_is_recovered_within_its_error() -> None:
    fitted = [growth(slopes_of(RATE, seed=seed)) for seed in range(40)]
    rates = np.array([one.rate for one in fitted if one is not None])
    errors = np.array([one.error for one in fitted if one is not None])
    assert abs(rates.mean() - RATE) < 3 * errors.mean() / math.sqrt(40)
    assert 0.7 < rates.std() / errors.mean() < 1.4
    reached = np.mean([one.reached for one in fitted if one is not None])
    assert reached == pytest.approx(0.1 + RATE * math.log(10), abs=0.01)


def test_the_bonus_is_that_of_the_images_of_the_final_training() -> None:
    assert Growth(RATE, 0.01, 1).bonus(SPACE) == pytest.approx(RATE * math.log(3))
    assert Growth(RATE, 0.01, 1).bonus(SPACE, 4.0) == pytest.approx(RATE * math.log(12))
    assert Growth(RATE, 0.01, 1).bonus(SPACE, 0.3) == 0  # fewer images than in the supernet
    assert Growth(RATE, 0.01, 1).bonus(SPACE, 0.0) == 0
    assert Growth(RATE, 0.04, 1).bonus(SPACE) == 0  # not seen by two standard errors
    assert Growth(-RATE, 0.01, 1).bonus(SPACE) == 0
    assert Growth(RATE, 0.01, 1).bonus(SearchSpace("none", [Choice("op", ("a",))])) == 0


def test_the_advantage_at_most_doubles() -> None:
    assert Growth(RATE, 0.01, 0.1).bonus(SPACE, 1e6) == 0.1
    assert Growth(RATE, 0.01, -0.1).bonus(SPACE, 1e6) == 0  # small networks are still ahead


def test_no_growth_is_no_bonus() -> None:
    exact = growth(slopes_of(0.0, noise=0.2))
    assert exact is not None
    assert exact.bonus(SPACE) == 0


def test_too_little_is_no_growth() -> None:
    assert slope(1, [1.0] * 50, [2.0] * 50) is None  # all of one size
    assert slope(1, [1.0, 2.0], [2.0, 1.0]) is None
    assert growth(slopes_of(RATE)[:5]) is None  # only three tenths after the warm-up


def test_larger_networks_gain_by_the_logarithm_of_their_size() -> None:
    small, large, empty = (Arch({"op": name}) for name in ("small", "large", "empty"))
    scores = dict.fromkeys((small, large, empty), -1.0)
    values = extrapolated(scores, {small: 1e6, large: 4e6, empty: 0.0}, 0.1)
    assert values[large] - values[small] == pytest.approx(0.1 * math.log(4))
    assert values[empty] < values[small]
    assert extrapolated({empty: -1.0}, {empty: 0.0}, 0.1)[empty] == values[empty]  # whatever else is scored
    assert extrapolated(scores, {small: 1e6, large: 4e6, empty: 0.0}, 0.0) == scores


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth") / "run"
    assert run_script("train_supernet", *RUN, "--data.size", 8, "--train.epochs", 8, "--out", folder) == 0
    return folder


def test_a_search_maximises_the_extrapolated_score(trained: Path, call: Call) -> None:
    history = json.loads((trained / "history.json").read_text())
    rows = history["health"]["size"]
    assert [row["tenth"] for row in rows] == list(range(1, 11))
    history["health"]["size"] = [
        {**row, "value": -0.1 - 0.2 * math.log(row["tenth"] - 0.5), "error": 0.001} for row in rows
    ]
    (trained / "history.json").write_text(json.dumps(history))
    search = ("search", trained, "--searcher", "random", "--bn-batches", 1, "--extrapolate")
    code, _, err = call(*search, "--trials", 12)
    assert code == 0, err
    best = json.loads((trained / "search" / "random" / "best.json").read_text())["metrics"]
    bonus = 0.2 * math.log(3 * 6 / 8)  # three options; the recipe retrains for 6 epochs; less than the advantage
    assert best["extrapolated"] == pytest.approx(-best["loss"] + bonus * math.log(best["macs"]), rel=0.05)
    _, out, _ = call("fidelity", trained, "--truth", "table", "--n", 12, "--bn-batches", 1, "--resamples", 20)
    row = next(line for line in out.splitlines() if "loss, extrapolated" in line)
    report = ("fidelity", trained, "--n", 12, "--bn-batches", 1, "--resamples", 20, "--score", "extrapolated")
    _, out, _ = call(*report)
    assert next(line for line in out.splitlines() if "shared weights" in line).split("│")[2] == row.split("│")[2]
    assert all(name in out for name in ("shared loss", "shared accuracy"))
    again = ("train_supernet", *RUN, "--data.size", 8, "--train.epochs", 8, "--out", trained)
    assert f"search.py {trained} --extrapolate" in " ".join(call(*again)[2].split())
    for damaged in ("none", [{"tenth": 1}], [{**rows[4], "value": "x"}] * 9):
        (trained / "history.json").write_text(json.dumps({**history, "health": {"size": damaged}}))
        one_line(call(*search, "--name", "damaged"), "history.json", "restore the file")
    (trained / "history.json").write_text(json.dumps({**history, "health": []}))
    one_line(call(*search, "--name", "damaged"), "history.json", "restore the file")
    history["health"]["size"] = []
    (trained / "history.json").write_text(json.dumps(history))
    one_line(call(*search, "--name", "none"), "no advantage of larger networks", "leave out --extrapolate")
    assert "--extrapolate" not in call(*again)[2]
    one_line(call(*report, "--name", "none"), "no advantage of larger networks", "--score loss")
