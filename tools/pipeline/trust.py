"""Which code a run may call: a name that only a file gives imports nothing.

`run.json` names a space, a data set or a backbone. Names of this project and of registered plug-ins are followed; any
other has to be repeated on the command line, `--trust package.module:function`, before its module is imported.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from supernet.checked import Text
from supernet.errors import InputError
from supernet.plugins import DATASETS, FUNCTION, SPACES, check_importable, plugins
from supernet.spaces import GENOTYPES
from supernet.spaces import SPACES as KNOWN_SPACES
from supernet_tools.pipeline.config import DetectorRun, Recipe, SupernetRun

R = TypeVar("R", bound=SupernetRun | DetectorRun)

Trust = tuple[Text, ...]
"""The type of the flag `--trust`."""

OWN = {
    "detection.resnet:resnet_10",
    "detection.resnet:resnet_18",
    "detection.resnet:resnet_50",
    "detection.data.crops:digit_crops",
}
"""Functions of this project that recipes name by module and function."""

REMOTE = ("hfds/", "hfids/", "tfds/")
"""Readers of timm that fetch data sets, and code that belongs to them, by name."""

_trusted: set[str] = set()  # of this command


def trust(names: Iterable[str]) -> None:
    """Sets what the user of this command trusts; what an earlier command in this process trusted is forgotten.

    Raises:
        InputError: a name is not `package.module:function`, or its code would come from a folder that nobody named.
    """
    _trusted.clear()
    for name in names:
        if not FUNCTION.fullmatch(name) and not name.startswith("timm:"):
            raise InputError(f"trust={name!r} should be package.module:function, as the run names it")
        if FUNCTION.fullmatch(name):
            check_importable(name)
        _trusted.add(name)


def trust_recipe(config: Recipe, names: Iterable[str] = ()) -> None:
    """Trusts what the user has typed as the recipe of this command, and `names`. Raises `InputError` as `trust`."""
    trust([*names, *(name for _, name in _outside(config))])


def from_file(config: R, file: Path) -> R:
    """Returns a recipe that was read from a file as far as a file may decide it.

    Nothing is downloaded for it, and decoded images are only kept in the run itself or where some lie already.

    Raises:
        InputError: it names code that is neither of this project nor a plug-in nor trusted.
    """
    for field, name in _outside(config):
        if name not in _trusted:
            raise InputError(
                f"{file} names {name!r} as its {field}: code from outside this project, which a file alone does not "
                f"run; if you trust it, add --trust {name}"
            )
    data = config.data
    changes: dict[str, object] = {}
    if data.cache not in ("", "auto", "off") and not _holds_cache(data.cache):
        changes["cache"] = "auto"
    if getattr(data, "download", False):
        changes["download"] = False
    return dataclasses.replace(config, data=dataclasses.replace(data, **changes)) if changes else config  # type: ignore[arg-type]


def _outside(config: Recipe) -> Iterator[tuple[str, str]]:
    """Yields field and name of everything that a recipe takes from outside this project and its plug-ins.

    Names that nobody knows and that are not those of functions are left to whoever looks them up.
    """
    if isinstance(config, DetectorRun):
        if config.backbone.startswith("timm:"):
            return  # the name of a network; nothing is downloaded for it
        yield from _function("backbone", config.backbone, SPACES, {*KNOWN_SPACES, *GENOTYPES})
        return
    yield from _function("space", config.space, SPACES, KNOWN_SPACES)
    source = config.data.source
    if not isinstance(source, str) or os.path.isdir(source):
        return
    if not source.startswith("timm:"):
        yield from _function("data.source", source, DATASETS, ())
    elif source.removeprefix("timm:").lower().startswith(REMOTE):
        yield "data.source", source


def _function(field: str, name: object, group: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields the name if it is that of a function outside this project and its plug-ins."""
    if not isinstance(name, str) or name in known or name in OWN:
        return
    registered = plugins(group)
    if name in registered or name in registered.values():
        check_importable(registered.get(name, name))
    elif FUNCTION.fullmatch(name):
        yield field, name


def _holds_cache(folder: str) -> bool:
    """Whether a folder holds decoded images, which this project keeps only where its user wanted them."""
    try:
        return any(Path(folder).glob("decoded-*.safetensors"))
    except (OSError, ValueError):
        return False
