"""Annotations in the layouts of YOLO and Pascal VOC, read into the document that COCO's layout has.

Everything after that, labels, checks and warnings, is then the same for all three (`detection.data.coco`).
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from supernet.checked import plain_name
from supernet.data.opening import shown_size
from supernet.errors import InputError
from supernet.strict_json import read_bytes, read_text

Document = dict[str, Any]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".mpo")
"""Suffixes of image files that are found by their folder."""

SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
"""Split to the names that a data.yaml may have for it."""

TOLERANCE = 0.01
"""By how much a box of YOLO's layout may extend beyond its image, as a share of it; it is then clipped."""


def layout_of(source: str) -> str:
    """Returns the layout of annotations, by the name of their file.

    "yolo" is a .yaml file, "csv" a .csv or .tsv file, "voc" a folder or a .txt list of names, "coco" anything else.
    """
    if source.endswith((".yaml", ".yml")):
        return "yolo"
    if source.endswith((".csv", ".tsv")):
        return "csv"
    folder = os.path.isdir(source)  # False, unlike Path.is_dir, for a name that no file can have
    return "voc" if folder or source.endswith(".txt") else "coco"


# -- YOLO -------------------------------------------------------------------------------------------------------------


def has_split(path: Path, split: str) -> bool:
    """Returns whether a data.yaml names images for a split. Raises `InputError` as `yolo_document`."""
    return _split_entry(_yaml(path), split) is not None


def yolo_document(path: Path, split: str) -> tuple[Document, Path]:
    """Reads a split of a data set in YOLO's layout, as Ultralytics documents it.

    The file names the classes (`names`, a list, or a mapping from their numbers) and for `train`, `val` and `test` a
    folder of images, a list of folders or a .txt list of image files, relative to `path` in the file, or to the file's
    own folder. The labels of `images/a.jpg` stand in `labels/a.txt`: a line per object with the number of its class
    and x and y of its centre, its width and its height as shares of the image. An image without such a file has no
    objects. Category ids are the numbers of the classes, from 0.

    Args:
        path: the data.yaml.
        split: a key of `SPLITS`.

    Returns:
        the document, with the images in the order of their paths, and the folder that its file names are relative to.

    Raises:
        InputError: a file is missing or has other contents; the message names the file and the line.
    """
    content = _yaml(path)
    names = _yolo_names(content, path)
    entry = _split_entry(content, split)
    if entry is None:
        raise InputError(f"{path} names no images for the {split} split; give {' or '.join(SPLITS[split])}")
    files = sorted(_yolo_images(entry, _yolo_root(content, path), path))
    if not files:
        raise InputError(f"{path} names no image for the {split} split: {entry!r} holds none")
    labels = [_label_file(file) for file in files]
    if not any(label.is_file() for label in labels):
        raise InputError(
            f"none of the {len(files)} images of the {split} split of {path} has labels; those of {files[0]} would be "
            f"in {labels[0]}"
        )
    folder = Path(os.path.commonpath([file.parent for file in files]))
    images: list[Document] = []
    annotations: list[Document] = []
    for number, (file, label) in enumerate(zip(files, labels, strict=True), start=1):
        width, height = image_size(file)
        name = file.relative_to(folder).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for category, (x, y, w, h) in _yolo_rows(label, names):
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box})
    categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}, folder


