"""Images with boxes: COCO's layout or composed digits, split by seed, resized and varied together with their boxes."""

import dataclasses
import hashlib
import itertools
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.config import DetectionData
from detection.data import digits
from detection.data.augment import Resize
from detection.data.coco import Annotations, annotations_of, read_annotations
from detection.data.images import DetectionSet
from detection.data.layouts import has_split, layout_of, voc_document, yolo_document
from detection.data.table import table_document
from supernet.checked import checked_arguments
from supernet.config import DataSummary
from supernet.data.cache import cache_file, cache_folder
from supernet.data.split import warn_if_fewer
from supernet.data.steps import torch_generator
from supernet.errors import InputError


@dataclass(frozen=True, eq=False)
class DetectionSplits:
    """The four parts of a data set. `calibration` is drawn from `train`; the others are disjoint.

    Attributes:
        train: for gradients.
        calibration: recalibrates batch norm before an evaluation; not augmented.
        validation: for scores during a search.
        test: for the final report.
        digest: 16 hex digits over annotations and images of all parts; see `DetectionSet.identity`.
    """

    train: DetectionSet
    calibration: DetectionSet
    validation: DetectionSet
    test: DetectionSet
    digest: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, … in order."""
        return self.train.classes

    def summary(self) -> DataSummary:
        """Returns what others need to know about this data set without its images, e.g. to store it."""
        return DataSummary(
            classes=self.classes,
            category_ids=self.train.annotations.categories,
            in_channels=3,
            size=self.train.resize.size,
            mean=tuple(self.train.mean.flatten().tolist()),
            std=tuple(self.train.std.flatten().tolist()),
            n_train=len(self.train),
            n_calibration=len(self.calibration),
            n_validation=len(self.validation),
            n_test=len(self.test),
            digest=self.digest,
        )

    def to(self, device: torch.device | str) -> "DetectionSplits":
        """Returns the same splits with their batches moved to a device."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "calibration", "validation", "test")}
        return dataclasses.replace(self, **parts)


@checked_arguments
def load(config: DetectionData, *, cache: Path | None = None) -> DetectionSplits:
    """Reads and splits a data set; images that fit into `config.memory` are decoded.

    Args:
        config: source, sizes and splits.
        cache: folder in which the decoded images of files are kept for later calls, such as the folder of a run; None
            for no cache. `config.cache` may name another folder or turn it off.

    Raises:
        InputError: an annotation file or an image that is missing or invalid, or a split without images. Splits
            without boxes, and splits that have images in common, are accepted with a warning that counts their images.
    """
    if config.source == "digits":
        parts = digits.compose(config.size, config.compose, seed=config.seed)
        named = zip(("train", "validation", "test"), parts, strict=True)
        return _splits(
            config, *(_set(config, _composed(part, name), pixels=tuple(part.pixels)) for name, part in named)
        )
    where = cache_folder(config.cache, cache)
    train = _read(config, config.source, config.images, "train", room=config.memory, cache=where)
    room = config.memory - train.held_bytes
    held_out: dict[str, DetectionSet] = {}
    for name in ("validation", "test"):
        source, folder = _held_out(config, name)
        if source:
            held_out[name] = _read(config, source, folder, name, room=room, cache=where, like=train)
            room -= held_out[name].held_bytes
    _warn_if_shared({"training": train} | held_out)
    return split(config, train, held_out.get("validation"), held_out.get("test"))


def _warn_if_shared(parts: Mapping[str, DetectionSet]) -> None:
    """Warns if parts with files of their own have images in common: scores on them would say nothing about others."""
    for (first, one), (second, other) in itertools.combinations(parts.items(), 2):
        if one.root is None or other.root is None or os.path.realpath(one.root) != os.path.realpath(other.root):
            continue
        common = int(np.isin(other.annotations.names, one.annotations.names).sum())
        if common:
            warnings.warn(
                f"{common:,} of the {len(other):,} {second} images are {first} images too, so scores on them are too "
                "high for other images; give annotations of different images",
                stacklevel=4,
            )


def _set(config: DetectionData, annotations: Annotations, **where: Any) -> DetectionSet:
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (config.mean or (0.0,) * 3, config.std or (1.0,) * 3))
    return DetectionSet(annotations, Resize(config.size, config.longest), mean, std, **where)


def _read(
    config: DetectionData,
    source: str,
    folder: str,
    split: str,
    *,
    room: int,
    cache: Path | None,
    like: DetectionSet | None = None,
) -> DetectionSet:
    """Returns a split from its annotations, decoded if it takes at most `room` bytes, with the labels of `like`."""
    annotations, root = _annotated(config, source, folder, split, None if like is None else like.annotations)
    path = None if cache is None else cache_file(cache, os.path.realpath(source), os.path.realpath(root))
    return _set(config, annotations, root=root).decoded(room, cache=path)


