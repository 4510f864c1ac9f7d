"""What widths cost: MorphNet's regulariser (Gordon et al., CVPR 2018, §3.2), and growth into a budget.

A layer that reads A and makes B alive channels costs C·A·B: C is 2 · output pixels · kernel area for FLOPs, and the
kernel area for model size. The regulariser is a function of the batch-norm scales |γ| of what it reads and makes,

    G = Σ C · (A · Σ|γ_made| + B · Σ|γ_read|),

with A and B taken as constants. Layers that share a group of channels share one |γ| per channel, the largest of theirs.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from supernet.errors import InputError
from supernet.space import Arch

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.spaces.widths import WidthChain, WidthLayer


Resource = Literal["flops", "size"]

FLOOR, GAP = 1e-4, 3.0
"""Scales below the floor are one heap; two modes of a histogram are at least a factor GAP apart."""


# -- the regulariser --------------------------------------------------------------------------------------------------


def coefficient(layer: "WidthLayer", resource: Resource) -> int:
    """C: what a pair of an input and an output channel costs, FLOPs (two per multiply-accumulate) or weights."""
    return layer.taps * (2 * layer.positions if resource == "flops" else 1)


def resource_cost(layers: Iterable["WidthLayer"], widths: Mapping[str, int], resource: Resource) -> int:
    """FLOPs of all layers, or their weights (batch norm and biases are not counted)."""
    return sum(2 * layer.macs(widths) if resource == "flops" else layer.weights(widths) for layer in layers)


def group_scales(members: "Mapping[str, Sequence[Tensor]]") -> "dict[str, Tensor]":
    """Per group and channel the largest |γ| of the members, (width,); groups without members are left out."""
    return {
        name: reduce(lambda a, b: a.maximum(b), [scale.abs() for scale in scales])
        for name, scales in members.items()
        if scales
    }


def regularization(
    layers: Iterable["WidthLayer"], scales: "Mapping[str, Tensor]", *, threshold: float, resource: Resource
) -> "Tensor":
    """G of a network, a scalar whose gradient leaves the counts of alive channels alone (§3.2 of the paper).

    Args:
        scales: |γ| per group, (width,); what a missing group reads or makes counts nothing.
        threshold: channels with a larger |γ| are alive.
    """
    sums = {name: scale.sum() for name, scale in scales.items()}
    alive = {name: (scale.detach() > threshold).sum() for name, scale in scales.items()}
    total: Any = 0.0
    for layer in layers:
        read = sum((sums.get(name, 0.0) for name in layer.reads), 0.0)
        made = sums.get(layer.makes, 0.0)
        if layer.depthwise:
            total = total + coefficient(layer, resource) * (read + made)
            continue
        reads = sum((alive.get(name, 0) for name in layer.reads), 0) if layer.reads else layer.inputs
        makes = alive.get(layer.makes, 0) if layer.makes else layer.outputs
        total = total + coefficient(layer, resource) * (reads * made + makes * read)
    return total  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ShrinkingPenalty:
    """λ·G of a supernet's architecture, in the form that `train_supernet(penalty=…)` takes.

    Attributes:
        patience: epochs over which G must not have moved by more than `tolerance`, its share, for the training to end.
    """

    supernet: "WidthChain"
    layers: "tuple[WidthLayer, ...]"
    resource: Resource
    strength: float
    threshold: float
    patience: int
    tolerance: float

    def __call__(self, arch: Arch) -> "Tensor":
        """λ·G, with its gradient."""
        scales = group_scales(self.supernet.scales(arch))
        return self.strength * regularization(self.layers, scales, threshold=self.threshold, resource=self.resource)

    def settled(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether G stayed within `tolerance` over the last `patience` epochs."""
        last = [row["penalty"] for row in history[-self.patience - 1 :]]
        return len(last) > self.patience and max(last) - min(last) <= self.tolerance * max(last)


