"""The search loop: ask, evaluate what is new, record, tell; and exact resume by replaying the record."""

import inspect
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, Protocol, runtime_checkable

from searchers.study import Study, Trial, best_of
from supernet.errors import InputError, RunError, nearest
from supernet.space import Arch, SearchSpace

Evaluate = Callable[[Sequence[Arch]], Sequence[Mapping[str, float] | None]]
"""Normal forms in, one flat mapping of metrics per architecture out, in the same order; None where one failed."""

REPEATS_IN_A_ROW = 1_000
"""Times the batch size: so many trials without a new network end a search. Aging evolution repeats by chance about one
trial in twenty (identity) and a little more in a small space; a thousand in a row is a searcher that has converged."""

SNAPSHOT_SECONDS = 30.0
"""Between two snapshots of a searcher that makes them; what is told after the last one is replayed."""

_TOLD_AT_START = "told_at_start"  # kept beside the settings: trials that a warm start told without asking

_log = logging.getLogger("searchers")


class Feasible(Protocol):
    """Limits on what an architecture may cost.

    It may have `sample(rng) -> Arch`, a uniform draw within the limits; searchers reject draws of the space otherwise.
    """

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits by the name of the cost, as the study records them."""

    def __call__(self, arch: Arch) -> bool:
        """Whether the architecture is within every limit; the same for all architectures of one network."""

    def explain(self) -> str:
        """A sentence that names the tightest cost that exists, for the error when nothing fits."""


class Searcher(Protocol):
    """Proposes architectures and learns from their scores.

    Every draw comes from generators of its own, so that the same sequence of `ask` and `tell` gives the same
    architectures. Every constructor parameter is kept as an attribute of the same name. A searcher with limits has an
    attribute `feasible` (see `Feasible`) and proposes within it.
    """

    space: SearchSpace
    metric: str  # maximised; with a leading minus ("-loss"), that metric is minimised

    def ask(self, n: int) -> list[Arch]:
        """Up to `n` architectures of the space; none when there is nothing left to propose."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials of one `ask`; after a warm start, trials that were never asked for.

        A trial with a reason in `failed` has no metrics: it is no parent, and not worth proposing again.
        """


@runtime_checkable
class Restorable(Protocol):
    """What a searcher whose `tell` is expensive may have besides: a resume then need not replay everything."""

    def snapshot(self) -> bytes:
        """All of its state, as JSON or safetensors."""

    def restore(self, data: bytes) -> None:
        """Brings a fresh searcher with the same settings to a snapshot; it then asks what the other would have.

        Raises:
            InputError: it cannot read the snapshot, and is as fresh as before.
        """


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    study: Study,
    *,
    trials: int,
    evaluations: int | None = None,
    batch: int = 1,
    max_failures: int = 20,
    resume: Literal["exact", "warm"] = "exact",
    on_trial: Callable[[Trial], None] | None = None,
) -> Trial:
    """Searches until a budget is spent or nothing new is left, and says which in `study.ended`.

    An interrupted search goes on when it is called again with a fresh searcher and the same study; the trials are then
    those of the uninterrupted run, `seconds` aside. Of a `Restorable` searcher the study keeps a snapshot.

    What raises when evaluated, or gives None or no finite value of the metric, becomes a failed trial with its reason;
    the search goes on and does not evaluate it again. Where a batch raises, its members are evaluated one by one.

    Args:
        searcher: a fresh one; what the study holds is replayed through it.
        evaluate: receives normal forms, each distinct network once per study, up to `batch` at a time. What its scores
            depend on may stand in an attribute `settings` (a mapping), which the study then holds to.
        study: where trials are recorded before they are told; budgets count what it already holds.
        trials: ends the search when so many are told, repeats of a network with its known score included.
        evaluations: ends the search when so many distinct networks are evaluated; None for no limit.
        batch: architectures asked for at a time.
        max_failures: evaluations in a row that fail and end the search with an error; 1 tolerates none. The batch in
            which it happens is not recorded, so that it is evaluated anew once the cause is repaired.
        resume: `"exact"` replays the record and refuses changed settings; `"warm"` tells the searcher everything
            recorded in one go, accepts any settings, and does not claim to repeat another run.
        on_trial: called for every new trial, after it is recorded and told.

    Returns:
        the best evaluated trial, of equals the earliest.

    Raises:
        InputError: a budget below 1, changed settings, or an evaluation that returns the wrong number of results, or
            metrics that are no numbers or lack `searcher.metric`. What was recorded before stays recorded.
        RunError: `max_failures` evaluations in a row failed, with their reasons; or the evaluator raised it itself.
        AssertionError: the searcher asked for what is outside its space or its limits.
    """
    numbers = {"trials": trials, "evaluations": evaluations, "batch": batch, "max_failures": max_failures}
    _check_arguments(searcher, study, numbers, resume)
    start = _resume(searcher, study, _settings(searcher, evaluate, batch), resume)
    budget = _Budget(
        trials=trials,
        evaluations=evaluations,
        architectures=study.space.size(),
        repeats=batch * REPEATS_IN_A_ROW,
        start=start,
    )
    scorer = _Scorer(evaluate, searcher.metric, max_failures=max_failures)
    study.ended = ""
    snapshots = _Snapshots(searcher, study)
    while not (ended := budget.spent(study)):
        n = min(batch, budget.left(study))
        asked = _ask(searcher, n)
        if not asked:
            ended = f"{type(searcher).__name__} has nothing new to propose after {len(study):,} trials"
            break
        told = _told(asked, scorer, study)
        study.append(told, asked=n)
        searcher.tell(told)
        snapshots.keep(every=SNAPSHOT_SECONDS)
        if on_trial is not None:
            for trial in told:
                on_trial(trial)
    snapshots.keep()
    study.ended = ended
    _log.info("search ended: %s", ended)
    return best_of(_within(searcher, study, start), searcher.metric)


def settings_of(searcher: Searcher) -> dict[str, Any]:
    """What a study compares on resume: the class, and every constructor parameter read from its attribute.

    A space is written as its digest, a `Feasible` as its limits, and what JSON cannot hold as the name of its type.
    """
    kind = type(searcher)
    settings: dict[str, Any] = {"searcher": kind.__name__}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            assert hasattr(searcher, name), f"{kind.__name__} must keep its parameter {name!r} as an attribute"
            settings[name] = _plain(getattr(searcher, name))
    return settings


def _settings(searcher: Searcher, evaluate: Evaluate, batch: int) -> dict[str, Any]:
    """What must not change within a study: the searcher's parameters, the batch, and what scores depend on."""
    scoring: Mapping[str, Any] = getattr(evaluate, "settings", {})
    return {**settings_of(searcher), "batch": batch, **{f"evaluate.{name}": _plain(v) for name, v in scoring.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, SearchSpace):
        return value.digest()
    if hasattr(value, "limits"):
        return dict(value.limits)
    try:
        return json.loads(json.dumps(value))  # as the study will read it back: tuples become lists
    except TypeError:
        return getattr(value, "__qualname__", type(value).__qualname__)


def _check_arguments(searcher: Searcher, study: Study, numbers: Mapping[str, int | None], resume: str) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} is too small; give at least 1")
    if resume not in ("exact", "warm"):
        raise InputError(f"resume={resume!r} is unknown; {nearest(resume, ('exact', 'warm'))}")
    if searcher.space.digest() != study.space.digest():
        raise InputError(
            f"the searcher is over space {searcher.space.name!r} ({searcher.space.digest()}), but study {study} is of "
            f"{study.space.name!r} ({study.space.digest()}); build both from the same space"
        )


