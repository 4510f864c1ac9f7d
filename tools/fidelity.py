"""Can the ranking be trusted? python tools/fidelity.py runs/x --truth table, or --table-only without a run"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from supernet.errors import InputError
from supernet.seeding import generator
from supernet_tools.pipeline.command_line import main, parse, print_table


@dataclass(frozen=True)
class Fidelity:
    """Compare shared-weight scores with the truth, with rankers that need no training, and with noise between seeds."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the trained supernet."""
    table_only: bool = False
    """No supernet: what trivial rankers and repeated trainings reach on the shipped table of NAS-Bench-Macro."""
    truth: str = "table"
    """"table" (shipped, for the space nasbench-macro), a CSV file with a column `arch`, or "retrain"."""
    column: str = "accuracy"
    """Of the CSV file."""
    n: int = 1000
    """Distinct networks, drawn at random; 0 for all of a table. "retrain" trains each of them."""
    score: Literal["", "accuracy", "loss", "map", "map50"] = ""
    """What the shared weights rank by, accuracy or a detector's map by default; another figure stands beside it."""
    labels: int = 0
    """Report a ranking calibrated by this many true accuracies from the shared top, too."""
    checkpoints: tuple[Path, ...] = ()
    """Other weights of the same supernet, run folders or files, for the stability of the ranking."""
    seeds: int = 1
    """Of "retrain": trainings per network; two or more show the noise ceiling."""
    epochs: int | None = None
    """Of "retrain", instead of the recipe's."""
    bn_batches: int = 10
    """Calibration batches of 64 images."""
    resamples: int = 500
    """Of the bootstrap."""
    seed: int = 0
    """Of the networks drawn, retrainings and resamples."""
    name: str | None = None
    """Of the report, RUN/fidelity/NAME.json; from the settings by default."""


def run() -> None:
    args = parse(Fidelity, __doc__)
    if (args.run is None) != args.table_only:
        raise InputError("give the folder of a trained supernet, or --table-only and no folder")

    from supernet.ranking.report import fidelity
    from supernet_tools.pipeline import stages

    if args.table_only:
        space, found, settings = stages.create_supernet("nasbench-macro").space, *shipped()
        show(fidelity(None, found.values, space=space, repeats=found.repeats, **settings, times=args.resamples))
        return
    opened = stages.open_stage(args.run)
    args = dataclasses.replace(args, score=args.score or opened.kind.metric)
    if args.score not in opened.kind.metrics:
        raise InputError(f"this run is not scored by {args.score!r}, but by {' and '.join(opened.kind.metrics)}")
    archs, found, settings = truth(args, opened)
    scores, others = shared(args, opened, archs, found)
    named = {str(path): score(opened_scores(args, opened, archs, path), args.score) for path in args.checkpoints}
    report = fidelity(
        scores,
        found.values,
        space=opened.supernet.space,
        repeats=found.repeats,
        others=others,
        checkpoints=named,
        times=args.resamples,
        seed=args.seed,
        **settings,
    )
    name = args.name or f"{Path(args.truth).stem}-{args.score}-n{len(archs)}-seed{args.seed}"
    folder = args.run / "fidelity"
    folder.mkdir(exist_ok=True)
    asked = {key: str(value) for key, value in dataclasses.asdict(args).items()}
    stages.write_json(folder / f"{name}.json", {**report.to_json(), "settings": asked})
    show(report)
    print(f"saved as {folder / name}.json")


def shipped() -> tuple[Any, dict[str, Any]]:
    """The table of NAS-Bench-Macro: truth and costs of its distinct networks."""
    from supernet import create_supernet
    from supernet.ranking.truth import distinct
    from supernet.spaces.nasbench_macro import table

    found = distinct(create_supernet("nasbench-macro").space, table())
    return found, {"costs": {arch: table()[arch] for arch in found.values}}


