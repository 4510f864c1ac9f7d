"""The whole loop on embedded images: train a supernet, search, retrain winner and controls, export."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from supernet.checked import Checked, Count, FilePath, Seed
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.recipes import quickstart
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.units import Amount

if TYPE_CHECKING:
    from supernet.config import Train
    from supernet.cost import Feasible
    from supernet.space import Arch
    from supernet_tools.pipeline.config import SupernetRun
    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class Quickstart(Checked):
    """Train, search, retrain and export on scikit-learn's digits; writes summary.json into the run folder."""

    out: FilePath = Path("runs/quickstart")
    """Folder of the run; an interrupted one goes on."""
    trials: Count = 60
    """Trials of each searcher."""
    max_macs: Amount = 1.4e6
    """Limit on multiply-accumulates, for the search and for the random controls."""
    epochs: Count = quickstart().train.epochs
    """Epochs of the supernet."""
    retrain_epochs: Count = quickstart().retrain.epochs
    """Epochs of every retraining."""
    ranked: Annotated[int, Ge(0), Le(10_000)] = 20
    """Random networks within the limit that get a short training, to see whether shared weights rank; 0 for none."""
    ranked_epochs: Count = 1
    """Epochs of these trainings."""
    seed: Seed = 0
    """Seed of everything."""
    threads: Annotated[int, Ge(1), Le(1024)] = 1
    """Threads of torch. More of them help such small networks little, and slow them several times on busy cores."""


def run() -> None:
    args = parse(Quickstart, __doc__)
    began = time.monotonic()

    import torch

    from supernet.files import write_json
    from supernet.space import Arch
    from supernet_tools.pipeline.architectures import random_feasible
    from supernet_tools.pipeline.export import export_stage
    from supernet_tools.pipeline.retrain import retrain_stage, trained_network
    from supernet_tools.pipeline.search import create_searcher, search_stage
    from supernet_tools.pipeline.train import supernet_accuracy, train_stage

    torch.set_num_threads(args.threads)
    config = quickstart()
    train = dataclasses.replace(config.train, seed=args.seed, epochs=args.epochs)
    retrain = dataclasses.replace(config.retrain, seed=args.seed, epochs=args.retrain_epochs)
    check_limit(args, config)
    trained = train_stage(dataclasses.replace(config, train=train, retrain=retrain), args.out)
    feasible = trained.limits({"macs": args.max_macs})
    results: dict[str, Any] = {}
    for name, settings in (("random", ()), ("aging-evolution", ("population_size=20", "tournament_size=5"))):
        searcher = create_searcher(name, trained, feasible, args.seed, settings)
        results[name] = search_stage(trained, searcher, name, trials=args.trials)
    best_searcher = max(results, key=lambda name: results[name]["score"])
    winner = Arch(results[best_searcher]["arch"])
    controls = random_feasible(trained, feasible, 3, args.seed)
    retrained = [retrain_stage(trained, arch, retrain) for arch in (winner, *controls)]
    short = dataclasses.replace(retrain, epochs=args.ranked_epochs)
    ranking = fidelity_of(trained, feasible, (winner, *controls), short, args.ranked) if args.ranked else None
    folder, parity = export_stage(trained, winner, trained_network(trained, winner, args.seed))
    summary = {
        "format": 1,
        "supernet": supernet_accuracy(trained),
        "limit": {"macs": args.max_macs},
        "searchers": results,
        "winner": {"searcher": best_searcher, **retrained[0]},
        "random_controls": retrained[1:],
        "comparison": compare([result["test_accuracy"] for result in retrained]),
        "fidelity": ranking,
        "export": {"folder": str(folder), **parity},
        "seconds": time.monotonic() - began,
    }
    write_json(args.out / "summary.json", summary)
    show(summary)