@dataclass(frozen=True, kw_only=True)
class _Budget:
    """What ends a search: the limits asked for, and the two that keep it from going on for nothing."""

    trials: int
    evaluations: int | None
    architectures: int  # of the space
    repeats: int  # in a row
    start: int  # trials that a warm start told; their repeats are another search's

    def left(self, study: Study) -> int:
        """How many architectures may be asked for without exceeding either limit."""
        trials = self.trials - len(study)
        return trials if self.evaluations is None else min(trials, self.evaluations - study.evaluations)

    def spent(self, study: Study) -> str:
        """Why the search is over; empty while it is not."""
        repeats = min(study.repeats_in_a_row, len(study) - self.start)
        if len(study) >= self.trials:
            return f"{len(study):,} trials are told"
        if self.evaluations is not None and study.evaluations >= self.evaluations:
            return f"{study.evaluations:,} networks are evaluated"
        if study.evaluations >= self.architectures:
            return f"the space is exhausted: all {self.architectures:,} architectures are evaluated"
        if repeats >= self.repeats:
            return f"the last {repeats:,} trials brought no new network ({study.evaluations:,} are evaluated)"
        return ""


def _within(searcher: Searcher, study: Study, start: int) -> list[Trial]:
    """The trials within the searcher's limits: all of its own, and what fits of those that a warm start told it."""
    feasible: Feasible | None = getattr(searcher, "feasible", None)
    trials = study.trials()
    return [trial for trial in trials[:start] if feasible is None or feasible(trial.arch)] + trials[start:]


