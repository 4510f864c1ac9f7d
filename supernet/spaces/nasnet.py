"""The cell spaces: NASNet (Zoph et al., 2018), PNASNet (Liu et al., 2018), AmoebaNet (Real et al., 2019).

Each on the two skeletons of the released code. Small images: 3×3 stem, three groups of `repeats` normal cells, the
filters doubled and the resolution halved between them. ImageNet: stride-2 stem, two reduction cells with a quarter and
half of the filters, then the same. NASNet and AmoebaNet reduce with a cell of their own (`reduce`) between the groups,
PNASNet with the first cell of a group, which is the same cell (`cell`) at stride 2.

The decisions of a cell are listed under `cell_space`; cells of one name share them, not their weights.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from supernet.blocks.cells.graph import ADD, CONCAT, cell_space
from supernet.blocks.cells.ops import AMOEBANET_OPS, AMOEBANET_RELEASED, NASNET_OPS, PNASNET_OPS, cell_op
from supernet.blocks.cells.plain import CellStem
from supernet.blocks.cells.searchable import LooseAuxiliary, LooseCell, LooseClassifier, Source
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.memory import check_fits
from supernet.space import SearchSpace
from supernet.spaces.create import Phase


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Everything in a network beside its cells; these are the settings of every builder in this module.

    Attributes:
        num_classes, input_size, in_channels, phase: see `create_supernet`.
        imagenet: whether to use the skeleton for ImageNet or that for small images.
        filters: channels of the first normal cells.
        repeats: normal cells per group (N); a group of PNASNet has its reduction among them.
        stem: channels of the first convolution.
        blocks: number per cell, or the largest number in PNASNet.
        ops: names of operations, see `cell_op`.
        combiners: `"add"`, or with `"concat"` a choice per block.
        chosen: whether states that are already read may also be outputs of a cell, as in the published cells.
        skip_reduction: the cell behind a reduction reads the cell two before the reduction, not the one before it
            (NASNet-A large; PNASNet has no such cell).
        keep: probability at the end of training that an example passes an operation (scheduled drop path); 1 in the
            supernet phase.
        keep_by_depth: whether early cells drop less.
        auxiliary: whether an auxiliary head at two thirds of the depth is trained too (`Output`).
        auxiliary_channels: channels of its two convolutions.
        dropout: probability of dropout before the linear layer; 0 in the supernet phase.
        eps, momentum: settings of batch norm.
        count_padding: see `SamePool2d`.
    """

    num_classes: int = 10
    input_size: int = 32
    in_channels: int = 3
    phase: Phase = "supernet"
    imagenet: bool = False
    filters: int = 32
    repeats: int = 6
    stem: int | None = None
    blocks: int = 5
    ops: Sequence[str] = NASNET_OPS
    combiners: Sequence[str] = (ADD,)
    chosen: bool = True
    skip_reduction: bool = False
    keep: float = 1.0
    keep_by_depth: bool = True
    auxiliary: bool = False
    auxiliary_channels: tuple[int, int] = (128, 768)
    dropout: float = 0.0
    eps: float = 1e-5
    momentum: float = 0.1
    count_padding: bool = False

    def __post_init__(self) -> None:
        """Refuses settings with which no network can be built."""
        least = 8 if self.imagenet else 2
        for name, value, smallest in (
            ("filters", self.filters, least),
            ("repeats", self.repeats, 1),
            ("stem", self.stem_channels, 1),
            ("input_size", self.input_size, 15 if self.imagenet else 4),
        ):
            if value < smallest:
                raise InputError(f"{name}={value} must be at least {smallest}")
        if not 0 < self.keep <= 1:
            raise InputError(f"keep={self.keep} must be above 0 and at most 1")

    @property
    def stem_channels(self) -> int:
        """32 for ImageNet, three times the filters for small images, unless `stem` says otherwise."""
        return self.stem or (32 if self.imagenet else int(self.filters * 3.0))

    @property
    def norm(self) -> dict[str, Any]:
        """The settings of batch norm."""
        return {"eps": self.eps, "momentum": self.momentum}


@dataclass(frozen=True)
class _Place:
    """One cell: the name of its step, filters, stride, and whether it returns its older input again."""

    name: str
    filters: int
    stride: int = 1
    keep_previous: bool = False