def check_limit(args: Quickstart, config: "SupernetRun") -> None:
    """Checks before the training that some architecture is within the limit. Raises `InputError` if none is."""
    from supernet_tools.pipeline.run import Run
    from supernet_tools.pipeline.runs import kind_of

    kind = kind_of(config)
    Run(args.out, kind, kind.load(None).summary()).limits({"macs": args.max_macs})


def compare(accuracies: list[float]) -> dict[str, Any]:
    """The winner (first) against the random controls (the others)."""
    import statistics

    winner, controls = accuracies[0], accuracies[1:]
    mean, deviation = statistics.mean(controls), statistics.stdev(controls)
    return {
        "winner": winner,
        "controls_mean": mean,
        "controls_deviation": deviation,
        "n_controls": len(controls),
        "winner_at_least_mean_minus_deviation": winner >= mean - deviation,
    }


def fidelity_of(
    run: "Run", feasible: "Feasible", excluded: "tuple[Arch, ...]", train: "Train", n: int
) -> dict[str, Any]:
    """How well shared weights rank `n` random networks, by a short training of each, beside rankers that need none.

    Networks in `excluded` are left out, since their folders hold longer trainings.
    """
    from supernet.ranking.report import fidelity
    from supernet_tools.pipeline.architectures import random_feasible
    from supernet_tools.pipeline.retrain import true_accuracies
    from supernet_tools.pipeline.search import shared_scores

    candidates = random_feasible(run, feasible, n + len(excluded), train.seed + 1)
    archs = [arch for arch in candidates if arch not in excluded][:n]
    truth = {arch: values[0] for arch, values in true_accuracies(run, archs, train).items()}
    scores = {arch: metrics["accuracy"] for arch, metrics in shared_scores(run, archs).items()}
    costs = {arch: run.cost(arch) for arch in archs}
    report = fidelity(scores, truth, space=run.space, costs=costs, seed=train.seed)
    return {"epochs": train.epochs, **report.to_json()}


def show(summary: dict[str, Any]) -> None:
    """The same figures on screen."""
    shared, compared = summary["supernet"], summary["comparison"]
    probe = f"random subnets: {shared['mean']:.4f} ± {shared['deviation']:.4f}, n={shared['n']}"
    print_table(
        f"search with shared weights ({probe})",
        ("searcher", "score", "macs", "params", "evaluations", "seconds"),
        [
            (name, *(row[key] for key in ("score", "macs", "params", "evaluations", "seconds")))
            for name, row in summary["searchers"].items()
        ],
    )
    rows = [("winner", summary["winner"])] + [(f"random {i}", r) for i, r in enumerate(summary["random_controls"], 1)]
    print_table(
        "retrained from scratch, test split",
        ("network", "accuracy", "macs", "params", "seconds"),
        [(name, *(row[key] for key in ("test_accuracy", "macs", "params", "seconds"))) for name, row in rows],
    )
    verdict = "at least" if compared["winner_at_least_mean_minus_deviation"] else "BELOW"
    bar = f"{compared['controls_mean']:.4f} - {compared['controls_deviation']:.4f}, n={compared['n_controls']}"
    print(f"winner {compared['winner']:.4f} is {verdict} the controls' mean - 1 s.d. ({bar})")
    if report := summary["fidelity"]:
        rows = [(row["name"], interval(row["tau"])) for row in report["rankers"]]
        title = f"agreement with {report['n']} trainings, epochs: {report['epochs']}"
        print_table(title, ("ranker", "Kendall τ-b, 95 %"), rows)
        print(report["verdict"])
    print(f"exported to {summary['export']['folder']}, parity {json.dumps(summary['export']['differences'])}")
    print(f"{summary['seconds']:.0f} s in all; the same figures are in summary.json")


def interval(tau: dict[str, float | None]) -> str:
    """A correlation with its 95 % interval; a few or equal values have none."""
    value, *bounds = (tau[name] for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    low, high = ("?" if bound is None else f"{bound:.2f}" for bound in bounds)
    return f"{value:.2f} ({low} to {high})"


if __name__ == "__main__":
    main(run)
