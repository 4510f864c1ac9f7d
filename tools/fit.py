"""From a folder of images to an exported network and a report: python tools/fit.py photos --max-macs 5M --minutes 10"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Ge, Gt, Le, Lt

from supernet.checked import Count, Device, FilePath, NonNegative, Pixels, Positive, Seed, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import Flags, closing, command, main, parse
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust, trust_recipe
from supernet_tools.pipeline.units import Limit, TimeLimit, in_units

if TYPE_CHECKING:
    from supernet_tools.pipeline.choices import SourceFacts
    from supernet_tools.pipeline.fit_plan import Plan

EXPLAINED = """Give it images, and it returns the network to deploy, with a report:

  {fit} photos                                   a folder with one folder of images per class
  {fit} photos --max-macs 5M --minutes 30        within 5 million multiply-accumulates, in half an hour
  {fit} photos --max-latency 5ms                 within 5 milliseconds on this machine
  {fit} photos --pretrained lite0.pth            from the weights of a trained network of timm
  {fit} street                                   objects with boxes, in COCO's, YOLO's or Pascal VOC's layout
  {fit} photos.zip                               an archive of either (.zip, .tar, .tar.gz, .tar.xz)
  {fit} package.module:function                  a data set of your own (docs/train.md)
  {fit} digits --minutes 2                       scikit-learn's scans, to try it out

It prints what it found and what it chose, each with the flag that chooses otherwise; then it trains a supernet,
searches it, lets the best networks race, exports the winner and writes report.html. Stopped at any time, the same
command goes on.
All flags: {fit} --help"""


@dataclass(frozen=True)
class Fit(Flags):
    """Train a supernet on images, search it, race the best networks, export the winner and write a report.

    Everything is derived from the images, the limits and the time, and shown with its reason. Stopped by Ctrl-C or
    killed, the same command goes on where it was.
    """

    source: Annotated[Text, tyro.conf.Positional]
    """A folder with one folder of images per class (or with train/ and val/ or test/ that hold them); images with boxes
    in COCO's, YOLO's or Pascal VOC's layout, which train a detector; an archive of either (.zip, .tar, .tar.xz);
    "digits"; or a function as package.module:function that returns the data."""
    out: FilePath | None = None
    """Folder of the run; runs/NAME by default, after the source."""
    max_macs: Limit = None
    """Limit on multiply-accumulates, such as 5M."""
    max_params: Limit = None
    """Limit on parameters, such as 200k."""
    max_latency: TimeLimit = None
    """Limit on the latency of one image on this machine, such as 5ms."""
    minutes: Positive = 10.0
    """About how long it may take on this machine."""
    pretrained: FilePath | None = None
    """File of weights of a network of timm, to begin with: .safetensors or .pth."""
    size: Pixels | None = None
    """Height and width of the images, or for a detector their shorter side."""
    batch: Annotated[int, Ge(2), Le(2**24)] | None = None
    """Images per training step."""
    validation: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the training images that score architectures."""
    space: Text | None = None
    """Search space; that of the backbone of a detector."""
    space_settings: tuple[str, ...] = ()
    """Arguments of the space's builder as NAME=VALUE."""
    anchor_scale: Positive | None = None
    """Side of a detector's smallest anchor of a level, in its strides."""
    init: Literal["scratch", "shared", "inherit"] | None = None
    """What finalists start from: fresh weights, or those of the supernet. With "inherit" none is trained further."""
    epochs: Count | None = None
    """Epochs of the supernet."""
    largest_epochs: NonNegative | None = None
    """How many of them train the full network alone, before the others follow it; for --pretrained."""
    trials: Count | None = None
    """Candidates of the search."""
    trainings: Annotated[float, Ge(2)] | None = None
    """Trainings of the race."""
    retrain_epochs: Count | None = None
    """Epochs of a training in the race."""
    front: Annotated[int, Ge(0), Le(1000)] | None = None
    """Networks at several costs that are exported with the shared weights beside the winner; 0 for none."""
    seed: Seed = 0
    """Seed of everything."""
    device: Device = "cpu"
    """Torch device."""
    trust: Trust = ()
    """Code from outside this project that may run, as package.module:function; what is typed as source or space may."""


SETTABLE = (
    "size",
    "batch",
    "validation",
    "space",
    "space_settings",
    "anchor_scale",
    "init",
    "epochs",
    "largest_epochs",
    "trials",
    "trainings",
    "retrain_epochs",
    "front",
)


