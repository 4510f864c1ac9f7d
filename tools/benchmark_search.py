"""Every searcher on spaces whose scores are known: python tools/benchmark_search.py regret --seeds 20, or front"""

import functools
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import tyro
from common import main, print_table

from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed
from supernet.space import Arch, Choice, SearchSpace

STALE = 2_000  # trials without a new network after which a search is given up
OPS = ("skip", "k3", "k5", "k7")


@dataclass(frozen=True)
class Oracle:
    """A space with the metrics of its networks by the key of their normal form; empty ones are failed trainings."""

    name: str
    space: SearchSpace
    metrics: Mapping[str, Mapping[str, float]]
    feasible: "Listed | None" = None

    @functools.cached_property
    def ranked(self) -> list[float]:
        """The scores, the best first."""
        return sorted((m["accuracy"] for m in self.metrics.values() if m), reverse=True)

    @property
    def goals(self) -> dict[str, float]:
        """What a score must reach: the best network (or one as good), one of the top ten, one of the top 1 %."""
        hundredth = math.ceil(len(self.ranked) / 100)
        ranks = {"the best": 1, "the top ten": min(10, len(self.ranked)), "the top 1 %": hundredth}
        return {name: self.ranked[rank - 1] for name, rank in ranks.items()}


@dataclass(frozen=True)
class Listed:
    """Confines a search to the networks of a table."""

    space: SearchSpace
    archs: tuple[Arch, ...]  # normal forms

    @property
    def limits(self) -> dict[str, float]:
        return {"networks": float(len(self.archs))}

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(arch.key for arch in self.archs)

    def __call__(self, arch: Arch) -> bool:
        return self.space.normal_form(arch).key in self._keys

    def sample(self, rng: Random) -> Arch:
        return rng.choice(self.archs)

    def count(self) -> int:
        return len(self.archs)

    def explain(self) -> str:
        return "the table has none"


# -- oracles -----------------------------------------------------------------------------------------------------------


def nasbench_macro() -> Oracle:
    """The 3,969 networks of NAS-Bench-Macro, each by the row of its normal form."""
    from supernet.spaces.nasbench_macro import nasbench_macro as chain
    from supernet.spaces.nasbench_macro import table

    space, rows = chain().space, table()
    forms = {space.normal_form(arch) for arch in rows}
    return Oracle("nasbench-macro", space, {form.key: rows[form] for form in forms})


def synthetic(kind: str, seed: int) -> Oracle:
    """A space of about 20,000 networks with made-up scores and costs, both a pure function of kind and seed.

    `additive`: every decision of seven adds its part. `interactions`: as much variance comes from tables over pairs of
    decisions. `conditional`: one to four layers, each with an operation and a width on a scale, with interactions; what
    is inactive adds nothing. A twentieth of the deviation is noise.
    """
    import numpy as np

    if kind == "conditional":
        choices = [Choice("depth", (1, 2, 3, 4), ordered=True)]
        for i in range(1, 5):
            when = None if i == 1 else ("depth", tuple(range(i, 5)))
            choices += [Choice(f"layer{i}.op", OPS, when), Choice(f"layer{i}.width", (16, 32, 64), when, ordered=True)]
    else:
        choices = [Choice(f"layer{i}", OPS) for i in range(7)]
    space = SearchSpace(f"{kind}-{seed}", choices)
    archs = list(space.enumerate())
    rows = np.array([space.to_indices(arch) for arch in archs])
    active = np.array([[c in on for c in choices] for on in map(space.active, archs)], dtype=float)
    rng = np.random.default_rng(derive_seed("oracle", kind, seed))
    options = [len(choice.options) for choice in choices]
    parts = sum(active[:, j] * rng.standard_normal(n)[rows[:, j]] for j, n in enumerate(options))
    cost = sum(active[:, j] * rng.random(n)[rows[:, j]] for j, n in enumerate(options))
    total = parts / parts.std()
    if kind != "additive":
        pairs = np.zeros(len(archs))
        for _ in choices:
            a, b = rng.permutation(len(choices))[:2]
            tables = rng.standard_normal((options[a], options[b]))
            pairs += active[:, a] * active[:, b] * tables[rows[:, a], rows[:, b]]
        total = total + pairs / pairs.std()
    total = total / total.std() + 0.05 * rng.standard_normal(len(archs))
    pairs_of = zip(archs, total, cost, strict=True)
    return Oracle(space.name, space, {a.key: {"accuracy": float(s), "macs": float(c)} for a, s, c in pairs_of})


