"""Score one architecture: python tools/evaluate.py runs/x --arch arch.json, or --exported runs/x/export/KEY"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from supernet_tools.pipeline.command_line import main, parse, print_table


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, or mAP, with the shared weights (search-validation split), or of an exported folder (test split)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: str = "aging-evolution"
    """Name of the search whose best architecture is taken."""
    arch: str | None = None
    """An architecture instead: JSON, or a file with it."""
    exported: Path | None = None
    """An exported folder instead."""
    bn_batches: int = 10
    """Calibration batches of 64 images; of a detector's `scoring_batch`."""


def run() -> None:
    args = parse(Evaluate, __doc__)

    from supernet.export import load_exported
    from supernet_tools.pipeline import search as searching
    from supernet_tools.pipeline import stages

    opened = stages.open_stage(args.run, trained=args.exported is None)
    if args.exported is not None:
        metrics = opened.kind.scores(load_exported(args.exported), opened.data.test)
        print_table(f"{args.exported}, test split", ("what", "value"), list(metrics.items()))
        return
    arch = stages.read_arch(opened, args.arch) if args.arch else searching.best_arch(opened, args.search)
    metrics = opened.shared_weights(bn_batches=args.bn_batches)([arch])[0]
    print_table("shared weights, search-validation split", ("what", "value"), list(metrics.items()))


if __name__ == "__main__":
    main(run)
