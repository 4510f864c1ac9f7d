"""Every searcher passes the whole contract, and the contract detects searchers that break it."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from helpers.searcher_cases import LIMITS, MAKERS, SPACES
from searchers import LocalSearch, RandomSearch, Trial, testing
from supernet.space import Arch, SearchSpace

LONG = {("reinforce", "chain"), ("predictor", "chain")}  # their other space proves the same in a quarter of the time


@pytest.mark.parametrize(
    ("name", "space"),
    [
        pytest.param(name, space, marks=pytest.mark.slow if (name, space) in LONG else [])
        for name in MAKERS
        for space in SPACES
    ],
)
def test_every_searcher_keeps_the_contract(name: str, space: str) -> None:
    trials = 16 if name == "predictor" else 30  # it proposes at random up to the fifteenth
    testing.check_searcher(MAKERS[name], SPACES[space], feasible=LIMITS[space], trials=trials)


def test_the_control_of_the_tests_below_passes() -> None:
    testing.check_searcher(Broken, SPACES["conditional"], trials=20)


class Broken:
    """Random search without repeats, and the base of the broken searchers below."""

    def __init__(self, space: SearchSpace, *, seed: int = 0, metric: str = "accuracy", feasible: Any = None) -> None:
        self.space, self.seed, self.metric, self.feasible = space, seed, metric, feasible
        self.inner = RandomSearch(space, seed=seed, metric=metric, feasible=feasible)
        self.calls = 0

    def ask(self, n: int) -> list[Arch]:
        self.calls += 1
        return self.inner.ask(n)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.inner.tell(trials)


class ForgetsSeed(Broken):
    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        super().__init__(space, **{**settings, "seed": 0})


class GlobalDraws(Broken):
    def ask(self, n: int) -> list[Arch]:
        import random

        random.random()
        return super().ask(n)


class OtherEachTime(Broken):
    runs = 0

    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        type(self).runs += 1
        super().__init__(space, **{**settings, "seed": type(self).runs})


class NotCanonical(Broken):
    def ask(self, n: int) -> list[Arch]:
        archs = super().ask(n)
        return [Arch({**arch, "b": "z"}) if arch["depth"] == 1 else arch for arch in archs]


class TooMany(Broken):
    def ask(self, n: int) -> list[Arch]:
        return super().ask(n + (self.calls == 2))


class TooFew(Broken):
    def ask(self, n: int) -> list[Arch]:
        return super().ask(n - (self.calls == 3))


class IgnoresLimits(Broken):
    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        super().__init__(space, **settings)
        self.inner = RandomSearch(space, seed=self.seed)


class TakesFailuresForScores(Broken):
    def tell(self, trials: Sequence[Trial]) -> None:
        _ = [trial.metrics[self.metric.removeprefix("-")] for trial in trials]
        super().tell(trials)


class CannotMinimise(Broken):
    def tell(self, trials: Sequence[Trial]) -> None:
        _ = [trial.metrics.get(self.metric, 0) if trial.failed else trial.metrics[self.metric] for trial in trials]
        super().tell(trials)


class NeedsItsOwnTrials(Broken):
    def tell(self, trials: Sequence[Trial]) -> None:
        assert self.calls, "tell comes before ask"
        super().tell(trials)


class StopsEarly(Broken):
    def ask(self, n: int) -> list[Arch]:
        return super().ask(n) if self.space.size() > 20 or self.calls < 2 else []


BREACHES: dict[type[Broken], str] = {
    ForgetsSeed: "four seeds give the same proposals",
    GlobalDraws: "draws from the global generator",
    OtherEachTime: "the same seed and scores give other proposals",
    NotCanonical: "which is not in space",
    TooMany: "asked for 1 architectures, the searcher returned 2",
    TooFew: "asked for 1 architectures, the searcher returned 0",
    IgnoresLimits: "outside the limits",
    TakesFailuresForScores: "accuracy",
    CannotMinimise: "-loss",
    NeedsItsOwnTrials: "tell comes before ask",
    StopsEarly: "networks ended after",
}


@pytest.mark.parametrize("kind", BREACHES, ids=lambda kind: kind.__name__)
def test_a_breach_is_named(kind: type[Broken]) -> None:
    space = SPACES["conditional"]
    with pytest.raises((AssertionError, KeyError), match=BREACHES[kind]):
        testing.check_searcher(kind, space, feasible=LIMITS["conditional"], trials=20)


def test_a_searcher_without_its_parameters_as_attributes_is_named() -> None:
    class Hidden(Broken):
        def __init__(self, space: SearchSpace, *, metric: str = "accuracy", width: int = 3, **settings: Any) -> None:
            super().__init__(space, metric=metric, **settings)

    with pytest.raises(AssertionError, match="must keep its parameter 'width'"):
        testing.check_searcher(Hidden, SPACES["chain"])


def test_the_stand_in_is_smooth_and_the_same_everywhere() -> None:
    """Neighbours have similar scores: a searcher that learns beats chance on it."""
    space = SPACES["chain"]
    arch = space.from_indices((1, 2, 0, 1, 0, 2))
    assert testing.stand_in(arch) == pytest.approx(63.173376)
    rng = Random(0)
    near = [abs(testing.stand_in(a) - testing.stand_in(space.mutate_one(a, rng))) for a in space.enumerate()]
    far = [abs(testing.stand_in(a) - testing.stand_in(space.sample(rng))) for a in space.enumerate()]
    assert sum(near) < 0.7 * sum(far)
    runs = [[testing.searched(make(space, seed=seed), 40) for seed in range(5)] for make in (LocalSearch, RandomSearch)]
    learnt, chance = (sum(max(t.metrics["accuracy"] for t in trials) for trials in searches) for searches in runs)
    assert learnt > chance
