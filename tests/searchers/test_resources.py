"""The cost of widths: MorphNet's regulariser to the digit, and the largest multiplier within a budget."""

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from searchers.morphnet.resources import (
    equal_widths,
    filled,
    group_scales,
    histogram_gap,
    largest_multiplier,
    multipliers,
    random_widths,
    regularization,
    resource_cost,
    widened,
)
from supernet.errors import InputError
from supernet.spaces.widths import WidthChain, WidthLayer, mobilenetv2_widths, resnet_20_widths

# -- the regulariser --------------------------------------------------------------------------------------------------

PUBLISHED = (  # the released code's own test: conv3 (stride 2) and conv4 read conv1 and conv2 side by side
    WidthLayer(name="conv1", inputs=3, makes="conv1", positions=17 * 19, taps=7 * 5),
    WidthLayer(name="conv2", inputs=3, makes="conv2", positions=17 * 19, taps=1),
    WidthLayer(name="conv3", reads=("conv1", "conv2"), makes="conv3", positions=9 * 10, taps=3 * 3),
    WidthLayer(name="conv4", reads=("conv1", "conv2"), makes="conv4", positions=17 * 19, taps=1),
)


def scales(*runs: tuple[float, int]) -> Tensor:
    return torch.cat([torch.full((n,), value, dtype=torch.float64) for value, n in runs])


GAMMA = {
    "conv1": scales((0.8, 7), (0.2, 6)),
    "conv2": scales((0.7, 11), (0.1, 12)),
    "conv3": scales((0.6, 10), (0.3, 19)),
    "conv4": scales((0.5, 17), (0.4, 14)),
}
ALIVE = {"conv1": 7, "conv2": 11, "conv3": 10, "conv4": 17}


def test_the_regulariser_agrees_with_the_released_test_to_the_digit() -> None:
    costs = [resource_cost([layer], ALIVE, "flops") for layer in PUBLISHED]
    assert costs == [474_810, 21_318, 291_600, 197_676]
    assert sum(costs) == 985_404
    values = [float(regularization([layer], GAMMA, threshold=0.45, resource="flops")) for layer in PUBLISHED]
    assert values == pytest.approx([461_244.0, 17_248.2, 595_512.0, 336_372.2], abs=1e-3)
    assert float(regularization(PUBLISHED, GAMMA, threshold=0.45, resource="flops")) == pytest.approx(
        1_410_376.4, abs=1e-3
    )


def test_size_counts_weights_and_the_threshold_decides_which_channels() -> None:
    assert resource_cost(PUBLISHED, ALIVE, "size") == 35 * 3 * 7 + 3 * 11 + 9 * 18 * 10 + 18 * 17
    last = PUBLISHED[3]
    out, into = 0.5 * 17 + 0.4 * 14, 0.8 * 7 + 0.2 * 6 + 0.7 * 11 + 0.1 * 12
    assert float(regularization([last], GAMMA, threshold=0.45, resource="size")) == pytest.approx(18 * out + 17 * into)
    assert float(regularization([last], GAMMA, threshold=0.15, resource="size")) == pytest.approx(24 * out + 31 * into)


def test_convolutions_and_linear_layers() -> None:
    gamma = {"a": scales((0.5, 3), (0.01, 2))}
    deep = WidthLayer(name="deep", reads=("a",), makes="a", positions=4, taps=9, depthwise=True)
    linear = WidthLayer(name="linear", reads=("a",), outputs=10, extra=1)
    assert resource_cost([deep], {"a": 3}, "flops") == 2 * 4 * 9 * 3
    total = 3 * 0.5 + 2 * 0.01
    assert float(regularization([deep], gamma, threshold=0.1, resource="flops")) == pytest.approx(72 * 2 * total)
    assert float(regularization([linear], gamma, threshold=0.1, resource="flops")) == pytest.approx(2 * 10 * total)
    assert (resource_cost([linear], {"a": 3}, "size"), linear.params({"a": 3})) == (30, 40)


def test_gradients_agree_with_finite_differences_at_constant_counts() -> None:
    names = list(GAMMA)
    generator = torch.Generator().manual_seed(0)
    signs = [torch.randint(0, 2, (len(g),), generator=generator) * 2 - 1 for g in GAMMA.values()]
    raw = [(g * sign).requires_grad_() for g, sign in zip(GAMMA.values(), signs, strict=True)]

    def value(*gammas: Tensor) -> Tensor:
        groups = group_scales({name: [gamma, 0.5 * gamma] for name, gamma in zip(names, gammas, strict=True)})
        return regularization(PUBLISHED, groups, threshold=0.45, resource="flops") * 1e-4

    assert torch.autograd.gradcheck(value, raw, eps=1e-6)
    value(*raw).backward()
    grad = raw[3].grad
    assert grad is not None
    torch.testing.assert_close(grad, signs[3].double() * (646 * 18 * 1e-4))  # C · alive inputs, with the sign of γ


def test_a_residual_group_takes_the_largest_scale_of_its_members() -> None:
    with torch.device("meta"):
        chain = resource_chain()
    chain = chain.to_empty(device="cpu")
    for number, index in enumerate((0, 1, 2)):
        chain.step_modules[index].body[-1].bn.weight.data = torch.eye(8)[number] * -(0.5 + number) + 1e-5
    largest = group_scales(chain.scales(chain.seed))["stem.width"]
    torch.testing.assert_close(largest, torch.tensor([0.5, 1.5, 2.5, 1e-5]), rtol=1e-4, atol=1e-6)
    assert int((largest > 1e-3).sum()) == 3  # alive in any member


