"""Pictures of pyramids have a row per level, a box per cell and arrows for what it reads, which cross no box."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from detection.nasfpn.drawing import draw_pyramid, names_of, pyramid_of
from detection.nasfpn.space import ATTENTION, SUM, WIRINGS, Wiring, pyramid_space, values_of, wiring_of
from helpers.drawings import boxes, check
from helpers.scripts import Call, one_line
from supernet import Arch
from supernet.drawing import INPUT, JOIN, OPERATION, Box, Picture, Route
from supernet.errors import InputError
from supernet.space import compose
from supernet.spaces import GENOTYPES, builder

SVG = "{http://www.w3.org/2000/svg}"
LEGEND = 4


def wirings() -> list[Wiring]:
    rng = random.Random(0)
    spaces = [
        pyramid_space(ordered=True),
        pyramid_space(levels=2, finest=5, cells=2),
        pyramid_space(levels=4, finest=2, cells=11),
    ]
    return [*WIRINGS.values(), *(wiring_of(space.sample(rng)) for space in spaces for _ in range(5))]


def expected(wiring: Wiring) -> Counter[tuple[str, str, bool]]:
    """Source, cell, and whether the map is a leftover, for everything that cells read, from the wiring alone."""
    names = [f"P{wiring.finest + level}" for level in range(wiring.levels)]
    names += [f"c{number + 1}" for number in range(len(wiring.cells))]
    arrows: Counter[tuple[str, str, bool]] = Counter()
    for number, cell in enumerate(wiring.cells):
        reads = [(cell.first, False), (cell.second, False), *((state, True) for state in cell.leftovers)]
        arrows.update((names[state], f"c{number + 1}", leftover) for state, leftover in reads)
    return arrows


def routes(picture: Picture) -> list[Route]:
    return [shape for shape in picture.shapes if isinstance(shape, Route) and shape.name]


def by_name(picture: Picture) -> dict[str, Box]:
    """Boxes of maps by name, without the legend."""
    return {box.text.partition(" ")[0]: box for box in boxes(picture)[:-LEGEND]}


def crosses(route: Route, box: Box) -> bool:
    """Whether a segment of the route runs through the inside of a box."""
    for (x1, y1), (x2, y2) in itertools.pairwise(route.points):
        inside = min(x1, x2) < box.x + box.width - 1e-6 and max(x1, x2) > box.x + 1e-6
        if inside and min(y1, y2) < box.y + box.height - 1e-6 and max(y1, y2) > box.y + 1e-6:
            return True
    return False


def test_arrows_lead_from_box_to_box_as_the_wiring_says() -> None:
    for wiring in wirings():
        picture = draw_pyramid(wiring, title="a pyramid")
        check(picture)
        place, arrows = by_name(picture), Counter[tuple[str, str, bool]]()
        for route in routes(picture):
            source, cell = route.name.split(" → ")
            arrows[source, cell, route.dashed] += 1
            start, end = place[source], place[cell]
            assert route.points[0] == (start.x + start.width, start.y + start.height / 2)
            assert route.points[-1][0] == end.x
            assert end.y < route.points[-1][1] < end.y + end.height
            assert not any(crosses(route, box) for box in boxes(picture))
            straight = [x1 == x2 or y1 == y2 for (x1, y1), (x2, y2) in itertools.pairwise(route.points)]
            assert all(straight)
        assert arrows == expected(wiring)
        ends = [route.points[-1] for route in routes(picture)]
        assert len(set(ends)) == len(ends), "two arrows arrive at one point"


def test_levels_are_rows_and_cells_are_columns() -> None:
    for wiring in wirings():
        place = by_name(draw_pyramid(wiring))
        names = names_of(wiring)
        assert list(place) == names
        levels = [*range(wiring.levels), *(cell.level for cell in wiring.cells)]
        rows = {
            level: {place[name].y for name, at in zip(names, levels, strict=True) if at == level} for level in levels
        }
        assert all(len(row) == 1 for row in rows.values())
        heights = [rows[level].pop() for level in range(wiring.levels)]
        assert heights == sorted(heights, reverse=True), "the coarsest level is on top"
        columns = [place[name].x for name in names]
        assert len(set(columns[: wiring.levels])) == 1
        assert columns[wiring.levels :] == sorted(set(columns[wiring.levels :]))
        for number, cell in enumerate(wiring.cells):
            box = place[f"c{number + 1}"]
            assert box.fill == {SUM: JOIN, ATTENTION: OPERATION}[cell.op]
            assert box.framed == (number >= wiring.free)
            assert ("gp(" in box.text) == (cell.op == ATTENTION)
        assert all(place[name].fill == INPUT for name in names[: wiring.levels])


def test_the_published_pyramid_reads_as_in_the_paper() -> None:
    texts = [box.text for box in boxes(draw_pyramid(WIRINGS["nasfpn-7"]))[5:-LEGEND]]
    assert texts == [
        "c1 = gp(P6, P4)",
        "c2 = P4 + c1",
        "c3 = P3 + c2",
        "c4 = c2 + c3",
        "c5 = gp(c4, c3) + P5",
        "c6 = gp(c5, c2) + P7",
        "c7 = gp(c6, c5)",
    ]


def test_files_contain_the_whole_picture(tmp_path: Path) -> None:
    wiring = WIRINGS["nasfpn-7"]
    picture = draw_pyramid(wiring, title="nasfpn-7")
    picture.save(tmp_path / "pyramid.svg")
    root = ElementTree.parse(tmp_path / "pyramid.svg").getroot()
    arrows: Counter[tuple[str, str, bool]] = Counter()
    for group in root.iter(f"{SVG}g"):
        title, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        assert title is not None
        assert path is not None
        if title.text:
            source, cell = title.text.split(" → ")
            arrows[source, cell, "stroke-dasharray" in path.attrib] += 1
    assert arrows == expected(wiring)
    texts = Counter((node.text or "").partition(" ")[0] for node in root.iter(f"{SVG}text"))
    assert all(texts[name] == 1 for name in names_of(wiring))
    framed = [rect for rect in root.iter(f"{SVG}rect") if rect.get("stroke-width") == "2.5"]
    assert len(framed) == wiring.levels + 1  # one is in the legend


def test_pictures_side_by_side_keep_their_arrows() -> None:
    one = draw_pyramid(WIRINGS["nasfpn-7"])
    both = one.beside(one)
    check(both)
    first, second = routes(both)[:16], routes(both)[16:]
    assert [route.name for route in first] == [route.name for route in second]
    assert second[0].points[0] == (first[0].points[0][0] + one.width, first[0].points[0][1])
    assert [box.framed for box in boxes(both)] == 2 * [box.framed for box in boxes(one)]


def test_the_pyramid_of_any_architecture() -> None:
    wiring, rng = WIRINGS["nasfpn-7"], random.Random(1)
    values = values_of(wiring)
    assert pyramid_of(Arch(values)) == pyramid_of(Arch({f"neck.{name}": v for name, v in values.items()})) == wiring
    for ordered in 3 * [False, True]:
        space = pyramid_space(levels=3, finest=4, cells=4, ordered=ordered)
        arch = compose("joint", {"neck": space}).sample(rng)
        assert pyramid_of(arch) == wiring_of(arch.sub("neck"))
    for lacking in ("levels", "cell1.inputs", "cell3.op"):
        with pytest.raises(InputError, match=r"the architecture has no pyramid|lacks 'cell3\.op'|no choice 'cell1"):
            pyramid_of(Arch({name: value for name, value in values.items() if name != lacking}))


# -- the script -------------------------------------------------------------------------------------------------------


def named(path: Path) -> int:
    """Arrows of a pyramid in a file."""
    return len(re.findall(r"<title>[Pc]\d+ → c\d+</title>", path.read_text()))


def test_pyramids_and_backbones_of_detectors_are_drawn(call: Call, tmp_path: Path) -> None:
    genotype = GENOTYPES["detnas-coco-retinanet-300m"]
    backbone = builder(genotype.space)(phase="standalone").space.from_indices(genotype.indices)
    body = {f"backbone.{name}": value for name, value in backbone.items()}
    alone = values_of(WIRINGS["nasfpn-7"])
    neck = {f"neck.{name}": value for name, value in alone.items()}
    out = tmp_path / "a.svg"
    for name, arch, arrows, steps in (
        ("nasfpn-7", None, 16, 0),
        ("nasfpn-r50-7at384", None, 16, 0),
        ("nasfpn", alone, 16, 0),
        ("retinanet-nasfpn-resnet-50", neck, 16, 0),
        ("retinanet-nasfpn-detnas-300m", {**body, **neck}, 16, 20),
        ("detnas-300m", {**body, **neck}, 16, 20),
        ("retinanet-detnas-300m", body, 0, 20),
        ("faster-rcnn-fpn-detnas-300m", body, 0, 20),
        ("detnas-300m", dict(backbone), 0, 20),
    ):
        code, _, text = call("draw", name, *(() if arch is None else ("--arch", json.dumps(arch))), "--out", out)
        assert code == 0, text
        assert named(out) == arrows, name
        assert len(re.findall(r"stage\d\.block\d+: ", out.read_text())) == steps, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nasfpn-8",), r"no published network 'nasfpn-8'.*did you mean 'nasfpn-7'"),
        (("detnas-300m", "--arch", '{"cell1.inputs": "P3+P4"}'), r"the architecture has no pyramid"),
        (
            ("detnas-300m", "--arch", json.dumps(values_of(WIRINGS["nasfpn-7"]))),
            r"pyramid alone, not of 'detnas-300m'; give the name 'nasfpn'",
        ),
        (
            ("nasfpn", "--arch", json.dumps({**values_of(WIRINGS["nasfpn-7"]), "cell2.op": "max"})),
            r"'max' is not an option",
        ),
    ],
)
def test_wrong_pyramids_end_in_one_line(call: Call, args: tuple[str, ...], message: str) -> None:
    result = call("draw", *args)
    one_line(result)
    assert re.search(message, result[2]), result