def run() -> None:
    if len(sys.argv) == 1:
        program = sys.argv[0] if sys.argv[0].startswith("supernet ") else "python tools/fit.py"
        print("error: name a source of images", file=sys.stderr)
        print(EXPLAINED.format(fit=program))
        raise SystemExit(2)
    args = parse(Fit, __doc__)
    out = args.out or default_folder(args.source)

    from supernet.config import Data
    from supernet_tools.pipeline.config import SupernetRun

    read = "" if Path(args.source).exists() else args.source  # a file may have a colon in its name
    trust_recipe(SupernetRun(space=args.space or "mobile-images", data=Data(read)), args.trust)

    from supernet_tools.pipeline.fit import fit_stage
    from supernet_tools.pipeline.fit_plan import FitRequest, planned
    from supernet_tools.pipeline.report import report_stage

    request = FitRequest(
        source=args.source,
        limits={"macs": args.max_macs, "params": args.max_params, "latency_ms": args.max_latency},
        minutes=args.minutes,
        pretrained="" if args.pretrained is None else str(args.pretrained),
        overrides={name: value for name in SETTABLE if (value := getattr(args, name)) not in (None, ())},
        seed=args.seed,
        device=args.device,
    )
    plan = planned(request, out, say)
    show(plan, args.source)
    document = fit_stage(plan, out, say)
    finish(document, out, report_stage(out))


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def default_folder(source: str) -> Path:
    """`runs/NAME` after a source. Raises `InputError` for a source without a name."""
    path = Path(source)
    name = path.resolve().name if path.is_dir() else source.rpartition(":")[2].rpartition("/")[2]
    if path.is_file():
        name = name.partition(".")[0] if path.name != "data.yaml" else path.resolve().parent.name
    if not name or name.startswith("."):
        raise InputError(f"source={source!r} has no name that a run could take; give --out")
    return Path("runs") / name


def show(plan: "Plan", source: str) -> None:
    """Prints what the source holds and what was chosen."""
    print_table(f"found in {source}", ("what", "value"), fact_rows(plan.facts))
    rows = [(row.name, shown(row.value), row.reason, row.flag) for row in plan.settings.rows]
    print_table("chosen", ("what", "value", "because", "change with"), rows)


def fact_rows(facts: "SourceFacts") -> list[tuple[str, object]]:
    """What the source holds, as rows of a table."""
    names = [f"{name} ({count:,})" for name, count in zip(facts.classes, facts.counts, strict=True)]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    low, median, high = facts.sides
    rows: list[tuple[str, object]] = [("layout", facts.kind)] if facts.boxed else []
    rows += [
        ("classes", len(facts.classes)),
        ("objects of each" if facts.boxed else "images of each", ", ".join(names[:12]) + more),
        ("training images", facts.images),
        ("own validation images", facts.n_validation or "none, a share of the training images is held out"),
        ("own test images", facts.n_test or "none, a share of the training images is held out"),
        ("shorter sides", f"{low} to {high} pixels, {median} in the median"),
    ]
    return rows + [("passed over", text) for text in facts.passed]


def shown(value: Any) -> str:
    """A chosen value as text."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def finish(document: dict[str, Any], out: Path, page: Path) -> None:
    """Prints the winner and what comes next."""
    winner, export = document["winner"], out / document["export"]
    test = next(name for name in document if name.startswith("test_"))
    rows = [
        ("winner", winner["key"]),
        ("macs", winner["macs"]),
        (test.replace("_", " "), ", ".join(f"{value:.4f}" for value in document[test])),
        ("largest difference of the exported files", max(document["differences"].values(), default=0.0)),
    ]
    print_table("result", ("what", "value"), rows)
    if document["front"]:
        points = [
            (row["key"], in_units(row["macs"]), f"{row[test]:.4f}", f"{row['artefact_ms']['torch']:.2f} ms")
            for row in document["front"]
        ]
        print_table("front, with the shared weights", ("network", "MACs", test.replace("_", " "), "latency"), points)
    print(document["verdict"])
    closing(
        [export, page],
        command("predict", export, "--run-code", "IMAGE"),
        command("report", out),
        command("search", out, "--searcher", "aging-evolution"),
    )


if __name__ == "__main__":
    main(run)
