"""The search loop: ask for architectures, evaluate the new ones, record them and report them to the searcher.

A search resumes exactly by replaying its record.
"""

import inspect
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Real
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from annotated_types import Ge, Le

from searchers.study import Study, Trial, best_of
from supernet.checked import Rule, checked_arguments, shown
from supernet.errors import DamagedError, InputError, RunError, nearest
from supernet.space import Arch, SearchSpace

Evaluate = Callable[[Sequence[Arch]], Sequence[Mapping[str, float] | None]]
"""Takes normal forms and returns a flat mapping of metrics for each, in the same order; None for one that failed."""

REPEATS_IN_A_ROW = 1_000
"""A search ends after this many trials in a row, times the batch size, without a new network. Aging evolution repeats
about one trial in twenty by chance (identity) and a few more in a small space; a searcher that repeats a thousand in a
row has converged."""

SNAPSHOT_SECONDS = 30.0
"""Seconds between two snapshots of a searcher that makes them; a resume replays the trials after the last one."""

_WARM_TRIALS = "told_at_start"  # kept beside the settings: how many trials a warm start reported without asking

_log = logging.getLogger("searchers")


class Feasible(Protocol):
    """Limits on what an architecture may cost.

    It may offer `sample(rng) -> Arch`, a uniform draw within the limits. Without it, searchers draw from the whole
    space and reject what is outside.
    """

    @property
    def limits(self) -> Mapping[str, float]:
        """Limit by name of the cost, as the study records them."""

    def __call__(self, arch: Arch) -> bool:
        """Whether the architecture is within every limit. All architectures of one network get the same answer."""

    def explain(self) -> str:
        """Names the lowest cost that exists in a sentence, for the error when nothing fits."""


def _are_limits(limits: object) -> bool:
    return limits is None or (callable(limits) and hasattr(limits, "limits") and hasattr(limits, "explain"))


Limits = Annotated[Feasible | None, Rule("limits such as supernet.cost.Feasible, or None", _are_limits, alone=True)]
"""The argument `feasible` of a searcher."""
Metric = Annotated[
    str, Rule("the name of a metric, with a leading minus to minimise it", lambda name: name.removeprefix("-") != "")
]
"""The argument `metric` of a searcher."""
Asked = Annotated[int, Ge(0), Le(10**9)]
"""How many architectures `ask` is asked for."""


