"""Copies of modules are those of `copy.deepcopy`."""

import copy
from typing import Any, Self

import pytest
import torch
from torch import nn

from supernet.chain.copying import copy_module
from supernet.spaces import create_supernet


class Own(nn.Module):
    """A module that copies itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self)()
        made.copied = True
        return made

    copied = False


class Shared(nn.Module):
    """Layers that share a weight, attributes of many kinds, and hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.again = self.first
        self.own = Own()
        self.table = {"a": [1, 2], "b": (torch.ones(2), {3})}
        self.same = self.table["a"]
        self.beside = torch.arange(3)
        self.register_buffer("kept", torch.zeros(2), persistent=False)
        self.calls: list[str] = []
        self.register_forward_pre_hook(lambda module, _: module.calls.append("called"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


def check_equal(copied: nn.Module, original: nn.Module) -> None:
    """Asserts equal types, tensors and flags, and that no storage is shared with the original."""
    expected = copy.deepcopy(original)
    assert [(name, type(part)) for name, part in copied.named_modules()] == [
        (name, type(part)) for name, part in expected.named_modules()
    ]
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs, before = (list(getattr(each, kind)()) for each in (copied, expected, original))
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        for (_, mine), (_, other), (_, old) in zip(ours, theirs, before, strict=True):
            assert torch.equal(mine, other)
            assert (type(mine), mine.requires_grad, mine.stride()) == (type(other), other.requires_grad, other.stride())
            assert mine.untyped_storage().data_ptr() != old.untyped_storage().data_ptr() or not old.numel()
    for (_, mine), (_, other) in zip(copied.named_modules(), expected.named_modules(), strict=True):
        assert vars(mine).keys() == vars(other).keys()
        assert mine.training == other.training


@pytest.mark.parametrize("space", ["shufflenet-small", "nasnet-small", "resnet-20-widths", "nasbench201"])
def test_a_supernet_and_its_subnets_are_copied(space: str) -> None:
    supernet = create_supernet(space).to(memory_format=torch.channels_last)
    check_equal(copy_module(supernet), supernet)
    subnet = supernet.subnet(supernet.space.from_indices([0] * len(supernet.space))).eval()
    check_equal(copy_module(subnet), subnet)


def test_what_is_shared_stays_shared_and_attributes_are_copied() -> None:
    original = Shared()
    copied = copy_module(original)
    check_equal(copied, original)
    assert copied.second.weight is copied.first.weight
    assert copied.again is copied.first
    assert copied.own.copied
    assert copied.same is copied.table["a"]
    copied.table["a"].append(3)
    assert original.table["a"] == [1, 2]
    assert copied.beside.data_ptr() != original.beside.data_ptr()
    assert "kept" not in copied.state_dict()
    copied(torch.zeros(1, 3))
    assert (copied.calls, original.calls) == (["called"], [])
    copied.register_forward_hook(lambda *_: None)
    assert not original._forward_hooks


def test_copies_that_are_given_are_used() -> None:
    layer, weight = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))
    copied = copy_module(layer, {id(layer.weight): weight})
    assert copied.weight is weight
    assert copied.bias is not layer.bias
