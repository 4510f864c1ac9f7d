"""Pictures of architectures as SVG: cells laid out as in the papers' figures, chains as a list of steps. No torch.

A cell is read from the bottom up: its two inputs, then every block as two operations and the node that joins them, and
the concatenation on top. All lines from one state have the colour of that state, which shows a block's operands at a
glance.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from supernet.blocks.cells.graph import ADD, CellGraph
from supernet.checked import Count, Natural, checked_arguments, shown
from supernet.errors import InputError
from supernet.space import Value

Point = tuple[float, float]

COLOURS = ("#444444", "#888888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
INPUT, OPERATION, JOIN, OUTPUT = "#dddddd", "#fff2b3", "#cfe8cf", "#cfdcf2"
OP_WIDTH, OP_HEIGHT, GAP, LANE, RISE, MARGIN = 96.0, 26.0, 12.0, 26.0, 62.0, 24.0
LETTER = 6.6  # width of a character
BLOCK_WIDTH, BLOCK_HEIGHT = 2 * OP_WIDTH + GAP, 2 * OP_HEIGHT + 16.0


@dataclass(frozen=True)
class Box:
    """A labelled rectangle with its upper left corner at (x, y); `framed` draws a thick outline."""

    x: float
    y: float
    width: float
    height: float
    text: str
    fill: str
    framed: bool = False


@dataclass(frozen=True)
class Line:
    """A curve that starts and ends vertically."""

    start: Point
    end: Point
    colour: str = COLOURS[0]


@dataclass(frozen=True)
class Route:
    """An arrow along straight lines with rounded corners, from the first point to the last.

    Attributes:
        name: the boxes that the arrow connects; SVG viewers show it as a tooltip.
    """

    points: tuple[Point, ...]
    colour: str = COLOURS[0]
    dashed: bool = False
    name: str = ""


@dataclass(frozen=True)
class Label:
    """A line of text, centred at a point."""

    at: Point
    text: str


Shape = Box | Line | Route | Label


@dataclass
class Picture:
    """Shapes on a canvas; later shapes are drawn over earlier ones."""

    width: float = 0.0
    height: float = 0.0
    shapes: list[Shape] = field(default_factory=list)

    def beside(self, other: "Picture") -> "Picture":
        """Returns both pictures side by side, aligned at the bottom."""
        height = max(self.height, other.height)
        joined = Picture(self.width + other.width, height)
        for part, right in ((self, 0.0), (other, self.width)):
            joined.shapes += [_moved(shape, right, height - part.height) for shape in part.shapes]
        return joined

    def save(self, path: Path) -> None:
        """Writes the picture as an SVG file.

        Raises:
            InputError: the file's name does not end in `.svg`.
        """
        if path.suffix != ".svg":
            raise InputError(f"pictures are .svg, not {path.name!r}; browsers and Inkscape convert them")
        from supernet.files import replacing  # loads torch, which drawing a published cell does not need

        with replacing(path) as temporary:  # a link in the place of the file is replaced, never followed
            temporary.write_text(self.svg(), encoding="utf-8")

    def svg(self) -> str:
        """Returns the picture as SVG."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        background = '<rect width="100%" height="100%" fill="white"/>'
        return "\n".join([head, background, *map(_svg, self.shapes), "</svg>", ""])


def _moved(shape: Shape, right: float, down: float) -> Shape:
    """Returns a copy of a shape, moved to the right and down."""

    def at(point: Point) -> Point:
        return point[0] + right, point[1] + down

    if isinstance(shape, Box):
        x, y = at((shape.x, shape.y))
        return replace(shape, x=x, y=y)
    if isinstance(shape, Route):
        return replace(shape, points=tuple(map(at, shape.points)))
    if isinstance(shape, Line):
        return Line(at(shape.start), at(shape.end), shape.colour)
    return Label(at(shape.at), shape.text)


# -- cells ------------------------------------------------------------------------------------------------------------


def label_of(op: str) -> str:
    """Returns an operation's name as papers write it: `sep5` becomes sep 5×5."""
    match = re.fullmatch(r"(avg|max|sep|dilsep|conv|dil|neckdil|neck)([\dx_]+)", op)
    if match is None:
        return op
    kind, sizes = match[1].replace("dil", "dil "), match[2].split("_")
    if match[1] == "neckdil":
        sizes = [sizes[0], f"rate {sizes[1]}"]
    kernels = [size.replace("x", "×") if not size.isdigit() else f"{size}×{size}" for size in sizes]
    return " ".join([kind.strip(), *kernels])


