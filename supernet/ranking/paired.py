"""Which networks are statistically tied, by their correct answers on the same images."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from supernet.errors import InputError
from supernet.space import Arch

Bits = NDArray[np.bool_]
"""Per validation image whether it was classified correctly, (N,)."""


def tied(correct: Mapping[Arch, Bits], level: float = 0.05) -> list[Arch]:
    """The architectures that a paired test does not tell from the best one, best first.

    McNemar's exact test (two-sided, binomial) on the images that exactly one of the two gets right, against the one
    with the most correct images; over all comparisons the level is held by Holm's step-down. The best is chosen on the
    same images, so the set is a guard against reading rank into noise and no confidence set of the best architecture.

    Args:
        correct: per architecture, all on the same images.
        level: chance to tell any of the architectures apart from the best although none differs.

    Returns:
        first the best, then by falling number of correct images; of equals, in the order given.

    Raises:
        InputError: none given, or not on the same images.
    """
    from scipy.stats import binom

    if not correct or len({len(bits) for bits in correct.values()}) > 1:
        raise InputError("a paired test needs architectures that were scored on the same images, at least one")
    ranked = sorted(correct, key=lambda arch: -int(correct[arch].sum()))
    best, *others = ranked
    gained = np.array([np.count_nonzero(correct[best] & ~correct[arch]) for arch in others], dtype=int)
    lost = np.array([np.count_nonzero(correct[arch] & ~correct[best]) for arch in others], dtype=int)
    p = np.minimum(1.0, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))
    worse: set[Arch] = set()
    for place, number in enumerate(np.argsort(p, kind="stable")):
        if p[number] > level / (len(others) - place):
            break
        worse.add(others[number])
    return [arch for arch in ranked if arch not in worse]
