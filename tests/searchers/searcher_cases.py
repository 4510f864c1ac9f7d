"""What the tests of the searchers share: small spaces, deterministic scores, and evaluators that keep count."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from searchers import AgingEvolution, RandomSearch, Searcher, Trial
from supernet.space import Arch, Choice, SearchSpace, Value

OPS = ("skip", "k3", "k5")


def skips_last(arch: Arch) -> dict[str, Value]:
    """Where a skip stands makes no difference: skips move to the end."""
    kept = [value for value in arch.values() if value != "skip"]
    return dict(zip(arch, kept + ["skip"] * (len(arch) - len(kept)), strict=True))


def chain_space(layers: int = 6, *, form: bool = True) -> SearchSpace:
    """`3**layers` architectures; with the form, `2**(layers + 1) - 1` networks."""
    choices = [Choice(f"layer{i}", OPS) for i in range(layers)]
    return SearchSpace(f"chain{layers}", choices, skips_last if form else None)


def noise(arch: Arch) -> float:
    """A number in [0, 100) that is a pure function of the architecture."""
    return int(hashlib.sha256(arch.to_json().encode()).hexdigest()[:8], 16) % 10_000 / 100


@dataclass
class Counter:
    """An evaluator that records every architecture it is shown, by call."""

    fail_at: int | None = None
    calls: list[list[Arch]] = field(default_factory=list)

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(list(archs))
        return [{"accuracy": noise(arch), "loss": 100 - noise(arch) / 2} for arch in archs]

    @property
    def shown(self) -> list[Arch]:
        """All architectures in the order shown."""
        return [arch for call in self.calls for arch in call]


@dataclass(frozen=True)
class AtMost:
    """At most `limits["k5"]` layers of the costly operation."""

    limits: Mapping[str, float]

    def __call__(self, arch: Arch) -> bool:
        return sum(value == "k5" for value in arch.values()) <= self.limits["k5"]

    def explain(self) -> str:
        """The sentence that the error should hold."""
        return "the smallest k5 of this space is 0"


Make = Callable[..., Searcher]


def small_evolution(space: SearchSpace, **settings: object) -> AgingEvolution:
    """Aging evolution that leaves its random phase within a short test."""
    return AgingEvolution(space, **{"population_size": 10, "tournament_size": 4, **settings})  # type: ignore[arg-type]


MAKERS: dict[str, Make] = {"random": RandomSearch, "evolution": small_evolution}


def trial(number: int, arch: Arch, accuracy: float, *, space: SearchSpace | None = None) -> Trial:
    """A trial of its own batch, as a search would tell it."""
    key = arch.key if space is None else space.normal_form(arch).key
    return Trial(number, arch, key, {"accuracy": accuracy}, False, 0.0, number)
