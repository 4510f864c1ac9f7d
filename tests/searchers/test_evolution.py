"""Aging evolution against the words of Algorithm 1, and both searchers against a published table."""

import dataclasses
import time
from collections import Counter as Tally
from collections.abc import Mapping, Sequence

import pytest

from helpers.searcher_cases import AtMost, chain_space, noise, trial
from searchers import AgingEvolution, RandomSearch, Searcher, Study, search
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

SPACE = chain_space(8, form=False)
ARCHS = list(SPACE.enumerate())


def distance(a: Arch, b: Arch) -> int:
    return sum(a[name] != b[name] for name in a)


def grown(scores: Sequence[float], **settings: float) -> AgingEvolution:
    """A searcher with a full population: one trial per score, each of a distinct architecture."""
    searcher = AgingEvolution(SPACE, population_size=len(scores), **settings)  # type: ignore[arg-type]
    searcher.ask(len(scores))
    searcher.tell([trial(i, ARCHS[i], value) for i, value in enumerate(scores)])
    return searcher


@pytest.mark.parametrize("size", [1, 4, 10])
def test_the_oldest_leaves_when_the_population_is_full(size: int) -> None:
    """Each trial is worse than all before it, so the winner is always the oldest one alive, aged `size`."""
    searcher = grown([-float(i) for i in range(size)], tournament_size=60 * size, identity=1.0)
    for number in range(size, 5 * size):
        assert searcher.ask(1) == [ARCHS[number - size]]
        searcher.tell([trial(number, ARCHS[number], -float(number))])


def test_the_worst_does_not_leave_before_its_time() -> None:
    """Aging, not elitism: with S = 1 every member breeds, the worst included, and the best is gone after P trials."""
    searcher = grown([100.0, -100.0, 1.0, 2.0], tournament_size=1, identity=1.0)
    assert set(searcher.ask(200)) == set(ARCHS[:4])
    searcher.tell([trial(4, ARCHS[4], 0.0)])
    assert set(searcher.ask(200)) == set(ARCHS[1:5])


@pytest.mark.parametrize("sample", [1, 2, 5])
def test_the_parent_is_the_best_of_a_sample_with_replacement(sample: int) -> None:
    """P(winner has rank r of P) = ((P − r)^S − (P − r − 1)^S) / P^S, rank 0 the best."""
    size, draws = 6, 12_000
    searcher = grown([-float(i) for i in range(size)], tournament_size=sample, identity=1.0)
    counts = Tally(searcher.ask(draws))
    for rank in range(size):
        expected = ((size - rank) ** sample - (size - rank - 1) ** sample) / size**sample
        assert counts[ARCHS[rank]] / draws == pytest.approx(expected, abs=0.015)


def test_a_leading_minus_prefers_the_lowest() -> None:
    searcher = AgingEvolution(SPACE, metric="-accuracy", population_size=5, tournament_size=300, identity=1.0)
    searcher.ask(5)
    searcher.tell([trial(i, ARCHS[i], value) for i, value in enumerate((4.0, 2.0, 9.0, -3.0, 0.0))])
    assert set(searcher.ask(20)) == {ARCHS[3]}


@pytest.mark.parametrize("aging", [True, False])
def test_of_equal_scores_the_cheapest_wins_and_the_most_expensive_dies(aging: bool) -> None:
    searcher = AgingEvolution(SPACE, population_size=5, tournament_size=300, identity=1.0, aging=aging)
    searcher.ask(5)
    trials = [trial(i, ARCHS[i], 1.0) for i in range(5)]
    macs = (30.0, 50.0, 10.0, 20.0, 40.0)
    searcher.tell([dataclasses.replace(t, metrics={**t.metrics, "macs": m}) for t, m in zip(trials, macs, strict=True)])
    assert set(searcher.ask(20)) == {ARCHS[2]}
    searcher.tell([trial(9, ARCHS[9], 0.0)])
    assert [t.number for t in searcher._population] == ([1, 2, 3, 4, 9] if aging else [0, 2, 3, 4, 9])


def test_a_tenth_of_the_budget_is_random() -> None:
    assert AgingEvolution.for_budget(SPACE, 60) == {"population_size": 10, "tournament_size": 2}
    assert AgingEvolution.for_budget(SPACE, 400) == {"population_size": 40, "tournament_size": 10}
    assert AgingEvolution.for_budget(SPACE, 1_000) == AgingEvolution.for_budget(SPACE, 20_000) == {}


