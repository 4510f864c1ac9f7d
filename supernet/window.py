"""Cost windows: how many architectures of a space cost between two bounds, and uniform draws from them, exactly.

The cost of a chain is a sum over its steps, so the number of ways to reach each sum follows by dynamic programming from
both ends; the halves meet in the middle, where the ways of one are matched with the completions of the other. Nothing
is binned: counts are exact integers, and every architecture in the window is equally likely to be drawn.
"""

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.cost import COSTS, CostTable, Edge, State
from supernet.errors import InputError, nearest
from supernet.space import Arch

INT64 = 2**62  # counts beyond it are kept as Python integers


@dataclass(frozen=True)
class _Ways:
    """How many ways lead to each sum: two arrays of one length, `sums` ascending."""

    sums: NDArray[np.int64]
    counts: NDArray[Any]

    def at(self, total: int) -> int:
        """The number of ways to exactly this sum."""
        index = int(np.searchsorted(self.sums, total))
        return int(self.counts[index]) if index < len(self.sums) and self.sums[index] == total else 0


Table = dict[State, _Ways]


def _gather(parts: Mapping[State, list[tuple[_Ways, int]]], big: bool) -> Table:
    """Per state, the union of shifted ways with equal sums added up."""
    table: Table = {}
    for state, shifted in parts.items():
        sums, inverse = np.unique(np.concatenate([ways.sums + cost for ways, cost in shifted]), return_inverse=True)
        counts = np.zeros(len(sums), dtype=object if big else np.int64)
        np.add.at(counts, inverse, np.concatenate([ways.counts for ways, _ in shifted]))
        table[state] = _Ways(sums, counts)
    return table