def _yaml(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:  # constructors of dates and keys raise too
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise InputError(f"{path} is not YAML of this layout: it is nested too deeply") from error
    if not isinstance(content, Mapping) or "names" not in content:
        raise InputError(f"{path} cannot be read as a data.yaml in YOLO's layout: it has no `names` of classes")
    return content


def _split_entry(content: Mapping[str, Any], split: str) -> Any:
    return next((content[key] for key in SPLITS[split] if content.get(key)), None)


def _yolo_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    names = content["names"]
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or not all(
        type(number) is int and number >= 0 and type(name) in (str, int) for number, name in pairs.items()
    ):
        raise InputError(f"`names` of {path} should be a list of names, or a mapping from numbers to names")
    if not pairs:
        raise InputError(f"`names` of {path} is empty; name the classes")
    if "nc" in content and content["nc"] != len(pairs):
        raise InputError(f"{path} has nc={content['nc']} and {len(pairs)} names; correct either")
    return {number: str(name) for number, name in pairs.items()}


def _yolo_root(content: Mapping[str, Any], path: Path) -> Path:
    root = content.get("path") or "."
    if not isinstance(root, str):
        raise InputError(f"`path` of {path} should be a folder, not {root!r}")
    for candidate in (path.parent / root, Path(root)):
        if candidate.is_dir():
            return candidate
    raise InputError(f"`path` of {path}, {root!r}, is not a folder; name it relative to the file, or absolutely")


def _yolo_images(entry: Any, root: Path, path: Path) -> Iterator[Path]:
    """Yields the image files that an entry of a data.yaml names."""
    for name in entry if isinstance(entry, list) else [entry]:
        if not isinstance(name, str):
            raise InputError(f"{path} should name folders of images or .txt lists, not {name!r}")
        candidates = [root / name, root / name.removeprefix("../")]  # as Roboflow writes, relative to the training's
        listing = next((candidate for candidate in candidates if candidate.exists()), None)
        if listing is None:
            raise InputError(f"{path} names {name!r}, but there is no {candidates[0]}")
        if listing.is_dir():
            try:
                yield from [file for file in listing.rglob("*") if file.suffix.lower() in SUFFIXES]
            except OSError as error:  # folders that come and go, or must not be read
                raise InputError(f"{path} names {name!r}, which cannot be read ({error})") from error
            continue
        if not listing.is_file():
            raise InputError(f"{path} names {name!r}, which is neither a folder of images nor a .txt list")
        for line in _lines(listing):
            file = root / line if not line.startswith("./") else listing.parent / line
            if not file.is_file():
                raise InputError(f"{listing} lists {line!r}, but there is no {file}")
            yield file


def _label_file(image: Path) -> Path:
    """The file of an image's labels: the last folder `images` of its path becomes `labels`."""
    parts = list(image.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _yolo_rows(file: Path, names: Mapping[int, str]) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yields the class and x, y, width and height, as shares, of every object."""
    if not file.exists():
        return
    for number, line in enumerate(_lines(file), start=1):
        words = line.split()
        try:
            category, values = int(words[0]), tuple(map(float, words[1:]))
        except ValueError:
            category, values = -1, ()
        if len(values) != 4:
            raise InputError(
                f"object {number} of {file} is {line[:80]!r}; it should be the number of a class and four shares of "
                "the image: x and y of the centre, width, height"
            )
        if category not in names:
            raise InputError(f"object {number} of {file} has the class {category}, which the data.yaml does not name")
        x, y, w, h = values
        inside = x - w / 2 >= -TOLERANCE and x + w / 2 <= 1 + TOLERANCE and y - h / 2 >= -TOLERANCE
        if not (inside and y + h / 2 <= 1 + TOLERANCE):
            raise InputError(
                f"object {number} of {file}, {line[:80]!r}, lies outside its image; coordinates are shares of the "
                "width and the height, 0 to 1"
            )
        yield category, values


# -- Pascal VOC -------------------------------------------------------------------------------------------------------


def voc_document(path: Path, images: str, names: Mapping[int, str] | None = None) -> tuple[Document, Path]:
    """Reads a data set in the layout of Pascal VOC: an XML file for each image.

    Coordinates count pixels from 1 and include the last one, so that a box of VOC's xmin, ymin, xmax, ymax covers
    xmin - 1, ymin - 1, xmax, ymax here. Objects that are `difficult` are neither trained on nor counted as missed, and
    detections on them are not wrong: they are treated as COCO's crowds. Categories are the names in alphabetical order,
    with ids from 1.

    Args:
        path: a folder with XML files, or with a folder `Annotations` of them, of which all are read; or a list of names
            such as `VOC2007/ImageSets/Main/train.txt`, a name per line, whose XML files are in `VOC2007/Annotations`.
        images: folder of the images; if empty, `JPEGImages` or `images` beside the annotations, or their own folder.
        names: the categories of the training images; None for these.

    Returns:
        the document, with the images in the order of the list or of their names, and the folder of the images.

    Raises:
        InputError: a file is missing or has other contents; the message names it.
    """
    annotations_folder, stems = _voc_files(path)
    folder = Path(images) if images else _voc_images(annotations_folder)
    parsed = [_voc_image(annotations_folder / f"{stem}.xml", folder) for stem in stems]
    class_names = sorted({name for _, objects in parsed for name, _, _ in objects})
    if not class_names and names is None:
        raise InputError(f"{path} has no object in {len(stems)} XML files; give annotations with objects")
    categories = dict(enumerate(class_names, start=1)) if names is None else dict(names)
    numbers = {name: number for number, name in categories.items()}
    unknown = next((name for name in class_names if name not in numbers), None)
    if unknown is not None:
        raise InputError(f"{path} has objects {unknown!r}, which the training annotations do not have")
    items: list[Document] = []
    annotations: list[Document] = []
    for number, (image, objects) in enumerate(parsed, start=1):
        items.append({"id": number, **image})
        for name, (x1, y1, x2, y2), difficult in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[name],
                    "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
                    "iscrowd": int(difficult),
                }
            )
    listed = [{"id": number, "name": name} for number, name in categories.items()]
    return {"images": items, "annotations": annotations, "categories": listed}, folder


def _voc_files(path: Path) -> tuple[Path, Sequence[str]]:
    """The folder of XML files, and the names of those that are read."""
    if path.is_dir():
        folder = path / "Annotations" if (path / "Annotations").is_dir() else path
        stems = sorted(file.stem for file in folder.glob("*.xml"))
        if not stems:
            raise InputError(f"{folder} holds no XML file; give a folder of annotations in Pascal VOC's layout")
        return folder, stems
    stems = [line.split()[0] for line in _lines(path)]
    wrong = next((stem for stem in stems if not plain_name(f"{stem}.xml")), None)
    if wrong is not None:
        raise InputError(f"{path} lists {wrong[:80]!r}, which is not the plain name of an XML file")
    root = path.absolute().parent.parent.parent
    for folder in (root / "Annotations", path.parent / "Annotations", path.parent):
        if stems and (folder / f"{stems[0]}.xml").is_file():
            return folder, stems
    first = f"{stems[0]}.xml of its first name is not in {root / 'Annotations'}" if stems else "it is empty"
    raise InputError(f"{path} is not a list of annotations in Pascal VOC's layout: {first}")


def _voc_images(annotations: Path) -> Path:
    beside = [annotations.parent / name for name in ("JPEGImages", "images")]
    return next((folder for folder in beside if folder.is_dir()), annotations)


VocObject = tuple[str, tuple[float, ...], bool]
"""Name, xmin, ymin, xmax and ymax as they stand in the file, and whether it is difficult."""


class _Entities(Exception):
    """An XML file declares a document type, in which entities may be defined that expand without end."""


class _WithoutEntities(ElementTree.TreeBuilder):
    """Builds the tree of an XML file in any encoding, unless it declares a document type."""

    def doctype(self, *_: object) -> None:
        """Called by the parser before it reads a definition. Raises `_Entities`."""
        raise _Entities


def _voc_image(file: Path, folder: Path) -> tuple[Document, list[VocObject]]:
    """Returns an image's entry without id, and its objects."""
    try:
        content = read_bytes(file)
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutEntities()))
    except _Entities as error:
        raise InputError(f"{file} defines entities, which annotations in Pascal VOC's layout do not need") from error
    except OSError as error:
        raise InputError(f"the annotation file {file} cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not XML ({error})") from error
    if root.tag != "annotation":
        raise InputError(f"{file} is not in Pascal VOC's layout: it describes a <{root.tag}>, not an <annotation>")
    name = _voc_file_name(file, root.findtext("filename"), folder)
    sides = [root.findtext(f"size/{side}") or "" for side in ("width", "height")]
    if all(re.fullmatch(r"\s*[1-9]\d{0,6}\s*", side) for side in sides):
        width, height = map(int, sides)
    else:
        width, height = image_size(folder / name)
    objects = [_voc_object(file, number, item) for number, item in enumerate(root.iter("object"), start=1)]
    return {"file_name": name, "width": width, "height": height}, objects


