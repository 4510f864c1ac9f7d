"""Annotation files in COCO's layout, checked before any work; errors name the file and the id."""

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.errors import InputError

Document = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Annotations:
    """Boxes of many images in a few arrays, which worker processes share; a list of objects would be copied to each.

    Attributes:
        names: paths of the images below their folder, as bytes, (N,).
        ids: int64, (N,), of the images in the annotation file.
        sizes: int64, (N, 2): height and width in pixels.
        starts: int64, (N + 1,): image i has the boxes from starts[i] to starts[i + 1].
        boxes: float64, (B, 4): x1, y1, x2, y2 in pixels, sorted by image.
        labels: int64, (B,), from 1; 0 is a detector's background.
        crowd: bool, (B,): regions of many objects, in which detections are neither right nor wrong.
        areas: float64, (B,): areas of the objects in pixels, by which COCO sorts them into small, medium and large; a
            segmented object covers less than its box.
        classes: names of the labels 1, 2, … in order.
        categories: their ids in the annotation file.
    """

    names: NDArray[np.bytes_]
    ids: Tensor
    sizes: Tensor
    starts: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor
    classes: tuple[str, ...]
    categories: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        names: NDArray[np.bytes_],
        ids: Tensor,
        sizes: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        classes: tuple[str, ...],
    ) -> "Annotations":
        """Builds annotations from boxes and labels per image, without crowds; labels double as category ids."""
        joined = torch.cat(list(boxes))
        starts = torch.tensor([0, *map(len, boxes)]).cumsum(0)
        crowd, areas = torch.zeros(len(joined), dtype=torch.bool), (joined[:, 2:] - joined[:, :2]).prod(1)
        categories = tuple(range(1, len(classes) + 1))
        return cls(names, ids, sizes, starts, joined, torch.cat(list(labels)), crowd, areas, classes, categories)

    def name(self, index: int) -> str:
        """Returns the path of an image below its folder."""
        return str(self.names[index], "utf-8")

    def target(self, index: int) -> dict[str, Tensor]:
        """Returns `boxes`, `labels`, `crowd` and `areas` of an image."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return {name: getattr(self, name)[rows] for name in ("boxes", "labels", "crowd", "areas")}

    def subset(self, index: Tensor) -> "Annotations":
        """Returns the annotations of the images at these positions, in this order."""
        counts = self.starts.diff()[index]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        rows = torch.arange(int(starts[-1])) + (self.starts[index] - starts[:-1]).repeat_interleave(counts)
        per_box = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "crowd", "areas")}
        return dataclasses.replace(
            self,
            names=self.names[index.numpy()],
            ids=self.ids[index],
            sizes=self.sizes[index],
            starts=starts,
            **per_box,
        )

    def identity(self) -> str:
        """Returns a digest of all attributes."""
        sha = hashlib.sha256(repr((self.names.tolist(), self.classes, self.categories)).encode())
        for name in ("ids", "sizes", "starts", "boxes", "labels", "crowd", "areas"):
            sha.update(getattr(self, name).contiguous().numpy().tobytes())
        return sha.hexdigest()


def read_annotations(path: Path, folder: Path, *, min_side: int = 1, like: Annotations | None = None) -> Annotations:
    """Reads an annotation file for object detection in COCO's layout (https://cocodataset.org/#format-data).

    Boxes are clipped at the border of their image, and those without area inside it are skipped; one warning for each
    counts them and names the first by id. Images without boxes are kept.

    Args:
        path: the JSON file.
        folder: the folder of the image files, which must exist.
        min_side: pixels that the shorter side of every image must have.
        like: annotations of the training images, whose labels are used; None numbers the categories by id.

    Returns:
        the images in the order of the file, with labels in the order of category ids.

    Raises:
        InputError: the file is missing, not JSON, or without categories or images; an image is missing or too small; an
            annotation has no box, or an unknown image or category; an id is used twice; the categories differ from
            those of `like`.
    """
    document = _document(path)
    categories = _categories(document, path) if like is None else dict(zip(like.categories, like.classes, strict=True))
    if like is not None:
        _check_categories(_categories(document, path), categories, path)
    names, ids, sizes = _images(document, path, folder, min_side=min_side)
    rows, numbers = _rows(document, path, ids=ids, categories=categories)
    order = rows[:, 0].argsort(stable=True)
    rows, numbers = rows[order], [numbers[i] for i in order.tolist()]
    place, size = rows[:, 0].long(), torch.tensor(sizes)
    corners = torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], 1)
    boxes = corners.clamp_min(0).minimum(size[place].flip(1).repeat(1, 2))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    clipped = kept & (boxes != corners).any(1)
    shown = [f"annotation {number} ({names[i]})" for number, i in zip(numbers, place.tolist(), strict=True)]
    _warn(f"boxes of {path} extend beyond their image and are clipped", clipped, shown)
    _warn(f"boxes of {path} have no area inside their image and are skipped", ~kept, shown)
    counts = torch.bincount(place[kept], minlength=len(names))
    return Annotations(
        names=np.array([name.encode() for name in names]),
        ids=torch.tensor(ids),
        sizes=size,
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        boxes=boxes[kept],
        labels=rows[kept, 1].long(),
        crowd=rows[kept, 7] != 0,
        areas=rows[kept, 6],
        classes=tuple(categories.values()),
        categories=tuple(categories),
    )


def _document(path: Path) -> Document:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the annotation file {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as annotations in COCO's layout: it is not JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise InputError(
                f"{path} cannot be read as annotations in COCO's layout: it has no list {key!r} of objects"
            )
    for key in ("images", "categories"):
        if not document[key]:
            raise InputError(f"{path} lists no {key}")
    checked: Document = document
    return checked


def _categories(document: Document, path: Path) -> dict[int, str]:
    """Returns the category names by id, in the order of ids."""
    ids = _ids(document["categories"], path, "category")
    names = [str(item.get("name", number)) for number, item in zip(ids, document["categories"], strict=True)]
    return dict(sorted(zip(ids, names, strict=True)))


def _check_categories(categories: Mapping[int, str], training: Mapping[int, str], path: Path) -> None:
    for number, name in categories.items():
        if training.get(number) != name:
            raise InputError(
                f"{path} calls the category {number} {name!r}, but in the training annotations it is "
                f"{training.get(number, 'missing')!r}; the categories must agree"
            )


def _ids(items: Sequence[Document], path: Path, what: str) -> list[int]:
    ids = [item.get("id") for item in items]
    wrong = next((number for number in ids if type(number) is not int), None)
    if wrong is not None or None in ids:
        raise InputError(f"{path} uses the {what} id {wrong!r}; ids are integers")
    seen: set[int] = set()
    for number in ids:
        assert isinstance(number, int)
        if number in seen:
            raise InputError(f"{path} uses the {what} id {number} twice")
        seen.add(number)
    return [number for number in ids if number is not None]


def _images(
    document: Document, path: Path, folder: Path, *, min_side: int
) -> tuple[list[str], list[int], list[tuple[int, int]]]:
    """Returns file names, ids and sizes (height, width)."""
    items = document["images"]
    ids = _ids(items, path, "image")
    names, sizes, missing = [], [], []
    for number, item in zip(ids, items, strict=True):
        name, size = item.get("file_name"), (item.get("height"), item.get("width"))
        if not isinstance(name, str) or not all(isinstance(side, int) and side > 0 for side in size):
            raise InputError(f"image {number} of {path} needs a file_name, and height and width in pixels: {item}")
        if min(size) < min_side:
            raise InputError(
                f"image {number} of {path}, {name}, has {size[1]}×{size[0]} pixels, and each side must have at "
                f"least data.min_side={min_side}; remove the image and its annotations, or lower data.min_side"
            )
        if not (folder / name).is_file():
            missing.append((number, name))
        names.append(name)
        sizes.append(size)
    if missing:
        number, name = missing[0]
        raise InputError(
            f"{len(missing)} of {len(names)} images of {path} are not in the folder {str(folder)!r}; the first is "
            f"image {number}, {name}: name the folder that the file names are relative to"
        )
    return names, ids, sizes


def _rows(
    document: Document, path: Path, *, ids: Sequence[int], categories: Mapping[int, str]
) -> tuple[Tensor, list[Any]]:
    """Returns a row per annotation and its id.

    Rows are float64, (B, 8): position of the image, label, x, y, width, height, area, crowd.
    """
    position = {number: place for place, number in enumerate(ids)}
    labels = {number: label for label, number in enumerate(categories, start=1)}
    rows, numbers = [], []
    for item in document["annotations"]:
        number = item.get("id")
        title = f"annotation {number} of {path}"
        if not _listed(item.get("image_id"), position):
            raise InputError(f"{title} belongs to image {item.get('image_id')}, which the file does not list")
        if not _listed(item.get("category_id"), labels):
            raise InputError(f"{title} has the category {item.get('category_id')}, which is not among the categories")
        values = _values(item)
        if values is None:
            raise InputError(
                f"{title} has no bbox of four finite numbers: {item.get('bbox')!r}, area {item.get('area')!r}"
            )
        place, label = position[item["image_id"]], labels[item["category_id"]]
        rows.append((place, label, *values, bool(item.get("iscrowd", 0))))
        numbers.append(number)
    return torch.tensor(rows, dtype=torch.float64).view(-1, 8), numbers


def _listed(number: Any, known: Mapping[int, int]) -> bool:
    return isinstance(number, int) and number in known


def _values(item: Document) -> tuple[float, ...] | None:
    """Returns x, y, width, height and area of an annotation; None unless these are finite numbers."""
    try:
        x, y, width, height = map(float, item["bbox"])
        values = (x, y, width, height, float(item.get("area", width * height)))
    except (KeyError, TypeError, ValueError):
        return None
    return values if all(map(math.isfinite, values)) else None


def _warn(text: str, mask: Tensor, names: Sequence[str]) -> None:
    """Warns with the number of annotations where a mask is set, and the names of the first ones."""
    places = mask.nonzero().flatten().tolist()
    if places:
        shown = ", ".join(names[i] for i in places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        warnings.warn(f"{len(places)} {text}: {shown}", stacklevel=4)
