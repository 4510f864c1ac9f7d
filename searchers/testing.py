"""The contract of a searcher as an import: `check_searcher(MySearcher, space)` raises an `AssertionError` if not met.

Scores are artificial (a pure function of the architecture), so that no network is trained and a check takes a second.
"""

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from searchers.loop import Feasible, Searcher, search, settings_of
from searchers.study import Study, Trial
from supernet.checked import checked_arguments, shown
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

Make = Callable[..., Searcher]
"""The class of a searcher, or a function that makes one from `space` and the keywords `seed`, `metric`, `feasible`."""

MOST_LISTED = 2_000  # largest space, in architectures, that is enumerated to count its networks
SMALL = 16  # largest space, in architectures, that is searched until it is exhausted


@checked_arguments
def check_searcher(make: Make, space: SearchSpace, *, feasible: Feasible | None = None, trials: int = 60) -> None:
    """Checks the whole contract of a searcher over a space; the other functions of this module are its parts.

    Args:
        make: makes a fresh searcher, `make(space, seed=…, metric=…, feasible=…)`.
        space: the space to search; try one with conditions and one with a normal form.
        feasible: limits; the contract is checked both without and within them.
        trials: the length of each search; it should exceed the searcher's initial random phase.

    Raises:
        AssertionError: a part of the contract is broken; the message says which.
        InputError: something else than a searcher or a space.
    """
    if not callable(make) or not isinstance(space, SearchSpace):
        raise InputError(f"make={shown(make)} should be a searcher's class or function, and space a SearchSpace")
    check_settings(make, space)
    for limits in (None, feasible) if feasible is not None else (None,):
        for batch in (1, 7):
            check_proposals(make, space, batch=batch, trials=trials, feasible=limits)
            check_resume(make, space, batch=batch, trials=trials, feasible=limits)
        check_warm_start(make, space, feasible=limits)
    check_seeds(make, space, trials=trials)
    check_failures(make, space, trials=trials)
    check_repeats(make, space)
    check_exhaustion(make, space)


def stand_in(arch: Arch, metric: str = "accuracy") -> float:
    """A score in [0, 100) that is a pure function of the architecture, the same on every machine.

    Every decision contributes to it, so that neighbours have similar scores; a tenth of it is noise.
    """
    parts = [_unit(metric, name, value) for name, value in arch.items()]
    return round(90 * sum(parts) / max(1, len(parts)) + 10 * _unit(metric, arch.key), 6)


def _unit(*parts: object) -> float:
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8], 16) / 2**32


def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    """Evaluates architectures by `stand_in`."""
    return [{"accuracy": stand_in(arch)} for arch in archs]


def searched(
    searcher: Searcher, trials: int, *, batch: int = 1, evaluator: Callable[..., Any] = evaluate
) -> list[Trial]:
    """Searches without interruption and returns the trials."""
    with Study(None, searcher.space) as study:
        search(searcher, evaluator, study, trials=trials, batch=batch, max_failures=trials + 1)
        return study.trials()


def check_settings(make: Make, space: SearchSpace) -> None:
    """Checks that constructor parameters are kept as attributes and that a leading minus minimises."""
    searcher = make(space, seed=3, metric="-loss")
    settings_of(searcher)
    assert searcher.space is space, "the searcher must keep its space as `space`"
    assert searcher.metric == "-loss", "the searcher must keep its metric as `metric`"
    archs = searcher.ask(2)
    searcher.tell([Trial.of(space, arch, {"loss": 1.0 + i}, number=i) for i, arch in enumerate(archs)])
    assert searcher.ask(1), "a searcher that minimises must go on proposing"


def check_proposals(make: Make, space: SearchSpace, *, batch: int, trials: int, feasible: Feasible | None) -> None:
    """Checks that `ask(n)` returns `n` legal architectures while there are any, and repeats with the same seed.

    The searcher must not use Python's global random generator.
    """
    networks = _networks(space, feasible)
    searcher = make(space, seed=0, feasible=feasible)
    proposed: list[Arch] = []
    seen: set[str] = set()
    for number in range(math.ceil(trials / batch)):
        random.seed(number)
        before = random.getstate()
        archs = searcher.ask(batch)
        for arch in archs:
            assert arch in space, f"proposed {arch}, which is not in space {space.name!r}"
            assert feasible is None or feasible(arch), f"proposed {arch}, which is outside the limits"
            seen.add(space.normal_form(arch).key)
        short = len(archs) < batch
        assert len(archs) <= batch, f"asked for {batch} architectures, the searcher returned {len(archs)}"
        assert not short or (networks is not None and len(seen) >= 0.9 * networks), (
            f"asked for {batch} architectures, the searcher returned {len(archs)} after {len(seen)} networks"
        )
        searcher.tell(_trials(archs, space, start=len(proposed)))
        assert random.getstate() == before, "the searcher draws from the global generator"
        proposed += archs
        if not archs:
            break
    random.seed()
    again = make(space, seed=0, feasible=feasible)
    repeated: list[Arch] = []
    while len(repeated) < len(proposed) and (archs := again.ask(batch)):
        repeated += archs
        again.tell(_trials(archs, space, start=len(repeated) - len(archs)))
    assert repeated == proposed, "the same seed and scores give other proposals the second time"


