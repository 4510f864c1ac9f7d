"""The search space of NAS-FPN (Ghiasi et al., 2019) and the wirings that its architectures describe."""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from supernet.checked import checked_arguments
from supernet.errors import InputError, nearest
from supernet.space import Arch, Choice, SearchSpace, Value

SUM, ATTENTION = "sum", "gp"


class Cell(NamedTuple):
    """One merging cell.

    Levels and maps are numbered from 0, the finest first; the outputs of the cells follow the input maps.

    Attributes:
        level: level of the output.
        op: "sum" or "gp", global-pooling attention.
        first, second: numbers of the operands. For "gp" the first is the one from the coarser level, which gates in the
            released TensorFlow code. If their levels are equal, it is the one that was chosen first, or the earlier one
            where pairs are chosen. For "sum" it is the earlier one.
        leftovers: numbers of the maps that are added to the result, ascending.
    """

    level: int
    op: str
    first: int
    second: int
    leftovers: tuple[int, ...] = ()


class Wiring(NamedTuple):
    """A pyramid.

    Attributes:
        cells: in order; the last ones, one per level, are the outputs.
        levels: number of levels.
        finest: number of the finest level, such as 3 for P3.
        ordered: whether its space has the operands of a cell as two decisions.
    """

    cells: tuple[Cell, ...]
    levels: int
    finest: int
    ordered: bool = False

    @property
    def free(self) -> int:
        """The number of cells before the outputs."""
        return len(self.cells) - self.levels


@checked_arguments
def pyramid_space(
    *,
    levels: int = 5,
    finest: int = 3,
    cells: int = 7,
    ops: Sequence[str] = (SUM, ATTENTION),
    ordered: bool = False,
) -> SearchSpace:
    """Returns the space of pyramids; with seven cells on P3 to P7 there are 3.0e15, or 3.9e17 if operands are ordered.

    The choices, in order, are `levels`, a choice with one option that records the level range, such as "P3-P7", and
    then for cell k:

    - `cell{k}.inputs`: an unordered pair of the maps that exist so far, such as "P4+cell1";
    - `cell{k}.level`: the level of a cell before the outputs;
    - `cell{k}.output`: the level of an output cell, as an index into the levels that have no output yet, the finest
      first; the last output has no such choice, since one level is left;
    - `cell{k}.op`: how the pair is merged.

    With `ordered`, a cell has the four decisions of the paper's controller (§ 3.1): in place of `cell{k}.inputs`, first
    `cell{k}.first`, one of the maps, and `cell{k}.second`, an index into the others; then the level and the operation.
    The order matters where an attention merges two maps of one level. Only then are there pyramids that pairs do not
    describe; all other orders are equal networks and have one normal form.

    Args:
        levels: number of levels.
        finest: number of the finest level, the binary logarithm of its stride.
        cells: number of cells, the last `levels` of which are the outputs.
        ops: "sum", "gp" (global-pooling attention), or both.
        ordered: whether the operands of a cell are two decisions, so that the first gates an attention of equal levels.

    Raises:
        InputError: there are fewer than two levels or fewer cells than levels, or an operation is unknown.
    """
    if finest < 0:
        raise InputError(f"finest={finest} should be the number of a level, at least 0")
    if levels < 2 or cells < levels:
        raise InputError(
            f"a pyramid needs at least two levels and at least one cell for each, not levels={levels}, cells={cells}"
        )
    if not ops or set(ops) - {SUM, ATTENTION}:
        raise InputError(f"ops of merging cells must be chosen from {SUM!r} and {ATTENTION!r}, not {tuple(ops)!r}")
    names = [f"P{finest + level}" for level in range(levels)]
    choices = [Choice("levels", (f"{names[0]}-{names[-1]}",))]
    maps, free = list(names), cells - levels
    for number in range(1, cells + 1):
        name = f"cell{number}"
        if ordered:
            choices.append(Choice(f"{name}.first", tuple(maps)))
            choices.append(Choice(f"{name}.second", range(len(maps) - 1)))
        else:
            choices.append(Choice(f"{name}.inputs", tuple("+".join(pair) for pair in itertools.combinations(maps, 2))))
        if number <= free:
            choices.append(Choice(f"{name}.level", tuple(names)))
        elif number < cells:
            choices.append(Choice(f"{name}.output", range(cells - number + 1)))
        choices.append(Choice(f"{name}.op", tuple(ops)))
        maps.append(name)
    return SearchSpace("nasfpn", choices, one_per_pyramid)


