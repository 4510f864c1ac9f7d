"""Cells that grow block by block: the choices of each level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value

Kind = Literal["mlp", "lstm"]
Block = tuple[int, ...]
"""Per decision the number of its option among those of the largest block."""


class _Cell(NamedTuple):
    key: str
    arch: Arch  # a normal form
    blocks: tuple[Block, ...]
    predicted: float | None = None


# -- ladders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ladder:
    """Where a space says how many blocks a cell has, and what each decides.

    Attributes:
        choice: of the number of blocks.
        blocks: per block its decisions, those of one meaning at the same place.
        held: the other decisions with more than one option, and the first of these.
    """

    choice: Choice
    blocks: tuple[tuple[Choice, ...], ...]
    held: Mapping[str, Value]

    @property
    def values(self) -> list[tuple[Value, ...]]:
        """Per decision all options that any block has, those of the longest."""
        return [max((tuple(c.options) for c in column), key=len) for column in zip(*self.blocks, strict=True)]

    @property
    def decisions(self) -> list[tuple[int, int]]:
        """Per decision the number of its table, shared by those with the same options, and their count."""
        tables = list(dict.fromkeys(self.values))
        return [(tables.index(values), len(values)) for values in self.values]

    def counts(self, block: int) -> list[int]:
        """How many options each decision of a block has."""
        return [len(choice.options) for choice in self.blocks[block]]

    def arch(self, space: SearchSpace, blocks: Sequence[Block]) -> Arch:
        """The cell with these blocks."""
        values: dict[str, Value] = {self.choice.name: self.choice.options[len(blocks) - 1], **self.held}
        for choices, numbers in zip(self.blocks, blocks, strict=False):
            values |= {choice.name: choice.options[number] for choice, number in zip(choices, numbers, strict=True)}
        return space.canonical({choice.name: choice.options[0] for choice in space.choices} | values)

    def read(self, arch: Arch) -> tuple[Block, ...]:
        """The inverse of `arch`."""
        size = 1 + self.choice.index(arch[self.choice.name])
        return tuple(tuple(choice.index(arch[choice.name]) for choice in block) for block in self.blocks[:size])


def find_ladder(space: SearchSpace, name: str | None = None) -> Ladder:
    """The ladder of a space.

    Args:
        space: to look at.
        name: of the choice of the number of blocks; None if there is only one.

    Raises:
        InputError: there is none, or more than one.
    """
    found = {choice.name: ladder for choice in space.choices if (ladder := _ladder(space, choice)) is not None}
    if name is not None:
        space[name]  # names the nearest choice if there is none
    if not found or (name is not None and name not in found):
        asked = "has no ladder" if name is None else f"has no ladder {name!r}"
        raise InputError(
            f"space {space.name!r} {asked} to search progressively: an ordered choice of the number of blocks from one "
            "on, which the like decisions of the later blocks depend on; take a pnasnet space, or another searcher"
        )
    if name is None and len(found) > 1:
        raise InputError(f"space {space.name!r} has the ladders {sorted(found)}; name one with ladder=…")
    return found[name or next(iter(found))]


def _ladder(space: SearchSpace, choice: Choice) -> Ladder | None:
    """The ladder that a choice makes, if it does."""
    options = tuple(choice.options)
    if not choice.ordered or choice.when is not None:
        return None
    later: list[list[Choice]] = [[] for _ in options]  # by the option from which on they are active
    for each in space.choices:
        if each.when is not None and each.when[0] == choice.name:
            starts = [at for at in range(1, len(options)) if set(each.when[1]) == set(options[at:])]
            if not starts:
                return None
            later[starts[0]].append(each)
    if len(options) < 2 or not all(later[1:]):
        return None
    meanings = [_meaning(each) for each in later[1]]
    alike: dict[str, list[Choice]] = {}  # by what they are below
    own = choice.name.rpartition(".")[0]
    for each in space.choices:
        within = not own or each.name.startswith(f"{own}.")
        if within and each.when is None and _meaning(each) in meanings and each.name != choice.name:
            alike.setdefault(each.name.rpartition(".")[0], []).append(each)
    first = [group for group in alike.values() if [_meaning(each) for each in group] == meanings]
    blocks = [*first, *later[1:]]
    if len(first) != 1 or any([_meaning(each) for each in block] != meanings for block in blocks):
        return None
    for column in zip(*blocks, strict=True):
        longest = max((tuple(each.options) for each in column), key=len)
        if any(longest[: len(each.options)] != tuple(each.options) for each in column):
            return None
    names = {choice.name, *(each.name for block in blocks for each in block)}
    held = {each.name: each.options[0] for each in space.choices if each.name not in names and len(each.options) > 1}
    return Ladder(choice, tuple(map(tuple, blocks)), held)


def _meaning(choice: Choice) -> str:
    return choice.name.rpartition(".")[2]
