"""Top-k evolution follows the published descriptions of DetNAS and SPOS."""

from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

import pytest

from helpers.searcher_cases import CONDITIONAL, AtMost, chain_space, trial
from searchers import TopKEvolution, Trial
from searchers.testing import stand_in
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace

SPACE = SearchSpace("twenty", [Choice(f"block{i}", ("k3", "k5", "k7", "xception")) for i in range(20)])
ONLY = {"population_size": 50, "mutants": 0, "crossovers": 0}


def distance(a: Arch, b: Arch) -> int:
    return sum(a[name] != b[name] for name in a)


def scored(archs: Sequence[Arch], scores: Sequence[float], *, start: int = 0) -> list[Trial]:
    return [trial(start + i, arch, value) for i, (arch, value) in enumerate(zip(archs, scores, strict=True))]


def apart(count: int) -> list[Arch]:
    """Architectures of which the first four differ from each other in all twenty decisions; the rest are random."""
    same = [SPACE.from_indices((i,) * 20) for i in range(4)]
    return (same + TopKEvolution(SPACE, seed=99).ask(max(0, count - 4)))[:count]


def bred(scores: Sequence[float], count: int, *, archs: Sequence[Arch] = (), **settings: Any) -> list[Arch]:
    """The first `count` children of a searcher that knows one architecture per score."""
    searcher = TopKEvolution(SPACE, **settings)
    searcher.tell(scored(archs or apart(len(scores)), scores))
    return searcher.ask(count)


def test_the_defaults_and_presets_are_the_papers() -> None:
    def sizes(s: TopKEvolution) -> tuple[int | float | str, ...]:
        return s.population_size, s.parents, s.mutants, s.crossovers, s.mutation, s.crossover

    assert sizes(TopKEvolution(SPACE)) == sizes(TopKEvolution.detnas(SPACE)) == (50, 10, 20, 20, 0.1, "uniform")
    assert sizes(TopKEvolution.spos(SPACE)) == (50, 10, 25, 25, 0.1, "uniform")
    spos = TopKEvolution.spos(SPACE, seed=3, metric="-loss", crossover="one-point", parents=5)
    assert (spos.seed, spos.metric, sizes(spos)) == (3, "-loss", (50, 5, 25, 25, 0.1, "one-point"))


def test_a_generation_has_mutants_then_crossovers_then_random_networks() -> None:
    """Parents differ in all decisions, so each kind can be recognised: near one parent, from both, or near neither."""
    parents = apart(2)
    children = bred([1.0, 2.0], 50, archs=parents)
    mutants, crossed, random = children[:20], children[20:40], children[40:]
    assert all(min(distance(child, parent) for parent in parents) <= 8 for child in mutants)
    assert all(set(child.values()) <= {"k3", "k5"} for child in crossed)
    assert all(min(distance(child, parent) for parent in parents) >= 8 for child in random)


def test_mutants_redraw_each_decision_with_probability_a_tenth_old_value_included() -> None:
    """0.1 * 3/4 of the decisions change; an unchanged copy is known and not proposed."""
    settings = {"population_size": 2_000, "mutants": 2_000, "crossovers": 0}
    changes = [distance(apart(1)[0], child) for child in bred([1.0], 2_000, **settings)]
    expected = 20 * 0.075 / (1 - 0.925**20)
    single = sum(change == 1 for change in changes)
    assert single <= 60  # there are no more; the others of that kind were known, and gave way to further ones
    assert sum(changes) / len(changes) == pytest.approx(expected, abs=1.0)
    few = bred([1.0], 30, **settings)
    assert sum(distance(apart(1)[0], child) for child in few) / 30 == pytest.approx(expected, abs=0.6)


def test_uniform_crossover_takes_half_from_each_and_one_point_a_run() -> None:
    parents = apart(2)
    settings: dict[str, Any] = {"population_size": 200, "mutants": 0, "crossovers": 200}
    uniform = bred([1.0, 2.0], 200, archs=parents, **settings)
    assert sum(distance(child, parents[0]) for child in uniform) / 200 == pytest.approx(10, abs=0.6)
    cuts = Tally[int]()
    for child in bred([1.0, 2.0], 30, archs=parents, crossover="one-point", **settings):
        values = list(child.values())
        if set(values) <= {"k3", "k5"}:
            switches = [i for i in range(1, 20) if values[i] != values[i - 1]]
            assert len(switches) == 1
            cuts[switches[0]] += 1
    assert len(cuts) > 8


