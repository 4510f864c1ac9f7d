"""Pareto fronts agree with their definition written out."""

import random

import pytest

from searchers.pareto import pareto_front
from searchers.study import Trial
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

SPACE = SearchSpace("numbers", [Choice("n", range(60))])


def trial(number: int, failed: str = "", **metrics: float) -> Trial:
    return Trial.of(SPACE, Arch({"n": number}), metrics, number=number, failed=failed)


def test_no_trial_of_the_front_is_dominated() -> None:
    rng = random.Random(0)
    for _ in range(20):
        trials = [trial(i, accuracy=rng.randrange(8), macs=rng.randrange(8), size=rng.randrange(4)) for i in range(60)]
        points = [(t.metrics["accuracy"], -t.metrics["macs"], -t.metrics["size"]) for t in trials]
        undominated = {
            p for p in points if not any(q != p and all(a >= b for a, b in zip(q, p, strict=True)) for q in points)
        }
        front = pareto_front(trials, ("accuracy", "-macs", "-size"))
        front_points = [(t.metrics["accuracy"], -t.metrics["macs"], -t.metrics["size"]) for t in front]
        assert set(front_points) == undominated
        assert len(front_points) == len(undominated)  # of equal ones only the first
        assert all(t.number == points.index(p) for t, p in zip(front, front_points, strict=True))
        assert [p[0] for p in front_points] == sorted((p[0] for p in front_points), reverse=True)


def test_failed_trials_are_left_out_and_missing_metrics_named() -> None:
    trials = [trial(0, accuracy=0.5, macs=2.0), trial(1, failed="boom"), trial(2, accuracy=0.4, macs=1.0)]
    assert [t.number for t in pareto_front(trials, ("accuracy", "-macs"))] == [0, 2]
    assert pareto_front(trials[1:2], ("accuracy",)) == []
    with pytest.raises(InputError, match="no metric 'latency'"):
        pareto_front(trials, ("accuracy", "-latency"))
    with pytest.raises(InputError, match="objectives='macs' is not a sequence of names"):
        pareto_front(trials, "macs")
