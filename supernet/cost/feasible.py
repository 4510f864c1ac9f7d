"""Limits on costs: which architectures keep them, how many do, and draws from those."""

import importlib
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

from supernet.errors import InputError, nearest
from supernet.space import Arch

if TYPE_CHECKING:
    from supernet.cost.window import CostWindow

from supernet.cost.table import CostTable

TRIES = 10_000  # draws within one limit before the others are taken to leave nothing


class Feasible:
    """Whether an architecture is within limits: the one route for constraints in a search.

    Args:
        cost: gives the costs of an architecture.
        limits: cost name to the largest allowed value, e.g. `{"macs": 3e8}`.

    Raises:
        InputError: an unknown cost, or a limit below the cheapest architecture (whose cost is named).
    """

    def __init__(self, cost: CostTable, limits: Mapping[str, float]) -> None:
        self.cost = cost
        self.limits = dict(limits)
        for name, limit in limits.items():
            if name not in cost.costs:
                raise InputError(f"there is no cost {name!r}; {nearest(name, cost.costs)}")
            extremes = cost.extremes(name)
            if extremes is not None and limit < extremes[0]:
                raise InputError(
                    f"no architecture of {cost.space.name!r} has {name} <= {limit:,.0f}; "
                    f"the cheapest has {extremes[0]:,} and the dearest {extremes[1]:,}"
                )

    def __call__(self, arch: Arch) -> bool:
        """True if every limit holds."""
        if not self.limits:
            return True
        return self._keeps(self.cost(arch))

    def sample(self, rng: Random) -> Arch:
        """One architecture, each of those within the limits equally likely.

        With one limit no draw is rejected. With more, draws within the one that the fewest architectures keep are
        rejected by the others. A space whose costs can be neither counted nor listed (see `CostWindow`) is drawn from
        by its own `sample` and rejected by all.

        Raises:
            InputError: nothing fits, or none of `TRIES` draws does.
        """
        tightest = min(self._windows, key=lambda window: window.count, default=None)
        for _ in range(TRIES):
            arch = self.cost.space.sample(rng) if tightest is None else tightest.sample(rng)
            if self(arch):
                return arch
        drawn = "" if tightest is None else f" with {tightest.cost} <= {tightest.high:,.0f}"
        raise InputError(f"none of {TRIES:,} architectures{drawn} is within all limits; {self.explain()}")

    def count(self) -> int | None:
        """The exact number of architectures within the limits.

        Returns:
            None where two or more limits, or costs that cannot be counted, meet a space too large to be listed.
        """
        if not self.limits:
            return self.cost.space.size()
        if len(self.limits) == 1 and self.cost.edges(next(iter(self.limits))) is not None:
            return self._windows[0].count
        listing = self.cost.listing
        return None if listing is None else sum(self._keeps(costs) for _, costs in listing)

    def explain(self) -> str:
        """The limits, each cost's range over the space, and for a single limit how many architectures keep it."""
        parts = []
        for name, limit in self.limits.items():
            extremes = self.cost.extremes(name)
            span = "" if extremes is None else f" (the space spans {extremes[0]:,} to {extremes[1]:,})"
            parts.append(f"{name} <= {limit:,.0f}{span}")
        count = self.count() if len(self.limits) == 1 else None
        fit = f"; {_short(count)} of {_short(self.cost.space.size())} architectures fit" if count else ""
        return "the limits are " + ", ".join(parts) + fit

    @cached_property
    def _windows(self) -> "list[CostWindow]":
        """The architectures within each limit that can be counted."""
        # By name, as the package's own lazy exports: the windows are built on this module.
        window = importlib.import_module("supernet.cost.window").CostWindow
        countable = [name for name in self.limits if self.cost.edges(name) is not None or self.cost.listing is not None]
        return [window(self.cost, name, high=self.limits[name]) for name in countable]

    def _keeps(self, costs: Mapping[str, float]) -> bool:
        return all(costs[name] <= limit for name, limit in self.limits.items())


def _short(number: int) -> str:
    """`6,561` or `1.1e12`."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.1e}".replace("e+", "e")
