"""Cost windows: the exact number of architectures whose cost lies between two bounds, and uniform samples of them.

The cost of a chain is a sum over its steps, so dynamic programming from both ends gives the number of ways to reach
each sum. The halves meet in the middle, where the prefixes of one are matched with the completions of the other.
Nothing is rounded: costs are integers, or milliseconds in multiples of 1/1024, whose sums are exact. Counts are
integers, and every architecture in the window has the same probability. Where steps share decisions the cost is not
such a sum; a space that is small enough is then listed instead.
"""

import bisect
import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.checked import arguments_explained, is_number
from supernet.cost.table import MOST_EDGES, MOST_LISTED, MOST_OPTIONS, CostTable, Edge, State, amount
from supernet.errors import InputError, nearest
from supernet.space import Arch

INT64 = 2**62  # larger counts are kept as Python integers
MOST_BINS = 1000

Steps = list[dict[State, list[Edge]]]


@dataclass(frozen=True)
class _Ways:
    """The number of ways to reach each sum: two arrays of equal length, `sums` ascending."""

    sums: NDArray[Any]
    counts: NDArray[Any]

    def at(self, total: float) -> int:
        """Returns the number of ways to reach exactly this sum."""
        index = int(np.searchsorted(self.sums, total))
        return int(self.counts[index]) if index < len(self.sums) and self.sums[index] == total else 0


Table = dict[State, _Ways]


def _gather(parts: Mapping[State, list[tuple[_Ways, float]]], big: bool) -> Table:
    """Merges shifted ways per state, adding up the counts of equal sums."""
    table: Table = {}
    for state, shifted in parts.items():
        sums, inverse = np.unique(np.concatenate([ways.sums + cost for ways, cost in shifted]), return_inverse=True)
        counts = np.zeros(len(sums), dtype=object if big else np.int64)
        np.add.at(counts, inverse, np.concatenate([ways.counts for ways, _ in shifted]))
        table[state] = _Ways(sums, counts)
    return table


def _extend(edges: Mapping[State, list[Edge]], table: Table, big: bool, *, forward: bool) -> Table:
    """Carries the ways of a table over one step, towards the end or towards the start of the chain."""
    parts: dict[State, list[tuple[_Ways, float]]] = {}
    for before, options in edges.items():
        for _, cost, after in options:
            source, target = (before, after) if forward else (after, before)
            if source in table:
                parts.setdefault(target, []).append((table[source], cost))
    return _gather(parts, big)


def _meet(steps: Steps, big: bool) -> tuple[list[Table], list[Table]]:
    """Returns the ways from the start and to the end, step by step; the smaller table grows until the two meet."""
    empty = _Ways(np.zeros(1, np.int64), np.ones(1, dtype=object if big else np.int64))
    ends = {after for options in steps[-1].values() for _, _, after in options}
    prefixes: list[Table] = [dict.fromkeys(steps[0], empty)]
    suffixes: list[Table] = [dict.fromkeys(ends, empty)]
    while len(prefixes) + len(suffixes) < len(steps) + 2:
        left, right = (sum(len(ways.sums) for ways in side[-1].values()) for side in (prefixes, suffixes))
        if left <= right:
            prefixes.append(_extend(steps[len(prefixes) - 1], prefixes[-1], big, forward=True))
        else:
            suffixes.append(_extend(steps[len(steps) - len(suffixes)], suffixes[-1], big, forward=False))
    return prefixes, suffixes


