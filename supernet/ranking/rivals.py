"""Who races: the best of searches, the simple networks that every search has to beat, and random ones."""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from random import Random

from supernet.checked import arguments_explained, checked_arguments, is_number, is_whole, plain_scalar, shown
from supernet.errors import InputError
from supernet.ranking.depth import NO_LAYER, layers
from supernet.space import Arch, Choice, SearchSpace, Value

Cost = Callable[[Arch], float]
Feasible = Callable[[Arch], bool]

STARTS = 64  # random architectures from the best of which the climb to the largest begins
STEPS = 20  # of a uniform scaling
NAMED = 3  # distinct options that a name lists: pyramids take other inputs in every cell
UNIFORM = 8  # options that are tried everywhere: choices between hundreds of inputs would give hundreds of networks
LISTED = 20_000  # architectures that are all looked at
GRID = 5  # scales of a kind of decision
MOST_SCALED = 256  # networks of a grid of scales
PAIRS = 4000  # of changes that a climb looks at where no single one helps


# -- the best of searches ---------------------------------------------------------------------------------------------


@arguments_explained
def finalists(
    space: SearchSpace, scores: Mapping[Arch, float], n: int, *, cost: Cost, tied: Collection[Arch] = ()
) -> list[Arch]:
    """Returns the best distinct networks of one or more searches, in normal form.

    Networks with equal scores are ordered by their cost, the cheapest first. Those that are statistically tied with the
    best come first, thinned for diversity: after the best, each is the one that differs most from those before it.

    Args:
        space: the space of the architectures.
        scores: shared score by architecture, higher is better; not finite ones are left out.
        n: how many are returned, fewer if there are no more.
        cost: that equal scores are ordered by.
        tied: the architectures that are statistically tied with the best, see `supernet.ranking.paired.tied`.

    Raises:
        InputError: a negative number of networks, or an architecture of another space.
    """
    if not is_whole(n, 0):
        raise InputError(f"n={shown(n)} should be a number of networks, from 0")
    best: dict[Arch, float] = {}
    for arch, score in scores.items():
        if math.isfinite(score):
            form = space.normal_form(arch)
            best[form] = max(score, best.get(form, -math.inf))
    ranked = sorted(best, key=lambda arch: (-best[arch], cost(arch), arch.key))
    forms = {space.normal_form(arch) for arch in tied}
    rest = [arch for arch in ranked if arch in forms]
    chosen = [rest.pop(0)] if rest else []
    distance = {arch: differing(arch, chosen[0]) for arch in rest} if chosen else {}
    while rest and len(chosen) < n:
        furthest = max(rest, key=distance.__getitem__)  # the first, i.e. the best, of equally distant ones
        rest.remove(furthest)
        chosen.append(furthest)
        distance = {arch: min(distance[arch], differing(arch, furthest)) for arch in rest}
    return (chosen + [arch for arch in ranked if arch not in chosen])[:n]


@arguments_explained
def differing(first: Arch, second: Arch) -> int:
    """Returns the number of decisions in which two architectures of one space differ (Hamming distance).

    Raises:
        InputError: architectures of two spaces, or something else.
    """
    if len(first) == len(second):
        with contextlib.suppress(KeyError):
            return sum(value != second[name] for name, value in first.items())
    other = min(first.keys() ^ second.keys())
    raise InputError(f"first={first.key} and second={second.key} are of two spaces: only one decides {other!r}")


# -- simple networks --------------------------------------------------------------------------------------------------


