"""Can the ranking be trusted? python tools/fidelity.py runs/x --truth table, or --table-only without a run"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge, Le

from supernet.checked import Count, FilePath, Name, Natural, Seed, Text
from supernet.errors import InputError
from supernet.seeding import generator
from supernet_tools.pipeline.command_line import Flags, calibration_unused, closing, command, main, parse
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supernet.ranking.report import Report
    from supernet.ranking.truth import Truth
    from supernet.space import Arch
    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class Fidelity(Flags):
    """Compare shared-weight scores with the truth, with rankers that need no training, and with noise between seeds."""

    run: Annotated[FilePath | None, tyro.conf.Positional] = None
    """Folder of the trained supernet."""
    table_only: bool = False
    """No supernet: what trivial rankers and repeated trainings reach on the shipped table of NAS-Bench-Macro."""
    truth: Text = "table"
    """"table" (shipped, for the space nasbench-macro), a CSV file with a column `arch`, or "retrain"."""
    column: Text = "accuracy"
    """Column of the CSV file."""
    n: Natural = 1000
    """Distinct networks, drawn at random; 0 for all of a table. With "retrain" each of them is trained."""
    score: Text | None = None
    """What the shared weights rank by: accuracy, loss, or extrapolated, as `search --extrapolate`; for a detector map
    or map50. By default accuracy or map. Other metrics are reported beside it."""
    labels: Natural = 0
    """Also report a ranking calibrated with this many true accuracies from the top of the shared ranking."""
    checkpoints: tuple[FilePath, ...] = ()
    """Other weights of the same supernet, run folders or files, to see how stable the ranking is."""
    seeds: Count = 1
    """With "retrain": trainings per network; two or more show the noise ceiling."""
    epochs: Count | None = None
    """With "retrain": epochs instead of the recipe's."""
    bn_batches: Count = 10
    """Calibration batches of 64 images."""
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
    resamples: Annotated[int, Ge(1), Le(10**6)] = 500
    """Resamples of the bootstrap."""
    seed: Seed = 0
    """Seed of the networks drawn, of retrainings and of resamples."""
    name: Name | None = None
    """Name of the report, RUN/fidelity/NAME.json; made from the settings by default."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """All networks, where each is trained."""
        if self.truth == "retrain" and not self.n:
            yield "n", "is for all networks of a table; with truth='retrain' give how many are trained, at least 2"

    def unused(self) -> Iterator[tuple[str, str]]:
        """What the table alone, or another truth, does not take."""
        if self.table_only:
            taken = ("run", "table_only", "resamples", "data", "trust")
            fields = [field.name for field in dataclasses.fields(self) if field.name not in taken]
            for name in (*fields, "data.source", "data.images"):
                yield name, "beside --table-only, which has neither weights nor other networks"
            return
        yield from calibration_unused(self.bn, "bn_batches")
        if self.truth in ("table", "retrain"):
            yield "column", f"with --truth {self.truth}; it is for a CSV file"
        if self.truth != "retrain":
            yield "seeds", "without --truth retrain"
            yield "epochs", "without --truth retrain"


def run() -> None:
    args = parse(Fidelity, __doc__)
    if args.table_only:
        if args.run is not None:
            raise InputError("--table-only needs no folder of a supernet")
        show(table_report(args))
        return
    if args.run is None:
        raise InputError("give the folder of a trained supernet, or --table-only")
    report, file, policy = run_report(args, args.run)
    show(report)
    print(f"batch norm of the shared weights: {policy}; saved as {file}")
    closing([], command("report", args.run))


def table_report(args: Fidelity) -> "Report":
    """Trivial rankers and the noise between trainings on the shipped table of NAS-Bench-Macro."""
    from supernet.ranking.report import fidelity
    from supernet.spaces import create_supernet

    truth, settings = shipped()
    space = create_supernet("nasbench-macro").space
    return fidelity(None, truth.values, space=space, repeats=truth.repeats, **settings, times=args.resamples)


def run_report(args: Fidelity, folder: Path) -> "tuple[Report, Path, BatchNorm]":
    """The report on a run's shared weights, the file it is saved as, and the batch-norm policy of the scores."""
    from supernet.files import remove_temporaries, write_json
    from supernet.paths import check_file, inside
    from supernet.ranking.calibrate import FEWEST
    from supernet.ranking.report import fidelity
    from supernet_tools.pipeline.growth import EXTRAPOLATED, bonus_of, metric_of
    from supernet_tools.pipeline.runs import open_run
    from supernet_tools.pipeline.search import shared_scores, supernet_with

    place = inside(folder, "fidelity", f"{args.name or 'report'}.json", what="the name of the report")
    check_file(place, "the report")
    opened = open_run(folder, bn=args.bn, moved=args.data)
    args = dataclasses.replace(args, score=args.score or opened.kind.metric, bn=opened.bn)
    metrics = (*opened.kind.metrics, EXTRAPOLATED) if metric_of(opened) == "loss" else opened.kind.metrics
    if args.score not in metrics:
        raise InputError(f"this run is not scored by {args.score!r}, but by {' or '.join(metrics)}")
    if args.score == EXTRAPOLATED and not bonus_of(opened):
        raise InputError(
            "--score extrapolated: the training shows no advantage of larger networks that would grow until the end of "
            "a retraining; take --score loss"
        )
    if 0 < args.labels < FEWEST:
        raise InputError(f"--labels {args.labels} are too few to calibrate a ranking; give 0, or at least {FEWEST}")
    if args.n and args.labels > args.n:
        raise InputError(
            f"--labels {args.labels} are more than the --n {args.n} networks; raise --n, or give fewer labels"
        )
    if args.n == 1:
        raise InputError("--n 1 is too few for a ranking; give 0 for all networks, or at least 2")
    for path in args.checkpoints:
        supernet_with(opened, path)  # names weights that do not fit before anything is scored
    _ = opened.supernet  # weights that are damaged are named before anything is trained
    archs, truth, settings = true_ranking(args, opened)
    known = sum(truth.values[arch] is not None for arch in archs)
    if known < 2 and args.truth != "retrain":
        raise InputError(f"{known} of {len(archs)} networks have a truth in {args.truth}; a ranking needs two")
    if args.labels > len(archs):
        raise InputError(f"--labels {args.labels} are more than the {len(archs)} networks in {args.truth}; give fewer")
    scores, others = shared_rankings(args, opened, archs, truth)
    checkpoints = {
        str(path): ranking(opened, shared_scores(opened, archs, bn_batches=args.bn_batches, weights=path), args.score)
        for path in args.checkpoints
    }
    report = fidelity(
        scores,
        truth.values,
        space=opened.space,
        repeats=truth.repeats,
        others=others,
        checkpoints=checkpoints,
        times=args.resamples,
        seed=args.seed,
        **settings,
    )
    policy = "" if opened.bn == opened.kind.batch_norm else f"-{opened.bn}"
    name = args.name or f"{Path(args.truth).stem[:40]}-{args.score}{policy}-n{len(archs)}-seed{args.seed}"
    file = inside(folder, "fidelity", f"{name}.json", what="the name of the report")
    remove_temporaries(file.parent, alone=False)
    asked = {key: str(value) for key, value in dataclasses.asdict(args).items()}
    networks = [
        {"indices": list(opened.space.to_indices(arch)), "score": scores[arch], "truth": truth.values[arch]}
        for arch in archs
    ]
    write_json(file, {**report.to_json(), "settings": asked, "networks": networks})
    return report, file, opened.bn


