"""Annotation files in COCO's layout, checked before any work; errors name the file and the id."""

import dataclasses
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.errors import InputError

Document = dict[str, Any]

LARGEST_SIDE = 1_000_000
"""Pixels that a side of an image may have."""

LARGEST_COORDINATE = 1e9
"""Pixels; larger coordinates, sides and roots of areas are refused as mistakes."""

MOST_UNUSED = 1000
"""Categories without annotations that a file may list; a detector has outputs for each of them."""


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
    counts them and names the first by id. Equal annotations under several ids are kept, with a warning. Images without
    boxes are kept. Backslashes in file names are read as slashes where no file has the name with backslashes.

    Args:
        path: the JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        folder: the folder of the image files, which must exist.
        min_side: pixels that the shorter side of every image must have.
        like: annotations of the training images, whose labels are used; None numbers the categories by id.

    Returns:
        the images in the order of the file, with labels in the order of category ids.

    Raises:
        InputError: the file is missing, not JSON, or without categories or images; an image is missing, too small,
            outside `folder` or listed twice; an annotation has no box, an `iscrowd` other than 0 and 1, a negative
            area, or an unknown image or category; most boxes are shares of the image instead of pixels; an id is not
            an integer or is used twice; two categories have one name; the categories differ from those of `like`. The
            message names the file and the entry, and shows the value as it stands in the file.
    """
    return annotations_of(_document(path), path, folder, min_side=min_side, like=like)


def annotations_of(
    document: Document, path: Path, folder: Path, *, min_side: int = 1, like: Annotations | None = None
) -> Annotations:
    """Returns the annotations in a document of COCO's layout, which may have been read from another layout.

    Args:
        document: with lists of objects `images`, `annotations` and `categories`.
        path: what messages name.
        folder, min_side, like: see `read_annotations`.

    Raises:
        InputError: see `read_annotations`.
    """
    own = _categories(document, path)
    categories = own if like is None else dict(zip(like.categories, like.classes, strict=True))
    if like is not None:
        _check_categories(own, categories, path)
    names, ids, sizes = _images(document, path, folder, min_side=min_side)
    rows = _rows(document, path, ids=ids, categories=categories)
    if like is None:
        _check_unused(rows, categories, path)
    order = rows[:, 0].argsort(stable=True)
    rows, entries = rows[order], [document["annotations"][i] for i in order.tolist()]
    place, size = rows[:, 0].long(), torch.tensor(sizes)
    corners = torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], 1)
    boxes = corners.clamp_min(0).minimum(size[place].flip(1).repeat(1, 2))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    clipped = kept & (boxes != corners).any(1)

    def title(row: int) -> str:
        return f"{_entry('annotation', entries[row], int(order[row]))} ({_plain(names[int(place[row])])})"

    shares = kept & _are_shares(rows)
    if 2 * int(shares.sum()) > int(kept.sum()):
        first = int(shares.nonzero()[0])
        raise InputError(
            f"{int(shares.sum())} of {int(kept.sum())} boxes of {path} lie between 0 and 1, as shares of the image "
            f"would; the first is the bbox {_shown(entries[first]['bbox'])} of {title(first)}. Multiply them by the "
            "width and height of their image: boxes are [x, y, width, height] in pixels"
        )
    _warn(f"boxes of {path} lie within one pixel, as shares of the image would", shares, title)
    _warn(f"boxes of {path} extend beyond their image and are clipped", clipped, title)
    _warn(f"boxes of {path} have no area inside their image and are skipped", ~kept, title)
    _warn(f"annotations of {path} equal an earlier one of their image and count as objects", kept & _again(rows), title)
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
    layout = f"{path} cannot be read as annotations in COCO's layout"
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        text = path.read_bytes() if regular else b""  # reading a pipe would wait for ever
    except OSError as error:
        raise InputError(f"the annotation file {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"no file can have the name {str(path)!r} ({error})") from error
    if not regular:
        raise InputError(f"the annotation file {path} is not a regular file; give a JSON file")
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise InputError(f"{layout}: it is not JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{layout}: its lists or objects are nested too deeply") from error
    for key in ("images", "annotations", "categories"):
        part = document.get(key) if isinstance(document, dict) else None
        if not isinstance(part, list):
            raise InputError(f"{layout}: it has no list {key!r} of objects")
        wrong = next((i for i, item in enumerate(part) if not isinstance(item, dict)), None)
        if wrong is not None:
            raise InputError(
                f"{layout}: entry {wrong} (counted from 0) of its list {key!r} is {_shown(part[wrong])}, not an object"
            )
    for key in ("images", "categories"):
        if not document[key]:
            raise InputError(f"{path} lists no {key}")
    checked: Document = document
    return checked


def _without_repeats(pairs: list[tuple[str, Any]]) -> Document:
    """Returns a JSON object; raises `ValueError` if it has a key twice, of which one would be dropped silently."""
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {_shown(twice)} twice")
    return document


def _shown(value: Any) -> str:
    """Returns a value as it stands in the file, on one line and shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text = text if text.isprintable() else json.dumps(value)
    except ValueError:  # an integer with too many digits to print
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:120]}…"


