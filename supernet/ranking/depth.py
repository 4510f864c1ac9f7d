"""The depth of an architecture, the simplest ranker of all."""

from supernet.space import Arch

NO_LAYER = ("identity", "skip", "skip_connect", "none", "zero", "0")  # options that add no layer


def layers(arch: Arch) -> float:
    """Returns the number of decisions whose option adds a layer, i.e. is not one of `NO_LAYER`."""
    return float(sum(value not in NO_LAYER for value in arch.values()))
