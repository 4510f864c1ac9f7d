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
        returned = function(config)
    if isinstance(returned, Splits):
        return returned
    if (converted := splits_from(returned, config)) is not None:
        return converted
    raise InputError(
        f"{config.source!r} returned {type(returned).__name__}; it should return the Splits that `split` makes, a pair "
        "of images and labels, or a data set of (image, label) with a length"
    )
