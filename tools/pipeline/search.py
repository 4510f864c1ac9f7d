"""Searching a trained supernet and testing what was found, as functions over a run."""

import dataclasses
import inspect
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from searchers import Study, Trial, search
from searchers.catalog import searcher_maker, searcher_settings
from searchers.pareto import hypervolume, pareto_front
from searchers.study import score
from supernet import Arch
from supernet.config import Train
from supernet.cost import Feasible, LatencyTable
from supernet.errors import InputError, RunError, nearest
from supernet.files import read_json, write_json
from supernet.progress import progress
from supernet.ranking.statistics import Difference, json_safe, paired, welch
from supernet.scoring.cache import tied_with_best
from supernet.scoring.parallel import ParallelEvaluator
from supernet.scoring.shared_weights import SharedWeights
from supernet.training.distributed import current
from supernet_tools.pipeline.stages import Run, random_feasible, timed, true_accuracies

COSTS = "costs.json"


def create_searcher(name: str, run: Run, feasible: Feasible, seed: int, settings: Mapping[str, str]) -> Any:
    """A searcher by name, with hyperparameters given as text."""
    known = searcher_settings(name)
    values = {}
    for key, text in settings.items():
        if key not in known:
            raise InputError(f"searcher {name!r} has no setting {key!r}; {nearest(key, known)}")
        default = known[key].default
        try:
            loaded = text if isinstance(default, str) else json.loads(text)
            values[key] = loaded if default is None or isinstance(default, str) else type(default)(loaded)
        except (ValueError, TypeError):
            raise InputError(f"{key}={text!r} is no {type(default).__name__}") from None
    values = defaults(known, run.kind.metric) | values
    limits = feasible if feasible.limits else None
    searcher = searcher_maker(name)(run.supernet.space, seed=seed, feasible=limits, **values)
    scored = (*run.kind.metrics, *run.cost.costs)
    for objective in getattr(searcher, "objectives", ()):
        if objective.removeprefix("-") not in scored:
            raise InputError(f"objective {objective!r} is not among what is scored; {nearest(objective, scored)}")
    return searcher


def defaults(known: Mapping[str, inspect.Parameter], metric: str) -> dict[str, Any]:
    """What a searcher maximises where nothing is said: where its defaults say accuracy, the metric of the run."""
    if metric == "accuracy":
        return {}
    found: dict[str, Any] = {"metric": metric} if "metric" in known else {}
    if "objectives" in known:
        found["objectives"] = tuple(metric if o == "accuracy" else o for o in known["objectives"].default)
    return found


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
    verbose: bool = True,
) -> dict[str, Any]:
    """Search a trained supernet; the study in `search/NAME/` goes on where it ended. Returns its summary.

    In a process group all ranks score, and only rank 0 searches; the others return an empty summary.
    """
    world = current()
    evaluate = run.shared_weights(bn_batches=bn_batches, costs=world.size == 1)
    shared = ParallelEvaluator(evaluate, run.supernet.space, world, costs=run.cost, balance="macs")
    if not world.main:
        shared.serve()
        return {}
    folder = run.folder / "search" / name
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(run.cost, LatencyTable):
        write_json(folder / COSTS, {"format": 1, "latency_batch": run.cost.batch})
    scorer = shared if world.size > 1 else evaluate
    try:
        with Study(folder / "study.db", run.supernet.space) as study:
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
            return _summary(run, study, best, searcher, evaluate)
    finally:
        shared.close()


class _Shown:
    """What a running search says: a line after each trial, and on a terminal the best networks in a table."""

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
    """The best, the Pareto front and its hypervolume, and what cannot be told from the best by its images.

    The front is of the searcher's objectives, score and MACs by default; the hypervolume is its share of the box
    between the worst and the best scored value of each objective.
    """
    space, told, metric = run.supernet.space, study.trials(), searcher.metric
    scored = [t for t in told if not t.failed and not t.repeat]
    objectives = getattr(searcher, "objectives", (metric, "-macs"))
    front = pareto_front(scored, objectives)
    points = [[score(t, o) for o in objectives] for t in scored]
    worst, ideal = ([edge(values) for values in zip(*points, strict=True)] for edge in (min, max))
    shown = dict.fromkeys([*(o.removeprefix("-") for o in objectives), "params"])
    box = math.prod(high - low for low, high in zip(worst, ideal, strict=True))
    covered = hypervolume([[score(t, o) for o in objectives] for t in front], worst) / box if box else 1.0
    summary = {
        "arch": dict(space.normal_form(best.arch)),
        "key": best.key,
        "score": best.metrics[metric.removeprefix("-")],
        "macs": best.metrics["macs"],
        "params": best.metrics["params"],
        "trials": len(told),
        "evaluations": sum(not t.repeat for t in told),
        "failed": sum(bool(t.failed) for t in told),
        "seconds": sum(t.seconds for t in told),
        "ended": study.ended,
        "front": [
            {"arch": dict(space.normal_form(t.arch)), **{name: t.metrics[name] for name in shown}} for t in front
        ],
        "hypervolume": covered,
    }
    if evaluate.cache is not None and run.kind.metric == "accuracy":  # mAP is no mean over images
        forms = [space.normal_form(t.arch) for t in scored]
        cheapest, *others = tied_with_best(
            evaluate.cache, evaluate.context, archs=forms, cost=lambda arch: run.cost(arch)["macs"]
        )
        summary["tied"] = 1 + len(others)
        summary["cheapest_tied"] = {"arch": dict(cheapest), "macs": run.cost(cheapest)["macs"]}
    return summary


