"""Score one architecture: python tools/evaluate.py runs/x --arch arch.json, or --exported runs/x/export/KEY"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from supernet.checked import Checked, Count, FilePath, Name, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from torch import nn


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
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
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

    opened = open_run(args.run, trained=args.exported is None, bn=args.bn)
    if args.exported is not None:
        network = at_its_size(load_exported(args.exported), args.exported)
        metrics = opened.kind.scores(network, opened.data.test)
        check_finite(metrics, f"the network of {args.exported}")
        print_table(f"{args.exported}, test split", ("what", "value"), list(metrics.items()))
        return
    arch = named_arch(opened, args.arch, args.search)
    scores = opened.shared_weights(bn_batches=args.bn_batches)([arch])[0]
    check_finite(scores, f"architecture {arch.key}")
    rows = [*scores.items(), ("batch norm", opened.bn)]
    print_table("shared weights, search-validation split", ("what", "value"), rows)


def at_its_size(network: "nn.Module", folder: Path) -> "nn.Module":
    """A classifier's exported network behind a resize to its size; images of that size pass unchanged."""
    from torch import nn

    from supernet.blocks.resolution import Resize
    from supernet.files import read_json

    preprocess = read_json(folder / "preprocess.json")
    if "longest" in preprocess:  # a detector resizes images itself
        return network
    return nn.Sequential(Resize(len(preprocess["mean"]), preprocess["input_size"]), network).eval()


if __name__ == "__main__":
    main(run)
