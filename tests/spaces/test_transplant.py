"""Weights carried over: torchvision's ShuffleNetV2 into our blocks, the widest main branch into narrow ones."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import shufflenet_v2_x1_0
from torchvision.models.shufflenetv2 import InvertedResidual, channel_shuffle

from supernet import Arch, Chain, create_supernet
from supernet.blocks.elastic import ElasticShuffle
from supernet.blocks.plain import ConvBNAct, ShuffleUnit
from supernet.chain import Layout
from supernet.spaces.shufflenet import OPERATIONS, SCALES, channel_choice, shuffle_stages
from supernet.testing import randomize

# -- torchvision ------------------------------------------------------------------------------------------------------


@cache
def theirs() -> Any:
    """Stages 3 and 4 and the last convolution, with random weights and statistics."""
    network = shufflenet_v2_x1_0(weights=None)
    part = nn.Sequential(network.stage3, network.stage4, network.conv5)
    randomize(part, seed=0)
    return part.eval()


def load(layer: ConvBNAct, conv: nn.Module, bn: nn.Module, *, inputs: Tensor, outputs: Tensor) -> None:
    """Gives `layer` their weights; channel c of theirs is channel `inputs[c]`, or `outputs[c]`, of ours."""
    with torch.no_grad():
        weight = conv.get_parameter("weight")
        if layer.groups == 1:
            layer.conv.weight[:, inputs] = weight
        else:
            layer.conv.weight[inputs] = weight
        for name, tensor in bn.state_dict().items():
            if tensor.ndim:
                layer.bn.state_dict()[name][outputs] = tensor


def transplant(unit: ShuffleUnit, block: InvertedResidual, order: Tensor) -> None:
    """One block; `order[c]` is where channel c of their input stands in ours (read as such at stride 2 only)."""

    def same(layer: ConvBNAct) -> Tensor:
        return torch.arange(layer.in_channels)

    first, spatial, last = unit.main
    theirs = block.branch2
    inputs = order if unit.stride == 2 else same(first)  # type: ignore[arg-type]
    for layer, conv, source in ((first, 0, inputs), (spatial, 3, None), (last, 5, None)):
        assert isinstance(layer, ConvBNAct)
        outputs = torch.arange(layer.out_channels)
        load(layer, theirs[conv], theirs[conv + 1], inputs=same(layer) if source is None else source, outputs=outputs)
    if unit.stride == 2:
        depthwise, pointwise = unit.proj
        assert isinstance(pointwise, ConvBNAct)
        load(depthwise, block.branch1[0], block.branch1[1], inputs=order, outputs=order)  # type: ignore[arg-type]
        load(pointwise, block.branch1[2], block.branch1[3], inputs=order, outputs=same(pointwise))


def ours(shuffle: str = "interleave", *, permute: bool = True) -> tuple[Chain, Arch]:
    """Their two stages as a supernet that has their weights on its 3×3 path, random ones elsewhere."""
    steps = shuffle_stages(116, (232, 464), (8, 4), shuffle=shuffle, affine=True)
    chain = Chain("transplanted", [*steps, ("conv5", ConvBNAct(464, 1024))], input_shape=(116, 14, 14))
    randomize(chain, seed=1)
    order = torch.arange(116)
    blocks = [*theirs()[0], *theirs()[1]]
    for step, block in zip(chain.step_modules, blocks, strict=False):
        transplant(step.options["shuffle3"], block, order)  # type: ignore[union-attr, index, arg-type]
        width = block.branch2[5].out_channels * 2
        # they shuffle what they hand on, we what a stride-1 block is given: their channel c is our order[c]
        order = channel_shuffle(torch.arange(width).view(1, -1, 1, 1), 2).flatten() if permute else torch.arange(width)
    last = chain.step_modules[-1]
    assert isinstance(last, ConvBNAct)
    load(last, theirs()[2][0], theirs()[2][1], inputs=order, outputs=torch.arange(1024))
    return chain.eval(), chain.space.from_indices([0] * 12)


def difference(chain: Chain, arch: Arch) -> float:
    x = torch.randn(2, 116, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs()(x)
        assert expected.shape == (2, 1024, 4, 4)
        assert expected.std() > 0.1  # the tolerance means something
        torch.testing.assert_close(chain.subnet(arch)(x), chain(x, arch), rtol=0, atol=0)
        return float((chain(x, arch) - expected).abs().max())


def test_torchvisions_stages_in_the_3x3_path() -> None:
    assert difference(*ours()) < 1e-5


@pytest.mark.parametrize("wrong", [{"shuffle": "parity"}, {"permute": False}], ids=str)
def test_another_shuffle_or_order_of_channels_is_detected(wrong: dict[str, Any]) -> None:
    assert difference(*ours(**wrong)) > 0.1


# -- slices -----------------------------------------------------------------------------------------------------------


def elastic(stride: int, *, affine: bool = True) -> ElasticShuffle:
    block = channel_choice(8 if stride == 2 else 20, 20, stride=stride, shuffle="parity", affine=affine)
    randomize(block, seed=3)
    return block.eval()


def cut(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The leading elements."""
    return tensor[tuple(slice(size) for size in shape)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("op", OPERATIONS)
def test_a_scale_takes_the_leading_middle_channels(op: str, stride: int) -> None:
    block = elastic(stride)
    layout = Layout(8 if stride == 2 else 20)
    whole = block.units[op].state_dict()
    assert [choice.ordered for choice in block.space.choices] == [False, True]
    for scale, mid in zip(SCALES, (2, 4, 6, 8, 10, 12, 14, 16), strict=True):
        standalone = block.materialize(Arch({"op": op, "scale": scale}), layout)
        assert isinstance(standalone, ShuffleUnit)
        assert standalone.mid == mid
        expected = ShuffleUnit(layout.channels, 20, **OPERATIONS[op], mid=mid, stride=stride).state_dict()
        state = standalone.state_dict()
        assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in expected.items()}
        assert all(torch.equal(tensor, cut(whole[name], tensor.shape)) for name, tensor in state.items())


