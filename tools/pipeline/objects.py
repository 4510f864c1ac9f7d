"""Where a data set with boxes keeps its parts: annotations and images for training, scoring and testing, by layout."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from detection.data.table import NEEDED, TABLES, first_image, is_table, present
from supernet.errors import InputError

MOST_ENTRIES = 2000
"""Entries of a folder that are searched for files of annotations."""
HEAD_BYTES = 200_000
"""Bytes at the start of a JSON file by which it is recognised."""
PART_WORDS = {
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
"""Words in a file's name, and the part of the data set that they stand for; other files are of training images."""


@dataclass(frozen=True)
class Parts:
    """The parts of a data set with boxes.

    Attributes:
        layout: one of `supernet_tools.pipeline.choices.LAYOUTS`.
        places: settings of `detection.config.DetectionData` by name: where annotations and images are.
    """

    layout: str
    places: dict[str, str]


def object_parts(source: Path) -> Parts | None:
    """Finds the parts of a data set with boxes.

    - COCO: JSON files in the folder, in its `annotations` or one folder deeper, whose names say train, val or test; or
      one such file.
    - YOLO: a data.yaml, or a folder with one.
    - Pascal VOC: a folder with `Annotations`, and the lists in its `ImageSets/Main` if there are any.
    - CSV: files with a row per object (see `table_document`), where COCO's JSON files would be; or one such file.

    Args:
        source: a folder or a file.

    Returns:
        None for a source without boxes.

    Raises:
        InputError: several files of annotations for one part, none for training, or images that are not there.
    """
    if source.is_file():
        if source.suffix in (".yaml", ".yml"):
            return Parts("YOLO", {"source": str(source)})
        if source.suffix in TABLES:
            if not is_table(source):
                raise InputError(f"{source} cannot be read as a table of objects; it needs {NEEDED}")
            return _by_part("CSV", source.parent, [source])
        return _by_part("COCO", source.parent, [source]) if source.suffix == ".json" else None
    if not source.is_dir():
        return None
    files = [file for file in _annotation_files(source, (".json",)) if _is_coco(file)]
    if files:
        return _by_part("COCO", source, files)
    if any((source / "Annotations").glob("*.xml")):
        return Parts("Pascal VOC", _voc(source))
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (source / name).is_file():
            return Parts("YOLO", {"source": str(source / name)})
    named = [file for file in sorted(source.glob("*.y*ml")) if _is_yolo(file)]
    if len(named) == 1:
        return Parts("YOLO", {"source": str(named[0])})
    files = [file for file in _annotation_files(source, TABLES) if _is_table(file)]
    if files:
        return _by_part("CSV", source, files)
    if (source / "labels").is_dir() and (source / "images").is_dir():
        raise InputError(
            f"{source} has images and labels in YOLO's layout, and no data.yaml that names the classes; write one with "
            "names, train and val"
        )
    return None


# -- COCO and CSV -----------------------------------------------------------------------------------------------------


def _annotation_files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yields files in a folder, in its annotations, and in the folders of its parts (as Roboflow writes them)."""
    entries = sorted(itertools.islice(folder.iterdir(), MOST_ENTRIES))
    yield from (file for file in entries if file.suffix in suffixes and file.is_file())
    for inner in (entry for entry in entries if entry.is_dir()):
        if inner.name.lower() == "annotations" or _part(inner.name) or inner.name == "train":
            files = sorted(itertools.islice(inner.iterdir(), MOST_ENTRIES))
            yield from (file for file in files if file.suffix in suffixes and file.is_file())


def _is_coco(file: Path) -> bool:
    """Whether a JSON file holds boxes, by its beginning and its name."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError:
        return False
    named = "annotation" in file.name.lower() or file.name.startswith("instances")
    return b'"annotations"' in head or (named and b'"images"' in head)


def _is_table(file: Path) -> bool:
    """Whether a file is a table of objects; other tables may lie beside images."""
    try:
        return is_table(file)
    except InputError:
        return False


def _part(name: str) -> str:
    """The part of a data set that a name refers to: "validation", "test", or "" for training images or none."""
    words = "".join(letter if letter.isalpha() else " " for letter in name.lower()).split()
    return next((PART_WORDS[word] for word in words if word in PART_WORDS), "")


def _by_part(layout: str, root: Path, files: Sequence[Path]) -> Parts:
    by_part: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        part = next((part for name in reversed(inside.parts) if (part := _part(name))), "train")
        by_part.setdefault(part, []).append(file)
    if "train" not in by_part and len(files) == 1:
        by_part = {"train": list(files)}
    if "train" not in by_part:
        raise InputError(
            f"{root} has annotations of held-out images only ({files[0].name}); give that of the training images"
        )
    places: dict[str, str] = {}
    for part, candidates in by_part.items():
        named = [file for file in candidates if file.name.startswith("instances")]
        chosen = named if len(named) == 1 else candidates  # beside those of captions and keypoints
        if len(chosen) > 1:
            names = ", ".join(file.name for file in chosen[:4])
            raise InputError(
                f"{root} has {len(chosen)} files of annotations for {part} images ({names}); give one of them as source"
            )
        prefix = "" if part == "train" else f"{part}_"
        places[f"{prefix}source"] = str(chosen[0])
        places[f"{prefix}images"] = str(_images_of(chosen[0], root, part))
    return Parts(layout, places)


def _images_of(file: Path, root: Path, part: str) -> Path:
    """The folder that the file names of a COCO file or a table are relative to."""
    name = first_image(file) if file.suffix in TABLES else _first_name(file)
    near = [file.parent, root, root.parent] if file.parent == root else [file.parent, root]
    folders = [place / inner for place in near for inner in ("", "images", "JPEGImages", "data")]
    for folder in list(folders):
        if folder.is_dir():
            inner = [entry for entry in sorted(itertools.islice(folder.iterdir(), MOST_ENTRIES)) if entry.is_dir()]
            folders += [entry for entry in inner if (_part(entry.name) or "train") == part]
    for folder in folders:
        if present(name, folder) or present(name.replace("\\", "/"), folder):
            return folder
    raise InputError(
        f"the image {name!r} of {file} is in none of {', '.join(map(str, dict.fromkeys(folders[:4])))}; put the images "
        f"into {root / 'images'}"
    )


def _first_name(file: Path) -> str:
    try:
        document: Any = json.loads(file.read_bytes())
        name = document["images"][0]["file_name"]
    except OSError as error:
        raise InputError(f"the annotation file {file} cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as annotations in COCO's layout: it lists no image's file_name"
        ) from error
    return str(name)


# -- Pascal VOC and YOLO ----------------------------------------------------------------------------------------------


def _voc(folder: Path) -> dict[str, str]:
    lists = folder / "ImageSets" / "Main"
    names = {"source": ("train.txt", "trainval.txt"), "validation_source": ("val.txt",), "test_source": ("test.txt",)}
    places = {
        place: str(lists / name)
        for place, files in names.items()
        if (name := next((file for file in files if (lists / file).is_file()), ""))
    }
    if places.get("source", "").endswith("trainval.txt"):
        places.pop("validation_source", None)  # part of it
    return places if "source" in places else {"source": str(folder)}


def _is_yolo(file: Path) -> bool:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and "names" in content and "train" in content
