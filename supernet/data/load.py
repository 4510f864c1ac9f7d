"""Loads a data set by the name of its source."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from supernet.checked import shown
from supernet.config import Data
from supernet.data.arrays import splits_from
from supernet.data.cache import cache_folder
from supernet.data.cifar import load_cifar
from supernet.data.embedded import load_digits
from supernet.data.folder import load_folder
from supernet.data.function import load_function
from supernet.data.images import Splits
from supernet.data.timm import load_timm
from supernet.errors import InputError
from supernet.plugins import DATASETS, FUNCTION, plugins

LOADERS: dict[str, Callable[..., Splits]] = {
    "digits": load_digits,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "timm": load_timm,
    "folder": load_folder,
    "function": load_function,
}
"""Loader of each kind of source; see `_kind`."""


def load(
    source: Data | str | Path | tuple[Any, Any] | Any,
    config: Data | None = None,
    *,
    classes: Sequence[str] = (),
    cache: Path | None = None,
) -> Splits:
    """Reads, decodes and splits a data set.

        load(Data("photos", size=64))                       a config, as recipes have
        load("photos", Data(size=64))                       a folder, or any other source by its name
        load((images, labels))                              numpy or torch, see `supernet.data.arrays`
        load(torchvision.datasets.Flowers102(...), Data(size=64))

    Args:
        source: a config; the value of its `source`; images and labels; or a map-style data set of (image, label), such
            as those of torch and torchvision, or a list of such pairs.
        config: for everything but a config, how images are prepared and split; by default `Data()`, and for images in
            memory their own size if they are square.
        classes: names of the labels, for images and data sets from Python.
        cache: folder in which the decoded images of a folder are kept for later calls, such as the folder of a run;
            None for no cache. `config.cache` may name another folder or turn it off.

    Raises:
        InputError: a source that is not there, a folder without images or with a class that
            lacks some, unreadable images, more images than fit in memory, images or labels of another form, or a split
            without images or without those of a class that another split has.
    """
    for name, value, kinds in (("config", config, Data), ("cache", cache, Path)):
        if value is not None and not isinstance(value, kinds):
            raise InputError(f"{name}={shown(value)} should be a {kinds.__name__}")
    if isinstance(source, Data):
        if config is not None or classes:
            raise InputError("source is a config already; leave the other config and the classes out")
        return _loaded(source, cache)
    if isinstance(source, str | Path):
        return _loaded(dataclasses.replace(config or Data(), source=str(source)), cache)
    if (splits := splits_from(source, config, classes)) is not None:
        return splits
    raise InputError(
        f"source={shown(source)} should be a Data, a folder, a pair of images and labels, or a data set of (image, "
        "label) with a length"
    )


def _loaded(config: Data, cache: Path | None) -> Splits:
    loader = LOADERS[_kind(config.source)]
    return loader(config, cache_folder(config.cache, cache)) if loader is load_folder else loader(config)


def _is_folder(source: str) -> bool:
    try:
        return bool(source) and Path(source).is_dir()
    except (OSError, ValueError):  # no file system can have such a name
        return False


def _kind(source: str) -> str:
    """Returns the key in `LOADERS` of a value of `data.source`."""
    if source in ("digits", "cifar10", "cifar100"):
        return source
    if source.startswith("timm:"):
        return "timm"
    if _is_folder(source):
        return "folder"
    if FUNCTION.fullmatch(source) or source in plugins(DATASETS):
        return "function"
    raise InputError(
        f"there is no data set {shown(source)}: data.source is 'digits', 'cifar10', 'cifar100', a folder with one "
        "folder per class, 'timm:NAME' or 'package.module:function'"
    )