@checked_arguments
def draw_cell(graph: CellGraph, *, title: str = "", inputs: Sequence[str] = ("h[i]", "h[i-1]")) -> Picture:
    """Draws a cell from its inputs at the bottom to the concatenation of its outputs at the top.

    Args:
        graph: the cell's blocks and outputs.
        title: the text above the cell.
        inputs: the names of states 0 and 1.

    Raises:
        InputError: no cell, or another number of names.
    """
    if len(inputs) != 2:
        raise InputError(f"inputs={shown(inputs)} should be two names, of states 0 and 1")
    levels = [0, 0]
    for block in graph.blocks:
        levels.append(1 + max(levels[block.left], levels[block.right]))
    top = max(levels) + 1
    rows = _rows(graph, levels, top)
    widths = [sum(_width(kind, level) for kind, _ in row) + GAP * (len(row) - 1) for level, row in enumerate(rows)]
    picture = Picture(max([*widths, 240.0, LETTER * len(title)]) + 2 * MARGIN, 0.0)
    picture.height = 2 * MARGIN + 20 + 2 * OP_HEIGHT - BLOCK_HEIGHT + top * (BLOCK_HEIGHT + RISE)
    columns: list[dict[int, float]] = []  # per level the centre of each state's node
    for level in range(top):
        columns.append(_placed(rows[level], graph, columns, level, picture.width))
        for kind, state in rows[level]:
            _draw_node(picture, graph, (kind, state, level), columns, inputs)
    y = _floor(picture, top)
    left, right = MARGIN, picture.width - MARGIN
    picture.shapes.append(Box(left, y - OP_HEIGHT, right - left, OP_HEIGHT, "concat → h[i+1]", OUTPUT))
    for state in graph.outputs:
        middle = columns[top - 1][state]
        picture.shapes.append(Line((middle, _ceiling(picture, top - 1)), (middle, y), _colour(state)))
    picture.shapes.append(Label((picture.width / 2, MARGIN), title))
    return picture


def _rows(graph: CellGraph, levels: Sequence[int], top: int) -> list[list[tuple[str, int]]]:
    """Returns per level the states computed there, and lanes for earlier states that are read further up."""
    rows: list[list[tuple[str, int]]] = [[("input", 1), ("input", 0)], *([] for _ in range(top - 1))]
    for state, level in enumerate(levels):
        readers = [levels[n + 2] for n, block in enumerate(graph.blocks) if state in (block.left, block.right)]
        last = max([top] * (state in graph.outputs) + readers)
        if state > 1:
            rows[level].append(("block", state))
        for between in range(level + 1, last):
            rows[between].append(("lane", state))
    return rows


def _width(kind: str, level: int) -> float:
    return LANE if kind == "lane" else BLOCK_WIDTH if level else OP_WIDTH


def _placed(
    row: list[tuple[str, int]], graph: CellGraph, columns: Sequence[Mapping[int, float]], level: int, width: float
) -> dict[int, float]:
    """Sorts the nodes of a level by the positions of their operands and returns the centre of each."""

    def preferred(node: tuple[str, int]) -> float:
        kind, state = node
        if kind == "lane":
            return columns[level - 1][state]
        block = graph.blocks[state - 2]
        return (columns[level - 1][block.left] + columns[level - 1][block.right]) / 2

    row[:] = sorted(row, key=preferred) if level else row
    gap = GAP if level else BLOCK_WIDTH
    x = (width - sum(_width(kind, level) for kind, _ in row) - gap * (len(row) - 1)) / 2
    centres = {}
    for kind, state in row:
        centres[state] = x + _width(kind, level) / 2
        x += _width(kind, level) + gap
    return centres


def _floor(picture: Picture, level: int) -> float:
    """Returns the y coordinate of a level's lower edge."""
    raised = level * (BLOCK_HEIGHT + RISE) - (BLOCK_HEIGHT - OP_HEIGHT if level else 0.0)
    return picture.height - MARGIN - raised


def _ceiling(picture: Picture, level: int) -> float:
    return _floor(picture, level) - (BLOCK_HEIGHT if level else OP_HEIGHT)


def _colour(state: int) -> str:
    return COLOURS[state % len(COLOURS)]