def from_csv(path: Path, space_name: str) -> Oracle:
    """The networks of a CSV file (see `supernet.truth.read_truth`); searches are confined to them."""
    import torch

    from supernet.spaces import builder
    from supernet.truth import read_truth

    with torch.device("meta"):
        space = builder(space_name)().space
    values = read_truth(path, space).values
    if sum(value is not None for value in values.values()) < 2:
        raise InputError(f"{path} has fewer than two networks with an accuracy; nothing can be searched")
    metrics = {form.key: {} if value is None else {"accuracy": value} for form, value in values.items()}
    return Oracle(path.stem, space, metrics, Listed(space, tuple(values)))


def oracle_of(name: str) -> Oracle:
    """`nasbench-macro`, or a kind of synthetic space and its seed (`interactions-3`)."""
    kind, _, seed = name.rpartition("-")
    if name == "nasbench-macro":
        return nasbench_macro()
    if kind not in ("additive", "interactions", "conditional") or not seed.isdigit():
        known = ("nasbench-macro", "additive-0", "interactions-0", "conditional-0")
        raise InputError(f"there is no oracle {name!r}; {nearest(name, known)}")
    return synthetic(kind, int(seed))


# -- searches ----------------------------------------------------------------------------------------------------------


def maker(text: str) -> Callable[..., Any]:
    """A searcher by its name in tools/search.py, with settings after a colon: `nsga2:population_size=20`."""
    from searching import SEARCHERS

    import searchers

    name, _, settings = text.partition(":")
    if name not in SEARCHERS:
        raise InputError(f"there is no searcher {name!r}; {nearest(name, SEARCHERS)}")
    kind, _, preset = SEARCHERS[name].partition(".")
    make = getattr(searchers, kind)
    known = inspect.signature(make).parameters
    values: dict[str, Any] = {}
    for pair in filter(None, settings.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"settings of {name!r} are NAME=VALUE with commas between, not {pair!r}")
        if key not in known or key in ("space", "seed", "feasible"):
            raise InputError(f"searcher {name!r} has no setting {key!r}; {nearest(key, known)}")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value

    return functools.partial(getattr(make, preset) if preset else make, **values)


def curve(oracle: Oracle, searcher: Any, *, evaluations: int, batch: int) -> list[float]:
    """The best score after each distinct evaluation, up to the best network, the budget or the end of the search."""
    from searchers import Trial

    best: list[float] = []
    seen: set[str] = set()
    trials = last = 0
    while trials < last + STALE and (archs := searcher.ask(batch)):
        told = []
        for arch in archs:
            key = oracle.space.normal_form(arch).key
            metrics, repeat = oracle.metrics[key], key in seen
            told.append(Trial(trials, arch, key, metrics, repeat, 0.0, 0, "" if metrics else "the table has no score"))
            trials += 1
            if not repeat:
                seen.add(key)
                last = trials
                best.append(max(best[-1] if best else -math.inf, metrics.get("accuracy", -math.inf)))
            if best[-1] >= oracle.ranked[0] or len(best) >= evaluations:
                return best
        searcher.tell(told)
    return best


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval by Student's t; the width is not a number for fewer than two values."""
    import numpy as np
    from scipy import stats

    n = len(values)
    if n < 2:
        return (values[0] if n else math.nan), math.nan
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def shown(values: Sequence[float], digits: int = 1) -> str:
    mean, half = interval(values)
    return "-" if math.isnan(mean) else f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def at(best: Sequence[float], evaluations: int) -> float:
    """The best score after so many evaluations; a search that ended before keeps what it had."""
    return best[min(evaluations, len(best)) - 1]


