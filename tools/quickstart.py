"""The whole loop on embedded images: train a supernet, search, race the best against simple networks, export."""

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from supernet.checked import Checked, Count, FilePath, Seed, Threads
from supernet_tools.pipeline.command_line import closing, command, main, parse
from supernet_tools.pipeline.recipes import demo
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.units import Amount

if TYPE_CHECKING:
    from supernet.config import Train
    from supernet.cost import Feasible
    from supernet_tools.pipeline.config import SupernetRun
    from supernet_tools.pipeline.run import Run

SEARCHERS: dict[str, tuple[str, ...]] = {"random": (), "aging-evolution": ("population_size=20", "tournament_size=5")}
SPLITS = ("validation", "test")
CONTROLS = 3  # random networks, trained as often as the winner


@dataclass(frozen=True)
class Quickstart(Checked):
    """Train, search, select and export on scikit-learn's digits; writes summary.json into the run folder."""

    out: FilePath = Path("runs/quickstart")
    """Folder of the run; an interrupted one goes on."""
    trials: Count = 100
    """Trials of each searcher."""
    max_macs: Amount = 33e3
    """Limit on multiply-accumulates, for the searches, the simple networks and the random controls."""
    epochs: Count = demo().train.epochs
    """Epochs of the supernet."""
    retrain_epochs: Count = demo().retrain.epochs
    """Epochs of every training of a single network."""
    trainings: Annotated[float, Ge(2), Le(10_000)] = 24
    """Full trainings that choose the network."""
    seed: Seed = 0
    """Seed of everything."""
    threads: Threads = 1
    """Threads of torch. More of them help such small networks little, and slow them several times on busy cores."""


def run() -> None:
    args = parse(Quickstart, __doc__)
    began = time.monotonic()

    import torch

    from supernet.files import write_json
    from supernet.space import Arch
    from supernet_tools.pipeline.export import export_stage
    from supernet_tools.pipeline.retrain import trained_network
    from supernet_tools.pipeline.search import create_searcher, search_stage
    from supernet_tools.pipeline.select import select_stage
    from supernet_tools.pipeline.train import supernet_accuracy, train_stage

    torch.set_num_threads(args.threads)
    config = demo()
    train = dataclasses.replace(config.train, seed=args.seed, epochs=args.epochs)
    retrain = dataclasses.replace(config.retrain, seed=args.seed, epochs=args.retrain_epochs)
    check_limit(args, config)
    trained = train_stage(dataclasses.replace(config, train=train, retrain=retrain), args.out)
    feasible = trained.limits({"macs": args.max_macs})
    searches = {
        name: search_stage(
            trained, create_searcher(name, trained, feasible, args.seed, settings), name, trials=args.trials
        )
        for name, settings in SEARCHERS.items()
    }
    selected = select_stage(trained, list(searches), retrain, trainings=args.trainings, random=CONTROLS)
    winner = Arch(selected["winner"]["arch"])
    rows = controls(trained, feasible, selected, retrain)
    folder, parity = export_stage(trained, winner, trained_network(trained, winner, args.seed))
    summary = {
        "format": 2,
        "supernet": supernet_accuracy(trained),
        "limit": {"macs": args.max_macs},
        "searchers": searches,
        "front": front(searches, selected),
        "selected": {name: value for name, value in selected.items() if name not in ("format", "networks")},
        "controls": rows,
        "controls_verdict": verdict(rows),
        "export": {"folder": str(folder), **parity},
        "seconds": time.monotonic() - began,
    }
    write_json(args.out / "summary.json", summary)
    show(summary)
    closing([args.out / "summary.json"], command("report", args.out), command("fit", "PHOTOS"))


def check_limit(args: Quickstart, config: "SupernetRun") -> None:
    """Checks before the training that some architecture is within the limit. Raises `InputError` if none is."""
    from supernet_tools.pipeline.run import Run
    from supernet_tools.pipeline.runs import kind_of

    kind = kind_of(config)
    Run(args.out, kind, kind.load(None).summary()).limits({"macs": args.max_macs})


