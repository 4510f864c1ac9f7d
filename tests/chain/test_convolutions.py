"""Convolutions for which oneDNN has no good kernel: results are torch's, and none ends the process."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from supernet import convolutions
from supernet.convolutions import FastConvolutions, PointwiseConv2d, use_matrix_products


def pass_through(conv: nn.Conv2d, x: Tensor, *, fast: bool) -> tuple[Tensor, ...]:
    """Returns the output of a convolution and the gradients of input, weight and, if there is one, bias."""
    x = x.detach().requires_grad_()
    if fast:
        with FastConvolutions():
            y = conv(x)
    else:
        y = conv(x)
    wanted = [x, *conv.parameters()]
    return y, *torch.autograd.grad(y.square().sum(), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((2, 2), {"kernel_size": 5, "padding": 2}),
        ((4, 4), {"kernel_size": 5, "padding": 2, "stride": 2}),
        ((2, 6), {"kernel_size": 3, "padding": 1}),
        ((1, 3), {"kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 2)}),
        ((3, 3), {"kernel_size": 7, "padding": 3, "stride": 3}),
        ((9, 11), {"kernel_size": 5, "padding": 2}),
        ((10, 9), {"kernel_size": 5, "padding": 2, "stride": 2}),
        ((16, 16), {"kernel_size": 7, "padding": 3}),
        ((16, 15), {"kernel_size": 7, "padding": 3, "stride": 2}),
        ((9, 9), {"kernel_size": (3, 5), "padding": (0, 1), "stride": (1, 3)}),
        ((12, 12), {"kernel_size": (11, 4), "padding": (5, 3), "stride": (2, 1)}),
        ((1, 1), {"kernel_size": 5, "padding": 2}),
        ((1, 1), {"kernel_size": 7, "padding": 3, "stride": 2}),
        ((1, 1), {"kernel_size": 7, "padding": 4}),
    ],
)
def test_gradients_are_those_of_torch(
    size: tuple[int, int], settings: dict[str, Any], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        convolutions, "PART_BYTES", 4 * 8 * size[0] * size[1] * 4
    )  # four images, so the last part has two
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 8, groups=8, bias=bias, **settings)
    x = torch.randn(6, 8, *size, generator=generator).contiguous(memory_format=torch.channels_last)
    expected, actual = pass_through(conv, x, fast=False), pass_through(conv, x, fast=True)
    assert torch.equal(expected[0], actual[0])  # the forward pass is the same
    assert torch.equal(expected[1], actual[1])
    for gradient, reference in zip(actual[2:], expected[2:], strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_strided_pointwise_convolutions_are_those_of_torch(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 16, 1, stride=(2, 3), bias=bias)
    x = torch.randn(6, 8, 9, 10, generator=generator)
    expected, actual = pass_through(conv, x, fast=False), pass_through(conv, x, fast=True)
    assert torch.equal(expected[0], actual[0])
    for gradient, reference in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_pointwise_convolutions_of_single_pixels_are_those_of_torch(bias: bool) -> None:
    conv = nn.Conv2d(24, 40, 1, bias=bias)
    x = torch.randn(6, 24, 1, 1, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    expected, actual = pass_through(conv, x, fast=False), pass_through(conv, x, fast=True)
    assert torch.equal(expected[0], actual[0])
    for gradient, reference in zip(actual[1:], expected[1:], strict=True):
        assert gradient.shape == reference.shape
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


def test_narrow_strided_pointwise_convolutions_do_not_end_the_process() -> None:
    """With torch 2.14.1 on AVX-512 the same backward pass outside of the mode is a segmentation fault."""
    conv = nn.Conv2d(8, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(16, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    _, for_x, for_weight = pass_through(conv, x.contiguous(memory_format=torch.channels_last), fast=True)
    assert for_x[:, :, ::2, ::2].ne(0).all()
    assert not for_x[:, :, 1::2].any()
    assert for_weight.isfinite().all()


def uses_sums(conv: nn.Conv2d, x: Tensor) -> bool:
    """Says whether the mode replaces the backward pass of a convolution."""
    with FastConvolutions():
        return "Depthwise" in type(conv(x).grad_fn).__name__


def test_only_what_is_slow_is_replaced() -> None:
    depthwise = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    assert uses_sums(depthwise, torch.ones(2, 4, 3, 3))
    wide = torch.ones(2, 4, 6, 6)
    assert uses_sums(depthwise, wide.contiguous(memory_format=torch.channels_last))
    assert not uses_sums(depthwise, wide)  # in contiguous order all parts would have to be reordered
    narrow = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    assert not uses_sums(narrow, wide.contiguous(memory_format=torch.channels_last))  # oneDNN is fast here
    assert not uses_sums(nn.Conv2d(4, 4, 5, padding=2), torch.ones(2, 4, 3, 3))
    assert not uses_sums(nn.Conv2d(4, 4, 5, padding=2, groups=2), torch.ones(2, 4, 3, 3))
    assert not uses_sums(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), torch.ones(2, 4, 2, 2))
    assert not uses_sums(nn.Conv2d(4, 4, 5, padding="same", groups=4), torch.ones(2, 4, 3, 3))
    assert not uses_sums(depthwise.double(), torch.ones(2, 4, 3, 3, dtype=torch.float64))
    with torch.no_grad():
        assert not uses_sums(depthwise.float(), torch.ones(2, 4, 3, 3))


def test_a_training_step_uses_the_fast_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from supernet.chain import Chain
    from supernet.config import Data, Train
    from supernet.data.load import load
    from supernet.train import train_supernet

    maps: list[torch.Size] = []
    gradient = convolutions.weight_gradient

    def recorded(x: Tensor, *args: Any) -> Tensor:
        maps.append(x.shape)
        return gradient(x, *args)

    monkeypatch.setattr(convolutions, "weight_gradient", recorded)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=4), nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Flatten(), nn.Linear(16, 10)
    )
    config = Train(epochs=1, batch=128, lr=1e-3)
    train_supernet(Chain("small maps", [("network", layers)]), load(Data(size=8)), config, verbose=False)
    assert {shape[1:] for shape in maps} == {(4, 2, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "product"), [(1, True), (2, True), (4, True), (5, False)])
def test_pointwise_convolutions_of_few_pixels_are_matrix_products(size: int, product: bool, dtype: torch.dtype) -> None:
    plain = nn.Conv2d(24, 20, 1).to(dtype)
    fast = copy.deepcopy(plain)
    use_matrix_products(fast)
    x = torch.randn(3, 48, size, size).to(dtype).to(memory_format=torch.channels_last)[:, 24:]  # half of the channels
    with torch.no_grad():
        expected, y = plain(x), fast(x)
        torch.testing.assert_close(y, expected, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=1e-4)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert ("aten::linear" in operations(fast, x)) == product
    assert torch.equal(fast(x), plain(x))  # with gradients it is torch's
    assert "aten::linear" not in operations(fast, x)
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_a_matrix_product_does_not_fix_the_size_of_an_export() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 1)).eval()
    use_matrix_products(network)
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        program = torch.export.export(network, (torch.rand(2, 4, 3, 3),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        for size in (2, 9):
            x = torch.rand(5, 4, size, size)
            torch.testing.assert_close(program.module()(x), network(x))


def test_only_plain_pointwise_convolutions_become_products() -> None:
    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        Own(4, 4, 1),
    ]
    network = nn.Sequential(*others, nn.Conv2d(4, 4, 1, padding="valid"))
    before = [type(part) for part in others]
    use_matrix_products(network)
    assert [type(part) for part in network] == [*before, PointwiseConv2d]


def operations(module: nn.Module, x: Tensor) -> set[str]:
    """Returns the names of the operations that a forward pass calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(x)
    return {event.key for event in profiler.key_averages()}
