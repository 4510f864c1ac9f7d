"""The source "package.module:function" or a plug-in: a function that takes the config and returns the images."""

from supernet import plugins
from supernet.config import Data
from supernet.data.arrays import splits_from
from supernet.data.images import Splits
from supernet.errors import InputError
from supernet.user_code import calling, import_function


def load_function(config: Data) -> Splits:
    """Returns the splits that the function named by `config.source` makes, or those of the images that it returns.

    Raises:
        InputError: the function cannot be imported, fails, or returns something else; in one line that names it.
    """
    what = f"the data set {config.source!r}"
    function = import_function(plugins.plugins(plugins.DATASETS).get(config.source, config.source), what)
    with calling(what):
        splits = function(config)
    if isinstance(splits, Splits):
        return splits
    if (made := splits_from(splits, config)) is not None:
        return made
    raise InputError(
        f"{config.source!r} returned {type(splits).__name__}; it should return the Splits that `split` makes, a pair "
        "of images and labels, or a data set of (image, label) with a length"
    )
