"""NSGA-II with limits handled by constrained domination (Deb et al., 2002)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import Ge

from searchers.loop import Asked, Limits, Metric
from searchers.pareto import check_objectives, crowding_distance, nondominated_sort
from searchers.proposals import CHILD_TRIES, Visited, up_to
from searchers.study import Trial
from supernet.checked import Count, Probability, Seed, arguments_explained, checked_arguments
from supernet.errors import InputError, nearest
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace, Value


@dataclass(frozen=True, eq=False)
class _Member:
    arch: Arch
    point: tuple[float, ...]
    violation: float
    rank: int = 0
    distance: float = math.inf


class NSGA2:
    """NSGA-II, the elitist genetic algorithm for several objectives (Deb, Pratap, Agarwal & Meyarivan, 2002, § III).

    The first `population_size` networks are those of `initial` and random ones. A child is a crossover of the winners
    of two binary tournaments (lower front first, then larger crowding distance), and is mutated. When as many children
    are scored as the population has members, the best of both by front and crowding distance become the next
    population. Any number may be asked for at a time; the published schedule is a batch of `population_size`.

    Unlike in the paper, children are networks never proposed before, since a repeated one would get the same score. If
    `proposals.CHILD_TRIES` children in a row are known, a random new network takes their place. Every proposal keeps
    the limits. Trials outside the limits, which a warm start may bring, take part by constrained domination: they rank
    behind all trials within, in the order of how far they exceed the limits.

    Args:
        space: the space to search.
        seed: the seed of its draws.
        metric: the metric that decides which trial of the search is the best; selection uses the objectives alone.
        feasible: the limits that every proposal keeps; None for no limits.
        objectives: metrics to maximise; with a leading minus, to minimise. A trial with an objective that is not
            finite does not become a parent.
        cost: a function that gives an architecture's objectives that the evaluation does not return, e.g. a
            `CostTable`.
        population_size: N of the paper, for thousands of evaluations. A budget of a few hundred is better spent on more
            generations: after 300 networks of NAS-Bench-Macro, 20 members cover 98.8 % of the front's hypervolume, 50
            cover 97.4 %, 100 cover 95.0 %, and random search covers 92.9 %
            (docs/benchmarks/searchers.md).
        crossover: the probability that a child has two parents.
        initial: networks that are proposed first, such as `supernet.ranking.rivals.scaled_networks(space)`: random
            networks of a large space hardly differ in their costs, and a front needs cheap and expensive ones. Those
            outside the limits are left out. They may be more than the population has members.
        mutation: the probability that an active decision takes another value, as a bit is flipped in § V of the paper;
            None for 1 over the number of decisions.

    Raises:
        InputError: invalid objectives, a population below 2, or a probability outside [0, 1]; from `tell`, a trial
            without one of the objectives.
    """

    @staticmethod
    @checked_arguments
    def for_budget(
        space: SearchSpace, evaluations: Count, overrides: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Settings for a small budget: a population of a fifteenth of it, from 10 to the published 100.

        Args:
            space: not used.
            evaluations: the number of networks that the search will score.
            overrides: settings chosen by hand, which are not looked at.
        """
        population = min(100, max(10, evaluations // 15))
        return {} if population == 100 else {"population_size": population}

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        objectives: Sequence[str] = ("accuracy", "-macs"),
        cost: Callable[[Arch], Mapping[str, float]] | None = None,
        population_size: Annotated[int, Ge(2)] = 100,
        initial: Sequence[Mapping[str, Value]] = (),
        crossover: Probability = 0.9,
        mutation: Probability | None = None,
    ) -> None:
        self.objectives = check_objectives(objectives)
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.cost = cost
        self.population_size = population_size
        self.crossover = crossover
        self.mutation = mutation
        self._first = list(dict.fromkeys(space.normal_form(space.canonical(arch)) for arch in initial))
        self.initial = [arch.key for arch in self._first]
        self._rng = generator("NSGA-II", seed)
        self._visited = Visited(space, feasible)
        self._reported: set[str] = set()
        self._population: list[_Member] = []
        self._children: list[_Member] = []  # scored since the last selection; initially the random ones

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._next_initial, self._child, lambda: self._visited.sample(self._rng))

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Adds the trials to the children and selects when there are enough. Failed ones are not proposed again."""
        self._visited.tell(trials)
        for trial in trials:
            if trial.failed or trial.key in self._reported:
                continue
            self._reported.add(trial.key)
            member = self._member(trial)
            if all(map(math.isfinite, member.point)):
                self._children.append(member)
            if len(self._children) >= self.population_size:
                self._population = self._selected([*self._population, *self._children])
                self._children = []

    def _next_initial(self) -> Arch | None:
        """The next network of `initial` that is new and within the limits."""
        return next(filter(self._visited.admit, self._first), None)

    def _member(self, trial: Trial) -> _Member:
        names = [name.removeprefix("-") for name in self.objectives]
        legal = self.feasible is None or self.feasible(trial.arch)
        limits: Mapping[str, float] = {} if self.feasible is None or legal else self.feasible.limits
        values = dict(trial.metrics)
        if self.cost is not None and not {*names, *limits} <= values.keys():
            values = {**self.cost(self.space.normal_form(trial.arch)), **values}
        for name in names:
            if name not in values:
                raise InputError(
                    f"trial {trial.number} ({trial.key}) has no objective {name!r}; {nearest(name, values)}"
                )
        signs = [-1.0 if objective.startswith("-") else 1.0 for objective in self.objectives]
        point = tuple(sign * values[name] for sign, name in zip(signs, names, strict=True))
        return _Member(trial.arch, point, 0.0 if legal else _excess(values, limits))

    def _selected(self, members: Sequence[_Member]) -> list[_Member]:
        """The next population, each member with its front and its crowding distance."""
        kept: list[_Member] = []
        fronts = nondominated_sort([m.point for m in members], [m.violation for m in members])
        for rank, front in enumerate(fronts):
            distances = crowding_distance([members[i].point for i in front])
            ranked = [
                _Member(members[i].arch, members[i].point, members[i].violation, rank, distance)
                for i, distance in zip(front, distances, strict=True)
            ]
            ranked.sort(key=lambda member: -member.distance)  # stable: ties keep the earlier first
            kept += ranked[: self.population_size - len(kept)]
        return kept

    def _child(self) -> Arch | None:
        """A new network bred from the population; None if there is no population yet or no child is new."""
        return self._visited.claim(self._bred, tries=CHILD_TRIES) if self._population else None

    def _bred(self) -> Arch:
        arch = self._parent().arch
        if self._rng.random() < self.crossover:
            arch = self.space.crossover(arch, self._parent().arch, self._rng)
        chance = 1 / max(1, len(self.space)) if self.mutation is None else self.mutation
        return self.space.mutate(arch, self._rng, chance, other=True)

    def _parent(self) -> _Member:
        """The winner of a binary tournament by the crowded comparison."""
        first, second = (self._population[self._rng.randrange(len(self._population))] for _ in range(2))
        return min(first, second, key=lambda member: (member.rank, -member.distance))


def _excess(values: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The sum of the relative excesses over the limits; infinite if the values do not show which limit is exceeded."""
    over = [(values[name] - limit) / max(abs(limit), 1e-12) for name, limit in limits.items() if name in values]
    excess = sum(value for value in over if value > 0)
    return excess if len(over) == len(limits) and excess > 0 else math.inf
