"""A module's constructor expression builds an equal module."""

import inspect

import pytest
import torch
from torch import nn

import supernet.blocks.cells.plain
import supernet.blocks.plain
from supernet.blocks.cells.plain import (
    AuxiliaryHead,
    BlockCell,
    CellClassifier,
    CellStem,
    ConvNorm,
    DropPath,
    FactorizedReduction,
    SamePad2d,
    SamePool2d,
    Separable,
)
from supernet.blocks.plain import (
    ClassifierHead,
    ConvBNAct,
    ConvBNReLU6,
    GraphCell,
    InvertedResidual,
    NormClassifier,
    PooledClassifier,
    PooledResidual,
    ReLUConvBN,
    Residual,
    ShuffleUnit,
    Whole,
)
from supernet.errors import InputError
from supernet.export.expression import expression

PLAIN = [
    ConvBNAct(3, 8),
    ConvBNAct(8, 8, kernel=5, stride=2, groups=4, act=False, affine=False),
    InvertedResidual(8, 8, kernel=3, expansion=2),
    InvertedResidual(8, 12, kernel=5, expansion=3, stride=2),
    ShuffleUnit(8, 8, kernel=7, shuffle="interleave"),
    ShuffleUnit(8, 20, xception=True, stride=2, affine=False),
    ShuffleUnit(8, 8, mid=6),
    ClassifierHead(8, 5, hidden=16, dropout=0.2, bias=False),
    ConvBNReLU6(4, 8, kernel=3, stride=2),
    Residual(ConvBNAct(4, 4, act=False), nn.Identity(), act=False),
    Whole(nn.Conv2d(3, 4, 3, stride=2, padding=1), out_channels=4, stride=2),
    PooledClassifier(8, 5, dropout=0.2),
    ReLUConvBN(8, 12, kernel=3, stride=2, affine=False),
    PooledResidual(4, 8),
    NormClassifier(8, 5),
    GraphCell(nn.ModuleList([nn.Identity(), ReLUConvBN(8, 8)]), ((0, 1), (1, 3)), last=3),
]
CELLS = [
    DropPath(0.7),
    SamePad2d((1, 7), (1, 2)),
    ConvNorm(4, 8),
    ConvNorm(4, 8, kernel=(1, 7), stride=(1, 2), relu=False, eps=1e-3, momentum=3e-4),
    Separable(4, 8, kernel=5, stride=2),
    Separable(4, 8, kernel=3, dilation=2, eps=1e-3),
    SamePool2d("max", kernel=2, stride=2),
    SamePool2d("avg", stride=2, count_padding=True),
    FactorizedReduction(4, 7, relu=False),
    BlockCell(
        ConvNorm(6, 4),
        nn.Identity(),
        nn.ModuleList([nn.Identity(), Separable(6, 4, kernel=3)]),
        inputs=(0, 1),
        outputs=(1, 2),
        joins=nn.ModuleDict({"0": ConvNorm(8, 4)}),
        output_fits=nn.ModuleDict({"1": ConvNorm(6, 4, relu=False)}),
        keep_previous=True,
        keep=0.5,
        undropped=(0,),
    ),
    CellStem(3, 8, stride=2),
    CellClassifier(8, 5, dropout=0.5),
    AuxiliaryHead(8, 5, size=(8, 8), hidden=(4, 6)),
]
LAYERS = [
    nn.Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"),
    nn.ConvTranspose2d(4, 8, 2, 2),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
    nn.GroupNorm(2, 4),
    nn.LayerNorm((4, 5), bias=False),
    nn.Linear(4, 2),
    nn.Linear(4, 2, bias=False),
    nn.ReLU(inplace=True),
    nn.Hardtanh(-float("inf"), 3.0),
    nn.MaxPool2d(3, stride=2, padding=1),
    nn.AvgPool2d(2, count_include_pad=False),
    nn.AdaptiveAvgPool2d((1, 2)),
    nn.Dropout(0.3),
    nn.Identity(),
    nn.ModuleList([nn.Linear(2, 3)]),
    nn.ModuleDict({"3x3": nn.Linear(2, 3)}),
    nn.Sequential(*[nn.Conv2d(100 + i, 100 + i + 1, 3, padding=1) for i in range(6)]),
    nn.Sequential(nn.Sequential(nn.ReLU(), nn.Flatten(1)), nn.Sequential()),
]


def test_every_plain_class_is_covered() -> None:
    classes = {cls for cls in vars(supernet.blocks.plain).values() if inspect.isclass(cls)}
    own = {cls for cls in classes if cls.__module__ == "supernet.blocks.plain"}
    assert own == {type(module) for module in PLAIN}
    classes = {
        cls for cls in vars(supernet.blocks.cells.plain).values() if inspect.isclass(cls) and issubclass(cls, nn.Module)
    }
    own = {cls for cls in classes if cls.__module__ == "supernet.blocks.cells.plain"}
    assert own == {type(module) for module in CELLS}


@pytest.mark.parametrize("module", PLAIN + CELLS + LAYERS, ids=lambda module: type(module).__name__)
def test_expression_builds_the_same_module(module: nn.Module) -> None:
    text = expression(module)
    rebuilt = eval(text, {"nn": nn, **vars(supernet.blocks.plain), **vars(supernet.blocks.cells.plain)})
    assert type(rebuilt) is type(module)
    assert repr(rebuilt) == repr(module)  # holds every kernel, stride and group
    shapes, again = ({key: value.shape for key, value in m.state_dict().items()} for m in (module, rebuilt))
    assert again == shapes
    assert all(len(line) <= 120 for line in text.splitlines())


def test_expression_reads_like_hand_written_code() -> None:
    assert expression(nn.Conv2d(3, 8, 3, padding=1, bias=False)) == "nn.Conv2d(3, 8, 3, padding=1, bias=False)"
    assert expression(nn.BatchNorm2d(8, affine=False)) == "nn.BatchNorm2d(8, affine=False)"
    assert expression(InvertedResidual(8, 8, kernel=3, expansion=2)) == "InvertedResidual(8, 8, kernel=3, expansion=2)"
    lines = expression(nn.Sequential(*(ConvBNAct(100, 100, kernel=3, stride=2) for _ in range(3)))).splitlines()
    assert lines == ["nn.Sequential(", *["    ConvBNAct(100, 100, kernel=3, stride=2),"] * 3, ")"]


class Forgetful(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)


class Holder(nn.Module):
    def __init__(self, content: object, /, *parts: nn.Module, scale: float = 1.0, **options: int) -> None:
        super().__init__()
        self.content, self.scale, self.options = content, scale, options
        self.parts = nn.ModuleList(parts)


def test_expression_of_unusual_signatures() -> None:
    holder = Holder({"a": [1, (2,)], "b": None}, nn.ReLU(), nn.Linear(1, 2), scale=2.0, depth=3)
    text = expression(holder)
    assert text == 'Holder({"a": [1, (2,)], "b": None}, nn.ReLU(), nn.Linear(1, 2), scale=2.0, depth=3)'
    assert vars(eval(text, globals()))["content"] == holder.content
    assert expression(Holder(nn.ReLU)) == "Holder(nn.ReLU)"
    named = nn.Sequential()
    named.add_module("first", nn.ReLU())
    assert expression(named) == 'nn.Sequential(OrderedDict({"first": nn.ReLU()}))'


def test_expression_refuses_what_it_cannot_see() -> None:
    with pytest.raises(InputError, match=r"Forgetful .* 'width'"):
        expression(nn.Sequential(Forgetful(3)))
    with pytest.raises(InputError, match=r"argument of Holder is of type Tensor"):
        expression(Holder(torch.zeros(2)))
