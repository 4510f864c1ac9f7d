"""Limits on costs: which architectures are within them, how many there are, and samples of those."""

import math
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from random import Random

from supernet.checked import arguments_explained, checked_arguments, is_number
from supernet.cost.table import CostTable, amount
from supernet.cost.window import CostWindow
from supernet.errors import InputError, nearest
from supernet.space import Arch

TRIES = 10_000  # draws within the tightest limit before concluding that the others exclude everything


class Feasible:
    """The predicate "within the limits", through which every search takes its constraints.

    Args:
        cost: returns the costs of an architecture.
        limits: the largest allowed value by the name of the cost, e.g. `{"macs": 3e8}`.

    Raises:
        InputError: an unknown cost, or a limit below the cheapest architecture; the message names the cheapest cost.
    """

    @checked_arguments
    def __init__(self, cost: CostTable, limits: Mapping[str, float]) -> None:
        self.cost = cost
        self.limits = dict(limits)
        for name, limit in limits.items():
            if name not in cost.costs:
                raise InputError(f"there is no cost {name!r}; {nearest(name, cost.costs)}")
            if not is_number(limit) or not math.isfinite(limit):
                raise InputError(
                    f"the limit {name}={limit!r} is not a finite number; give the largest value that is allowed, or no "
                    "limit of this name"
                )
            extremes = cost.extremes(name)
            if extremes is not None and limit < extremes[0]:
                raise InputError(
                    f"no architecture of {cost.space.name!r} has {name} <= {amount(name, limit)}; "
                    f"the cheapest has {amount(name, extremes[0])} and the most expensive {amount(name, extremes[1])}"
                )

    def __call__(self, arch: Arch) -> bool:
        """Returns whether the architecture is within every limit."""
        return not self.limits or self._within(self.cost(arch))

    @arguments_explained
    def sample(self, rng: Random) -> Arch:
        """Draws one of the architectures within the limits, each with the same probability.

        With one limit no draw is rejected. With several, draws within the tightest limit, the one that the fewest
        architectures meet, are rejected until one meets the others too. If the space's costs can be neither counted
        nor listed (see `CostWindow`), draws of the whole space are rejected until one meets all limits.

        Raises:
            InputError: no architecture is within the limits, or none of `TRIES` draws is.
        """
        tightest = min(self._windows, key=lambda window: window.count, default=None)
        for _ in range(TRIES):
            arch = self.cost.space.sample(rng) if tightest is None else tightest.sample(rng)
            if self(arch):
                return arch
        condition = "" if tightest is None else f" with {tightest.cost} <= {amount(tightest.cost, tightest.high)}"
        raise InputError(f"none of {TRIES:,} architectures{condition} is within all limits; {self.explain()}")

    def count(self) -> int | None:
        """Returns the exact number of architectures within the limits.

        Returns:
            None for a space too large to be listed, if there are several limits or its costs cannot be counted.
        """
        if not self.limits:
            return self.cost.space.size()
        if len(self.limits) == 1 and self.cost.edges(next(iter(self.limits))) is not None:
            return self._windows[0].count
        listing = self.cost.listing
        return None if listing is None else sum(self._within(costs) for _, costs in listing)

    def explain(self) -> str:
        """Describes the limits, each cost's range over the space and, for one limit, how many architectures fit."""
        parts = []
        for name, limit in self.limits.items():
            extremes = self.cost.extremes(name)
            span = (
                ""
                if extremes is None
                else f" (the space spans {amount(name, extremes[0])} to {amount(name, extremes[1])})"
            )
            parts.append(f"{name} <= {amount(name, limit)}{span}")
        count = self.count() if len(self.limits) == 1 else None
        fit = f"; {_short(count)} of {_short(self.cost.space.size())} architectures fit" if count else ""
        return "the limits are " + ", ".join(parts) + fit

    @cached_property
    def _windows(self) -> list[CostWindow]:
        """The architectures within each limit that can be counted."""
        countable = [name for name in self.limits if self.cost.edges(name) is not None or self.cost.listing is not None]
        return [CostWindow(self.cost, name, high=self.limits[name]) for name in countable]

    def _within(self, costs: Mapping[str, float]) -> bool:
        return all(costs[name] <= limit for name, limit in self.limits.items())


def _short(number: int) -> str:
    """Formats a count as `6,561`, or as `1.1e12` from a million."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.1e}".replace("e+", "e")
