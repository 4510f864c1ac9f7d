"""Annotations in a CSV file with a row per object, read into the document that COCO's layout has."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detection.data.layouts import SUFFIXES, image_size
from supernet.csv_rows import csv_rows
from supernet.errors import InputError

Document = dict[str, Any]

TABLES = (".csv", ".tsv")
"""Suffixes of tables."""
IMAGE = ("filename", "file", "image", "imagename", "imagefile", "imagepath", "path", "img", "imageid")
CLASS = ("class", "classname", "label", "labelname", "category", "categoryname", "name")
CORNERS = (("xmin", "x1", "left"), ("ymin", "y1", "top"), ("xmax", "x2", "right"), ("ymax", "y2", "bottom"))
WIDTH, HEIGHT = ("w", "bboxwidth", "boxwidth", "width"), ("h", "bboxheight", "boxheight", "height")
SIDES = (("x", "bboxx"), ("y", "bboxy"), WIDTH, HEIGHT)
"""Names of columns without spaces, `_` and capitals; the first that a file has is taken."""
WITHOUT_HEADER = ("image", "xmin", "ymin", "xmax", "ymax", "class")
"""The columns of a file whose first row is that of an object."""
NEEDED = (
    "columns for the image (filename), for the box (xmin, ymin, xmax, ymax, or x, y, w, h, in pixels from 0) and for "
    "the name of the class (class)"
)


def is_table(path: Path) -> bool:
    """Returns whether a CSV file has columns for images, boxes and classes. Raises `InputError` if it is no CSV."""
    rows, _ = csv_rows(path)
    return bool(rows) and not isinstance(_columns(rows[0][1]), str)


def first_image(path: Path) -> str:
    """Returns the image of the first row of a table, with `/` between folders. Raises `InputError` as `is_table`."""
    rows, _ = csv_rows(path)
    columns = _columns(rows[0][1])
    body = rows if _is_object(rows[0][1]) else rows[1:]
    if isinstance(columns, str) or not body or len(body[0][1]) <= columns[0]:
        raise InputError(f"{path} lists no image; it needs {NEEDED}")
    return body[0][1][columns[0]].strip().replace("\\", "/")


def table_document(path: Path, images: str, names: Mapping[int, str] | None = None) -> tuple[Document, Path]:
    """Reads a CSV file with a row for each object.

    Columns are recognised by their names, in any order and beside others: the image (`filename`, `image`, `path`, …),
    the box, and the name of its class (`class`, `label`, …). A box is given by the edges `xmin`, `ymin`, `xmax`, `ymax`
    (or `x1` … `y2`), or by its corner and sides, `x`, `y`, `w`, `h`; both are in pixels of the image as a viewer shows
    it, counted from its upper left corner. An image without objects has one row whose other cells are empty. A file
    without a header has the columns image, xmin, ymin, xmax, ymax, class. Categories are the names in alphabetical
    order, with ids from 1.

    Args:
        path: the file; see `supernet.csv_rows.csv_rows`.
        images: the folder that the names of images are relative to; if empty, the one of the file, or `images` in it.
        names: the categories of the training images; None for these.

    Returns:
        the document, with the images in the order of the file, and the folder of the images.

    Raises:
        InputError: a column is missing, or a row has no number, no class or an image that is not there. The message
            names the line.
    """
    rows, delimiter = csv_rows(path)
    columns = _columns(rows[0][1]) if rows else "it is empty"
    if isinstance(columns, str):
        raise InputError(f"{path} cannot be read as a table of objects: {columns}; it needs {NEEDED}")
    headed = not _is_object(rows[0][1])
    image_column, box_columns, class_column, as_corners = columns
    objects: dict[str, list[tuple[str, list[float], int]]] = {}
    for line, cells in rows[headed:]:
        cell = {number: text.strip() for number, text in enumerate(cells)}
        image, name = cell.get(image_column, ""), cell.get(class_column, "")
        box = [cell.get(number, "") for number in box_columns]
        if not image:
            raise InputError(f"{path}, line {line}: it names no image; fill the first of {NEEDED}")
        listed = objects.setdefault(image.replace("\\", "/"), [])
        if not any(box):
            continue  # with or without a class, such as "background"
        if not name:
            raise InputError(f"{path}, line {line}: the object has no class; fill the cell, or leave its box empty too")
        values = [_number(text, delimiter) for text in box]
        if None in values:
            raise InputError(f"{path}, line {line}: the box {', '.join(box)!r} is not four numbers, in pixels")
        x, y, third, fourth = (value for value in values if value is not None)
        listed.append((name, [x, y, third - x, fourth - y] if as_corners else [x, y, third, fourth], line))
    if not objects:
        raise InputError(f"{path} names no image below its header; give a row for each object")
    class_names = sorted({name for listed in objects.values() for name, _, _ in listed})
    if not class_names and names is None:
        raise InputError(f"{path} has no object in {len(objects)} images; give a table with boxes")
    categories = dict(enumerate(class_names, start=1)) if names is None else dict(names)
    numbers = {name: number for number, name in categories.items()}
    folder = _folder(path, images, next(iter(objects)))
    items: list[Document] = []
    annotations: list[Document] = []
    for number, (image, listed) in enumerate(objects.items(), start=1):
        file_name = _file_name(image, folder, path)
        width, height = image_size(folder / file_name)
        items.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for name, bbox, line in listed:
            if name not in numbers:
                raise InputError(f"{path}, line {line}: the training annotations have no class {name!r}")
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[name], "bbox": bbox}
            annotations.append(annotation)
    listed_categories = [{"id": number, "name": name} for number, name in categories.items()]
    return {"images": items, "annotations": annotations, "categories": listed_categories}, folder


def _columns(header: Sequence[str]) -> tuple[int, list[int], int, bool] | str:
    """Returns the places of the image, the box and the class, and whether a box is four edges; or what is missing."""
    if _is_object(header):
        return 0, [1, 2, 3, 4], 5, True
    names = [re.sub(r"[\s_]", "", name).lower() for name in header]

    def place(wanted: Sequence[str]) -> int | None:
        return next((names.index(name) for name in wanted if name in names), None)

    image, label = place(IMAGE), place(CLASS)
    corners, sides = [place(wanted) for wanted in CORNERS], [place(wanted) for wanted in SIDES]
    box = sides if None in corners else corners
    shown = ", ".join(name.strip() for name in header)[:120]
    for what, missing in (("the image", image is None), ("the box", None in box), ("the class", label is None)):
        if missing:
            return f"no columns for {what} among {shown!r}"
    assert image is not None
    assert label is not None
    return image, [number for number in box if number is not None], label, None not in corners


def _is_object(cells: Sequence[str]) -> bool:
    """Returns whether a row without a header has an object: an image, four whole or decimal numbers, a class."""
    if len(cells) != len(WITHOUT_HEADER):
        return False
    numbers = [_number(cell, ",") for cell in cells[1:5]]
    return None not in numbers or not any(map(str.strip, cells[1:]))


def _number(text: str, delimiter: str) -> float | None:
    """Reads a finite number; None for anything else."""
    try:
        number = float(text if delimiter == "," else text.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _folder(path: Path, images: str, first: str) -> Path:
    """Returns the folder that holds the first image."""
    if images:
        return Path(images)
    near = [path.parent / name for name in ("", "images", "JPEGImages")]
    return next((folder for folder in near if present(first, folder)), path.parent)


def present(image: str, folder: Path) -> str | None:
    """Returns the name of an image's file in a folder, also where the table leaves out the suffix; None without one."""
    candidates = (image, *(image + suffix for suffix in SUFFIXES))
    try:
        return next((name for name in candidates if (folder / name).is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _file_name(image: str, folder: Path, path: Path) -> str:
    """Returns the name of an image's file. Raises `InputError` if it leaves the folder, before anything is opened."""
    if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
        raise InputError(f"{path} names the image {image[:200]!r}; names are relative to {folder} and stay inside it")
    name = present(image, folder)
    if name is None:
        raise InputError(f"the image {image[:200]!r} of {path} is not in the folder {folder}; give data.images")
    return name
