"""Score one architecture: python tools/evaluate.py runs/x --arch arch.json, or --exported runs/x/export/KEY"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from supernet.checked import Checked, Count, FilePath, Name, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust


@dataclass(frozen=True)
class Evaluate(Checked):
    """Accuracy, or mAP, with the shared weights (search-validation split) or of an exported folder (test split)."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: Name = "aging-evolution"
    """Name of the search whose best architecture is scored."""
    arch: Text | None = None
    """An architecture instead: JSON, a file with it, a key, or front:3 for the third of the search's front."""
    exported: FilePath | None = None
    """An exported folder instead, with --run-code."""
    run_code: bool = False
    """Run the model.py of the exported folder. It can do everything that you can: only for folders that you trust."""
    bn_batches: Count = 10
    """Calibration batches: of 64 images, or of `scoring_batch` for a detector."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""


def run() -> None:
    args = parse(Evaluate, __doc__)

    if args.exported is not None and not args.run_code:
        raise InputError(
            f"{args.exported} is an export: to score it, its model.py is executed, which can do everything that you "
            "can; if you trust the folder, add --run-code"
        )

    from supernet.export import load_exported
    from supernet.scoring.metrics import check_finite
    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, trained=args.exported is None)
    if args.exported is not None:
        network = load_exported(args.exported)
        metrics = opened.kind.scores(network, opened.data.test)
        check_finite(metrics, f"the network of {args.exported}")
        print_table(f"{args.exported}, test split", ("what", "value"), list(metrics.items()))
        return
    arch = named_arch(opened, args.arch, args.search)
    scores = opened.shared_weights(bn_batches=args.bn_batches)([arch])[0]
    check_finite(scores, f"architecture {arch.key}")
    print_table("shared weights, search-validation split", ("what", "value"), list(scores.items()))


if __name__ == "__main__":
    main(run)