@dataclass(frozen=True)
class _Counted:
    """The architectures of a chain between two costs, counted by dynamic programming."""

    table: CostTable
    steps: Steps
    prefixes: list[Table]
    suffixes: list[Table]
    low: float = 0
    high: float = math.inf

    @classmethod
    def of(cls, table: CostTable, steps: Steps) -> "_Counted":
        return cls(table, steps, *_meet(steps, table.space.size() > INT64))

    def within(self, low: float, high: float) -> "_Counted":
        return replace(self, low=low, high=high)

    @cached_property
    def _matched(self) -> list[tuple[State, float, int, int, int]]:
        """Rows `(middle state, left sum, first and last index of right sums, ways)`, for left sums with completions."""
        rows: list[tuple[State, float, int, int, int]] = []
        for state, left in self.prefixes[-1].items():
            right = self.suffixes[-1].get(state)
            if right is None:
                continue
            upto = np.concatenate([np.zeros(1, dtype=right.counts.dtype), np.cumsum(right.counts)])
            first = np.searchsorted(right.sums, self.low - left.sums, side="left")
            last = np.searchsorted(right.sums, self.high - left.sums, side="right")
            kept = np.nonzero(last > first)[0]
            ways = left.counts[kept] * (upto[last[kept]] - upto[first[kept]])
            columns = [column.tolist() for column in (left.sums[kept], first[kept], last[kept], ways)]
            rows += [(state, *row) for row in zip(*columns, strict=True)]
        return rows

    @cached_property
    def _cumulative(self) -> list[int]:
        return list(itertools.accumulate(ways for *_, ways in self._matched))

    @property
    def count(self) -> int:
        return self._cumulative[-1] if self._cumulative else 0

    @property
    def extremes(self) -> tuple[float, float]:
        sums = {state: ways.sums for state, ways in self.suffixes[-1].items()}
        lows = (left + sums[state][first].item() for state, left, first, _, _ in self._matched)
        highs = (left + sums[state][last - 1].item() for state, left, _, last, _ in self._matched)
        return min(lows), max(highs)

    def sample(self, rng: Random) -> Arch:
        state, left, first, last, _ = self._matched[bisect.bisect(self._cumulative, rng.randrange(self.count))]
        right = self.suffixes[-1][state]
        remaining = right.sums[first:last][_pick(right.counts[first:last].tolist(), rng)].item()
        middle = len(self.prefixes) - 1
        values: dict[str, Any] = {}
        here, total = state, left
        for step in range(middle - 1, -1, -1):
            here, total = self._back(step, here, total, rng, values)
        here = state
        for step in range(middle, len(self.steps)):
            here, remaining = self._forward(step, here, remaining, rng, values)
        return self.table.space.canonical(values)

    def _back(self, step: int, state: State, total: float, rng: Random, values: dict[str, Any]) -> tuple[State, float]:
        """Draws the decisions of a step before the middle; `total` is what was spent up to and including it."""
        options = [
            (before, edge, self.prefixes[step][before].at(total - edge[1]))
            for before, edges in self.steps[step].items()
            for edge in edges
            if edge[2] == state and before in self.prefixes[step]
        ]
        before, edge, _ = options[_pick([ways for *_, ways in options], rng)]
        values.update(self.table.named(step, edge[0]))
        return before, total - edge[1]

    def _forward(
        self, step: int, state: State, total: float, rng: Random, values: dict[str, Any]
    ) -> tuple[State, float]:
        """Draws the decisions of a step after the middle; `total` is what remains to be spent from here on."""
        table = self.suffixes[len(self.steps) - step - 1]
        edges = [edge for edge in self.steps[step][state] if edge[2] in table]
        edge = edges[_pick([table[edge[2]].at(total - edge[1]) for edge in edges], rng)]
        values.update(self.table.named(step, edge[0]))
        return edge[2], total - edge[1]

    def nearest(self) -> float:
        """Returns the cost closest to the window, which is empty."""
        sums = []
        for state, left in self.prefixes[-1].items():
            if state in self.suffixes[-1]:
                right = self.suffixes[-1][state].sums
                for bound in (self.low, self.high):
                    above = np.searchsorted(left.sums, bound - right)
                    sums += [left.sums[np.clip(above - k, 0, len(left.sums) - 1)] + right for k in (0, 1)]
        totals = np.concatenate(sums)
        nearest_total: float = totals[np.argmin(np.maximum(self.low - totals, totals - self.high))].item()
        return nearest_total


@dataclass(frozen=True)
class _Listed:
    """The architectures between two costs, from a list of the whole space."""

    archs: list[tuple[float, Arch]]  # by ascending cost
    low: float = 0
    high: float = math.inf

    @classmethod
    def of(cls, listing: list[tuple[Arch, dict[str, float]]], cost: str) -> "_Listed":
        return cls(sorted(((costs[cost], arch) for arch, costs in listing), key=lambda item: item[0]))

    def within(self, low: float, high: float) -> "_Listed":
        return replace(self, low=low, high=high)

    @cached_property
    def _range(self) -> range:
        first = bisect.bisect_left(self.archs, self.low, key=lambda item: item[0])
        return range(first, bisect.bisect_right(self.archs, self.high, key=lambda item: item[0]))

    @property
    def count(self) -> int:
        return len(self._range)

    @property
    def extremes(self) -> tuple[float, float]:
        return self.archs[self._range[0]][0], self.archs[self._range[-1]][0]

    def sample(self, rng: Random) -> Arch:
        return self.archs[self._range[rng.randrange(self.count)]][1]

    def nearest(self) -> float:
        """Returns the cost closest to the window, which is empty."""
        return min((cost for cost, _ in self.archs), key=lambda cost: max(self.low - cost, cost - self.high))


