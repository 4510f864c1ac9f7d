"""Generational evolution from the best networks of the whole history: the searcher of SPOS and DetNAS."""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, Self

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import Visited, up_to
from searchers.study import Trial, preference
from supernet.checked import Count, Natural, Probability, Seed, Size, arguments_explained, checked_arguments
from supernet.errors import InputError
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace, Value

Crossover = Literal["uniform", "one-point"]

CHILD_TRIES = 10
"""Tries per mutant or crossover, as in the released code of SPOS (`max_iters = 10 * m`)."""


class TopKEvolution:
    """Evolution over a supernet (SPOS: Guo et al., ECCV 2020, Algorithm 1; DetNAS: Chen et al., NeurIPS 2019, § 3.2.3).

    The first generation is random. Each later one has `mutants` mutations and `crossovers` crossovers of random parents
    among the `parents` best networks of the whole history, and is filled up with random networks. Only networks not
    proposed before are legal. Each child has `CHILD_TRIES` tries; if all fail, a random network takes its place
    (released code instead retries for ever, or leaves the generation short). When `proposals.TRIES` random draws give
    nothing new, fewer architectures are returned than asked for, and finally none.

    Any number may be asked for at a time. A generation is bred when its first member is asked for, from the trials
    known by then. The published schedule is a batch that divides `population_size`.

    Args:
        space: the space to search.
        seed: the seed of its draws.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits.
        population_size: the size of a generation.
        parents: how many of the best networks so far breed (k, "top 10").
        mutants: mutations per generation.
        crossovers: crossovers per generation.
        mutation: the probability that an active decision is redrawn, possibly to its old value.
        crossover: "uniform" (each decision from either parent, as published) or "one-point" (the decisions before a
            cut from one parent, the others from the other).

    Raises:
        InputError: sizes that do not fit together, a probability outside [0, 1], or an unknown crossover.
    """

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        population_size: Size = 50,
        parents: Count = 10,
        mutants: Natural = 20,
        crossovers: Natural = 20,
        mutation: Probability = 0.1,
        crossover: Crossover = "uniform",
    ) -> None:
        if population_size < mutants + crossovers:
            raise InputError(
                f"population_size={population_size} has no room for {mutants} mutants and {crossovers} crossovers"
            )
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.population_size = population_size
        self.parents = parents
        self.mutants = mutants
        self.crossovers = crossovers
        self.mutation = mutation
        self.crossover: Crossover = crossover
        self._rng = generator("top-k evolution", seed)
        self._visited = Visited(space, feasible)
        self._best: list[Trial] = []  # distinct networks, best first
        self._generation: deque[Callable[[], Arch | None]] = deque()

    @classmethod
    def detnas(cls, space: SearchSpace, **settings: Any) -> Self:
        """The released settings of DetNAS: 20 mutants, 20 crossovers and 10 random networks in each of 20 generations.

        The paper's limit is 300 million MACs for the backbone. `settings` takes all arguments of the constructor.
        """
        return cls(space, **{"population_size": 50, "parents": 10, "mutants": 20, "crossovers": 20, **settings})

    @classmethod
    def spos(cls, space: SearchSpace, **settings: Any) -> Self:
        """The settings of SPOS: 25 mutants and 25 crossovers in each of 20 generations.

        The paper's limit is 330 million MACs. `settings` takes all arguments of the constructor.
        """
        return cls(space, **{"population_size": 50, "parents": 10, "mutants": 25, "crossovers": 25, **settings})

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._next, lambda: self._visited.sample(self._rng))

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Merges the trials into the best. Failed ones and those outside the limits are only not proposed again."""
        self._visited.tell(trials)
        known = {trial.key for trial in self._best}
        for trial in trials:
            legal = not trial.failed and (self.feasible is None or self.feasible(trial.arch))
            if legal and trial.key not in known:
                known.add(trial.key)
                self._best.append(trial)
        self._best.sort(key=lambda trial: preference(trial, self.metric), reverse=True)  # stable, also in reverse
        del self._best[self.parents :]

    def _next(self) -> Arch | None:
        if not self._generation:
            self._generation.extend(self._next_generation())
        return self._generation.popleft()()

    def _next_generation(self) -> list[Callable[[], Arch | None]]:
        """Returns how to draw each member of the next generation."""
        parents = list(self._best)
        if not parents:
            return [self._random] * self.population_size
        random = self.population_size - self.mutants - self.crossovers
        mutants = [lambda: self._child(lambda: self._mutant(parents))] * self.mutants
        crossovers = [lambda: self._child(lambda: self._crossed(parents))] * self.crossovers
        return [*mutants, *crossovers, *[self._random] * random]

    def _random(self) -> Arch | None:
        return self._visited.sample(self._rng)

    def _child(self, draw: Callable[[], Arch]) -> Arch | None:
        return self._visited.claim(draw, tries=CHILD_TRIES)

    def _mutant(self, parents: Sequence[Trial]) -> Arch:
        return self.space.mutate(self._rng.choice(parents).arch, self._rng, self.mutation)

    def _crossed(self, parents: Sequence[Trial]) -> Arch:
        """A crossover of two parents, which may be the same one, as in the released code."""
        first, second = self._rng.choice(parents).arch, self._rng.choice(parents).arch
        cross = self.space.crossover if self.crossover == "uniform" else self._one_point
        return cross(first, second, self._rng)

    def _one_point(self, first: Arch, second: Arch, rng: Random) -> Arch:
        """Takes decisions before a random cut from `first`, others from `second`; if inactive there, from the other."""
        active = [{choice.name for choice in self.space.active(parent)} for parent in (first, second)]
        cut = rng.randint(1, max(1, len(self.space) - 1))
        values: dict[str, Value] = {}
        for position, choice in enumerate(self.space.choices):
            sides = (0, 1) if position < cut else (1, 0)
            inherited = [(first, second)[side][choice.name] for side in sides if choice.name in active[side]]
            values[choice.name] = inherited[0] if inherited else choice.draw(rng)
        return self.space.canonical(values)
