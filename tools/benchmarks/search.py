"""Every searcher at equal evaluations.

python tools/benchmarks/search.py regret --seeds 20, or supernet runs/x, or front
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from supernet.errors import InputError
from supernet_tools.benchmarks.curves import at, curve, maker, plot, plotly_objects, save_plot, shown
from supernet_tools.benchmarks.fronts import front
from supernet_tools.benchmarks.oracles import Oracle, from_csv, oracle_of
from supernet_tools.benchmarks.supernets import supernet
from supernet_tools.pipeline.command_line import main, print_table


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
        out: Folder for the curves, regret-ORACLE.json, .html and .png; only tables without.
    """
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name}={value} is too small; give at least 1")
    if out is not None:
        plotly_objects()
        out.mkdir(parents=True, exist_ok=True)
    from searchers import list_searchers

    makers = {name: maker(name) for name in searchers or list_searchers()}
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
            document = {"oracle": oracle.name, "batch": batch, "best": oracle.best, "curves": curves}
            (out / f"regret-{oracle.name}.json").write_text(json.dumps(document), encoding="utf-8")
            drawn = plot(f"{oracle.name}, regret", curves, evaluations=evaluations, best=oracle.best)
            save_plot(drawn, out / f"regret-{oracle.name}")


def row(oracle: Oracle, curves: Sequence[Sequence[float]], points: Sequence[int]) -> list[str]:
    """The cells of one searcher."""
    cells = []
    for goal in oracle.goals.values():
        needed = [next((i for i, s in enumerate(best, start=1) if s >= goal), 0) for best in curves]
        reached = [float(n) for n in needed if n]
        cells.append(shown(reached) + ("" if len(reached) == len(needed) else f" ({len(reached)} of {len(needed)})"))
    return cells + [shown([oracle.best - at(best, n) for best in curves], 3) for n in points]


def run() -> None:
    tyro.extras.subcommand_cli_from_dict({"regret": regret, "supernet": supernet, "front": front}, description=__doc__)


if __name__ == "__main__":
    main(run)
