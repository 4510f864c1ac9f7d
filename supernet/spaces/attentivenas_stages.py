"""The table of AttentiveNAS's space (Wang et al., 2021, and its code); importing it loads no torch."""

from typing import NamedTuple


class Stage(NamedTuple):
    """The options of a stage, and what is fixed in it."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expansions: tuple[int, ...]
    stride: int
    squeeze: bool


KERNELS = (3, 5)
STEM = (16, 24)
HEAD = (1792, 1984)
STAGES = (
    Stage((16, 24), (1, 2), (1,), 1, False),
    Stage((24, 32), (3, 4, 5), (4, 5, 6), 2, False),
    Stage((32, 40), (3, 4, 5, 6), (4, 5, 6), 2, True),
    Stage((64, 72), (3, 4, 5, 6), (4, 5, 6), 2, False),
    Stage((112, 120, 128), (3, 4, 5, 6, 7, 8), (4, 5, 6), 1, True),
    Stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (6,), 2, True),
    Stage((216, 224), (1, 2), (6,), 1, True),
)
