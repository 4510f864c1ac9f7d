"""Score one architecture: python tools/evaluate.py runs/x --arch arch.json, or --exported runs/x/export/KEY"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Ge, Le

from supernet.checked import Count, FilePath, Name, Text
from supernet.errors import InputError
from supernet.paths import check_new_file
from supernet_tools.pipeline.command_line import Flags, calibration_unused, closing, command, main, parse, search_unused
from supernet_tools.pipeline.config import BatchNorm, DetectorRun
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust

if TYPE_CHECKING:
    from torch import nn

    from supernet.config import Preprocess
    from supernet.data.images import Images
    from supernet_tools.pipeline.run import Run

WIDEST = 20
"""Classes of a confusion matrix that is printed."""


@dataclass(frozen=True)
class Evaluate(Flags):
    """Accuracy, or mAP, with the shared weights (search-validation split) or of an exported folder (test split).

    For an export it also prints figures per class and the confusion matrix; for a classifier the expected calibration
    error and images per second; for a detector COCO's twelve figures and, with --curves, precision over recall."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: Name = "aging-evolution"
    """Name of the search whose best architecture is scored."""
    arch: Text | None = None
    """An architecture instead: JSON, a file with it, a key, front:3 for the third of the search's front, or "largest"
    or "smallest"."""
    exported: FilePath | None = None
    """An exported folder instead, with --run-code."""
    run_code: bool = False
    """Run the model.py of the exported folder. It can do everything that you can: only for folders that you trust."""
    batch: Count | None = None
    """For an exported detector: images per forward pass, `scoring_batch` by default; figures do not depend on it."""
    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    """For an exported detector: lowest score of the detections in the confusion matrix."""
    curves: FilePath | None = None
    """For an exported detector: write a CSV file with the precision of each class at 101 recalls, IoU 0.5 and 0.75."""
    bn_batches: Count = 10
    """Calibration batches: of 64 images, or of `scoring_batch` for a detector."""
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """What belongs to the other of the two: the shared weights, or an export."""
        if self.exported is None:
            yield from search_unused(self.arch)
            yield from calibration_unused(self.bn, "bn_batches")
            for name in ("run_code", "batch", "threshold"):
                yield name, "without --exported"
            return
        for name in ("search", "arch", "bn_batches", "bn"):
            yield name, "beside --exported, which is scored with its own weights"


def run() -> None:
    args = parse(Evaluate, __doc__)

    if args.exported is not None and not args.run_code:
        raise InputError(
            f"{args.exported} is an export: to score it, its model.py is executed, which can do everything that you "
            "can; if you trust the folder, add --run-code"
        )

    if args.curves is not None:
        if args.exported is None:
            raise InputError("--curves is for exported detectors; give one with --exported, or leave it out")
        check_new_file(args.curves, flag="curves", suffix=".csv")

    from supernet.export import load_exported
    from supernet.scoring.metrics import check_finite
    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run, trained=args.exported is None, bn=args.bn, moved=args.data)
    if args.exported is not None:
        preprocess = fitting(args.exported, opened)
        if opened.kind.metric != "map":
            args.refuse("batch", "threshold", reason=f"for a classifier, as {args.exported} is")
            if args.curves is not None:
                raise InputError(f"--curves is for detectors, and {args.exported} is a classifier; leave it out")
        network = at_its_size(load_exported(args.exported), preprocess)
        if opened.kind.metric == "map":
            show_detector(args, network, opened)
            return
        metrics = opened.kind.scores(network, opened.data.test)
        check_finite(metrics, f"the network of {args.exported}")
        print_table(f"{args.exported}, test split", ("what", "value"), list(metrics.items()))
        show_classes(network, opened.data.test, opened.summary.classes)
        return
    arch = named_arch(opened, args.arch, args.search)
    scores = opened.shared_weights(bn_batches=args.bn_batches)([arch])[0]
    check_finite(scores, f"architecture {arch.key}")
    rows = [*scores.items(), ("batch norm", opened.bn)]
    print_table("shared weights, search-validation split", ("what", "value"), rows)
    closing([], command("retrain", args.run, "--arch", arch.key if args.arch is None else args.arch))


