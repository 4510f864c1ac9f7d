"""Pictures of NAS-FPN pyramids, with a row per level and a column per cell."""

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
class Arrow:
    """A connection from a map to a cell that reads it.

    Attributes:
        source: number of the map, as in `Cell`.
        cell: number of the cell, from 0.
        leftover: whether the map is added to the result instead of being an operand.
    """

    source: int
    cell: int
    leftover: bool


def arrows_of(wiring: Wiring) -> list[Arrow]:
    """Returns the arrows into every cell: those of its operands in order, then those of its leftovers."""
    arrows = []
    for number, cell in enumerate(wiring.cells):
        arrows += [Arrow(source, number, leftover=False) for source in (cell.first, cell.second)]
        arrows += [Arrow(source, number, leftover=True) for source in cell.leftovers]
    return arrows


def names_of(wiring: Wiring) -> list[str]:
    """Returns the names of all maps: P3, P4, … for the inputs, c1, c2, … for the outputs of the cells."""
    inputs = [f"P{wiring.finest + level}" for level in range(wiring.levels)]
    return [*inputs, *(f"c{number + 1}" for number in range(len(wiring.cells)))]


def draw_pyramid(wiring: Wiring, *, title: str = "") -> Picture:
    """Returns a picture with a row per level, the coarsest on top, and a column for the inputs and for every cell.

    The text of a cell is what it computes: a sum of two maps, or `gp`, their attention, whose first operand is the one
    that gates in the TensorFlow code. Thick frames mark the outputs of levels, dashed arrows leftovers.

    Args:
        wiring: the pyramid.
        title: printed above the picture.
    """
    grid = _Grid(wiring)
    picture = Picture(max(grid.width, LETTER * len(title) + 2 * MARGIN), grid.height + HEADING)
    picture.shapes += [grid.route(arrow) for arrow in arrows_of(wiring)]
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
    """Returns what a cell computes as a formula."""
    cell = wiring.cells[number]
    first, second = names[cell.first], names[cell.second]
    merged = f"{first} + {second}" if cell.op == SUM else f"gp({first}, {second})"
    return " + ".join([f"c{number + 1} = {merged}", *(names[state] for state in cell.leftovers)])