def regret(
    oracles: tuple[str, ...] = ("nasbench-macro", "additive-0", "interactions-0", "conditional-0"),
    csv: Path | None = None,
    space: str = "nasbench-macro",
    searchers: tuple[str, ...] = (),
    seeds: int = 20,
    first_seed: int = 0,
    evaluations: int = 500,
    batch: int = 1,
    points: tuple[int, ...] = (50, 100, 200),
    out: Path | None = None,
) -> None:
    """Distinct evaluations to the best network, to the top ten and to the top 1 %, and the regret on the way.

    The regret is the best score of the oracle less the best found. A searcher that does not fit a space is left out
    with its reason. Means with 95 % intervals over seeds; a goal's mean is of the searches that reached it, whose
    number stands beside it where it is not all.

    Args:
        oracles: nasbench-macro, or additive-SEED, interactions-SEED, conditional-SEED.
        csv: A table of a space with a column `arch` (see tools/fidelity.py), instead of the oracles.
        space: Of the CSV file.
        searchers: Names of tools/search.py, with settings as in nsga2:population_size=20; all by default.
        seeds: Searches of each.
        first_seed: The others follow.
        evaluations: After which a search ends.
        batch: Architectures asked for at a time.
        points: Evaluations at which the regret is told.
        out: Folder for the curves, regret-ORACLE.html and regret-ORACLE.json; only tables without.
    """
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name}={value} is too small; give at least 1")
    if out is not None:
        _plotly()
        out.mkdir(parents=True, exist_ok=True)
    from searching import SEARCHERS

    makers = {name: maker(name) for name in searchers or SEARCHERS}
    for oracle in [from_csv(csv, space)] if csv is not None else map(oracle_of, oracles):
        curves: dict[str, list[list[float]]] = {}
        seconds: dict[str, float] = {}
        for name, make in makers.items():
            began = time.perf_counter()
            try:
                curves[name] = [
                    curve(
                        oracle,
                        make(oracle.space, seed=s, feasible=oracle.feasible),
                        evaluations=evaluations,
                        batch=batch,
                    )
                    for s in range(first_seed, first_seed + seeds)
                ]
            except InputError as error:
                print(f"{name} is left out of {oracle.name}: {error}")
                continue
            seconds[name] = (time.perf_counter() - began) / max(1, sum(map(len, curves[name])))
        rows = [(name, *row(oracle, found, points), f"{1000 * seconds[name]:.1f}") for name, found in curves.items()]
        title = f"{oracle.name}: {len(oracle.ranked):,} networks, {seeds} seeds, batches of {batch}"
        columns = ("searcher", *oracle.goals, *(f"regret at {n}" for n in points), "ms each")
        print_table(title, columns, rows)
        if out is not None:
            document = {"oracle": oracle.name, "batch": batch, "best": oracle.ranked[0], "curves": curves}
            (out / f"regret-{oracle.name}.json").write_text(json.dumps(document), encoding="utf-8")
            plot(oracle, curves, evaluations).write_html(out / f"regret-{oracle.name}.html", include_plotlyjs=True)


def row(oracle: Oracle, curves: Sequence[Sequence[float]], points: Sequence[int]) -> list[str]:
    """The cells of one searcher."""
    cells = []
    for goal in oracle.goals.values():
        needed = [next((i for i, s in enumerate(best, start=1) if s >= goal), 0) for best in curves]
        reached = [float(n) for n in needed if n]
        cells.append(shown(reached) + ("" if len(reached) == len(needed) else f" ({len(reached)} of {len(needed)})"))
    return cells + [shown([oracle.ranked[0] - at(best, n) for best in curves], 3) for n in points]


def _plotly() -> Any:
    try:
        import plotly.graph_objects  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("--out draws with the package plotly, which is not installed; pip install plotly") from error
    return plotly.graph_objects


