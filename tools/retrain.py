"""Retrain an architecture from scratch: python tools/retrain.py runs/x --search aging-evolution"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from common import main, parse, print_table


@dataclass(frozen=True)
class Retrain:
    """Train one architecture as a standalone network by the recipe of the run, and report its test accuracy."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: str = "aging-evolution"
    """Name of the search whose best architecture is taken."""
    arch: str | None = None
    """An architecture instead: JSON, or a file with it."""
    init: Literal["scratch", "shared"] = "scratch"
    """Start from fresh weights, or fine-tune the shared ones."""
    seed: int = 0
    """Of initial weights and data order."""
    epochs: int | None = None
    """Instead of the recipe's."""
    lr: float | None = None
    """Instead of the recipe's."""


def run() -> None:
    args = parse(Retrain, __doc__)

    import stages

    from supernet.distributed import process_group

    opened = stages.open_stage(args.run)
    arch = stages.read_arch(opened, args.arch) if args.arch else stages.best_arch(opened, args.search)
    changed = {name: value for name in ("epochs", "lr") if (value := getattr(args, name)) is not None}
    train = dataclasses.replace(opened.config.retrain, seed=args.seed, **changed)
    with process_group(train.device) as world:
        result = stages.retrain_stage(opened, arch, train, shared=args.init == "shared")
    if not world.main:
        return
    print_table("retrained", ("what", "value"), [(k, v) for k, v in result.items() if k not in ("arch", "format")])


if __name__ == "__main__":
    main(run)
