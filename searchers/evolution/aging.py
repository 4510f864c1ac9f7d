"""Aging evolution: tournament selection among the most recent architectures."""

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import sample, within
from searchers.study import Trial, preference
from supernet.checked import Count, Probability, Seed, arguments_explained, checked_arguments
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class AgingEvolution:
    """Regularized evolution (Real et al., AAAI 2019, Algorithm 1): the oldest member of the population dies.

    The first `population_size` architectures are random. After that, each is the mutated winner of a tournament. Every
    scored trial enters the population and pushes out the oldest member. Any number may be asked for at a time;
    children that are asked for together have parents from the same population. A failed trial does not enter. Of
    members with equal scores, the one with the fewest MACs wins a tournament.

    Args:
        space: the space to search; a mutation gives one active decision another value.
        seed: the seed of its draws.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits. If no mutation of a parent keeps them, a
            random architecture within the limits takes its place.
        population_size: P of the paper.
        tournament_size: S of the paper, drawn with replacement; 1 means no selection.
        identity: the probability of the identity mutation, which proposes the parent again.
        aging: False for the paper's control (§ 3.2, non-aging evolution): the worst of a tournament dies instead of the
            oldest. A new tournament is drawn for each trial, since the scores of a batch arrive together.

    Raises:
        InputError: a size below 1, or a probability outside [0, 1].
    """

    @staticmethod
    @checked_arguments
    def for_budget(
        space: SearchSpace, evaluations: Count, overrides: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Settings for a small budget: a tenth of it, from 10 to the published 100, and tournaments of a quarter.

        With the published population the first 100 networks are random.

        Args:
            space: not used.
            evaluations: the number of networks that the search will score.
            overrides: settings chosen by hand, which the others then suit.
        """
        population = int(overrides.get("population_size", min(100, max(10, evaluations // 10))))
        return {} if population >= 100 else {"population_size": population, "tournament_size": max(2, population // 4)}

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        population_size: Count = 100,
        tournament_size: Count = 25,
        identity: Probability = 0.05,
        aging: bool = True,
    ) -> None:
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
        self._pending = 0  # proposed and not scored yet

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes `n` architectures. Raises `InputError` if the limits exclude every draw."""
        return [self._next() for _ in range(n)]

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Adds the trials to the population, except those outside the limits, which only a warm start can bring."""
        self._pending = max(0, self._pending - len(trials))
        for trial in trials:
            if not trial.failed and (self.feasible is None or self.feasible(trial.arch)):
                if len(self._population) == self.population_size:
                    self._remove_one()
                self._population.append(trial)

    def _next(self) -> Arch:
        initial = len(self._population) + self._pending < self.population_size or not self._population
        self._pending += 1
        if initial:
            return sample(self.space, self._rng, self.feasible)
        if self._rng.random() < self.identity:
            return self._parent().arch
        child = within(lambda: self.space.mutate_one(self._parent().arch, self._rng), self.feasible)
        return sample(self.space, self._rng, self.feasible) if child is None else child

    def _parent(self) -> Trial:
        tournament = self._rng.choices(self._population, k=self.tournament_size)
        return max(tournament, key=lambda trial: preference(trial, self.metric))

    def _remove_one(self) -> None:
        if self.aging:
            self._population.popleft()
        else:
            tournament = self._rng.choices(range(len(self._population)), k=self.tournament_size)
            del self._population[min(tournament, key=lambda i: preference(self._population[i], self.metric))]