@pytest.mark.parametrize("identity", [0.0, 0.05, 0.5, 1.0])
def test_identity_comes_at_its_rate_and_every_other_child_is_one_mutation_away(identity: float) -> None:
    searcher = grown([1.0], identity=identity)
    steps = Tally(distance(ARCHS[0], child) for child in searcher.ask(8_000))
    assert steps.keys() <= {0, 1}
    assert steps[0] / 8_000 == pytest.approx(identity, abs=0.015)


def test_the_defaults_are_the_papers() -> None:
    searcher = AgingEvolution(SPACE)
    assert (searcher.population_size, searcher.tournament_size, searcher.identity) == (100, 25, 0.05)
    assert searcher.aging


def test_without_aging_the_worst_of_a_tournament_leaves_and_the_best_stays() -> None:
    searcher = grown([100.0, -100.0, 1.0, 2.0], tournament_size=60, identity=1.0, aging=False)
    for number in range(4, 40):  # each worse than the three best, better than the last: it leaves with the next
        searcher.tell([trial(number, ARCHS[number], -float(number) / 100)])
        assert searcher.ask(1) == [ARCHS[0]]
    searcher.tournament_size = 1
    assert set(searcher.ask(300)) == {ARCHS[0], ARCHS[2], ARCHS[3], ARCHS[39]}


@pytest.mark.parametrize("sample", [1, 3])
def test_without_aging_the_victim_is_the_worst_of_a_sample_with_replacement(sample: int) -> None:
    """P(victim has rank r of P) = ((P − r)^S − (P − r − 1)^S) / P^S, rank 0 the worst; with S = 1 anyone."""
    size, draws = 4, 2_000
    victims: Tally[Arch] = Tally()
    for seed in range(draws):
        searcher = grown([float(i) for i in range(size)], tournament_size=sample, identity=1.0, aging=False, seed=seed)
        searcher.tell([trial(size, ARCHS[size], 0.0)])
        searcher.tournament_size = 1
        (victim,) = set(ARCHS[:size]) - set(searcher.ask(60))
        victims[victim] += 1
    for rank in range(size):
        expected = ((size - rank) ** sample - (size - rank - 1) ** sample) / size**sample
        assert victims[ARCHS[rank]] / draws == pytest.approx(expected, abs=0.04)


def test_failed_trials_are_replaced_in_the_first_population_and_are_never_parents() -> None:
    searcher = AgingEvolution(SPACE, population_size=4, tournament_size=9, identity=1.0)
    first = searcher.ask(4)
    trials = [trial(i, arch, 0.0) for i, arch in enumerate(first)]
    searcher.tell([dataclasses.replace(t, metrics={}, failed="no memory") for t in trials[:3]] + trials[3:])
    again = searcher.ask(3)  # random ones in their place
    searcher.tell([trial(i, arch, 1.0) for i, arch in enumerate(again, start=4)])
    assert not set(again) & set(first)
    assert set(searcher.ask(50)) <= {*again, first[3]}


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_first_population_is_random_whatever_the_batch(batch: int) -> None:
    """Random architectures differ from a lone champion in two thirds of the layers, its children in at most one."""
    searcher = AgingEvolution(SPACE, population_size=20, tournament_size=200)
    asked: list[Arch] = []
    while len(asked) < 128:
        children = searcher.ask(batch)
        best = max(
            (trial(0, arch, noise(arch)) for arch in asked[-20:]), key=lambda t: t.metrics["accuracy"], default=None
        )
        for i, child in enumerate(children, start=len(asked)):
            if best is not None and i >= 20:
                assert distance(best.arch, child) <= 1
        searcher.tell([trial(i, arch, noise(arch)) for i, arch in enumerate(children, start=len(asked))])
        asked += children
    apart = [distance(a, b) for i, a in enumerate(asked[:20]) for b in asked[:i]]
    assert sum(apart) / len(apart) == pytest.approx(8 * 2 / 3, abs=0.5)


def test_a_batch_larger_than_the_population_before_any_score_is_random() -> None:
    asked = AgingEvolution(SPACE, population_size=3, tournament_size=2).ask(40)
    assert len(set(asked)) > 35


def test_a_population_reported_without_asking_breeds_at_once() -> None:
    searcher = AgingEvolution(SPACE, population_size=5, tournament_size=2)
    searcher.tell([trial(i, ARCHS[i], float(i)) for i in range(9)])
    for child in searcher.ask(50):
        assert min(distance(child, ARCHS[i]) for i in range(4, 9)) <= 1