@functools.lru_cache(maxsize=4096)
def wiring_of(arch: Arch) -> Wiring:
    """Returns the pyramid of an architecture of `pyramid_space`, with leftovers as in the released TensorFlow code.

    An output cell adds to its result every earlier map of its level that neither an earlier cell nor the output cell
    itself has read; later cells may still read such a map. Every map is therefore used.
    """
    finest, coarsest = (int(number) for number in re.findall(r"\d+", str(arch["levels"])))
    ordered = "cell1.first" in arch
    levels, number = coarsest - finest + 1, sum(name.endswith((".inputs", ".first")) for name in arch)
    names = [f"P{finest + level}" for level in range(levels)]
    level_of = list(range(levels))  # by number of the map
    without_output = list(range(levels))
    read: set[int] = set()
    cells: list[Cell] = []
    leftovers: tuple[int, ...]
    for name in (f"cell{k + 1}" for k in range(number)):
        if ordered:
            first = names.index(str(arch[f"{name}.first"]))
            second = [state for state in range(len(names)) if state != first][int(arch[f"{name}.second"])]
        else:
            first, second = (names.index(part) for part in str(arch[f"{name}.inputs"]).split("+"))
        read |= {first, second}
        op, leftovers = str(arch[f"{name}.op"]), ()
        if f"{name}.level" in arch:
            level = names.index(str(arch[f"{name}.level"]))
        else:
            level = without_output.pop(int(arch.get(f"{name}.output", 0)))
            leftovers = _unread(level_of, level, read)
        cells.append(Cell(level, op, *_operands(op, first, second, level_of, ordered=ordered), leftovers))
        level_of.append(level)
        names.append(name)
    return Wiring(tuple(cells), levels, finest, ordered)


def _unread(level_of: Sequence[int], level: int, read: set[int]) -> tuple[int, ...]:
    """Returns the maps of a level that were not read."""
    return tuple(state for state, own in enumerate(level_of) if own == level and state not in read)


def _operands(op: str, first: int, second: int, level_of: Sequence[int], *, ordered: bool) -> tuple[int, int]:
    """Returns a pair of maps in the order that `Cell` defines."""
    early, late = sorted((first, second))
    if ordered and op == ATTENTION and level_of[first] == level_of[second]:
        return first, second
    return (late, early) if op == ATTENTION and level_of[late] > level_of[early] else (early, late)


def values_of(wiring: Wiring) -> dict[str, Value]:
    """Returns the values of `pyramid_space` that describe a pyramid, whose leftovers must be those of `wiring_of`."""
    cells, levels, finest, free = wiring.cells, wiring.levels, wiring.finest, wiring.free
    names = [f"P{finest + level}" for level in range(levels)] + [f"cell{k + 1}" for k in range(len(cells))]
    values: dict[str, Value] = {"levels": f"{names[0]}-{names[levels - 1]}"}
    without_output = list(range(levels))
    for k, cell in enumerate(cells):
        name = f"cell{k + 1}"
        if wiring.ordered:
            values[f"{name}.first"] = names[cell.first]
            values[f"{name}.second"] = cell.second - (cell.second > cell.first)
        else:
            values[f"{name}.inputs"] = "+".join(names[state] for state in sorted((cell.first, cell.second)))
        values[f"{name}.op"] = cell.op
        if k < free:
            values[f"{name}.level"] = names[cell.level]
        elif k < len(cells) - 1:
            values[f"{name}.output"] = without_output.index(cell.level)
            without_output.remove(cell.level)
    return values


def one_per_pyramid(arch: Arch) -> dict[str, Value]:
    """Returns the representative of all architectures that describe the same pyramid, their normal form.

    Cells may be listed in any order in which each reads earlier maps only, the outputs come last and the leftovers stay
    the same. In a cell that sums it does not matter which maps are operands and which are leftovers. Operands commute,
    except those of an attention at equal levels. Equal pyramids are equal networks, although a supernet may hold
    different shared weights for the same cell.
    """
    return values_of(canonical_wiring(wiring_of(arch)))


