"""Samplers: pure functions of the step; strict fairness and balance counted over many steps."""

from collections import Counter

import pytest
import torch
from grounds import GROUNDS

from supernet import Choice, SearchSpace, create_supernet
from supernet.config import Data, Train
from supernet.data import load
from supernet.errors import InputError
from supernet.sampling import SAMPLERS, balanced, create_sampler, fair, uniform
from supernet.train import train_supernet

EQUAL = SearchSpace("equal", [Choice(f"c{i}", ("a", "b", "c")) for i in range(5)])
UNEQUAL = SearchSpace("unequal", [Choice("two", (0, 1)), Choice("five", tuple("abcde")), Choice("three", range(3))])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_a_function_of_step_and_seed(name: str) -> None:
    first, again, other = (create_sampler(name, EQUAL, seed) for seed in (0, 0, 1))
    steps = range(50)
    assert [first(step) for step in steps] == [again(step) for step in reversed(steps)][::-1]
    assert [first(step) for step in steps] != [other(step) for step in steps]


def test_uniform_trains_normal_forms() -> None:
    space = create_supernet("nasbench-macro").space
    sample = uniform(space)
    archs = [sample(step)[0] for step in range(200)]
    assert all(space.normal_form(arch) == arch for arch in archs)
    assert len(set(archs)) > 150


def test_a_strictly_fair_step_uses_every_option_once() -> None:
    sample = fair(EQUAL)
    pairs = Counter()
    for step in range(100):
        archs = sample(step)
        assert len(archs) == 3
        for choice in EQUAL.choices:
            assert sorted(str(arch[choice.name]) for arch in archs) == ["a", "b", "c"]
        pairs.update((arch["c0"], arch["c1"]) for arch in archs)
    assert len(pairs) == 9  # fresh permutations: every combination of two choices occurs
    assert max(pairs.values()) < 60


def test_balanced_counts_differ_by_one_at_most() -> None:
    sample = balanced(UNEQUAL)
    for step in range(100):
        archs = sample(step)
        assert len(archs) == 5
        for choice in UNEQUAL.choices:
            counts = [sum(arch[choice.name] == option for arch in archs) for option in choice.options]
            assert max(counts) - min(counts) <= 1


def test_a_fair_step_trains_every_weight_of_a_choice_chain() -> None:
    torch.manual_seed(0)
    net = GROUNDS["chain"](num_classes=10, input_size=8, in_channels=1)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    data = load(Data(size=8))
    config = Train(epochs=1, batch=1000, warmup_epochs=0)  # a single step
    train_supernet(net, data, config, sampler=balanced(net.space), verbose=False)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_unfit_spaces_are_refused_by_strict_fairness() -> None:
    with pytest.raises(InputError, match=r"they have \[2, 3, 5\] options; use the sampler 'balanced'"):
        fair(UNEQUAL)
    nested = SearchSpace("nested", [Choice("a", (0, 1)), Choice("b", (0, 1), when=("a", (1,)))])
    with pytest.raises(InputError, match="'b' is conditional"):
        fair(nested)
