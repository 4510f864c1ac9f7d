"""Random search without replacement: the baseline that every other searcher must beat (Li & Talwalkar, 2019)."""

from collections.abc import Sequence

from searchers.loop import Feasible
from searchers.proposals import Visited, up_to
from searchers.study import Trial
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class RandomSearch:
    """Uniform draws from the space, each network at most once.

    Uniform over architectures: a network that several of them describe is as much likelier to come early. After
    `proposals.TRIES` draws (fewer in a small space) without a new network it returns what it has, and finally nothing:
    the space, or the part of it within the limits, is then exhausted or nearly so.

    Args:
        space: to draw from.
        seed: of its draws.
        metric: only names the best trial; draws ignore the scores.
        feasible: limits that every proposal keeps; None for none.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, metric: str = "accuracy", feasible: Feasible | None = None
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self._visited = Visited(space, feasible)

    def ask(self, n: int) -> list[Arch]:
        """Up to `n` networks not asked for before. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._unseen)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Trials that were not asked for (a warm start) will not be asked for either."""
        self._visited.tell(trials)

    def _unseen(self) -> Arch | None:
        rng = generator("random search", self.seed, len(self._visited))  # a stream per proposal: no state but the keys
        return self._visited.sample(rng)