def controls(run: "Run", feasible: "Feasible", selected: dict[str, Any], train: "Train") -> list[dict[str, Any]]:
    """The winner, the best simple network if that is another one, and random networks, all trained as often."""
    from supernet.space import Arch
    from supernet_tools.pipeline.architectures import random_feasible
    from supernet_tools.pipeline.retrain import retrain_stage

    winner = selected["winner"]
    networks = {"winner": Arch(winner["arch"])}
    if "simple" in selected["margins"]:
        key = selected["margins"]["simple"]["over"]
        simple = next(row for row in selected["networks"] if row["key"] == key)
        networks[f"simple: {simple['name']}"] = Arch(simple["arch"])
    drawn = random_feasible(run, feasible, CONTROLS + len(networks), train.seed)
    others = [arch for arch in drawn if arch not in networks.values()][:CONTROLS]
    networks |= {f"random {number}": arch for number, arch in enumerate(others, start=1)}
    rows = []
    for name, arch in networks.items():
        seeds = [dataclasses.replace(train, seed=train.seed + number) for number in range(len(winner["scores"]))]
        results = [retrain_stage(run, arch, seed, verbose=False) for seed in seeds]
        rows.append(
            {
                "network": name,
                "key": arch.key,
                "macs": results[0]["macs"],
                "validation": [result["validation_accuracy"] for result in results],
                "test": [result["test_accuracy"] for result in results],
            }
        )
    return rows


def front(searches: dict[str, dict[str, Any]], selected: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of the searches that none of the others beats in both shared accuracy and MACs, cheapest first.

    Those that the race trained carry their accuracy on validation images.
    """
    from supernet.space import Arch

    trained = {row["key"]: statistics.fmean(row["scores"]) for row in selected["networks"] if row["scores"]}
    points = {Arch(row["arch"]): row for search in searches.values() for row in search["front"]}
    rows: list[dict[str, Any]] = []
    for arch, row in sorted(points.items(), key=lambda item: (item[1]["macs"], -item[1]["accuracy"])):
        if not rows or row["accuracy"] > rows[-1]["shared"]:
            costs = {"macs": row["macs"], "params": row["params"]}
            rows.append({"key": arch.key, "shared": row["accuracy"], "trained": trained.get(arch.key), **costs})
    return rows


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """The winner (first) against the random networks on the test split, in words, and the best simple one beside it."""
    accuracy = {row["network"]: statistics.fmean(row["test"]) for row in rows}
    winner = accuracy["winner"]
    randoms = [value for name, value in accuracy.items() if name.startswith("random")]
    below = sum(winner < value for value in randoms)
    place = f"below {below} of {len(randoms)}" if below else f"at least the best of {len(randoms)}"
    sentence = f"on test images the winner ({winner:.4f}) is {place} random networks ({max(randoms):.4f})"
    simple = [f"; {name}: {value:.4f}" for name, value in accuracy.items() if name.startswith("simple")]
    return "".join([sentence, *simple])


def show(summary: dict[str, Any]) -> None:
    """The same figures on screen."""
    shared, selected = summary["supernet"], summary["selected"]
    probe = f"random subnets: {shared['mean']:.4f} ± {shared['deviation']:.4f}, n={shared['n']}"
    print_table(
        f"search with shared weights ({probe})",
        ("searcher", "score", "macs", "params", "evaluations", "seconds"),
        [
            (name, *(row[key] for key in ("score", "macs", "params", "evaluations", "seconds")))
            for name, row in summary["searchers"].items()
        ],
    )
    print_table(
        "front of the searches: shared accuracy over MACs, and the accuracy of those that were trained",
        ("network", "macs", "params", "shared", "trained"),
        [
            (row["key"], row["macs"], row["params"], f"{row['shared']:.4f}", _mean(row["trained"]))
            for row in summary["front"]
        ],
    )
    seeds = len(selected["winner"]["scores"])
    print_table(
        f"trained from scratch, mean of {seeds} seed{'s' if seeds > 1 else ''}",
        ("network", "key", "macs", *SPLITS),
        [
            (
                row["network"],
                row["key"],
                row["macs"],
                *(_mean(statistics.fmean(row[s])) for s in ("validation", "test")),
            )
            for row in summary["controls"]
        ],
    )
    print(f"{selected['trainings']:g} trainings of single networks: {selected['verdict']}")
    print(summary["controls_verdict"])
    print(f"exported to {summary['export']['folder']}, parity {json.dumps(summary['export']['differences'])}")
    print(f"{summary['seconds']:.0f} s in all; the same figures are in summary.json")


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main(run)
