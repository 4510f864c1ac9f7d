"""Draws within limits, with bounded retries: a limit that nothing meets is an error and never a hang."""

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from random import Random

from searchers.loop import Feasible
from searchers.study import Trial
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

TRIES = 10_000
"""Random draws before giving up, which takes seconds. They find a legal share of 0.1 % with probability 1 − 5e-5."""

CHILD_TRIES = 100
"""Mutations or crossovers to try before a random draw takes their place. A limit rejects about half of the mutations of
an architecture that barely meets it."""


def sampler(space: SearchSpace, rng: Random, feasible: Feasible | None) -> Callable[[], Arch]:
    """A function that draws within the limits if they offer exact draws, and from the whole space otherwise."""
    exact: Callable[[Random], Arch] | None = getattr(feasible, "sample", None)
    return (lambda: space.sample(rng)) if exact is None else (lambda: exact(rng))


def sample(space: SearchSpace, rng: Random, feasible: Feasible | None) -> Arch:
    """Draws a random architecture within the limits.

    Raises:
        InputError: there is none, or none of `TRIES` draws is within; the message includes what `feasible` explains.
    """
    arch = within(sampler(space, rng, feasible), feasible, tries=TRIES)
    if arch is None:
        assert feasible is not None
        raise nothing_fits(feasible, TRIES)
    return arch


def within(draw: Callable[[], Arch], feasible: Feasible | None, *, tries: int = CHILD_TRIES) -> Arch | None:
    """Draws up to `tries` times and returns the first architecture within the limits, or None."""
    for _ in range(tries):
        arch = draw()
        if feasible is None or feasible(arch):
            return arch
    return None


def nothing_fits(feasible: Feasible, tries: int) -> InputError:
    """The error for limits that none of `tries` draws met."""
    limits = getattr(feasible, "limits", None)
    named = "" if limits is None else f" {dict(limits)}"
    explain = getattr(feasible, "explain", None)
    reason = "loosen the limit" if explain is None else explain()
    return InputError(f"none of {tries:,} proposals is within the limits{named}; {reason}")


def up_to(n: int, *draws: Callable[[], Arch | None]) -> list[Arch]:
    """Collects `n` architectures, each from the first of the draws that returns one, or fewer once none does."""
    archs: list[Arch] = []
    while len(archs) < n:
        arch = next((drawn for draw in draws if (drawn := draw()) is not None), None)
        if arch is None:
            break
        archs.append(arch)
    return archs


class Visited:
    """The networks that a search has seen, by the keys of their normal forms, and need not propose again."""

    def __init__(self, space: SearchSpace, feasible: Feasible | None) -> None:
        self._space = space
        self._feasible = feasible
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, arch: Arch) -> bool:
        return self._space.normal_form(arch).key in self._keys

    def add(self, arch: Arch) -> None:
        """Notes a proposal."""
        self._keys.add(self._space.normal_form(arch).key)

    def tell(self, trials: Iterable[Trial]) -> None:
        """Notes trials, those of a warm start among them."""
        self._keys.update(trial.key for trial in trials)

    def admit(self, arch: Arch) -> bool:
        """Returns whether the network is new and within the limits, and if so notes it."""
        key = self._space.normal_form(arch).key
        if key in self._keys or not (self._feasible is None or self._feasible(arch)):
            return False
        self._keys.add(key)
        return True

    def claim(self, draw: Callable[[], Arch], *, tries: int) -> Arch | None:
        """Draws up to `tries` times; notes and returns the first network that is new and within the limits, or None."""
        for _ in range(tries):
            arch = draw()
            if self.admit(arch):
                return arch
        return None

    def sample(self, rng: Random) -> Arch | None:
        """Draws a random network that is new and within the limits; None if many draws suggest that all are known.

        Raises:
            InputError: the limits exclude every draw.
        """
        draw = sampler(self._space, rng, self._feasible)
        arch = self.claim(draw, tries=CHILD_TRIES)
        if arch is None:
            arch = self.claim(draw, tries=self._most_tries)
        if arch is None and self._feasible is not None and not self._keys:
            raise nothing_fits(self._feasible, CHILD_TRIES + self._most_tries)
        return arch

    @cached_property
    def _most_tries(self) -> int:
        """`TRIES`, or fewer in a small space: 20 n draws miss an architecture of probability 1/n with e**-20."""
        rarest = math.prod(len(choice.options) for choice in self._space.choices)
        count: Callable[[], int | None] = getattr(self._feasible, "count", lambda: None)
        if hasattr(self._feasible, "sample") and (fit := count()) is not None:
            rarest = min(rarest, fit)  # since exact draws are uniform
        return min(TRIES, 20 * rarest)
