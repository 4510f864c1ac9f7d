"""Export a retrained architecture as a folder that needs only torch: python tools/export.py runs/x"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from supernet.checked import Count, FilePath, Name, Seed, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import Flags, closing, command, main, parse, search_unused
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust


@dataclass(frozen=True)
class Export(Flags):
    """Write model.py, weights, a torch.export program and a parity report."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: Name = "aging-evolution"
    """Name of the search whose best architecture is exported."""
    arch: Text | None = None
    """An architecture instead: JSON, a file with it, a key, front:3 for the third of the search's front, or "largest"
    or "smallest"."""
    seed: Seed = 0
    """Seed of the retraining to export."""
    init: Literal["scratch", "shared"] = "scratch"
    """The retraining to export: from fresh weights, or fine-tuned from the shared ones."""
    inherit: bool = False
    """Export the shared weights with recalibrated batch norm, without retraining."""
    front: bool = False
    """Export every network on the front of the search, score against MACs, with the shared weights, and measure each:
    RUN/export/front-SEARCH/ with front.json and front.csv."""
    limits: tuple[str, ...] = ()
    """Instead of the front, the best network of the search within each limit on MACs, such as 5M 20M 60M."""
    limit_cost: Name = "macs"
    """Another cost for the limits and the front, such as params, or latency_ms in a search with --max-latency."""
    repeats: Count | None = None
    """For a detector with NAS-FPN: read its outputs after this repeat of the pyramid; anytime=true trains the heads for
    it."""
    onnx: bool = False
    """Also write model.onnx (needs the extra "onnx")."""
    nms: bool = False
    """For a RetinaNet: also write detector.pt2, and with --onnx detector.onnx, which return boxes, scores, labels."""
    out: FilePath | None = None
    """Folder; RUN/export/KEY by default."""
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """What neither the shared weights nor a retraining takes, whichever is exported."""
        yield from search_unused(self.arch)
        if self.front or self.limits:
            yield "seed", "beside --front or --limits, which export the shared weights"
            yield "init", "beside --front or --limits, which export the shared weights"
            yield "inherit", "beside --front or --limits, which export the shared weights"
            if self.limits:
                yield "front", "beside --limits, which choose the networks"
            return
        yield "limit_cost", "without --front or --limits"
        if self.inherit:
            yield "seed", "beside --inherit, which exports the shared weights"
            yield "init", "beside --inherit, which exports the shared weights"
            return
        for name in ("data.source", "data.images"):
            yield name, "without --inherit, since a retrained network is exported without images"
        if self.init != "shared":
            yield "bn", "without --inherit or --init shared"


def run() -> None:
    args = parse(Export, __doc__)
    if args.front or args.limits:
        export_front(args)
        return

    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.export import check_repeats, export_folder, export_stage, shortened
    from supernet_tools.pipeline.retrain import trained_network
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, trained=args.inherit or args.init == "shared", bn=args.bn, moved=args.data)
    if args.repeats is not None:
        check_repeats(opened, args.repeats)
    arch = named_arch(opened, args.arch, args.search)
    export_folder(opened, arch, args.out)  # a folder that is taken is reported before anything is trained
    network = trained_network(opened, arch, args.seed, inherit=args.inherit, shared=args.init == "shared")
    if args.repeats is not None:
        network = shortened(network, args.repeats)
    folder, report = export_stage(opened, arch, network, onnx=args.onnx, nms=args.nms, out=args.out)
    print_table(f"exported to {folder}", ("artefact", "largest difference"), list(report["differences"].items()))
    classifier = [shlex.join(["python", str(folder / "model.py"), "IMAGE"])] if opened.kind.metric == "accuracy" else []
    closing(
        [folder],
        command("predict", folder, "--run-code", "IMAGE"),
        command("evaluate", args.run, "--exported", folder, "--run-code"),
        *classifier,
    )


def export_front(args: Export) -> None:
    """Exports and measures several networks of a search."""
    if args.arch is not None or args.init != "scratch" or args.repeats is not None:
        raise InputError(
            "--front and --limits export networks of a search with the shared weights; drop --arch, --init, --repeats"
        )

    from supernet_tools.pipeline.front import front_stage, latency_order
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, bn=args.bn, moved=args.data)
    folder, rows = front_stage(
        opened, args.search, limits=args.limits, cost=args.limit_cost, onnx=args.onnx, nms=args.nms, out=args.out
    )
    runtimes, truth = list(rows[0]["artefact_ms"]), opened.kind.truth
    columns = ["key", args.limit_cost, *(["limits"] if args.limits else []), truth.replace("_", " ")]
    lines = [
        (
            row["key"],
            row[args.limit_cost],
            *([" ".join(row["limits"])] if args.limits else []),
            row[truth],
            *(f"{row['artefact_ms'][name]:.3f}" for name in runtimes),
        )
        for row in rows
    ]
    title = f"{len(rows)} exports in {folder}, batch norm {opened.bn}"
    print_table(title, (*columns, *(f"ms, {name}" for name in runtimes)), lines)
    for runtime, order in latency_order(rows, args.limit_cost).items():
        if order["pairs"]:
            print(
                f"measured in {runtime}, the network of fewer {args.limit_cost} is the faster one in {order['agree']} "
                f"of {order['pairs']} pairs"
            )


if __name__ == "__main__":
    main(run)
