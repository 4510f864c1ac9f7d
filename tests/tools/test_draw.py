"""Pictures: every operand of a cell has its line, no boxes overlap, and wrong input is reported in one line."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from helpers.drawings import boxes, check
from helpers.scripts import Call, one_line
from supernet import Arch
from supernet.blocks.cells.graph import cell_space, graph_of
from supernet.blocks.cells.ops import OPS
from supernet.drawing import COLOURS, Box, Label, Line, Picture, draw_cell, draw_cells, draw_chain, label_of
from supernet.errors import InputError
from supernet.spaces import GENOTYPES, NETWORKS, builder
from supernet.spaces.published_cells import CELLS, cell
from supernet_tools.pipeline.runs import open_run


def source_of(picture: Picture, box: Box) -> str:
    """Follows the lines below a box, through lanes, and returns the text of the box where they start."""
    at = (box.x + box.width / 2, box.y + box.height)
    lines = {shape.end: shape for shape in picture.shapes if isinstance(shape, Line)}
    while True:
        at = lines[at].start
        for other in boxes(picture):
            if at == (other.x + other.width / 2, other.y):
                return other.text


def test_every_operand_comes_from_its_state() -> None:
    """The lines are followed down from each operation, in published and in random cells."""
    space, rng = cell_space(OPS, combiners=("add", "concat")), random.Random(0)
    graphs = [graph for cells in CELLS.values() for graph in cells.cells.values()]
    graphs += [graph_of(space.sample(rng)) for _ in range(20)]
    for graph in graphs:
        picture = draw_cell(graph)
        check(picture)
        by_text = {box.text.partition(":")[0]: box for box in boxes(picture) if ":" in box.text}
        assert sorted(by_text) == [str(state) for state in range(7)]
        for number, block in enumerate(graph.blocks):
            join = by_text[str(number + 2)]
            assert join.text.endswith(block.combine)
            below = [
                box
                for box in boxes(picture)
                if join.y < box.y < join.y + 80
                and abs(box.x + box.width / 2 - join.x - join.width / 2) < join.width
                and box is not join
                and ":" not in box.text
            ]
            seen = Counter((box.text, source_of(picture, box).partition(":")[0]) for box in below)
            assert seen == Counter(
                (label_of(op), str(s)) for op, s in ((block.left_op, block.left), (block.right_op, block.right))
            )
        concat = next(box for box in boxes(picture) if box.text.startswith("concat"))
        ends = [s for s in picture.shapes if isinstance(s, Line) and s.end[1] == concat.y + concat.height]
        assert len(ends) == len(graph.outputs)
        assert {line.colour for line in ends} == {COLOURS[state] for state in graph.outputs}


def test_names_of_operations() -> None:
    names = [label_of(op) for op in ("sep5", "max3", "identity", "conv1x7_7x1", "neckdil3_6", "dilsep3", "conv1")]
    assert names == [
        "sep 5×5",
        "max 3×3",
        "identity",
        "conv 1×7 7×1",
        "neckdil 3×3 rate 6",
        "dil sep 3×3",
        "conv 1×1",
    ]
    assert len({label_of(op) for op in OPS}) == len(OPS)


def test_cells_stand_side_by_side() -> None:
    cells = CELLS["amoebanet-a"].cells
    picture = draw_cells(cells, title="A")
    check(picture)
    labels = [shape.text for shape in picture.shapes if isinstance(shape, Label)]
    assert labels == ["A · normal", "A · reduce"]
    assert picture.width == sum(draw_cell(graph).width for graph in cells.values())


def test_a_chain_lists_its_steps() -> None:
    picture = draw_chain(Arch({f"stage.block{i}.{n}": v for i in range(14) for n, v in (("op", "k3"), ("scale", 0.5))}))
    check(picture)
    assert [box.text for box in boxes(picture)][13] == "stage.block13: k3, scale 0.5"
    assert len({box.x for box in boxes(picture)}) == 2
    with pytest.raises(InputError, match="has no decisions"):
        draw_chain(Arch())


def test_long_titles_are_not_cut_off() -> None:
    title = "retinanet-nasfpn-shufflenet-small 080c9bc2deb2e898, found by the tenth search of a long series"
    check(draw_chain(Arch({"stage.block1.op": "k3"}), title=title))
    check(draw_cell(cell("identity(0)+identity(1)"), title=title))


def test_files(tmp_path: Path) -> None:
    picture = draw_cell(cell("sep5(0)+max3(1); identity(2)|avg3(0)"), title="a < b")
    picture.save(tmp_path / "cell.svg")
    root = ElementTree.parse(tmp_path / "cell.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "sep 5×5", "2: add", "3: concat"} <= set(texts)
    with pytest.raises(InputError, match=r"pictures are \.svg, not 'cell\.png'"):
        picture.save(tmp_path / "cell.png")


def test_a_link_in_the_place_of_a_picture_is_replaced(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A received folder may hold links of the default name, or of the name that is given."""
    work, victim = tmp_path / "work", tmp_path / "victim"
    work.mkdir()
    monkeypatch.chdir(work)
    for out in ((), ("--out", "mine.svg")):
        victim.write_text("precious")
        name = out[1] if out else "pnasnet-5-mobile.svg"
        (work / name).symlink_to(victim)
        code, _, err = call("draw", "pnasnet-5-mobile", *out)
        assert code == 0, err
        assert victim.read_text() == "precious"
        assert not (work / name).is_symlink()
        assert (work / name).read_text().startswith("<svg")
    (work / "nowhere").symlink_to(tmp_path / "missing")
    one_line(call("draw", "pnasnet-5-mobile", "--out", "nowhere/mine.svg"), "there is no folder 'nowhere'")
    assert not (tmp_path / "missing").exists()