# -- one batch -----------------------------------------------------------------------------------------------------


def _ask(searcher: Searcher, n: int) -> list[Arch]:
    asked = searcher.ask(n)
    feasible: Feasible | None = getattr(searcher, "feasible", None)
    assert len(asked) <= n, f"{type(searcher).__name__} was asked for {n} architectures and returned {len(asked)}"
    for arch in asked:
        assert arch in searcher.space, f"{arch} is not in space {searcher.space.name!r}"
        assert feasible is None or feasible(arch), f"{arch} is outside the limits {feasible.limits}"
    return asked


def _told(asked: Sequence[Arch], scorer: "_Scorer", study: Study) -> list[Trial]:
    """The trials of one batch; only networks that neither study nor batch has evaluated before are evaluated."""
    forms = [study.space.normal_form(arch) for arch in asked]
    new: dict[str, Arch] = {}
    for form in forms:
        if study.first_of(form.key) is None:
            new.setdefault(form.key, form)
    started = time.perf_counter()
    outcomes = dict(zip(new, scorer(list(new.values())), strict=True))
    seconds = (time.perf_counter() - started) / max(1, len(new))
    told: list[Trial] = []
    for number, (arch, form) in enumerate(zip(asked, forms, strict=True), start=len(study)):
        repeat = new.pop(form.key, None) is None
        first = study.first_of(form.key)
        metrics, failed = outcomes[form.key] if first is None else (first.metrics, first.failed)
        told.append(Trial(number, arch, form.key, metrics, repeat, 0.0 if repeat else seconds, study.asks, failed))
    return told


Outcome = tuple[Mapping[str, float], str]
"""Metrics and an empty reason, or no metrics and the reason of the failure."""


class _Scorer:
    """Evaluates, tells failures from scores, and gives up after too many failures in a row."""

    def __init__(self, evaluate: Evaluate, metric: str, *, max_failures: int) -> None:
        self._evaluate = evaluate
        self._metric = metric
        self._max_failures = max_failures
        self._reasons: list[str] = []  # of the failures in a row

    def __call__(self, archs: Sequence[Arch]) -> list[Outcome]:
        raised: Exception | None = None
        results: Sequence[Mapping[str, float] | None] = [None] * len(archs)
        try:
            results = self._evaluate(archs) if archs else []
        except RunError:  # not the architectures' fault: nothing more can be evaluated
            raise
        except Exception as error:
            raised = error
            traceback = _log.isEnabledFor(logging.DEBUG)
            _log.warning("evaluating %d architectures raised %s", len(archs), _reason(error), exc_info=traceback)
        if raised is not None and len(archs) > 1:
            return [outcome for arch in archs for outcome in self([arch])]
        if len(results) != len(archs):
            raise InputError(
                f"evaluate returned {len(results)} results for {len(archs)} architectures; return one for each"
            )
        outcomes = [
            self._outcome(arch, result) if raised is None else ({}, _reason(raised))
            for arch, result in zip(archs, results, strict=True)
        ]
        self._count(outcomes, archs, cause=raised)
        return outcomes

    def _outcome(self, arch: Arch, result: Mapping[str, float] | None) -> Outcome:
        """The metrics as plain floats."""
        if result is None:
            return {}, "evaluate returned None"
        if not isinstance(result, Mapping):
            raise InputError(f"evaluate returned {result!r} for {arch.key}; return a mapping from metric to number")
        try:
            metrics = {name: float(value) for name, value in result.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"architecture {arch.key} was scored {dict(result)}; metrics are numbers") from error
        value = _searched(arch.key, metrics, self._metric)
        if not math.isfinite(value):
            return {}, f"evaluate returned {self._metric.removeprefix('-')}={value}"
        return metrics, ""

    def _count(self, outcomes: Sequence[Outcome], archs: Sequence[Arch], *, cause: Exception | None) -> None:
        for arch, (_, reason) in zip(archs, outcomes, strict=True):
            self._reasons = [*self._reasons, f"{arch.key}: {reason}"] if reason else []
            if len(self._reasons) >= self._max_failures:
                raise RunError(
                    f"{len(self._reasons)} evaluations in a row failed ({'; '.join(self._reasons[-3:])}); what was "
                    "recorded before is intact: repair the evaluation and search again, or raise max_failures"
                ) from cause