def test_one_point_crossover_keeps_what_is_active_in_either_parent() -> None:
    deep = CONDITIONAL.canonical({"depth": 3, "a": "z", "b": "z", "c": 38, "c.scale": 2.0})
    shallow = CONDITIONAL.canonical({"depth": 1, "a": "y", "b": "x", "c": 0, "c.scale": 0.5})
    searcher = TopKEvolution(CONDITIONAL, population_size=2, mutants=0, crossovers=2, crossover="one-point")
    children = {
        searcher._one_point(*pair, searcher._rng) for pair in [(deep, shallow), (shallow, deep)] for _ in range(50)
    }
    assert children <= set(CONDITIONAL.enumerate())
    assert {tuple(arch.values()) for arch in children if arch["depth"] == 3} == {
        (3, "y", "z", 38, 2.0),
        (3, "z", "z", 38, 2.0),
    }


def test_parents_are_the_best_of_the_whole_history() -> None:
    """Only the score counts, not the age; of equals the earlier one stays."""
    searcher = TopKEvolution(SPACE, parents=2, population_size=10, mutants=10, crossovers=0, mutation=0.05)
    best, second = apart(2)
    searcher.tell(scored([best], [100.0]))
    others = TopKEvolution(SPACE, seed=5, **ONLY).ask(60)
    searcher.tell(scored(others, [float(i % 7) for i in range(60)], start=1))
    searcher.tell(scored([second], [50.0], start=61))
    searcher.tell(scored(TopKEvolution(SPACE, seed=6, **ONLY).ask(40), [50.0] * 40, start=62))
    children = searcher.ask(10)
    near = [min((best, second), key=lambda parent: distance(child, parent)) for child in children]
    assert all(distance(child, parent) <= 6 for child, parent in zip(children, near, strict=True))
    assert set(near) == {best, second}


def test_a_repeat_takes_one_place_among_the_parents() -> None:
    best, second = apart(2)
    searcher = TopKEvolution(SPACE, parents=2, population_size=20, mutants=20, crossovers=0, mutation=0.03)
    searcher.tell(scored([best] * 5 + [second], [9.0] * 5 + [1.0]))
    assert {min((best, second), key=lambda parent: distance(c, parent)) for c in searcher.ask(20)} == {best, second}


def test_the_next_generation_knows_the_scores_of_the_last() -> None:
    """The batch does not matter as long as it divides the population."""

    def run(batch: int) -> list[Arch]:
        searcher, asked = TopKEvolution(SPACE), list[Arch]()
        while len(asked) < 200:
            archs = searcher.ask(batch)
            searcher.tell(scored(archs, [stand_in(arch) for arch in archs], start=len(asked)))
            asked += archs
        return asked

    assert run(1) == run(10) == run(50)


@pytest.mark.parametrize("crossover", ["uniform", "one-point"])
def test_no_network_is_proposed_twice_and_a_small_space_is_covered(crossover: Any) -> None:
    space = chain_space(5)
    networks = {space.normal_form(arch).key for arch in space.enumerate()}
    searcher, seen = TopKEvolution.spos(space, crossover=crossover), list[str]()
    while archs := searcher.ask(20):
        seen += [space.normal_form(arch).key for arch in archs]
        searcher.tell(scored(archs, [stand_in(arch) for arch in archs]))
    assert len(seen) == len(set(seen))
    assert set(seen) == networks


def test_an_impossible_child_is_replaced_by_a_random_one_within_the_limits() -> None:
    """Three architectures within the limit are left: every mutant and crossover is known or illegal."""
    space, limit = chain_space(8, form=False), AtMost({"k5": 0})
    legal = list(filter(limit, space.enumerate()))
    searcher = TopKEvolution.detnas(space, feasible=limit)
    searcher.tell(scored(legal[:-3], [1.0] * (len(legal) - 3)))
    assert set(searcher.ask(50)) == set(legal[-3:])
    assert searcher.ask(1) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"population_size": 30}, "population_size=30 has no room for 20 mutants and 20 crossovers"),
        ({"population_size": 0, "mutants": 0, "crossovers": 0}, "population_size=0"),
        ({"parents": 0}, "parents=0"),
        ({"mutants": -1}, "mutants=-1"),
        ({"mutation": 1.5}, "mutation=1.5"),
        ({"mutation": float("nan")}, "mutation=nan"),
        ({"crossover": "onepoint"}, "crossover='onepoint' should be 'uniform' or 'one-point'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TopKEvolution(SPACE, **settings)
