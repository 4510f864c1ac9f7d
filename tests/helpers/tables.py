"""Costs that tests of several files look up: building a table of a published space takes a second."""

import functools

import torch

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, create_supernet
from supernet.cost import CostTable


@functools.cache
def table_of(space: str) -> CostTable:
    """Returns the costs of a toy space, or of a published space at its published size."""
    if space in TOY_SPACES:
        return CostTable(TOY_SPACES[space]())
    with torch.device("meta"):
        return CostTable(create_supernet(space))


@functools.cache
def every_cost(space: str) -> dict[Arch, dict[str, int]]:
    """Returns the costs of every architecture of a space."""
    table = table_of(space)
    return {arch: table(arch) for arch in table.space.enumerate()}