def _draw_node(
    picture: Picture,
    graph: CellGraph,
    node: tuple[str, int, int],
    columns: Sequence[Mapping[int, float]],
    inputs: Sequence[str],
) -> None:
    kind, state, level = node
    x, floor, ceiling = columns[level][state], _floor(picture, level), _ceiling(picture, level)
    shapes = picture.shapes
    if kind == "input":
        shapes.append(Box(x - OP_WIDTH / 2, ceiling, OP_WIDTH, OP_HEIGHT, f"{state}: {inputs[state]}", INPUT))
        return
    below = _ceiling(picture, level - 1)
    if kind == "lane":
        shapes.append(Line((columns[level - 1][state], below), (x, floor), _colour(state)))
        shapes.append(Line((x, floor), (x, ceiling), _colour(state)))
        return
    block = graph.blocks[state - 2]
    operands = [(block.left, block.left_op), (block.right, block.right_op)]
    operands.sort(key=lambda operand: columns[level - 1][operand[0]])  # stable: left first where one state feeds both
    for side, (source, op) in zip((-1, 1), operands, strict=True):
        middle = x + side * (OP_WIDTH + GAP) / 2
        shapes.append(Line((columns[level - 1][source], below), (middle, floor), _colour(source)))
        shapes.append(Line((middle, floor - OP_HEIGHT), (x, ceiling + OP_HEIGHT)))
        shapes.append(Box(middle - OP_WIDTH / 2, floor - OP_HEIGHT, OP_WIDTH, OP_HEIGHT, label_of(op), OPERATION))
    text = f"{state}: {'add' if block.combine == ADD else 'concat'}"
    shapes.append(Box(x - OP_WIDTH / 2, ceiling, OP_WIDTH, OP_HEIGHT, text, JOIN))


def draw_cells(cells: Mapping[str, CellGraph], *, title: str = "") -> Picture:
    """Draws all cells of a network side by side. Raises `InputError` if there are none."""
    if not cells:
        raise InputError(f"cells={shown(cells)} should be at least one cell by its name")
    pictures = [draw_cell(graph, title=f"{title} · {name}" if title else name) for name, graph in cells.items()]
    picture = pictures[0]
    for other in pictures[1:]:
        picture = picture.beside(other)
    return picture


# -- chains -----------------------------------------------------------------------------------------------------------


