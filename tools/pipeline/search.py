"""Searches a trained supernet, and reads what searches found."""

import contextlib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from searchers import Study, Trial, search
from searchers.catalog import PUBLISHED, budget_settings, searcher_class, searcher_maker, searcher_settings
from searchers.loop import ResumeError
from searchers.pareto import hypervolume, pareto_front
from searchers.study import score
from supernet.chain import Chain
from supernet.cost import Feasible, LatencyTable
from supernet.errors import InputError, nearest
from supernet.files import read_json, remove_temporaries, write_json
from supernet.paths import check_file, inside
from supernet.progress import progress
from supernet.ranking.rivals import evenly_spaced, scaled_networks
from supernet.scoring.cache import tied_with_best
from supernet.scoring.metrics import check_finite
from supernet.scoring.parallel import ParallelEvaluator
from supernet.scoring.racing import Race
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch
from supernet.training.checkpoint import load_weights
from supernet.training.distributed import current
from supernet_tools.pipeline.run import WEIGHTS, Run
from supernet_tools.pipeline.settings import parse_settings

Adjust = Callable[[Any], Any]
"""Returns an evaluator that wraps another."""
COSTS, BEST, FRONT = "costs.json", "best.json", "front.json"
COSTS_FORMAT = 2  # 2 has latencies in milliseconds
COSTLY = ("macs", "params", "latency_ms")
"""Costs by which equal scores are ordered after the objectives of a search, the cheapest first."""
VALUES_FORMAT = 1
"""The format of best.json and front.json."""
DECIDED = ("space", "seed", "feasible", "initial")
"""Arguments of a searcher that settings cannot set: the run and flags decide them."""
FLAGS = ("seed", "batch")
"""Settings of a study that are flags of the same name."""
SCALED = 4
"""One in so many trials is of a scaled network, for searchers that begin with given networks."""