def test_the_cost_of_a_step_does_not_grow_with_the_history() -> None:
    searcher = grown([float(i) for i in range(50)])

    def seconds(steps: int) -> float:
        start = time.process_time()
        for i in range(steps):
            searcher.tell([trial(i, searcher.ask(1)[0], 1.0)])
        return time.process_time() - start

    seconds(50)
    early = min(seconds(50) for _ in range(3))
    searcher.tell([trial(i, ARCHS[i % 6561], 1.0) for i in range(100_000)])
    assert min(seconds(50) for _ in range(3)) < 3 * early


@pytest.mark.parametrize(
    ("setting", "value"),
    [("population_size", 0), ("population_size", -5), ("tournament_size", 0), ("identity", -0.1), ("identity", 1.5)],
)
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{setting}={value}"):
        AgingEvolution(SPACE, **{setting: value})  # type: ignore[arg-type]


def test_nan_is_not_a_probability() -> None:
    with pytest.raises(InputError, match="identity=nan"):
        AgingEvolution(SPACE, identity=float("nan"))


def test_a_tournament_may_exceed_the_population() -> None:
    assert grown([1.0, 2.0], tournament_size=50, identity=1.0).ask(30) == [ARCHS[1]] * 30


def test_limits_do_not_change_the_identity_rate() -> None:
    """Most mutations of a member at the limit break it; were the whole draw repeated, identity would take over."""
    limit = AtMost({"k5": 0})
    space = SearchSpace("costly", [Choice(f"layer{i}", ("skip", "k5", "k5b", "k5c")) for i in range(4)])
    searcher = AgingEvolution(space, population_size=1, feasible=AtMost({"k5": 0}), identity=0.2)
    start = searcher.ask(1)
    searcher.tell([trial(0, start[0], 1.0)])
    children = searcher.ask(5_000)
    assert all(map(limit, children))
    assert children.count(start[0]) / 5_000 == pytest.approx(0.2, abs=0.02)


# -- random search -------------------------------------------------------------------------------------------------


def test_random_search_draws_uniformly() -> None:
    space = chain_space(2, form=False)
    first = Tally(RandomSearch(space, seed=seed).ask(1)[0] for seed in range(4_500))
    assert len(first) == 9
    assert all(count == pytest.approx(500, abs=90) for count in first.values())


def test_random_search_never_repeats_a_network() -> None:
    space = chain_space(4)
    asked = RandomSearch(space).ask(1_000)
    assert {space.normal_form(arch).key for arch in asked} == {
        space.normal_form(arch).key for arch in space.enumerate()
    }
    assert len(asked) == 31


def test_random_search_exhausts_what_the_limits_leave() -> None:
    limit = AtMost({"k5": 1})
    space = chain_space(4, form=False)
    asked = RandomSearch(space, feasible=limit).ask(1_000)
    assert set(asked) == set(filter(limit, space.enumerate()))
    assert len(asked) == 48


# -- a published table ---------------------------------------------------------------------------------------------


class Reached(BaseException):
    """Ends a search at its goal."""


def test_evolution_reaches_the_top_percent_of_nasbench_macro_before_random_search() -> None:
    """Distinct networks evaluated until one of the best 1 % (by mean test accuracy) is met, mean of 15 seeds."""
    from supernet.spaces.nasbench_macro import nasbench_macro, table

    space = nasbench_macro().space
    accuracy = {arch.key: row["accuracy"] for arch, row in table().items()}
    networks = {space.normal_form(arch).key for arch in table()}
    goal = sorted((accuracy[key] for key in networks), reverse=True)[len(networks) // 100]

    def evaluations(searcher: Searcher) -> int:
        shown: list[float] = []

        def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
            shown.extend(accuracy[arch.key] for arch in archs)
            if shown[-1] > goal:
                raise Reached
            return [{"accuracy": accuracy[arch.key]} for arch in archs]

        with Study(None, space) as study, pytest.raises(Reached):
            search(searcher, evaluate, study, trials=5_000)
        return len(shown)

    seeds = range(15)
    evolved = [evaluations(AgingEvolution(space, seed=s, population_size=50, tournament_size=10)) for s in seeds]
    random = [evaluations(RandomSearch(space, seed=s)) for s in seeds]
    assert sum(evolved) < 0.8 * sum(random)
