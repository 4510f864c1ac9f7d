"""Recipes: functions that return a complete configuration. No torch here, so that `--help` is instant."""

from supernet.config import Data, SupernetRun, Train


def quickstart() -> SupernetRun:
    """The demo: ShuffleNet choice blocks on the embedded digits."""
    return SupernetRun(
        space="shufflenet-small",
        data=Data("digits", size=16, shift=1),
        train=Train(epochs=50, batch=32, lr=0.2),
        retrain=Train(epochs=6, batch=32, lr=0.1),
    )


def macro_digits() -> SupernetRun:
    """The NAS-Bench-Macro space on the embedded digits."""
    return SupernetRun(
        space="nasbench-macro",
        data=Data("digits", size=16, shift=1),
        train=Train(epochs=60, batch=32, lr=0.1),
        retrain=Train(epochs=12, batch=32, lr=0.1),
    )


def spos_images() -> SupernetRun:
    """Uniform single-path training (Guo et al., 2020) on a folder of images: give --data.source."""
    return SupernetRun(
        space="shufflenet-small",
        data=Data("", size=32, shift=4, flip=True, calibration=2048, validation=0.1),
        train=Train(epochs=100, batch=128, lr=0.2, label_smoothing=0.1),
        retrain=Train(epochs=50, batch=128, lr=0.1, label_smoothing=0.1),
    )


RECIPES = {"quickstart": quickstart, "macro-digits": macro_digits, "spos-images": spos_images}
