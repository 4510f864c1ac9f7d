"""Pictures of searched detectors: NAS-FPN pyramids with a row per level and a column per cell, beside the backbone."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from detection.nasfpn.space import ATTENTION, SUM, Wiring, pyramid_space, wiring_of
from supernet.drawing import INPUT, JOIN, LETTER, MARGIN, OPERATION, Box, Label, Picture, Point, Route
from supernet.errors import InputError
from supernet.space import Arch

COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#a0a020",
    "#0b3d91",
    "#006400",
)
HEIGHT, TRACK, PADDING, HEADING = 36.0, 9.0, 12.0, 34.0


@dataclass(frozen=True)
class Edge:
    """A map that a cell reads; maps and cells are numbered as in `Wiring`."""

    source: int
    cell: int
    leftover: bool


def edges_of(wiring: Wiring) -> list[Edge]:
    """What every cell reads: its operands, the first one first, and the leftovers added to it."""
    found = []
    for number, cell in enumerate(wiring.cells):
        found += [Edge(source, number, leftover=False) for source in (cell.first, cell.second)]
        found += [Edge(source, number, leftover=True) for source in cell.leftovers]
    return found


def names_of(wiring: Wiring) -> list[str]:
    """P3, P4, … for the maps that the pyramid is given, c1, c2, … for those of its cells."""
    given = [f"P{wiring.finest + level}" for level in range(wiring.levels)]
    return [*given, *(f"c{number + 1}" for number in range(len(wiring.cells)))]


def draw_pyramid(wiring: Wiring, *, title: str = "") -> Picture:
    """A row per level, the coarsest on top; the maps that are given in the first column, then a column per cell.

    A cell says what it computes: a sum of two maps or `gp`, their attention, the one that gates in TensorFlow's code
    first. Cells with a thick frame are the outputs of their levels; dashed arrows add leftovers.
    """
    grid = _Grid(wiring)
    picture = Picture(max(grid.width, LETTER * len(title) + 2 * MARGIN), grid.height + HEADING)
    picture.shapes += [grid.route(edge) for edge in edges_of(wiring)]
    names = names_of(wiring)
    for state, name in enumerate(names):
        x, y = grid.corner(state)
        if state < wiring.levels:
            picture.shapes.append(Box(x, y, grid.widths[0], HEIGHT, name, INPUT))
            continue
        cell, text = wiring.cells[state - wiring.levels], grid.texts[state - wiring.levels]
        fill = OPERATION if cell.op == ATTENTION else JOIN
        framed = state - wiring.levels >= wiring.free
        picture.shapes.append(Box(x, y, grid.widths[grid.column(state)], HEIGHT, text, fill, framed))
    picture.shapes.append(Label((picture.width / 2, MARGIN), title))
    _legend(picture, grid.height)
    return picture


def _text(wiring: Wiring, number: int, names: Sequence[str]) -> str:
    cell = wiring.cells[number]
    first, second = names[cell.first], names[cell.second]
    merged = f"{first} + {second}" if cell.op == SUM else f"gp({first}, {second})"
    return " + ".join([f"c{number + 1} = {merged}", *(names[state] for state in cell.leftovers)])


def _legend(picture: Picture, y: float) -> None:
    """What fills, frames and dashes mean, in a line at the bottom."""
    x, height = MARGIN, 22.0
    for text, fill, framed in (
        ("input", INPUT, False),
        ("sum", JOIN, False),
        ("attention", OPERATION, False),
        ("output of its level", "white", True),
    ):
        width = LETTER * len(text) + 20
        picture.shapes.append(Box(x, y, width, height, text, fill, framed))
        x += width + 10
    picture.shapes.append(Route(((x, y + height / 2), (x + 50, y + height / 2)), COLOURS[8], dashed=True))
    picture.shapes.append(Label((x + 90, y + height / 2), "leftover"))
    picture.width = max(picture.width, x + 130)


class _Grid:
    """Where everything is.

    Arrows pass boxes through lanes, of which every map that is read further to the right than in the next column has
    one above its row, and change rows in the gutters between the columns. So none lies on a box.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring, names = wiring, names_of(wiring)
        self.texts = [_text(wiring, number, names) for number in range(len(wiring.cells))]
        self.widths = [52.0, *(LETTER * len(text) + 18 for text in self.texts)]
        self._edges = edges_of(wiring)
        self._lanes = self._found_lanes()
        self._rows = self._found_rows()
        self.height = max(self._rows) + HEIGHT + MARGIN
        self._columns = [MARGIN]
        for number, width in enumerate(self.widths[:-1]):
            tracks = max(1, sum(edge.cell == number for edge in self._edges))
            self._columns.append(self._columns[-1] + width + 2 * PADDING + (tracks + 1) * TRACK)
        self.width = self._columns[-1] + self.widths[-1] + MARGIN
        self._ports = {edge: port for number in range(len(wiring.cells)) for edge, port in self._found_ports(number)}

    def column(self, state: int) -> int:
        return max(0, state - self.wiring.levels + 1)

    def level(self, state: int) -> int:
        inside = state - self.wiring.levels
        return state if inside < 0 else self.wiring.cells[inside].level

    def corner(self, state: int) -> Point:
        """The upper left one of a map's box."""
        return self._columns[self.column(state)], self._rows[self.level(state)]

    def route(self, edge: Edge) -> Route:
        names = names_of(self.wiring)
        x, y = self.corner(edge.source)
        x, y = x + self.widths[self.column(edge.source)], y + HEIGHT / 2
        track, port = self._ports[edge]
        points = [(x, y)]
        if self._direct(edge):
            points += [(track, y)]
        else:
            lane = self._lane(edge.source)
            points += [(x + PADDING, y), (x + PADDING, lane), (track, lane)]
        points += [(track, port), (self._columns[edge.cell + 1], port)]
        kept = [here for here, after in itertools.pairwise(points) if here != after] + points[-1:]
        name = f"{names[edge.source]} → {names[edge.cell + self.wiring.levels]}"
        return Route(tuple(kept), COLOURS[edge.source % len(COLOURS)], edge.leftover, name)

    def _direct(self, edge: Edge) -> bool:
        """Whether the cell is in the next column."""
        return self.column(edge.source) == edge.cell

    def _found_lanes(self) -> dict[int, int]:
        """Of the maps that need one, the position of their lane, the lowest of a row first."""
        found: dict[int, int] = {}
        used = [0] * self.wiring.levels
        for source in sorted({edge.source for edge in self._edges if not self._direct(edge)}):
            found[source] = used[self.level(source)]
            used[self.level(source)] += 1
        return found

    def _found_rows(self) -> list[float]:
        """The upper edge of every level's boxes."""
        rows, y = [0.0] * self.wiring.levels, HEADING + MARGIN
        for level in range(self.wiring.levels - 1, -1, -1):
            y += PADDING + TRACK * sum(self.level(source) == level for source in self._lanes)
            rows[level] = y
            y += HEIGHT + PADDING
        return rows

    def _lane(self, source: int) -> float:
        return self._rows[self.level(source)] - PADDING - TRACK * self._lanes[source]

    def _found_ports(self, number: int) -> list[tuple[Edge, Point]]:
        """For every map that a cell reads, where its arrow turns to the cell and at which height it arrives.

        Arrows from above arrive above those from below, and the outermost of either turn last: so they do not cross.
        """
        row = self._rows[self.wiring.cells[number].level]

        def comes_at(edge: Edge) -> float:
            return self.corner(edge.source)[1] + HEIGHT / 2 if self._direct(edge) else self._lane(edge.source)

        own = sorted((edge for edge in self._edges if edge.cell == number), key=comes_at)
        heights = [row + HEIGHT * (place + 1) / (len(own) + 1) for place in range(len(own))]
        above = [comes_at(edge) <= height for edge, height in zip(own, heights, strict=True)]
        right, found = self._columns[number + 1] - PADDING, []
        for place, (edge, height) in enumerate(zip(own, heights, strict=True)):
            before = sum(above[:place]) if above[place] else sum(not one for one in above[place + 1 :])
            found.append((edge, (right - TRACK * before, height)))
        return found


# -- architectures ----------------------------------------------------------------------------------------------------


def pyramid_of(arch: Arch) -> Wiring:
    """The pyramid that an architecture decides on, by itself or as a part of a detector.

    Raises:
        InputError: decisions that are none of `pyramid_space`.
    """
    prefix = next((name.removesuffix("cell1.inputs") for name in arch if name.endswith("cell1.inputs")), None)
    own = arch.sub(prefix[:-1]) if prefix else arch
    levels = re.fullmatch(r"P(\d+)-P(\d+)", str(own.get("levels")))
    if prefix is None or levels is None:
        raise InputError("the architecture decides on no pyramid: it has 'cell1.inputs', and 'levels' such as 'P3-P7'")
    finest, coarsest = map(int, levels.groups())
    cells = sum(name.endswith(".inputs") for name in own)
    space = pyramid_space(levels=coarsest - finest + 1, finest=finest, cells=cells)
    return wiring_of(space.canonical(own))