class CostWindow:
    """The architectures whose cost lies in `[low, high]`.

    Args:
        table: costs of a supernet's architectures.
        cost: the name of one of the table's costs.
        low, high: bounds, inclusive.

    Raises:
        InputError: an unknown cost, a window without architectures (the message names the nearest cost), or a space
            that can neither be counted (steps share decisions or have too many options, see `CostTable.edges`) nor
            listed (more than `MOST_LISTED` architectures).
    """

    @arguments_explained
    def __init__(self, table: CostTable, cost: str, low: float = 0, high: float = math.inf) -> None:
        if cost not in table.costs:
            raise InputError(f"there is no cost {cost!r}; {nearest(cost, table.costs)}")
        if not is_number(low) or not is_number(high):
            raise InputError(f"a window from low={low!r} to high={high!r} should have numbers as bounds")
        self.table, self.cost, self.low, self.high = table, cost, low, high
        whole = self._whole()
        self._inside = whole.within(low, high)
        if self.count == 0:
            smallest, largest = whole.extremes
            raise InputError(
                f"no architecture of {table.space.name!r} has {cost} between {amount(cost, low)} and "
                f"{amount(cost, high)}; the space spans {amount(cost, smallest)} to {amount(cost, largest)}, "
                f"the nearest has {amount(cost, self._inside.nearest())}"
            )

    def _whole(self) -> _Counted | _Listed:
        """Returns all architectures of the space, without bounds."""
        steps = self.table.edges(self.cost)
        if steps is not None:
            return _Counted.of(self.table, steps)
        if self.table.listing is not None:
            return _Listed.of(self.table.listing, self.cost)
        raise InputError(
            f"the steps of {self.table.space.name!r} share decisions or have more than {MOST_OPTIONS:,} options or "
            f"{MOST_EDGES:,} options times layouts of their input, so its costs cannot be counted exactly, and with "
            f"{self.table.space.size():,} architectures, more than {MOST_LISTED:,}, the space is too large to be "
            "listed; leave the cost window out"
        )

    @property
    def count(self) -> int:
        """The exact number of architectures in the window."""
        return self._inside.count

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest cost of an architecture in the window."""
        return self._inside.extremes

    def __contains__(self, arch: Arch) -> bool:
        value: float = self.table(arch)[self.cost]
        return self.low <= value <= self.high

    def sample(self, rng: Random) -> Arch:
        """Draws one of the window's architectures, each with the same probability; no draw is rejected."""
        return self._inside.sample(rng)

    def bins(self, width: float) -> list["CostWindow"]:
        """Cuts the window into bins of this width from `low` upwards and returns those that hold an architecture.

        A cost on the edge of two bins belongs to the upper one, and `high` to the last bin, which may be narrower.

        Raises:
            InputError: a width that is not positive, a window without an upper bound, or more than `MOST_BINS` bins.
        """
        if not width > 0:
            raise InputError(f"the width of a bin must be positive, not {width:,}")
        if not math.isfinite(self.high):
            raise InputError(f"bins of {width:,} {self.cost} need an upper bound of the window; give one")
        number = max(1, math.ceil((self.high - self.low) / width))
        if number > MOST_BINS:
            raise InputError(
                f"bins of {width:,} {self.cost} cut the window from {self.low:,.0f} to {self.high:,.0f} into "
                f"{number:,} bins; choose a width that gives at most {MOST_BINS:,}"
            )
        unit = self.table.resolution(self.cost)  # costs are multiples of it
        starts = [math.ceil((self.low + index * width) / unit) * unit for index in range(number)]
        ends = [*(start - unit for start in starts[1:]), self.high]
        bins = (self._between(start, end) for start, end in zip(starts, ends, strict=True))
        return [window for window in bins if window.count]

    def _between(self, low: float, high: float) -> "CostWindow":
        """Returns a narrower window, which may be empty."""
        window = copy.copy(self)
        window.low, window.high, window._inside = low, high, self._inside.within(low, high)
        return window


def _pick(weights: list[int], rng: Random) -> int:
    """Draws an index with probability proportional to its integer weight."""
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect(cumulative, rng.randrange(cumulative[-1]))