def _voc_file_name(file: Path, named: str | None, folder: Path) -> str:
    """The image of an XML file: the one that it names, or else the one of its own name."""
    candidates = [named.strip()] if named and named.strip() and "/" not in named and "\\" not in named else []
    candidates += [file.stem + suffix for suffix in itertools.chain(SUFFIXES, map(str.upper, SUFFIXES))]
    present = next((name for name in candidates if (folder / name).is_file()), None)
    if present is None:
        raise InputError(
            f"the image of {file} is not in the folder {folder}: there is no {candidates[0]}; give data.images"
        )
    return present


def _voc_object(file: Path, number: int, item: ElementTree.Element) -> VocObject:
    name, difficult = (item.findtext("name") or "").strip(), (item.findtext("difficult") or "0").strip()
    if not name or difficult not in ("0", "1"):
        problem = "has no name" if not name else f"has difficult={difficult!r}, not 0 or 1"
        raise InputError(f"object {number} of {file} {problem}")
    corners = [item.findtext(f"bndbox/{corner}") or "" for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        values = tuple(map(float, corners))
    except ValueError:
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise InputError(f"object {number} of {file} has no <bndbox> of four numbers, xmin, ymin, xmax and ymax")
    return name, values, difficult == "1"


# -- files ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    """Returns the text of a file. Raises `InputError` if it cannot be read, is not text, or is a pipe or a folder."""
    try:
        return read_text(path)
    except OSError as error:
        raise InputError(f"the annotation file {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"the annotation file {path} is not text ({error})") from error


def image_size(file: Path) -> tuple[int, int]:
    """Returns width and height of an image as a viewer shows it. Raises `InputError` if it cannot be read."""
    try:
        return shown_size(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"the image {file} cannot be read ({error}); repair it, or remove it") from error
