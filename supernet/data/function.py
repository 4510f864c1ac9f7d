"""The source "package.module:function": a user's own function that takes the config and returns the splits."""

import importlib
from collections.abc import Callable
from typing import Any

from supernet.config import Data
from supernet.data.images import Splits
from supernet.errors import InputError


def load_function(config: Data) -> Splits:
    """Returns the splits that the function named by `config.source` makes.

    Raises:
        InputError: the function cannot be imported, or returns something else.
    """
    module, _, name = config.source.partition(":")
    try:
        function: Callable[[Data], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the data set {config.source!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    splits = function(config)
    if not isinstance(splits, Splits):
        raise InputError(f"{config.source!r} returned {type(splits).__name__}, not the Splits that `split` makes")
    return splits
