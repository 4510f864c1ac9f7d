"""The cost of widths: MorphNet's regulariser (Gordon et al., CVPR 2018, §3.2), and expansion into a budget.

A layer with A alive input and B alive output channels costs C·A·B, where C is 2 · output pixels · kernel area for FLOPs
and the kernel area for model size. The regulariser is a function of the batch-norm scales |γ| of these channels,

    G = Σ C · (A · Σ|γ_out| + B · Σ|γ_in|),

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

from supernet.checked import is_number, is_whole, shown
from supernet.errors import InputError
from supernet.space import Arch

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.spaces.widths import WidthChain, WidthLayer


Resource = Literal["flops", "size"]

FLOOR, GAP = 1e-4, 3.0
"""Scales below the floor count as equal; two modes of a histogram are at least a factor GAP apart."""


# -- the regulariser --------------------------------------------------------------------------------------------------


def coefficient(layer: "WidthLayer", resource: Resource) -> int:
    """C, the cost of a pair of an input and an output channel in FLOPs (two per multiply-accumulate) or weights."""
    return layer.taps * (2 * layer.positions if resource == "flops" else 1)


def resource_cost(layers: Iterable["WidthLayer"], widths: Mapping[str, int], resource: Resource) -> int:
    """The FLOPs of all layers, or their weights (without batch norm and biases)."""
    return sum(2 * layer.macs(widths) if resource == "flops" else layer.weights(widths) for layer in layers)


def group_scales(members: "Mapping[str, Sequence[Tensor]]") -> "dict[str, Tensor]":
    """Per group, the largest |γ| of its members for each channel, (width,); groups without members are left out."""
    return {
        name: reduce(lambda a, b: a.maximum(b), [scale.abs() for scale in scales])
        for name, scales in members.items()
        if scales
    }


def regularization(
    layers: Iterable["WidthLayer"], scales: "Mapping[str, Tensor]", *, threshold: float, resource: Resource
) -> "Tensor":
    """The regulariser G of a network, whose gradient treats the counts of alive channels as constants (§3.2).

    Args:
        layers: the layers of the network.
        scales: |γ| per group, (width,); the channels of a missing group do not count.
        threshold: channels with a larger |γ| are alive.
        resource: FLOPs or model size.

    Returns:
        a scalar.
    """
    sums = {name: scale.sum() for name, scale in scales.items()}
    alive = {name: (scale.detach() > threshold).sum() for name, scale in scales.items()}
    total: Any = 0.0
    for layer in layers:
        input_sum = sum((sums.get(name, 0.0) for name in layer.reads), 0.0)
        output_sum = sums.get(layer.makes, 0.0)
        if layer.depthwise:
            total = total + coefficient(layer, resource) * (input_sum + output_sum)
            continue
        inputs = sum((alive.get(name, 0) for name in layer.reads), 0) if layer.reads else layer.inputs
        outputs = alive.get(layer.makes, 0) if layer.makes else layer.outputs
        total = total + coefficient(layer, resource) * (inputs * output_sum + outputs * input_sum)
    return total  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ShrinkingPenalty:
    """λ·G of an architecture of a supernet, in the form that `train_supernet(penalty=…)` takes.

    Attributes:
        supernet: the supernet with the scales.
        layers: its layers.
        resource: FLOPs or model size.
        strength: λ.
        threshold: channels with a larger |γ| are alive.
        patience: the number of epochs over which G must be settled for the training to end.
        tolerance: the relative change of G that counts as settled.
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
    """The geometric middle of the widest gap in the histogram of log |γ|, between dead and alive channels.

    Returns:
        the threshold; 0 if no two neighbours are a factor `GAP` apart, which means one mode with all channels alive.

    Raises:
        InputError: a scale that is no number.
    """
    scales = list(scales)
    if wrong := [scale for scale in scales if not is_number(scale)]:
        raise InputError(f"the scale {shown(wrong[0])} should be a number, |γ| of a channel")
    known = sorted({max(scale, FLOOR) for scale in scales})
    ratio, low = max(((high / low, low) for low, high in pairwise(known)), default=(0.0, 0.0))
    return low * math.sqrt(ratio) if ratio >= GAP else 0.0


