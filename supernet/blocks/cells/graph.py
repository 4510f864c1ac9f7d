"""Cells of blocks as graphs: their decisions, and one representative per graph. It loads no torch.

State 0 is the output of the preceding cell, state 1 that of the cell before it; block b computes state 2 + b from two
earlier states, with one operation on each. A state that no block reads is a loose end (ENAS, NASNet). The output of the
cell is the concatenation of its loose ends, including unread inputs, so every cell uses both inputs and every part of a
network contributes to its output.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value

ADD, CONCAT = "add", "concat"
LOOSE, CHOSEN = "loose", "chosen"


class Block(NamedTuple):
    """One block: `combine` joins `left_op` of state `left` and `right_op` of state `right`."""

    left: int
    right: int
    left_op: str
    right_op: str
    combine: str = ADD


class CellGraph(NamedTuple):
    """The blocks of a cell in order, and the states that are its output, ascending."""

    blocks: tuple[Block, ...]
    outputs: tuple[int, ...]

    @property
    def operands(self) -> list[tuple[int, int, str]]:
        """`(block, state, operation)` of every block's left, then right operand."""
        return [
            (number, state, op)
            for number, block in enumerate(self.blocks)
            for state, op in ((block.left, block.left_op), (block.right, block.right_op))
        ]


def loose_ends(blocks: Sequence[Block]) -> tuple[int, ...]:
    """Returns the states that no block reads, ascending."""
    read = {state for block in blocks for state in (block.left, block.right)}
    return tuple(state for state in range(len(blocks) + 2) if state not in read)


def cell_space(
    ops: Sequence[str],
    *,
    blocks: int = 5,
    fewer: bool = False,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
) -> SearchSpace:
    """Returns the space of one cell.

    In order: `blocks` (with `fewer`); per block `block{b}.left` and `.right` (a state's number), `.left_op`,
    `.right_op`, and `.combine` where there are several combiners; with `chosen`, `outputs` and `output{s}` for every
    state but the last.

    Args:
        ops: names of the operations.
        blocks: their number, or the largest one.
        fewer: whether the number of blocks is a decision too, from 1 on.
        combiners: `"add"`, or `"add"` and `"concat"`; with `"add"` alone there is no decision.
        chosen: whether `outputs` is a decision. If it is `"chosen"`, the output also contains the states for which
            `output{s}` is true, as in most published cells; if it is `"loose"`, only the loose ends.

    Raises:
        InputError: there is no block or no operation, or a combiner is unknown.
    """
    if not combiners or set(combiners) - {ADD, CONCAT}:
        raise InputError(f"combiners must be {ADD!r}, or {ADD!r} and {CONCAT!r}, not {tuple(combiners)!r}")
    if tuple(combiners) == (CONCAT,):
        raise InputError("a space of concatenation alone is not supported; let it choose between 'add' and 'concat'")
    if blocks < 1 or not ops:
        raise InputError(f"a cell has at least one block and one operation, not blocks={blocks}, ops={tuple(ops)!r}")
    choices = [Choice("blocks", range(1, blocks + 1), ordered=True)] if fewer else []
    for number in range(blocks):
        when = ("blocks", tuple(range(number + 1, blocks + 1))) if fewer and number else None
        name = f"block{number}"
        choices += [Choice(f"{name}.{side}", range(number + 2), when) for side in ("left", "right")]
        choices += [Choice(f"{name}.{side}_op", tuple(ops), when) for side in ("left", "right")]
        if len(combiners) > 1:
            choices.append(Choice(f"{name}.combine", tuple(combiners), when))
    if chosen:
        choices.append(Choice("outputs", (LOOSE, CHOSEN)))
        choices += [Choice(f"output{s}", (False, True), ("outputs", (CHOSEN,))) for s in range(blocks + 1)]
    return SearchSpace("cell", choices, one_per_graph)


@functools.lru_cache(maxsize=4096)
def graph_of(arch: Arch) -> CellGraph:
    """Returns the graph that the decisions of `cell_space` describe."""
    listed = sum(name.endswith(".left") for name in arch)
    blocks = tuple(
        Block(
            int(arch[f"block{b}.left"]),
            int(arch[f"block{b}.right"]),
            str(arch[f"block{b}.left_op"]),
            str(arch[f"block{b}.right_op"]),
            str(arch.get(f"block{b}.combine", ADD)),
        )
        for b in range(int(arch.get("blocks", listed)))
    )
    loose = loose_ends(blocks)
    if arch.get("outputs", LOOSE) == LOOSE:
        return CellGraph(blocks, loose)
    return CellGraph(blocks, tuple(s for s in range(len(blocks) + 2) if s in loose or arch[f"output{s}"]))


def values_of(graph: CellGraph) -> dict[str, Value]:
    """Returns the decisions of all variants of `cell_space` that describe a graph; outputs include its loose ends."""
    values: dict[str, Value] = {"blocks": len(graph.blocks)}
    for number, block in enumerate(graph.blocks):
        values |= {f"block{number}.{field}": value for field, value in block._asdict().items()}
    extra = set(graph.outputs) - set(loose_ends(graph.blocks))
    values["outputs"] = CHOSEN if extra else LOOSE
    return values | {f"output{state}": state in extra for state in range(len(graph.blocks) + 1)}


def one_per_graph(arch: Arch) -> dict[str, Value]:
    """Returns the representative of all cells of one graph: blocks in the smallest order, operands sorted.

    Operands of an addition commute. So do those of a concatenation, since the convolution behind it has weights for
    each. Blocks may have any order in which each reads earlier ones. Equal graphs are equal networks, although they may
    use different shared weights. An output that is both chosen and loose is not listed as chosen.
    """
    values = values_of(canonical_graph(graph_of(arch)))
    return {name: values.get(name, value) for name, value in arch.items()}


def canonical_graph(graph: CellGraph) -> CellGraph:
    """Returns the smallest description of a graph, compared as a tuple of blocks, then outputs.

    The next block is always the one with the smallest description among those whose operands already exist; if several
    have the same description, each is tried.
    """
    descriptions: list[CellGraph] = []

    def place(labels: dict[int, int], blocks: tuple[Block, ...]) -> None:
        waiting = [number for number in range(len(graph.blocks)) if number + 2 not in labels]
        if not waiting:
            descriptions.append(CellGraph(blocks, tuple(sorted(labels[state] for state in graph.outputs))))
            return
        ready = {n: written for n in waiting if (written := _relabelled(graph.blocks[n], labels)) is not None}
        smallest = min(ready.values())
        for number, written in ready.items():
            if written == smallest:
                place({**labels, number + 2: len(blocks) + 2}, (*blocks, smallest))

    place({0: 0, 1: 1}, ())
    return min(descriptions)


def _relabelled(block: Block, labels: dict[int, int]) -> Block | None:
    """Returns a block with renumbered, sorted operands; None if one has no new number yet."""
    if block.left not in labels or block.right not in labels:
        return None
    (left, left_op), (right, right_op) = sorted(
        ((labels[block.left], block.left_op), (labels[block.right], block.right_op))
    )
    return Block(left, right, left_op, right_op, block.combine)
