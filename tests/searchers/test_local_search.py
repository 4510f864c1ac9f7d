"""Local search follows the published description of query-until-better."""

import itertools
from collections import Counter as Tally

import pytest

from helpers.searcher_cases import AtMost, chain_space, trial
from searchers import LocalSearch, Trial
from searchers.testing import stand_in
from supernet.space import Arch, Choice, SearchSpace

SPACE = SearchSpace("eight", [Choice(f"layer{i}", ("a", "b", "c")) for i in range(8)])


def distance(a: Arch, b: Arch) -> int:
    return sum(a[name] != b[name] for name in a)


def climb(steps: int, *, space: SearchSpace = SPACE, seed: int = 0) -> list[tuple[Arch, float]]:
    """Batch 1, the stand-in score."""
    searcher, done = LocalSearch(space, seed=seed), list[tuple[Arch, float]]()
    for number in range(steps):
        (arch,) = searcher.ask(1)
        done.append((arch, stand_in(arch)))
        searcher.tell([trial(number, *done[-1], space=space)])
    return done


@pytest.mark.parametrize("seed", range(5))
def test_it_moves_at_the_first_improvement_and_restarts_where_there_is_none(seed: int) -> None:
    """Every proposal follows from the published procedure, which is written out here."""
    steps = climb(400, seed=seed)
    known: dict[Arch, float] = {}
    centre: Arch | None = None
    restarts = 0
    for arch, value in steps:
        while centre is not None:  # what is known needs no query: move there if it is better
            better = [n for n in SPACE.neighbors(centre) if known.get(n, -1.0) > known[centre]]
            if not better or distance(arch, centre) == 1:
                break
            centre = max(better, key=lambda n: known[n])
        if centre is None or distance(arch, centre) != 1:
            assert centre is None or all(known.get(n, 101.0) <= known[centre] for n in SPACE.neighbors(centre))
            restarts += 1
            centre = arch
        elif value > known[centre]:
            centre = arch
        known[arch] = value
    assert len(known) == 400
    assert 3 < restarts < 40


def test_neighbours_come_in_random_order() -> None:
    centre = SPACE.from_indices((1,) * 8)
    first = Tally[Arch]()
    for seed in range(800):
        searcher = LocalSearch(SPACE, seed=seed)
        searcher.tell([trial(0, centre, 1.0)])
        first[searcher.ask(1)[0]] += 1
    assert set(first) == set(SPACE.neighbors(centre))
    assert all(count == pytest.approx(50, abs=30) for count in first.values())


def test_a_known_better_neighbour_is_moved_to_without_asking() -> None:
    """The second climb starts beside two better networks of the first, and does not try all its other neighbours."""
    space = SearchSpace("plane", [Choice("x", range(10)), Choice("y", range(10))])
    top = space.from_indices((0, 0))
    left = 0
    for seed in range(20):
        searcher = LocalSearch(space, seed=seed)
        searcher.tell([trial(0, top, 10.0)])
        for number in range(1, 19):
            searcher.tell([trial(number, arch, 5.0) for arch in searcher.ask(1)])
        (start,) = searcher.ask(1)
        searcher.tell([trial(19, start, 1.0)])
        later = []
        for number in range(20, 36):
            later += searcher.ask(1)
            searcher.tell([trial(number, later[-1], 0.0)])
        left += any(distance(arch, start) == 2 for arch in later)
    assert left > 15


def test_networks_that_several_architectures_describe_are_asked_for_once() -> None:
    space = chain_space(5)
    steps = climb(63, space=space)
    assert len({space.normal_form(arch).key for arch, _ in steps}) == 63


@pytest.mark.parametrize("batch", [4, 50])
def test_a_batch_moves_to_its_best_and_is_filled_up_with_starts(batch: int) -> None:
    centre = SPACE.from_indices((1,) * 8)
    searcher = LocalSearch(SPACE)
    searcher.tell([trial(0, centre, 1.0)])
    asked = searcher.ask(batch)
    near = [arch for arch in asked if distance(arch, centre) == 1]
    assert len(set(asked)) == batch
    assert len(near) == min(batch, 16)
    best = near[-1]
    searcher.tell([trial(i, arch, 2.0 + (arch == best), space=SPACE) for i, arch in enumerate(asked, start=1)])
    assert all(distance(arch, best) == 1 for arch in searcher.ask(3))


def test_a_local_optimum_in_a_batch_is_left_for_the_best_of_its_starts() -> None:
    centre = SPACE.from_indices((1,) * 8)
    searcher = LocalSearch(SPACE)
    searcher.tell([trial(0, centre, 100.0)])
    asked = searcher.ask(20)
    starts = [arch for arch in asked if distance(arch, centre) > 1]
    assert len(starts) == 4
    score = {arch: 50.0 if arch == starts[2] else 10.0 if arch in starts else 90.0 for arch in asked}
    searcher.tell([trial(i, arch, score[arch]) for i, arch in enumerate(asked, start=1)])
    assert all(distance(arch, starts[2]) == 1 for arch in searcher.ask(8))


def test_every_network_within_the_limits_is_proposed() -> None:
    space, limit = chain_space(5, form=False), AtMost({"k5": 1})
    searcher, proposed = LocalSearch(space, feasible=limit), list[Arch]()
    while archs := searcher.ask(3):
        proposed += archs
        searcher.tell([trial(i, arch, stand_in(arch)) for i, arch in enumerate(archs)])
    assert len(proposed) == len(set(proposed))
    assert set(proposed) == set(filter(limit, space.enumerate()))


def test_failed_neighbours_do_not_end_a_climb() -> None:
    centre = SPACE.from_indices((1,) * 8)
    searcher = LocalSearch(SPACE)
    searcher.tell([trial(0, centre, 1.0)])
    seen: list[Arch] = []
    for number in range(1, 17):
        (arch,) = searcher.ask(1)
        seen.append(arch)
        searcher.tell([Trial.of(SPACE, arch, {}, number=number, failed="no memory")])
    assert set(seen) == set(SPACE.neighbors(centre))
    fresh = searcher.ask(1)[0]
    assert fresh not in seen
    assert all(a != b for a, b in itertools.pairwise([*seen, fresh]))