class CostWindow:
    """The architectures whose cost lies in `[low, high]`.

    Args:
        table: costs of a supernet's architectures.
        cost: "macs", "params" or "activations".
        low, high: bounds, inclusive.

    Raises:
        InputError: an unknown cost, a space whose steps share decisions or have too many options to enumerate, or a
            window without architectures (the nearest cost that exists is named).
    """

    def __init__(self, table: CostTable, cost: str, low: float = 0, high: float = float("inf")) -> None:
        if cost not in COSTS:
            raise InputError(f"there is no cost {cost!r}; {nearest(cost, COSTS)}")
        extremes, steps = table.extremes(cost), table.edges(cost)
        if extremes is None or steps is None:
            raise InputError(
                f"the steps of {table.space.name!r} share decisions, so its costs cannot be counted exactly"
            )
        self.table, self.cost, self.low, self.high = table, cost, low, min(high, extremes[1])
        self._steps: list[dict[State, list[Edge]]] = steps
        self._big = table.space.size() > INT64
        self._meet()
        if self.count == 0:
            raise InputError(
                f"no architecture of {table.space.name!r} has {cost} between {low:,.0f} and {high:,.0f}; "
                f"the space spans {extremes[0]:,} to {extremes[1]:,}, the nearest has {self._nearest():,}"
            )

    def _meet(self) -> None:
        """Grow the smaller of the two tables until they meet."""
        one = np.ones(1, dtype=object if self._big else np.int64)
        none = _Ways(np.zeros(1, np.int64), one)
        ends = {after for options in self._steps[-1].values() for _, _, after in options}
        self._prefixes: list[Table] = [dict.fromkeys(self._steps[0], none)]
        self._suffixes: list[Table] = [dict.fromkeys(ends, none)]
        while len(self._prefixes) + len(self._suffixes) < len(self._steps) + 2:
            left, right = (sum(len(w.sums) for w in side[-1].values()) for side in (self._prefixes, self._suffixes))
            if left <= right:
                edges = self._steps[len(self._prefixes) - 1]
                self._prefixes.append(self._extend(edges, self._prefixes[-1], forward=True))
            else:
                edges = self._steps[len(self._steps) - len(self._suffixes)]
                self._suffixes.append(self._extend(edges, self._suffixes[-1], forward=False))

    def _extend(self, edges: Mapping[State, list[Edge]], table: Table, *, forward: bool) -> Table:
        parts: dict[State, list[tuple[_Ways, int]]] = {}
        for before, options in edges.items():
            for _, cost, after in options:
                source, target = (before, after) if forward else (after, before)
                if source in table:
                    parts.setdefault(target, []).append((table[source], cost))
        return _gather(parts, self._big)

    @cached_property
    def _matched(self) -> list[tuple[State, int, int, int, int]]:
        """Per middle state and left sum with completions: `(state, left sum, first and last right index, ways)`."""
        found = []
        for state, left in self._prefixes[-1].items():
            right = self._suffixes[-1].get(state)
            if right is None:
                continue
            upto = np.concatenate([np.zeros(1, dtype=right.counts.dtype), np.cumsum(right.counts)])
            first = np.searchsorted(right.sums, self.low - left.sums, side="left")
            last = np.searchsorted(right.sums, self.high - left.sums, side="right")
            for i in np.nonzero(last > first)[0]:
                ways = int(left.counts[i]) * (int(upto[last[i]]) - int(upto[first[i]]))
                found.append((state, int(left.sums[i]), int(first[i]), int(last[i]), ways))
        return found

    @cached_property
    def _cumulative(self) -> list[int]:
        return list(itertools.accumulate(ways for *_, ways in self._matched))

    @cached_property
    def count(self) -> int:
        """The exact number of architectures in the window."""
        return self._cumulative[-1] if self._cumulative else 0

    def __contains__(self, arch: Arch) -> bool:
        return self.low <= self.table(arch)[self.cost] <= self.high

    def sample(self, rng: Random) -> Arch:
        """One architecture, each of the window equally likely; no draw is rejected."""
        state, left, first, last, _ = self._matched[bisect.bisect(self._cumulative, rng.randrange(self.count))]
        right = self._suffixes[-1][state]
        weights = [int(count) for count in right.counts[first:last]]
        remaining = int(right.sums[first:last][_pick(weights, rng)])
        middle = len(self._prefixes) - 1
        values: dict[str, Any] = {}
        here, total = state, left
        for step in range(middle - 1, -1, -1):
            here, total = self._back(step, here, total, rng, values)
        here = state
        for step in range(middle, len(self._steps)):
            here, remaining = self._on(step, here, remaining, rng, values)
        return self.table.space.canonical(values)

    def _back(self, step: int, state: State, total: int, rng: Random, values: dict[str, Any]) -> tuple[State, int]:
        options = [
            (before, edge, self._prefixes[step][before].at(total - edge[1]))
            for before, edges in self._steps[step].items()
            for edge in edges
            if edge[2] == state and before in self._prefixes[step]
        ]
        before, edge, _ = options[_pick([ways for *_, ways in options], rng)]
        values.update(self.table.named(step, edge[0]))
        return before, total - edge[1]

    def _on(self, step: int, state: State, total: int, rng: Random, values: dict[str, Any]) -> tuple[State, int]:
        table = self._suffixes[len(self._steps) - step - 1]
        edges = [edge for edge in self._steps[step][state] if edge[2] in table]
        edge = edges[_pick([table[edge[2]].at(total - edge[1]) for edge in edges], rng)]
        values.update(self.table.named(step, edge[0]))
        return edge[2], total - edge[1]

    def _nearest(self) -> int:
        """The cost of some architecture that is closest to the empty window."""
        best: int | None = None
        for state, left in self._prefixes[-1].items():
            for right in self._suffixes[-1][state].sums if state in self._suffixes[-1] else ():
                sums = left.sums + int(right)
                for bound in (self.low, self.high):
                    i = int(np.searchsorted(sums, bound))
                    for total in (int(s) for s in sums[max(i - 1, 0) : i + 1]):
                        gap = max(self.low - total, total - self.high)
                        if best is None or gap < max(self.low - best, best - self.high):
                            best = total
        assert best is not None
        return best


def _pick(weights: list[int], rng: Random) -> int:
    """An index with probability proportional to its integer weight."""
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect(cumulative, rng.randrange(cumulative[-1]))
