"""What the quickstart shows."""

import pytest

from supernet_tools.quickstart import interval


@pytest.mark.parametrize(
    ("tau", "shown"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.751}, "0.50 (0.25 to 0.75)"),
        ({"value": 1.0, "low": None, "high": None}, "1.00 (? to ?)"),  # of two architectures
        ({"value": None, "low": None, "high": None}, "undefined"),  # equal scores
    ],
)
def test_a_correlation_without_value_or_interval_is_shown(tau: dict[str, float | None], shown: str) -> None:
    assert interval(tau) == shown
