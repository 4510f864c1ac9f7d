"""Shrink and widen a width supernet into a budget: python tools/morphnet.py runs/x --max-macs 1e6"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from supernet.checked import Count, FilePath, Name, Positive, Seed
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import Flags, choose, closing, command, main, parse
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust
from supernet_tools.pipeline.units import Limit

if TYPE_CHECKING:
    from searchers import MorphNet, Trial
    from supernet.config import Train
    from supernet.space import Arch, SearchSpace
    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class Morph(Flags):
    """MorphNet (Gordon et al., 2018) on a width space. A search of the same name goes on where it ended."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of a trained width supernet."""
    name: Name = "morphnet"
    """Name of the search, a folder below RUN/search/."""
    max_macs: Limit = None
    """Budget of multiply-accumulates; FLOPs are regularised."""
    max_params: Limit = None
    """Budget of parameters instead; model size is regularised."""
    rounds: Count = 1
    """How often to shrink and widen."""
    epochs: Count | None = None
    """Upper limit on the epochs of a training, which ends earlier when the regulariser settles; by default the run's
    train.epochs."""
    lr: Positive | None = None
    """Constant learning rate; the run's train.lr by default."""
    seed: Seed = 0
    """Seed of data order and augmentation, and with --init scratch of the initial weights."""
    init: Literal["trained", "scratch"] = "trained"
    """Shrink the trained weights, or fresh ones as in the paper."""
    settings: tuple[str, ...] = ()
    """Hyperparameters: metric, strength, scan, threshold, fill, start, patience, tolerance; for instance scan=[1,10]
    threshold=gap fill=0.01."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""


def run() -> None:
    args = parse(Morph, __doc__)
    if (args.max_macs is None) == (args.max_params is None):
        raise InputError("MorphNet keeps exactly one limit: give either --max-macs or --max-params")

    from searchers import Study, search
    from supernet.config import Train
    from supernet.evaluate import SharedWeights
    from supernet.train import check_training
    from supernet_tools.pipeline.classifier import ClassifierKind
    from supernet_tools.pipeline.folder import claim_run
    from supernet_tools.pipeline.runs import open_run
    from supernet_tools.pipeline.search import remedied, search_folder, write_values

    folder = search_folder(args.run, args.name)
    opened = open_run(args.run, moved=args.data)
    if not isinstance(opened.kind, ClassifierKind):
        raise InputError(f"MorphNet sets the widths of a classifier, and {args.run} holds a detector's run")
    changes = {name: value for name in ("epochs", "lr") if (value := getattr(args, name)) is not None}
    constant = {"seed": args.seed, "schedule": "constant", "warmup_epochs": 0.0}
    config: Train = dataclasses.replace(opened.config.train, **constant, **changes)
    settings_of(args, opened.space)  # before images are read
    data = opened.data
    check_training(config, data, task=opened.kind.task)
    searcher = create(args, opened, config, folder)
    evaluate = SharedWeights(searcher.supernet, data.calibration, data.validation, cost=opened.cost)
    with (
        remedied("give another --name"),
        claim_run(folder, "morphnet", config),
        Study(folder / "study.db", searcher.space) as study,
    ):
        best = search(searcher, searcher.scored(evaluate), study, trials=args.rounds * len(searcher.scan))
        show(searcher, study.trials(), best, folder)
        write_values(opened, args.name, study, best)
    closing(
        [folder / "best.json", folder / "front.json"],
        command("retrain", args.run, "--search", args.name),
        command("draw", args.run, "--search", args.name),
    )


def create(args: Morph, opened: "Run", config: "Train", folder: Path) -> "MorphNet":
    """The searcher over the run's supernet, or over one with fresh weights."""
    from searchers import MorphNet
    from supernet.files import write_json
    from supernet.spaces.widths import WidthChain
    from supernet.train import train_supernet
    from supernet_tools.pipeline.run import torch_generator

    supernet = opened.supernet
    if args.init == "scratch":
        generator = torch_generator(args.seed, "supernet")
        supernet = opened.kind.supernet(opened.summary, generator)
        # One network is trained here, not many paths. Branches that began at zero would look as if they could go.
        supernet.init(supernet, generator)
    if not isinstance(supernet, WidthChain):
        raise InputError(f"{args.run} is over {opened.kind.space!r}; MorphNet needs a space of widths")

    config = dataclasses.replace(config, patience=0)  # nothing is scored while widths shrink

    def train(supernet: WidthChain, arch: "Arch", penalty: Any, run: str) -> None:
        options = {"augment": opened.config.data.augment, "penalty": penalty, "state": folder / f"{run}.pt"}
        rows = train_supernet(supernet, opened.data, config, sampler=lambda _: (arch,), **options)
        write_json(folder / f"{run}.json", {"format": 1, "epochs": rows})

    settings = settings_of(args, opened.space)
    return MorphNet(
        supernet.space,
        supernet=supernet.to(config.device),
        train=train,
        seed=args.seed,
        rounds=args.rounds,
        feasible=opened.limits({"macs": args.max_macs, "params": args.max_params}),
        **settings,
    )


def settings_of(args: Morph, space: "SearchSpace") -> dict[str, Any]:
    """Hyperparameters of MorphNet from the command line."""
    from searchers import MorphNet
    from supernet_tools.pipeline.architectures import arch_of
    from supernet_tools.pipeline.settings import parse_settings

    reserved = ("space", "supernet", "train", "seed", "rounds", "feasible")
    metrics = {"accuracy": "accuracy", "-loss": "-loss"}
    converters: dict[str, Callable[[str], Any]] = {
        "metric": lambda text: choose("metric", text, metrics),
        "start": lambda text: arch_of(text, space),
    }
    return parse_settings(MorphNet, args.settings, owner="MorphNet", reserved=reserved, converters=converters)


def show(searcher: "MorphNet", trials: "Sequence[Trial]", best: "Trial", folder: Path) -> None:
    """What every training led to, and the widths of the best architecture, whose JSON is the last line."""
    metric, limit, rows = searcher.metric.removeprefix("-"), searcher.limit, []
    for shrunk, trial in zip(searcher.history, trials, strict=True):
        epochs = json.loads((folder / f"{shrunk.run}.json").read_text(encoding="utf-8"))["epochs"]
        rows.append(
            (
                shrunk.run,
                f"{shrunk.strength:.2e}",
                f"{epochs[0]['penalty']:.3g} to {epochs[-1]['penalty']:.3g}",
                sum(shrunk.alive.values()),
                f"{shrunk.multiplier:.4g}",
                shrunk.cost,
                len(shrunk.clipped),
                trial.failed or f"{trial.metrics[metric]:.4f}",
            )
        )
    columns = ("training", "λ", "λ·G", "alive", "ω", limit, "groups at largest", metric)
    print_table(f"{limit} <= {searcher.budget:,.0f}", columns, rows)
    winner = next(shrunk for shrunk in searcher.history if shrunk.arch == best.arch)
    seed = searcher.supernet.seed
    widths = [(group, width, winner.alive[group], best.arch[group]) for group, width in seed.items()]
    print_table(f"best: {winner.run}", ("group", "seed", "alive", "width"), widths)
    print(best.arch.to_json())


if __name__ == "__main__":
    main(run)
