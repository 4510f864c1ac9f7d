"""The searchers over NAS-FPN's pyramids, where the meaning of a decision depends on the decisions before it."""

import functools
import statistics
from collections.abc import Mapping, Sequence

import pytest

from detection.nasfpn.space import pyramid_space, wiring_arch
from helpers.searcher_cases import MAKERS, Make, small_evolution, small_predictor, small_reinforce
from searchers import AgingEvolution, LocalSearch, RandomSearch, Searcher, Study, TopKEvolution, search, testing
from supernet.space import Arch, SearchSpace

PUBLISHED = pyramid_space()
SMALL = pyramid_space(levels=3, cells=4)


def similarity(arch: Arch) -> float:
    """The share of the published pyramid's decisions that an architecture has; values such as "P4+P6" count by part."""
    published = wiring_arch("nasfpn-7", PUBLISHED)
    same = [len(set(str(arch[name]).split("+")) & set(str(value).split("+"))) for name, value in published.items()]
    parts = [len(str(value).split("+")) for value in published.values()]
    return sum(same) / sum(parts)


def scored(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    return [{"accuracy": similarity(arch)} for arch in archs]


@functools.cache
def best_of(make: Make, seed: int, trials: int) -> float:
    best = search(make(PUBLISHED, seed=seed), scored, Study(None, PUBLISHED), trials=trials, batch=10)
    return best.metrics["accuracy"]


@pytest.mark.parametrize("name", MAKERS)
def test_every_searcher_proposes_pyramids_and_resumes(name: str) -> None:
    """The parts of the contract that depend on the space; test_contract.py checks the others."""
    testing.check_proposals(MAKERS[name], SMALL, batch=7, trials=24, feasible=None)
    testing.check_resume(MAKERS[name], SMALL, batch=7, trials=24, feasible=None)


def quick_reinforce(space: SearchSpace, **settings: object) -> Searcher:
    return small_reinforce(space, minibatch=10, learning_rate=0.01, epochs=3, **settings)


@pytest.mark.parametrize(
    ("make", "trials"),
    [(small_evolution, 200), (TopKEvolution, 200), (LocalSearch, 200), (small_predictor, 80), (quick_reinforce, 200)],
    ids=["evolution", "topk", "local", "predictor", "reinforce"],
)
def test_searchers_come_nearer_to_a_pyramid_than_random(make: Make, trials: int) -> None:
    assert similarity(wiring_arch("nasfpn-7", PUBLISHED)) == 1.0
    gains = [best_of(make, seed, trials) - best_of(RandomSearch, seed, trials) for seed in range(2)]
    assert statistics.mean(gains) > 0.05, gains


def test_aging_evolution_reaches_the_published_pyramid() -> None:
    evolution = AgingEvolution(PUBLISHED, population_size=50, tournament_size=15, seed=0)
    study = Study(None, PUBLISHED)
    search(evolution, scored, study, trials=3000, batch=50)
    best = max(study.trials(), key=lambda trial: trial.metrics["accuracy"])
    assert best.metrics["accuracy"] == 1.0