def _reason(error: Exception) -> str:
    """One line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _searched(key: str, metrics: Mapping[str, float], metric: str) -> float:
    """The value of the searched metric."""
    name = metric.removeprefix("-")
    if name not in metrics:
        raise InputError(f"architecture {key} was scored without {name!r}, which is searched; {nearest(name, metrics)}")
    return metrics[name]


# -- resume --------------------------------------------------------------------------------------------------------


def _resume(searcher: Searcher, study: Study, settings: Mapping[str, Any], resume: str) -> int:
    """Brings a fresh searcher to where the record ends; returns how many trials it was told without being asked."""
    recorded = study.settings
    trials = study.trials()
    start = 0
    if resume == "warm":
        start = len(trials)
        for trial in trials:
            if not trial.failed and not math.isfinite(_searched(trial.key, trial.metrics, searcher.metric)):
                raise InputError(
                    f"trial {trial.number} of study {study} has no finite {searcher.metric!r} to learn from"
                )
    elif recorded is not None:
        start = recorded.pop(_TOLD_AT_START, 0)
        _check_settings(study, recorded, settings)
    done = _restored(searcher, study) if resume == "exact" and recorded is not None else 0
    if start and not done:
        searcher.tell(trials[:start])
    _replay(searcher, study, max(start, done))
    if resume == "warm" or recorded is None:
        study.set_settings({**settings, _TOLD_AT_START: start})
    return start


class _Snapshots:
    """Keeps the state of a searcher beside the trials that led to it."""

    def __init__(self, searcher: Searcher, study: Study) -> None:
        self._searcher = searcher
        self._study = study
        self._last = time.monotonic()
        self._trials = len(study)  # at the last one; what the study held before can be replayed again

    def keep(self, *, every: float = 0.0) -> None:
        """Makes one, unless nothing is new or the last is younger than `every` seconds."""
        new = len(self._study) > self._trials
        if isinstance(self._searcher, Restorable) and new and time.monotonic() - self._last >= every:
            self._study.set_snapshot(self._searcher.snapshot())
            self._last, self._trials = time.monotonic(), len(self._study)


def _restored(searcher: Searcher, study: Study) -> int:
    """Brings a searcher to the study's snapshot; returns how many trials it has been told, 0 without one."""
    snapshot = study.snapshot if isinstance(searcher, Restorable) else None
    if snapshot is None or not isinstance(searcher, Restorable):
        return 0
    try:
        searcher.restore(snapshot[1])
    except InputError as error:
        _log.warning("study %s is replayed from its start: %s", study, error)
        return 0
    return snapshot[0]


def _check_settings(study: Study, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name in {**recorded, **settings}:  # the class comes first: another one has other parameters
        old, new = recorded.get(name, "absent"), settings.get(name, "absent")
        if old != new:
            raise InputError(
                f"study {study} was searched with {name}={old!r}, and now {name}={new!r} is asked for; keep the "
                'setting, use another study file, or give resume="warm"'
            )


def _replay(searcher: Searcher, study: Study, start: int) -> None:
    for n, batch in study.batches():
        if batch[0].number < start:
            continue
        asked, recorded = searcher.ask(n), [trial.arch for trial in batch]
        if asked != recorded:
            at = next(i for i, (new, old) in enumerate(zip_longest(asked, recorded)) if new != old)
            new, old = (archs[at].key if at < len(archs) else "nothing" for archs in (asked, recorded))
            raise InputError(
                f"replaying trial {batch[0].number + at} of study {study}, {type(searcher).__name__} asks for {new} "
                f"where the record holds {old}: the searcher is not fresh, or its code has changed; pass a fresh one, "
                'use another study file, or give resume="warm"'
            )
        searcher.tell(batch)
