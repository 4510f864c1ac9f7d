"""The benchmark of shared weights against paths alone: how steps are counted, and its tables."""

from pathlib import Path

import pytest
from torch import nn

from helpers.scripts import Call, one_line
from supernet import Chain, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import largest
from supernet_tools.benchmarks.alone import own_steps


def test_steps_are_counted_per_weight() -> None:
    options: dict[str, nn.Module] = {f"conv{k}": ConvBNAct(4, 4, kernel=k) for k in (1, 3)}
    head = ClassifierHead(4, 2, hidden=4)
    chain = Chain("toy", [("block", ChoiceBlock(options)), ("head", head)], input_shape=(4, 8, 8))
    small, large = (chain.space.from_indices([index]) for index in (0, 1))
    counts = own_steps(chain, [[small], [large], [large], [small, large]], [small, large])
    always = 4 * sum(parameter.numel() for parameter in head.parameters())
    rest = always // 4
    for counted, kernel, steps in zip(counts, (1, 3), (2, 3), strict=True):
        own = 4 * 4 * kernel**2 + 8  # the convolution and its batch norm
        assert counted == pytest.approx((always + steps * own) / (rest + own))


def test_a_slice_that_several_architectures_use_counts_once_in_a_step() -> None:
    supernet = create_supernet("plain-small-widths", num_classes=2, input_size=8, in_channels=1)
    ends = [supernet.space.from_indices([0] * len(supernet.space)), largest(supernet.space)]
    assert own_steps(supernet, [ends], ends) == [1.0, 1.0]
    only_small = own_steps(supernet, [ends[:1]], ends)
    assert only_small[0] == 1.0
    assert 0 < only_small[1] < 0.5


def test_a_run_is_compared_with_its_paths_alone(call: Call, tiny_run: Path) -> None:
    code, out, err = call("benchmarks.alone", tiny_run, "--paths", 2, "--bn-batches", 1)
    assert code == 0, err
    assert "means over 2 paths each" in out
    one_line(call("benchmarks.alone", tiny_run, "--paths", 0), "paths=0 and 1 runs compare nothing")