def best_arch(run: Run, name: str) -> Arch:
    """The best architecture that a search of this run found, by its own metric and within its own limits."""
    (best,), _ = searched_top(run, name, 1)
    return best


def searched_top(run: Run, name: str, n: int) -> tuple[list[Arch], Feasible]:
    """The `n` best distinct networks of a search, by its own metric and within its own limits, and those limits."""
    folder = run.folder / "search" / name
    if not (folder / "study.db").exists():
        raise InputError(f"{run.folder} has no search {name!r}; run tools/search.py first, or give --arch")
    with Study(folder / "study.db", run.supernet.space) as study:
        settings, trials = study.settings or {}, study.trials()
    metric, limits = settings.get("metric", "accuracy"), settings.get("feasible") or {}
    costs = timed(run, read_json(folder / COSTS)["latency_batch"]).cost if "latency" in limits else run.cost
    feasible = Feasible(costs, limits)  # a warm start may have told what is outside
    scored: dict[str, Trial] = {}
    for trial in trials:
        if not trial.failed and feasible(trial.arch) and math.isfinite(score(trial, metric)):
            scored.setdefault(trial.key, trial)
    if len(scored) < n:
        raise InputError(f"the search {name!r} scored {len(scored)} networks, not {n}; search on, or take fewer")
    best = sorted(scored.values(), key=lambda t: (-score(t, metric), t.number))[:n]
    return [run.supernet.space.normal_form(trial.arch) for trial in best], feasible


def control_stage(
    run: Run, search: str, train: Train, *, top: int, random: int, seeds: int = 1, verbose: bool = True
) -> dict[str, Any]:
    """Retrain the best of a search and random networks within its limits, by one recipe and the same seeds."""
    best, feasible = searched_top(run, search, top)
    spare = random_feasible(run, feasible, random + top, train.seed)  # of which the search may have found some
    controls = [arch for arch in spare if arch not in best][:random]
    found = true_accuracies(run, [*best, *controls], train, seeds=seeds, verbose=verbose)
    arms = {"top": best, "random": controls}
    kept = {arm: [found[a] for a in archs if None not in found[a]] for arm, archs in arms.items()}
    failed = [a.key for a in found if None in found[a]]
    if not kept["top"] or not kept["random"]:
        raise RunError(f"nothing to compare: the retrainings of {', '.join(failed)} failed; a lower --lr may help")
    means = {arm: [statistics.fmean(v for v in runs if v is not None) for runs in rows] for arm, rows in kept.items()}
    per_seed = {
        arm: [statistics.fmean(row[i] or 0.0 for row in rows) for i in range(seeds)] for arm, rows in kept.items()
    }
    over_networks, over_seeds = welch(means["top"], means["random"]), paired(per_seed["top"], per_seed["random"])
    document = {
        "format": 1,
        "search": search,
        "limits": feasible.limits,
        "recipe": dataclasses.asdict(train),
        "seeds": seeds,
        **{
            arm: [
                {"arch": dict(a), "key": a.key, "macs": run.cost(a)["macs"], run.kind.truth: list(found[a])}
                for a in archs
            ]
            for arm, archs in arms.items()
        },
        "failed": failed,
        "over_networks": dataclasses.asdict(over_networks),
        "over_seeds": dataclasses.asdict(over_seeds),
        "truth": run.kind.truth,
        "verdict": _compared(over_networks, failed, run.kind.metric),
    }
    if current().main:
        (run.folder / "fidelity").mkdir(exist_ok=True)
        write_json(run.folder / "fidelity" / f"control-{search}.json", json_safe(document))
    return document


def _compared(difference: Difference, failed: Sequence[str], metric: str) -> str:
    """Whether the search beat random, in words."""
    mean, (top, random) = difference.mean, difference.sizes
    if math.isnan(mean.low):
        word = "cannot be told from chance: a mean needs two networks at least"
    elif mean.low > 0:
        word = "the search beat random"
    else:
        word = "the search lost to random" if mean.high < 0 else "no difference is shown"
    seen = (
        ""
        if math.isnan(difference.detectable)
        else (f"; with power 0.8 it could have seen {difference.detectable:.4f} or more")
    )
    lost = f"; failed and left out: {', '.join(failed)}" if failed else ""
    return f"{word}: {top} searched less {random} random networks, {metric} {mean}{seen}{lost}"