def _plain(name: str) -> str:
    """Returns a file name for a message: as it is, or as in JSON where it would break the line or fill it."""
    return name if name.isprintable() and len(name) <= 120 else _shown(name)


def _entry(kind: str, item: Document, index: int) -> str:
    """Returns what messages call an entry: by its id, or by its place if it has none that identifies it."""
    number = item.get("id")
    return f"{kind} {number}" if _is_id(number) else f"{kind} {index} (counted from 0)"


def _is_id(number: Any) -> bool:
    return type(number) is int and -(2**63) <= number < 2**63


def _ids(items: Sequence[Document], path: Path, kind: str, *, required: bool = True) -> list[int | None]:
    """Returns the ids of a list; None for entries without one, unless ids are required."""
    ids = [item.get("id") for item in items]
    for index, (number, item) in enumerate(zip(ids, items, strict=True)):
        if not _is_id(number) and (required or "id" in item):
            has = f"the id {_shown(number)}" if "id" in item else "no id"
            raise InputError(f"{_entry(kind, item, index)} of {path} has {has}; ids are integers of 64 bits")
    if len(set(ids)) < len(ids):
        seen: set[int | None] = {None}
        for number in ids:
            if number in seen and number is not None:
                raise InputError(f"{path} uses the {kind} id {number} twice; give every {kind} an id of its own")
            seen.add(number)
    return ids


def _required_ids(items: Sequence[Document], path: Path, kind: str) -> list[int]:
    return [number for number in _ids(items, path, kind) if number is not None]


def _categories(document: Document, path: Path) -> dict[int, str]:
    """Returns the category names by id, in the order of ids; a category without a name is named by its id."""
    categories: dict[int, str] = {}
    by_name: dict[str, int] = {}
    for number, item in zip(
        _required_ids(document["categories"], path, "category"), document["categories"], strict=True
    ):
        name = item.get("name", str(number))
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"category {number} of {path} has the name {_shown(name)}; names are non-empty text")
        if name in by_name:
            raise InputError(
                f"the categories {by_name[name]} and {number} of {path} have one name, {_shown(name)}; merge or rename "
                "them"
            )
        by_name[name] = number
        categories[number] = name
    return dict(sorted(categories.items()))


def _check_categories(categories: Mapping[int, str], training: Mapping[int, str], path: Path) -> None:
    for number, name in categories.items():
        if training.get(number) != name:
            raise InputError(
                f"{path} calls the category {number} {name!r}, but in the training annotations it is "
                f"{training.get(number, 'missing')!r}; the categories must agree"
            )


def _check_unused(rows: Tensor, categories: Mapping[int, str], path: Path) -> None:
    used = int(rows[:, 1].unique().numel())
    if used and len(categories) - used > MOST_UNUSED:
        raise InputError(
            f"{path} lists {len(categories):,} categories, and {len(categories) - used:,} of them have no annotation; "
            f"a detector has outputs for each. Remove unused categories until at most {MOST_UNUSED:,} are left"
        )


def _images(
    document: Document, path: Path, folder: Path, *, min_side: int
) -> tuple[list[str], list[int], list[tuple[int, int]]]:
    """Returns file names, ids and sizes (height, width)."""
    items = document["images"]
    ids = _required_ids(items, path, "image")
    names, sizes, missing = [], [], []
    by_name: dict[str, int] = {}
    for number, item in zip(ids, items, strict=True):
        name, size = item.get("file_name"), (item.get("height"), item.get("width"))
        if not isinstance(name, str) or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in size):
            raise InputError(
                f"image {number} of {path} needs a file_name, and height and width in pixels: {_shown(item)}"
            )
        if min(size) < min_side:
            raise InputError(
                f"image {number} of {path}, {_plain(name)}, has {size[1]}×{size[0]} pixels, and each side must have at "
                f"least data.min_side={min_side}; remove the image and its annotations, or lower data.min_side"
            )
        name, present = _file_name(name, folder, f"image {number} of {path}")
        if not present:
            missing.append((number, name))
        same = os.path.normpath(name)
        if same in by_name:
            raise InputError(
                f"the images {by_name[same]} and {number} of {path} have one file, {_shown(name)}; list it once, with "
                "all of its annotations"
            )
        by_name[same] = number
        names.append(name)
        sizes.append(size)
    if missing:
        number, name = missing[0]
        raise InputError(
            f"{len(missing)} of {len(names)} images of {path} are not in the folder {str(folder)!r}; the first is "
            f"image {number}, {_plain(name)}: name the folder that the file names are relative to"
        )
    return names, ids, sizes


