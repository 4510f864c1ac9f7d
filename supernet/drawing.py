"""Pictures of architectures: cells laid out as in the papers' figures, chains as a list of steps. No torch.

A cell is read from the bottom: its two inputs, above them every block as two operations and what joins them, at the top
the concatenation. The lines that leave a state have its colour, so that a block's operands can be told at a glance.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from supernet.blocks.cells.graph import ADD, CellGraph
from supernet.errors import InputError
from supernet.space import Arch

Point = tuple[float, float]

COLOURS = ("#444444", "#888888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
INPUT, OPERATION, JOIN, OUTPUT = "#dddddd", "#fff2b3", "#cfe8cf", "#cfdcf2"
OP_WIDTH, OP_HEIGHT, GAP, LANE, RISE, MARGIN = 96.0, 26.0, 12.0, 26.0, 62.0, 24.0
LETTER = 6.6  # width of a character
BLOCK_WIDTH, BLOCK_HEIGHT = 2 * OP_WIDTH + GAP, 2 * OP_HEIGHT + 16.0


@dataclass(frozen=True)
class Box:
    """A labelled rectangle, `framed` with a thick line or a thin one; (x, y) is its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    text: str
    fill: str
    framed: bool = False


@dataclass(frozen=True)
class Line:
    """A curve that leaves and arrives vertically."""

    start: Point
    end: Point
    colour: str = COLOURS[0]


@dataclass(frozen=True)
class Route:
    """An arrow along straight lines with rounded corners, from the first point to the last.

    Attributes:
        name: what it connects; a viewer of the SVG shows it.
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
    """Shapes on a canvas; later ones lie above."""

    width: float = 0.0
    height: float = 0.0
    shapes: list[Shape] = field(default_factory=list)

    def beside(self, other: "Picture") -> "Picture":
        """Both in a row, on one bottom line."""
        height = max(self.height, other.height)
        joined = Picture(self.width + other.width, height)
        for part, right in ((self, 0.0), (other, self.width)):
            joined.shapes += [_moved(shape, right, height - part.height) for shape in part.shapes]
        return joined

    def save(self, path: Path) -> None:
        """Write the picture as `.svg`, or as `.png` at twice its size.

        Raises:
            InputError: another kind of file.
        """
        if path.suffix == ".svg":
            path.write_text(self.svg(), encoding="utf-8")
        elif path.suffix == ".png":
            _save_png(self, path)
        else:
            raise InputError(f"pictures are .svg or .png, not {path.name!r}")

    def svg(self) -> str:
        """The picture as SVG."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
        background = '<rect width="100%" height="100%" fill="white"/>'
        return "\n".join([head, background, *map(_svg, self.shapes), "</svg>", ""])


def _moved(shape: Shape, right: float, down: float) -> Shape:
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
    """An operation's name as papers write it: `sep5` is sep 5×5."""
    match = re.fullmatch(r"(avg|max|sep|dilsep|conv|dil|neckdil|neck)([\dx_]+)", op)
    if match is None:
        return op
    kind, sizes = match[1].replace("dil", "dil "), match[2].split("_")
    if match[1] == "neckdil":
        sizes = [sizes[0], f"rate {sizes[1]}"]
    kernels = [size.replace("x", "×") if not size.isdigit() else f"{size}×{size}" for size in sizes]
    return " ".join([kind.strip(), *kernels])


def draw_cell(graph: CellGraph, *, title: str = "", inputs: Sequence[str] = ("h[i]", "h[i-1]")) -> Picture:
    """A cell from its inputs at the bottom to the concatenation of its outputs at the top.

    Args:
        inputs: what states 0 and 1 are called.
    """
    levels = [0, 0]
    for block in graph.blocks:
        levels.append(1 + max(levels[block.left], levels[block.right]))
    top = max(levels) + 1
    rows = _rows(graph, levels, top)
    widths = [sum(_width(kind, level) for kind, _ in row) + GAP * (len(row) - 1) for level, row in enumerate(rows)]
    picture = Picture(max([*widths, 240.0, LETTER * len(title)]) + 2 * MARGIN, 0.0)
    picture.height = 2 * MARGIN + 20 + 2 * OP_HEIGHT - BLOCK_HEIGHT + top * (BLOCK_HEIGHT + RISE)
    columns: list[dict[int, float]] = []  # per level the middle of what carries each state
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
    """Per level the states made there, and lanes of those that are read further up."""
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
    """The middle of every node of a level, sorted by where its operands come from."""

    def wish(node: tuple[str, int]) -> float:
        kind, state = node
        if kind == "lane":
            return columns[level - 1][state]
        block = graph.blocks[state - 2]
        return (columns[level - 1][block.left] + columns[level - 1][block.right]) / 2

    row[:] = sorted(row, key=wish) if level else row
    gap = GAP if level else BLOCK_WIDTH
    x = (width - sum(_width(kind, level) for kind, _ in row) - gap * (len(row) - 1)) / 2
    found = {}
    for kind, state in row:
        found[state] = x + _width(kind, level) / 2
        x += _width(kind, level) + gap
    return found


def _floor(picture: Picture, level: int) -> float:
    """The lower edge of a level."""
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
    """All cells of a network side by side."""
    pictures = [draw_cell(graph, title=f"{title} · {name}" if title else name) for name, graph in cells.items()]
    picture = pictures[0]
    for other in pictures[1:]:
        picture = picture.beside(other)
    return picture


