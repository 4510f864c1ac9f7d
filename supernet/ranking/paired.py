"""Tests whether networks are statistically tied, from their correct answers on the same images."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from supernet.checked import is_number, shown
from supernet.errors import InputError
from supernet.space import Arch

Bits = NDArray[np.bool_]
"""Whether each validation image was classified correctly, (N,)."""


def tied(correct: Mapping[Arch, Bits], level: float = 0.05) -> list[Arch]:
    """Returns the best architecture and those that are statistically tied with it, best first.

    McNemar's exact test (two-sided, binomial) compares each architecture with the one that has the most correct images,
    on the images that exactly one of the two gets right. Holm's step-down procedure controls the level over all
    comparisons. The best is chosen on the same images, so the set guards against reading a rank into noise; it is not a
    confidence set for the best architecture.

    Args:
        correct: the correct images of each architecture, all on the same images.
        level: probability of separating any architecture from the best although none differs, above 0 and below 1.

    Returns:
        the architectures by decreasing number of correct images; ties keep the order given.

    Raises:
        InputError: there is no architecture, they were not scored on the same images, or the level is no probability.
    """
    if not is_number(level) or not 0 < level < 1:
        raise InputError(f"level={shown(level)} should be a probability above 0 and below 1")
    if not isinstance(correct, Mapping) or not all(isinstance(bits, np.ndarray) for bits in correct.values()):
        raise InputError(f"correct={shown(correct)} should map architectures to arrays of truth values")
    from scipy.special import bdtr  # scipy.stats takes a second to import

    if not correct or len({len(bits) for bits in correct.values()}) > 1:
        raise InputError("a paired test needs at least one architecture, and all scored on the same images")
    ranked = sorted(correct, key=lambda arch: -int(correct[arch].sum()))
    best, *others = ranked
    gained = np.array([np.count_nonzero(correct[best] & ~correct[arch]) for arch in others], dtype=int)
    lost = np.array([np.count_nonzero(correct[arch] & ~correct[best]) for arch in others], dtype=int)
    p = np.minimum(1.0, 2 * bdtr(np.minimum(gained, lost), gained + lost, 0.5))
    worse: set[Arch] = set()
    for place, number in enumerate(np.argsort(p, kind="stable")):
        if p[number] > level / (len(others) - place):
            break
        worse.add(others[number])
    return [arch for arch in ranked if arch not in worse]
