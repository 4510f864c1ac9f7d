"""Ladders: how a space of cells says which decisions each further block adds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value

Kind = Literal["mlp", "lstm"]
Block = tuple[int, ...]
"""The option number of each decision of a block, among the options of the largest block."""


class _Cell(NamedTuple):
    key: str
    arch: Arch  # a normal form
    blocks: tuple[Block, ...]
    predicted: float | None = None


# -- ladders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ladder:
    """The number of blocks of a cell as a choice, and the decisions of each block.

    Attributes:
        choice: the choice of the number of blocks.
        blocks: the decisions of each block; those with the same meaning have the same position.
        held: the other decisions that have more than one option, with the option they are fixed at, the first.
    """

    choice: Choice
    blocks: tuple[tuple[Choice, ...], ...]
    held: Mapping[str, Value]

    @property
    def values(self) -> list[tuple[Value, ...]]:
        """Per decision, the options of the block that has the most of them."""
        return [max((tuple(c.options) for c in column), key=len) for column in zip(*self.blocks, strict=True)]

    @property
    def decisions(self) -> list[tuple[int, int]]:
        """Per decision, the number of its embedding table and of its options; equal options share a table."""
        tables = list(dict.fromkeys(self.values))
        return [(tables.index(values), len(values)) for values in self.values]

    def counts(self, block: int) -> list[int]:
        """The number of options of each decision of a block."""
        return [len(choice.options) for choice in self.blocks[block]]

    def arch(self, space: SearchSpace, blocks: Sequence[Block]) -> Arch:
        """The architecture of the cell with these blocks."""
        values: dict[str, Value] = {self.choice.name: self.choice.options[len(blocks) - 1], **self.held}
        for choices, numbers in zip(self.blocks, blocks, strict=False):
            values |= {choice.name: choice.options[number] for choice, number in zip(choices, numbers, strict=True)}
        return space.canonical({choice.name: choice.options[0] for choice in space.choices} | values)

    def read(self, arch: Arch) -> tuple[Block, ...]:
        """The blocks of an architecture; the inverse of `arch`."""
        size = 1 + self.choice.index(arch[self.choice.name])
        return tuple(tuple(choice.index(arch[choice.name]) for choice in block) for block in self.blocks[:size])


def find_ladder(space: SearchSpace, name: str | None = None) -> Ladder:
    """Finds the ladder of a space.

    Args:
        space: the space to look at.
        name: the name of the choice of the number of blocks; None if there is only one.

    Raises:
        InputError: there is none, or more than one and no name.
    """
    ladders = {choice.name: ladder for choice in space.choices if (ladder := _ladder(space, choice)) is not None}
    if name is not None:
        space[name]  # raises and names the nearest choice if there is none
    if not ladders or (name is not None and name not in ladders):
        missing = "has no ladder" if name is None else f"has no ladder {name!r}"
        raise InputError(
            f"space {space.name!r} {missing} to search progressively: an ordered choice of the number of blocks from "
            "one on, on which the same decisions of every later block depend; take a pnasnet space, or another searcher"
        )
    if name is None and len(ladders) > 1:
        raise InputError(f"space {space.name!r} has the ladders {sorted(ladders)}; name one with ladder=…")
    return ladders[name or next(iter(ladders))]


def _ladder(space: SearchSpace, choice: Choice) -> Ladder | None:
    """The ladder whose number of blocks is this choice, or None."""
    options = tuple(choice.options)
    if not choice.ordered or choice.when is not None:
        return None
    later: list[list[Choice]] = [[] for _ in options]  # by the first option at which they are active
    for other in space.choices:
        if other.when is not None and other.when[0] == choice.name:
            starts = [at for at in range(1, len(options)) if set(other.when[1]) == set(options[at:])]
            if not starts:
                return None
            later[starts[0]].append(other)
    if len(options) < 2 or not all(later[1:]):
        return None
    meanings = [_meaning(decision) for decision in later[1]]
    candidates: dict[str, list[Choice]] = {}  # for the first block, by prefix
    prefix = choice.name.rpartition(".")[0]
    for other in space.choices:
        within = not prefix or other.name.startswith(f"{prefix}.")
        if within and other.when is None and _meaning(other) in meanings and other.name != choice.name:
            candidates.setdefault(other.name.rpartition(".")[0], []).append(other)
    first = [group for group in candidates.values() if [_meaning(decision) for decision in group] == meanings]
    blocks = [*first, *later[1:]]
    if len(first) != 1 or any([_meaning(decision) for decision in block] != meanings for block in blocks):
        return None
    for column in zip(*blocks, strict=True):
        longest = max((tuple(decision.options) for decision in column), key=len)
        if any(longest[: len(decision.options)] != tuple(decision.options) for decision in column):
            return None
    names = {choice.name, *(decision.name for block in blocks for decision in block)}
    others = [other for other in space.choices if other.name not in names and len(other.options) > 1]
    held = {other.name: other.options[0] for other in others}
    return Ladder(choice, tuple(map(tuple, blocks)), held)


def _meaning(choice: Choice) -> str:
    """The last part of a choice's name: "left" of "cell.block0.left"."""
    return choice.name.rpartition(".")[2]
