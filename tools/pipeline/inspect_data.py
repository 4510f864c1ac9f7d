"""What a source of images holds, read without decoding it: classes, counts, splits, sizes, and what is left out."""

import statistics
import warnings
from pathlib import Path
from typing import Any

import torch

from supernet.config import Data
from supernet.data import load
from supernet.data.decode import problem
from supernet.data.folder import Files, folder, layout
from supernet.errors import InputError
from supernet.paths import check_regular
from supernet_tools.pipeline.choices import SourceFacts
from supernet_tools.pipeline.objects import Parts, object_parts

SAMPLED = 200
"""About how many files are opened for their size."""


def inspect_source(source: str) -> SourceFacts:
    """Looks at a source.

    Raises:
        InputError: there is no such source, or nothing in it that a classifier or a detector could be trained on.
    """
    path = Path(source)
    if (parts := object_parts(path)) is not None:
        return _of_objects(parts)
    if path.is_file():
        raise InputError(
            f"{source} is a file that fit cannot read; give a folder of images, an archive (.zip, .tar, .tar.xz), "
            "annotations in COCO's layout (.json) or as a table (.csv), or the data.yaml of a set in YOLO's"
        )
    if not path.is_dir():
        return _of_splits(source)
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
    return SourceFacts("folder", train.classes, tuple(counts), n_validation, n_test, _sides(train), 3, passed)


def _of_splits(source: str) -> SourceFacts:
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
    return SourceFacts(kind, summary.classes, tuple(counts), *held, (side, side, side), summary.in_channels)


def _sides(files: Files) -> tuple[int, int, int]:
    """Smallest, median and largest shorter side of a sample; the headers of the files are enough."""
    from PIL import Image

    sides, problems = [], []
    for index in range(0, len(files), max(1, len(files) // SAMPLED)):
        try:
            check_regular(files.name(index))
            with Image.open(files.name(index)) as image:
                sides.append(min(image.size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            problems.append(problem(files, index, error))  # the others are named when images are decoded
    if not sides:
        name, reason = problems[0]
        raise InputError(
            f"none of the {len(problems)} images looked at in {files.root} can be read, such as {name} ({reason}); "
            "repair them"
        )
    return min(sides), int(statistics.median(sides)), max(sides)


def texts_of(parts: Parts) -> tuple[str, ...]:
    """Where a data set with boxes keeps its parts, as `SourceFacts.places`."""
    return tuple(f"{name}={place}" for name, place in parts.places.items())


def _of_objects(parts: Parts) -> SourceFacts:
    """What a data set with boxes holds, by its annotations."""
    from detection.config import DetectionData
    from detection.data import annotations_by_part

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        places: dict[str, Any] = dict(parts.places)
        annotations = annotations_by_part(DetectionData(**places))
    train = annotations["train"]
    single = ~train.crowd
    if not single.any():
        raise InputError(f"none of the {len(train)} training images of {parts.places['source']} has a box to find")
    shorter, longer = train.sizes.amin(1), train.sizes.amax(1)
    image = torch.arange(len(train)).repeat_interleave(train.starts.diff())[single]
    sides = (train.boxes[single][:, 2:] - train.boxes[single][:, :2]).prod(1).sqrt() / shorter[image]
    ratio = float((longer / shorter).double().quantile(0.9))
    return SourceFacts(
        parts.layout,
        train.classes,
        tuple((train.labels[single] - 1).bincount(minlength=len(train.classes)).tolist()),
        len(annotations["validation"]) if "validation" in annotations else 0,
        len(annotations["test"]) if "test" in annotations else 0,
        (int(shorter.min()), int(shorter.median()), int(shorter.max())),
        3,
        tuple(dict.fromkeys(str(warning.message) for warning in caught)),
        n_boxed=len(train),
        places=texts_of(parts),
        ratio=round(min(max(ratio, 1.0), 4.0), 4),
        object_side=round(float(sides.median()), 4),
    )