def canonical_wiring(wiring: Wiring) -> Wiring:
    """Returns the smallest description of a pyramid, compared cell by cell.

    The next cell is the one with the smallest description among those that may come next. If several cells have the
    same description each is tried, and if none can be completed to a pyramid, the next smallest description is.
    """
    inputs = wiring.levels

    def complete(labels: dict[int, int], placed: tuple[Cell, ...], read: frozenset[int]) -> tuple[Cell, ...] | None:
        """Returns the smallest cells that begin with those placed; labels map old numbers of maps to new ones."""
        if len(placed) == len(wiring.cells):
            return placed
        outputs = len(placed) >= wiring.free
        ready: dict[Cell, list[int]] = {}
        for k in range(wiring.free, len(wiring.cells)) if outputs else range(wiring.free):
            if k + inputs not in labels:
                for cell in _descriptions(
                    wiring.cells[k], labels, placed, read, inputs, outputs=outputs, ordered=wiring.ordered
                ):
                    ready.setdefault(cell, []).append(k)
        for cell in sorted(ready):
            now_read = read | {cell.first, cell.second}
            attempts = [
                complete({**labels, k + inputs: len(placed) + inputs}, (*placed, cell), now_read) for k in ready[cell]
            ]
            completed = [cells for cells in attempts if cells is not None]
            if completed:
                return min(completed)
        return None

    cells = complete({level: level for level in range(inputs)}, (), frozenset())
    assert cells is not None  # the wiring's own order is possible
    return wiring._replace(cells=cells)


def _descriptions(
    cell: Cell,
    labels: Mapping[int, int],
    placed: Sequence[Cell],
    read: frozenset[int],
    inputs: int,
    *,
    outputs: bool,
    ordered: bool,
) -> Iterator[Cell]:
    """Yields the descriptions of a cell placed after others; none if it cannot be the next one."""
    needed = (cell.first, cell.second, *cell.leftovers)
    if any(state not in labels for state in needed):
        return
    level_of = [*range(inputs), *(earlier.level for earlier in placed)]
    first, second, *rest = (labels[state] for state in needed)
    pairs = itertools.combinations(sorted((first, second, *rest)), 2) if cell.op == SUM else [(first, second)]
    for pair in pairs:
        leftovers = _unread(level_of, cell.level, {*read, *pair}) if outputs else ()
        same_maps = {*pair, *leftovers} == {first, second, *rest}
        if same_maps and _operands(cell.op, *pair, level_of, ordered=ordered) == pair:
            yield Cell(cell.level, cell.op, *pair, leftovers)


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
"""Published pyramids; "nasfpn-7" is that of Figure 6, as in the released TensorFlow code."""


@checked_arguments
def wiring_arch(name: str, space: SearchSpace, *, prefix: str = "", shift: int = 0) -> Arch:
    """Returns a published pyramid as an architecture of a space.

    Args:
        name: a name in `WIRINGS`.
        space: a `pyramid_space`, or a space that contains one under `prefix`; its other choices are left out.
        prefix: name of the step that holds the pyramid, such as "neck".
        shift: added to the number of every level; -1 turns P3 to P7 into P2 to P6, for backbones of other strides.

    Raises:
        InputError: there is no such pyramid, or the space lacks one of its levels or has another number of cells.
    """
    if name not in WIRINGS:
        raise InputError(f"there is no published pyramid {name!r}; {nearest(name, WIRINGS)}")
    start = f"{prefix}." if prefix else ""
    ordered = any(choice.name == f"{start}cell1.first" for choice in space.choices)
    wiring = WIRINGS[name]._replace(finest=WIRINGS[name].finest + shift, ordered=ordered)
    level_range = str(space[f"{start}levels"].options[0])
    finest, coarsest = (int(number) for number in re.findall(r"\d+", level_range))
    lacking = [n for n in range(wiring.finest, wiring.finest + wiring.levels) if not finest <= n <= coarsest]
    if lacking:
        raise InputError(
            f"the pyramid {name!r} has the level P{lacking[0]}, but this space has {level_range} only; give a backbone "
            "of strides 8, 16 and 32 with levels=3 and pooled_levels=2"
        )
    values = {start + key: value for key, value in values_of(wiring).items()}
    names = (choice.name for choice in space.choices if choice.name.startswith(start))
    cells = sum(key.endswith((".inputs", ".first")) for key in names)
    if values[f"{start}levels"] != level_range or cells != len(wiring.cells):
        raise InputError(
            f"the pyramid {name!r} has {len(wiring.cells)} cells on {values[start + 'levels']}, but this space has "
            f"{cells} on {level_range}; build it with the pyramid's"
        )
    return Arch(values)
