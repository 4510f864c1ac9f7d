"""Published cells as text and as points of a space. Importing this loads no torch.

A cell is written as in the papers' tables: `"sep5(0)+sep3(1); avg3(0)+identity(1)"` has two blocks, states 2 and 3; `|`
in place of `+` concatenates the operands. State 0 is the output of the preceding cell, 1 that of the cell before it.
"""

import re
from dataclasses import dataclass

from supernet.blocks.cells.graph import ADD, CONCAT, Block, CellGraph, graph_of, loose_ends, values_of
from supernet.errors import InputError, nearest
from supernet.space import Arch, SearchSpace, Value

_BLOCK = re.compile(r"\s*(\w+)\((-?\d+)\)\s*([+|])\s*(\w+)\((-?\d+)\)\s*")


@dataclass(frozen=True)
class Cells:
    """The cells of a network by the names of their steps: `normal` and `reduce`, or `cell` if one has both roles.

    Raises:
        InputError: a block reads a later state, or there is no output; the message names cell, block and field.
    """

    cells: dict[str, CellGraph]
    source: str = ""

    def __post_init__(self) -> None:
        for name, graph in self.cells.items():
            _check(name, graph)


def _check(name: str, graph: CellGraph) -> None:
    if not graph.blocks:
        raise InputError(f"cell {name!r} has no blocks")
    for number, block in enumerate(graph.blocks):
        for field in ("left", "right"):
            state = getattr(block, field)
            if not 0 <= state < number + 2:
                raise InputError(
                    f"block {number} of cell {name!r}: {field} reads state {state}, but only 0..{number + 1} exist"
                )
    if not graph.outputs:
        raise InputError(f"cell {name!r}: outputs is empty; name at least state {len(graph.blocks) + 1}")
    for state in graph.outputs:
        if not 0 <= state < len(graph.blocks) + 2:
            raise InputError(
                f"cell {name!r}: outputs name state {state}, but there are only 0..{len(graph.blocks) + 1}"
            )


def cell(text: str, outputs: str | None = None) -> CellGraph:
    """Reads a cell from its text.

    Args:
        text: blocks as described in the module.
        outputs: the numbers of the output states; the loose ends if None.

    Raises:
        InputError: a block that cannot be read.
    """
    blocks = []
    for number, part in enumerate(text.split(";")):
        match = _BLOCK.fullmatch(part)
        if match is None:
            raise InputError(f"block {number} is {part.strip()!r}; write it as 'sep3(0)+identity(1)'")
        left_op, left, sign, right_op, right = match.groups()
        blocks.append(Block(int(left), int(right), left_op, right_op, ADD if sign == "+" else CONCAT))
    if outputs is None:
        return CellGraph(tuple(blocks), loose_ends(blocks))
    return CellGraph(tuple(blocks), tuple(sorted({int(state) for state in outputs.split()})))


def cells_of(arch: Arch, space: SearchSpace) -> Cells:
    """Returns the cells that an architecture of a cell space describes."""
    names = dict.fromkeys(choice.name.partition(".")[0] for choice in space.choices)
    graphs = {name: graph_of(arch.sub(name)) for name in names if f"{name}.block0.left" in arch}
    if not graphs:
        raise InputError(f"the architecture has no cells; space {space.name!r} is not a space of cells")
    return Cells(graphs)


def arch_of(cells: Cells, space: SearchSpace) -> Arch:
    """Returns the architecture of a space that describes these cells.

    Raises:
        InputError: the space does not contain them; the message names cell, block and field, and the alternatives.
    """
    prefixes = {choice.name.partition(".")[0] for choice in space.choices}
    if set(cells.cells) != prefixes:
        raise InputError(
            f"the genotype has the cells {sorted(cells.cells)}, space {space.name!r} has {sorted(prefixes)}"
        )
    values: dict[str, Value] = {}
    for name, graph in cells.cells.items():
        values |= _values(name, graph, space)
    return space.canonical(values)


def _values(name: str, graph: CellGraph, space: SearchSpace) -> dict[str, Value]:
    """Returns the decisions of one cell under their names in the space."""
    choices = {c.name.removeprefix(f"{name}."): c for c in space.choices if c.name.startswith(f"{name}.")}
    lost = set(loose_ends(graph.blocks)) - set(graph.outputs)
    if lost:
        raise InputError(
            f"cell {name!r}: outputs leave out state {min(lost)}, which no block reads; space {space.name!r} outputs "
            "every such state"
        )
    values = values_of(graph)
    for key, value in values.items():
        number, _, field = key.removeprefix("block").partition(".")
        where = f"block {number} of cell {name!r}: {field}" if field else f"cell {name!r}: {key}"
        choice = choices.get(key)
        if choice is not None and value not in choice.options:
            raise InputError(f"{where} is {value!r} in space {space.name!r}: {nearest(value, choice.options)}")
        missing = choice is None and (field in ("left", CONCAT) or value in (CONCAT, "chosen"))
        if missing and field == "left":
            count = sum(key.endswith(".left") for key in choices)
            raise InputError(f"block {number} of cell {name!r}: cells of space {space.name!r} have {count} blocks")
        if missing:
            raise InputError(f"{where} is {value!r}, for which space {space.name!r} has no choice")
    known = sum(key.endswith(".left") for key in choices)
    if "blocks" not in choices and known != len(graph.blocks):
        raise InputError(f"cell {name!r} has {len(graph.blocks)} blocks, cells of space {space.name!r} have {known}")
    return {f"{name}.{key}": value for key, value in values.items() if key in choices}


