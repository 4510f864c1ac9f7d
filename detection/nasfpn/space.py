"""The search space of NAS-FPN and the wirings in it."""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from supernet.errors import InputError, nearest
from supernet.space import Arch, Choice, SearchSpace, Value

# -- the space --------------------------------------------------------------------------------------------------------


SUM, ATTENTION = "sum", "gp"


class Cell(NamedTuple):
    """One merging cell; maps and levels count from 0, the finest first, and cells' maps follow those of the input.

    Attributes:
        level: of the output.
        op: "sum" or "gp".
        first, second: the operands; of "gp" the one of the coarser level first, of equal levels the earlier one. It is
            the one that gates in TensorFlow's code.
        leftovers: added to the result, ascending.
    """

    level: int
    op: str
    first: int
    second: int
    leftovers: tuple[int, ...] = ()


class Wiring(NamedTuple):
    """A pyramid: its cells in order, on `levels` levels of which the finest is P`finest`."""

    cells: tuple[Cell, ...]
    levels: int
    finest: int

    @property
    def free(self) -> int:
        """How many cells come before the outputs."""
        return len(self.cells) - self.levels

    @property
    def output_order(self) -> tuple[str, ...]:
        """The names of the output levels, in the order of their cells."""
        return tuple(f"P{self.finest + cell.level}" for cell in self.cells[self.free :])


def pyramid_space(
    *, levels: int = 5, finest: int = 3, cells: int = 7, ops: Sequence[str] = (SUM, ATTENTION)
) -> SearchSpace:
    """The decisions of one pyramid; 3.0e15 pyramids with seven cells on P3 to P7.

    In order: `levels`, which is no decision but says what the others mean; per cell `cell{k}.inputs`, an unordered pair
    of the maps that are there, e.g. "P4+cell1"; its level, which is `cell{k}.level` before the outputs and
    `cell{k}.output` among them, where it counts the levels that have no output yet, the finest first (the last output
    has one left); `cell{k}.op`.

    Args:
        finest: the number of the finest level, the logarithm of its stride.
        cells: their number, of which the last `levels` are the outputs.
        ops: of "sum" and "gp", global-pooling attention.

    Raises:
        InputError: a single level, fewer cells than levels, or an unknown operation.
    """
    if levels < 2 or cells < levels:
        raise InputError(
            f"a pyramid has two levels or more and a cell for each at least, not levels={levels}, cells={cells}"
        )
    if not ops or set(ops) - {SUM, ATTENTION}:
        raise InputError(f"operations of merging cells are some of {SUM!r} and {ATTENTION!r}, not {tuple(ops)!r}")
    names = [f"P{finest + level}" for level in range(levels)]
    choices = [Choice("levels", (f"{names[0]}-{names[-1]}",))]
    there, free = list(names), cells - levels
    for number in range(1, cells + 1):
        name = f"cell{number}"
        choices.append(Choice(f"{name}.inputs", tuple("+".join(pair) for pair in itertools.combinations(there, 2))))
        if number <= free:
            choices.append(Choice(f"{name}.level", tuple(names)))
        elif number < cells:
            choices.append(Choice(f"{name}.output", range(cells - number + 1)))
        choices.append(Choice(f"{name}.op", tuple(ops)))
        there.append(name)
    return SearchSpace("nasfpn", choices, one_per_pyramid)


@functools.lru_cache(maxsize=4096)
def wiring_of(arch: Arch) -> Wiring:
    """What the decisions of `pyramid_space` describe, with the leftovers of the released TensorFlow code.

    When an output cell is built, every map of its level that no cell has read so far, the cell itself included, is
    added to it; a later cell may still read it. So each map is used, and no part of a pyramid feeds nothing.
    """
    finest, coarsest = (int(number) for number in re.findall(r"\d+", str(arch["levels"])))
    levels, number = coarsest - finest + 1, sum(name.endswith(".inputs") for name in arch)
    names = [f"P{finest + level}" for level in range(levels)]
    of, left = list(range(levels)), list(range(levels))  # levels of the maps, levels without output
    read: set[int] = set()
    cells: list[Cell] = []
    leftovers: tuple[int, ...]
    for name in (f"cell{k + 1}" for k in range(number)):
        one, other = (names.index(part) for part in str(arch[f"{name}.inputs"]).split("+"))
        read |= {one, other}
        op, leftovers = str(arch[f"{name}.op"]), ()
        if f"{name}.level" in arch:
            level = names.index(str(arch[f"{name}.level"]))
        else:
            level = left.pop(int(arch.get(f"{name}.output", 0)))
            leftovers = _unread(of, level, read)
        cells.append(Cell(level, op, *_operands(op, one, other, of), leftovers))
        of.append(level)
        names.append(name)
    return Wiring(tuple(cells), levels, finest)


def _unread(levels: Sequence[int], level: int, read: set[int]) -> tuple[int, ...]:
    return tuple(state for state, at in enumerate(levels) if at == level and state not in read)


def _operands(op: str, one: int, other: int, levels: Sequence[int]) -> tuple[int, int]:
    one, other = sorted((one, other))
    return (other, one) if op == ATTENTION and levels[other] > levels[one] else (one, other)


def values_of(wiring: Wiring) -> dict[str, Value]:
    """The decisions of `pyramid_space` that describe a pyramid whose leftovers are those of the rule."""
    cells, levels, finest, free = wiring.cells, wiring.levels, wiring.finest, wiring.free
    names = [f"P{finest + level}" for level in range(levels)] + [f"cell{k + 1}" for k in range(len(cells))]
    values: dict[str, Value] = {"levels": f"{names[0]}-{names[levels - 1]}"}
    left = list(range(levels))
    for k, cell in enumerate(cells):
        name = f"cell{k + 1}"
        values[f"{name}.inputs"] = "+".join(names[state] for state in sorted((cell.first, cell.second)))
        values[f"{name}.op"] = cell.op
        if k < free:
            values[f"{name}.level"] = names[cell.level]
        elif k < len(cells) - 1:
            values[f"{name}.output"] = left.index(cell.level)
            left.remove(cell.level)
    return values