# -- expansion into the budget ----------------------------------------------------------------------------------------

Cost = Callable[[Mapping[str, int]], int]


def widened(alive: Mapping[str, int], multiplier: Fraction, largest: Mapping[str, int]) -> dict[str, int]:
    """Every width times the multiplier, rounded down, at least 1 and at most the largest; 0 stays 0."""
    return {name: min(largest[name], max(1, math.floor(n * multiplier))) if n else 0 for name, n in alive.items()}


def multipliers(alive: Mapping[str, int], largest: Mapping[str, int]) -> list[Fraction]:
    """All multipliers at which a width changes, ascending; between neighbours the network is the same."""
    return sorted({Fraction(k, n) for name, n in alive.items() if n for k in range(1, largest[name] + 1)})


def largest_multiplier(alive: Mapping[str, int], largest: Mapping[str, int], cost: Cost, limit: float) -> Fraction:
    """The largest of `multipliers` whose network costs at most `limit`; the next one's network costs more.

    Raises:
        InputError: one channel per remaining group costs more already, no group remains, one has no largest width, or
            the limit is no number.
    """
    if not is_number(limit, 0):
        raise InputError(f"limit={shown(limit)} should be a cost, from 0")
    if lacking := [name for name in alive if not is_whole(largest.get(name), 1)]:
        raise InputError(f"largest={shown(dict(largest))} has no width of the group {lacking[0]!r}, from 1")
    steps = multipliers(alive, largest)
    if not steps:
        raise InputError(f"alive={shown(dict(alive))} has no group with a channel, so there is nothing to widen")
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
    """Adds single channels greedily until the cost is within `share` below the limit, or no channel fits any more.

    The next channel goes to the group that a growing multiplier would widen next; a group that no longer fits is
    dropped.
    """
    result = dict(widths)
    spent = cost(result)
    queue = [(Fraction(result[name] + 1, n), name) for name, n in alive.items() if n]
    heapify(queue)
    while queue and spent < (1 - share) * limit:
        _, name = heappop(queue)
        wider = result | {name: result[name] + 1}
        if result[name] < largest[name] and (wider_cost := cost(wider)) <= limit:
            result, spent = wider, wider_cost
            heappush(queue, (Fraction(result[name] + 1, alive[name]), name))
    return result


def equal_widths(
    alive: Mapping[str, int], largest: Mapping[str, int], cost: Cost, *, limit: float, share: float
) -> dict[str, int]:
    """The widest multiple of `alive` within the limit, filled to within `share` below it; see `largest_multiplier`.

    Raises:
        InputError: see `largest_multiplier`, or a share that is not from 0 and below 1.
    """
    if not is_number(share, 0) or share >= 1:
        raise InputError(f"share={shown(share)} should be from 0 and below 1")
    widths = widened(alive, largest_multiplier(alive, largest, cost, limit), largest)
    return filled(widths, alive, largest, cost, limit=limit, share=share) if share else widths


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
    """Random proportions of the seed's widths at the cost of MorphNet's result, as its control.

    Every group's width is multiplied by its own factor, log-uniform from 1 / `spread` to `spread`, and then all by one
    common factor as in MorphNet. No group has width 0.

    Raises:
        InputError: `tries` draws stay more than `share` below the limit, since all groups reach their largest width; no
            tries, or a spread below 1; and see `equal_widths`.
    """
    if not is_whole(tries, 1) or not is_number(spread, 1) or not math.isfinite(spread):
        raise InputError(f"tries={shown(tries)} and spread={shown(spread)} should be numbers from 1")
    for _ in range(tries):
        drawn = {name: max(1, round(n * spread ** rng.uniform(-1, 1))) for name, n in seed.items()}
        widths = equal_widths(drawn, largest, cost, limit=limit, share=share)
        if cost(widths) >= (1 - share) * limit:
            return widths
    raise InputError(f"no random widths come within {share:.0%} of {limit:,.0f} in {tries:,} draws; lower the limit")
