"""Which architectures a training step uses: pure functions of the step, so that ranks and resumed runs agree.

Every sampler can be confined to a window of a cost, exactly. Architectures are drawn from all that lie in it; what is
trained are their normal forms, the same networks at the same cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from supernet.config import Window
from supernet.cost import CostTable, CostWindow
from supernet.cost.count import COSTS
from supernet.errors import InputError, nearest
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace

ArchSampler = Callable[[int], tuple[Arch, ...]]
Draw = Callable[[Random], Arch]
Paths = list[list[int]]
"""The index vectors of a step's architectures."""

ANY = Window()  # no limits
SWAPS = 30_000  # of options between two paths, tried per step before a window counts as too tight
PATIENCE = 8  # vain tries per (choice, path) before the permutations are drawn anew


def uniform(space: SearchSpace, seed: int = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """One architecture per step, in normal form, every decision drawn uniformly (SPOS, §3.3).

    In a window every architecture of it is equally likely. With bins, first one of those that are not empty is drawn,
    then an architecture in it (the released code of SPOS and DetNAS, which rejects draws until one fits).

    Args:
        table: costs of the space's architectures; needed for a window only.
    """
    draw = _draw(space, table, window)
    return lambda step: (draw(generator(seed, "arch", step)),)


def fair(space: SearchSpace, seed: int = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """Strict fairness (FairNAS): m architectures per step in which every option of every choice occurs exactly once.

    Per step and choice the options are permuted anew; the k-th architecture takes the k-th of each. Gradients of the m
    paths are summed and applied in one update. There are no normal forms here: they would break the count. In a window,
    as `balanced`.

    Raises:
        InputError: choices with different numbers of options, or with conditions; `balanced` takes those.
    """
    counts = {len(choice.options) for choice in space.choices}
    conditional = [choice.name for choice in space.choices if choice.when is not None]
    if len(counts) > 1 or conditional:
        why = f"{conditional[0]!r} is conditional" if conditional else f"they have {sorted(counts)} options"
        raise InputError(
            f"strict fairness needs unconditional choices with equally many options, but in space {space.name!r} "
            f"{why}; use the sampler 'balanced'"
        )
    return balanced(space, seed, table=table, window=window)


def balanced(space: SearchSpace, seed: int = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """As many architectures per step as the largest choice has options; smaller choices cycle through theirs.

    Within a step the options of one choice occur equally often up to one; a conditional choice is counted in every
    architecture, active or not. In a window, paths of fresh permutations swap options until all lie in it: every one
    does, but not every set of such paths is equally likely.

    Raises:
        InputError: no step within the window was found, at creation for step 0, for later steps when they are drawn.
    """
    passes = max((len(choice.options) for choice in space.choices), default=1)
    limits = _limits(space, table, window)
    if window.bin is not None:
        raise InputError("bins of a window are for the samplers 'uniform' and 'sandwich'; leave window.bin out")

    def permuted(rng: Random) -> Paths:
        columns = []
        for choice in space.choices:
            n = len(choice.options)
            order = rng.sample(range(n), n)
            columns.append(rng.sample([order[i % n] for i in range(passes)], passes))
        return [[column[k] for column in columns] for k in range(passes)]

    if limits is None:
        return lambda step: tuple(map(space.from_indices, permuted(generator(seed, "balanced", step))))

    low, high = limits
    assert table is not None
    price = table.by_indices(window.cost)

    def confined(step: int) -> tuple[Arch, ...]:
        found, mean = _settle(permuted, price, low, high, generator(seed, "balanced", step))
        if found is None:
            raise InputError(
                f"found no {passes} paths of {space.name!r} that use all options equally often and all have "
                f"{window.cost} between {low:,.0f} and {high:,.0f}; on average such paths have {mean:,.0f}: choose a "
                "wider window around that, or the sampler 'uniform'"
            )
        return tuple(map(space.from_indices, found))

    confined(0)  # a window that is out of reach is found before training starts
    return confined


def sandwich(
    space: SearchSpace,
    seed: int = 0,
    *,
    table: CostTable | None = None,
    window: Window = ANY,
    random_paths: int = 2,
) -> ArchSampler:
    """The sandwich rule (BigNAS, §3.1): the largest architecture, the smallest, then random ones as of `uniform`.

    Where all choices are ordered, the largest takes the last option of each and the smallest the first. Otherwise they
    are those of most and fewest MACs, and in a window those of the largest and smallest cost within it, exactly.

    Args:
        table: costs of the space's architectures; needed for a window and for choices that are not ordered.
        random_paths: number of random architectures.

    Raises:
        InputError: an unordered choice without a table, or costs that can be neither counted nor listed.
    """
    if random_paths < 0:
        raise InputError(f"a sandwich has 0 or more random paths, not {random_paths}")
    largest, smallest = _largest_and_smallest(space, table, window)
    draw = _draw(space, table, window)

    def sample(step: int) -> tuple[Arch, ...]:
        rng = generator(seed, "sandwich", step)
        return (largest, smallest, *(draw(rng) for _ in range(random_paths)))

    return sample


SAMPLERS: dict[str, Callable[..., ArchSampler]] = {
    "uniform": uniform,
    "fair": fair,
    "balanced": balanced,
    "sandwich": sandwich,
}


def create_sampler(
    name: str,
    space: SearchSpace,
    seed: int = 0,
    *,
    table: CostTable | None = None,
    window: Window = ANY,
    random_paths: int = 2,
    largest_steps: int = 0,
) -> ArchSampler:
    """The sampler of that name.

    Args:
        name: of `SAMPLERS`.
        seed: of all draws.
        table: costs of the space's architectures; needed for a window, and by "sandwich" for unordered choices.
        window: confines the architectures to a range of a cost.
        random_paths: of "sandwich".
        largest_steps: steps at the start that train the largest architecture alone (Cai et al., 2020, §3.3), which is
            found as for a sandwich.

    Raises:
        InputError: no such sampler (the nearest name is offered), a space that it does not fit, or a window that is
            empty, out of its reach or given without `table`.
    """
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler {name!r}; {nearest(name, SAMPLERS)}")
    settings: dict[str, Any] = {"random_paths": random_paths} if name == "sandwich" else {}
    sampler = SAMPLERS[name](space, seed, table=table, window=window, **settings)
    if not largest_steps:
        return sampler
    largest, _ = _largest_and_smallest(space, table, window)
    return lambda step: (largest,) if step < largest_steps else sampler(step)


@dataclass(frozen=True)
class Lead:
    """How the options of a supernet begin alike, so that its paths agree on their features from the start.

    With fresh weights of their own, units in a row give their consumers other random features on every path, and little
    is learnt until they agree.

    Attributes:
        arch: trained alone in the first steps.
        steps: how many; before the next one, every option becomes a copy of the one that `arch` chooses
            (`Searchable.spread`), larger kernels with zeros around.
    """

    arch: Arch
    steps: int


def create_lead(space: SearchSpace, option: str, steps: int) -> Lead:
    """The lead that takes one option in every choice that has it, and the first option in the others.

    Raises:
        InputError: no choice has the option, or it would lead for less than a step.
    """
    if not any(option in choice.options for choice in space.choices):
        known = [str(value) for choice in space.choices for value in choice.options]
        raise InputError(f"no choice of {space.name!r} has the option {option!r}; {nearest(option, known)}")
    if steps < 1:
        raise InputError(f"the lead {option!r} of {space.name!r} trains {steps} steps; give lead_epochs above 0")
    values = {c.name: option if option in c.options else c.options[0] for c in space.choices}
    return Lead(space.normal_form(space.canonical(values)), steps)


# -- windows ----------------------------------------------------------------------------------------------------------


def _limits(space: SearchSpace, table: CostTable | None, window: Window) -> tuple[float, float] | None:
    """The bounds of a window, checked; None where it has none."""
    assert table is None or table.space == space, f"the table is of {table.space.name!r}, not of {space.name!r}"
    costs = COSTS if table is None else table.costs
    if window.cost not in costs:
        raise InputError(f"there is no cost {window.cost!r}; {nearest(window.cost, costs)}")
    if window.bin is not None and (window.low is None or window.high is None):
        raise InputError("bins lie between the bounds of a window: give window.low and window.high with window.bin")
    if window.low is None and window.high is None:
        return None
    if table is None:
        raise InputError(f"a window needs the costs of {space.name!r}: pass table=CostTable(supernet)")
    low = 0 if window.low is None else window.low
    high = math.inf if window.high is None else window.high
    if low > high:
        raise InputError(f"the window's lower bound {low:,.0f} is above its upper bound {high:,.0f}; exchange them")
    return low, high


def _draw(space: SearchSpace, table: CostTable | None, window: Window) -> Draw:
    """A function that draws a random architecture of the window, in normal form."""
    limits = _limits(space, table, window)
    if limits is None:
        return lambda rng: space.normal_form(space.sample(rng))
    assert table is not None
    whole = CostWindow(table, window.cost, *limits)
    pieces = [whole] if window.bin is None else whole.bins(window.bin)

    def draw(rng: Random) -> Arch:
        piece = pieces[rng.randrange(len(pieces))] if window.bin is not None else whole
        return _normal(piece, piece.sample(rng))

    return draw


def _normal(window: CostWindow, arch: Arch) -> Arch:
    """The normal form of an architecture, which is the same network and so must have its cost."""
    normal = window.table.space.normal_form(arch)
    if normal != arch and window.table(normal)[window.cost] != window.table(arch)[window.cost]:
        raise InputError(
            f"the normal form of {arch} has other {window.cost} than the architecture itself, so it is not the same "
            f"network; correct the normal form of {window.table.space.name!r}"
        )
    return normal


def _largest_and_smallest(space: SearchSpace, table: CostTable | None, window: Window) -> tuple[Arch, Arch]:
    """What a sandwich is made of, in normal form; among equals a fixed one."""
    limits = _limits(space, table, window)
    loose = [choice.name for choice in space.choices if not choice.ordered and len(choice.options) > 1]
    if limits is None and not loose:
        ends = ([len(choice.options) - 1 for choice in space.choices], [0] * len(space))
        largest, smallest = (space.normal_form(space.from_indices(indices)) for indices in ends)
        return largest, smallest
    if table is None:
        raise InputError(
            f"the choice {loose[0]!r} of {space.name!r} is not ordered, so the largest and smallest architectures are "
            "those of most and fewest MACs: pass table=CostTable(supernet), or mark the choice as ordered"
        )
    cost, (low, high) = ("macs", (0, math.inf)) if limits is None else (window.cost, limits)
    try:
        bottom, top = CostWindow(table, cost, low, high).extremes
    except InputError as error:
        if limits is not None:
            raise
        raise InputError(f"{error}; or mark all choices as ordered, or use the sampler 'uniform'") from error
    found = [CostWindow(table, cost, end, end) for end in (top, bottom)]
    largest, smallest = (_normal(end, end.sample(generator("sandwich", "ends"))) for end in found)
    return largest, smallest


def _settle(
    fresh: Callable[[Random], Paths], price: Callable[[Sequence[int]], int], low: float, high: float, rng: Random
) -> tuple[Paths | None, float]:
    """Paths whose costs all lie between two bounds, by swapping options of one choice between two of them.

    A swap keeps how often each option occurs. One that does not bring the two paths further out in sum is kept; after
    many vain ones in a row the paths start from fresh permutations.

    Returns:
        The paths, None if `SWAPS` tries did not find any; and the mean cost of the last paths.
    """

    def out(cost: int) -> float:
        return max(low - cost, cost - high, 0)

    paths = fresh(rng)
    costs, vain = [price(path) for path in paths], 0
    for _ in range(SWAPS):
        outside = [k for k, cost in enumerate(costs) if out(cost)]
        if not outside:
            return paths, sum(costs) / len(costs)
        if len(paths) == 1:
            break
        if vain > PATIENCE * len(paths) * len(paths[0]):
            paths = fresh(rng)
            costs, vain = [price(path) for path in paths], 0
            continue
        one = outside[rng.randrange(len(outside))]
        two = rng.randrange(len(paths))
        at = rng.randrange(len(paths[0]))
        vain += 1
        if paths[one][at] == paths[two][at]:
            continue
        _swap(paths[one], paths[two], at)
        made = price(paths[one]), price(paths[two])
        gain = out(costs[one]) + out(costs[two]) - out(made[0]) - out(made[1])
        if gain < 0:
            _swap(paths[one], paths[two], at)
            continue
        costs[one], costs[two] = made
        vain = 0 if gain > 0 else vain
    return None, sum(costs) / len(costs)


def _swap(one: list[int], two: list[int], at: int) -> None:
    one[at], two[at] = two[at], one[at]