def one_per_pyramid(arch: Arch) -> dict[str, Value]:
    """The representative of all decisions of one pyramid.

    Cells may stand in any order in which each reads earlier maps and the outputs come last, as long as the leftovers
    stay what they are; and where a cell sums, it does not matter which of its maps are operands and which leftovers.
    The operands of an attention at equal levels do not commute. Equal pyramids are equal networks, of which other
    shared weights may serve the same cell.
    """
    return values_of(canonical_wiring(wiring_of(arch)))


def canonical_wiring(wiring: Wiring) -> Wiring:
    """The smallest of the descriptions of a pyramid, compared cell by cell.

    The next cell is the one with the smallest description of those that may come next; where several have the same,
    each is tried, and where the rest cannot be completed, the next smallest.
    """
    inputs = wiring.levels

    def place(labels: dict[int, int], made: tuple[Cell, ...], read: frozenset[int]) -> tuple[Cell, ...] | None:
        if len(made) == len(wiring.cells):
            return made
        outputs = len(made) >= wiring.free
        ready: dict[Cell, list[int]] = {}
        for k in range(wiring.free, len(wiring.cells)) if outputs else range(wiring.free):
            if k + inputs not in labels:
                for written in _written(wiring.cells[k], labels, made, read, inputs, outputs=outputs):
                    ready.setdefault(written, []).append(k)
        for written in sorted(ready):
            after = read | {written.first, written.second}
            found = [place({**labels, k + inputs: len(made) + inputs}, (*made, written), after) for k in ready[written]]
            complete = [cells for cells in found if cells is not None]
            if complete:
                return min(complete)
        return None

    cells = place({level: level for level in range(inputs)}, (), frozenset())
    assert cells is not None  # the given order is one
    return wiring._replace(cells=cells)


def _written(
    cell: Cell, labels: Mapping[int, int], made: Sequence[Cell], read: frozenset[int], inputs: int, *, outputs: bool
) -> Iterator[Cell]:
    """The descriptions of a cell as the next one, behind those made already; none if it cannot come next."""
    needed = (cell.first, cell.second, *cell.leftovers)
    if any(state not in labels for state in needed):
        return
    levels = [*range(inputs), *(one.level for one in made)]
    first, second, *rest = (labels[state] for state in needed)
    pairs = itertools.combinations(sorted((first, second, *rest)), 2) if cell.op == SUM else [(first, second)]
    for one, other in pairs:
        leftovers = _unread(levels, cell.level, {*read, one, other}) if outputs else ()
        same = {one, other, *leftovers} == {first, second, *rest}
        if same and _operands(cell.op, one, other, levels) == (one, other):
            yield Cell(cell.level, cell.op, one, other, leftovers)


# -- published --------------------------------------------------------------------------------------------------------

WIRINGS: dict[str, Wiring] = {
    "nasfpn-7": Wiring(
        (
            Cell(1, ATTENTION, 3, 1),
            Cell(1, SUM, 1, 5),
            Cell(0, SUM, 0, 6),
            Cell(1, SUM, 6, 7),
            Cell(2, ATTENTION, 8, 7, (2,)),
            Cell(4, ATTENTION, 9, 6, (4,)),
            Cell(3, ATTENTION, 10, 9),
        ),
        levels=5,
        finest=3,
    )
}
"""Published pyramids; "nasfpn-7" is the one of Figure 6, as in TensorFlow's released code."""


def wiring_arch(name: str, space: SearchSpace, *, prefix: str = "", shift: int = 0) -> Arch:
    """A published pyramid as decisions of a space.

    Args:
        name: in `WIRINGS`.
        space: of `pyramid_space`, or one that holds its decisions below `prefix`, e.g. "neck". Other decisions are not
            part of the answer.
        shift: moves all levels by as many: -1 reads P3 to P7 as P2 to P6, for backbones of other strides.

    Raises:
        InputError: no such pyramid, or the space lacks a level of it, or has another number of cells.
    """
    if name not in WIRINGS:
        raise InputError(f"there is no published pyramid {name!r}; {nearest(name, WIRINGS)}")
    start = f"{prefix}." if prefix else ""
    wiring = WIRINGS[name]._replace(finest=WIRINGS[name].finest + shift)
    given = str(space[f"{start}levels"].options[0])
    finest, coarsest = (int(number) for number in re.findall(r"\d+", given))
    lacking = [n for n in range(wiring.finest, wiring.finest + wiring.levels) if not finest <= n <= coarsest]
    if lacking:
        raise InputError(
            f"the pyramid {name!r} names the level P{lacking[0]}, but this one has {given} only; give a backbone of "
            "strides 8, 16 and 32 with levels=3 and pooled_levels=2"
        )
    values = {start + key: value for key, value in values_of(wiring).items()}
    own = [choice.name for choice in space.choices if choice.name.startswith(start)]
    if values[f"{start}levels"] != given or sum(key.endswith(".inputs") for key in own) != len(wiring.cells):
        raise InputError(
            f"the pyramid {name!r} has {len(wiring.cells)} cells on {values[start + 'levels']}, and this space "
            f"{sum(key.endswith('.inputs') for key in own)} on {given}; build it with the former"
        )
    return Arch(values)
