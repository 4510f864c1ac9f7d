"""What shared losses would be after a longer training, read from how the training went.

Every option of a choice gets only its share of the steps, so the weights of a supernet are trained less than those of
a network alone, and large networks, which learn longest, look worse than they are. How the advantage of size grows can
be seen while the supernet trains: the slope of the paths' losses over the logarithm of their MACs, in each tenth of the
training. It grows about linearly in the logarithm of the images seen. Its rate of growth, extrapolated to the images
that the final network will be trained on, is added to the scores, up to as much again as was seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from supernet.checked import checked_arguments, is_number, plain_scalar, shown
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

FIRST = 3
"""The first tenth that counts: before it, the rate warms up and nothing is learnt."""
FEWEST_PATHS = 20
"""Paths of a tenth that a slope needs."""


@dataclass(frozen=True)
class Slope:
    """The regression of the losses of a tenth's paths on the logarithm of their MACs.

    Attributes:
        tenth: of the training, from 1.
        paths: their number.
        value: loss per unit of ln(MACs); negative where larger paths are better.
        error: its standard error.
    """

    tenth: int
    paths: int
    value: float
    error: float


@dataclass(frozen=True)
class Growth:
    """How fast the advantage of size grows.

    Attributes:
        rate: of the score (the loss with its sign turned) per unit of ln(MACs) and of ln(images).
        error: its standard error.
        reached: the advantage at the end of the training, in units of the score per unit of ln(MACs), as fitted.
    """

    rate: float
    error: float
    reached: float

    def bonus(self, space: SearchSpace, longer: float = 1.0) -> float:
        """Returns what a unit of ln(MACs) adds to a score if each path were trained on its own.

        That is the rate times the logarithm of the number of images that its weights then see, as a multiple of the
        present one: the mean number of options (geometric) times `longer`. It is at most what was reached, since
        growth does not go on for ever. 0 where no growth is seen by two standard errors, or where these are fewer
        images.

        Args:
            space: the search space.
            longer: the epochs of the training of the final network, as a multiple of those of the supernet.

        Raises:
            InputError: a multiple that is negative or not finite.
        """
        if not is_number(longer, 0) or not math.isfinite(longer):
            raise InputError(f"longer={shown(longer)} should be a multiple of the supernet's epochs, from 0")
        counts = [len(choice.options) for choice in space.choices if len(choice.options) > 1]
        if not counts or longer <= 0 or not self.rate > 2 * self.error:
            return 0.0
        grown = self.rate * max(float(np.mean(np.log(counts))) + math.log(longer), 0.0)
        return min(grown, max(self.reached, 0.0))


def slope(tenth: int, log_macs: Sequence[float], losses: Sequence[float]) -> Slope | None:
    """Fits the slope of a tenth; None with too few paths, or if all have the same size.

    Raises:
        InputError: another number of losses than of paths.
    """
    if len(log_macs) != len(losses):
        raise InputError(f"there are {len(log_macs)} sizes and {len(losses)} losses; give both for every path")
    x, y = np.asarray(log_macs, float), np.asarray(losses, float)
    spread = x.var() * len(x) if len(x) else 0.0
    if len(x) < FEWEST_PATHS or not spread > 1e-9:
        return None
    value = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    rest = y - y.mean() - value * (x - x.mean())
    return Slope(tenth, len(x), value, math.sqrt(float(rest.var()) * len(x) / (len(x) - 2) / spread))


@checked_arguments
def growth(slopes: Sequence[Slope]) -> Growth | None:
    """Fits how the slopes change with the logarithm of the images seen, weighted by their precision.

    Returns:
        None with fewer than four slopes from tenth `FIRST` on.

    Raises:
        InputError: something else than slopes.
    """
    kept = [one for one in slopes if one.tenth >= FIRST and one.error > 0]
    if len(kept) < 4:
        return None
    x = np.log([(one.tenth - 0.5) / 10 for one in kept])
    y = -np.array([one.value for one in kept])
    weights = np.array([one.error for one in kept]) ** -2.0
    center, level = (float((weights * values).sum() / weights.sum()) for values in (x, y))
    spread = float((weights * (x - center) ** 2).sum())
    rate = float((weights * (x - center) * y).sum() / spread)
    return Growth(rate, spread**-0.5, level - rate * center)  # x is 0 at the end of the training


def extrapolated(scores: Mapping[Arch, float], macs: Mapping[Arch, float], bonus: float) -> dict[Arch, float]:
    """Returns the scores, higher is better, with the bonus per unit of ln(MACs); MACs below 1 count as 1.

    Raises:
        InputError: a network without MACs, or a bonus that is not finite.
    """
    if not is_number(bonus) or not math.isfinite(bonus):
        raise InputError(f"bonus={shown(bonus)} should be a finite number")
    if lacking := [arch for arch in scores if not is_number(plain_scalar(macs.get(arch)))]:
        raise InputError(f"macs has no number for {lacking[0]}; give those of every network with a score")
    return {arch: score + bonus * math.log(max(macs[arch], 1.0)) for arch, score in scores.items()}