# -- chains -----------------------------------------------------------------------------------------------------------


def draw_chain(arch: Arch, *, title: str = "", rows: int = 12) -> Picture:
    """The steps that an architecture decides, from top to bottom in columns of `rows`."""
    steps: dict[str, list[str]] = {}
    for name, value in arch.items():
        step, _, decision = name.rpartition(".")
        steps.setdefault(step or name, []).append(str(value) if decision == "op" or not step else f"{decision} {value}")
    if not steps:
        raise InputError("the architecture decides nothing, so there is nothing to draw")
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


def draw_widths(widths: Mapping[str, int], seed: Mapping[str, int], *, title: str = "", rows: int = 30) -> Picture:
    """The width profile: per group a bar, on top of a grey one for the seed; channels are to one scale.

    Args:
        widths: channels per group, in the order of the network; 0 leaves a branch out.
        seed: those of the network that the space is named after.
        rows: of a column.
    """
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


# -- files ------------------------------------------------------------------------------------------------------------


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
    """At every corner the point where its curve begins, the corner, and the point where the curve ends."""
    found = []
    for before, corner, after in zip(route.points, route.points[1:], route.points[2:], strict=False):
        found.append((_towards(corner, before, radius), corner, _towards(corner, after, radius)))
    return found


def _towards(start: Point, end: Point, distance: float) -> Point:
    """A point on the way, half of it at most."""
    length = math.dist(start, end)
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _head(route: Route, length: float = 8.0, half: float = 3.5) -> tuple[Point, tuple[Point, Point, Point]]:
    """Where the line ends, and the corners of the arrow's head."""
    tip, before = route.points[-1], route.points[-2]
    whole = math.dist(tip, before) or 1.0
    x, y = (tip[0] - before[0]) / whole, (tip[1] - before[1]) / whole
    base = tip[0] - length * x, tip[1] - length * y
    return base, (tip, (base[0] - half * y, base[1] + half * x), (base[0] + half * y, base[1] - half * x))


def _dashes(points: Sequence[Point], on: float = 6.0, off: float = 4.0) -> Iterable[tuple[Point, Point]]:
    """The pieces of a line that a dashed one shows."""
    at = 0.0
    for start, end in itertools.pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > 1e-6:
            place = at % (on + off)
            step = min(length - done, (on if place < on else on + off) - place)
            if place < on and length:
                yield tuple(  # type: ignore[misc]
                    (start[0] + t * (end[0] - start[0]) / length, start[1] + t * (end[1] - start[1]) / length)
                    for t in (done, done + step)
                )
            done, at = done + step, at + step + 1e-9  # past the border that rounding may leave it before


def _bezier(line: Line, steps: int = 24) -> Iterable[Point]:
    """Points of the curve that `_svg` draws."""
    (x1, y1), (x2, y2) = line.start, line.end
    middle = (y1 + y2) / 2
    steps = steps if abs(x2 - x1) > 1 else 1
    for step in range(steps + 1):
        t = step / steps
        first, second, third, last = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        yield x1 * (first + second) + x2 * (third + last), y1 * first + middle * (second + third) + y2 * last


def _quadratic(start: Point, corner: Point, end: Point, steps: int = 6) -> list[Point]:
    """Points of the curve around a corner."""
    found = []
    for step in range(steps + 1):
        t = step / steps
        parts = zip(start, corner, end, strict=True)
        x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in parts)
        found.append((x, y))
    return found


def _scaled(points: Iterable[Point], scale: int) -> list[Point]:
    return [(scale * x, scale * y) for x, y in points]


def _save_png(picture: Picture, path: Path, scale: int = 2) -> None:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (round(picture.width * scale), round(picture.height * scale)), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(11 * scale)
    for shape in picture.shapes:
        if isinstance(shape, Line):
            points = [(x * scale, y * scale) for x, y in _bezier(shape)]
            canvas.line(points, fill=shape.colour, width=2 * scale - 1, joint="curve")
            continue
        if isinstance(shape, Route):
            end, head = _head(shape)
            curves = [_quadratic(*bend) for bend in _bends(shape)]
            track = [shape.points[0], *(point for curve in curves for point in curve), end]
            for piece in _dashes(track) if shape.dashed else [track]:
                canvas.line(_scaled(piece, scale), fill=shape.colour, width=2 * scale - 1, joint="curve")
            canvas.polygon(_scaled(head, scale), fill=shape.colour)
            continue
        if isinstance(shape, Box):
            corners = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            box = tuple(scale * side for side in corners)
            canvas.rounded_rectangle(
                box,
                radius=4 * scale,
                fill=shape.fill,
                outline="#000000" if shape.framed else "#555555",
                width=3 * scale if shape.framed else scale,
            )  # type: ignore[arg-type]
        x, y = shape.at if isinstance(shape, Label) else (shape.x + shape.width / 2, shape.y + shape.height / 2)
        text = shape.text.translate({ord("×"): "x", ord("→"): "->", ord("·"): "-"})  # which its font lacks
        canvas.text((x * scale, y * scale), text, fill="black", font=font, anchor="mm")
    image.save(path)
