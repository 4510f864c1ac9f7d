"""Shared by the tests of the searchers: small spaces, deterministic scores, and evaluators that record their calls."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from searchers import (
    NSGA2,
    AgingEvolution,
    LocalSearch,
    OptunaSearcher,
    PredictorSearch,
    RandomSearch,
    Reinforce,
    Searcher,
    TopKEvolution,
    Trial,
)
from supernet.space import Arch, Choice, SearchSpace, Value

OPS = ("skip", "k3", "k5")


def skips_last(arch: Arch) -> dict[str, Value]:
    """A normal form for spaces where the position of skips makes no difference: skips move to the end."""
    kept = [value for value in arch.values() if value != "skip"]
    return dict(zip(arch, kept + ["skip"] * (len(arch) - len(kept)), strict=True))


def chain_space(layers: int = 6, *, form: bool = True) -> SearchSpace:
    """A space of `3**layers` architectures, which are `2**(layers + 1) - 1` networks with the normal form."""
    choices = [Choice(f"layer{i}", OPS) for i in range(layers)]
    return SearchSpace(f"chain{layers}", choices, skips_last if form else None)


def noise(arch: Arch) -> float:
    """A number in [0, 100) that is a pure function of the architecture."""
    return int(hashlib.sha256(arch.to_json().encode()).hexdigest()[:8], 16) % 10_000 / 100


@dataclass
class Counter:
    """An evaluator that records the architectures of every call."""

    fail_at: int | None = None
    calls: list[list[Arch]] = field(default_factory=list)

    def __call__(self, archs: Sequence[Arch]) -> list[Mapping[str, float]]:
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(list(archs))
        return [{"accuracy": noise(arch), "loss": 100 - noise(arch) / 2} for arch in archs]

    @property
    def shown(self) -> list[Arch]:
        """All evaluated architectures in order."""
        return [arch for call in self.calls for arch in call]


@dataclass(frozen=True)
class AtMost:
    """At most `limits["k5"]` layers of the costly operation."""

    limits: Mapping[str, float]

    def __call__(self, arch: Arch) -> bool:
        return sum(value == "k5" for value in arch.values()) <= self.limits["k5"]

    def explain(self) -> str:
        """The sentence that the error should include."""
        return "the smallest k5 of this space is 0"


Make = Callable[..., Searcher]


def small_evolution(space: SearchSpace, **settings: object) -> AgingEvolution:
    """Aging evolution whose random phase ends within a short test."""
    return AgingEvolution(space, **{"population_size": 10, "tournament_size": 4, **settings})  # type: ignore[arg-type]


def small_topk(space: SearchSpace, **settings: object) -> TopKEvolution:
    """Top-k evolution with several generations within a short test."""
    sizes = {"population_size": 12, "parents": 4, "mutants": 5, "crossovers": 4}
    return TopKEvolution(space, **{**sizes, **settings})  # type: ignore[arg-type]


def one_point(space: SearchSpace, **settings: object) -> TopKEvolution:
    """Top-k evolution with one-point crossover and generations without random networks."""
    return small_topk(space, crossover="one-point", crossovers=7, **settings)


def non_aging(space: SearchSpace, **settings: object) -> AgingEvolution:
    """Evolution without aging."""
    return small_evolution(space, aging=False, **settings)


def small_predictor(space: SearchSpace, **settings: object) -> PredictorSearch:
    """The predictor, whose Gaussian process takes some milliseconds per proposal after the first fifteen."""
    return PredictorSearch(space, **{"initial": 15, **settings})  # type: ignore[arg-type]


def small_reinforce(space: SearchSpace, **settings: object) -> Reinforce:
    """A small policy with several updates within a short test."""
    small = {"hidden": 8, "minibatch": 14, "epochs": 1, "learning_rate": 0.002}
    return Reinforce(space, **{**small, **settings})  # type: ignore[arg-type]


def letters(arch: Arch) -> dict[str, float]:
    """A cost that depends on every decision: the number of characters of its values."""
    return {"letters": float(sum(len(str(value)) for value in arch.values()))}


def small_nsga2(space: SearchSpace, **settings: object) -> NSGA2:
    """NSGA-II with several generations within a short test; no evaluation returns its second objective, a cost."""
    objectives = (settings.get("metric", "accuracy"), "-letters")
    return NSGA2(space, population_size=8, objectives=objectives, cost=letters, **settings)  # type: ignore[arg-type]


def optuna_nsga2(space: SearchSpace, **settings: object) -> OptunaSearcher:
    """The Optuna adapter with a fast sampler that learns; TPE takes milliseconds per proposal."""
    options = {"population_size": 8}
    return OptunaSearcher(space, sampler="NSGAIISampler", options=options, **settings)  # type: ignore[arg-type]


OURS: dict[str, Make] = {
    "random": RandomSearch,
    "evolution": small_evolution,
    "non-aging": non_aging,
    "topk": small_topk,
    "one-point": one_point,
    "local": LocalSearch,
    "predictor": small_predictor,
    "nsga2": small_nsga2,
    "reinforce": small_reinforce,
}
MAKERS: dict[str, Make] = OURS | ({"optuna": optuna_nsga2} if importlib.util.find_spec("optuna") else {})
REPEAT = {"evolution", "non-aging", "reinforce"}  # searchers that may propose a network again


def trial(number: int, arch: Arch, accuracy: float, *, space: SearchSpace | None = None) -> Trial:
    """A trial that is a batch of its own; without a space, the architecture is its own normal form."""
    key = arch.key if space is None else space.normal_form(arch).key
    return Trial(number, arch, key, {"accuracy": accuracy}, False, 0.0, number)


OP3 = ("x", "y", "z")
CONDITIONAL = SearchSpace(
    "conditional",
    [
        Choice("depth", (1, 2, 3), ordered=True),
        Choice("a", OP3),
        Choice("b", OP3, when=("depth", (2, 3))),
        Choice("c", range(40), when=("depth", (3,))),
        Choice("c.scale", (0.5, 1.0, 2.0), when=("c", tuple(range(0, 40, 2))), ordered=True),
    ],
)
"""Has decisions two conditions deep, a range, ordered choices, and values that are not strings."""

SPACES = {"chain": chain_space(), "conditional": CONDITIONAL}
"""A space with a normal form and a space with conditions."""


@dataclass(frozen=True)
class Cheap:
    """Limits for any space: at most `limits["changed"]` decisions of the normal form are not at their first option."""

    space: SearchSpace
    limits: Mapping[str, float]

    def __call__(self, arch: Arch) -> bool:
        form = self.space.normal_form(arch)
        return sum(form[c.name] != c.options[0] for c in self.space.choices) <= self.limits["changed"]

    def explain(self) -> str:
        """The sentence that the error should include."""
        return "the smallest is 0"


LIMITS = {"chain": Cheap(SPACES["chain"], {"changed": 5}), "conditional": Cheap(CONDITIONAL, {"changed": 3})}
"""63 of 127 networks and 264 of 732."""
