"""What the demo says of the winner and its controls, and which networks are on its front."""

from typing import Any

import pytest

from supernet.space import Arch
from supernet_tools import quickstart


def rows(*tests: list[float]) -> list[dict[str, Any]]:
    names = ("winner", "simple: largest", "random 1", "random 2")
    return [{"network": name, "test": values} for name, values in zip(names, tests, strict=False)]


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (
            ([0.9, 0.8], [0.9, 0.9], [0.7, 0.7]),
            "(0.8500) is at least the best of 1 random networks (0.7000)",
        ),
        (([0.8], [0.7], [0.9], [0.6]), "the winner (0.8000) is below 1 of 2 random networks (0.9000)"),
        (([0.5], [0.7], [0.9], [0.6]), "is below 2 of 2 random networks (0.9000); simple: largest: 0.7000"),
    ],
)
def test_the_sentence_counts_the_random_networks_that_are_better(tests: tuple[list[float], ...], said: str) -> None:
    assert said in quickstart.verdict(rows(*tests))


def test_the_front_joins_all_searches() -> None:
    """No network of it is dominated, and those that were trained carry their accuracy."""
    cheap, middle, dear, worse = (Arch({"layer": name}) for name in ("none", "k3", "k7", "k5"))

    def point(arch: Arch, accuracy: float, macs: float) -> dict[str, Any]:
        return {"arch": dict(arch), "accuracy": accuracy, "macs": macs, "params": 1}

    searches = {
        "a": {"front": [point(cheap, 0.5, 1.0), point(dear, 0.9, 7.0)]},
        "b": {"front": [point(middle, 0.8, 3.0), point(worse, 0.7, 5.0)]},
    }
    trained = {"networks": [{"key": dear.key, "scores": [0.9, 0.8]}, {"key": cheap.key, "scores": []}]}
    front = quickstart.front(searches, trained)
    assert [row["key"] for row in front] == [cheap.key, middle.key, dear.key]
    assert [row["trained"] for row in front] == [None, None, pytest.approx(0.85)]
