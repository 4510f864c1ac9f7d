"""Draw detections on images: python tools/predict.py runs/x/export/KEY --images street.jpg --out drawn"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse


@dataclass(frozen=True)
class Predict:
    """Write a PNG per image with boxes, labels and scores; of a run's own test images also the true boxes, white."""

    model: Annotated[Path, tyro.conf.Positional]
    """An exported detector, or the folder of a run, of which a retrained network is taken."""
    images: tuple[Path, ...] = ()
    """Image files. Of a run its first test images where none are given."""
    out: Path = Path("predictions")
    """Folder of the PNGs."""
    threshold: float = 0.5
    """Least score of what is drawn."""
    test: int = 8
    """Test images of a run."""
    search: str = "aging-evolution"
    """Of a run: name of the search whose best architecture is taken."""
    arch: str | None = None
    """Of a run: an architecture instead, JSON or a file with it."""
    seed: int = 0
    """Of a run: which retraining."""


def run() -> None:
    args = parse(Predict, __doc__)
    if not 0 <= args.threshold <= 1:
        raise InputError(f"threshold={args.threshold} is a score, from 0 to 1")
    missing = [str(path) for path in args.images if not path.is_file()]
    if missing:
        raise InputError(f"there is no image file {missing[0]!r}")

    from detection.predictions import detect, draw_detections, read_image

    exported = (args.model / "preprocess.json").exists()
    if exported and not args.images:
        raise InputError(f"{args.model} is an export and has no images of its own; give --images")
    network, preprocess, opened = from_export(args.model) if exported else from_run(args)
    if args.images:
        given: list[tuple[str, Any, Any]] = [(path.stem, read_image(path), None) for path in args.images]
    else:
        part = opened.data.test
        given = [(f"test{i}", part.image(i), part.annotations.target(i)) for i in range(min(args.test, len(part)))]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, pixels, truth in given:
        found = detect(network, pixels, preprocess)
        picture, count = draw_detections(pixels, found, preprocess.classes, threshold=args.threshold, truth=truth)
        picture.save(args.out / f"{name}.png")
        print(
            f"wrote {args.out / name}.png: {count} of {len(found['scores'])} boxes with a score from {args.threshold:g}"
        )


def from_export(folder: Path) -> tuple[Any, Any, None]:
    """The network of an exported folder, what it expects of images, and no run."""
    from detection.config import DetectorPreprocess
    from supernet.config import from_dict
    from supernet.export import load_exported
    from supernet.files import read_json

    document = read_json(folder / "preprocess.json")
    if "longest" not in document:
        raise InputError(f"{folder} holds a classifier; give an exported detector")
    return load_exported(folder), from_dict(DetectorPreprocess, document), None


def from_run(args: Predict) -> tuple[Any, Any, Any]:
    """The retrained network of a run, what it expects of images, and the run."""
    from supernet_tools.pipeline import search as searching
    from supernet_tools.pipeline import stages

    opened = stages.open_stage(args.model, trained=False)
    if opened.kind.metric != "map":
        raise InputError(f"{args.model} holds a classifier's run; give one of a detector, or an exported detector")
    arch = stages.read_arch(opened, args.arch) if args.arch else searching.best_arch(opened, args.search)
    return stages.trained_network(opened, arch, args.seed), opened.kind.preprocess(opened.data), opened


if __name__ == "__main__":
    main(run)