@checked_arguments
def draw_chain(arch: Mapping[str, Value], *, title: str = "", rows: Count = 12) -> Picture:
    """Draws the steps that have decisions from top to bottom, in columns of `rows`.

    Raises:
        InputError: an architecture without decisions, or no rows.
    """
    steps: dict[str, list[str]] = {}
    for name, value in arch.items():
        step, _, decision = name.rpartition(".")
        steps.setdefault(step or name, []).append(str(value) if decision == "op" or not step else f"{decision} {value}")
    if not steps:
        raise InputError("the architecture has no decisions, so there is nothing to draw")
    width, height = 220.0, OP_HEIGHT
    pitch, columns = height + 14, -(-len(steps) // rows)
    needed, titled = MARGIN + columns * (width + MARGIN), 2 * MARGIN + LETTER * len(title)
    picture = Picture(max(needed, titled), 2 * MARGIN + 20 + min(len(steps), rows) * pitch)
    picture.shapes.append(Label((picture.width / 2, MARGIN), title))
    left = MARGIN + max(0.0, titled - needed) / 2
    for index, (step, values) in enumerate(steps.items()):
        x, y = left + index // rows * (width + MARGIN), MARGIN + 20 + index % rows * pitch
        if index % rows:
            picture.shapes.append(Line((x + width / 2, y - 14), (x + width / 2, y)))
        picture.shapes.append(Box(x, y, width, height, f"{step}: {', '.join(values)}", OPERATION))
    return picture


# -- widths -----------------------------------------------------------------------------------------------------------


@checked_arguments
def draw_widths(
    widths: Mapping[str, Natural], seed: Mapping[str, Natural], *, title: str = "", rows: Count = 30
) -> Picture:
    """Draws the width profile: a bar per group over a grey bar for the seed network, all to one scale.

    Args:
        widths: channels per group, in the order of the network; 0 leaves a branch out.
        seed: channels per group of the seed network.
        title: the text above the bars.
        rows: groups per column.

    Raises:
        InputError: no groups, a group that the seed lacks, or only widths of 0.
    """
    if lacking := [name for name in widths if name not in seed]:
        raise InputError(f"seed={shown(dict(seed))} lacks the group {lacking[0]!r} of widths; give all of its channels")
    if not widths or not any((*widths.values(), *seed.values())):
        raise InputError(f"widths={shown(dict(widths))} and seed={shown(dict(seed))} have no channels to draw")
    label, length, pitch = 190.0, 240.0, OP_HEIGHT + 6
    unit, columns = length / max(*widths.values(), *seed.values()), -(-len(widths) // rows)
    picture = Picture(
        MARGIN + columns * (label + length + 90 + MARGIN), 2 * MARGIN + 20 + min(len(widths), rows) * pitch
    )
    picture.shapes.append(Label((picture.width / 2, MARGIN), title))
    for index, (name, width) in enumerate(widths.items()):
        x, y = MARGIN + index // rows * (label + length + 90 + MARGIN), MARGIN + 20 + index % rows * pitch
        picture.shapes.append(Box(x, y, label, OP_HEIGHT, name, OPERATION))
        picture.shapes.append(Box(x + label + 8, y, unit * seed[name], OP_HEIGHT, "", INPUT))
        if width:
            picture.shapes.append(Box(x + label + 8, y + 4, unit * width, OP_HEIGHT - 8, "", JOIN))
        picture.shapes.append(Label((x + label + length + 50, y + OP_HEIGHT / 2), f"{width} of {seed[name]}"))
    return picture


# -- SVG ------------------------------------------------------------------------------------------------------------


def _svg(shape: Shape) -> str:
    if isinstance(shape, Route):
        return _svg_route(shape)
    if isinstance(shape, Line):
        (x1, y1), (x2, y2) = shape.start, shape.end
        middle = (y1 + y2) / 2
        path = f"M{x1:.1f} {y1:.1f} C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
        return f'<path d="{path}" fill="none" stroke="{shape.colour}" stroke-width="1.6"/>'
    x, y = shape.at if isinstance(shape, Label) else (shape.x + shape.width / 2, shape.y + shape.height / 2)
    weight = ' font-weight="bold"' if isinstance(shape, Label) else ""
    anchor = 'text-anchor="middle" dominant-baseline="central"'
    text = f'<text x="{x:.1f}" y="{y:.1f}" {anchor}{weight}>{escape(shape.text)}</text>'
    if isinstance(shape, Label):
        return text
    place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
    stroke = 'stroke="#000" stroke-width="2.5"' if shape.framed else 'stroke="#555"'
    return f'<rect {place} rx="4" fill="{shape.fill}" {stroke}/>{text}'


def _svg_route(route: Route) -> str:
    bends, (x, y), head = _bends(route), *_head(route)
    parts = ["M{:.1f} {:.1f}".format(*route.points[0])]
    parts += ["L{:.1f} {:.1f} Q{:.1f} {:.1f} {:.1f} {:.1f}".format(*(v for at in bend for v in at)) for bend in bends]
    dash = ' stroke-dasharray="6 4"' if route.dashed else ""
    line = (
        f'<path d="{" ".join(parts)} L{x:.1f} {y:.1f}" fill="none" stroke="{route.colour}" stroke-width="1.6"{dash}/>'
    )
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in head)
    return f'<g><title>{escape(route.name)}</title>{line}<polygon points="{corners}" fill="{route.colour}"/></g>'


def _bends(route: Route, radius: float = 5.0) -> list[tuple[Point, Point, Point]]:
    """Returns for every corner the point where its curve begins, the corner, and the point where the curve ends."""
    corners = zip(route.points, route.points[1:], route.points[2:], strict=False)
    return [(_towards(at, before, radius), at, _towards(at, after, radius)) for before, at, after in corners]


def _towards(start: Point, end: Point, distance: float) -> Point:
    """Returns the point at a distance from `start` on the way to `end`, at most half of the way."""
    length = math.dist(start, end)
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _head(route: Route, length: float = 8.0, half: float = 3.5) -> tuple[Point, tuple[Point, Point, Point]]:
    """Returns the point where the line ends and the corners of the arrow's head."""
    tip, before = route.points[-1], route.points[-2]
    whole = math.dist(tip, before) or 1.0
    x, y = (tip[0] - before[0]) / whole, (tip[1] - before[1]) / whole
    base = tip[0] - length * x, tip[1] - length * y
    return base, (tip, (base[0] - half * y, base[1] + half * x), (base[0] + half * y, base[1] - half * x))