def truth(args: Fidelity, opened: Any) -> tuple[list[Any], Any, dict[str, Any]]:
    """The networks to rank, their true accuracies, and the costs that bands of MACs are made of."""
    from supernet.ranking.truth import Truth, read_truth
    from supernet_tools.pipeline import stages

    space = opened.supernet.space
    if args.truth == "retrain":
        archs = stages.random_feasible(opened, stages.limits_of(opened, {}), args.n, args.seed)
        changed = {} if args.epochs is None else {"epochs": args.epochs}
        train = dataclasses.replace(opened.config.retrain, seed=args.seed, **changed)
        told = stages.true_accuracies(opened, archs, train, seeds=args.seeds)
        means = {a: None if None in runs else sum(runs) / len(runs) for a, runs in told.items()}
        found = Truth(means, {a: runs for a, runs in told.items() if len(runs) > 1 and None not in runs})
    elif args.truth == "table":
        if space.name != "nasbench-macro":
            raise InputError(f"no table of {space.name!r} is shipped; give --truth FILE.csv or --truth retrain")
        found, settings = shipped()
        return sampled(args, found), found, {**settings, "largest": max(c["macs"] for c in settings["costs"].values())}
    else:
        found = read_truth(Path(args.truth), space, column=args.column)
    archs, edges = sampled(args, found), opened.cost.extremes("macs")
    costs = {arch: opened.cost(arch) for arch in archs}
    return archs, found, {"costs": costs, "largest": edges[1] if edges else None}


def sampled(args: Fidelity, found: Any) -> list[Any]:
    """Networks of the truth, drawn at random; failed ones stay among them, to be counted."""
    everything = list(found.values)
    if not args.n or args.n >= len(everything):
        return everything
    return generator(args.seed, "fidelity").sample(everything, args.n)


def opened_scores(args: Fidelity, opened: Any, archs: list[Any], weights: Path | None = None) -> dict[Any, Any]:
    """Metrics of all networks with the shared weights."""
    from supernet_tools.pipeline import stages

    found: dict[Any, Any] = stages.shared_scores(opened, archs, bn_batches=args.bn_batches, weights=weights)
    return found


def score(metrics: dict[Any, Any], name: str) -> dict[Any, float]:
    """Accuracy, or the loss with its sign turned: higher is better."""
    return {arch: -row[name] if name == "loss" else row[name] for arch, row in metrics.items()}


def shared(args: Fidelity, opened: Any, archs: list[Any], found: Any) -> tuple[dict[Any, float], dict[str, Any]]:
    """The scores that the report is about, and further rankers beside them."""
    from supernet.ranking.calibrate import calibrated_ranking

    metrics = opened_scores(args, opened, archs)
    mine, other = score(metrics, args.score), next(name for name in opened.kind.metrics if name != args.score)
    rankers: dict[str, Any] = {f"shared {other}": score(metrics, other)}
    if args.labels:

        def label(chosen: Any) -> list[float | None]:  # one training each, where the truth knows single ones
            return [found.repeats[arch][0] if arch in found.repeats else found.values[arch] for arch in chosen]

        made = calibrated_ranking(mine, label, space=opened.supernet.space, labels=args.labels)
        rankers[f"calibrated, {len(made.labels)} labels"] = made.scores
    return mine, rankers


def show(report: Any) -> None:
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
    )
    rows = [
        (ranker.name, ranker.tau, ranker.rho, f"{top.precision.value:.2f}", f"{top.regret:.4f}", f"{top.rank:.1f}")
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
    limits = [f"≤ {w.limit:.0%}: {w.n:,}" if w.limit < 9 else f"all: {w.n:,}" for w in report.windows]
    cells = [
        (ranker.name, *(f"{w.picks[ranker.name]:.0f} / {w.tens[ranker.name]:.0f}" for w in report.windows))
        for ranker in report.rankers
    ]
    if first.name == "shared weights":
        cells.append(("the shared weights win", *("yes" if window.wins else "no" for window in report.windows)))
    print_table(
        "true rank of the pick / of the best of the first ten, within limits of MACs", ("ranker", *limits), cells
    )
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
