"""The benchmark of splitting, paired and gradient-led trainings."""

import json
import re
from pathlib import Path

import pytest
import torch

from helpers.scripts import Call, one_line
from supernet.seeding import generator
from supernet.spaces import create_supernet
from supernet_tools.benchmarks import conflicts


def test_the_options_that_agree_least_are_split() -> None:
    agreement = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    value, group = conflicts.worst_split(agreement)
    assert group == (2,)
    assert value == pytest.approx(0.15)


def test_a_half_draws_its_own_options_only_and_knows_its_architectures() -> None:
    supernet = create_supernet("shufflenet-small", in_channels=1, input_size=8)
    space = supernet.space
    choice = space.choices[0]
    groups = (choice.options[:1], choice.options[1:])

    def sampler(step: int) -> tuple[object, ...]:
        return (space.sample(generator(0, "test", step)),)

    halves = [conflicts.confined(sampler, choice, group, supernet) for group in groups]  # type: ignore[arg-type]
    for half, group in zip(halves, groups, strict=True):
        drawn = [half(step)[0] for step in range(60)]
        assert {arch[choice.name] for arch in drawn} == set(group)
        for step, arch in enumerate(drawn):  # the other decisions are those of the sampler
            whole = sampler(step)[0]
            assert {**whole, choice.name: 0} == {**arch, choice.name: 0}  # type: ignore[dict-item]
    other = create_supernet("shufflenet-small", in_channels=1, input_size=8)
    trained = conflicts.Trained((supernet, other), choice, groups)
    assert all(trained.supernet(halves[1](step)[0]) is other for step in range(5))


def test_options_with_large_gradients_are_drawn_more_often() -> None:
    supernet = create_supernet("shufflenet-small", in_channels=1, input_size=8)
    space, name = supernet.space, supernet.space.choices[0].name
    draw = conflicts.ByGradients(supernet, lambda step: (space.sample(generator(0, "test", step)),), seed=0)
    weight = next(iter(supernet.parameters()))
    wanted = space.choices[0].options[1]
    for step in range(400):
        arch = space.sample(generator(1, "test", step))
        weight.grad = torch.full_like(weight, 50.0 if arch[name] == wanted else 1.0)
        draw.gradients(step, (arch,))
    drawn = [draw(step)[0][name] for step in range(50, 1050)]
    share = drawn.count(wanted) / len(drawn)
    assert share > 0.5 / len(space.choices[0].options) + 0.4  # half of the draws are uniform, and nearly all others


def test_wrong_ways_are_named(call: Call) -> None:
    one_line(call("benchmarks.conflicts", "splitt"), "'splitt'", "'split'")
    one_line(call("benchmarks.conflicts", "once", "--seeds", 0), "two --seeds")
    one_line(call("benchmarks.conflicts", "once", "--recipe", "nasbench201-cifar10"), "--truth")


@pytest.mark.slow
def test_all_ways_are_compared_and_none_is_trained_twice(call: Call, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--source", images, "--size", 8, "--epochs", 4, "--batch", 16, "--images", 16, "--seeds", 0, 1)
    code, said, err = call("benchmarks.conflicts", *flags, "--n", 12, "--out", out)
    assert code == 0, err
    assert said.count("split: ") == 2
    for way, control in conflicts.CONTROLS.items():
        assert f"{way}, seed 1: τ" in said
        assert control in said
    before = json.loads((out / "split-1.json").read_text())
    (out / "split-1.json").unlink()  # as if it had been interrupted there
    code, again, err = call("benchmarks.conflicts", *flags, "--n", 12, "--out", out)
    assert code == 0, err
    assert again.count("split: ") == 1
    assert json.loads((out / "split-1.json").read_text())["tau"] == before["tau"]
    code, _, err = call("benchmarks.conflicts", *flags, "--n", 13, "--out", out)
    assert code == 2
    assert re.search(r"^error: .*once-0\.json has the result of other settings.* --out$", err, re.MULTILINE)
