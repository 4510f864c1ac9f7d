"""NSGA-II of this project, of Optuna and of pymoo on the published table. Used by tools/benchmarks/search.py."""

import functools
import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from supernet.checked import Count, Seed
from supernet.space import Arch
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.benchmarks.oracles import Oracle, nasbench_macro
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from searchers.loop import Searcher

Point = tuple[float, float]
"""Accuracy and negated MACs of a network: both are maximised."""


class PointsOf(Protocol):
    """Runs one search and returns the networks that it evaluated."""

    def __call__(self, seed: int, population: int) -> list[Point]: ...


def front(
    seeds: Count = 30,
    first_seed: Seed = 0,
    evaluations: Count = 300,
    populations: tuple[Count, ...] = (20, 50, 100),
    peers: bool = True,
) -> None:
    """Hypervolume of accuracy and MACs on NAS-Bench-Macro, as a share of that of the table's Pareto front.

    Compares NSGA-II of this project, of Optuna and, where it is installed, of pymoo at the same population sizes, and
    random search. A network counts once. The reference point lies a tenth of the front's extent beyond its worst
    accuracy and MACs.

    Args:
        seeds: Searches per searcher.
        first_seed: Seed of the first search; the others count up from it.
        evaluations: Distinct networks per search.
        populations: Population sizes.
        peers: Whether Optuna and pymoo are compared.
    """
    import searchers

    oracle = nasbench_macro()
    reference, true_volume = reference_of(oracle)

    def nsga2(seed: int, population: int) -> list[Point]:
        return evaluated_points(
            oracle, searchers.NSGA2(oracle.space, seed=seed, population_size=population), evaluations
        )

    implementations: dict[str, PointsOf] = {
        "nsga2": nsga2,
        "Optuna NSGA-II": functools.partial(optuna_points, oracle, evaluations=evaluations),
        "pymoo NSGA-II": functools.partial(pymoo_points, oracle, evaluations=evaluations),
    }
    if not peers:
        implementations = {"nsga2": nsga2}
    elif importlib.util.find_spec("pymoo") is None:
        print("pymoo is left out: it is not installed")
        del implementations["pymoo NSGA-II"]
    searches: dict[str, Callable[[int], list[Point]]] = {
        f"{name}, N={population}": functools.partial(points, population=population)
        for name, points in implementations.items()
        for population in populations
    }
    searches["random"] = lambda seed: evaluated_points(
        oracle, searchers.RandomSearch(oracle.space, seed=seed), evaluations
    )
    rows: list[tuple[object, ...]] = [("Pareto front of the table", "1", "", "")]
    for name, points_of in searches.items():
        began = time.perf_counter()
        shares = [
            searchers.hypervolume(points_of(seed), reference) / true_volume
            for seed in range(first_seed, first_seed + seeds)
        ]
        seconds = time.perf_counter() - began
        rows.append((name, format_mean(shares, 4), f"{min(shares):.4f}", f"{seconds:.0f} s"))
    title = f"hypervolume after {evaluations} networks, share of the true front's, {seeds} seeds"
    print_table(title, ("searcher", "mean and 95 % interval", "least", "time"), rows)


def reference_of(oracle: Oracle) -> tuple[Point, float]:
    """Returns the reference point and the hypervolume of the oracle's own Pareto front."""
    from searchers import hypervolume

    best: list[Point] = []
    for candidate in sorted(map(point, oracle.metrics.values()), reverse=True):
        if not best or candidate[1] > best[-1][1]:
            best.append(candidate)
    low, high = ([pick(p[axis] for p in best) for axis in (0, 1)] for pick in (min, max))
    reference = (low[0] - 0.1 * (high[0] - low[0]), low[1] - 0.1 * (high[1] - low[1]))
    return reference, hypervolume(best, reference)


def point(metrics: Mapping[str, float]) -> Point:
    """Returns the objectives of a network from its row of the table."""
    return metrics["accuracy"], -metrics["macs"]


def evaluated_points(oracle: Oracle, searcher: "Searcher", evaluations: int) -> list[Point]:
    """Returns the distinct networks that a searcher of this project evaluates, one proposal at a time."""
    from searchers import Trial

    points: dict[str, Point] = {}
    while len(points) < evaluations and (archs := searcher.ask(1)):
        key = oracle.space.normal_form(archs[0]).key
        repeat = key in points
        searcher.tell([Trial.of(oracle.space, archs[0], oracle.metrics[key], number=len(points), repeat=repeat)])
        points[key] = point(oracle.metrics[key])
    return list(points.values())


def optuna_points(oracle: Oracle, seed: int, population: int, evaluations: int) -> list[Point]:
    """Returns the distinct networks that Optuna's NSGA-II evaluates in its own study; repeats cost it nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    points: dict[str, Point] = {}
    for _ in range(20 * evaluations):
        trial = study.ask()
        arch = Arch({c.name: cast(Any, trial.suggest_categorical(c.name, c.options)) for c in oracle.space.choices})
        key = oracle.space.normal_form(arch).key
        points[key] = point(oracle.metrics[key])
        study.tell(trial, list(points[key]))
        if len(points) >= evaluations:
            break
    return list(points.values())


def pymoo_points(oracle: Oracle, seed: int, population: int, evaluations: int) -> list[Point]:
    """Returns the distinct networks that pymoo evaluates: its mixed-variable GA with the survival of NSGA-II."""
    from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival
    from pymoo.core.mixed import MixedVariableGA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.core.variable import Choice

    points: dict[str, Point] = {}

    class Table(ElementwiseProblem):  # type: ignore[misc]  # pymoo is untyped
        def __init__(self) -> None:
            super().__init__(vars={c.name: Choice(options=list(c.options)) for c in oracle.space.choices}, n_obj=2)

        def _evaluate(self, x: Mapping[str, Any], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            key = oracle.space.normal_form(Arch(x)).key
            objectives = point(oracle.metrics[key])
            if len(points) < evaluations:
                points[key] = objectives
            out["F"] = [-value for value in objectives]

    problem = Table()
    algorithm = MixedVariableGA(pop_size=population, survival=RankAndCrowdingSurvival())
    algorithm.setup(problem, seed=seed, termination=("n_gen", 20 * evaluations), verbose=False)
    while len(points) < evaluations and algorithm.has_next():
        proposed = algorithm.ask()
        algorithm.evaluator.eval(problem, proposed)
        algorithm.tell(infills=proposed)
    return list(points.values())
