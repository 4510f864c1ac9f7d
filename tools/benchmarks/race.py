"""Does a race of stand-alone trainings find the best networks, and does it notice a search that has no value?

    python tools/benchmarks/race.py                                scores: the truth with noise and a bias; random ones
    python tools/benchmarks/race.py runs/x runs/x/fidelity/y.json  scores of a trained supernet, or kept by fidelity.py
    python tools/benchmarks/race.py --untrained 3                  scores of supernets with random weights
    python tools/benchmarks/race.py y.json --space nasbench201 --truth nasbench201.csv   another table

A table of trained networks trains. Where it has single trainings of each network, as that of NAS-Bench-Macro, the first
is the label and their mean the truth. Prints one table of true ranks per source of scores, with a row per limit of MACs
and choice.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro
from annotated_types import Ge

from supernet.checked import Checked, Count, Natural, NonNegative, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet.ranking.race import Result
    from supernet.ranking.truth import Truth
    from supernet.space import Arch, SearchSpace


LIMITS = (0.35, 0.50, 0.65, None)
"""Limits on MACs, as shares of the largest network's; None is no limit."""


class Table(NamedTuple):
    """The distinct networks of a benchmark.

    Attributes:
        accuracy: true accuracy, in % for the shipped table.
        label: accuracy of one training.
        macs: the MACs of each network.
        noise: standard deviation between trainings of one network, pooled over all; None if it is not known.
    """

    space: "SearchSpace"
    accuracy: "dict[Arch, float]"
    label: "dict[Arch, float]"
    macs: "dict[Arch, float]"
    noise: float | None

    def only(self, archs: "Sequence[Arch]") -> "Table":
        """Returns the table of some of its networks."""
        return self._replace(accuracy={arch: self.accuracy[arch] for arch in archs})


