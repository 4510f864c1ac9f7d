"""Shrink and widen a width supernet into a budget: python tools/morphnet.py runs/x --max-macs 1e6"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from supernet.errors import InputError
from supernet_tools.pipeline.command_line import choose, main, parse, print_table

if TYPE_CHECKING:
    from searchers import MorphNet, Trial
    from supernet.config import Train
    from supernet_tools.pipeline.stages import Run


@dataclass(frozen=True)
class Morph:
    """MorphNet (Gordon et al., 2018) on a width space; a search of the same name goes on where it ended."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained width supernet."""
    name: str = "morphnet"
    """Of the search below RUN/search/."""
    max_macs: float | None = None
    """Budget of multiply-accumulates; FLOPs are regularised."""
    max_params: float | None = None
    """Budget of parameters instead; model size is regularised."""
    rounds: int = 1
    """How often to shrink and widen."""
    epochs: int | None = None
    """Most epochs of a training, which ends before when the regulariser settles; the run's train.epochs by default."""
    lr: float | None = None
    """Constant learning rate; the run's train.lr by default."""
    seed: int = 0
    """Of data order and augmentation, and with --init scratch of the initial weights."""
    init: Literal["trained", "scratch"] = "trained"
    """Shrink the trained weights, or as in the paper fresh ones."""
    settings: tuple[str, ...] = ()
    """metric, strength, scan, threshold, fill, start, patience, tolerance; e.g. scan=[1,10] threshold=gap fill=0.01."""


def run() -> None:
    args = parse(Morph, __doc__)
    if (args.max_macs is None) == (args.max_params is None):
        raise InputError("MorphNet keeps exactly one limit: give either --max-macs or --max-params")

    from searchers import Study, search
    from supernet.scoring.shared_weights import SharedWeights
    from supernet_tools.pipeline import stages
    from supernet_tools.pipeline.folder import open_run

    opened, folder = stages.open_stage(args.run), args.run / "search" / args.name
    if opened.kind.metric != "accuracy":
        raise InputError(f"MorphNet sets the widths of a classifier, and {args.run} holds a detector's run")
    data, changed = opened.data, {n: v for n in ("epochs", "lr") if (v := getattr(args, n)) is not None}
    constant = {"seed": args.seed, "schedule": "constant", "warmup_epochs": 0.0}
    config = dataclasses.replace(opened.config.train, **constant, **changed)
    stages.check_training(config, data, opened.config.data.augment)
    searcher = create(args, opened, config, folder)
    evaluate = SharedWeights(searcher.supernet, data.calibration, data.validation, cost=opened.cost)
    with open_run(folder, "morphnet", config), Study(folder / "study.db", searcher.space) as study:
        best = search(searcher, searcher.scored(evaluate), study, trials=args.rounds * len(searcher.scan))
        show(searcher, study.trials(), best, folder)


def create(args: Morph, opened: "Run", config: "Train", folder: Path) -> "MorphNet":
    """The searcher over the run's supernet, or over one with fresh weights."""
    from searchers import MorphNet
    from supernet.training.loop import train_supernet
    from supernet_tools.pipeline import stages

    data, net = opened.data, opened.supernet
    if args.init == "scratch":
        init, settings = stages.torch_generator(args.seed, "supernet"), stages.network_settings(opened.config, data)
        net = stages.create_supernet(opened.config.space, generator=init, **settings)

    def train(supernet: Any, arch: Any, penalty: Any, run: str) -> None:
        options = {"augment": opened.config.data.augment, "penalty": penalty, "state": folder / f"{run}.pt"}
        rows = train_supernet(supernet, data, config, sampler=lambda _: (arch,), **options)
        stages.write_json(folder / f"{run}.json", {"format": 1, "epochs": rows})

    feasible = stages.limits_of(opened, {"macs": args.max_macs, "params": args.max_params})
    given: dict[str, Any] = {"seed": args.seed, "rounds": args.rounds, "feasible": feasible}
    given |= {name: setting(opened, name, text) for name, text in stages.pairs(args.settings).items()}
    return MorphNet(net.space, supernet=net.to(config.device), train=train, **given)


def setting(opened: "Run", name: str, text: str) -> Any:
    """A hyperparameter of MorphNet from text."""
    from supernet_tools.pipeline import stages

    kinds: dict[str, Callable[[str], Any]] = {
        "metric": lambda text: choose("metric", text, {name: name for name in ("accuracy", "-loss")}),
        "strength": float,
        "scan": lambda text: [float(multiple) for multiple in json.loads(text)],
        "threshold": lambda text: text if text == "gap" else float(text),
        "fill": float,
        "start": lambda text: stages.read_arch(opened, text),
        "patience": int,
        "tolerance": float,
    }
    try:
        return choose("setting of MorphNet", name, kinds)(text)
    except (ValueError, TypeError) as error:
        unread = InputError(f"{name}={text!r} cannot be read; numbers are like 0.01, lists like [0.1,1,10]")
        raise error if isinstance(error, InputError) else unread from None


def show(searcher: "MorphNet", trials: "Sequence[Trial]", best: "Trial", folder: Path) -> None:
    """What every training led to, and the widths of the best architecture, whose JSON is the last line."""
    metric, limit, rows = searcher.metric.removeprefix("-"), searcher.limit, []
    for found, trial in zip(searcher.history, trials, strict=True):
        epochs = json.loads((folder / f"{found.run}.json").read_text(encoding="utf-8"))["epochs"]
        moved = f"{epochs[0]['penalty']:.3g} to {epochs[-1]['penalty']:.3g}"
        score = trial.failed or f"{trial.metrics[metric]:.4f}"
        rows.append(
            (
                found.run,
                f"{found.strength:.2e}",
                moved,
                sum(found.alive.values()),
                f"{found.multiplier:.4g}",
                found.cost,
                len(found.clipped),
                score,
            )
        )
    columns = ("training", "λ", "λ·G", "alive", "ω", limit, "groups at largest", metric)
    print_table(f"{limit} <= {searcher.budget:,.0f}", columns, rows)
    chosen = next(found for found in searcher.history if found.arch == best.arch)
    widths = [(name, seed, chosen.alive[name], best.arch[name]) for name, seed in searcher.supernet.seed.items()]
    print_table(f"best: {chosen.run}", ("group", "seed", "alive", "width"), widths)
    print(best.arch.to_json())


if __name__ == "__main__":
    main(run)
