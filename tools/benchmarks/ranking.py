"""Which way of training a supernet ranks networks best, and how good are the networks that searches then choose?

    python tools/benchmarks/ranking.py variants        trains supernets in several ways at equal cost and ranks by each
    python tools/benchmarks/ranking.py picks runs/x    searches trained supernets under limits of MACs

The first ends with a table of Kendall's τ per variant, the second with one table of true ranks per limit.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from supernet.checked import Count, FilePath, Natural, Pixels, Positive, Seed, Share, Threads
from supernet.config import Augment, Window
from supernet.errors import InputError, nearest
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.benchmarks.race import LIMITS, Races, raced, shipped_table, simple_of
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet.ranking.truth import Truth
    from supernet.space import Arch, SearchSpace
    from supernet_tools.pipeline.run import Run

SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.15, "weight_decay": 5e-4, "clip": 1.0}

Change = Callable[[SupernetRun], SupernetRun]
"""Turns a recipe into a variant of it."""


def _train(**changes: Any) -> Change:
    return lambda run: dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))


def _run(**changes: Any) -> Change:
    return lambda run: dataclasses.replace(run, **changes)


def _cost_bins(run: SupernetRun) -> SupernetRun:
    """Draws from ten bins of MACs equally often, so that extreme paths are trained as often as medium ones."""
    from supernet_tools.pipeline.runs import kind_of
    from supernet_tools.pipeline.train import prepare

    kind = kind_of(run)
    low, high = kind.costs(prepare(kind).supernet).extremes("macs") or (0.0, 0.0)
    return dataclasses.replace(run, window=Window("macs", low, high, (high - low) / 10))


VARIANTS: dict[str, tuple[int, Change]] = {
    "uniform": (1, _run(sampler="uniform")),
    "sgd": (1, _train(**SGD)),
    "fair": (3, _run(sampler="fair")),
    "sandwich-distil": (4, lambda run: _train(distill=True)(_run(sampler="sandwich")(run))),
    "largest-first": (1, lambda run: _run(largest_epochs=run.train.epochs / 4)(run)),
    "cost-bins": (1, _cost_bins),
    "drop-decay": (1, _train(weight_decay=0.0)),
    "half-rate": (1, _train(lr=1.5e-3)),
    "small-batch": (1, _train(batch=64)),
    "even": (1, _run(sampler="even")),
    "weighted": (1, _run(sampler="weighted")),
    "sandwich": (4, _run(sampler="sandwich")),
    "sandwich-unit-gamma": (4, _run(sampler="sandwich", zero_gamma=False)),
    "slow-average": (1, _train(ema=0.9999)),
    "slow-average-cold": (1, _train(ema=0.9999, ema_warmup=False)),
    "sandwich-largest": (4, lambda run: _train(regularize_largest=True)(_run(sampler="sandwich")(run))),
}
"""Name to the paths per training step, by which the epochs are divided, and the change to the recipe."""


def check_table(recipe: str, truth: Path | None) -> None:
    """Raises `InputError` for a recipe whose space has no table, neither shipped nor given."""
    if recipe != "macro-cifar10" and truth is None:
        raise InputError(f"no table of {recipe!r} is shipped; give --truth FILE.csv")


def reduced(
    recipe: str,
    *,
    source: str,
    size: int,
    space_settings: Sequence[str],
    epochs: int,
    batch: int,
    seed: int,
    ema: float = 0.0,
) -> SupernetRun:
    """Returns a recipe for a short training on small images, which are flipped at most."""
    from supernet_tools.pipeline.recipes import RECIPES

    base = RECIPES[recipe]()
    assert isinstance(base, SupernetRun)
    return dataclasses.replace(
        base,
        space_settings=(*base.space_settings, *space_settings),
        data=dataclasses.replace(base.data, source=source, size=size, augment=Augment(flip=True)),
        train=dataclasses.replace(base.train, epochs=epochs, batch=batch, ema=ema, seed=seed),
        retrain=dataclasses.replace(base.retrain, batch=batch),
    )


def drawn(truth: "Truth", n: int) -> "list[Arch]":
    """Returns n random networks that have a true accuracy, or all if there are fewer."""
    from supernet.seeding import generator

    archs = [arch for arch, accuracy in truth.values.items() if accuracy is not None]
    return generator(0, "fidelity").sample(archs, min(n, len(archs)))


def variants(
    names: tyro.conf.Positional[tuple[str, ...]] = tuple(VARIANTS),
    source: str = "cifar10",
    size: Pixels = 16,
    epochs: Count = 8,
    batch: Count = 128,
    ema: Share = 0.998,
    n: Count = 400,
    images: Count = 2500,
    bn_batches: Count = 4,
    seeds: tuple[Seed, ...] = (0,),
    recipe: Literal["macro-cifar10", "nasbench201-cifar10"] = "macro-cifar10",
    truth: FilePath | None = None,
    space_settings: tuple[str, ...] = (),
    threads: Threads = 1,
    out: FilePath = Path("runs/ranking"),
) -> None:
    """Train a recipe in several ways with equally many passes of a path, and rank networks of its table by each.

    With several seeds a second table has the mean τ of each variant with its 95 % interval, and the differences to the
    first variant with the same seed.

    Args:
        names: Names of variants; all by default.
        source: Folder of CIFAR-10's images, or "cifar10".
        size: Image side in pixels.
        epochs: Epochs of a variant that trains one path per step; others train for proportionally fewer.
        batch: Images per step.
        ema: Decay of the averaged weights, which are scored beside the last ones.
        n: Random distinct networks of the table that are ranked, or all if it has fewer.
        images: Held-out images that score a network.
        bn_batches: Calibration batches, of 64 images each.
        seeds: Seeds of the supernets.
        recipe: The recipe that the variants change.
        truth: A table of accuracies (see tools/fidelity.py); needed for nasbench201-cifar10, whose table is not
            shipped.
        space_settings: Further settings of the space, such as channels=8 cells=2; the networks of the table are larger.
        threads: Threads of torch.
        out: Folder of the runs. Finished runs are read, an interrupted one is resumed.
    """
    import torch

    check_table(recipe, truth)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(f"there is no variant {unknown[0]!r}; {nearest(unknown[0], VARIANTS)}")
    if n < 2:
        raise InputError(f"--n {n}: a ranking needs at least two networks")
    torch.set_num_threads(threads)
    rows: list[Row] = []
    taus: dict[str, list[float]] = {}
    for name in names:
        paths, change = VARIANTS[name]
        for seed in seeds:
            shorter = max(1, round(epochs / paths))
            config = change(
                reduced(
                    recipe,
                    source=source,
                    size=size,
                    space_settings=space_settings,
                    epochs=shorter,
                    batch=batch,
                    seed=seed,
                    ema=ema,
                )
            )
            ranked = _ranked(config, out / f"{name}-{seed}", name, n, images, bn_batches, truth)
            rows += ranked
            taus.setdefault(name, []).append(ranked[-1][3].value)
    columns = (
        "variant",
        "epochs",
        "minutes",
        "τ of loss, 95 %",
        "τ of accuracy",
        "≤ 35 %",
        "≤ 50 %",
        "≤ 65 %",
        "> 65 %",
    )
    print_table(
        f"agreement with the table, n = {n} networks; τ-b, and that of the loss in bands of MACs", columns, rows
    )
    if len(seeds) > 1:
        first = taus[names[0]]
        means = [
            (name, format_mean(own, 3), format_mean([a - b for a, b in zip(own, first, strict=True)], 3))
            for name, own in taus.items()
        ]
        title = f"τ of the loss over {len(seeds)} seeds{', averaged weights' if ema else ''}"
        print_table(title, ("variant", "mean", f"less that of {names[0]}"), means)


Row = tuple[Any, ...]


def _ranked(
    config: SupernetRun, folder: Path, name: str, n: int, images: int, bn_batches: int, table: Path | None
) -> list[Row]:
    """Returns the rows of a variant: one for its last weights and one for the averaged weights."""
    import torch

    from supernet.files import read_json, write_json
    from supernet.ranking.report import fidelity
    from supernet.ranking.truth import read_truth
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.cache import ScoreCache
    from supernet.scoring.shared_weights import SharedWeights
    from supernet_tools.fidelity import ranked_by, shipped
    from supernet_tools.pipeline.train import train_stage

    minutes, began = folder / "minutes.json", time.process_time()
    resumed = (folder / "state.pt").exists()
    run = train_stage(config, folder)
    if not minutes.exists():
        write_json(minutes, {"minutes": (time.process_time() - began) / 60, "at_least": resumed})
    spent = read_json(minutes)
    if table is None:
        truth, settings = shipped()
    else:
        truth = read_truth(table, run.space)
        settings = {"costs": {arch: run.cost(arch) for arch in truth.values}}
    archs = drawn(truth, n)
    part = run.data.validation.subset(torch.arange(min(images, len(run.data.validation))))
    last = run.kind.supernet(run.summary)
    last.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    rows: list[Row] = []
    supernets = {name: last.eval()}
    if config.train.ema:
        supernets[f"{name}, averaged"] = run.supernet
    for title, supernet in supernets.items():
        cache = ScoreCache(folder / "scores.db")
        evaluate = SharedWeights(supernet, run.data.calibration, part, bn=Recalibrate(bn_batches), cache=cache)
        metrics: dict[Arch, dict[str, float]] = {}
        for start in range(0, len(archs), 64):
            group = archs[start : start + 64]
            metrics |= zip(group, evaluate(group), strict=True)
        report = fidelity(
            ranked_by(metrics, "loss"),
            truth.values,
            space=supernet.space,
            others={"a": ranked_by(metrics, "accuracy")},
            largest=max(costs["macs"] for costs in settings["costs"].values()),
            times=200,
            draws=1,
            **settings,
        )
        loss, accuracy = report.rankers[:2]
        bands = [f"{band.tau.value:.3f}" for band in loss.bands]
        minutes_spent = f"{'≥ ' if spent['at_least'] else ''}{spent['minutes']:.0f}"
        rows.append((title, config.train.epochs, minutes_spent, loss.tau, f"{accuracy.tau.value:.3f}", *bands))
    return rows


# -- what searches find ------------------------------------------------------------------------------------------------


def picks(
    runs: tyro.conf.Positional[tuple[FilePath, ...]],
    evaluations: Count = 1000,
    seeds: Count = 5,
    labels: Natural = 20,
    tuned_epochs: Natural = 0,
    tuned_limit: Positive = 0.5,
    bn_batches: Count = 10,
    threads: Threads = 1,
) -> None:
    """Search trained `nasbench-macro` supernets under limits of MACs, and report the true ranks of their choices.

    Every network of the table is scored once, into the run's own cache, from which the searches take their scores.

    Args:
        runs: Folders of trained supernets.
        evaluations: Distinct networks that a search scores; all, where fewer are within the limit.
        seeds: Searches per limit.
        labels: Standalone trainings that correct a ranking, or that a race takes; the table's first training of each
            network stands for them.
        tuned_epochs: Epochs for which the top ten of the first search under `tuned_limit` are fine-tuned from the
            shared weights before they are ranked again by held-out accuracy; 0 leaves this out.
        tuned_limit: One of the limits, as a share of the largest MACs.
        bn_batches: Calibration batches, of 64 images each.
        threads: Threads of torch.
    """
    import torch

    from supernet_tools.fidelity import shipped
    from supernet_tools.pipeline.runs import open_run
    from supernet_tools.pipeline.search import shared_scores

    if not runs:
        raise InputError("name at least one folder of a trained supernet")
    torch.set_num_threads(threads)
    truth, settings = shipped()
    macs = {arch: row["macs"] for arch, row in settings["costs"].items()}
    accuracy = {arch: value for arch, value in truth.values.items() if value is not None}
    table = shipped_table()
    opened = [open_run(run) for run in runs]
    other = next((run for run in opened if run.space.digest() != table.space.digest()), None)
    if other is not None:
        raise InputError(f"{other.folder} is a run of {other.space.name!r}; give runs of {table.space.name!r}")
    scores = [shared_scores(run, list(truth.values), bn_batches=bn_batches) for run in opened]
    for limit in LIMITS:
        inside = [arch for arch in accuracy if limit is None or macs[arch] <= limit * max(macs.values())]
        ranked = sorted(inside, key=lambda arch: -accuracy[arch])
        rank = {arch: place for place, arch in enumerate(ranked, start=1)}
        rows = _untrained_choices(inside, macs, rank, opened[0].space)
        simple = simple_of(table, inside)
        for run, scored, path in zip(opened, scores, runs, strict=True):
            searches = [
                _searched(run, inside, scored, truth, evaluations, labels, seed, limit is None) for seed in range(seeds)
            ]
            known = {arch: -scored[arch]["loss"] for arch in inside}
            for seed, choices in enumerate(searches):
                own = {arch: known[arch] for arch in choices.pop("scored")}
                result = raced(Races(trainings=labels), table, own, known, simple, seed)
                choices[f"evolution, then a race of {labels} trainings"] = [runner.arch for runner in result.runners]
            for name in searches[0]:
                ranks = [[rank[arch] for arch in choices[name]] for choices in searches]
                first = _median_and_range([places[0] for places in ranks])
                best = _median_and_range([min(places[:10]) for places in ranks])
                rows.append((f"{name}, {path.name}", first, best))
            if tuned_epochs and limit == tuned_limit:
                tuned = [rank[arch] for arch in _fine_tuned(run, searches[0]["evolution"], tuned_epochs)]
                rows.append((f"evolution 0, top ten fine-tuned, {path.name}", tuned[0], min(tuned)))
        title = f"≤ {limit:.0%} of the largest MACs" if limit else "no limit"
        title += f": {len(inside):,} networks, of which the best 1 % are {len(inside) // 100}"
        print_table(title, ("choice", "true rank of the top 1", "best true rank in the top 10"), rows)


def _median_and_range(values: list[int]) -> str:
    return f"{statistics.median(values):g} ({min(values)} to {max(values)})"


def _untrained_choices(
    inside: "list[Arch]", macs: "Mapping[Arch, float]", rank: "Mapping[Arch, int]", space: "SearchSpace"
) -> list[Row]:
    """Returns the rows of choices that need no training: by MACs, by depth, and the expectation of a random choice."""
    from supernet.ranking.depth import layers

    orders: dict[str, Callable[[Arch], Any]] = {
        "MACs": lambda arch: -macs[arch],
        "depth, then MACs": lambda arch: (-layers(space.normal_form(arch)), -macs[arch]),
    }
    rows: list[Row] = []
    for name, key in orders.items():
        top_ten = [rank[arch] for arch in sorted(inside, key=key)[:10]]
        rows.append((name, top_ten[0], min(top_ten)))
    return [*rows, ("random", f"{(len(inside) + 1) / 2:g}", f"{(len(inside) + 1) / 11:.0f}")]


def _searched(
    run: "Run",
    inside: "list[Arch]",
    scored: "Mapping[Arch, Mapping[str, float]]",
    truth: "Truth",
    evaluations: int,
    labels: int,
    seed: int,
    unlimited: bool,
) -> "dict[str, list[Arch]]":
    """Returns the choices of one evolution, best first: by shared loss, and corrected by a few standalone trainings.

    "scored" has all networks that it scored.
    """
    from searchers import AgingEvolution, Study, search
    from supernet.cost import Feasible
    from supernet.ranking.calibrate import calibrated_ranking

    space, costs = run.space, run.cost
    largest = max(costs(arch)["macs"] for arch in inside)
    feasible = None if unlimited else Feasible(costs, {"macs": largest})
    study = Study(None, space)
    search(
        AgingEvolution(space, metric="-loss", seed=seed, feasible=feasible),
        lambda archs: [{**scored[space.normal_form(arch)], **costs(arch)} for arch in archs],
        study,
        trials=20 * evaluations,
        evaluations=min(evaluations, len(inside)),
    )
    shared = {space.normal_form(t.arch): -t.metrics["loss"] for t in study.trials() if not t.failed}

    def label(archs: "Sequence[Arch]") -> list[float]:
        return [truth.repeats[arch][0] for arch in archs]

    calibration = calibrated_ranking(shared, label, space=space, labels=labels)
    corrected = sorted(calibration.scores, key=lambda arch: -calibration.scores[arch])
    accuracy = {arch: value for arch, value in truth.values.items() if value is not None}
    return {
        "scored": list(shared),
        "evolution": sorted(shared, key=lambda arch: -shared[arch])[:10],
        f"evolution, corrected by {len(calibration.labels)} trainings": corrected[:10],
        "the best that the evolution saw": sorted(shared, key=lambda arch: -accuracy[arch])[:10],
    }


def _fine_tuned(run: "Run", archs: "list[Arch]", epochs: int) -> "list[Arch]":
    """Returns the architectures by descending held-out accuracy after fine-tuning each from the shared weights."""
    from supernet_tools.pipeline.retrain import retrain_stage

    train = dataclasses.replace(run.config.train, epochs=epochs, lr=run.config.train.lr / 10, ema=0.0)
    results = {arch: retrain_stage(run, arch, train, shared=True, verbose=False) for arch in archs}
    return sorted(archs, key=lambda arch: -results[arch]["validation_accuracy"])


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {"variants": variants, "picks": picks}
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