@dataclass(frozen=True)
class Races(Checked):
    """Race under limits of MACs.

    The finalists are the networks with the best shared scores within the limit, of all that have one or of `searched`.
    """

    sources: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of trained supernets, which score all networks of the table; reports of fidelity.py
    (RUN/fidelity/NAME.json), whose networks race; or CSV files with columns `arch` and `score`. Without any, two
    sources of scores are simulated: the normal score of the true accuracy with `noise` and `bias`, drawn again for each
    seed, and random scores."""
    truth: Text = "table"
    """"table" (shipped, for the space nasbench-macro), or a CSV file with columns `arch` and `column`."""
    column: Text = "accuracy"
    """Column of the CSV file; COLUMN_1, COLUMN_2, … are single trainings."""
    space: Text = "nasbench-macro"
    """Space of the table."""
    label_noise: NonNegative = 0.0
    """Where the table has no single trainings: standard deviation of a label around the true accuracy."""
    searched: Natural = 0
    """Networks within the limit, drawn at random for each seed, that a search has scored; 0 for all."""
    untrained: Natural = 0
    """Supernets of random weights that score `untrained_networks` of the table on digits of 8 pixels."""
    untrained_networks: Annotated[int, Ge(50)] = 400
    """Networks that each of them scores."""
    trainings: Annotated[int, Ge(2)] = 20
    """Trainings of a race, one per network, since a table can give a network no second label."""
    seeds: Count = 20
    """Races per limit."""
    noise: NonNegative = 0.35
    """Standard deviation of the simulated noise, in standard deviations of the normal score."""
    bias: float = 0.15
    """Against depth: what a standard deviation of the number of layers lowers the simulated score by."""
    random_networks: Natural = 2
    """Random networks in each race."""
    bn_batches: Count = 10
    """Calibration batches, of 64 images each, for the scores of run folders."""


def run() -> None:
    """Races with each source of scores."""
    args = parse(Races, __doc__)
    table = table_of(args)
    if args.untrained:
        for seed in range(args.untrained):
            report(args, table, f"random weights, seed {seed}", [untrained_scores(args, table, seed)] * args.seeds)
    if not args.sources and not args.untrained:
        simulated = noisy(table, args.noise, args.bias, args.seeds)
        report(args, table, f"noise {args.noise:g}, depth bias {args.bias:g}", simulated)
        report(args, table, "random scores", guesses(table, args.seeds))
    for path in args.sources:
        name = path.parent.parent.name if path.suffix == ".json" else path.stem
        report(args, table, name, [scores_of(args, table, path)] * args.seeds)


# -- tables and scores ------------------------------------------------------------------------------------------------


def table_of(args: Races) -> Table:
    """Returns the table that the flags name."""
    from supernet.cost import CostTable
    from supernet.ranking.truth import distinct, read_truth
    from supernet.spaces import create_supernet
    from supernet.spaces.nasbench_macro import table

    supernet = create_supernet(args.space)
    space = supernet.space
    if args.truth == "table":
        if space.name != "nasbench-macro":
            raise InputError(f"no table of {space.name!r} is shipped; give --truth FILE.csv")
        truth = distinct(space, table())
        return _table(space, truth, {arch: table()[arch]["macs"] for arch in truth.values}, args.label_noise)
    truth, cost = read_truth(Path(args.truth), space, column=args.column), CostTable(supernet)
    return _table(space, truth, {arch: float(cost(arch)["macs"]) for arch in truth.values}, args.label_noise)


def _table(space: "SearchSpace", truth: "Truth", macs: "dict[Arch, float]", label_noise: float) -> Table:
    accuracy = {arch: value for arch, value in truth.values.items() if value is not None}
    if len(accuracy) < 2:
        raise InputError("the table has fewer than two networks with an accuracy; there is nothing to race")
    if set(accuracy) <= set(truth.repeats):
        label = {arch: truth.repeats[arch][0] for arch in accuracy}
        repeated = [runs for runs in truth.repeats.values() if len(runs) > 1]
        noise = math.sqrt(statistics.fmean(map(statistics.variance, repeated))) if repeated else None
    else:
        label = {arch: value + label_noise * random.Random(arch.key).gauss(0, 1) for arch, value in accuracy.items()}
        noise = label_noise or None
    return Table(space, accuracy, label, macs, noise)


def shipped_table() -> Table:
    """Returns the table that is shipped, one row per network."""
    return table_of(Races())


def scores_of(args: Races, table: Table, path: Path) -> "dict[Arch, float]":
    """Returns the shared scores of networks of the table, higher is better.

    Raises:
        InputError: a run of another space, a report without scores, or no network of it is in the table.
    """
    from supernet.files import read_json
    from supernet.ranking.truth import read_truth
    from supernet_tools.pipeline.runs import open_run
    from supernet_tools.pipeline.search import shared_scores

    space = table.space
    if path.is_dir():
        opened = open_run(path)
        if opened.space.digest() != space.digest():
            raise InputError(f"{path} is a run of {opened.space.name!r}; give one of {space.name!r}")
        metrics = shared_scores(opened, list(table.accuracy), bn_batches=args.bn_batches)
        return {arch: -row["loss"] for arch, row in metrics.items()}
    if path.suffix == ".csv":
        labels = {arch: value for arch, value in read_truth(path, space, column="score").values.items()}
    else:
        labels = _reported(path, read_json(path), space)
    scores = {arch: value for arch, value in labels.items() if value is not None and arch in table.accuracy}
    if len(scores) < 2:
        raise InputError(f"{path} has scores of {len(scores)} networks of the table; a race needs two")
    return scores


def _reported(path: Path, document: Any, space: "SearchSpace") -> "dict[Arch, float | None]":
    """Returns the scores of a report of fidelity.py."""
    try:
        rows = [(space.from_indices(row["indices"]), row["score"]) for row in document["networks"]]
        return {space.normal_form(arch): None if score is None else float(score) for arch, score in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has no scores of networks of {space.name!r} ({error!r}); give a report that fidelity.py wrote for "
            "that space, or repeat fidelity.py, which since this release keeps them"
        ) from error


def untrained_scores(args: Races, table: Table, seed: int) -> "dict[Arch, float]":
    """Returns the scores of a supernet that was never trained, on digits of 8 pixels; batch norm is calibrated."""
    import torch

    from supernet.config import Data
    from supernet.spaces import create_supernet
    from supernet_tools.pipeline.config import SupernetRun
    from supernet_tools.pipeline.runs import kind_of

    kind = kind_of(SupernetRun(space=args.space, data=Data("digits", size=8, calibration=64, validation=0.1)))
    data = kind.load(None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        supernet = create_supernet(args.space, num_classes=10, input_size=8, in_channels=1)
    evaluate = kind.shared_weights(supernet.eval(), data, cache=None, bn_batches=1, cost=None)
    archs = list(table.accuracy)
    chosen = random.Random(seed).sample(archs, min(args.untrained_networks, len(archs)))
    return {arch: -row["loss"] for arch, row in zip(chosen, evaluate(chosen), strict=True)}


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


def report(args: Races, table: Table, name: str, sources: "Sequence[Mapping[Arch, float]]") -> None:
    """Races with each source of scores under each limit, and prints the true ranks of the choices."""
    from supernet.ranking.statistics import kendall

    table = table.only([arch for arch in table.accuracy if arch in sources[0]])
    truth = list(table.accuracy.values())
    taus = [kendall([scores[arch] for arch in table.accuracy], truth) for scores in sources]
    rows: list[tuple[object, ...]] = []
    for limit in LIMITS:
        inside = truth_of(table, limit)
        if len(inside) < args.trainings:
            continue  # all of them would be trained
        rank = {arch: place for place, arch in enumerate(inside, start=1)}
        simple = simple_of(table, inside)
        choices: dict[str, list[Arch]] = {}
        results = []
        for seed, every in enumerate(sources):
            drawn = random.Random(seed).sample(inside, min(args.searched or len(inside), len(inside)))
            scores = {arch: every[arch] for arch in drawn}
            known = {arch: every[arch] for arch in inside}
            result = raced(args, table, scores, known, simple, seed)
            results.append(result)
            for choice, arch in chosen(args, table, result, scores).items():
                choices.setdefault(choice, []).append(arch)
        for choice, archs in choices.items():
            ranks = [rank[arch] for arch in archs]
            rows.append(
                (
                    f"{limit:.0%}" if limit else "none",
                    choice,
                    f"{statistics.median(ranks):g} ({min(ranks)} to {max(ranks)})",
                    f"{sum(place <= max(1, len(inside) // 100) for place in ranks)} of {len(ranks)}",
                    summary(table, results, archs, choices["best simple network"]) if choice == "race" else "",
                )
            )
    size = f"{len(table.accuracy):,} networks" + (f", {args.searched} of them searched" if args.searched else "")
    title = f"{name}: {size}, τ {statistics.fmean(taus):.3f}, {len(sources)} seeds, {args.trainings} trainings"
    print_table(
        title, ("limit", "choice", "true rank", "in the best 1 %", "winners; verdicts; below the best rival"), rows
    )


def truth_of(table: Table, limit: float | None) -> "list[Arch]":
    """Returns the networks within a limit on MACs, a share of the largest, by true accuracy, best first."""
    cap = math.inf if limit is None else limit * max(table.macs.values())
    return sorted((arch for arch in table.accuracy if table.macs[arch] <= cap), key=lambda arch: -table.accuracy[arch])


def simple_of(table: Table, inside: "Sequence[Arch]") -> "dict[str, Arch]":
    """Returns the simple networks among some of the table."""
    from supernet.ranking.rivals import simple_networks

    return simple_networks(
        table.space,
        cost=table.macs.__getitem__,
        feasible=set(inside).__contains__,
        rng=random.Random(0),
        sample=partial(_draw, inside),
    )


def _draw(inside: "Sequence[Arch]", rng: random.Random) -> "Arch":
    return rng.choice(inside)


def raced(
    args: Races,
    table: Table,
    scores: "Mapping[Arch, float]",
    known: "Mapping[Arch, float]",
    simple: "Mapping[str, Arch]",
    seed: int,
) -> "Result":
    """Returns the result of one race between the best of `scores`, simple and random networks; `known` scores all."""
    from supernet.ranking.race import race
    from supernet.ranking.rivals import finalists

    return race(
        table.space,
        finalists(table.space, scores, 50, cost=table.macs.__getitem__),
        lambda jobs: [table.label[job.arch] for job in jobs],
        simple=simple,
        random=random.Random(seed).sample(list(known), min(args.random_networks, len(known))),
        scores=known,
        cost=table.macs.__getitem__,
        trainings=args.trainings,
        seeds=1,
        noise=table.noise,
    )


def chosen(args: Races, table: Table, result: "Result", scores: "Mapping[Arch, float]") -> "dict[str, Arch]":
    """Returns what the race and other ways of choosing take."""
    from supernet.ranking.calibrate import FEWEST, calibrated_ranking

    simple = [runner.arch for runner in result.runners if runner.arm == "simple"]
    choices = {
        "race": result.winner.arch,
        "best simple network": max(simple, key=table.accuracy.__getitem__),
        "best shared score": max(scores, key=scores.__getitem__),
    }
    labels = min(args.trainings, len(scores))
    if labels >= FEWEST:
        corrected = calibrated_ranking(
            scores, lambda archs: [table.label[arch] for arch in archs], space=table.space, labels=labels
        )
        choices[f"corrected by {len(corrected.labels)} trainings"] = corrected.pick
    return choices


def summary(table: Table, results: "Sequence[Result]", winners: "Sequence[Arch]", rivals: "Sequence[Arch]") -> str:
    """Returns how often each arm won, each verdict was given, and winners were truly worse than the best rival.

    "beyond noise": by more than 1.96 standard errors of the difference of two trainings.
    """
    behind = [table.accuracy[rival] - table.accuracy[arch] for arch, rival in zip(winners, rivals, strict=True)]
    bound = 1.96 * math.sqrt(2) * (table.noise or 0.0)
    arms = ", ".join(f"{count} {arm}" for arm, count in Counter(result.winner.arm for result in results).most_common())
    paid = sum(result.paid for result in results)
    below, beyond = sum(gap > 0 for gap in behind), sum(gap > bound for gap in behind)
    return f"{arms}; {paid} paid; {below} below, {beyond} beyond noise"


if __name__ == "__main__":
    main(run)
