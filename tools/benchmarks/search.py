"""How fast does each searcher find the best networks, at equal numbers of evaluations?

    python tools/benchmarks/search.py regret --seeds 20       on tables and synthetic spaces whose best network is known
    python tools/benchmarks/search.py supernet runs/x         on the shared-weight scores of trained supernets
    python tools/benchmarks/search.py gains                   better than random search? paired differences
    python tools/benchmarks/search.py ladder                  do the surrogates of progressive search extrapolate?
    python tools/benchmarks/search.py front                   accuracy against MACs: NSGA-II here, in Optuna, in pymoo

Each prints one table per space with a row per searcher, means with 95 % intervals over seeds, and ends with it.
"""

import json
import time
from collections.abc import Callable, Sequence

from supernet.checked import Count, FilePath, Seed
from supernet.errors import InputError
from supernet_tools.benchmarks.curves import Curve, best_after, curve, format_mean, maker, new_figure, plot, save_plot
from supernet_tools.benchmarks.fronts import front
from supernet_tools.benchmarks.gains import gains, ladder
from supernet_tools.benchmarks.oracles import Oracle, from_csv, oracle_of
from supernet_tools.benchmarks.supernets import supernet
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.tables import print_table


def regret(
    oracles: tuple[str, ...] = ("nasbench-macro", "additive-0", "interactions-0", "conditional-0"),
    csv: FilePath | None = None,
    space: str = "nasbench-macro",
    searchers: tuple[str, ...] = (),
    seeds: Count = 20,
    first_seed: Seed = 0,
    evaluations: Count = 500,
    batch: Count = 1,
    points: tuple[Count, ...] = (50, 100, 200),
    out: FilePath | None = None,
) -> None:
    """Distinct evaluations until the best network, the top ten and the top 1 % are reached, and the regret on the way.

    The regret is the best score of the oracle minus the best score found. A searcher that does not fit a space is left
    out, with its reason. Values are means with 95 % intervals over seeds. The mean for a goal counts only the searches
    that reached it; their number stands beside it unless all did.

    Args:
        oracles: nasbench-macro, or additive-SEED, interactions-SEED, conditional-SEED.
        csv: A table of a space with a column `arch` (see tools/fidelity.py), instead of the oracles.
        space: Space of the CSV file.
        searchers: Names from tools/search.py, with settings as in nsga2:population_size=20; all by default.
        seeds: Searches per searcher.
        first_seed: Seed of the first search; the others count up from it.
        evaluations: Distinct networks after which a search ends.
        batch: Architectures per proposal.
        points: Evaluations at which the regret is printed.
        out: Folder for the curves: regret-ORACLE.json, .html and .png. Without it, only tables are printed.
    """
    if out is not None:
        new_figure()  # fails before the searches, not after them, if plotly is missing
        out.mkdir(parents=True, exist_ok=True)
    from searchers import list_searchers

    makers = {name: maker(name, evaluations) for name in searchers or list_searchers()}
    for oracle in [from_csv(csv, space)] if csv is not None else map(oracle_of, oracles):
        if not isinstance(oracle, Oracle):
            raise InputError(f"the best network of {oracle.name} is not known, so there is no regret; take gains")
        curves: dict[str, list[Curve]] = {}
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
        rows = [(name, *row(oracle, runs, points), f"{1000 * seconds[name]:.1f}") for name, runs in curves.items()]
        title = f"{oracle.name}: {len(oracle.ranked):,} networks, {seeds} seeds, batches of {batch}"
        columns = ("searcher", *oracle.goals, *(f"regret at {n}" for n in points), "ms each")
        print_table(title, columns, rows)
        if out is not None:
            document = {"oracle": oracle.name, "batch": batch, "best": oracle.best, "curves": curves}
            (out / f"regret-{oracle.name}.json").write_text(json.dumps(document), encoding="utf-8")
            figure = plot(f"{oracle.name}, regret", curves, evaluations=evaluations, best=oracle.best)
            save_plot(figure, out / f"regret-{oracle.name}")


def row(oracle: Oracle, curves: Sequence[Sequence[float]], points: Sequence[int]) -> list[str]:
    """Returns the cells of one searcher: evaluations to each goal, then the regret at each of `points`."""
    cells = []
    for goal in oracle.goals.values():
        needed = [next((n for n, score in enumerate(best, start=1) if score >= goal), None) for best in curves]
        reached = [float(n) for n in needed if n is not None]
        cell = format_mean(reached)
        cells.append(cell if len(reached) == len(needed) else f"{cell} ({len(reached)} of {len(needed)})")
    return cells + [format_mean([oracle.best - best_after(best, n) for best in curves], 3) for n in points]


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {
        "regret": regret,
        "supernet": supernet,
        "gains": gains,
        "ladder": ladder,
        "front": front,
    }
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
