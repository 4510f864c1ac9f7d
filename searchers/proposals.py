"""Drawing within limits, with a bound on the tries: a limit that nothing meets is an error, never a hang."""

from collections.abc import Callable

from searchers.loop import Feasible
from supernet.errors import InputError
from supernet.space import Arch

TRIES = 10_000
"""Finds a share of 0.1 % of the draws with probability 1 − 5e-5, and gives up within seconds."""


def propose(draw: Callable[[], Arch], feasible: Feasible | None, *, tries: int = TRIES) -> Arch:
    """The first of `draw()`, `draw()`, … within the limits; the first one if there are none.

    Raises:
        InputError: none of `tries` draws is; the message holds what `feasible` can explain.
    """
    for _ in range(tries):
        arch = draw()
        if feasible is None or feasible(arch):
            return arch
    assert feasible is not None
    raise nothing_fits(feasible, tries)


def nothing_fits(feasible: Feasible, tries: int) -> InputError:
    """The error for limits that none of `tries` draws met."""
    limits = getattr(feasible, "limits", None)
    within = "" if limits is None else f" {dict(limits)}"
    explain = getattr(feasible, "explain", None)
    reason = "loosen the limit" if explain is None else explain()
    return InputError(f"none of {tries:,} proposals is within the limits{within}; {reason}")
