"""Export a retrained architecture as a folder that needs only torch: python tools/export.py runs/x"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from supernet_tools.pipeline.command_line import main, parse, print_table


@dataclass(frozen=True)
class Export:
    """Write model.py, weights, a torch.export program and a parity report."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: str = "aging-evolution"
    """Name of the search whose best architecture is taken."""
    arch: str | None = None
    """An architecture instead: JSON, or a file with it."""
    seed: int = 0
    """Which retraining."""
    init: Literal["scratch", "shared"] = "scratch"
    """Which retraining: from fresh weights, or fine-tuned from the shared ones."""
    inherit: bool = False
    """Export the shared weights with recalibrated batch norm, without retraining."""
    onnx: bool = False
    """Also write model.onnx (needs the extra "onnx")."""
    out: Path | None = None
    """Folder; RUN/export/KEY by default."""


def run() -> None:
    args = parse(Export, __doc__)

    from supernet_tools.pipeline import search as searching
    from supernet_tools.pipeline import stages

    opened = stages.open_stage(args.run, trained=args.inherit or args.init == "shared")
    arch = stages.read_arch(opened, args.arch) if args.arch else searching.best_arch(opened, args.search)
    network = stages.trained_network(opened, arch, args.seed, inherit=args.inherit, shared=args.init == "shared")
    folder, report = stages.export_stage(opened, arch, network, onnx=args.onnx, out=args.out)
    print_table(f"exported to {folder}", ("artefact", "largest difference"), list(report["differences"].items()))


if __name__ == "__main__":
    main(run)
