"""NSGA-II here, in Optuna and in pymoo on the published table, for tools/benchmarks/search.py."""

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

from supernet.space import Arch
from supernet_tools.benchmarks.curves import shown
from supernet_tools.benchmarks.oracles import Oracle, nasbench_macro
from supernet_tools.pipeline.command_line import print_table


def front(
    seeds: int = 30, first_seed: int = 0, evaluations: int = 300, populations: tuple[int, ...] = (20, 50, 100)
) -> None:
    """Hypervolume of accuracy and MACs on NAS-Bench-Macro, as a share of that of the table's Pareto front.

    NSGA-II here, in Optuna and, where it is installed, in pymoo at the same population sizes, and random search. A
    network counts once. The reference point is a tenth of the front's extent beyond its worst accuracy and MACs.

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
    if importlib.util.find_spec("pymoo") is None:
        print("pymoo is left out: it is not installed")
    else:
        runs |= {
            f"pymoo NSGA-II, N={n}": lambda s, n=n: pymoo_points(oracle, s, n, evaluations)  # type: ignore[misc]
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


def pymoo_points(oracle: Oracle, seed: int, population: int, evaluations: int) -> list[tuple[float, float]]:
    """What pymoo evaluates by its genetic algorithm for categorical variables with the survival of NSGA-II."""
    from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival  # type: ignore[import-not-found]
    from pymoo.core.mixed import MixedVariableGA  # type: ignore[import-not-found]
    from pymoo.core.problem import ElementwiseProblem  # type: ignore[import-not-found]
    from pymoo.core.variable import Choice  # type: ignore[import-not-found]

    points: dict[str, tuple[float, float]] = {}

    class Table(ElementwiseProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(vars={c.name: Choice(options=list(c.options)) for c in oracle.space.choices}, n_obj=2)

        def _evaluate(self, x: Mapping[str, Any], out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            key = oracle.space.normal_form(Arch(x)).key
            found = point(oracle.metrics[key])
            if len(points) < evaluations:
                points[key] = found
            out["F"] = [-value for value in found]

    problem = Table()
    algorithm = MixedVariableGA(pop_size=population, survival=RankAndCrowdingSurvival())
    algorithm.setup(problem, seed=seed, termination=("n_gen", 20 * evaluations), verbose=False)
    while len(points) < evaluations and algorithm.has_next():
        proposed = algorithm.ask()
        algorithm.evaluator.eval(problem, proposed)
        algorithm.tell(infills=proposed)
    return list(points.values())
