"""Progressive shrinking: which options are open at a step, and what is drawn from them."""

import pytest

from supernet import Choice, SearchSpace
from supernet.errors import InputError
from supernet.training.opening import Opening, opened, parse_openings
from supernet.training.sampling import ArchSampler, sandwich, uniform
from supernet_tools.pipeline.config import are_openings

SPACE = SearchSpace(
    "nested",
    [
        Choice("depth", (1, 2, 3), ordered=True),
        *(Choice(f"block{i}.kernel", (3, 5, 7), ("depth", tuple(range(i + 1, 4))), ordered=True) for i in range(3)),
        Choice("op", ("a", "b")),
    ],
)


def drawn(sampler: ArchSampler, steps: range, name: str) -> set[object]:
    return {arch[name] for step in steps for arch in sampler(step)}


def test_options_open_one_by_one_from_the_largest_down() -> None:
    sampler = opened(SPACE, [Opening("kernel", 100, 200), Opening("depth", 50, 50)], uniform)
    assert drawn(sampler, range(50), "depth") == {3}
    assert drawn(sampler, range(50, 100), "depth") == {1, 2, 3}
    assert drawn(sampler, range(100), "block0.kernel") == {7}
    assert drawn(sampler, range(100, 150), "block0.kernel") == {5, 7}
    assert drawn(sampler, range(200, 300), "block0.kernel") == {3, 5, 7}
    assert drawn(sampler, range(20), "op") == {"a", "b"}  # no opening covers it
    assert all(arch in SPACE for step in range(300) for arch in sampler(step))  # inactive kernels are as usual
    again = opened(SPACE, [Opening("kernel", 100, 200), Opening("depth", 50, 50)], uniform)
    assert [again(step) for step in (150, 10)] == [sampler(step) for step in (150, 10)]  # whatever was drawn before


def test_a_sandwich_of_one_open_architecture_trains_it_once() -> None:
    ordered = SearchSpace("ordered", [Choice("width", (8, 16, 24), ordered=True)])
    sampler = opened(ordered, [Opening("width", 10, 20)], sandwich)
    assert [dict(arch) for arch in sampler(9)] == [{"width": 24}]
    assert [arch["width"] for arch in sampler(10)][:2] == [24, 16]  # the largest, and the smallest that is open
    assert [arch["width"] for arch in sampler(20)][:2] == [24, 8]


def test_epochs_become_steps() -> None:
    assert parse_openings(["kernel=2", "expand=0.5:4"], 10) == [Opening("kernel", 20, 20), Opening("expand", 5, 40)]


def test_texts_that_are_no_openings() -> None:
    assert are_openings(("kernel=2", "expand=1:2.5"))
    for texts in (("kernel",), ("kernel=x",), ("kernel=3:2",), ("kernel=1", "kernel=2"), ("=1",)):
        assert not are_openings(texts)


def test_openings_of_no_ordered_decision_are_refused() -> None:
    with pytest.raises(InputError, match="no decision of 'nested' is named 'kernels'; did you mean 'kernel'"):
        opened(SPACE, [Opening("kernels", 1, 1)], uniform)
    with pytest.raises(InputError, match="the options of 'op' in 'nested' are not ordered"):
        opened(SPACE, [Opening("op", 1, 1)], uniform)


def test_a_space_with_fewer_options() -> None:
    fewer = SPACE.restrict({"depth": (2, 3)})
    assert fewer.size() == 2 * (9 + 27)
    assert fewer["block0.kernel"].when == ("depth", (2, 3))
    with pytest.raises(InputError, match="4 is not an option of 'depth'"):
        SPACE.restrict({"depth": (3, 4)})
    with pytest.raises(InputError, match="has no options"):
        SPACE.restrict({"depth": ()})