def shipped() -> "tuple[Truth, dict[str, Any]]":
    """The table of NAS-Bench-Macro: truth and costs of its distinct networks."""
    from supernet.ranking.truth import distinct
    from supernet.spaces import create_supernet
    from supernet.spaces.nasbench_macro import table

    truth = distinct(create_supernet("nasbench-macro").space, table())
    return truth, {"costs": {arch: table()[arch] for arch in truth.values}}


def true_ranking(args: Fidelity, opened: "Run") -> "tuple[list[Arch], Truth, dict[str, Any]]":
    """The networks to rank, their true accuracies, and the costs that define bands of MACs."""
    from supernet.ranking.truth import Truth, read_truth
    from supernet_tools.pipeline.architectures import random_feasible
    from supernet_tools.pipeline.retrain import true_accuracies

    if args.truth == "table":
        if opened.space.name != "nasbench-macro":
            raise InputError(f"no table of {opened.space.name!r} is shipped; give --truth FILE.csv or --truth retrain")
        truth, settings = shipped()
        largest = max(costs["macs"] for costs in settings["costs"].values())
        return sampled(args, truth), truth, {**settings, "largest": largest}
    if args.truth == "retrain":
        archs = random_feasible(opened, opened.limits({}), args.n, args.seed)
        epochs = {} if args.epochs is None else {"epochs": args.epochs}
        train = dataclasses.replace(opened.config.retrain, seed=args.seed, **epochs)
        trainings = true_accuracies(opened, archs, train, seeds=args.seeds)
        complete = {
            arch: tuple(value for value in values if value is not None)
            for arch, values in trainings.items()
            if None not in values
        }
        means = {arch: sum(complete[arch]) / len(complete[arch]) if arch in complete else None for arch in trainings}
        truth = Truth(means, {arch: values for arch, values in complete.items() if len(values) > 1})
    else:
        truth = read_truth(Path(args.truth), opened.space, column=args.column)
    archs, extremes = sampled(args, truth), opened.cost.extremes("macs")
    costs = {arch: opened.cost(arch) for arch in archs}
    # Where the largest is not known, the bands are those of the whole truth, whatever networks of it are drawn.
    largest = extremes[1] if extremes else max((opened.cost(arch)["macs"] for arch in truth.values), default=None)
    return archs, truth, {"costs": costs, "largest": largest}


def sampled(args: Fidelity, truth: "Truth") -> "list[Arch]":
    """Networks of the truth, drawn at random; failed ones stay among them and are counted."""
    archs = list(truth.values)
    if not args.n or args.n >= len(archs):
        return archs
    return generator(args.seed, "fidelity").sample(archs, args.n)


