"""Elastic layers, kernels and depths: slices are what an ordinary layer with those weights computes."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet.blocks.elastic import AS_GIVEN, ElasticBlock, ElasticDepth, ElasticHead
from supernet.blocks.plain import ConvBNAct, ConvBNReLU6
from supernet.blocks.slicing import (
    cut_layer,
    leading,
    run_conv,
    run_linear,
    run_norm,
    run_sliced,
    sliced,
    sliced_parts,
    sliced_state,
)
from supernet.chain import Chain, Layout
from supernet.errors import InputError
from supernet.space import Arch
from supernet.testing import check_space, randomize
from supernet.training.sparse_step import step_active


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_smaller_kernel_equals_the_large_one_with_zeros_around_it(kernel: int, stride: int) -> None:
    conv = nn.Conv2d(6, 8, 5, stride, 2)
    randomize(conv, 1)
    zeroed = torch.zeros_like(conv.weight)
    edge = (5 - kernel) // 2
    inner = slice(edge, 5 - edge)
    zeroed[:, :, inner, inner] = conv.weight.detach()[:, :, inner, inner]
    x = images(2, 4, 9, 9)
    actual = run_conv(conv, leading(3, 4, kernel=kernel, largest=5), x)
    expected = functional.conv2d(x, zeroed[:3, :4], conv.bias.detach()[:3], stride, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("kind", [ConvBNAct, ConvBNReLU6])
def test_a_cut_layer_is_the_slice_bit_for_bit(kind: type[ConvBNAct], groups: int) -> None:
    layer = kind(8, 8, kernel=5, stride=2, groups=groups)
    randomize(layer, 2)
    layer.bn.weight.data *= 8.0  # beyond 6
    cut = leading(5, 3 if groups == 1 else 1, kernel=3, largest=5)
    smaller = cut_layer(layer.eval(), cut).eval()
    assert (smaller.in_channels, smaller.out_channels, smaller.kernel, type(smaller)) == (
        3 if groups == 1 else 5,
        5,
        3,
        kind,
    )
    x = images(2, smaller.in_channels, 7, 7)
    actual = run_sliced(layer, cut, x)
    assert torch.equal(actual, smaller(x))
    assert torch.equal(smaller.conv.weight, layer.conv.weight[:5, : 3 if groups == 1 else 1, 1:4, 1:4])
    assert (float(actual.detach().max()) == 6.0) == (kind is ConvBNReLU6)


def test_linear_and_norm_take_the_leading_channels() -> None:
    linear, bn = nn.Linear(6, 4), nn.BatchNorm2d(6)
    randomize(linear, 3)
    randomize(bn, 4)
    x = images(3, 5)
    expected = x @ linear.weight[:2, :5].T + linear.bias[:2]
    torch.testing.assert_close(run_linear(linear, leading(2, 5), x), expected)
    before = bn.running_mean.clone()
    maps = images(4, 2, 3, 3)
    normed = run_norm(bn.train(), leading(2, 1), maps)
    centred = (maps - maps.mean((0, 2, 3), keepdim=True)) / maps.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    torch.testing.assert_close(
        normed, centred * bn.weight[:2, None, None] + bn.bias[:2, None, None], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(bn.running_mean[2:], before[2:])
    assert not (bn.running_mean[:2] == before[:2]).any()


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_a_slice_is_a_view_whose_gradient_has_the_order_of_the_whole(order: torch.memory_format) -> None:
    storage = images(3, 8, 6, 5, 5)
    whole = nn.Parameter(storage[1].contiguous(memory_format=order))
    cut = leading(5, 4, kernel=3, largest=5)
    for tensor in (whole, storage[2]):  # the second begins in the middle of a storage
        assert torch.equal(sliced(tensor, cut), tensor[cut])
    assert sliced(whole, cut).data_ptr() == whole[cut].data_ptr()
    assert sliced(whole, leading(8, 6)) is whole
    upstream = images(5, 4, 3, 3)
    (actual,) = torch.autograd.grad(sliced(whole, cut), whole, upstream)
    expected = torch.zeros_like(whole)
    expected[cut] = upstream
    assert torch.equal(actual, expected)
    assert actual.stride() == whole.stride()


def test_parts_and_state_name_what_is_read() -> None:
    layer = ConvBNAct(4, 6, kernel=3)
    parts = [(tuple(parameter.shape), index) for parameter, index in sliced_parts(layer, leading(6, 4))]
    assert parts == [((6, 4, 3, 3), ()), ((6,), ()), ((6,), ())]
    cut = leading(2, 3, kernel=1, largest=3)
    shapes = [tuple(parameter[index].shape) for parameter, index in sliced_parts(layer, cut)]
    assert shapes == [(2, 3, 1, 1), (2,), (2,)]
    state = sliced_state(layer, cut)
    assert state.keys() == layer.state_dict().keys()
    assert state["conv.weight"].data_ptr() != layer.conv.weight.data_ptr()


# -- steps ------------------------------------------------------------------------------------------------------------


def block(*, identity: bool, kernels: tuple[int, ...] = (3, 5)) -> ElasticBlock:
    """An inverted residual with elastic widths and kernel, with an identity or without a shortcut."""
    last = AS_GIVEN if identity else "out"
    body = [ConvBNAct(8, 12), ConvBNAct(12, 12, kernel=5, groups=12), ConvBNAct(12, 8, act=False)]
    shortcut = nn.Identity() if identity else None
    return ElasticBlock(body, ["mid", "mid", last], shortcut=shortcut, kernels=kernels)


def once_for_all() -> Chain:
    """Elastic widths, kernels and depth in one chain, in the manner of once-for-all."""
    stem = ElasticBlock([ConvBNAct(3, 8, kernel=3, stride=2)], ["width"])
    rows = [
        block(identity=False),
        block(identity=True),
        ElasticBlock(
            [ConvBNAct(8, 6), ConvBNAct(6, 6, kernel=3), ConvBNAct(6, 8, act=False)],
            ["mid1", "mid2", AS_GIVEN],
            shortcut=nn.Identity(),
        ),
    ]
    steps = [("stem", stem), ("stage", ElasticDepth(rows, (1, 2, 3))), ("head", ElasticHead(8, 5, dropout=0.2))]
    return Chain("once-for-all", steps, input_shape=(3, 12, 12))


def test_widths_kernels_and_depths_keep_the_contract() -> None:
    check_space(once_for_all(), archs=8, seed=1)


def test_choices_beyond_the_depth_are_inactive() -> None:
    space = once_for_all().space
    shallow = space.canonical({**space.sample(random.Random(0)), "stage.depth": 1, "stage.block1.kernel": 5})
    assert shallow["stage.block1.kernel"] == 3
    assert {choice.name for choice in space.active(shallow)} == {
        "stem.width",
        "stage.depth",
        "stage.block0.mid",
        "stage.block0.out",
        "stage.block0.kernel",
    }


def test_a_branch_is_kept_whole_or_left_out() -> None:
    chain = once_for_all()
    values = {**chain.space.sample(random.Random(0)), "stage.depth": 3, "stage.block2.mid1": 4, "stage.block2.mid2": 0}
    arch = chain.space.canonical(values)
    normal = chain.space.normal_form(arch)
    assert (normal["stage.block2.mid1"], normal["stage.block2.mid2"]) == (0, 0)
    randomize(chain, 0)
    x = images(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(chain.eval()(x, arch), chain(x, normal))
    stage = chain.subnet(arch)[1]
    assert isinstance(stage[2], nn.Identity)


def test_a_step_of_a_narrow_network_changes_only_its_elements() -> None:
    chain = once_for_all().train()
    arch = chain.space.canonical(
        {
            "stem.width": 3,
            "stage.depth": 2,
            "stage.block0.mid": 5,
            "stage.block0.out": 6,
            "stage.block0.kernel": 3,
            "stage.block1.mid": 0,
            "stage.block1.kernel": 3,
        }
    )

    def moved(*, spare: bool) -> int:
        """How many unused elements three steps with momentum and decay move."""
        torch.manual_seed(0)
        net = once_for_all().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        parts = list(net.active_parts(arch))
        used = {parameter: torch.zeros_like(parameter, dtype=torch.bool) for parameter in net.parameters()}
        for parameter, index in parts:
            used[parameter][index] = True
        for _ in range(3):
            net(images(4, 3, 12, 12), arch).square().sum().backward()
            step_active(optimizer, parts) if spare else optimizer.step()
            optimizer.zero_grad()
        changed = {name: parameter != before[name] for name, parameter in net.named_parameters()}
        assert all((changed[name][used[p]]).any() for name, p in net.named_parameters() if used[p].any())
        return sum(int((changed[name] & ~used[p]).sum()) for name, p in net.named_parameters())

    assert moved(spare=True) == 0
    assert moved(spare=False) > 100


def test_a_head_reads_the_channels_that_are_present() -> None:
    head = ElasticHead(8, 5).eval()
    randomize(head, 5)
    x = images(2, 3, 4, 4)
    standalone = head.materialize(Arch(), Layout(3)).eval()
    assert torch.equal(head(x, Arch()), standalone(x))
    torch.testing.assert_close(standalone(x), x.mean((2, 3)) @ head.full.fc.weight[:, :3].T + head.full.fc.bias)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_wrong_wiring_is_named() -> None:
    dense, deep = ConvBNAct(4, 4), ConvBNAct(4, 4, groups=4)
    with pytest.raises(InputError, match="4 groups reads '' and makes 'out'"):
        ElasticBlock([deep], ["out"])
    with pytest.raises(InputError, match="ends with ''"):
        ElasticBlock([dense], ["out"], shortcut=nn.Identity())
    with pytest.raises(InputError, match="a name per layer"):
        ElasticBlock([dense, dense], ["out"])
    with pytest.raises(InputError, match="begin with 'mid'"):
        ElasticBlock([dense, dense], ["hidden", AS_GIVEN], shortcut=nn.Identity())
    with pytest.raises(InputError, match="between 0 and 1, the number of blocks"):
        ElasticDepth([dense], (1, 2))
