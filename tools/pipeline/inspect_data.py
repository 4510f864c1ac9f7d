"""What a source of images holds, found without decoding it: classes, counts, splits, sizes, and what is passed over."""

import itertools
import statistics
import warnings
from pathlib import Path

from supernet.config import Data
from supernet.data import load
from supernet.data.folder import Files, folder, layout
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import command
from supernet_tools.pipeline.derive import Found

SAMPLED = 200
"""Files whose size is looked at."""
LOOKED_AT = 2000
"""Entries of a folder among which files of annotations are looked for."""


def inspect_source(source: str) -> Found:
    """Looks at a source.

    Raises:
        InputError: there is no such source, it cannot be classified, or it holds objects with boxes.
    """
    path = Path(source)
    if not path.is_dir():
        return _of_splits(source)
    _refuse_boxes(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        place = layout(path)
        train = folder(place.train)
        others = [
            None if part is None else folder(part, fewest=1).numbered_as(train.classes, place.train)
            for part in (place.validation, place.test)
        ]
    counts = train.labels.bincount(minlength=len(train.classes)).tolist()
    n_validation, n_test = (0 if part is None else len(part) for part in others)
    passed = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Found("folder", train.classes, tuple(counts), n_validation, n_test, _sides(train), 3, passed)


def _of_splits(source: str) -> Found:
    """What a data set that is loaded by name holds; its images may be resized already."""
    data = load(Data(source, size=16)) if source == "digits" else load(Data(source))
    summary = data.summary()
    labels = getattr(data.train, "labels", data.calibration.labels)
    counts = labels.bincount(minlength=len(summary.classes)).tolist()
    side = 16 if source == "digits" else summary.size
    kind = source if source in ("digits", "cifar10", "cifar100") else "function"
    own = kind != "digits"  # a function has split its images itself, and digits are split by the settings
    held = (0 if not own else summary.n_validation, 0 if not own else summary.n_test)
    if not own:
        whole = [data.train.labels, data.validation.labels, data.test.labels]  # type: ignore[union-attr]
        counts = sum(part.bincount(minlength=len(summary.classes)) for part in whole).tolist()  # type: ignore[union-attr]
    return Found(kind, summary.classes, tuple(counts), *held, (side, side, side), summary.in_channels)


def _sides(files: Files) -> tuple[int, int, int]:
    """Smallest, median and largest shorter side of a sample; the headers of the files are enough."""
    from PIL import Image

    sides = []
    for index in range(0, len(files), max(1, len(files) // SAMPLED)):
        try:
            with Image.open(files.name(index)) as image:
                sides.append(min(image.size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # unreadable files are named when images are decoded
    if not sides:
        raise InputError(f"none of the images looked at in {files.root} can be read; repair them")
    return min(sides), int(statistics.median(sides)), max(sides)


def _refuse_boxes(path: Path) -> None:
    """Raises `InputError` for a data set of objects with boxes, with the commands that train a detector on it."""
    kind, source = _boxes(path)
    if not kind:
        return
    images = ("--data.images", path) if kind == "COCO" else ()
    train = command("train", "detnas-bccd", "--data.source", source, *images, "--out", "runs/NAME")
    raise InputError(
        f"{path} holds objects with boxes ({kind}), and fit trains classifiers; for a detector, run: {train}, and then "
        "search, retrain and export as docs/detection.md says"
    )


def _boxes(path: Path) -> tuple[str, Path]:
    """The layout of a folder with boxes by the names of its files, and what a detector reads; "" for other folders."""
    entries = [*itertools.islice(path.iterdir(), LOOKED_AT)]
    inner = [file for name in ("annotations", "Annotations") for file in itertools.islice((path / name).glob("*"), 50)]
    for file in sorted(file for file in [*entries, *inner] if file.suffix == ".json" and file.is_file()):
        with file.open("rb") as opened:
            head = opened.read(200_000)
        named = "annotation" in file.name.lower() or file.name.startswith("instances")
        if b'"annotations"' in head or (named and b'"images"' in head):
            return "COCO", file
    if any(file.suffix == ".xml" for file in inner):
        return "Pascal VOC", path
    if (path / "data.yaml").is_file() or ((path / "labels").is_dir() and (path / "images").is_dir()):
        return "YOLO", path / "data.yaml"
    return "", path