def create_searcher(
    name: str,
    run: Run,
    feasible: Feasible,
    seed: int,
    settings: Sequence[str],
    *,
    metric: str | None = None,
    evaluations: int | None = None,
    study: str | None = None,
) -> Any:
    """A searcher by name.

    Settings that are not given suit the budget (`searchers.catalog.budget_settings`). A search that goes on keeps those
    of its study, whose budget was another one.

    Args:
        name: one of `searchers.list_searchers()`.
        run: whose space is searched.
        feasible: limits.
        seed: the seed of the searcher.
        settings: hyperparameters as NAME=VALUE.
        metric: maximised by default instead of that of the run, and scored beside the run's own.
        evaluations: networks that the search will score; None for the published settings.
        study: name of the search in the run, which may exist already.

    Raises:
        InputError: no such searcher, or settings that it does not take.
    """
    kind = searcher_class(name)
    values = _defaults(kind, metric or run.kind.metric)
    values |= parse_settings(kind, settings, owner=f"the searcher {name!r}", reserved=DECIDED)
    limits = feasible if feasible.limits else None
    suited = {} if evaluations is None else budget_settings(name, run.space, evaluations, values)
    recorded = {} if study is None else _study_settings(run, study)
    if recorded.get("searcher") == kind.__name__:
        suited = {key: recorded[key] for key in suited if key in recorded}
    published = name.endswith(PUBLISHED)
    if evaluations is not None and not published and "initial" in searcher_settings(name):
        before = recorded.get("initial", []) if recorded.get("searcher") == kind.__name__ else None
        suited["initial"] = _initial(run, feasible, evaluations // SCALED, before)
    searcher = searcher_maker(name)(run.space, seed=seed, feasible=limits, **{**suited, **values})
    if evaluations is not None:
        _warn_of_few(name, getattr(searcher, "schedule", ()) or (), evaluations)
    _check_scored(searcher, (*run.kind.metrics, *([metric] if metric else ()), *run.cost.costs))
    return searcher


def _initial(run: Run, feasible: Feasible, n: int, before: list[str] | None) -> list[Arch]:
    """Up to `n` scaled networks within the limits that spread over the costs, or those that a search has begun with."""
    archs = [arch for arch in scaled_networks(run.space) if feasible(arch)]
    if before is not None:  # its budget may have been another one
        return [arch for key in before for arch in archs if arch.key == key]
    return [archs[place] for place in evenly_spaced([float(run.cost(arch)["macs"]) for arch in archs], n)]


def _warn_of_few(name: str, schedule: Sequence[int], evaluations: int) -> None:
    """Warns of a budget that does not reach the last level of a searcher that proceeds by levels."""
    if evaluations < sum(schedule):
        warnings.warn(
            f"{name} needs {sum(schedule):,} evaluations to reach the largest cells ({' + '.join(map(str, schedule))} "
            f"over its levels), and {evaluations:,} are asked for; raise them, or choose a smaller beam",
            stacklevel=3,
        )


def _check_scored(searcher: Any, scored: Sequence[str]) -> None:
    """Raises `InputError` if a searcher's metric or one of its objectives is not among what is scored."""
    for objective in getattr(searcher, "objectives", ()):
        if objective.removeprefix("-") not in scored:
            raise InputError(f"objective {objective!r} is not among what is scored; {nearest(objective, scored)}")
    if searcher.metric.removeprefix("-") not in scored:
        raise InputError(f"metric={searcher.metric!r} is not among what is scored; {nearest(searcher.metric, scored)}")


def recorded_dtype(run: Run, name: str) -> str | None:
    """What the networks of a search of this run were scored in: "bfloat16" or "float32"; None before it has begun."""
    settings = _study_settings(run, name)
    return str(settings.get("evaluate.dtype", "float32")) if settings else None


def _study_settings(run: Run, name: str) -> Mapping[str, Any]:
    """The settings of a search of this run; empty if there is none yet, or another process has its study."""
    path = search_folder(run.folder, name) / "study.db"
    if not path.exists():
        return {}
    try:
        with Study(path, run.space, read=True) as study:
            return study.settings or {}
    except InputError:  # the search itself says what is wrong with it, or starts over where nothing was recorded
        return {}


def _defaults(searcher: type[Any], metric: str) -> dict[str, Any]:
    """What a searcher maximises by default: where its own default says accuracy, the metric of the run."""
    if metric == "accuracy":
        return {}
    parameters = inspect.signature(searcher).parameters
    values: dict[str, Any] = {"metric": metric} if "metric" in parameters else {}
    if "objectives" in parameters:
        default = parameters["objectives"].default
        values["objectives"] = tuple(metric if objective == "accuracy" else objective for objective in default)
    return values


def search_stage(
    run: Run,
    searcher: Any,
    name: str,
    *,
    trials: int,
    evaluations: int | None = None,
    batch: int = 1,
    bn_batches: int = 10,
    resume: Literal["exact", "warm"] = "exact",
    adjust: Adjust | None = None,
    bf16: bool = False,
    race: Race | None = None,
    settle: float = 0.0,
    verbose: bool = True,
    otherwise: str = "give another --out",
) -> dict[str, Any]:
    """Searches a trained supernet; the study in `search/NAME/` goes on where it ended.

    Args:
        run: supplies weights, images and costs.
        searcher: proposes architectures of its space.
        name: the name of the folder below `search/`.
        trials: ends the search: trials in the study, repeats included.
        evaluations: ends the search: distinct networks scored.
        batch: proposals asked for at a time.
        bn_batches: calibration batches per candidate.
        resume: "exact" goes on only under the same settings; "warm" reports the recorded trials to this searcher.
        adjust: wraps the evaluator, e.g. to add a corrected score.
        bf16: score in bfloat16.
        race: stop candidates that are unlikely to be among the best of a request.
        settle: end the calibration of a batch norm early (see `Recalibrate.settle`).
        verbose: show progress.
        otherwise: the remedy of a command for a study of other settings than those that it searches with.

    Returns:
        its summary; in a process group all ranks score and only rank 0 searches, and the others return an empty one.
    """
    folder = search_folder(run.folder, name)
    new = not (folder / "study.db").exists()
    study = _claimed_study(run, folder)
    try:
        with remedied(otherwise):
            return _searched(
                run,
                searcher,
                name,
                study,
                trials=trials,
                evaluations=evaluations,
                batch=batch,
                bn_batches=bn_batches,
                resume=resume,
                adjust=adjust,
                bf16=bf16,
                race=race,
                settle=settle,
                verbose=verbose,
            )
    except BaseException:
        if study is not None and new and not len(study):  # nothing was recorded, so the name stays free
            study.close()
            _remove_study(folder)
        raise
    finally:
        if study is not None:
            study.close()


@contextlib.contextmanager
def remedied(otherwise: str) -> Iterator[None]:
    """Says how a command, and not a Python call, deals with a study that cannot go on as it was.

    Args:
        otherwise: what to do unless the setting is kept, with the flags of the command.
    """
    try:
        yield
    except ResumeError as error:
        name, value = error.setting or ("", None)
        kept = f"repeat --{name} {value}, or " if name in FLAGS else "keep the setting, or " if name else ""
        raise InputError(f"{error.problem}; {kept}{otherwise}") from error


def _remove_study(folder: Path) -> None:
    """Removes a study in which nothing was recorded, with its folder if nothing else is there."""
    for name in ("study.db", "study.db-wal", "study.db-shm", "study.db.lock", COSTS, BEST, FRONT):
        (folder / name).unlink(missing_ok=True)
    for place in (folder, folder.parent):
        with contextlib.suppress(OSError):
            place.rmdir()


def _searched(
    run: Run,
    searcher: Any,
    name: str,
    study: Study | None,
    *,
    trials: int,
    evaluations: int | None,
    batch: int,
    bn_batches: int,
    resume: Literal["exact", "warm"],
    adjust: Adjust | None,
    bf16: bool,
    race: Race | None,
    settle: float,
    verbose: bool,
) -> dict[str, Any]:
    """Searches into an open study; without one, this rank only scores."""
    world = current()
    evaluate = run.shared_weights(bn_batches=bn_batches, costs=world.size == 1, bf16=bf16, race=race, settle=settle)
    shared = ParallelEvaluator(evaluate, run.space, world, costs=run.cost, balance="macs")
    if study is None:
        shared.serve()
        return {}
    scorer: Any = shared if world.size > 1 else evaluate
    scorer = scorer if adjust is None else adjust(scorer)
    try:
        with study:
            shown = _Shown(study, searcher.metric, evaluate, trials)
            with progress(f"search {name}", trials, start=len(study), below=shown.table, enabled=verbose) as update:
                best = search(
                    searcher,
                    scorer,
                    study,
                    trials=trials,
                    evaluations=evaluations,
                    batch=batch,
                    resume=resume,
                    on_trial=lambda trial: update(trial.number + 1, shown(trial)),
                )
            summary = _summary(run, study, best, searcher, evaluate)
            facts = {
                key: summary[key]
                for key in ("score", "tied", "trials", "evaluations", "end_to_end_ms")
                if key in summary
            }
            reported = next(t for t in study.trials() if t.key == summary["key"] and not t.failed)
            write_values(run, name, study, reported, **facts)
            return summary
    finally:
        shared.close()


def search_folder(run: Path, name: str) -> Path:
    """The folder of a search. Raises `InputError` for a name that leads out of the run, or one that is no folder's."""
    folder = inside(run, "search", name, what="the name of a search")
    check_file(folder / "study.db", "the study")
    return folder


def _claimed_study(run: Run, folder: Path) -> Study | None:
    """The study, locked before weights and images are loaded; None on the ranks that only score."""
    world = current()
    if not world.main:
        if world.from_main(b"") != b"claimed":
            raise InputError("rank 0 could not open the study")
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        study = Study(folder / "study.db", run.space)
        _check_costs(study)
        remove_temporaries(folder)  # under the study's lock
    except BaseException:
        world.from_main(b"refused")
        raise
    if isinstance(run.cost, LatencyTable):
        write_json(folder / COSTS, {"format": COSTS_FORMAT, "latency_batch": run.cost.batch, "latency_unit": "ms"})
    world.from_main(b"claimed")
    return study


def _check_costs(study: Study) -> None:
    """Raises `InputError` for a study of other metrics than those of this project's searches, which all have costs."""
    for trial in study.trials():
        lacking = [name for name in ("macs", "params") if name not in trial.metrics]
        if lacking and not trial.failed:
            study.close()
            raise InputError(
                f"trial {trial.number} of the study {study} has no {lacking[0]!r}, so it is of another search; give "
                "another --name"
            )


class _Shown:
    """What a running search shows: a line after each trial, and on a terminal the best networks in a table."""

    def __init__(self, study: Study, metric: str, evaluate: SharedWeights, trials: int, rows: int = 5) -> None:
        self.metric, self.evaluate, self.trials, self.rows = metric, evaluate, trials, rows
        self.best: list[Trial] = []
        self.began, self.first = time.monotonic(), len(study)
        self.done = self.first
        for trial in study.trials():
            self._keep(trial)

    def _keep(self, trial: Trial) -> None:
        if not trial.failed and not trial.repeat:
            ranked = sorted([*self.best, trial], key=lambda t: (-score(t, self.metric), t.number))
            self.best = ranked[: self.rows]

    @property
    def rate(self) -> float:
        """Trials per second since this process began."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def __call__(self, trial: Trial) -> str:
        self._keep(trial)
        self.done = trial.number + 1
        best = f"best {self.metric} {abs(score(self.best[0], self.metric)):.4f}, " if self.best else ""
        return f"{best}{self.rate:.1f} trials/s, {self.evaluate.hits} from the cache"

    def table(self) -> Any:
        """The best networks so far, for a terminal."""
        from rich.table import Table

        left = f"{(self.trials - self.done) / self.rate:.0f} s left" if self.rate > 0 else "time left unknown"
        caption = f"{self.rate:.1f} trials/s, {self.evaluate.hits} scores from the cache, {left}"
        names = [self.metric.removeprefix("-"), "macs", "params"]
        table = Table("trial", *names, "architecture", title="best so far", caption=caption)
        for trial in self.best:
            table.add_row(
                str(trial.number), *(f"{trial.metrics[n]:,.4g}" for n in names if n in trial.metrics), trial.key
            )
        return table


def _summary(run: Run, study: Study, best: Trial, searcher: Any, evaluate: SharedWeights) -> dict[str, Any]:
    """The best, the Pareto front and its hypervolume, and the networks statistically tied with the best.

    The front is of the searcher's objectives, score and MACs by default; the hypervolume is its share of the box
    between the worst and the best scored value of each objective. Of equal scores the cheapest is the best.
    """
    space, trials, metric = run.space, study.trials(), searcher.metric
    scored = [t for t in trials if not t.failed and not t.repeat]
    objectives = getattr(searcher, "objectives", (metric, "-macs"))
    front = pareto_front(scored, objectives)
    points = [[score(t, o) for o in objectives] for t in scored]
    worst, ideal = ([edge(values) for values in zip(*points, strict=True)] for edge in (min, max))
    shown = dict.fromkeys([*(o.removeprefix("-") for o in objectives), "params"])
    equal = [t for t in scored if score(t, metric) == score(best, metric) and _within(searcher, t)]
    best = min(equal, key=lambda t: _order(t, metric, objectives), default=best)
    box = math.prod(high - low for low, high in zip(worst, ideal, strict=True))
    covered = hypervolume([[score(t, o) for o in objectives] for t in front], worst) / box if box else 1.0
    summary = {
        "arch": dict(space.normal_form(best.arch)),
        "key": best.key,
        "score": best.metrics[metric.removeprefix("-")],
        "macs": best.metrics["macs"],
        "params": best.metrics["params"],
        "trials": len(trials),
        "evaluations": sum(not t.repeat for t in trials),
        "failed": sum(bool(t.failed) for t in trials),
        "seconds": sum(t.seconds for t in trials),
        "ended": study.ended,
        "front": [
            {"arch": dict(space.normal_form(t.arch)), **{name: t.metrics[name] for name in shown}} for t in front
        ],
        "hypervolume": covered,
    }
    if isinstance(run.cost, LatencyTable):
        summary["end_to_end_ms"] = run.cost.end_to_end(space.normal_form(best.arch))
        if (correction := run.cost.correction) is not None:
            summary["latency_error"] = correction.error
    if evaluate.cache is not None and metric == run.kind.metric == "accuracy":  # mAP is not a mean over images
        forms = [space.normal_form(t.arch) for t in scored]
        cheapest, *others = tied_with_best(
            evaluate.cache, evaluate.context, archs=forms, cost=lambda arch: run.cost(arch)["macs"]
        )
        summary["tied"] = 1 + len(others)
        summary["cheapest_tied"] = {"arch": dict(cheapest), "macs": run.cost(cheapest)["macs"]}
    return summary


def write_values(run: Run, name: str, study: Study, best: Trial, **facts: Any) -> None:
    """Writes `best.json` and `front.json` beside a study: what the search found, for people and other programs.

    Args:
        run: the run that was searched.
        name: the name of the search.
        study: open; of the run's space or of a wider one (MorphNet).
        best: the trial to report.
        facts: what else `best.json` says.
    """
    folder, space, settings = search_folder(run.folder, name), study.space, study.settings or {}
    head = {
        "format": VALUES_FORMAT,
        "search": name,
        "space": run.kind.space,
        "space_digest": space.digest(),
        "metric": settings.get("metric", run.kind.metric),
        "limits": settings.get("feasible") or {},
    }

    def network(trial: Trial) -> dict[str, Any]:
        return {"arch": dict(space.normal_form(trial.arch)), "key": trial.key, "metrics": dict(trial.metrics)}

    front, objectives = _front(study.trials(), settings, run)
    write_json(folder / BEST, {**head, **network(best), **facts})
    write_json(folder / FRONT, {**head, "objectives": list(objectives), "networks": [network(t) for t in front]})


def _front(trials: Sequence[Trial], settings: Mapping[str, Any], run: Run) -> tuple[list[Trial], tuple[str, ...]]:
    """The Pareto front of trials within the limits of a search, best score first, and its objectives."""
    metric = settings.get("metric", run.kind.metric)
    objectives = tuple(settings.get("objectives") or (metric, "-macs"))
    limits = settings.get("feasible") or {}
    distinct: dict[str, Trial] = {}
    for trial in trials:
        within = all(trial.metrics.get(name, -math.inf) <= limit for name, limit in limits.items())
        if not trial.failed and within and all(o.removeprefix("-") in trial.metrics for o in objectives):
            distinct.setdefault(trial.key, trial)
    return pareto_front(sorted(distinct.values(), key=lambda t: _order(t, metric, objectives)), objectives), objectives


def searched_front(run: Run, name: str) -> tuple[list[Trial], tuple[str, ...]]:
    """The Pareto front of a search of this run, best score first, and its objectives; also of one that goes on.

    Raises:
        InputError: no such search, or nothing was scored within its limits.
    """
    settings, trials = _recorded(run, name)
    front, objectives = _front(trials, settings, run)
    if not front:
        raise InputError(f"the search {name!r} has scored no network within its limits yet; search on, or give --arch")
    return front, objectives


def _within(searcher: Any, trial: Trial) -> bool:
    """Whether a trial is within the limits of a search; a warm start may have reported others."""
    feasible = getattr(searcher, "feasible", None)
    return feasible is None or bool(feasible(trial.arch))


def _order(trial: Trial, metric: str, objectives: Sequence[str]) -> tuple[float, ...]:
    """What trials are sorted by: the metric, then the objectives and costs, so that none dominates the first."""
    names = dict.fromkeys((*objectives, *(f"-{cost}" for cost in COSTLY)))
    known = [name for name in names if name.removeprefix("-") in trial.metrics]
    return (-score(trial, metric), *(-score(trial, name) for name in known), trial.number)


def best_arch(run: Run, name: str) -> Arch:
    """The best architecture that a search of this run found, by its own metric and within its own limits."""
    (best,), _ = searched_top(run, name, 1)
    return best


def searched_top(run: Run, name: str, n: int) -> tuple[list[Arch], Feasible]:
    """The `n` best distinct networks of a search, by its own metric and within its own limits, and those limits.

    Raises:
        InputError: no such search, or it scored fewer networks.
    """
    trials, feasible, _ = searched(run, name)
    if len(trials) < n:
        raise InputError(f"the search {name!r} scored {len(trials)} networks, not {n}; search on, or take fewer")
    return [run.space.normal_form(trial.arch) for trial in trials[:n]], feasible


def searched(run: Run, name: str) -> tuple[list[Trial], Feasible, str]:
    """The distinct networks that a search of this run scored within its limits, best first, its limits and its metric.

    Of networks with equal scores, the cheapest comes first, or whichever the objectives of the search prefer.

    Raises:
        InputError: no such search, or another release wrote it.
    """
    folder = search_folder(run.folder, name)
    settings, trials = _recorded(run, name)
    metric, limits = settings.get("metric", "accuracy"), settings.get("feasible") or {}
    if "latency" in limits:
        raise InputError(
            f"{folder / 'study.db'} was written by an older release, with a limit on latency in microseconds; search "
            "again under another name"
        )
    if "latency_ms" in limits:
        costs = read_json(folder / COSTS)
        batch = costs.get("latency_batch")
        if costs.get("format") != COSTS_FORMAT or type(batch) is not int or batch < 1:
            raise InputError(
                f"{folder / COSTS} was written by another release (format {costs.get('format')}, this one reads "
                f"{COSTS_FORMAT}) or is damaged; search again under another name"
            )
        run = run.with_latency(batch)
    feasible = Feasible(run.cost, limits)  # a warm start may have reported architectures outside of them
    scored: dict[str, Trial] = {}
    for trial in trials:
        if not trial.failed and feasible(trial.arch) and math.isfinite(score(trial, metric)):
            scored.setdefault(trial.key, trial)
    objectives = settings.get("objectives") or (metric, "-macs")
    return sorted(scored.values(), key=lambda trial: _order(trial, metric, objectives)), feasible, metric


def searches_of(folder: Path) -> list[str]:
    """The names of the searches in a run folder."""
    return sorted(study.parent.name for study in folder.glob("search/*/study.db"))


def _recorded(run: Run, name: str) -> tuple[dict[str, Any], list[Trial]]:
    """Settings and trials of a search. Raises `InputError` if there is none, with the names of those that there are."""
    folder = search_folder(run.folder, name)
    if not (folder / "study.db").exists():
        others = searches_of(run.folder)
        remedy = f"it has {', '.join(others)}; name one with --search" if others else "run tools/search.py first"
        raise InputError(f"{run.folder} has no search {name!r}; {remedy}, or give --arch")
    with Study(folder / "study.db", run.space, read=True) as study:
        return dict(study.settings or {}), list(study.trials())


def supernet_with(run: Run, weights: Path) -> Chain:
    """The supernet of a run with other weights, from a run folder or a file, on the run's device."""
    supernet = run.kind.supernet(run.summary)
    load_weights(weights / WEIGHTS if weights.is_dir() else weights, supernet)
    return supernet.eval().to(run.config.train.device)


def shared_scores(
    run: Run, archs: Sequence[Arch], *, bn_batches: int = 10, weights: Path | None = None, verbose: bool = True
) -> dict[Arch, dict[str, float]]:
    """Shared-weight metrics of many networks, without costs.

    Args:
        run: supplies weights and images.
        archs: architectures of the run's space.
        bn_batches: calibration batches per candidate.
        weights: a run folder or file with other weights of the same supernet.
        verbose: show progress.
    """
    supernet = None if weights is None else supernet_with(run, weights)
    evaluate = run.shared_weights(bn_batches=bn_batches, costs=False, supernet=supernet)
    scores: dict[Arch, dict[str, float]] = {}
    with progress("scoring", len(archs), enabled=verbose) as update:
        for start in range(0, len(archs), 64):
            group = archs[start : start + 64]
            scores |= zip(group, evaluate(group), strict=True)
            for arch in group:
                check_finite(scores[arch], f"architecture {arch.key}")
            update(len(scores), f"{evaluate.hits} from the cache")
    return scores
