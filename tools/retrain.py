"""Retrain an architecture from scratch: python tools/retrain.py runs/x --search aging-evolution"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from supernet.checked import Count, FilePath, Name, Natural, Positive, Seed, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import Flags, closing, command, main, parse, search_unused
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust
from supernet_tools.pipeline.units import cost_in_units


@dataclass(frozen=True)
class Retrain(Flags):
    """Train one architecture as a standalone network by the recipe of the run, and report it on the test split.

    With --top and --random: the best networks of a search beside random ones within the same limits, and whether the
    search beat them.
    """

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: Name = "aging-evolution"
    """Name of the search whose best architecture is retrained."""
    arch: Text | None = None
    """An architecture instead: JSON, a file with it, a key, front:3 for the third of the search's front, or "largest"
    or "smallest"."""
    init: Literal["scratch", "shared"] = "scratch"
    """Start from fresh weights (a detector's backbone as the recipe's `start` says), or fine-tune the shared ones."""
    seed: Seed = 0
    """Seed of initial weights and data order."""
    epochs: Count | None = None
    """Epochs instead of the recipe's."""
    lr: Positive | None = None
    """Learning rate instead of the recipe's."""
    patience: Natural | None = None
    """End a training after so many epochs without a better score on the validation split, with the best weights."""
    top: Natural = 0
    """Compare this many of the search's best networks …"""
    random: Natural = 0
    """… with this many random ones within its limits."""
    seeds: Count = 1
    """Trainings of each network in the comparison, from --seed on; the same for all."""
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """What only a comparison or a start from the shared weights takes."""
        yield from search_unused(self.arch)
        if not (self.top or self.random):
            yield "seeds", "without a comparison, --top and --random"
        if self.init != "shared":
            yield "bn", "without --init shared"


def run() -> None:
    args = parse(Retrain, __doc__)
    compare = bool(args.top or args.random)
    if compare and (min(args.top, args.random, args.seeds) < 1 or args.arch or args.init != "scratch"):
        raise InputError("a comparison takes --top and --random of at least 1, --seeds too, and no --arch or --init")

    from supernet.training.distributed import process_group
    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.compare import control_stage
    from supernet_tools.pipeline.retrain import retrain_folder, retrain_stage
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, trained=args.init == "shared", bn=args.bn, moved=args.data)
    changes = {name: value for name in ("epochs", "lr", "patience") if (value := getattr(args, name)) is not None}
    train = dataclasses.replace(opened.config.retrain, seed=args.seed, **changes)
    with process_group(train.device) as world:
        if compare:
            sizes = {"top": args.top, "random": args.random, "seeds": args.seeds}
            result = control_stage(opened, args.search, train, **sizes, verbose=world.main)
        else:
            arch = named_arch(opened, args.arch, args.search)
            result = retrain_stage(opened, arch, train, shared=args.init == "shared")
    if not world.main:
        return
    if compare:
        show(result)
        closing([], command("report", args.run))
        return
    print_table("retrained", ("what", "value"), [item for item in result.items() if item[0] not in ("arch", "format")])
    folder = retrain_folder(opened, arch, args.seed, args.init == "shared")
    which = ("--arch", arch.key, "--seed", args.seed, "--init", args.init)
    closing([folder / "result.json"], command("export", args.run, *which), command("report", args.run))


def show(result: dict[str, Any]) -> None:
    """The comparison on screen."""
    truth = result["truth"]
    limits = (
        ", ".join(f"{name} <= {cost_in_units(name, limit)}" for name, limit in result["limits"].items()) or "no limits"
    )
    rows = [
        (arm, row["key"], row["macs"], ", ".join("failed" if a is None else f"{a:.4f}" for a in row[truth]))
        for arm in ("top", "random")
        for row in result[arm]
    ]
    print_table(
        f"retrained by one recipe, {limits}", ("arm", "network", "macs", f"{truth.replace('_', ' ')} per seed"), rows
    )
    print(result["verdict"])


if __name__ == "__main__":
    main(run)
