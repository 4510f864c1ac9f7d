"""Does a race of stand-alone trainings find the best networks, and does it notice a search that is worth nothing?

    python tools/benchmarks/race.py                    scores: the truth with noise and a bias; random ones
    python tools/benchmarks/race.py runs/x runs/y      scores of trained `nasbench-macro` supernets

The table of NAS-Bench-Macro trains: the first of a network's three trainings is its label, their mean its truth.
Prints one table of true ranks per source of scores, with a row per limit of MACs and choice.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro
from annotated_types import Ge

from supernet.checked import Checked, Count, Natural, NonNegative
from supernet.errors import InputError
from supernet_tools.benchmarks.ranking import LIMITS
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet.ranking.race import Result
    from supernet.space import Arch, SearchSpace


class Table(NamedTuple):
    """The distinct networks of the benchmark.

    Attributes:
        accuracy: mean test accuracy of three trainings, in %.
        label: accuracy of the first.
        macs: at 32×32.
        noise: standard deviation between trainings of one network, pooled over all.
    """

    space: "SearchSpace"
    accuracy: "dict[Arch, float]"
    label: "dict[Arch, float]"
    macs: "dict[Arch, float]"
    noise: float


@dataclass(frozen=True)
class Races(Checked):
    """Race under limits of MACs.

    The search is exhaustive: its finalists are the networks with the best shared scores within the limit.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of trained supernets of `nasbench-macro`. Without any, two sources of scores are simulated: the normal
    score of the true accuracy with `noise` and `bias`, drawn again for each seed, and random scores."""
    seeds: Count = 20
    """Races per limit. With a trained supernet only the random networks differ between them."""
    trainings: Annotated[int, Ge(3)] = 20
    """Budget of a race."""
    noise: NonNegative = 0.3
    """Standard deviation of the simulated noise, in standard deviations of the normal score."""
    bias: float = 0.15
    """Against depth: what a standard deviation of the number of layers lowers the simulated score by."""
    random_networks: Natural = 2
    """Random networks in each race."""
    bn_batches: Count = 10
    """Calibration batches, of 64 images each, for the scores of `runs`."""


def run() -> None:
    """Races with each source of scores."""
    args = parse(Races, __doc__)
    table, settings = shipped_table(), (args.trainings, args.random_networks)
    if not args.runs:
        simulated = noisy(table, args.noise, args.bias, args.seeds)
        report(table, f"noise {args.noise:g}, depth bias {args.bias:g}", simulated, *settings)
        report(table, "random scores", guesses(table, args.seeds), *settings)
        return
    from supernet_tools.pipeline.runs import open_run
    from supernet_tools.pipeline.search import shared_scores

    for folder in args.runs:
        opened = open_run(folder)
        if opened.space.digest() != table.space.digest():
            raise InputError(f"{folder} is a run of {opened.space.name!r}; give one of 'nasbench-macro'")
        metrics = shared_scores(opened, list(table.accuracy), bn_batches=args.bn_batches)
        scores = {arch: -row["loss"] for arch, row in metrics.items()}
        report(table, folder.name, [scores] * args.seeds, *settings)


def shipped_table() -> Table:
    """Returns the table that is shipped, one row per network."""
    from supernet.ranking.truth import distinct
    from supernet.spaces import create_supernet
    from supernet.spaces.nasbench_macro import table

    space = create_supernet("nasbench-macro").space
    truth = distinct(space, table())
    variance = statistics.fmean(statistics.variance(runs) for runs in truth.repeats.values())
    return Table(
        space,
        {arch: value for arch, value in truth.values.items() if value is not None},
        {arch: runs[0] for arch, runs in truth.repeats.items()},
        {arch: table()[arch]["macs"] for arch in truth.values},
        math.sqrt(variance),
    )


# -- simulated scores -------------------------------------------------------------------------------------------------


def noisy(table: Table, noise: float, bias: float, seeds: int) -> "list[Mapping[Arch, float]]":
    """Returns the normal scores of the true accuracies with noise and a bias against depth, one mapping per seed."""
    import numpy as np
    from scipy.stats import norm, rankdata

    from supernet.ranking.depth import layers

    archs = list(table.accuracy)
    truth = norm.ppf(rankdata(list(table.accuracy.values())) / (len(archs) + 1))
    depth = np.array([layers(arch) for arch in archs])
    depth = (depth - depth.mean()) / depth.std()
    sources: list[Mapping[Arch, float]] = []
    for seed in range(seeds):
        drawn = truth - bias * depth + noise * np.random.default_rng(seed).standard_normal(len(archs))
        sources.append(dict(zip(archs, drawn.tolist(), strict=True)))
    return sources


def guesses(table: Table, seeds: int) -> "list[Mapping[Arch, float]]":
    """Returns random scores, one mapping per seed."""
    return [{arch: rng.random() for arch in table.accuracy} for rng in map(random.Random, range(seeds))]


# -- races ------------------------------------------------------------------------------------------------------------


def report(table: Table, name: str, sources: "Sequence[Mapping[Arch, float]]", trainings: int, randoms: int) -> None:
    """Races with each source of scores under each limit, and prints the true ranks of the choices."""
    from supernet.ranking.rivals import simple_networks
    from supernet.ranking.statistics import kendall

    truth = list(table.accuracy.values())
    taus = [kendall([scores[arch] for arch in table.accuracy], truth) for scores in sources]
    rows: list[tuple[object, ...]] = []
    for limit in LIMITS:
        inside = truth_of(table, limit)
        rank = {arch: place for place, arch in enumerate(inside, start=1)}
        simple = simple_networks(
            table.space,
            cost=table.macs.__getitem__,
            feasible=set(inside).__contains__,
            rng=random.Random(0),
            sample=partial(_draw, inside),
        )
        choices: dict[str, list[Arch]] = {}
        results = [
            raced(table, scores, inside, simple, trainings, randoms, seed) for seed, scores in enumerate(sources)
        ]
        for result, scores in zip(results, sources, strict=True):
            for choice, arch in chosen(table, result, scores, inside, trainings).items():
                choices.setdefault(choice, []).append(arch)
        for choice, archs in choices.items():
            ranks = [rank[arch] for arch in archs]
            rows.append(
                (
                    f"{limit:.0%}" if limit else "none",
                    choice,
                    f"{statistics.median(ranks):g} ({min(ranks)} to {max(ranks)})",
                    f"{sum(place <= len(inside) // 100 for place in ranks)} of {len(ranks)}",
                    summary(table, results, archs, choices["best simple network"]) if choice == "race" else "",
                )
            )
    title = f"{name}: τ {statistics.fmean(taus):.3f}, {len(sources)} seeds, {trainings} trainings"
    print_table(
        title, ("limit", "choice", "true rank", "in the best 1 %", "winners; verdicts; below the best rival"), rows
    )


def truth_of(table: Table, limit: float | None) -> "list[Arch]":
    """Returns the networks within a limit on MACs, a share of the largest, by true accuracy, best first."""
    cap = math.inf if limit is None else limit * max(table.macs.values())
    return sorted((arch for arch in table.accuracy if table.macs[arch] <= cap), key=lambda arch: -table.accuracy[arch])


def _draw(inside: "Sequence[Arch]", rng: random.Random) -> "Arch":
    return rng.choice(inside)


def raced(
    table: Table,
    scores: "Mapping[Arch, float]",
    inside: "Sequence[Arch]",
    simple: "Mapping[str, Arch]",
    trainings: int,
    randoms: int,
    seed: int,
) -> "Result":
    """Returns the result of one race."""
    from supernet.ranking.race import race
    from supernet.ranking.rivals import finalists

    own = {arch: scores[arch] for arch in inside}
    return race(
        table.space,
        finalists(table.space, own, 50, cost=table.macs.__getitem__),
        lambda jobs: [table.label[job.arch] for job in jobs],
        simple=simple,
        random=random.Random(seed).sample(inside, randoms),
        scores=own,
        cost=table.macs.__getitem__,
        trainings=trainings,
        seeds=1,
        noise=table.noise,
    )


def chosen(
    table: Table, result: "Result", scores: "Mapping[Arch, float]", inside: "Sequence[Arch]", trainings: int
) -> "dict[str, Arch]":
    """Returns what the race and other ways of choosing take."""
    from supernet.ranking.calibrate import calibrated_ranking

    own = {arch: scores[arch] for arch in inside}
    corrected = calibrated_ranking(
        own, lambda archs: [table.label[arch] for arch in archs], space=table.space, labels=trainings
    )
    simple = [runner.arch for runner in result.runners if runner.arm == "simple"]
    return {
        "race": result.winner.arch,
        "best simple network": max(simple, key=table.accuracy.__getitem__),
        "best shared score": max(inside, key=own.__getitem__),
        f"corrected by {len(corrected.labels)} trainings": corrected.pick,
    }


def summary(table: Table, results: "Sequence[Result]", winners: "Sequence[Arch]", rivals: "Sequence[Arch]") -> str:
    """Returns how often each arm won, each verdict was given, and winners were truly worse than the best rival.

    "beyond noise": by more than 1.96 standard errors of the difference of two trainings.
    """
    behind = [table.accuracy[rival] - table.accuracy[arch] for arch, rival in zip(winners, rivals, strict=True)]
    bound = 1.96 * math.sqrt(2) * table.noise
    arms = ", ".join(f"{count} {arm}" for arm, count in Counter(result.winner.arm for result in results).most_common())
    paid = sum(result.paid for result in results)
    below, beyond = sum(gap > 0 for gap in behind), sum(gap > bound for gap in behind)
    return f"{arms}; {paid} paid; {below} below, {beyond} beyond noise"


if __name__ == "__main__":
    main(run)