@checked_arguments
def simple_networks(
    space: SearchSpace,
    *,
    cost: Cost,
    feasible: Feasible,
    rng: Random,
    published: Mapping[str, Arch] | None = None,
    sample: Callable[[Random], Arch] | None = None,
) -> dict[str, Arch]:
    """Returns the networks that anybody would try before a search, by name and in normal form.

    The deepest network within the limits (of those, the most expensive) comes first, then the most expensive one, each
    option everywhere at the largest uniform scale that fits, and published networks. Where two of these are one
    network, the first name stays. The deepest and the most expensive of at most `LISTED` architectures are exact; in
    larger spaces they are found by hill climbing over one and two decisions at a time, from the best of random and
    uniform networks.

    Args:
        space: the space of the networks.
        cost: usually MACs.
        feasible: whether a network is within the limits.
        rng: draws where the climbs start.
        published: further networks of the space by name; those outside the limits are left out.
        sample: draws an architecture within the limits; rejected draws of the space by default.

    Raises:
        InputError: no network within the limits was found.
    """
    uniform = {name: arch for name, arch in _uniform_networks(space, feasible)}
    draw = space.sample if sample is None else sample
    starts = [space.normal_form(arch) for arch in (*uniform.values(), *(draw(rng) for _ in range(STARTS)))]
    starts = [arch for arch in dict.fromkeys(starts) if feasible(arch)]
    if not starts:
        raise InputError(
            f"none of {STARTS} networks of {space.name!r} is within the limits; raise them, or give `sample`, which "
            "draws within them"
        )
    if space.size() <= LISTED:
        starts = [arch for arch in dict.fromkeys(map(space.normal_form, space.enumerate())) if feasible(arch)]
    largest = _climb(space, starts, feasible, lambda arch: (cost(arch),), rng)
    deepest = _climb(space, [largest, *starts], feasible, lambda arch: (layers(arch), cost(arch)), rng)
    named = {"deepest, then largest": deepest, "largest": largest, **uniform}
    named |= {name: arch for name, arch in (published or {}).items() if feasible(arch)}
    distinct: dict[Arch, str] = {}
    for name, arch in named.items():
        distinct.setdefault(space.normal_form(arch), name)
    return {name: arch for arch, name in distinct.items()}


@checked_arguments
def scaled_networks(space: SearchSpace) -> list[Arch]:
    """Returns networks in which all decisions of a kind are scaled alike, in normal form and the largest first.

    A kind is the last part of a name, such as `depth` of `stage1.depth`. Each has up to five scales, and all their
    combinations are returned (compound scaling; Tan & Le, 2019, §3), among them the largest network with nothing but
    its depth, its width or its resolution reduced. Decisions that are not ordered take one option everywhere. Where
    the combinations are more than 256, fewer scales are used.
    """
    ordered: dict[str, list[Choice]] = {}
    for choice in space.choices:
        if choice.ordered:
            ordered.setdefault(choice.name.rpartition(".")[2], []).append(choice)
    plain = [choice for choice in space.choices if not choice.ordered]
    everywhere = range(min(UNIFORM, max((len(choice.options) for choice in plain), default=1)))
    scales = GRID
    while True:
        cuts = [_cuts(max(len(choice.options) for choice in choices), scales) for choices in ordered.values()]
        if scales == 2 or math.prod(map(len, cuts)) * len(everywhere) <= MOST_SCALED:
            break
        scales -= 1
    archs = []
    for number, *places in itertools.islice(itertools.product(everywhere, *cuts), MOST_SCALED):
        values = {choice.name: _option(choice, number) for choice in plain}
        for choices, cut in zip(ordered.values(), places, strict=True):
            most = max(len(choice.options) for choice in choices) - 1
            values |= {choice.name: choice.options[_place(len(choice.options) - 1, cut, most)] for choice in choices}
        archs.append(space.normal_form(space.canonical(values)))
    return list(dict.fromkeys(archs))


def _cuts(options: int, scales: int) -> list[int]:
    """Returns by how many options the largest of so many is reduced, in up to `scales` steps."""
    most = options - 1
    return sorted({round(most * step / (scales - 1)) for step in range(scales)})


def _place(last: int, cut: int, most: int) -> int:
    """Returns the place of an option: `cut` below the last, or where there are many the same share of the scale."""
    return max(0, last - cut) if most < GRID else round(last * (1 - cut / most))


