"""Racing: candidates that are unlikely to be among the best stop after a part of the validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supernet.checked import is_number, is_whole
from supernet.errors import InputError
from supernet.seeding import derive_seed


@dataclass(frozen=True)
class Race:
    """When a candidate stops.

    After the first part of the images, a candidate stops if at least `top` others of the same request are better, each
    by McNemar's exact test on these images (one-sided, at `level` divided by the number of others). A candidate that is
    not among the best of its request is not among the best of the search either. Hoeffding races stop candidates by
    bounds on their means instead (Maron & Moore, NeurIPS 1993); paired tests need fewer images, since most images are
    classified correctly, or wrongly, by all candidates.

    Attributes:
        top: the number of the best that must be scored on all images, at least 1.
        part: the share of the validation images before the decision, above 0 and below 1; whole batches are taken.
        level: the probability of stopping a candidate although it is among the best, above 0 and below 1.
    """

    top: int = 10
    part: float = 0.25
    level: float = 0.01

    def __post_init__(self) -> None:
        shares = all(is_number(share) and 0 < share < 1 for share in (self.part, self.level))
        if not is_whole(self.top, 1) or not shares:
            raise InputError(f"{self}: top must be at least 1, and part and level between 0 and 1")


def shuffled(length: int) -> Tensor:
    """Returns a fixed random order, int64, (length,), so that the first images represent all of them."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed("race")))


def beaten(correct: NDArray[np.bool_], race: Race, *, others: int) -> NDArray[np.bool_]:
    """Returns which candidates are significantly worse than at least `race.top` others, (candidates,).

    Args:
        correct: (candidates, images), whether each is right on each image.
        race: the rule.
        others: the number of comparisons of each candidate, by which the level is divided.
    """
    from scipy.special import bdtr

    right = correct.astype(np.float32)
    wins = np.rint(right @ (1 - right).T).astype(int)  # (candidates, candidates): the row is right, the column wrong
    p = bdtr(wins.T, wins + wins.T, 0.5)  # P(the column wins at most this often) if both were equally good
    surpassed = (wins > wins.T) & (p < race.level / max(others, 1))
    stopped: NDArray[np.bool_] = surpassed.sum(0) >= race.top
    return stopped


def extrapolated(
    partial: Mapping[str, float], others: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]
) -> dict[str, float]:
    """Returns the metrics of a stopped candidate as they would be on all images, if it changed as the others did.

    The first part of the images may be easier or harder than the rest, so the mean change of the others is added.

    Args:
        partial: its metrics on the first part.
        others: the metrics of the candidates that did not stop, on the first part and on all images.
    """
    return {
        name: value + float(np.mean([whole[name] - part[name] for part, whole in others] or [0.0]))
        for name, value in partial.items()
    }
