"""Where the images of a run are now: a run and its data may be moved, and the digest says whether they are the same.

A run names its data by the path that was typed, and by the relative path from its own folder. Where the first leads
nowhere any more, the second is tried; `--data.source` and `--data.images` of a command name another place.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from supernet.checked import Checked, Text, shown, unused_fields
from supernet.errors import InputError
from supernet.plugins import FUNCTION

C = TypeVar("C")

PLACES = ("source", "images", "validation_source", "validation_images", "test_source", "test_images")
"""Fields of a data config that are paths; `source` may also name a data set or a function."""
FROM_RUN = "places"
"""Entry of `run.json`: each path relative to the folder of the run."""


@dataclass(frozen=True)
class MovedData(Checked):
    """Where the images of a run are now; they must be the same ones."""

    source: Text | None = None
    """The data set, where it is not found at the place that the run knows: a path, or annotations of a detector."""
    images: Text | None = None
    """Folder of a detector's images."""


NOT_MOVED = MovedData()


def with_located_data(config: C, document: Mapping[str, Any], folder: Path, moved: MovedData = NOT_MOVED) -> C:
    """Returns a recipe whose images are found where they are now.

    Args:
        config: the recipe in a run's `run.json`.
        document: the whole `run.json`.
        folder: the run's folder.
        moved: paths that the user gives, which come first.

    Raises:
        InputError: the user gives a place that the images of this run do not have.
    """
    data = config.data  # type: ignore[attr-defined]
    known = document.get(FROM_RUN)
    relative = known if isinstance(known, Mapping) else {}
    changes: dict[str, str] = {}
    for name in PLACES:
        path, typed = getattr(data, name, ""), getattr(moved, name, None)
        if typed is not None:
            if not hasattr(data, name):
                raise InputError(
                    f"data.{name}={shown(typed)} is for detectors, and {folder} is a classifier's run; leave it out"
                )
            changes[name] = typed
        elif isinstance(path, str) and path and not _exists(Path(path)) and not FUNCTION.fullmatch(path):
            candidates = [folder / path, folder / str(relative.get(name, path))]
            if place := next((candidate for candidate in candidates if _exists(candidate)), None):
                changes[name] = os.path.normpath(place)
    if not changes:
        return config
    located = dataclasses.replace(data, **changes)
    for name, reason in unused_fields(located):
        if getattr(moved, name, None) is not None:
            raise InputError(f"data.{name}={shown(changes[name])} has no effect {reason}; leave it out")
    return dataclasses.replace(config, data=located)  # type: ignore[type-var]


def relative_places(folder: Path, config: Any) -> dict[str, str]:
    """Returns the files and folders that a recipe names, relative to the folder of its run."""
    paths = {name: getattr(config.data, name, "") for name in PLACES}
    return {name: os.path.relpath(path, folder) for name, path in paths.items() if path and _exists(Path(path))}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file system can have such a name
        return False
