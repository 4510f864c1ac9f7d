"""Samplers: the architectures of a training step as pure functions of the step, so that ranks and resumed runs agree.

Every sampler can be confined to a cost window, exactly. Architectures are drawn from all that lie in the window, and
their normal forms are trained, which are the same networks at the same cost.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

from supernet.checked import Seed, checked_arguments, is_whole, plain_scalar, shown
from supernet.config import Window
from supernet.cost import CostTable, CostWindow
from supernet.cost.count import COSTS
from supernet.errors import InputError, nearest
from supernet.seeding import generator
from supernet.space import Arch, Choice, SearchSpace, Value

ArchSampler = Callable[[int], tuple[Arch, ...]]
Draw = Callable[[Random], Arch]
Paths = list[list[int]]
"""The index vectors of a step's architectures."""

ANY = Window()  # no limits
SWAPS = 30_000  # swaps tried per step before the window is declared too narrow
WEIGHTLESS_SHARE = 0.5  # probability of an option without weights, relative to the others
PATIENCE = 8  # swaps in a row without progress, per (choice, path), before new permutations are drawn


@checked_arguments
def uniform(space: SearchSpace, seed: Seed = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """Samples one architecture per step, in normal form, with every decision drawn uniformly (SPOS, §3.3).

    In a window every architecture is equally likely. With bins, a non-empty bin is drawn first and then an architecture
    in it (as in the released code of SPOS and DetNAS, which rejects draws until one fits).

    Args:
        space: the search space.
        seed: the seed of all draws.
        table: costs of the space's architectures; needed only for a window.
        window: the cost window.
    """
    draw = _draw(space, table, window)
    return _by_step(lambda step: (draw(generator(seed, "arch", step)),))


@checked_arguments
def fair(space: SearchSpace, seed: Seed = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """Samples m architectures per step in which every option of every choice occurs exactly once (FairNAS).

    Each step permutes the options of every choice again, and the k-th architecture takes the k-th option of each. The
    gradients of the m paths are summed and applied in one update. Normal forms are not used, because they would change
    the counts. A window works as in `balanced`.

    Raises:
        InputError: choices with different numbers of options, or with conditions; `balanced` accepts those.
    """
    counts = {len(choice.options) for choice in space.choices}
    conditional = [choice.name for choice in space.choices if choice.when is not None]
    if len(counts) > 1 or conditional:
        why = f"{conditional[0]!r} is conditional" if conditional else f"they have {sorted(counts)} options"
        raise InputError(
            f"strict fairness needs unconditional choices with the same number of options, but in space {space.name!r} "
            f"{why}; use the sampler 'balanced'"
        )
    return balanced(space, seed, table=table, window=window)


@checked_arguments
def balanced(
    space: SearchSpace, seed: Seed = 0, *, table: CostTable | None = None, window: Window = ANY
) -> ArchSampler:
    """Samples as many architectures per step as the largest choice has options; smaller choices cycle through theirs.

    Within a step the counts of the options of one choice differ by at most one; a conditional choice counts in every
    architecture, active or not. In a window, paths made from new permutations swap options until all lie in it. All of
    them do, but not every set of such paths is equally likely.

    Raises:
        InputError: no step within the window was found; step 0 is tried at creation, later ones when they are sampled.
    """
    passes = max((len(choice.options) for choice in space.choices), default=1)
    limits = _limits(space, table, window)
    if window.bin is not None:
        raise InputError("window.bin works with the samplers 'uniform' and 'sandwich' only; leave it out")

    def permuted(rng: Random) -> Paths:
        columns = []
        for choice in space.choices:
            n = len(choice.options)
            order = rng.sample(range(n), n)
            columns.append(rng.sample([order[i % n] for i in range(passes)], passes))
        return [[column[k] for column in columns] for k in range(passes)]

    if limits is None:
        return _by_step(lambda step: tuple(map(space.from_indices, permuted(generator(seed, "balanced", step)))))

    low, high = limits
    assert table is not None
    price = table.by_indices(window.cost)

    def confined(step: int) -> tuple[Arch, ...]:
        paths, mean = _settle(permuted, price, low, high, generator(seed, "balanced", step))
        if paths is None:
            raise InputError(
                f"found no {passes} paths of {space.name!r} that use all options equally often and all have "
                f"{window.cost} between {low:,.0f} and {high:,.0f}; on average such paths have {mean:,.0f}: choose a "
                "wider window around that, or the sampler 'uniform'"
            )
        return tuple(map(space.from_indices, paths))

    confined(0)  # a window out of reach should fail before training starts
    return _by_step(confined)


@checked_arguments
def sandwich(
    space: SearchSpace,
    seed: Seed = 0,
    *,
    table: CostTable | None = None,
    window: Window = ANY,
    random_paths: int = 2,
) -> ArchSampler:
    """Samples by the sandwich rule (BigNAS, §3.1): the largest architecture, the smallest, and random ones.

    If all choices are ordered, the largest takes the last option of each and the smallest the first. Otherwise they
    are those with most and fewest MACs, and in a window exactly those with the largest and smallest cost within it. The
    random ones are drawn as by `uniform`.

    Args:
        space: the search space.
        seed: the seed of all draws.
        table: costs of the space's architectures; needed for a window and for choices that are not ordered.
        window: the cost window.
        random_paths: the number of random architectures.

    Raises:
        InputError: an unordered choice without a table, or costs that can be neither counted nor listed.
    """
    if random_paths < 0:
        raise InputError(f"random_paths={random_paths} must be 0 or more")
    largest, smallest = _largest_and_smallest(space, table, window)
    draw = _draw(space, table, window)

    def sample(step: int) -> tuple[Arch, ...]:
        rng = generator(seed, "sandwich", step)
        return (largest, smallest, *(draw(rng) for _ in range(random_paths)))

    return _by_step(sample)


@checked_arguments
def weighted(
    space: SearchSpace,
    seed: Seed = 0,
    *,
    table: CostTable | None = None,
    window: Window = ANY,
    weightless: Mapping[str, Collection[Value]] = MappingProxyType({}),
) -> ArchSampler:
    """Samples one architecture per step, in which options without weights are drawn half as often as the others.

    An identity or a pooling has nothing to train, while a convolution needs every step that it gets: with equal shares
    the shared weights favour architectures without weights. Architectures are trained as they are drawn, not in normal
    form, which would train some of several equal options far more often than others.

    Args:
        space: the search space.
        seed: the seed of all draws.
        table: not used.
        window: none; this sampler cannot be confined.
        weightless: the options without weights by choice (see `Chain.weightless_options`).

    Raises:
        InputError: a window, or weightless options of a decision that the space does not have.
    """
    if _limits(space, table, window) is not None or window.bin is not None:
        raise InputError("a window works with the samplers 'uniform', 'sandwich', 'fair' and 'balanced'; leave it out")
    names = [choice.name for choice in space.choices]
    if unknown := [name for name in weightless if name not in names]:
        raise InputError(
            f"weightless names the decision {unknown[0]!r} of {space.name!r}; {nearest(unknown[0], names)}"
        )
    shares = {
        choice.name: [
            WEIGHTLESS_SHARE if option in weightless.get(choice.name, ()) else 1.0 for option in choice.options
        ]
        for choice in space.choices
    }

    def sample(step: int) -> tuple[Arch, ...]:
        rng = generator(seed, "weighted", step)
        return (space.canonical({c.name: rng.choices(c.options, shares[c.name])[0] for c in space.choices}),)

    return _by_step(sample)


@checked_arguments
def even(space: SearchSpace, seed: Seed = 0, *, table: CostTable | None = None, window: Window = ANY) -> ArchSampler:
    """Samples one architecture per step, in which the options of a choice take turns.

    The order is drawn again for every round, so that after any number of steps the options of a choice with n of them
    were drawn equally often up to a difference of one. Architectures are trained as they are drawn: normal forms, which
    scores are always those of, would put the weights of one of several interchangeable blocks before all others.

    An option of an ordered choice that makes others active, such as the number of blocks of a cell, comes as often as
    these are many and one: blocks that only large cells have would otherwise be trained seldom.

    Args:
        space: the search space.
        seed: the seed of all draws.
        table: not used.
        window: none; this sampler cannot be confined.

    Raises:
        InputError: a window.
    """
    if _limits(space, table, window) is not None or window.bin is not None:
        raise InputError("a window works with the samplers 'uniform', 'sandwich', 'fair' and 'balanced'; leave it out")
    rounds = [_round(space, choice) for choice in space.choices]

    def sample(step: int) -> tuple[Arch, ...]:
        indices = []
        for choice, row in zip(space.choices, rounds, strict=True):
            turn, place = divmod(step, len(row))
            shuffled = generator(seed, "even", choice.name, turn).sample(row, len(row)) if len(row) > 1 else row
            indices.append(shuffled[place])
        return (space.from_indices(indices),)

    return _by_step(sample)


def _round(space: SearchSpace, choice: Choice) -> list[int]:
    """The option numbers of a choice, each as often as it comes in one round of `even`."""
    options = range(len(choice.options))
    if not choice.ordered:
        return list(options)
    parents = [other.when[1] for other in space.choices if other.when is not None and other.when[0] == choice.name]
    return [i for i in options for _ in range(1 + sum(choice.options[i] in values for values in parents))]


def _by_step(sample: ArchSampler) -> ArchSampler:
    """Makes a sampler refuse what is not the number of a step, which would seed a stream of its own."""

    def checked(step: int) -> tuple[Arch, ...]:
        step = plain_scalar(step)
        if not is_whole(step, 0):
            raise InputError(f"step={shown(step)} should be the number of a training step, from 0")
        return sample(step)

    return checked


SAMPLERS: dict[str, Callable[..., ArchSampler]] = {
    "uniform": uniform,
    "weighted": weighted,
    "even": even,
    "fair": fair,
    "balanced": balanced,
    "sandwich": sandwich,
}


@checked_arguments
def create_sampler(
    name: str,
    space: SearchSpace,
    seed: Seed = 0,
    *,
    table: CostTable | None = None,
    window: Window = ANY,
    random_paths: int = 2,
    largest_steps: int = 0,
    weightless: Mapping[str, Collection[Value]] = MappingProxyType({}),
) -> ArchSampler:
    """Creates the sampler of that name.

    Args:
        name: a key of `SAMPLERS`.
        space: the search space.
        seed: the seed of all draws.
        table: costs of the space's architectures; needed for a window, and by "sandwich" for unordered choices.
        window: confines the architectures to a range of a cost.
        random_paths: the number of random paths of "sandwich".
        largest_steps: steps at the start that train only the largest architecture (Cai et al., 2020, §3.3), which is
            that of a sandwich.
        weightless: of "weighted", the options without weights by choice (see `Chain.weightless_options`).

    Raises:
        InputError: no such sampler (the message offers the nearest name), a space that does not suit it, or a window
            that is empty, out of its reach, or given without `table`.
    """
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler {name!r}; {nearest(name, SAMPLERS)}")
    own: dict[str, dict[str, Any]] = {
        "sandwich": {"random_paths": random_paths},
        "weighted": {"weightless": weightless},
    }
    settings = own.get(name, {})
    sampler = SAMPLERS[name](space, seed, table=table, window=window, **settings)
    if not largest_steps:
        return sampler
    largest, _ = _largest_and_smallest(space, table, window)
    return lambda step: (largest,) if step < largest_steps else sampler(step)


# -- windows ----------------------------------------------------------------------------------------------------------


def _limits(space: SearchSpace, table: CostTable | None, window: Window) -> tuple[float, float] | None:
    """Checks a window and returns its bounds; None if it has none."""
    assert table is None or table.space == space, f"the table belongs to {table.space.name!r}, not to {space.name!r}"
    costs = COSTS if table is None else table.costs
    if window.cost not in costs:
        raise InputError(f"there is no cost {window.cost!r}; {nearest(window.cost, costs)}")
    if window.low is None and window.high is None:
        return None
    if table is None:
        raise InputError(f"a window needs the costs of {space.name!r}: pass table=CostTable(supernet)")
    low = 0 if window.low is None else window.low
    high = math.inf if window.high is None else window.high
    return low, high


def _draw(space: SearchSpace, table: CostTable | None, window: Window) -> Draw:
    """Returns a function that draws a random architecture from the window, in normal form."""
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
    """Returns the normal form of an architecture, which is the same network and so must have the same cost."""
    normal = window.table.space.normal_form(arch)
    if normal != arch and window.table(normal)[window.cost] != window.table(arch)[window.cost]:
        raise InputError(
            f"the normal form of {arch} differs in {window.cost} from the architecture itself, so it is not the same "
            f"network; correct the normal form of {window.table.space.name!r}"
        )
    return normal


def _largest_and_smallest(space: SearchSpace, table: CostTable | None, window: Window) -> tuple[Arch, Arch]:
    """Returns the ends of a sandwich in normal form; if several tie, always the same one."""
    limits = _limits(space, table, window)
    unordered = [choice.name for choice in space.choices if not choice.ordered and len(choice.options) > 1]
    if limits is None and not unordered:
        ends = ([len(choice.options) - 1 for choice in space.choices], [0] * len(space))
        largest, smallest = (space.normal_form(space.from_indices(indices)) for indices in ends)
        return largest, smallest
    if table is None:
        raise InputError(
            f"the choice {unordered[0]!r} of {space.name!r} is not ordered, so the largest and smallest architectures "
            "are those with most and fewest MACs: pass table=CostTable(supernet), or mark the choice as ordered"
        )
    cost, (low, high) = ("macs", (0, math.inf)) if limits is None else (window.cost, limits)
    try:
        bottom, top = CostWindow(table, cost, low, high).extremes
    except InputError as error:
        if limits is not None:
            raise
        raise InputError(f"{error}; or mark all choices as ordered, or use the sampler 'uniform'") from error
    windows = [CostWindow(table, cost, end, end) for end in (top, bottom)]
    largest, smallest = (_normal(window, window.sample(generator("sandwich", "ends"))) for window in windows)
    return largest, smallest


def _settle(
    fresh: Callable[[Random], Paths], price: Callable[[Sequence[int]], float], low: float, high: float, rng: Random
) -> tuple[Paths | None, float]:
    """Moves the costs of all paths between two bounds by swapping options of one choice between two paths.

    A swap does not change how often each option occurs. It is kept unless the two paths together lie further outside
    than before. After many swaps in a row without progress the paths start again from new permutations.

    Returns:
        the paths, or None if `SWAPS` swaps were not enough; and the mean cost of the last paths.
    """

    def excess(cost: float) -> float:
        """Returns how far a cost lies outside the bounds."""
        return max(low - cost, cost - high, 0)

    paths = fresh(rng)
    costs, idle = [price(path) for path in paths], 0  # idle: swaps since the last progress
    for _ in range(SWAPS):
        outside = [k for k, cost in enumerate(costs) if excess(cost)]
        if not outside:
            return paths, sum(costs) / len(costs)
        if len(paths) == 1:
            break
        if idle > PATIENCE * len(paths) * len(paths[0]):
            paths = fresh(rng)
            costs, idle = [price(path) for path in paths], 0
            continue
        a = outside[rng.randrange(len(outside))]
        b = rng.randrange(len(paths))
        choice = rng.randrange(len(paths[0]))
        idle += 1
        if paths[a][choice] == paths[b][choice]:
            continue
        _swap(paths[a], paths[b], choice)
        cost_a, cost_b = price(paths[a]), price(paths[b])
        gain = excess(costs[a]) + excess(costs[b]) - excess(cost_a) - excess(cost_b)
        if gain < 0:
            _swap(paths[a], paths[b], choice)
            continue
        costs[a], costs[b] = cost_a, cost_b
        if gain > 0:
            idle = 0
    return None, sum(costs) / len(costs)


def _swap(first: list[int], second: list[int], at: int) -> None:
    first[at], second[at] = second[at], first[at]