def _legend(picture: Picture, y: float) -> None:
    """Adds a line at the bottom that explains fills, frames and dashes."""
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
    """The positions of boxes and arrows.

    Every map that is read beyond the next column has a horizontal lane above its row. Arrows run through these lanes
    and change rows in the gutters between the columns, so no arrow crosses a box.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.wiring, names = wiring, names_of(wiring)
        self.texts = [_text(wiring, number, names) for number in range(len(wiring.cells))]
        self.widths = [52.0, *(LETTER * len(text) + 18 for text in self.texts)]
        self._arrows = arrows_of(wiring)
        self._lanes = self._place_lanes()
        self._rows = self._place_rows()
        self.height = max(self._rows) + HEIGHT + MARGIN
        self._columns = [MARGIN]
        for number, width in enumerate(self.widths[:-1]):
            tracks = max(1, sum(arrow.cell == number for arrow in self._arrows))
            self._columns.append(self._columns[-1] + width + 2 * PADDING + (tracks + 1) * TRACK)
        self.width = self._columns[-1] + self.widths[-1] + MARGIN
        self._ports = {arrow: port for number in range(len(wiring.cells)) for arrow, port in self._place_ports(number)}

    def column(self, state: int) -> int:
        return max(0, state - self.wiring.levels + 1)

    def level(self, state: int) -> int:
        inside = state - self.wiring.levels
        return state if inside < 0 else self.wiring.cells[inside].level

    def corner(self, state: int) -> Point:
        """Returns the upper left corner of a map's box."""
        return self._columns[self.column(state)], self._rows[self.level(state)]

    def route(self, arrow: Arrow) -> Route:
        names = names_of(self.wiring)
        x, y = self.corner(arrow.source)
        x, y = x + self.widths[self.column(arrow.source)], y + HEIGHT / 2
        track, port = self._ports[arrow]
        points = [(x, y)]
        if self._direct(arrow):
            points += [(track, y)]
        else:
            lane = self._lane(arrow.source)
            points += [(x + PADDING, y), (x + PADDING, lane), (track, lane)]
        points += [(track, port), (self._columns[arrow.cell + 1], port)]
        kept = [here for here, after in itertools.pairwise(points) if here != after] + points[-1:]
        name = f"{names[arrow.source]} → {names[arrow.cell + self.wiring.levels]}"
        return Route(tuple(kept), COLOURS[arrow.source % len(COLOURS)], arrow.leftover, name)

    def _direct(self, arrow: Arrow) -> bool:
        """Whether the cell is in the column next to the map."""
        return self.column(arrow.source) == arrow.cell

    def _place_lanes(self) -> dict[int, int]:
        """Returns the lane of every map that needs one, counted within its row from the lowest."""
        lanes: dict[int, int] = {}
        used = [0] * self.wiring.levels
        for source in sorted({arrow.source for arrow in self._arrows if not self._direct(arrow)}):
            lanes[source] = used[self.level(source)]
            used[self.level(source)] += 1
        return lanes

    def _place_rows(self) -> list[float]:
        """Returns the y of the upper edge of the boxes of every level."""
        rows, y = [0.0] * self.wiring.levels, HEADING + MARGIN
        for level in range(self.wiring.levels - 1, -1, -1):
            y += PADDING + TRACK * sum(self.level(source) == level for source in self._lanes)
            rows[level] = y
            y += HEIGHT + PADDING
        return rows

    def _lane(self, source: int) -> float:
        return self._rows[self.level(source)] - PADDING - TRACK * self._lanes[source]

    def _place_ports(self, number: int) -> list[tuple[Arrow, Point]]:
        """Returns for every arrow into a cell the x at which it turns to the cell and the y at which it arrives.

        Arrows from above arrive above those from below, and the outermost on either side turn last, so none cross.
        """
        row = self._rows[self.wiring.cells[number].level]

        def y_of(arrow: Arrow) -> float:
            return self.corner(arrow.source)[1] + HEIGHT / 2 if self._direct(arrow) else self._lane(arrow.source)

        arrows = sorted((arrow for arrow in self._arrows if arrow.cell == number), key=y_of)
        heights = [row + HEIGHT * (place + 1) / (len(arrows) + 1) for place in range(len(arrows))]
        above = [y_of(arrow) <= height for arrow, height in zip(arrows, heights, strict=True)]
        right, ports = self._columns[number + 1] - PADDING, []
        for place, (arrow, height) in enumerate(zip(arrows, heights, strict=True)):
            before = sum(above[:place]) if above[place] else above[place + 1 :].count(False)
            ports.append((arrow, (right - TRACK * before, height)))
        return ports


# -- architectures ----------------------------------------------------------------------------------------------------


def pyramid_of(arch: Arch) -> Wiring:
    """Returns the pyramid of an architecture, which may be one of `pyramid_space` or of a detector that contains it.

    Raises:
        InputError: the architecture has no pyramid, or one that is not in `pyramid_space`.
    """
    operands = (re.fullmatch(r"(.*)cell1\.(inputs|first)", name) for name in arch)
    prefix = next((match[1] for match in operands if match), None)
    pyramid = arch.sub(prefix[:-1]) if prefix else arch
    levels = re.fullmatch(r"P(\d+)-P(\d+)", str(pyramid.get("levels")))
    if prefix is None or levels is None:
        raise InputError("the architecture has no pyramid; one has 'cell1.inputs', and 'levels' such as 'P3-P7'")
    finest, coarsest = map(int, levels.groups())
    cells = sum(name.endswith((".inputs", ".first")) for name in pyramid)
    ordered = "cell1.first" in pyramid
    space = pyramid_space(levels=coarsest - finest + 1, finest=finest, cells=cells, ordered=ordered)
    return wiring_of(space.canonical(pyramid))
