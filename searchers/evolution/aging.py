"""Aging evolution: tournament selection among the recent."""

from collections import deque
from collections.abc import Sequence

from searchers.loop import Feasible
from searchers.proposals import sample, within
from searchers.study import Trial, score
from supernet.errors import InputError
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class AgingEvolution:
    """Regularized evolution (Real et al., AAAI 2019, Algorithm 1): the oldest of the population dies, not the worst.

    The first `population_size` architectures are random. After that, each is the mutated winner of a tournament, and
    every trial told enters the population on one side and pushes the oldest out on the other. Any number may be asked
    for at a time; children asked for together have parents from the same population. A failed trial enters nothing.

    Args:
        space: to search; a mutation gives one active decision another value.
        seed: of its draws.
        metric: to maximise; with a leading minus, to minimise.
        feasible: limits that every proposal keeps; None for none. Where no mutation of a parent keeps them, a random
            architecture within the limits takes its place.
        population_size: P of the paper.
        tournament_size: S of the paper, drawn with replacement; 1 is no selection at all.
        identity: probability of the identity mutation, which proposes the parent again.
        aging: False for the paper's control (§ 3.2, non-aging evolution): not the oldest dies but the worst of a
            tournament, drawn anew for each trial told since the scores of a batch come together.

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
        aging: bool = True,
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
        self.aging = aging
        self._rng = generator("aging evolution", seed)
        self._population: deque[Trial] = deque()
        self._pending = 0  # asked for and not told yet

    def ask(self, n: int) -> list[Arch]:
        """`n` architectures. Raises `InputError` if the limits exclude every draw."""
        return [self._next() for _ in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials enter the population; those outside the limits, which only a warm start can bring, do not."""
        self._pending = max(0, self._pending - len(trials))
        for trial in trials:
            if not trial.failed and (self.feasible is None or self.feasible(trial.arch)):
                if len(self._population) == self.population_size:
                    self._bury()
                self._population.append(trial)

    def _next(self) -> Arch:
        random = len(self._population) + self._pending < self.population_size or not self._population
        self._pending += 1
        if random:
            return sample(self.space, self._rng, self.feasible)
        if self._rng.random() < self.identity:
            return self._parent().arch
        child = within(lambda: self.space.mutate_one(self._parent().arch, self._rng), self.feasible)
        return sample(self.space, self._rng, self.feasible) if child is None else child

    def _parent(self) -> Trial:
        tournament = self._rng.choices(self._population, k=self.tournament_size)
        return max(tournament, key=lambda trial: score(trial, self.metric))

    def _bury(self) -> None:
        if self.aging:
            self._population.popleft()
        else:
            tournament = self._rng.choices(range(len(self._population)), k=self.tournament_size)
            del self._population[min(tournament, key=lambda i: score(self._population[i], self.metric))]
