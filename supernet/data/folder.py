"""The source of image folders with one folder per class, decoded into memory or streamed."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy
import torch
from torch import Tensor

from supernet.config import Data
from supernet.data.cache import Entry, cache_file, cache_key, cached
from supernet.data.decode import Labelled, read_images, report_animated, report_unreadable
from supernet.data.images import Splits
from supernet.data.opening import open_image
from supernet.data.split import relabel, split, split_streamed
from supernet.errors import InputError
from supernet.memory import check_memory

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are read, in lower case: those of torchvision."""


@dataclass(frozen=True)
class Files:
    """The image files of a folder with one folder per class."""

    root: Path
    names: "numpy.ndarray[Any, numpy.dtype[numpy.bytes_]]"
    """Paths below the root. One array: a list of a million strings would be copied into every worker process."""
    labels: Tensor
    classes: tuple[str, ...]
    threads: int = min(8, os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Image.Image, int]":
        return open_image(self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def identity(self, index: Tensor) -> str:
        """Returns a digest of names, sizes and labels."""
        sha = hashlib.sha256()
        for i in index.tolist():
            sha.update(self.names[i] + f" {os.path.getsize(self.name(i))} {self.labels[i]}\n".encode())
        return sha.hexdigest()

    def numbered_as(self, classes: tuple[str, ...], other: Path) -> "Files":
        """Returns the files with their labels in the order of `classes`, those of the training images in `other`.

        Raises:
            InputError: a class that is not among them.
        """
        return replace(self, labels=relabel(self, classes, where=(str(self.root), str(other))), classes=classes)


def folder(root: Path, *, fewest: int = 2) -> Files:
    """Lists the images of a folder with one folder per class; links are followed.

    Files that are not read (other types, hidden ones, those beside the class folders) are counted in one warning.

    Raises:
        InputError: no images, a class without images, fewer than `fewest` classes, a folder that cannot be read, a link
            beside the classes that leads nowhere, a link into a folder that it lies in, or a name that is not UTF-8.
    """
    passed = Passed(root)
    classes = []
    for item in sorted(_scan(root), key=lambda item: item.name):
        if item.is_dir() and not item.name.startswith("."):
            classes.append(item.name)
        elif item.is_symlink() and not item.name.startswith(".") and not os.path.exists(item.path):  # a class is gone
            raise InputError(
                f"{shown_name(item.path)} is a link that leads nowhere; restore what it led to, or remove it"
            )
        else:
            passed.add(item.name, item.name, image=item.name.lower().endswith(EXTENSIONS))
    _check_names(root, classes)
    files: list[tuple[tuple[str, ...], int]] = []
    for label, name in enumerate(classes):
        for place, names in _walk(root / name):
            parts = place.relative_to(root).parts
            for file in names:
                if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                    files.append(((*parts, file), label))
                else:
                    passed.add(file, os.path.join(*parts, file))
    if not files:
        raise InputError(
            f"{root} holds no images: it needs one folder per class with files such as .jpg or .png{passed.said('; ')}"
        )
    present = {label for _, label in files}
    if len(present) < fewest:
        only = classes[files[0][1]]
        inner = _level_below(root / only)
        better = f"; is {str(inner)!r} the folder of the classes?" if inner else "; there is nothing to learn"
        raise InputError(f"{root} holds images of one class only, {only!r}{better}")
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise InputError(f"the class folder {root / empty[0]} holds no images; fill or remove it{passed.said('; ')}")
    files.sort()
    _check_names(root, (os.path.join(*parts) for parts, _ in files))
    passed.warn()
    paths = numpy.array([os.fsencode(os.path.join(*parts)) for parts, _ in files])
    return Files(root, paths, torch.tensor([label for _, label in files]), tuple(classes))


class Passed:
    """Counts the files of a folder that are not read as images, by the reason."""

    def __init__(self, root: Path) -> None:
        self._root, self._names = root, dict[str, list[str]]()

    def add(self, name: str, path: str, *, image: bool = False) -> None:
        """Notes a file or folder by its name and its path below the root; `image` is one beside the class folders."""
        kind = "hidden" if name.startswith(".") else os.path.splitext(name)[1].lower() or "without an extension"
        self._names.setdefault("beside the class folders" if image and kind != "hidden" else kind, []).append(path)

    def warn(self) -> None:
        """Warns once of the files, if there are any."""
        if text := self.said():
            warnings.warn(text, stacklevel=4)

    def said(self, before: str = "") -> str:
        """Returns the number of files of each kind and the name of the first, behind `before`; empty without files."""
        if not self._names:
            return ""
        kinds = sorted(self._names.items(), key=lambda item: (-len(item[1]), item[0]))
        shown = ", ".join(f"{len(paths)} {kind} ({shown_name(min(paths))})" for kind, paths in kinds[:6])
        shown += f" and {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
        return f"{before}not read as images in {self._root}: {shown}"


def shown_name(name: str) -> str:
    """Returns a file name as text that can be printed: bytes that are not UTF-8 and line breaks are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _check_names(root: Path, names: Iterable[str]) -> None:
    """Refuses names that cannot be printed in a message or written to JSON."""
    for name in (str(root), *names):
        if shown_name(name) != name:
            where = f"{root / name}" if name != str(root) else name
            raise InputError(
                f"the name {shown_name(where)} is not UTF-8 or holds control characters; rename the file or the folder"
            )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder below and including `folder`, and the names of its files; hidden folders count as files.

    Raises:
        InputError: a folder that cannot be read, or a link into a folder that it lies in.
    """
    above: dict[Path, set[tuple[int, int]]] = {}  # folders on the way to each one, as device and inode

    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        path = Path(place)
        state = os.stat(path)
        identity, way = (state.st_dev, state.st_ino), above.pop(path, set())
        if identity in way:
            raise InputError(
                f"the link {shown_name(place)} leads into a folder that it lies in itself, so it has no end; remove it"
            )
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            above[path / name] = way | {identity}
        yield path, names + hidden


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"the folder {shown_name(str(error.filename))} cannot be read ({error.strerror})") from error


