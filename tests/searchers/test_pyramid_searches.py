"""The searchers over NAS-FPN's pyramids, whose decisions mean different things by what was decided before."""

import statistics
from collections.abc import Mapping, Sequence

import pytest

from detection.nasfpn.space import pyramid_space, wiring_arch
from helpers.searcher_cases import MAKERS, Make, small_evolution, small_predictor, small_reinforce
from searchers import AgingEvolution, LocalSearch, RandomSearch, Searcher, Study, TopKEvolution, search, testing
from supernet.space import Arch, SearchSpace

PUBLISHED = pyramid_space()
SMALL = pyramid_space(levels=3, cells=4)


def likeness(arch: Arch) -> float:
    """The share of decisions that are those of the published pyramid, by their values' parts."""
    wanted = wiring_arch("nasfpn-7", PUBLISHED)
    same = [len(set(str(arch[name]).split("+")) & set(str(value).split("+"))) for name, value in wanted.items()]
    parts = [len(str(value).split("+")) for value in wanted.values()]
    return sum(same) / sum(parts)


def scored(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    return [{"accuracy": likeness(arch)} for arch in archs]


def best_of(make: Make, seed: int, trials: int) -> float:
    found = search(make(PUBLISHED, seed=seed), scored, Study(None, PUBLISHED), trials=trials, batch=10)
    return found.metrics["accuracy"]


@pytest.mark.parametrize("name", MAKERS)
def test_every_searcher_keeps_the_contract_over_pyramids(name: str) -> None:
    testing.check_searcher(MAKERS[name], SMALL, trials=24)


def quick_reinforce(space: SearchSpace, **settings: object) -> Searcher:
    return small_reinforce(space, minibatch=10, learning_rate=0.01, epochs=3, **settings)


@pytest.mark.parametrize(
    ("make", "trials"),
    [(small_evolution, 200), (TopKEvolution, 200), (LocalSearch, 200), (small_predictor, 80), (quick_reinforce, 200)],
    ids=["evolution", "topk", "local", "smbo", "reinforce"],
)
def test_searchers_come_nearer_to_a_pyramid_than_random(make: Make, trials: int) -> None:
    assert likeness(wiring_arch("nasfpn-7", PUBLISHED)) == 1.0
    gains = [best_of(make, seed, trials) - best_of(RandomSearch, seed, trials) for seed in range(4)]
    assert statistics.mean(gains) > 0.05, gains


def test_aging_evolution_reaches_the_published_pyramid() -> None:
    evolution = AgingEvolution(PUBLISHED, population_size=50, tournament_size=15, seed=0)
    study = Study(None, PUBLISHED)
    search(evolution, scored, study, trials=3000, batch=50)
    best = max(study.trials(), key=lambda trial: trial.metrics["accuracy"])
    assert best.metrics["accuracy"] == 1.0
