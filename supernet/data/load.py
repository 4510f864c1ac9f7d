"""Loads a data set by the name of its source."""

from collections.abc import Callable
from pathlib import Path

from supernet.checked import checked_arguments, shown
from supernet.config import Data
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


@checked_arguments
def load(config: Data, *, cache: Path | None = None) -> Splits:
    """Reads, decodes and splits a data set.

    Args:
        config: the source, and how images are prepared and split.
        cache: folder in which the decoded images of a folder are kept for later calls, such as the folder of a run;
            None for no cache. `config.cache` may name another folder or turn it off.

    Raises:
        InputError: a source that is not there, a folder without images or with a class that
            lacks some, unreadable images, more images than fit in memory, or a split without images or without those of
            a class that another split has.
    """
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
