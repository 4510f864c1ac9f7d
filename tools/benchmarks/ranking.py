"""Which training ranks best, and what searches find: python tools/benchmarks/ranking.py variants, or picks runs/x"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from supernet.config import Augment, SupernetRun, Window
from supernet.errors import InputError, nearest
from supernet_tools.pipeline.command_line import main, print_table

SGD = {"optimizer": "sgd", "lr": 0.15, "weight_decay": 5e-4, "clip": 1.0}
LIMITS = (0.35, 0.50, 0.65, None)  # of the largest MACs


def _train(**changes: Any) -> Callable[[SupernetRun], SupernetRun]:
    return lambda run: dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))


def _run(**changes: Any) -> Callable[[SupernetRun], SupernetRun]:
    return lambda run: dataclasses.replace(run, **changes)


def _cost_bins(run: SupernetRun) -> SupernetRun:
    """Ten bins of MACs, each drawn equally often: the deepest and widest paths come as often as medium ones."""
    from supernet_tools.pipeline import stages

    supernet = stages.supernet_parts(run)[1]
    low, high = stages.CostTable(supernet).extremes("macs") or (0.0, 0.0)
    return dataclasses.replace(run, window=Window("macs", low, high, (high - low) / 10))


VARIANTS: dict[str, tuple[int, Callable[[SupernetRun], SupernetRun]]] = {
    "uniform": (1, _run()),
    "sgd": (1, _train(**SGD)),
    "fair": (3, _run(sampler="fair")),
    "sandwich-distil": (4, lambda run: _run(sampler="sandwich")(_train(distill=True)(run))),
    "largest-first": (1, lambda run: _run(largest_epochs=run.train.epochs / 4)(run)),
    "cost-bins": (1, _cost_bins),
    "drop-decay": (1, _train(weight_decay=0.0)),
    "half-rate": (1, _train(lr=1.5e-3)),
    "small-batch": (1, _train(batch=64)),
}
"""Name to the architectures of a step, by which its epochs are divided, and what it changes of the recipe."""


def variants(
    names: tyro.conf.Positional[tuple[str, ...]] = tuple(VARIANTS),
    source: str = "cifar10",
    size: int = 16,
    epochs: int = 8,
    batch: int = 128,
    ema: float = 0.998,
    n: int = 400,
    images: int = 2500,
    bn_batches: int = 4,
    seeds: tuple[int, ...] = (0,),
    threads: int = 1,
    out: Path = Path("runs/ranking"),
) -> None:
    """Train `macro-cifar10` in several ways with equally many passes of a path, and rank networks of the table by each.

    Args:
        names: Of the variants.
        source: Folder of CIFAR-10's images, or "cifar10".
        size: Pixels.
        epochs: Of a variant that trains one path a step; others have fewer.
        batch: Images of a step.
        ema: Decay of averaged weights, which are scored beside the last ones.
        n: Random distinct networks of the table.
        images: Held-out images that score them.
        bn_batches: Calibration batches of 64.
        seeds: Of the supernets.
        threads: Of torch.
        out: Folder of the runs; finished ones are read, an interrupted one goes on.
    """
    import torch

    from supernet_tools.pipeline.recipes import macro_cifar10

    torch.set_num_threads(threads)
    rows = []
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"there is no variant {name!r}; {nearest(name, VARIANTS)}")
        paths, change = VARIANTS[name]
        for seed in seeds:
            base = macro_cifar10()
            data = dataclasses.replace(base.data, source=source, size=size, augment=Augment(flip=True))
            train = dataclasses.replace(
                base.train, epochs=max(1, round(epochs / paths)), batch=batch, ema=ema, seed=seed
            )
            retrain = dataclasses.replace(base.retrain, batch=batch)
            config = change(dataclasses.replace(base, data=data, train=train, retrain=retrain))
            rows += _ranked(config, out / f"{name}-{seed}", name, n, images, bn_batches)
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
    print_table(f"agreement with the table, n = {n} networks, τ-b of loss in bands of MACs", columns, rows)


def _ranked(config: SupernetRun, folder: Path, name: str, n: int, images: int, bn_batches: int) -> list[Any]:
    """Rows of a variant: its last weights, and the averaged ones."""
    import torch
    from fidelity import score, shipped

    from supernet.ranking.report import fidelity
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.cache import ScoreCache
    from supernet.scoring.shared_weights import SharedWeights
    from supernet.seeding import generator
    from supernet_tools.pipeline import stages

    minutes, began = folder / "minutes.json", time.process_time()
    resumed = (folder / "state.pt").exists()
    run = stages.train_stage(config, folder)
    if not minutes.exists():
        stages.write_json(minutes, {"minutes": (time.process_time() - began) / 60, "at_least": resumed})
    spent = stages.read_json(minutes)
    truth, settings = shipped()
    archs = generator(0, "fidelity").sample(list(truth.values), n)
    part = run.data.validation.subset(torch.arange(min(images, len(run.data.validation))))
    last = stages.create_supernet(config.space, **stages.network_settings(config, run.data))
    last.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["model"])
    rows = []
    ranked = {name: last.eval(), **({f"{name}, averaged": run.supernet} if config.train.ema else {})}
    for title, supernet in ranked.items():
        cache = ScoreCache(folder / "scores.db")
        evaluate = SharedWeights(supernet, run.data.calibration, part, bn=Recalibrate(bn_batches), cache=cache)
        found: dict[Any, Any] = {}
        for start in range(0, n, 64):
            group = archs[start : start + 64]
            found |= zip(group, evaluate(group), strict=True)
        report = fidelity(
            score(found, "loss"),
            truth.values,
            space=supernet.space,
            others={"a": score(found, "accuracy")},
            largest=max(c["macs"] for c in settings["costs"].values()),
            times=200,
            draws=1,
            **settings,
        )
        loss, accuracy = report.rankers[:2]
        bands = [f"{band.tau.value:.3f}" for band in loss.bands]
        cost = f"{'≥ ' if spent['at_least'] else ''}{spent['minutes']:.0f}"
        rows.append((title, config.train.epochs, cost, loss.tau, f"{accuracy.tau.value:.3f}", *bands))
    return rows


# -- what searches find ------------------------------------------------------------------------------------------------


def picks(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    evaluations: int = 1000,
    seeds: int = 5,
    labels: int = 20,
    tuned_epochs: int = 0,
    tuned_limit: float = 0.5,
    bn_batches: int = 10,
    threads: int = 1,
) -> None:
    """Searches of trained `nasbench-macro` supernets within limits of MACs, by the true rank of what they would choose.

    Every network of the table is scored once, into the run's own cache; the searches meet the scores there.

    Args:
        runs: Folders of trained supernets.
        evaluations: Distinct networks that a search scores; all, where fewer are within the limit.
        seeds: Searches per limit.
        labels: Stand-alone trainings of a calibrated choice, which the table's first training of each network gives.
        tuned_epochs: Within `tuned_limit`, rank the first ten of the first search again after so much training of each
            from the shared weights, by the accuracy on held-out images; 0 for no such ranking.
        tuned_limit: One of the limits, as a share of the largest MACs.
        bn_batches: Calibration batches of 64 images.
        threads: Of torch.
    """
    import torch
    from fidelity import shipped

    from supernet_tools.pipeline import stages

    torch.set_num_threads(threads)
    found, settings = shipped()
    macs = {arch: row["macs"] for arch, row in settings["costs"].items()}
    opened = [stages.open_stage(run) for run in runs]
    scores = [stages.shared_scores(run, list(found.values), bn_batches=bn_batches) for run in opened]
    for limit in LIMITS:
        inside = [arch for arch in found.values if limit is None or macs[arch] <= limit * max(macs.values())]
        ranked = sorted(inside, key=lambda arch: -found.values[arch])
        rank = {arch: place for place, arch in enumerate(ranked, start=1)}
        rows: list[tuple[Any, ...]] = _trivial(inside, macs, rank, opened[0].supernet.space)
        for run, scored, path in zip(opened, scores, runs, strict=True):
            told = [
                _searched(run, inside, scored, found, evaluations, labels, seed, limit is None) for seed in range(seeds)
            ]
            for name in told[0]:
                ranks = [[rank[arch] for arch in each[name]] for each in told]
                firsts = [each[0] for each in ranks]
                rows.append((f"{name}, {path.name}", _spread(firsts), _spread([min(each[:10]) for each in ranks])))
            if tuned_epochs and limit == tuned_limit:
                tuned = [rank[arch] for arch in _tuned(run, told[0]["evolution"], tuned_epochs)]
                rows.append((f"evolution 0, its ten fine-tuned, {path.name}", tuned[0], min(tuned)))
        title = f"≤ {limit:.0%} of the largest MACs" if limit else "no limit"
        title += f": {len(inside):,} networks, the best 1 % are {len(inside) // 100} of them"
        print_table(title, ("choice", "true rank of the first", "best true rank of the first ten"), rows)


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):g} ({min(values)} to {max(values)})"


def _trivial(inside: list[Any], macs: Mapping[Any, float], rank: Mapping[Any, int], space: Any) -> list[Any]:
    """Choices without any training; that of chance is what one can expect of it."""
    from supernet.ranking.report import layers

    orders: dict[str, Callable[[Any], Any]] = {
        "MACs": lambda arch: -macs[arch],
        "depth, then MACs": lambda arch: (-layers(space.normal_form(arch)), -macs[arch]),
    }
    rows: list[Any] = []
    for name, key in orders.items():
        first = [rank[arch] for arch in sorted(inside, key=key)[:10]]
        rows.append((name, first[0], min(first)))
    return [*rows, ("random", f"{(len(inside) + 1) / 2:g}", f"{(len(inside) + 1) / 11:.0f}")]


def _searched(
    run: Any,
    inside: list[Any],
    scored: Mapping[Any, Mapping[str, float]],
    found: Any,
    evaluations: int,
    labels: int,
    seed: int,
    unlimited: bool,
) -> dict[str, list[Any]]:
    """Networks in the order of choice after one evolution: by shared loss, and corrected by a few trainings."""
    from searchers import AgingEvolution, Study, search
    from supernet.cost import Feasible
    from supernet.ranking.calibrate import calibrated_ranking

    space, costs = run.supernet.space, run.cost
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

    def label(chosen: Any) -> list[float]:
        return [found.repeats[arch][0] for arch in chosen]

    made = calibrated_ranking(shared, label, space=space, labels=labels)
    corrected = sorted(made.scores, key=lambda arch: -made.scores[arch])
    return {
        "evolution": sorted(shared, key=lambda arch: -shared[arch])[:10],
        f"evolution, corrected by {len(made.labels)} trainings": corrected[:10],
        "the best that the evolution saw": sorted(shared, key=lambda arch: -found.values[arch])[:10],
    }


def _tuned(run: Any, archs: list[Any], epochs: int) -> list[Any]:
    """The architectures in the order of their accuracy on held-out images after a short training of each."""
    from supernet_tools.pipeline import stages

    train = dataclasses.replace(run.config.train, epochs=epochs, lr=run.config.train.lr / 10, ema=0.0)
    told = {arch: stages.retrain_stage(run, arch, train, shared=True, verbose=False) for arch in archs}
    return sorted(archs, key=lambda arch: -told[arch]["validation_accuracy"])


def run() -> None:
    tyro.extras.subcommand_cli_from_dict({"variants": variants, "picks": picks}, description=__doc__)


if __name__ == "__main__":
    main(run)