def _file_name(name: str, folder: Path, title: str) -> tuple[str, bool]:
    """Returns the path of an image below the folder, and whether there is a file; refuses paths that lead outside."""
    slashed = name.replace("\\", "/")
    if PurePosixPath(slashed).is_absolute() or slashed[1:3] == ":/" or ".." in PurePosixPath(slashed).parts:
        raise InputError(
            f"{title} has the file_name {_shown(name)}; file names are relative to the folder of the images and stay "
            "inside it"
        )
    if not name.strip("/. ") or "\0" in name or not _is_unicode(name):
        raise InputError(f"{title} has the file_name {_shown(name)}, which no file can have")
    for candidate in dict.fromkeys((name, slashed)):
        try:
            if (folder / candidate).is_file():
                return candidate, True
        except OSError as error:  # the name is too long, or its folder must not be read
            raise InputError(f"{title} has the file_name {_shown(name)}: {error.strerror}") from error
    return name, False


def _is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, which JSON can express."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(document: Document, path: Path, *, ids: Sequence[int], categories: Mapping[int, str]) -> Tensor:
    """Returns a row per annotation, in the order of the file.

    Rows are float64, (B, 8): position of the image, label, x, y, width, height, area, crowd.
    """
    items = document["annotations"]
    _ids(items, path, "annotation", required=False)
    position = {number: place for place, number in enumerate(ids)}
    labels = {number: label for label, number in enumerate(categories, start=1)}
    rows = []
    for index, item in enumerate(items):
        image, category, crowd = item.get("image_id"), item.get("category_id"), item.get("iscrowd", 0)
        place = position.get(image) if type(image) is int else None
        label = labels.get(category) if type(category) is int else None
        box = _box(item)
        area = None if box is None else _area(item, box)
        if (
            place is None
            or label is None
            or box is None
            or area is None
            or type(crowd) not in (int, bool)
            or crowd not in (0, 1)
        ):
            _refuse(item, index, path, place=place, label=label, box=box, area=area)
        rows.append((place, label, *box, area, crowd))
    return torch.tensor(rows, dtype=torch.float64).view(-1, 8)


def _box(item: Document) -> tuple[float, float, float, float] | None:
    """Returns x, y, width and height of an annotation; None unless these are plausible numbers of pixels."""
    box = item.get("bbox")
    if type(box) is not list or len(box) != 4:
        return None
    for value in box:  # comparisons with NaN are false
        if type(value) not in (int, float) or not -LARGEST_COORDINATE <= value <= LARGEST_COORDINATE:
            return None
    x, y, width, height = box
    return float(x), float(y), float(width), float(height)


def _area(item: Document, box: tuple[float, float, float, float]) -> float | None:
    """Returns the area of an annotation, by default that of its box; None unless it is a number of square pixels."""
    if "area" not in item:
        return box[2] * box[3]
    area = item["area"]
    plausible = type(area) in (int, float) and 0 <= area <= LARGEST_COORDINATE**2
    return float(area) if plausible else None


def _refuse(
    item: Document, index: int, path: Path, *, place: int | None, label: int | None, box: object, area: float | None
) -> NoReturn:
    """Raises the error of an annotation that cannot be used."""
    title = f"{_entry('annotation', item, index)} of {path}"
    if place is None:
        raise InputError(f"{title} belongs to image {_shown(item.get('image_id'))}, which the file does not list")
    if label is None:
        category = _shown(item.get("category_id"))
        raise InputError(f"{title} has the category {category}, which is not among the ids of the categories")
    if box is None:
        raise InputError(f"{title} has no bbox of four finite numbers: {_shown(item.get('bbox'))}; give pixels")
    if area is None:
        raise InputError(f"{title} has the area {_shown(item['area'])}; give square pixels, or leave it out")
    raise InputError(f"{title} has iscrowd {_shown(item['iscrowd'])}; it is 0 for an object and 1 for a crowd of them")


def _are_shares(rows: Tensor) -> Tensor:
    """Whether each box lies between 0 and 1 with a fraction somewhere, bool, (B,)."""
    box = rows[:, 2:6]
    inside = (box >= 0).all(1) & (box[:, :2] + box[:, 2:] <= 1.001).all(1)
    return inside & (box != box.round()).any(1)


def _again(rows: Tensor) -> Tensor:
    """Whether image, label, box and crowd of each row stand in an earlier row, bool, (B,)."""
    repeated = torch.zeros(len(rows), dtype=torch.bool)
    if len(rows):
        parts = np.ascontiguousarray(rows[:, [0, 1, 2, 3, 4, 5, 7]].numpy())
        keys = parts.view(np.dtype((np.void, parts.dtype.itemsize * parts.shape[1]))).ravel()
        _, first = np.unique(keys, return_index=True)
        repeated[:] = True
        repeated[torch.from_numpy(first)] = False
    return repeated


def _warn(text: str, mask: Tensor, title: Callable[[int], str]) -> None:
    """Warns with the number of annotations where a mask is set, and the names of the first ones."""
    places = mask.nonzero().flatten().tolist()
    if places:
        shown = ", ".join(map(title, places[:5])) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        warnings.warn(f"{len(places)} {text}: {shown}", stacklevel=4)