def resource_chain() -> WidthChain:
    """Three members of one residual group."""
    return resnet_20_widths(widths=(4,), blocks=2, input_size=8)


def test_the_gap_lies_between_two_modes() -> None:
    rng = random.Random(0)
    dead, alive = [rng.uniform(0, 2e-3) for _ in range(60)], [rng.uniform(0.2, 1.5) for _ in range(40)]
    assert max(dead) < histogram_gap([*dead, 0.0, *alive]) < min(alive)
    assert histogram_gap(alive) == 0.0  # one mode: all are alive
    assert histogram_gap([0.0] * 3 + [1.0] * 3) == pytest.approx(1e-2)


# -- the multiplier ---------------------------------------------------------------------------------------------------


def random_case(chain: WidthChain, number: int) -> tuple[dict[str, int], dict[str, int], Any, float]:
    """Alive widths, largest widths, a cost and a limit."""
    rng, layers = random.Random(number), chain.layers()
    alive = {c.name: rng.randint(1, int(chain.seed[c.name])) for c in chain.space.choices}
    alive |= {c.name: 0 for c in chain.space.choices if c.options[0] == 0 and rng.random() < 0.2}
    largest = {c.name: int(c.options[-1]) for c in chain.space.choices}

    def cost(widths: Any) -> int:
        return sum(layer.macs(widths) if number % 2 else layer.params(widths) for layer in layers)

    return alive, largest, cost, cost(chain.seed) * rng.uniform(0.1, 1.5)


def meta(build: Any) -> WidthChain:
    with torch.device("meta"):
        chain: WidthChain = build()
    return chain


def test_the_multiplier_is_the_largest_within_the_limit() -> None:
    chain = meta(resnet_20_widths)
    for number in range(20):
        alive, largest, cost, limit = random_case(chain, number)
        multiplier, steps = largest_multiplier(alive, largest, cost, limit), multipliers(alive, largest)
        widths = widened(alive, multiplier, largest)
        assert cost(widths) <= limit
        assert cost(widened(alive, steps[steps.index(multiplier) + 1], largest)) > limit
        for grid in range(1, 60):  # every other multiplier within the limit costs no more
            other = cost(widened(alive, Fraction(grid, 13), largest))
            assert other > limit or other <= cost(widths)
        everything = largest_multiplier(alive, largest, cost, 1e15)
        assert widened(alive, everything, largest) == {name: largest[name] if alive[name] else 0 for name in alive}
    with pytest.raises(InputError, match=r"below one channel per group, which costs [\d,]+"):
        largest_multiplier(alive, largest, cost, 100)


def test_widths_are_rounded_down_and_clipped() -> None:
    alive, largest = {"a": 3, "b": 10, "c": 0, "d": 1}, {"a": 8, "b": 12, "c": 9, "d": 2}
    assert widened(alive, Fraction(3, 2), largest) == {"a": 4, "b": 12, "c": 0, "d": 1}
    assert widened(alive, Fraction(1, 4), largest) == {"a": 1, "b": 2, "c": 0, "d": 1}
    assert multipliers({"a": 2}, {"a": 3}) == [Fraction(1, 2), 1, Fraction(3, 2)]


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_budgets_are_filled_to_one_percent_and_never_exceeded(share: int) -> None:
    """Fills a hundred random budgets, by default a quarter of them."""
    short = 0
    for build, cases in ((resnet_20_widths, 85 // share), (mobilenetv2_widths, 15 // share)):
        chain = meta(build)
        for number in range(cases):
            alive, largest, cost, limit = random_case(chain, number)
            before = widened(alive, largest_multiplier(alive, largest, cost, limit), largest)
            after = filled(before, alive, largest, cost, limit=limit, share=0.01)
            assert all(before[name] <= after[name] <= largest[name] for name in alive)
            assert all(bool(after[name]) == bool(alive[name]) for name in alive)
            full = all(after[name] == largest[name] for name in alive if alive[name])
            assert full or 0.99 * limit <= cost(after) <= limit
            short += cost(before) < 0.99 * limit
    assert short > 10 // share  # the multiplier alone would not suffice


def test_random_widths_cost_as_much_as_those_of_morphnet() -> None:
    chain = meta(resnet_20_widths)
    _, largest, cost, _ = random_case(chain, 1)
    seed = {name: int(width) for name, width in chain.seed.items()}
    limit, rng = 0.5 * cost(seed), random.Random(0)
    drawn = [random_widths(rng, seed, largest, cost, limit=limit, share=0.01) for _ in range(8)]
    assert all(0.99 * limit <= cost(widths) <= limit for widths in drawn)
    assert all(1 <= widths[name] <= largest[name] for widths in drawn for name in seed)
    ratios = [widths["stage3.block1.mid"] / widths["stem.width"] for widths in drawn]
    assert max(ratios) > 4 * min(ratios)
    assert drawn[0] == random_widths(random.Random(0), seed, largest, cost, limit=limit, share=0.01)
    uniform = equal_widths(seed, largest, cost, limit=limit, share=0.01)
    assert all(0.6 <= uniform[name] / width <= 0.8 for name, width in seed.items())
    assert cost(equal_widths(seed, largest, cost, limit=limit, share=0)) <= cost(uniform)
    with pytest.raises(InputError, match="no random widths come within 1%"):
        random_widths(rng, seed, largest, cost, limit=2 * cost(largest), share=0.01, tries=3)
