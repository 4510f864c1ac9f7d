"""The blocks against hand-written references and against torchvision's own with the same weights."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, relu
from torchvision.models import shufflenetv2
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork

from detection.retinanet import FeaturePyramid, RetinaHead
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct, InvertedResidual, ShuffleUnit
from supernet.chain import Layout
from supernet.space import Arch
from supernet.testing import randomize


def ready(module: nn.Module, seed: int = 0) -> Any:
    randomize(module, seed)
    return module.eval()


def normalized(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    return batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def pointwise(x: Tensor, part: ConvBNAct) -> Tensor:
    """1×1, batch norm, ReLU."""
    return relu(normalized(conv2d(x, part.conv.weight), part.bn))


def depthwise(x: Tensor, part: ConvBNAct, *, stride: int = 1) -> Tensor:
    """Depthwise k×k and batch norm, no activation."""
    weight = part.conv.weight
    padding = weight.shape[-1] // 2
    return normalized(conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1]), part.bn)


def main_branch(x: Tensor, unit: ShuffleUnit) -> Tensor:
    """ShuffleNetV2's three layers; Xception's three separable convolutions. The first depthwise one has the stride."""
    parts = list(unit.main)
    if unit.xception:
        for number in range(3):
            x = depthwise(x, parts[2 * number], stride=unit.stride if number == 0 else 1)
            x = pointwise(x, parts[2 * number + 1])
        return x
    return pointwise(depthwise(pointwise(x, parts[0]), parts[1], stride=unit.stride), parts[2])


# -- shuffle units ----------------------------------------------------------------------------------------------------

PASSED = {"interleave": [0, 4, 1, 5], "parity": [0, 2, 4, 6]}
CHANGED = {"interleave": [2, 6, 3, 7], "parity": [1, 3, 5, 7]}
SHUFFLES = pytest.mark.parametrize("shuffle", PASSED)
KERNELS = pytest.mark.parametrize("settings", [{"kernel": 3}, {"kernel": 7}, {"xception": True}], ids=str)


@SHUFFLES
@KERNELS
def test_shuffle_unit_at_stride_1(shuffle: str, settings: dict[str, Any]) -> None:
    unit = ready(ShuffleUnit(8, 8, shuffle=shuffle, **settings))
    x = torch.randn(2, 8, 9, 9)
    out = unit(x)
    assert torch.equal(out[:, :4], x[:, PASSED[shuffle]])
    torch.testing.assert_close(out[:, 4:], main_branch(x[:, CHANGED[shuffle]], unit), rtol=1e-5, atol=1e-5)


@SHUFFLES
@KERNELS
def test_shuffle_unit_at_stride_2(shuffle: str, settings: dict[str, Any]) -> None:
    unit = ready(ShuffleUnit(6, 16, stride=2, shuffle=shuffle, **settings))
    x = torch.randn(2, 6, 9, 9)
    out = unit(x)
    assert out.shape == (2, 16, 5, 5)
    projected = pointwise(depthwise(x, unit.proj[0], stride=2), unit.proj[1])
    torch.testing.assert_close(out[:, :6], projected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, 6:], main_branch(x, unit), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "seen"), [(1, 8), (2, 6)])
def test_layers_of_a_shuffle_unit_in_order(stride: int, seen: int) -> None:
    unit = ShuffleUnit(6 if stride == 2 else 16, 16, kernel=5, stride=stride)
    layers = [layer for layer in unit.main.modules() if not list(layer.children())]
    assert [type(layer) for layer in layers] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
    ]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups) for c in convs] == [
        (seen, 8, 1, 1, 1),
        (8, 8, 5, stride, 8),
        (8, 16 - seen, 1, 1, 1),
    ]
    assert all(conv.bias is None for conv in convs)


def test_layers_of_an_xception_unit_in_order() -> None:
    unit = ShuffleUnit(6, 16, xception=True, stride=2, affine=False)
    layers = [layer for layer in unit.main.modules() if not list(layer.children())]
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups) for c in convs] == [
        (6, 6, 3, 2, 6),
        (6, 8, 1, 1, 1),
        (8, 8, 3, 1, 8),
        (8, 8, 1, 1, 1),
        (8, 8, 3, 1, 8),
        (8, 10, 1, 1, 1),
    ]
    assert not any(name.endswith("bn.weight") for name in unit.state_dict())


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shuffle": (lambda: ShuffleUnit(8, 8, shuffle="riffle"), "'parity' or 'interleave', not 'riffle'"),
    "shuffle-at-2": (lambda: ShuffleUnit(8, 16, stride=2, shuffle=""), "'parity' or 'interleave', not ''"),
    "widening": (lambda: ShuffleUnit(8, 16), "keeps an even number of channels, not 8 -> 16"),
    "odd": (lambda: ShuffleUnit(7, 7), "keeps an even number of channels, not 7 -> 7"),
    "narrow": (lambda: ShuffleUnit(8, 8, stride=2), "channels"),
    "stride-3": (lambda: ShuffleUnit(8, 16, stride=3), "stride"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_shuffle_unit_is_refused(case: str) -> None:
    build, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_torchvision_weights_in_a_shuffle_unit() -> None:
    """torchvision shuffles what it hands on, ours what it is given: the same block between two shuffles."""
    width = 16
    theirs = ready(shufflenetv2.InvertedResidual(width, width, stride=1))
    ours = ready(ShuffleUnit(width, width, shuffle="interleave"), seed=1)
    names = [f"{part}.{tensor}" for part in range(3) for tensor in ("conv.weight", *NORM)]
    places = [(0, 1), (3, 4), (5, 6)]  # of convolution and batch norm in torchvision's branch
    source = [f"{conv}.weight" if n == 0 else f"{bn}.{NORM[n - 1][3:]}" for conv, bn in places for n in range(6)]
    weights = theirs.branch2.state_dict()
    assert set(source) == set(weights)
    ours.main.load_state_dict({mine: weights[name] for mine, name in zip(names, source, strict=True)}, strict=True)
    for seed in range(3):
        x = torch.randn(4, width, 14, 14, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            shufflenetv2.channel_shuffle(ours(x), 2), theirs(shufflenetv2.channel_shuffle(x, 2)), rtol=0, atol=1e-5
        )


NORM = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


# -- inverted residuals, heads, choices -------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "stride", "kept"), [(8, 1, True), (12, 1, False), (8, 2, False), (12, 2, False)])
def test_residual_only_where_the_shape_is_kept(out: int, stride: int, kept: bool) -> None:
    block = ready(InvertedResidual(8, out, kernel=5, expansion=3, stride=stride))
    x = torch.randn(2, 8, 9, 9)
    expand, spatial, project = block.body
    hidden = relu(depthwise(pointwise(x, expand), spatial, stride=stride))
    expected = normalized(conv2d(hidden, project.conv.weight), project.bn)  # linear bottleneck
    assert expected.shape[1:] == (out, 9 if stride == 1 else 5, 9 if stride == 1 else 5)
    assert hidden.shape[1] == 24
    torch.testing.assert_close(block(x), x + expected if kept else expected, rtol=1e-5, atol=1e-5)


def test_residual_input_is_not_overwritten() -> None:
    block, x = ready(InvertedResidual(8, 8, kernel=3, expansion=2)), torch.randn(2, 8, 5, 5)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


def test_classifier_head() -> None:
    head = ready(ClassifierHead(6, 4, hidden=10, dropout=0.5))
    x = torch.randn(3, 6, 5, 5)
    expected = pointwise(x, head.conv).mean((2, 3)) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(head.train()(x), head(x))  # dropout draws again
    assert head.fc.bias is not None
    assert ClassifierHead(6, 4, hidden=10, bias=False).fc.bias is None


@pytest.mark.parametrize(("kernel", "stride", "size"), [(1, 1, 7), (3, 1, 7), (5, 1, 7), (3, 2, 4), (5, 2, 4)])
def test_conv_keeps_the_size_at_stride_1(kernel: int, stride: int, size: int) -> None:
    x = torch.randn(1, 4, 7, 7)
    part = ready(ConvBNAct(4, 6, kernel=kernel, stride=stride, groups=2))
    assert part(x).shape == (1, 6, size, size)
    assert part(x).min() == 0
    assert ready(ConvBNAct(4, 6, kernel=kernel, act=False))(x).min() < 0


def test_choice_block_runs_only_the_chosen_option() -> None:
    options = {"a": ConvBNAct(4, 6, stride=2), "b": nn.Identity()}
    block = ready(ChoiceBlock(options))
    x = torch.randn(2, 4, 6, 6)
    a, b = Arch({"op": "a"}), Arch({"op": "b"})
    assert [(choice.name, choice.options) for choice in block.space.choices] == [("op", ("a", "b"))]
    assert torch.equal(block(x, a), options["a"](x))
    assert torch.equal(block(x, b), x)
    assert block.out_layout(a, Layout(4, 2)) == Layout(6, 4)
    assert block.out_layout(b, Layout(4, 2, (1,))) == Layout(4, 2, (1,))
    assert [id(part) for part, _ in block.active_parts(a, Layout(4))] == [id(p) for p in options["a"].parameters()]
    assert not list(block.active_parts(b, Layout(4)))
    standalone = block.materialize(a, Layout(4))
    assert torch.equal(standalone(x), block(x, a))
    assert standalone is not options["a"]


# -- torchvision's detector parts -------------------------------------------------------------------------------------


def test_feature_pyramid_is_torchvisions() -> None:
    ours, theirs = ready(FeaturePyramid((8, 12, 16), 10)), FeaturePyramidNetwork([8, 12, 16], 10)
    theirs.load_state_dict(ours.fpn.state_dict(), strict=True)
    maps = tuple(torch.randn(2, width, side, side) for width, side in ((8, 17), (12, 9), (16, 5)))
    expected = theirs(OrderedDict(zip(("fine", "middle", "coarse"), maps, strict=True)))
    actual = ours(maps)
    assert isinstance(actual, tuple)
    assert [tuple(level.shape[1:]) for level in actual] == [(10, 17, 17), (10, 9, 9), (10, 5, 5)]
    assert all(map(torch.equal, actual, expected.values()))
    layouts = ours.out_layout((Layout(8, 4), Layout(12, 8), Layout(16, 16)))
    assert layouts == (Layout(10, 4), Layout(10, 8), Layout(10, 16))


def test_feature_pyramid_keeps_more_than_ten_levels_in_order() -> None:
    ours = ready(FeaturePyramid((2,) * 12, 3))
    maps = tuple(torch.randn(1, 2, side, side) for side in range(24, 0, -2))
    assert [level.shape[-1] for level in ours(maps)] == list(range(24, 0, -2))


def test_retina_head_is_torchvisions() -> None:
    ours, theirs = ready(RetinaHead(8, 3, 5, levels=2)), RetinaNetHead(8, 3, 5)
    theirs.load_state_dict(ours.head.state_dict(), strict=True)
    maps = tuple(torch.randn(2, 8, side, side) for side in (8, 4))
    actual, expected = ours(maps), theirs(list(maps))
    assert set(actual) == {"cls_logits", "bbox_regression"}
    assert actual["cls_logits"].shape == (2, 3 * (64 + 16), 5)
    assert actual["bbox_regression"].shape == (2, 3 * (64 + 16), 4)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert ours.out_layout((Layout(8, 4), Layout(8, 8))) is None
