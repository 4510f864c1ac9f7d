"""The contract of a searcher as an import: `check_searcher(MySearcher, space)` raises an AssertionError for what fails.

Scores are made up (a pure function of the architecture), so that no network is trained and a check takes a second.
"""

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from searchers.loop import Feasible, Searcher, search, settings_of
from searchers.study import Study, Trial
from supernet.space import Arch, SearchSpace

Make = Callable[..., Searcher]
"""A searcher's class, or a function that makes one from `space` and the keywords `seed`, `metric` and `feasible`."""

MOST_LISTED = 2_000  # architectures of a space that is enumerated to know how many networks it has
SMALL = 16  # architectures of the spaces that are searched to their end


def check_searcher(make: Make, space: SearchSpace, *, feasible: Feasible | None = None, trials: int = 60) -> None:
    """Runs the whole contract of a searcher over a space; see the functions of this module for its parts.

    Args:
        make: gives a fresh searcher, `make(space, seed=…, metric=…, feasible=…)`.
        space: to check it on; try one with conditions and one with a normal form.
        feasible: limits to check it under, besides without.
        trials: of each search; more than the searcher's first random phase.

    Raises:
        AssertionError: a part of the contract is broken; the message says which.
    """
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

    Every decision adds its part, so that neighbours have similar scores, and a tenth of it is noise.
    """
    parts = [_unit(metric, name, value) for name, value in arch.items()]
    return round(90 * sum(parts) / max(1, len(parts)) + 10 * _unit(metric, arch.key), 6)


def _unit(*parts: object) -> float:
    return int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:8], 16) / 2**32


def evaluate(archs: Sequence[Arch]) -> list[Mapping[str, float]]:
    """The stand-in as an evaluator."""
    return [{"accuracy": stand_in(arch)} for arch in archs]


def searched(
    searcher: Searcher, trials: int, *, batch: int = 1, evaluator: Callable[..., Any] = evaluate
) -> list[Trial]:
    """The trials of an uninterrupted search."""
    with Study(None, searcher.space) as study:
        search(searcher, evaluator, study, trials=trials, batch=batch, max_failures=trials + 1)
        return study.trials()


def check_settings(make: Make, space: SearchSpace) -> None:
    """Every constructor parameter is kept under its name; limits under `feasible`; a leading minus is a metric."""
    searcher = make(space, seed=3, metric="-loss")
    settings_of(searcher)
    assert searcher.space is space, "the searcher must keep its space as `space`"
    assert searcher.metric == "-loss", "the searcher must keep its metric as `metric`"
    archs = searcher.ask(2)
    searcher.tell(
        [Trial(i, a, space.normal_form(a).key, {"loss": 1.0 + i}, False, 0.0, 0) for i, a in enumerate(archs)]
    )
    assert searcher.ask(1), "a searcher that minimises asks on"


def check_proposals(make: Make, space: SearchSpace, *, batch: int, trials: int, feasible: Feasible | None) -> None:
    """Exactly `n` canonical architectures within the limits while there are any; nothing global is read or written."""
    networks = _networks(space, feasible)
    searcher = make(space, seed=0, feasible=feasible)
    asked: list[Arch] = []
    seen: set[str] = set()
    for number in range(math.ceil(trials / batch)):
        random.seed(number)
        before = random.getstate()
        archs = searcher.ask(batch)
        for arch in archs:
            assert arch in space, f"asked for {arch}, which is not in space {space.name!r}"
            assert feasible is None or feasible(arch), f"asked for {arch}, which is outside the limits"
            seen.add(space.normal_form(arch).key)
        short = len(archs) < batch
        assert len(archs) <= batch, f"asked for {batch} architectures, the searcher returned {len(archs)}"
        assert not short or (networks is not None and len(seen) >= 0.9 * networks), (
            f"asked for {batch} architectures, the searcher returned {len(archs)} after {len(seen)} networks"
        )
        searcher.tell(_trials(archs, space, start=len(asked)))
        assert random.getstate() == before, "the searcher draws from the global generator"
        asked += archs
        if not archs:
            break
    random.seed()
    again = make(space, seed=0, feasible=feasible)
    repeated: list[Arch] = []
    while len(repeated) < len(asked) and (archs := again.ask(batch)):
        repeated += archs
        again.tell(_trials(archs, space, start=len(repeated) - len(archs)))
    assert repeated == asked, "the same seed and scores give other proposals the second time"


def check_seeds(make: Make, space: SearchSpace, *, trials: int) -> None:
    """Another seed gives other proposals."""
    if space.size() > 5:
        runs = [[trial.arch for trial in searched(make(space, seed=seed), trials)] for seed in range(4)]
        assert any(run != runs[0] for run in runs), "four seeds give the same proposals"


def check_resume(make: Make, space: SearchSpace, *, batch: int, trials: int, feasible: Feasible | None) -> None:
    """Interrupted anywhere and replayed by a fresh searcher, a search is the uninterrupted one, trial for trial."""
    whole = searched(make(space, seed=1, feasible=feasible), trials, batch=batch)
    for stop in sorted({1, trials // (3 * batch), trials // (2 * batch)} - {0}):
        with Study(None, space) as study:
            try:
                evaluator = _Interrupted(stop)
                search(make(space, seed=1, feasible=feasible), evaluator, study, trials=trials, batch=batch)
            except KeyboardInterrupt:
                search(make(space, seed=1, feasible=feasible), evaluate, study, trials=trials, batch=batch)
            assert study.trials() == whole, f"interrupted at evaluation {stop}, the search goes another way"


def check_warm_start(make: Make, space: SearchSpace, *, feasible: Feasible | None) -> None:
    """Trials that the searcher never asked for, whatever their limits, in any order: it takes them and asks legally."""
    rng = random.Random(0)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(12)))
    told = _trials(archs, space, start=0)
    for order in (told, told[::-1]):
        searcher = make(space, seed=2, feasible=feasible)
        searcher.tell(order)
        for _ in range(6):
            found = searcher.ask(3)
            for arch in found:
                assert arch in space, f"after a warm start it asks for {arch}, which is not in the space"
                assert feasible is None or feasible(arch), f"after a warm start it asks outside the limits: {arch}"
            searcher.tell(_trials(found, space, start=len(told))[::-1])


def check_failures(make: Make, space: SearchSpace, *, trials: int) -> None:
    """Failed trials are no scores: the search goes on and resumes exactly, even if nothing ever succeeds."""
    whole = searched(make(space, seed=4), trials, batch=3, evaluator=_failing)
    with Study(None, space) as study:
        for budget in (trials // 2, trials):
            search(make(space, seed=4), _failing, study, trials=budget, batch=3, max_failures=trials + 1)
        at = trials // 2
        assert study.trials()[:at] == whole[:at], "a search with failed trials goes another way when resumed"
    searcher = make(space, seed=5)
    for number in range(min(trials, space.size() // 2)):
        archs = searcher.ask(1)
        searcher.tell(
            [Trial(number, a, space.normal_form(a).key, {}, False, 0.0, number, "out of memory") for a in archs]
        )


def check_repeats(make: Make, space: SearchSpace) -> None:
    """Told the same network again, flagged as a repeat, the searcher goes on."""
    searcher = make(space, seed=6)
    for number in range(10):
        archs = searcher.ask(2)
        told = _trials(archs, space, start=number)
        searcher.tell(told)
        searcher.tell([Trial(t.number, t.arch, t.key, t.metrics, True, 0.0, t.batch) for t in told])


def check_exhaustion(make: Make, space: SearchSpace) -> None:
    """On a space of a few architectures a search without a budget ends with a reason, all of them evaluated."""
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
    """Ctrl-C at one evaluation."""

    def __init__(self, stop: int) -> None:
        self._left = stop

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return evaluate(archs)


def _failing(archs: Sequence[Arch]) -> list[Mapping[str, float] | None]:
    """Raises for one architecture in six, and has no score or not a number for two others."""
    kinds = [int(arch.key, 16) % 6 for arch in archs]
    if 0 in kinds:
        raise ArithmeticError("an evaluation that diverges")
    made = zip(kinds, evaluate(archs), strict=True)
    return [None if kind == 1 else {"accuracy": math.nan} if kind == 2 else metrics for kind, metrics in made]


def _trials(archs: Sequence[Arch], space: SearchSpace, *, start: int) -> list[Trial]:
    forms = [space.normal_form(arch) for arch in archs]
    pairs = enumerate(zip(archs, forms, strict=True), start=start)
    return [Trial(i, arch, form.key, {"accuracy": stand_in(form)}, False, 0.0, 0) for i, (arch, form) in pairs]


def _networks(space: SearchSpace, feasible: Feasible | None) -> int | None:
    """How many distinct networks there are; None in a large space."""
    if space.size() > MOST_LISTED:
        return None
    legal = (arch for arch in space.enumerate() if feasible is None or feasible(arch))
    return len({space.normal_form(arch).key for arch in legal})


def _small(space: SearchSpace) -> SearchSpace:
    """The space with its last decisions held, until few architectures are left."""
    for choice in reversed(space.choices):
        if space.size() <= SMALL:
            break
        space = space.fix({choice.name: choice.options[0]})
    return space
