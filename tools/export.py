"""Export a retrained architecture as a folder that needs only torch: python tools/export.py runs/x"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from supernet.checked import Checked, FilePath, Name, Seed, Text
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust


@dataclass(frozen=True)
class Export(Checked):
    """Write model.py, weights, a torch.export program and a parity report."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: Name = "aging-evolution"
    """Name of the search whose best architecture is exported."""
    arch: Text | None = None
    """An architecture instead: JSON, a file with it, a key, or front:3 for the third of the search's front."""
    seed: Seed = 0
    """Seed of the retraining to export."""
    init: Literal["scratch", "shared"] = "scratch"
    """The retraining to export: from fresh weights, or fine-tuned from the shared ones."""
    inherit: bool = False
    """Export the shared weights with recalibrated batch norm, without retraining."""
    onnx: bool = False
    """Also write model.onnx (needs the extra "onnx")."""
    out: FilePath | None = None
    """Folder; RUN/export/KEY by default."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""


def run() -> None:
    args = parse(Export, __doc__)

    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.export import export_folder, export_stage
    from supernet_tools.pipeline.retrain import trained_network
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, trained=args.inherit or args.init == "shared")
    arch = named_arch(opened, args.arch, args.search)
    export_folder(opened, arch, args.out)  # a folder that is taken is reported before anything is trained
    network = trained_network(opened, arch, args.seed, inherit=args.inherit, shared=args.init == "shared")
    folder, report = export_stage(opened, arch, network, onnx=args.onnx, out=args.out)
    print_table(f"exported to {folder}", ("artefact", "largest difference"), list(report["differences"].items()))


if __name__ == "__main__":
    main(run)