def check_seeds(make: Make, space: SearchSpace, *, trials: int) -> None:
    """Checks that other seeds give other proposals."""
    if space.size() > 5:
        runs = [[trial.arch for trial in searched(make(space, seed=seed), trials)] for seed in range(4)]
        assert any(run != runs[0] for run in runs), "four seeds give the same proposals"


def check_resume(make: Make, space: SearchSpace, *, batch: int, trials: int, feasible: Feasible | None) -> None:
    """Checks that a search that is interrupted and resumed has the same trials as the uninterrupted one."""
    whole = searched(make(space, seed=1, feasible=feasible), trials, batch=batch)
    for stop in sorted({1, trials // (3 * batch), trials // (2 * batch)} - {0}):
        with Study(None, space) as study:
            try:
                evaluator = _Interrupted(stop)
                search(make(space, seed=1, feasible=feasible), evaluator, study, trials=trials, batch=batch)
            except KeyboardInterrupt:
                search(make(space, seed=1, feasible=feasible), evaluate, study, trials=trials, batch=batch)
            assert study.trials() == whole, f"interrupted at evaluation {stop}, the search ends with other trials"


def check_warm_start(make: Make, space: SearchSpace, *, feasible: Feasible | None) -> None:
    """Checks that trials the searcher never proposed, legal or not and in any order, leave its proposals legal."""
    rng = random.Random(0)
    foreign = _trials(list(dict.fromkeys(space.sample(rng) for _ in range(12))), space, start=0)
    for order in (foreign, foreign[::-1]):
        searcher = make(space, seed=2, feasible=feasible)
        searcher.tell(order)
        for _ in range(6):
            archs = searcher.ask(3)
            for arch in archs:
                assert arch in space, f"after a warm start it proposes {arch}, which is not in the space"
                assert feasible is None or feasible(arch), f"after a warm start it proposes {arch}, outside the limits"
            searcher.tell(_trials(archs, space, start=len(foreign))[::-1])


def check_failures(make: Make, space: SearchSpace, *, trials: int) -> None:
    """Checks that a search with failed trials goes on and resumes exactly, even if nothing ever succeeds."""
    whole = searched(make(space, seed=4), trials, batch=3, evaluator=_failing)
    with Study(None, space) as study:
        for budget in (trials // 2, trials):
            search(make(space, seed=4), _failing, study, trials=budget, batch=3, max_failures=trials + 1)
        at = trials // 2
        assert study.trials()[:at] == whole[:at], "a search with failed trials ends with other trials when resumed"
    searcher = make(space, seed=5)
    for number in range(min(trials, space.size() // 2)):
        archs = searcher.ask(1)
        searcher.tell([Trial.of(space, arch, {}, number=number, failed="out of memory") for arch in archs])


def check_repeats(make: Make, space: SearchSpace) -> None:
    """Checks that the searcher accepts a network that is reported again as a repeat."""
    searcher = make(space, seed=6)
    for number in range(10):
        archs = searcher.ask(2)
        trials = _trials(archs, space, start=number)
        searcher.tell(trials)
        searcher.tell([dataclasses.replace(trial, repeat=True) for trial in trials])


def check_exhaustion(make: Make, space: SearchSpace) -> None:
    """Checks that a search of a small space without a budget evaluates all of it and ends with a reason."""
    small = _small(space)
    for batch in (1, 5):
        with Study(None, small) as study:
            search(make(small, seed=7), evaluate, study, trials=10**9, batch=batch)
            networks = _networks(small, None)
            assert study.ended, "the search of a small space ends without a reason"
            assert study.evaluations == networks, (
                f"the search of a space of {networks} networks ended after {study.evaluations}: {study.ended}"
            )


class _Interrupted:
    """An evaluator that is interrupted by Ctrl-C at one of its calls."""

    def __init__(self, stop: int) -> None:
        self._left = stop

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return evaluate(archs)


def _failing(archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
    """Raises for one architecture in six, and returns None or NaN for two others."""
    kinds = [int(arch.key, 16) % 6 for arch in archs]
    if 0 in kinds:
        raise ArithmeticError("an evaluation that diverges")
    results: list[Mapping[str, float] | None] = list(evaluate(archs))
    for number, kind in enumerate(kinds):
        if kind == 1:
            results[number] = None
        elif kind == 2:
            results[number] = {"accuracy": math.nan}
    return results


def _trials(archs: Sequence[Arch], space: SearchSpace, *, start: int) -> list[Trial]:
    scores = [{"accuracy": stand_in(space.normal_form(arch))} for arch in archs]
    numbered = enumerate(zip(archs, scores, strict=True), start=start)
    return [Trial.of(space, arch, metrics, number=number) for number, (arch, metrics) in numbered]


def _networks(space: SearchSpace, feasible: Feasible | None) -> int | None:
    """The number of distinct networks within the limits; None for a large space."""
    if space.size() > MOST_LISTED:
        return None
    legal = (arch for arch in space.enumerate() if feasible is None or feasible(arch))
    return len({space.normal_form(arch).key for arch in legal})


def _small(space: SearchSpace) -> SearchSpace:
    """The space with its last decisions fixed, so that few architectures are left."""
    for choice in reversed(space.choices):
        if space.size() <= SMALL:
            break
        space = space.fix({choice.name: choice.options[0]})
    return space