def fitting(folder: Path, run: "Run") -> "Preprocess":
    """Returns what an export expects of images. Raises `InputError` if it does not fit the images of the run."""
    from supernet_tools.pipeline.export import is_detector, preprocess_of

    preprocess, kinds = preprocess_of(folder), ("classifier", "detector")
    exported, own = (kinds[number] for number in (is_detector(preprocess), run.kind.metric == "map"))
    if exported != own:
        raise InputError(f"{folder} is the export of a {exported}, and {run.folder} holds the run of a {own}")
    counts = (len(preprocess.classes), len(run.summary.classes))
    if preprocess.classes and counts[0] != counts[1]:
        raise InputError(f"{folder} knows {counts[0]} classes, and the images of {run.folder} have {counts[1]}")
    return preprocess


def at_its_size(network: "nn.Module", preprocess: "Preprocess") -> "nn.Module":
    """A classifier's exported network behind a resize to its size; images of that size pass unchanged."""
    from torch import nn

    from supernet.blocks.resolution import Resize
    from supernet_tools.pipeline.export import is_detector

    if is_detector(preprocess):  # it resizes images itself
        return network
    return nn.Sequential(Resize(len(preprocess.mean), preprocess.input_size), network).eval()


def show_classes(network: "nn.Module", images: "Images", classes: Sequence[str]) -> None:
    """Prints figures per class, the confusion matrix, the calibration error and the throughput of a classifier."""
    from supernet_tools.pipeline.per_class import class_figures

    figures = class_figures(network, images, len(classes))
    rows = [
        (name, int(figures.confusion[i].sum()), *(float(v[i]) for v in (figures.precision, figures.recall, figures.f1)))
        for i, name in enumerate(classes)
    ]
    print_table("by class", ("class", "images", "precision", "recall", "F1"), rows)
    if len(classes) <= WIDEST:
        lines = [(name, *map(int, row)) for name, row in zip(classes, figures.confusion, strict=True)]
        print_table("images by true class (rows) and predicted class (columns)", ("true", *classes), lines)
    else:
        print(f"the confusion matrix of {len(classes)} classes is in the report (supernet report)")
    print(f"expected calibration error {figures.calibration_error:.4f}, {figures.images_per_second:,.0f} images/s")


def show_detector(args: Evaluate, network: "nn.Module", opened: "Run") -> None:
    """Prints COCO's figures of a detector, those of each class and the confusion matrix; writes the curves."""
    from detection.figures import curves_csv, detector_figures
    from supernet.files import replacing
    from supernet.scoring.metrics import check_finite

    config, classes = opened.config, opened.summary.classes
    assert isinstance(config, DetectorRun)
    figures = detector_figures(
        network, opened.data.test, batch=args.batch or config.scoring_batch, threshold=args.threshold
    )
    check_finite(figures.metrics, f"the network of {args.exported}")
    print_table(f"{args.exported}, test split", ("what", "value"), list(figures.metrics.items()))
    rows = [
        (name, int(figures.objects[i]), *figures.precision[i].tolist(), float(figures.recall[i]))
        for i, name in enumerate(classes)
    ]
    print_table("by class; -1 without objects", ("class", "objects", "AP", "AP50", "AP75", "AR100"), rows)
    if len(classes) <= WIDEST:
        names = zip((*classes, "nothing"), figures.confusion.tolist(), strict=True)
        title = f"objects by true class (rows) and class detected with a score from {args.threshold:g} (columns)"
        print_table(title, ("true", *classes, "missed"), [(name, *row) for name, row in names])
    if args.curves is not None:
        with replacing(args.curves) as temporary:
            temporary.write_text(curves_csv(figures, classes), encoding="utf-8")
        closing([args.curves])


if __name__ == "__main__":
    main(run)