def _places(s: Skeleton, *, single: bool) -> list[_Place]:
    """Returns the cells in order; `single`: one cell has both strides, and the first of a group reduces (PNASNet)."""
    normal, reduce = ("cell", "cell") if single else ("normal", "reduce")
    places = [_Place(reduce, s.filters // 4, 2), _Place(reduce, s.filters // 2, 2)] if s.imagenet else []
    for group in range(3):
        filters, count = s.filters * 2**group, s.repeats
        if group:
            places.append(_Place(reduce, filters, 2, s.skip_reduction))
            count -= single
        places += [_Place(normal, filters)] * count
    return places


Op = Callable[[int, str, int, int], nn.Module]
"""Builds an operation from (filters, name, in_channels, stride)."""


def _chain(name: str, s: Skeleton, spaces: dict[str, SearchSpace]) -> Chain:
    """Returns the supernet, after checking that its weights fit into memory."""
    meta = torch.get_default_device().type == "meta"
    if not meta:
        check_fits(name, supernet_parameters(s, spaces))
    steps = _steps(s, spaces, functools.partial(_op, s), lazy=meta and s.phase == "standalone")  # `create_network`
    return Chain(name, steps, input_shape=(s.in_channels, s.input_size, s.input_size))


def supernet_parameters(s: Skeleton, spaces: dict[str, SearchSpace]) -> int:
    """Returns the exact number of parameters of a supernet without building it."""
    total = 0

    @functools.cache
    def numel(*place: Any) -> int:
        return sum(p.numel() for p in _op(s, *place).parameters())

    def counting(filters: int, name: str, in_channels: int, stride: int) -> nn.Module:
        nonlocal total
        total += numel(filters, name, in_channels, stride)
        return nn.Identity()

    with torch.device("meta"):
        return sum(p.numel() for _, step in _steps(s, spaces, counting) for p in step.parameters()) + total


def _op(s: Skeleton, filters: int, name: str, in_channels: int, stride: int) -> nn.Module:
    return cell_op(name, in_channels, filters, stride=stride, count_padding=s.count_padding, **s.norm)


def _steps(s: Skeleton, spaces: dict[str, SearchSpace], op: Op, *, lazy: bool = False) -> list[tuple[str, nn.Module]]:
    places = _places(s, single=len(spaces) == 1)
    current, previous = Source(s.stem_channels, 2 if s.imagenet else 1), None
    steps: list[tuple[str, nn.Module]] = [
        ("stem", CellStem(s.in_channels, s.stem_channels, stride=current.stride, **s.norm))
    ]
    final = s.phase == "standalone"
    second = max(index for index, place in enumerate(places) if place.stride == 2)  # reduction
    side = (s.input_size - 3) // 2 + 1 if s.imagenet else s.input_size
    for index, place in enumerate(places):
        if index == second and s.auxiliary:  # at two thirds of the depth
            steps.append(("auxiliary", _auxiliary(s, current, side)))
        reached = (index + 1) / len(places) if s.keep_by_depth else 1.0
        cell = LooseCell(
            current,
            previous,
            space=spaces[place.name],
            filters=place.filters,
            op=functools.partial(op, place.filters),
            stride=place.stride,
            keep_previous=place.keep_previous,
            keep=1.0 - reached * (1.0 - s.keep) if final else 1.0,
            lazy=lazy,
            **s.norm,
        )
        steps.append((place.name, cell))
        previous, current = previous if place.keep_previous else current, cell.source
        side = -(-side // place.stride)
    steps.append(("head", LooseClassifier(current, s.num_classes, dropout=s.dropout if final else 0.0)))
    return steps


def _auxiliary(s: Skeleton, source: Source, side: int) -> LooseAuxiliary:
    if side < 5:
        raise InputError(
            f"the auxiliary head pools over 5×5 pixels, but reads a map of {side}×{side} at input_size={s.input_size}; "
            "leave it out or use larger images"
        )
    hidden = s.auxiliary_channels
    return LooseAuxiliary(source, s.num_classes, size=(side, side), hidden=hidden, **s.norm)


def _two_cells(name: str, s: Skeleton) -> Chain:
    """A space with a normal and a reduction cell."""
    space = cell_space(s.ops, blocks=s.blocks, combiners=s.combiners, chosen=s.chosen)
    return _chain(name, s, {"normal": space, "reduce": space})


def _one_cell(name: str, s: Skeleton) -> Chain:
    """A space with one cell of up to `blocks` blocks."""
    space = cell_space(s.ops, blocks=s.blocks, fewer=True, combiners=s.combiners, chosen=s.chosen)
    return _chain(name, s, {"cell": space})


# -- the spaces -------------------------------------------------------------------------------------------------------

# Every builder spells out its settings, so that `help` and editors show them; `locals()` is exactly these arguments.


def nasnet_cifar(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 32,
    repeats: int = 6,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = NASNET_OPS,
    combiners: Sequence[str] = (ADD, CONCAT),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 0.6,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """NASNet on images of 32 pixels: 18 normal cells, 32 filters, drop path to 0.6 (Zoph et al., 2018).

    Two cells of five blocks with 13 operations and two combiners: 5.2e36 architectures, times the choices of outputs.
    The arguments are described in `Skeleton`.
    """
    return _two_cells("nasnet-cifar", Skeleton(**locals()))


def nasnet_search(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 24,
    repeats: int = 2,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = NASNET_OPS,
    combiners: Sequence[str] = (ADD, CONCAT),
    chosen: bool = False,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """NASNet as it was searched: only unused states are outputs, N = 2 (Zoph et al., 2018, § 3 and appendix A).

    5.2e36 architectures: two cells of five blocks, 13 operations, two combiners. The paper does not give the filters
    of a search; 24 are those of PNASNet's comparison. The arguments are described in `Skeleton`.
    """
    return _two_cells("nasnet-search", Skeleton(**locals()))


def nasnet_imagenet(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 44,
    repeats: int = 4,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = NASNET_OPS,
    combiners: Sequence[str] = (ADD, CONCAT),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.5,
    eps: float = 1e-3,
    momentum: float = 3e-4,
    count_padding: bool = False,
) -> Chain:
    """NASNet at mobile size: 12 normal cells, 44 filters; for the arguments see `Skeleton`."""
    return _two_cells("nasnet-imagenet", Skeleton(imagenet=True, **locals()))


def nasnet_small(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 8,
    repeats: int = 1,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = NASNET_OPS,
    combiners: Sequence[str] = (ADD, CONCAT),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """NASNet for digits: 3 normal cells, 8 filters by default; for the arguments see `Skeleton`."""
    return _two_cells("nasnet-small", Skeleton(**locals()))


def pnasnet_cifar(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 48,
    repeats: int = 3,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = PNASNET_OPS,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """PNASNet on images of 32 pixels: 9 cells, 48 filters (Liu et al., 2018).

    One cell of one to five blocks with 8 operations: 5.6e14 architectures of five blocks, times the choices of outputs.
    The arguments are described in `Skeleton`.
    """
    return _one_cell("pnasnet-cifar", Skeleton(**locals()))


def pnasnet_imagenet(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 54,
    repeats: int = 3,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = PNASNET_OPS,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.5,
    eps: float = 1e-3,
    momentum: float = 3e-4,
    count_padding: bool = False,
) -> Chain:
    """PNASNet at mobile size: 9 cells, 54 filters; for the arguments see `Skeleton`."""
    return _one_cell("pnasnet-imagenet", Skeleton(imagenet=True, **locals()))


def pnasnet_small(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 8,
    repeats: int = 1,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = PNASNET_OPS,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = True,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """PNASNet for digits: 3 cells, 8 filters by default; for the arguments see `Skeleton`."""
    return _one_cell("pnasnet-small", Skeleton(**locals()))


def amoebanet_cifar(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 36,
    repeats: int = 6,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = AMOEBANET_RELEASED,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 0.7,
    keep_by_depth: bool = False,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """AmoebaNet on images of 32 pixels: 18 normal cells, 36 filters, drop path to 0.7 (Real et al., 2019).

    Two cells of five blocks. The paper searches 8 operations (`AMOEBANET_OPS`, 3.1e29 architectures); the default adds
    the three further ones of the released AmoebaNet-B and -D. The arguments are described in `Skeleton`.
    """
    return _two_cells("amoebanet-cifar", Skeleton(**locals()))


def amoebanet_search(
    *,
    num_classes: int = 10,
    input_size: int = 32,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 24,
    repeats: int = 3,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = AMOEBANET_OPS,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = False,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = False,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    count_padding: bool = False,
) -> Chain:
    """AmoebaNet as it was searched: 8 operations, only unused states are outputs, N = 3, F = 24 (Real et al., 2019).

    3.1e29 architectures: two cells of five blocks, 20 inputs and 20 operations, so that a mutation of one decision
    changes an input as often as an operation (Methods, "Mutation"). The arguments are described in `Skeleton`.
    """
    return _two_cells("amoebanet-search", Skeleton(**locals()))


def amoebanet_imagenet(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    phase: Phase = "supernet",
    filters: int = 50,
    repeats: int = 4,
    stem: int | None = None,
    blocks: int = 5,
    ops: Sequence[str] = AMOEBANET_RELEASED,
    combiners: Sequence[str] = (ADD,),
    chosen: bool = True,
    skip_reduction: bool = False,
    keep: float = 1.0,
    keep_by_depth: bool = False,
    auxiliary: bool = False,
    auxiliary_channels: tuple[int, int] = (128, 768),
    dropout: float = 0.5,
    eps: float = 1e-3,
    momentum: float = 3e-4,
    count_padding: bool = False,
) -> Chain:
    """AmoebaNet at mobile size: 12 normal cells, 50 filters; for the arguments see `Skeleton`."""
    return _two_cells("amoebanet-imagenet", Skeleton(imagenet=True, **locals()))