def evenly_spaced(costs: Sequence[float], n: int) -> list[int]:
    """Returns the places of at most `n` costs that are as even as possible on a log scale, the cheapest first.

    The lowest and the highest are among them; of one alone, the highest. Costs below 1 count as 1.

    Raises:
        InputError: a negative number, or costs that are not finite.
    """
    if not is_whole(n, 0):
        raise InputError(f"n={shown(n)} should be how many costs are wanted, from 0")
    if wrong := [cost for cost in costs if not is_number(plain_scalar(cost), -sys.float_info.max, sys.float_info.max)]:
        raise InputError(f"costs={shown(costs)} should be finite numbers, not {shown(wrong[0])}")
    if len(costs) <= n:
        return sorted(range(len(costs)), key=lambda place: (costs[place], place))
    logs = [math.log(max(cost, 1.0)) for cost in costs]  # a network of identities has no MACs
    low, high = min(logs), max(logs)
    wanted = [high] if n == 1 else [low, high, *(low + (high - low) * step / (n - 1) for step in range(1, n - 1))]
    left, chosen = list(range(len(costs))), []
    for value in wanted[:n]:
        chosen.append(min(left, key=lambda place: (abs(logs[place] - value), place)))
        left.remove(chosen[-1])
    return sorted(chosen, key=lambda place: (costs[place], place))


def _climb(
    space: SearchSpace,
    starts: Sequence[Arch],
    feasible: Feasible,
    value: Callable[[Arch], tuple[float, ...]],
    rng: Random,
) -> Arch:
    """Returns the best network that changes of one or two decisions reach from the best start within the limits."""
    at = max(starts, key=value)
    if space.size() <= LISTED:
        return at

    def around(arch: Arch) -> list[Arch]:
        return list(map(space.normal_form, space.neighbors(arch)))

    while True:
        best = max(filter(feasible, around(at)), key=value, default=at)
        if value(best) <= value(at):
            middles = around(at)
            rng.shuffle(middles)
            pairs = itertools.islice((arch for middle in middles for arch in around(middle)), PAIRS)
            best = next((arch for arch in pairs if value(arch) > value(at) and feasible(arch)), at)
        if best == at:
            return at
        at = best


def _uniform_networks(space: SearchSpace, feasible: Feasible) -> Iterator[tuple[str, Arch]]:
    """Yields each option everywhere, at the largest uniform scale that fits.

    The scale is the place within every ordered choice, and the share of layers where a choice may have none.
    """
    plain = [choice for choice in space.choices if not choice.ordered]
    optional = [choice for choice in plain if any(option in NO_LAYER for option in choice.options)]
    wide = any(choice.ordered for choice in space.choices)
    for number in range(min(UNIFORM, max((len(choice.options) for choice in plain), default=1))):
        options = {_option(choice, number) for choice in plain}
        if options and options <= set(NO_LAYER):
            continue
        for step in range(STEPS, -1, -1):
            scale = step / STEPS
            kept = _spread(optional, math.ceil(scale * len(optional)))
            arch = space.normal_form(space.canonical({c.name: _value(c, number, scale, kept) for c in space.choices}))
            if feasible(arch):
                scaled = "" if step == STEPS or not (wide or optional) else f" at scale {scale:.2f}"
                if len(options) > NAMED:
                    yield f"option {number + 1} of every decision{scaled}", arch
                else:
                    what = "/".join(sorted(map(str, options)))[:60] or "every decision"
                    yield f"{what} everywhere{scaled}", arch
                break


def _option(choice: Choice, number: int) -> Value:
    return choice.options[min(number, len(choice.options) - 1)]


def _spread(choices: Sequence[Choice], count: int) -> set[str]:
    """Returns the names of `count` choices, spread evenly over all and beginning with the first."""
    return {choices[index * len(choices) // count].name for index in range(count)}


def _value(choice: Choice, number: int, scale: float, kept: Collection[str]) -> Value:
    if choice.ordered:
        return choice.options[round(scale * (len(choice.options) - 1))]
    none = [option for option in choice.options if option in NO_LAYER]
    return none[0] if none and choice.name not in kept else _option(choice, number)