def plot(oracle: Oracle, curves: Mapping[str, Sequence[Sequence[float]]], evaluations: int) -> Any:
    """Mean regret by evaluations with 95 % bands over seeds, a colour per searcher."""
    from plotly.colors import qualitative  # type: ignore[import-not-found]

    objects = _plotly()
    figure = objects.Figure()
    for name, colour in zip(curves, qualitative.Dark24 * (1 + len(curves) // 24), strict=False):
        steps = list(range(1, evaluations + 1))
        bands = [interval([oracle.ranked[0] - at(best, n) for best in curves[name]]) for n in steps]
        mean, low, high = ([m + side * (0 if math.isnan(h) else h) for m, h in bands] for side in (0, -1, 1))
        style = {"legendgroup": name, "line": {"color": colour, "width": 1.5}}
        edges = {"x": steps + steps[::-1], "y": high + [max(value, 0.0) for value in low[::-1]]}
        figure.add_scatter(**edges, fill="toself", opacity=0.15, mode="none", fillcolor=colour, legendgroup=name,
                           showlegend=False, hoverinfo="skip")  # fmt: skip
        figure.add_scatter(x=steps, y=mean, name=name, mode="lines", **style)
    figure.update_layout(
        title=f"{oracle.name}: regret, mean and 95 % interval over seeds",
        xaxis_title="distinct evaluations", yaxis_title="regret (best score − best found)", xaxis_type="log",
    )  # fmt: skip
    return figure


# -- two objectives ----------------------------------------------------------------------------------------------------


def front(
    seeds: int = 30, first_seed: int = 0, evaluations: int = 300, populations: tuple[int, ...] = (20, 50, 100)
) -> None:
    """Hypervolume of accuracy and MACs on NAS-Bench-Macro, as a share of that of the table's Pareto front.

    NSGA-II here and in Optuna at the same population sizes, and random search. A network counts once. The reference
    point is a tenth of the front's extent beyond its worst accuracy and MACs.

    Args:
        seeds: Searches of each.
        first_seed: The others follow.
        evaluations: Distinct networks.
        populations: Sizes of the population.
    """
    import searchers

    oracle = nasbench_macro()
    reference, true = reference_of(oracle)
    rows: list[tuple[object, ...]] = [("Pareto front of the table", "1", "", "")]
    runs: dict[str, Callable[[int], list[tuple[float, float]]]] = {
        f"nsga2, N={n}": lambda s, n=n: told_points(  # type: ignore[misc]
            oracle, searchers.NSGA2(oracle.space, seed=s, population_size=n), evaluations
        )
        for n in populations
    }
    runs |= {
        f"Optuna NSGA-II, N={n}": lambda s, n=n: optuna_points(oracle, s, n, evaluations)  # type: ignore[misc]
        for n in populations
    }
    runs["random"] = lambda s: told_points(oracle, searchers.RandomSearch(oracle.space, seed=s), evaluations)
    for name, points in runs.items():
        began = time.perf_counter()
        found = [
            searchers.hypervolume(points(seed), reference) / true for seed in range(first_seed, first_seed + seeds)
        ]
        rows.append((name, shown(found, 4), f"{min(found):.4f}", f"{time.perf_counter() - began:.0f} s"))
    title = f"hypervolume after {evaluations} networks, share of the true front's, {seeds} seeds"
    print_table(title, ("searcher", "mean and 95 % interval", "least", "time"), rows)


def reference_of(oracle: Oracle) -> tuple[tuple[float, float], float]:
    """The reference point, and the hypervolume of the oracle's own Pareto front."""
    from searchers import hypervolume

    best: list[tuple[float, float]] = []
    for found in sorted(map(point, oracle.metrics.values()), reverse=True):
        if not best or found[1] > best[-1][1]:
            best.append(found)
    low, high = ([pick(p[axis] for p in best) for axis in (0, 1)] for pick in (min, max))
    reference = (low[0] - 0.1 * (high[0] - low[0]), low[1] - 0.1 * (high[1] - low[1]))
    return reference, hypervolume(best, reference)


def point(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["accuracy"], -metrics["macs"]


def told_points(oracle: Oracle, searcher: Any, evaluations: int) -> list[tuple[float, float]]:
    """What a searcher of ours evaluates, asked for one at a time."""
    from searchers import Trial

    points: dict[str, tuple[float, float]] = {}
    while len(points) < evaluations and (archs := searcher.ask(1)):
        key = oracle.space.normal_form(archs[0]).key
        searcher.tell([Trial(len(points), archs[0], key, oracle.metrics[key], key in points, 0.0, 0)])
        points[key] = point(oracle.metrics[key])
    return list(points.values())


def optuna_points(oracle: Oracle, seed: int, population: int, evaluations: int) -> list[tuple[float, float]]:
    """What Optuna's NSGA-II evaluates with its own two-objective study; a network again costs it nothing."""
    import optuna  # type: ignore[import-not-found]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    points: dict[str, tuple[float, float]] = {}
    for _ in range(20 * evaluations):
        trial = study.ask()
        arch = Arch({c.name: trial.suggest_categorical(c.name, tuple(c.options)) for c in oracle.space.choices})
        key = oracle.space.normal_form(arch).key
        points[key] = point(oracle.metrics[key])
        study.tell(trial, list(points[key]))
        if len(points) >= evaluations:
            break
    return list(points.values())


def run() -> None:
    tyro.extras.subcommand_cli_from_dict({"regret": regret, "front": front}, description=__doc__)


if __name__ == "__main__":
    main(run)
