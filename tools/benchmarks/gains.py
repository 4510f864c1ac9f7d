"""Is a searcher better than random search, and does a surrogate extrapolate? Used by tools/benchmarks/search.py."""

import itertools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from supernet.checked import Count, FilePath, Seed
from supernet.errors import InputError
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace
from supernet_tools.benchmarks.curves import best_after, curve, format_mean, maker
from supernet_tools.benchmarks.oracles import Formula, Oracle, from_csv, oracles_of
from supernet_tools.benchmarks.oracles import ladder as ladder_oracle
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from searchers import PNAS

SHOWN = 0.01
"""The share of the random cells, by prediction, whose true mean `ladder` prints."""


def gains(
    oracles: tuple[str, ...] = ("nasbench-macro", "pyramid"),
    csv: FilePath | None = None,
    space: str = "nasbench-macro",
    searchers: tuple[str, ...] = ("reinforce", "reinforce:published"),
    seeds: Count = 20,
    first_seed: Seed = 0,
    evaluations: Count = 300,
    batch: Count = 1,
    points: tuple[Count, ...] = (100, 200, 300),
) -> None:
    """Best score after a number of networks, minus that of random search with the same seed.

    Scores of tables have the table's unit; those of all other oracles have a standard deviation of 1. Means with 95 %
    intervals over seeds. A search ends after `evaluations` networks or twice as many trials. Settings that are not
    given suit `evaluations`, unless a name has `:published`.

    Args:
        oracles: nasbench-macro, or additive, interactions, conditional, pyramid or ladder, of which each seed has one
            of its own; additive-SEED and so on are the same for all seeds.
        csv: A table of a space with a column `arch` (see tools/fidelity.py), instead of the oracles.
        space: Space of the CSV file.
        searchers: Names from tools/search.py, with settings as in nsga2:population_size=20.
        seeds: Searches per searcher.
        first_seed: Seed of the first search; the others count up from it.
        evaluations: Distinct networks after which a search ends.
        batch: Architectures per proposal.
        points: Evaluations at which the difference is printed.
    """
    makers = {name: maker(name, evaluations) for name in ("random", *searchers)}
    numbers = range(first_seed, first_seed + seeds)
    reached = [n for n in points if n <= evaluations]
    tables = [(csv.stem, [from_csv(csv, space)] * seeds)] if csv is not None else _named(oracles, numbers)
    for title, landscapes in tables:
        scores: dict[str, list[list[float]]] = {}
        for name, make in makers.items():
            curves = [
                curve(
                    oracle,
                    make(oracle.space, seed=seed, feasible=oracle.feasible),
                    evaluations=evaluations,
                    batch=batch,
                    trials=2 * evaluations,
                )
                for oracle, seed in zip(landscapes, numbers, strict=True)
            ]
            scores[name] = [[best_after(best, n) for best in curves] for n in reached]
        rows = [
            (
                name,
                *(
                    format_mean([a - b for a, b in zip(ours, chance, strict=True)], 2)
                    for ours, chance in zip(scores[name], scores["random"], strict=True)
                ),
            )
            for name in searchers
        ]
        columns = ("searcher", *(f"after {n}" for n in reached))
        print_table(
            f"{title}: best score above that of random search, {seeds} seeds, batches of {batch}", columns, rows
        )


def _named(names: Sequence[str], seeds: Sequence[int]) -> "list[tuple[str, Sequence[Oracle | Formula]]]":
    """Names with an oracle for each seed."""
    return [(name, oracles_of(name, seeds)) for name in names]


def ladder(
    surrogates: tuple[Literal["mlp", "lstm"], ...] = ("mlp", "lstm"),
    epochs: tuple[Count, ...] = (20, 100),
    settings: tuple[str, ...] = (),
    beam: Count = 100,
    cells: Count = 500,
    seeds: Count = 6,
    first_seed: Seed = 0,
) -> None:
    """How well the surrogates of progressive search rank cells of one block more than they have seen.

    Each seed has a landscape of its own over PNASNet's cells of up to three blocks. Before any cell of a level is
    scored, random cells of it are predicted: their rank correlation, and the mean score of the best predicted per cent
    in deviations of the scores of that level's random cells. The correlation over the beam is printed beside it: its
    predictions are all close to the highest, so it says little about the surrogate. Means with 95 % intervals.

    Args:
        surrogates: Kinds of surrogate.
        epochs: Passes over the scores of a level.
        settings: Further settings of the searcher, such as targets=common or members=1.
        beam: Cells evaluated per level after the first.
        cells: Random cells of each level.
        seeds: Landscapes and searches.
        first_seed: Seed of the first.
    """
    if beam < 1 or cells < 2 or seeds < 1:
        raise InputError(f"beam={beam}, cells={cells}, seeds={seeds}: give at least 1 of each, and two cells")
    more = ",".join(("", *settings))
    rows: list[Sequence[object]] = []
    for kind, passes in itertools.product(surrogates, epochs):
        make = maker(f"pnas:beam={beam},surrogate={kind},epochs={passes}{more}")
        results = [
            _extrapolation(make(ladder_oracle(s).space, seed=s), s, cells)
            for s in range(first_seed, first_seed + seeds)
        ]
        for level in (2, 3):
            columns = zip(*(result[level] for result in results), strict=True)
            rows.append((kind, passes, level, *(format_mean(list(column), 2) for column in columns)))
    title = (
        f"extrapolation to the next level, {seeds} seeds, {cells} random cells, beam {beam}{more.replace(',', ', ')}"
    )
    print_table(title, ("surrogate", "epochs", "blocks", "random cells", "top 1 %, deviations", "beam"), rows)


def _extrapolation(searcher: "PNAS", seed: int, cells: int) -> dict[int, tuple[float, float, float]]:
    """Runs a search; by number of blocks: correlation on random cells, score of the best predicted, correlation on the
    beam."""
    from searchers import Trial
    from searchers.pnas.search import spearman

    oracle = ladder_oracle(seed)
    quality: dict[int, tuple[float, float]] = {}
    number, size = 0, 1
    while archs := searcher.ask(1):
        if int(archs[0]["blocks"]) > size:  # the level is chosen and none of its cells scored
            size = int(archs[0]["blocks"])
            drawn = random_cells(oracle.space, size, cells, seed)
            truth = [m["accuracy"] for m in oracle.score(drawn)]
            predicted = searcher.predict(drawn)
            order = sorted(range(len(drawn)), key=lambda i: -predicted[i])
            mean = statistics.fmean(truth)
            best = statistics.fmean(truth[i] for i in order[: max(1, round(SHOWN * len(drawn)))])
            quality[size] = (spearman(predicted, truth) or 0.0, (best - mean) / statistics.pstdev(truth))
        searcher.tell(
            [Trial.of(oracle.space, archs[0], oracle.score([oracle.space.normal_form(archs[0])])[0], number=number)]
        )
        number += 1
    correlations = searcher.correlations
    return {level: (*values, correlations[level].beam or 0.0) for level, values in quality.items()}


def random_cells(space: SearchSpace, size: int, n: int, seed: int) -> list[Arch]:
    """Returns the normal forms of `n` distinct random cells with that many blocks."""
    rng, confined = generator("ladder", seed, size), space.fix({"blocks": size})
    forms: dict[Arch, None] = {}
    while len(forms) < n:
        form = space.normal_form(space.canonical(confined.sample(rng)))
        if form["blocks"] == size:
            forms[form] = None
    return list(forms)