def _annotated(
    config: DetectionData, source: str, folder: str, split: str, like: Annotations | None
) -> tuple[Annotations, Path]:
    """Returns the annotations of a split in any layout, and the folder of its images."""
    if not source:
        raise InputError(
            "there is no data set '': data.source is 'digits', or annotations: a file in COCO's layout (.json), a "
            "data.yaml in YOLO's, a folder or a list (.txt) in Pascal VOC's, or a .csv file"
        )
    file, root = Path(source), Path(folder)
    if layout_of(source) == "coco":
        return read_annotations(file, root, min_side=config.min_side, like=like), root
    if layout_of(source) == "yolo":
        document, root = yolo_document(file, split)
    else:
        names = None if like is None else dict(zip(like.categories, like.classes, strict=True))
        read = table_document if layout_of(source) == "csv" else voc_document
        document, root = read(file, folder, names)
    return annotations_of(document, file, root, min_side=config.min_side, like=like), root


def annotations_by_part(config: DetectionData) -> dict[str, Annotations]:
    """Reads the annotations of a data set, and no image.

    Args:
        config: as for `load`, except that the source cannot be the composed digits.

    Returns:
        the annotations of "train", and of "validation" and "test" where the data set has its own.

    Raises:
        InputError: see `load`.
    """
    parts = {"train": _annotated(config, config.source, config.images, "train", None)[0]}
    for name in ("validation", "test"):
        source, folder = _held_out(config, name)
        if source:
            parts[name] = _annotated(config, source, folder, name, parts["train"])[0]
    return parts


def _held_out(config: DetectionData, name: str) -> tuple[str, str]:
    """Returns annotations and folder of a held-out part; empty texts if it is a share of the training images."""
    source, folder = getattr(config, f"{name}_source"), getattr(config, f"{name}_images") or config.images
    if not source and layout_of(config.source) == "yolo" and has_split(Path(config.source), name):
        source = config.source
    return source, folder


def _composed(part: digits.Composed, name: str) -> Annotations:
    count, _, *size = part.pixels.shape
    names: NDArray[np.bytes_] = np.array([f"composed {name} {i}".encode() for i in range(count)])
    sizes, ids = torch.tensor([size]).expand(count, 2), torch.arange(1, count + 1)
    return Annotations.of(names, ids, sizes, part.boxes, part.labels, classes=digits.CLASSES)


def split(
    config: DetectionData,
    images: DetectionSet,
    validation: DetectionSet | None = None,
    test: DetectionSet | None = None,
) -> DetectionSplits:
    """Splits a set by seed, whatever its source.

    Args:
        config: `seed`, `calibration`, and the shares of `validation` and `test`.
        images: the set to split.
        validation, test: the source's own splits; without them a share of the images is held out.

    Raises:
        InputError: a split without images.
    """
    order = torch.randperm(len(images), generator=torch_generator(config.seed, "split"))
    n_test = 0 if test is not None else round(config.test * len(order))
    n_validation = 0 if validation is not None else round(config.validation * (len(order) - n_test))
    parts = [images.subset(index) for index in order.tensor_split([n_test, n_test + n_validation])]
    return _splits(config, parts[2], validation or parts[1], test or parts[0])


def _splits(
    config: DetectionData, train: DetectionSet, validation: DetectionSet, test: DetectionSet
) -> DetectionSplits:
    present = []
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        present.append(set(part.annotations.labels[~part.annotations.crowd].tolist()))
        if not len(part):
            raise InputError(
                f"the {name} split of {config.source!r} has no images; give more images, another share or another "
                "data.seed"
            )
        if not present[-1]:
            consequence = "trained on them, a detector finds nothing" if name == "train" else "mAP is -1 on them"
            warnings.warn(
                f"none of the {len(part)} images of the {name} split of {config.source!r} has a box to find: "
                f"{consequence}",
                stacklevel=3,
            )
    missing = sorted(set.union(*present[1:]) - present[0])
    if missing:
        shown = ", ".join(repr(train.classes[label - 1]) for label in missing[:5])
        warnings.warn(f"no training image shows {len(missing)} classes of the held-out images: {shown}", stacklevel=3)
    warn_if_fewer(config.calibration, len(train), default=DetectionData.calibration)
    calibration = train.subset(torch.arange(min(config.calibration, len(train))))
    mean, std = (calibration.mean, calibration.std) if config.mean else _statistics(calibration)
    parts = {"train": train, "calibration": calibration, "validation": validation, "test": test}
    sha = hashlib.sha256("".join(part.identity() for part in parts.values()).encode())
    normal = {name: dataclasses.replace(part, mean=mean, std=std) for name, part in parts.items()}
    return DetectionSplits(**normal, digest=sha.hexdigest()[:16])


def _statistics(part: DetectionSet) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation per channel, (3, 1, 1), of the resized images, from 256-level histograms."""
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for index in range(len(part)):
        for channel, values in enumerate(part.seen(index)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    levels, share = torch.arange(256, dtype=torch.float64) / 255, counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt().clamp_min(1e-3)
    return mean.float().view(3, 1, 1), std.float().view(3, 1, 1)