def _scan(folder: Path) -> "list[os.DirEntry[str]]":
    """Returns what a folder holds. Raises `InputError` if it cannot be read."""
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as error:
        _refuse(error)


def _folders(root: Path) -> list[str]:
    """Returns the names of the visible folders in a folder, sorted. Raises `InputError` if one cannot be printed."""
    names = sorted(item.name for item in _scan(root) if item.is_dir() and not item.name.startswith("."))
    _check_names(root, names)
    return names


def _holds_images(root: Path) -> bool:
    """Returns whether images lie directly in a folder."""
    return any(item.name.lower().endswith(EXTENSIONS) and not item.name.startswith(".") for item in _scan(root))


def _level_below(root: Path) -> Path | None:
    """Returns the next folder from `root` down that has several class folders or a training split; None without one."""
    for _ in range(5):
        names = _folders(root)
        if len(names) > 1:
            return root
        if not names:
            return None
        root = root / names[0]
    return None


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders that hold a split, in lower case, and which."""


@dataclass(frozen=True)
class Layout:
    """Which folders of a source hold which split.

    Attributes:
        train: the folder with the class folders of the training images; the source itself if it has no splits.
        validation, test: the other splits; None without one.
    """

    train: Path
    validation: Path | None = None
    test: Path | None = None


def layout(root: Path) -> Layout:
    """Finds the splits in a folder: `train`, `val` and `test` under any of `SPLIT_NAMES`, in upper or lower case.

    A folder of such a name that holds images itself is a class, if there are other classes beside it. Where there are
    only two splits, the one beside `train` is the test split. Folders beside the splits are named in a warning.

    Raises:
        InputError: two folders for one split, held-out images without training images, or splits without class folders.
    """
    names = _folders(root)
    splits = [name for name in names if name.lower() in SPLIT_NAMES]
    others = [name for name in names if name.lower() not in SPLIT_NAMES]
    nested = [name for name in splits if len(_folders(root / name)) > _holds_images(root / name)]
    trains = [name for name in nested if SPLIT_NAMES[name.lower()] == "train"]
    flat = [name for name in others if _holds_images(root / name)]
    if not splits or (others and not trains):
        _refuse_level_above(root, names)
        return Layout(root)
    if len(flat) > 1 and len(splits) == 1:
        raise InputError(
            f"{root / splits[0]} may be the training split or a class beside {', '.join(map(repr, flat[:3]))}; move "
            f"the images of a class out of its sub-folders, or give {str(root / splits[0])!r} itself"
        )
    if not trains:
        raise InputError(
            f"{root} holds {', '.join(map(repr, splits))}, which are names of splits and not of classes; it needs a "
            "folder 'train' with one folder of images per class, beside 'test' or 'val' with the same"
        )
    folders: dict[str, Path] = {}
    for name in nested:
        split_name = SPLIT_NAMES[name.lower()]
        if split_name in folders:
            raise InputError(
                f"{root} has two folders for the {split_name} split, {folders[split_name].name!r} and {name!r}; rename "
                "one"
            )
        folders[split_name] = root / name
    unused = [name for name in names if root / name not in folders.values()]
    if unused:
        shown = ", ".join(repr(shown_name(name)) for name in unused[:5]) + (", …" if len(unused) > 5 else "")
        warnings.warn(f"{root} has splits, and these folders beside them are not used: {shown}", stacklevel=3)
    if "test" not in folders and "validation" in folders:
        folders["test"] = folders.pop("validation")
    return Layout(folders["train"], folders.get("validation"), folders.get("test"))


def _refuse_level_above(root: Path, names: Sequence[str]) -> None:
    """Refuses a folder in which a folder has splits, or which holds a single folder of class folders."""
    for name in names:
        below = [inner.lower() for inner in _folders(root / name)]
        if any(SPLIT_NAMES.get(inner) == "train" for inner in below) and all(inner in SPLIT_NAMES for inner in below):
            raise InputError(f"{root} is a level too high: {root / name} holds the splits; give {str(root / name)!r}")


def load_folder(config: Data, cache: Path | None = None) -> Splits:
    """Reads and splits a folder, which may hold splits with the class folders below; see `layout`.

    Args:
        config: `source` is the folder.
        cache: folder in which decoded images are kept for later calls; None for no cache.

    Raises:
        InputError: see `load`.
    """
    root = Path(config.source)
    _check_names(root, ())
    place = layout(root)
    train = folder(place.train)
    validation, test = (
        None if part is None else folder(part, fewest=1).numbered_as(train.classes, place.train)
        for part in (place.validation, place.test)
    )
    if config.stream:
        return split_streamed(config, train, validation, test)
    held_out = {"validation": validation, "test": test}
    parts = {"train": train} | {name: part for name, part in held_out.items() if part is not None}
    check_memory(
        sum(map(len, parts.values())),
        config.size,
        remedy="lower data.size, or set data.stream=True to read them while training",
    )
    decoded = dict(zip(parts, _decoded(list(parts.values()), config, cache), strict=True))
    pixels, labels = decoded["train"]
    lost = sorted(set(train.labels.tolist()) - set(labels.tolist()))
    if lost:
        raise InputError(
            f"no image in {place.train / train.classes[lost[0]]} can be read; repair some or remove the folder"
        )
    return split(config, pixels, labels, train.classes, decoded.get("test"), validation=decoded.get("validation"))


def _decoded(parts: list[Files], config: Data, cache: Path | None) -> list[Labelled]:
    """Returns pixels and labels of all readable files of each part, from the cache if it knows these files."""
    source = (os.path.realpath(config.source), config.size, config.skip_unreadable)

    def key() -> str:
        files = ((part.names[i], part.name(i)) for part in parts for i in range(len(part)))
        return cache_key(source, [(os.path.realpath(part.root), len(part)) for part in parts], files=files)

    def decode() -> Entry:
        decoded = [read_images(part, torch.arange(len(part)), config) for part in parts]
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(decoded):
            tensors |= {f"pixels{number}": part.pixels, f"readable{number}": part.readable}
        problems = [problem for part in decoded for problem in part.problems]
        return Entry(tensors, problems, [name for part in decoded for name in part.animated])

    entry = cached(None if cache is None else cache_file(cache, *source), key, decode)
    if entry.problems:
        report_unreadable(entry.problems, skip=True)
    report_animated(entry.animated)
    return [
        (entry.tensors[f"pixels{number}"], part.labels[entry.tensors[f"readable{number}"]])
        for number, part in enumerate(parts)
    ]