def test_every_published_network_is_drawn(call: Call, tmp_path: Path) -> None:
    for name in ("nasnet-a-large", "pnasnet-5-mobile", "enas-micro-cifar", "detnas-coco-fpn-300m", "spos-channels-a"):
        assert name in {**NETWORKS, **GENOTYPES}
        assert call("draw", name, "--out", tmp_path / f"{name}.svg")[0] == 0
        assert name in (tmp_path / f"{name}.svg").read_text()


def test_an_architecture_is_drawn(call: Call, tmp_path: Path) -> None:
    with torch.device("meta"):
        space = builder("pnasnet-small")(phase="standalone").space
    arch = space.sample(random.Random(0))
    (tmp_path / "arch.json").write_text(arch.to_json())
    assert call("draw", "pnasnet-small", "--arch", tmp_path / "arch.json", "--out", tmp_path / "a.svg")[0] == 0
    assert arch.key in (tmp_path / "a.svg").read_text()
    exported = {"format": 1, "space": "pnasnet-small", "key": arch.key, "values": dict(arch)}
    (tmp_path / "arch.json").write_text(json.dumps(exported))
    assert call("draw", "pnasnet-small", "--arch", tmp_path / "arch.json", "--out", tmp_path / "b.svg")[0] == 0
    assert (tmp_path / "b.svg").read_text() == (tmp_path / "a.svg").read_text()


def test_an_architecture_may_be_longer_than_a_file_name(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    arch = open_run(tiny_run).space.sample(random.Random(0))
    text = json.dumps(dict(arch), indent=200)
    assert len(text) > 255
    code, _, err = call("draw", tiny_run, "--arch", text, "--out", tmp_path / "long.svg")
    assert code == 0, err
    assert arch.key in (tmp_path / "long.svg").read_text()
    one_line(call("draw", tiny_run, "--arch", "x" * 300), "the architecture 'xxx", "cannot be read")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nasnet-a-larg",), r"no published network 'nasnet-a-larg'.*did you mean 'nasnet-a-large'"),
        (("nasnet-small", "--arch", json.dumps({"nothing": 1})), r"no choice 'nothing'"),
        (("nasnet-small", "--arch", "missing.json"), r"'missing\.json' is neither the JSON of"),
        (("nasnet-small", "--arch", __file__), r"test_draw\.py' cannot be read"),
        (("nasnet-a-large", "--out", "no/such/a.svg"), r"no folder 'no/such'"),
    ],
)
def test_wrong_input_ends_in_one_line(call: Call, args: tuple[str, ...], message: str) -> None:
    result = call("draw", *args)
    one_line(result)
    assert re.search(message, result[2])