def enas_cell(tokens: str) -> CellGraph:
    """Reads a cell from the tokens of ENAS, four per block: state, operation, state, operation.

    The output consists of the loose ends. ENAS numbers the two inputs in the opposite order, the older one 0.
    """
    ops = ("sep3", "sep5", "avg3", "max3", "identity")
    numbers = [int(token) for token in tokens.split()]
    if len(numbers) % 4 or not numbers:
        raise InputError(f"ENAS writes four numbers per block, not {len(numbers)} in all")
    blocks = []
    for number in range(len(numbers) // 4):
        left, left_op, right, right_op = numbers[4 * number : 4 * number + 4]
        for field, op in (("left_op", left_op), ("right_op", right_op)):
            if not 0 <= op < len(ops):
                raise InputError(f"block {number}: {field} is {op}, but ENAS has the operations 0..{len(ops) - 1}")
        turned = [1 - state if state < 2 else state for state in (left, right)]
        blocks.append(Block(turned[0], turned[1], ops[left_op], ops[right_op]))
    return CellGraph(tuple(blocks), loose_ends(blocks))


def _pair(source: str, normal: CellGraph, reduce: CellGraph) -> Cells:
    return Cells({"normal": normal, "reduce": reduce}, source)


CELLS: dict[str, Cells] = {
    "nasnet-a": _pair(
        "Zoph et al., 2018; TensorFlow code",
        cell(
            "sep5(0)+sep3(1); sep5(1)+sep3(1); avg3(0)+identity(1); avg3(1)+avg3(1); sep3(0)+identity(0)", "1 2 3 4 5 6"
        ),
        cell("sep5(0)+sep7(1); max3(0)+sep7(1); avg3(0)+sep5(1); identity(3)+avg3(2); sep3(2)+max3(0)", "3 4 5 6"),
    ),
    "pnasnet-5": Cells(
        {
            "cell": cell(
                "sep5(1)+max3(1); sep7(0)+max3(0); sep5(0)+sep3(0); sep3(4)+max3(0); sep3(1)+identity(0)", "2 3 4 5 6"
            )
        },
        "Liu et al., 2018; TensorFlow code",
    ),
    "amoebanet-a": _pair(
        "Real et al., 2019; TPU code",
        cell("avg3(0)+max3(0); sep3(1)+identity(1); identity(0)+avg3(1); sep3(0)+sep5(2); avg3(5)+sep3(0)", "1 3 4 6"),
        cell("sep3(1)+avg3(0); max3(0)+sep7(2); max3(1)+max3(0); sep3(4)+neck1x7_7x1(0); avg3(1)+sep7(0)", "2 3 4 5 6"),
    ),
    "amoebanet-b": _pair(
        "Real et al., 2019; TPU code, whose dilated separable convolution runs without dilation",
        cell(
            "conv1(1)+max3(1); identity(1)+sep3(0); conv1(1)+sep3(0); conv1(2)+identity(2); avg3(1)+conv1(5)", "0 3 4 6"
        ),
        cell("max2(0)+max3(0); identity(2)+neck3(1); sep5(2)+max3(2); identity(3)+sep3(1); avg3(4)+conv1(3)", "5 6"),
    ),
    "amoebanet-c": _pair(
        "Real et al., 2019; TPU code",
        cell(
            "avg3(0)+sep3(0); identity(0)+sep3(0); avg3(2)+sep3(1); identity(0)+sep3(1); avg3(3)+sep3(0)", "1 2 4 5 6"
        ),
        cell("max3(0)+max3(0); sep7(2)+sep3(0); sep7(0)+max3(1); sep5(4)+sep5(4); max3(1)+sep3(1)", "0 2 3 4 5 6"),
    ),
    "amoebanet-d": _pair(
        "Real et al., 2019; TPU code",
        cell(
            "conv1(1)+max3(1); identity(1)+neck1x7_7x1(0); conv1(0)+neck1x7_7x1(0); max3(2)+identity(2); "
            "avg3(1)+conv1(5)",
            "0 3 4 6",
        ),
        cell(
            "max2(0)+max3(0); identity(2)+neck3(1); neck1x7_7x1(2)+max3(2); identity(3)+max2(1); avg3(2)+conv1(3)",
            "4 5 6",
        ),
    ),
    "enas-micro": _pair(
        "Pham et al., 2018; released code",
        enas_cell("0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1"),
        enas_cell("1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1"),
    ),
}
"""The published cells."""
