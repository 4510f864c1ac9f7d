"""Spaces and data sets of other packages, registered as entry points, and where their code may come from.

A package registers a builder or a data function in its own pyproject.toml:

    [project.entry-points."supernet.spaces"]
    my-space = "my_package.my_module:build"
    [project.entry-points."supernet.datasets"]
    my-scans = "my_package.my_module:scans"

The names then work wherever those of this project do. Importing this module loads no torch and no plug-in.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

from supernet.errors import InputError

SPACES, DATASETS = "supernet.spaces", "supernet.datasets"
"""Groups of entry points."""

FUNCTION = re.compile(r"\w[\w.]*:\w+")
"""What names a function outside the tables: `package.module:function`."""


def plugins(group: str) -> dict[str, str]:
    """Returns the registered names of a group and the `"module:function"` of each; nothing is imported.

    Packages in a folder that Python added by itself, such as the working folder under `python -m`, do not count.
    """
    implicit = implicit_folders()
    entries = {}
    for point in importlib.metadata.entry_points(group=group):
        distribution = point.dist
        if distribution is not None and Path(str(distribution.locate_file(""))).resolve() not in implicit:
            entries[point.name] = f"{point.module}:{point.attr}"
    return entries


def implicit_folders() -> set[Path]:
    """Returns the folders that modules can be imported from although nobody asked for it.

    Python puts the working folder (`python -m`, `python -c`) or the folder of the script first on `sys.path`. If
    PYTHONPATH or an installed package also names it, the user did ask.
    """
    entries = sys.path if sys.flags.safe_path else sys.path[1:]
    asked = {Path(entry).resolve() for entry in entries if entry}
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in named and not any(Path(entry).resolve() == Path.cwd() for entry in named if entry):
        asked.discard(Path.cwd())  # an empty part of PYTHONPATH stands for the working folder, mostly by accident
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return {Path.cwd(), *([Path(script).resolve().parent] if script else [])} - asked


def check_importable(reference: str) -> None:
    """Checks that the code of `"package.module:function"` was installed or put on PYTHONPATH by the user.

    Nothing of it is imported. A module that is not found at all is left to whoever imports it.

    Raises:
        InputError: it would come from the working folder or the folder of a script.
    """
    package = reference.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    places = list(spec.submodule_search_locations or [])
    if not places and spec.has_location and spec.origin is not None:
        places = [spec.origin]
    implicit = implicit_folders()
    for place in places:
        folder = Path(os.path.abspath(place)).parent.resolve()  # of the link, where the module is one
        if folder in implicit:
            raise InputError(
                f"{reference!r} would be imported from {folder}, which nobody put on PYTHONPATH; install its package, "
                f"or set PYTHONPATH={folder} if you trust that folder"
            )