def test_scale_1_is_the_unit_of_spos() -> None:
    wide = create_supernet("spos-channels", num_classes=3, input_size=32, phase="standalone")
    narrow = create_supernet("spos", num_classes=3, input_size=32, phase="standalone")
    randomize(wide, seed=4)
    ops = [index % 4 for index in range(20)]
    subnet = wide.subnet(wide.space.from_indices([i for op in ops for i in (op, SCALES.index(1.0))])).eval()
    other = narrow.subnet(narrow.space.from_indices(ops)).eval()
    other.load_state_dict(subnet.state_dict(), strict=True)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(subnet(x), other(x))


@pytest.mark.parametrize("op", ["shuffle5", "xception"])
def test_training_updates_only_the_statistics_of_the_used_channels(op: str) -> None:
    block, arch, x = elastic(2, affine=False).train(), Arch({"op": op, "scale": 0.6}), torch.randn(4, 8, 6, 6)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    standalone = block.materialize(arch, Layout(8)).train()
    torch.testing.assert_close(block(x, arch), standalone(x))
    after, seen = block.state_dict(), 0
    for name, tensor in standalone.state_dict().items():
        if "running" in name:
            whole = after[f"units.{op}.{name}"]
            torch.testing.assert_close(cut(whole, tensor.shape), tensor)
            assert torch.equal(whole[len(tensor) :], before[f"units.{op}.{name}"][len(tensor) :])
            assert not torch.equal(whole, before[f"units.{op}.{name}"])
            seen += len(whole) > len(tensor)
    assert seen == (8 if op == "xception" else 4)
    others = [name for name in after if f".{op}." not in name]
    assert all(torch.equal(after[name], before[name]) for name in others)


def test_materialize_draws_no_random_numbers() -> None:
    block = elastic(1)
    before = torch.get_rng_state()
    block.materialize(Arch({"op": "xception", "scale": 0.2}), Layout(20))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_unit_needs_a_middle_channel() -> None:
    with pytest.raises(ValueError, match="mid is at least 1 channel, not 0"):
        ShuffleUnit(2, 2, mid=0)