def ranked_by(scores: "dict[Arch, dict[str, float]]", name: str) -> "dict[Arch, float]":
    """One metric, higher is better: the loss with its sign turned, others as they are."""
    return {arch: -metrics[name] if name == "loss" else metrics[name] for arch, metrics in scores.items()}


def ranking(opened: "Run", scores: "dict[Arch, dict[str, float]]", name: str) -> "dict[Arch, float]":
    """What networks of a run are ranked by: one of their metrics, or the loss extrapolated to a retraining."""
    from supernet.ranking.growth import extrapolated
    from supernet_tools.pipeline.growth import EXTRAPOLATED, bonus_of

    if name != EXTRAPOLATED:
        return ranked_by(scores, name)
    macs = {arch: opened.cost(arch)["macs"] for arch in scores}
    return extrapolated(ranked_by(scores, "loss"), macs, bonus_of(opened))


def shared_rankings(
    args: Fidelity, opened: "Run", archs: "list[Arch]", truth: "Truth"
) -> "tuple[dict[Arch, float], dict[str, Any]]":
    """The scores that the report is about, and further rankers beside them."""
    from supernet.ranking.calibrate import calibrated_ranking
    from supernet_tools.pipeline.growth import EXTRAPOLATED, bonus_of, metric_of
    from supernet_tools.pipeline.search import shared_scores

    metrics = shared_scores(opened, archs, bn_batches=args.bn_batches)
    score = args.score or opened.kind.metric
    scores = ranking(opened, metrics, score)
    others = [name for name in opened.kind.metrics if name != score][: 2 if score == EXTRAPOLATED else 1]
    rankers: dict[str, Any] = {f"shared {name}": ranked_by(metrics, name) for name in others}
    if score != EXTRAPOLATED and metric_of(opened) == "loss" and bonus_of(opened):
        rankers["loss, extrapolated"] = ranking(opened, metrics, EXTRAPOLATED)
    if args.labels:

        def label(chosen: "Sequence[Arch]") -> "list[float | None]":  # one training each where single ones are known
            return [truth.repeats[arch][0] if arch in truth.repeats else truth.values[arch] for arch in chosen]

        calibration = calibrated_ranking(scores, label, space=opened.space, labels=args.labels)
        rankers[f"calibrated, {len(calibration.labels)} labels"] = calibration.scores
    return scores, rankers


def show(report: "Report") -> None:
    """The report on screen."""
    first = report.rankers[0]
    place = max((i for i, top in enumerate(first.tops) if top.k <= 10), default=0)
    columns = (
        "ranker",
        "Kendall τ-b, 95 %",
        "Spearman ρ",
        f"precision at {first.tops[place].k}",
        "regret",
        "true rank",
        "better, mean",
    )
    rows = [
        (
            ranker.name,
            ranker.tau,
            f"{ranker.rho.value:.3f}",
            f"{top.precision.value:.2f}",
            f"{top.regret:.4f}",
            f"{top.rank:.1f}",
            f"{ranker.better:.1%}",
        )
        for ranker in report.rankers
        for top in ranker.tops[place : place + 1]
    ]
    print_table(f"agreement with the truth, {report.n:,} networks", columns, rows)
    bands = [f"≤ {band.high:.0%}" if band.high < 9 else f"> {band.low:.0%}" for band in first.bands]
    cells = [(ranker.name, *(_short(band.tau) for band in ranker.bands)) for ranker in report.rankers]
    cells.append(("n", *(f"{band.n:,}" for band in first.bands)))
    if report.ceiling:
        cells.append(("seed to seed", *(f"{tau:.3f}" for tau in report.ceiling.bands)))
        cells.append(("exact, estimated", *(f"{tau:.3f}" for tau in report.ceiling.exact_bands)))
    print_table("τ-b within bands of MACs, in shares of the largest", ("ranker", *bands), cells)
    limits = [f"≤ {w.limit:.0%}: {w.n:,}" if w.limit < 9 else f"all: {w.n:,}" for w in report.limits]
    cells = [
        (ranker.name, *(f"{w.picks[ranker.name]:.0f} / {w.tens[ranker.name]:.0f}" for w in report.limits))
        for ranker in report.rankers
    ]
    if first.name == "shared weights":
        cells.append(("the shared weights win", *("yes" if limit.wins else "no" for limit in report.limits)))
    print_table("Under a MACs limit: true rank of the top 1 / best in the top 10", ("ranker", *limits), cells)
    for key, reason in report.failed.items():
        print(f"failed: {key}, {reason}")
    for name, tau in report.stability.items():
        print(f"τ-b with the scores of {name}: {tau:.3f}")
    if report.ceiling:
        c = report.ceiling
        print(
            f"{c.runs} trainings each: seed to seed {c.seed_to_seed:.3f}, one to the mean of the others "
            f"{c.seed_to_rest:.3f}, an exact ranker about {c.exact:.3f}"
        )
    print(report.verdict)


def _short(value: Any) -> str:
    """An interval in few characters."""
    return f"{value.value:.3f}" + (f" ({value.low:.2f} to {value.high:.2f})" if value.low == value.low else "")


if __name__ == "__main__":
    main(run)
