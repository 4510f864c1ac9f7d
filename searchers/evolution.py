"""Evolutionary searchers."""

from collections import deque
from collections.abc import Sequence

from searchers.loop import Feasible
from searchers.proposals import propose
from searchers.study import Trial, score
from supernet.errors import InputError
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class AgingEvolution:
    """Regularized evolution (Real et al., AAAI 2019, Algorithm 1): the oldest of the population dies, not the worst.

    The first `population_size` architectures are random. After that, each is the mutated winner of a tournament, and
    every trial told enters the population on one side and pushes the oldest out on the other. Any number may be asked
    for at a time; children asked for together have parents from the same population.

    Args:
        space: to search; a mutation gives one active decision another value.
        seed: of its draws.
        metric: to maximise; with a leading minus, to minimise.
        feasible: limits that every proposal keeps; None for none.
        population_size: P of the paper.
        tournament_size: S of the paper, drawn with replacement; 1 is no selection at all.
        identity: probability of the identity mutation, which proposes the parent again.

    Raises:
        InputError: a size below 1, or a probability outside [0, 1].
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        metric: str = "accuracy",
        feasible: Feasible | None = None,
        population_size: int = 100,
        tournament_size: int = 25,
        identity: float = 0.05,
    ) -> None:
        for name, size in (("population_size", population_size), ("tournament_size", tournament_size)):
            if size < 1:
                raise InputError(f"{name}={size} is too small; give at least 1")
        if not 0 <= identity <= 1:
            raise InputError(f"identity={identity} is no probability; give a number from 0 to 1")
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.population_size = population_size
        self.tournament_size = tournament_size
        self.identity = identity
        self._rng = generator("aging evolution", seed)
        self._population: deque[Trial] = deque(maxlen=population_size)
        self._asked = 0
        self._told = 0

    def ask(self, n: int) -> list[Arch]:
        """`n` architectures. Raises `InputError` if the limits exclude every draw."""
        return [self._next() for _ in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials enter the population; those outside the limits, which only a warm start can bring, do not."""
        fit = [trial for trial in trials if self.feasible is None or self.feasible(trial.arch)]
        self._population.extend(fit)
        self._told += len(fit)
        self._asked = max(self._asked, self._told)

    def _next(self) -> Arch:
        self._asked += 1
        if self._asked <= self.population_size or not self._population:
            return propose(lambda: self.space.sample(self._rng), self.feasible)
        if self._rng.random() < self.identity:
            return self._parent().arch
        return propose(lambda: self.space.mutate_one(self._parent().arch, self._rng), self.feasible)

    def _parent(self) -> Trial:
        sample = self._rng.choices(self._population, k=self.tournament_size)
        return max(sample, key=lambda trial: score(trial, self.metric))