def histogram_gap(scales: Iterable[float]) -> float:
    """The middle (geometric) of the widest gap in the histogram of log |γ|, between the dead and the alive.

    Returns:
        0 where no two neighbours are a factor `GAP` apart: there is one mode only, and all are alive.
    """
    known = sorted({max(scale, FLOOR) for scale in scales})
    ratio, low = max(((high / low, low) for low, high in pairwise(known)), default=(0.0, 0.0))
    return low * math.sqrt(ratio) if ratio >= GAP else 0.0


# -- growing into the budget ------------------------------------------------------------------------------------------

Cost = Callable[[Mapping[str, int]], int]


def widened(alive: Mapping[str, int], multiplier: Fraction, largest: Mapping[str, int]) -> dict[str, int]:
    """Every width times the multiplier, rounded down, at least 1 and at most the largest; 0 stays 0."""
    return {name: min(largest[name], max(1, math.floor(n * multiplier))) if n else 0 for name, n in alive.items()}


def multipliers(alive: Mapping[str, int], largest: Mapping[str, int]) -> list[Fraction]:
    """All multipliers at which a width changes, ascending: between neighbours the network is the same."""
    return sorted({Fraction(k, n) for name, n in alive.items() if n for k in range(1, largest[name] + 1)})


def largest_multiplier(alive: Mapping[str, int], largest: Mapping[str, int], cost: Cost, limit: float) -> Fraction:
    """The largest of `multipliers` whose network costs at most `limit`; the next one's costs more, if there is one.

    Raises:
        InputError: one channel per group that is left costs more already.
    """
    steps = multipliers(alive, largest)
    index = bisect_right(steps, limit, key=lambda step: cost(widened(alive, step, largest)))
    if index == 0:
        least = cost(widened(alive, steps[0], largest))
        raise InputError(f"the limit {limit:,.0f} is below one channel per group, which costs {least:,}; raise it")
    return steps[index - 1]


def filled(
    widths: Mapping[str, int],
    alive: Mapping[str, int],
    largest: Mapping[str, int],
    cost: Cost,
    *,
    limit: float,
    share: float,
) -> dict[str, int]:
    """Single channels added greedily until the cost is within `share` below the limit, or none fits any more.

    The next channel goes to the group that a growing multiplier would widen next; a group that no longer fits is out.
    """
    found = dict(widths)
    spent = cost(found)
    waiting = [(Fraction(found[name] + 1, n), name) for name, n in alive.items() if n]
    heapify(waiting)
    while waiting and spent < (1 - share) * limit:
        _, name = heappop(waiting)
        more = found | {name: found[name] + 1}
        if found[name] < largest[name] and (dearer := cost(more)) <= limit:
            found, spent = more, dearer
            heappush(waiting, (Fraction(found[name] + 1, alive[name]), name))
    return found


def equal_widths(
    alive: Mapping[str, int], largest: Mapping[str, int], cost: Cost, *, limit: float, share: float
) -> dict[str, int]:
    """The widest multiple of `alive` within the limit, filled to within `share` below it; see `largest_multiplier`."""
    found = widened(alive, largest_multiplier(alive, largest, cost, limit), largest)
    return filled(found, alive, largest, cost, limit=limit, share=share) if share else found


def random_widths(
    rng: random.Random,
    seed: Mapping[str, int],
    largest: Mapping[str, int],
    cost: Cost,
    *,
    limit: float,
    share: float,
    spread: float = 4.0,
    tries: int = 1000,
) -> dict[str, int]:
    """Random proportions of the seed's widths at the cost that MorphNet has, its control.

    Every group's width is multiplied by its own factor, log-uniform from 1 / `spread` to `spread`, and all then by one
    as in MorphNet. No group is at 0.

    Raises:
        InputError: `tries` draws stay more than `share` below the limit, since all groups stand at their largest.
    """
    for _ in range(tries):
        drawn = {name: max(1, round(n * spread ** rng.uniform(-1, 1))) for name, n in seed.items()}
        found = equal_widths(drawn, largest, cost, limit=limit, share=share)
        if cost(found) >= (1 - share) * limit:
            return found
    raise InputError(f"no random widths come within {share:.0%} of {limit:,.0f} in {tries:,} draws; lower the limit")