class Searcher(Protocol):
    """Proposes architectures and learns from their scores.

    A searcher draws from generators of its own only, so that the same sequence of `ask` and `tell` gives the same
    architectures. It keeps every constructor parameter as an attribute of the same name. A searcher with limits has an
    attribute `feasible` (see `Feasible`) and proposes only architectures within it.
    """

    space: SearchSpace
    metric: str  # maximised; with a leading minus ("-loss"), that metric is minimised

    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` architectures of the space, and none when nothing is left to propose."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns from the trials of one `ask`, or, at a warm start, from trials that it never proposed.

        A trial with a reason in `failed` has no metrics; it must not become a parent or be proposed again.
        """


@runtime_checkable
class Restorable(Protocol):
    """What a searcher whose `tell` is expensive can offer in addition, so that a resume need not replay everything."""

    def snapshot(self) -> bytes:
        """Returns its whole state as JSON or safetensors."""

    def restore(self, data: bytes) -> None:
        """Brings a fresh searcher with the same settings to the state of a snapshot, so that it proposes the same next.

        Raises:
            InputError: the snapshot cannot be read; the searcher is as fresh as before.
        """


@checked_arguments
def search(
    searcher: Searcher,
    evaluate: Evaluate,
    study: Study,
    *,
    trials: int,
    evaluations: int | None = None,
    batch: Annotated[int, Le(10**6)] = 1,
    max_failures: int = 20,
    resume: Literal["exact", "warm"] = "exact",
    on_trial: Callable[[Trial], None] | None = None,
) -> Trial:
    """Searches until a budget is spent or nothing new is left; `study.ended` says which.

    An interrupted search continues when this is called again with a fresh searcher and the same study. Its trials are
    then those of an uninterrupted run, except for `seconds`. The study keeps a snapshot of a `Restorable` searcher.

    An architecture whose evaluation raises, or returns None or a metric that is not finite, becomes a failed trial with
    its reason; the search continues and does not evaluate it again. If evaluating a batch raises, its members are
    evaluated one by one.

    Args:
        searcher: a fresh one; the trials in the study are replayed through it.
        evaluate: receives normal forms, each distinct network once per study, up to `batch` at a time. It may have an
            attribute `settings`, a mapping of what its scores depend on; the study then refuses other settings.
        study: records trials before they are reported to the searcher; the trials it already has count for the budgets.
        trials: the search ends at this number of trials, which includes repeats of a network with its known score.
        evaluations: the search ends at this number of distinct networks; None for no limit.
        batch: how many architectures to ask for at a time.
        max_failures: this many failed evaluations in a row end the search with an error; 1 tolerates none. The batch in
            which it happens is not recorded, so that it is evaluated again once the cause is repaired.
        resume: `"exact"` replays the record and refuses changed settings; `"warm"` reports everything recorded to the
            searcher at once, accepts any settings, and does not claim to repeat another run.
        on_trial: called for every new trial, after it is recorded and reported.

    Returns:
        the best evaluated trial; if tied, the one with the fewest MACs (where trials have them), then the earliest.

    Raises:
        InputError: a budget below 1, changed settings, or an evaluation that returns the wrong number of results,
            metrics that are not numbers, or metrics without `searcher.metric`. What was recorded before stays recorded.
        RunError: `max_failures` evaluations in a row failed, with their reasons; or the evaluator raised it itself.
        AssertionError: the searcher proposed an architecture outside its space or its limits.
    """
    numbers = {"trials": trials, "evaluations": evaluations, "batch": batch, "max_failures": max_failures}
    _check_arguments(searcher, study, numbers, resume)
    _check_callable(evaluate)
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
        archs = _ask(searcher, n)
        if not archs:
            ended = f"{type(searcher).__name__} has nothing new to propose after {len(study):,} trials"
            break
        new_trials = _evaluated(archs, scorer, study)
        study.append(new_trials, asked=n)
        searcher.tell(new_trials)
        snapshots.keep(every=SNAPSHOT_SECONDS)
        if on_trial is not None:
            for trial in new_trials:
                on_trial(trial)
    snapshots.keep()
    study.ended = ended
    _log.info("search ended: %s", ended)
    return best_of(_within(searcher, study, start), searcher.metric)


def settings_of(searcher: Searcher) -> dict[str, Any]:
    """The settings that a study compares on resume: the class, and every constructor parameter by its attribute.

    A space is written as its digest, a `Feasible` as its limits, and a value that JSON cannot hold as the name of its
    type.
    """
    kind = type(searcher)
    settings: dict[str, Any] = {"searcher": kind.__name__}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            assert hasattr(searcher, name), f"{kind.__name__} must keep its parameter {name!r} as an attribute"
            settings[name] = _plain(getattr(searcher, name))
    return settings


def _settings(searcher: Searcher, evaluate: Evaluate, batch: int) -> dict[str, Any]:
    """The settings that must not change within a study: the searcher's, the batch size, and what scores depend on."""
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
        if value is None and name == "evaluations":
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{name}={value!r} should be an integer of at least 1")
        if value < 1:
            raise InputError(f"{name}={value} is too small; give at least 1")
    if resume not in ("exact", "warm"):
        raise InputError(f"resume={resume!r} is unknown; {nearest(resume, ('exact', 'warm'))}")
    if searcher.space.digest() != study.space.digest():
        raise InputError(
            f"the searcher is for space {searcher.space.name!r} ({searcher.space.digest()}), but study {study} is of "
            f"{study.space.name!r} ({study.space.digest()}); build both from the same space"
        )


def _check_callable(evaluate: Evaluate) -> None:
    """Raises `InputError` if a function does not take one argument, as every evaluation would."""
    try:
        signature = inspect.signature(evaluate)
    except (TypeError, ValueError):  # some built-in functions do not say what they take
        return
    try:
        signature.bind([])
    except TypeError as error:
        raise InputError(f"evaluate={shown(evaluate)} should take one argument, a list of Arch: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Budget:
    """What ends a search: the two budgets of the caller, and two bounds that stop it when nothing new can come."""

    trials: int
    evaluations: int | None
    architectures: int  # of the space
    repeats: int  # in a row
    start: int  # trials that a warm start reported; their repeats belong to another search

    def left(self, study: Study) -> int:
        """How many architectures can be asked for without exceeding either budget."""
        trials = self.trials - len(study)
        return trials if self.evaluations is None else min(trials, self.evaluations - study.evaluations)

    def spent(self, study: Study) -> str:
        """Why the search is over; empty while it is not."""
        repeats = min(study.repeats_in_a_row, len(study) - self.start)
        if len(study) >= self.trials:
            return f"{len(study):,} trials are done"
        if self.evaluations is not None and study.evaluations >= self.evaluations:
            return f"{study.evaluations:,} networks are evaluated"
        if study.evaluations >= self.architectures:
            return f"the space is exhausted: all {self.architectures:,} architectures are evaluated"
        if repeats >= self.repeats:
            return f"the last {repeats:,} trials brought no new network ({study.evaluations:,} are evaluated)"
        return ""


def _within(searcher: Searcher, study: Study, start: int) -> list[Trial]:
    """The trials within the searcher's limits: all of its own, and those of a warm start that fit."""
    feasible: Feasible | None = getattr(searcher, "feasible", None)
    trials = study.trials()
    return [trial for trial in trials[:start] if feasible is None or feasible(trial.arch)] + trials[start:]


# -- one batch -----------------------------------------------------------------------------------------------------


def _ask(searcher: Searcher, n: int) -> list[Arch]:
    archs = searcher.ask(n)
    if not isinstance(archs, list | tuple):
        raise InputError(f"{type(searcher).__name__}.ask returned {shown(archs)}; it should return a list of Arch")
    feasible: Feasible | None = getattr(searcher, "feasible", None)
    assert len(archs) <= n, f"{type(searcher).__name__} was asked for {n} architectures and returned {len(archs)}"
    for arch in archs:
        assert arch in searcher.space, f"{arch} is not in space {searcher.space.name!r}"
        assert feasible is None or feasible(arch), f"{arch} is outside the limits {feasible.limits}"
    return archs


def _evaluated(archs: Sequence[Arch], scorer: "_Scorer", study: Study) -> list[Trial]:
    """The trials of one batch. A network is evaluated only if neither the study nor the batch has it already."""
    forms = [study.space.normal_form(arch) for arch in archs]
    new: dict[str, Arch] = {}
    for form in forms:
        if study.first_of(form.key) is None:
            new.setdefault(form.key, form)
    started = time.perf_counter()
    outcomes = dict(zip(new, scorer(list(new.values())), strict=True))
    seconds = (time.perf_counter() - started) / max(1, len(new))
    trials: list[Trial] = []
    for number, (arch, form) in enumerate(zip(archs, forms, strict=True), start=len(study)):
        repeat = new.pop(form.key, None) is None
        first = study.first_of(form.key)
        metrics, failed = outcomes[form.key] if first is None else (first.metrics, first.failed)
        trials.append(Trial(number, arch, form.key, metrics, repeat, 0.0 if repeat else seconds, study.asks, failed))
    return trials


Outcome = tuple[Mapping[str, float], str]
"""Metrics and an empty reason, or no metrics and the reason for the failure."""


class _Scorer:
    """Evaluates architectures, separates failures from scores, and gives up after too many failures in a row."""

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
        except (RunError, DamagedError):  # the architectures are not at fault: nothing more can be evaluated
            raise
        except Exception as error:
            raised = error
            traceback = _log.isEnabledFor(logging.DEBUG)
            _log.warning("evaluating %d architectures raised %s", len(archs), _reason(error), exc_info=traceback)
        if raised is not None and len(archs) > 1:
            return [outcome for arch in archs for outcome in self([arch])]
        if not isinstance(results, Sequence):
            raise InputError(
                f"evaluate returned a {type(results).__name__} for {len(archs)} architectures; return a list with one "
                "mapping for each"
            )
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
        """The metrics as plain floats, or the reason why they are no score."""
        if result is None:
            return {}, "evaluate returned None"
        if not isinstance(result, Mapping):
            raise InputError(f"evaluate returned {result!r} for {arch.key}; return a mapping from metric to number")
        if any(not isinstance(value, Real) or isinstance(value, bool) for value in result.values()):
            raise InputError(f"architecture {arch.key} was scored {shown(dict(result))}; metrics must be numbers")
        metrics = {name: float(value) for name, value in result.items()}
        _searched(arch.key, metrics, self._metric)
        bad = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
        return ({}, f"evaluate returned {', '.join(bad)}") if bad else (metrics, "")

    def _count(self, outcomes: Sequence[Outcome], archs: Sequence[Arch], *, cause: Exception | None) -> None:
        for arch, (_, reason) in zip(archs, outcomes, strict=True):
            self._reasons = [*self._reasons, f"{arch.key}: {reason}"] if reason else []
            if len(self._reasons) >= self._max_failures:
                raise RunError(
                    f"{len(self._reasons)} evaluations in a row failed ({'; '.join(self._reasons[-3:])}); what was "
                    "recorded before is intact: repair the evaluation and search again, or raise max_failures"
                ) from cause


def _reason(error: Exception) -> str:
    """The error as one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _searched(key: str, metrics: Mapping[str, float], metric: str) -> float:
    """The value of the metric that is searched for."""
    name = metric.removeprefix("-")
    if name not in metrics:
        hint = nearest(name, metrics)
        raise InputError(f"architecture {key} was scored without {name!r}, the metric of the search; {hint}")
    return metrics[name]


# -- resume --------------------------------------------------------------------------------------------------------


def _resume(searcher: Searcher, study: Study, settings: Mapping[str, Any], resume: str) -> int:
    """Brings a fresh searcher to where the record ends; returns how many trials a warm start reported to it."""
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
        start = recorded.pop(_WARM_TRIALS, 0)
        _check_settings(study, recorded, settings)
    done = _restored(searcher, study) if resume == "exact" and recorded is not None else 0
    if start and not done:
        searcher.tell(trials[:start])
    _replay(searcher, study, max(start, done))
    if resume == "warm" or recorded is None:
        study.set_settings({**settings, _WARM_TRIALS: start})
    return start


class _Snapshots:
    """Keeps the state of a searcher in the study, beside the trials that led to it."""

    def __init__(self, searcher: Searcher, study: Study) -> None:
        self._searcher = searcher
        self._study = study
        self._last = time.monotonic()
        self._trials = len(study)  # at the last snapshot; the trials before it were replayed once and can be again

    def keep(self, *, every: float = 0.0) -> None:
        """Makes a snapshot, unless nothing is new or the last one is younger than `every` seconds."""
        new = len(self._study) > self._trials
        if isinstance(self._searcher, Restorable) and new and time.monotonic() - self._last >= every:
            self._study.set_snapshot(self._searcher.snapshot())
            self._last, self._trials = time.monotonic(), len(self._study)


def _restored(searcher: Searcher, study: Study) -> int:
    """Restores the study's snapshot; returns how many trials the searcher then knows, 0 without a snapshot."""
    snapshot = study.snapshot if isinstance(searcher, Restorable) else None
    if snapshot is None or not isinstance(searcher, Restorable):
        return 0
    try:
        searcher.restore(snapshot[1])
    except InputError as error:
        _log.warning("study %s is replayed from its start: %s", study, error)
        return 0
    return snapshot[0]


class ResumeError(InputError):
    """Raised when a study cannot go on exactly as it was. The remedy is that of a Python call.

    Attributes:
        problem: the message without the remedy, for commands, which have another one.
        setting: the name and the recorded value of the setting that differs; None if all agree.
    """

    def __init__(self, problem: str, remedy: str, *, setting: tuple[str, object] | None = None) -> None:
        super().__init__(f'{problem}; {remedy}, use another study file, or give resume="warm"')
        self.problem, self.setting = problem, setting


def _check_settings(study: Study, recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name in {**recorded, **settings}:  # the class comes first, since another class has other parameters
        old, new = recorded.get(name, "absent"), settings.get(name, "absent")
        if old != new:
            raise ResumeError(
                f"study {study} was searched with {_shown(name, old)}, and now with {_shown(name, new)}",
                "keep the setting",
                setting=(name, old),
            )


def _shown(name: str, value: object) -> str:
    """A setting as a message shows it; limits are numbers with commas."""
    if name == "feasible" and isinstance(value, Mapping):
        limits = (f"{cost} <= {limit:,.10g}{' ms' if cost.endswith('_ms') else ''}" for cost, limit in value.items())
        return "the limits " + ", ".join(limits) if value else "no limits"
    return "no limits" if name == "feasible" and value is None else f"{name}={value!r}"


def _replay(searcher: Searcher, study: Study, start: int) -> None:
    for n, batch in study.batches():
        if batch[0].number < start:
            continue
        proposed, recorded = searcher.ask(n), [trial.arch for trial in batch]
        if proposed != recorded:
            at = next(i for i, (new, old) in enumerate(zip_longest(proposed, recorded)) if new != old)
            new, old = (archs[at].key if at < len(archs) else "nothing" for archs in (proposed, recorded))
            raise ResumeError(
                f"replaying trial {batch[0].number + at} of study {study}, {type(searcher).__name__} proposes "
                f"{new} where the record has {old}: the searcher is not fresh, or its code has changed",
                "pass a fresh one",
            )
        searcher.tell(batch)
