"""Random search without replacement: the baseline that every other searcher must beat (Li & Talwalkar, 2019)."""

from collections.abc import Sequence

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import Visited, up_to
from searchers.study import Trial
from supernet.checked import Seed, checked_arguments
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class RandomSearch:
    """Uniform draws from the space, each network at most once.

    Draws are uniform over architectures, so a network that several architectures describe is that much likelier to come
    early. After `proposals.TRIES` draws (fewer in a small space) without a new network it returns what it has, and
    finally nothing: the space, or the part of it within the limits, is then exhausted or nearly so.

    Args:
        space: the space to draw from.
        seed: the seed of its draws.
        metric: the metric that decides which trial is the best; draws ignore the scores.
        feasible: the limits that every proposal keeps; None for no limits.
    """

    @checked_arguments
    def __init__(
        self, space: SearchSpace, *, seed: Seed = 0, metric: Metric = "accuracy", feasible: Limits = None
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self._visited = Visited(space, feasible)

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._unseen)

    @checked_arguments
    def tell(self, trials: Sequence[Trial]) -> None:
        """Marks the networks of the trials as known, so that those of a warm start are not proposed either."""
        self._visited.tell(trials)

    def _unseen(self) -> Arch | None:
        # One stream per proposal, so that the known keys are the only state.
        rng = generator("random search", self.seed, len(self._visited))
        return self._visited.sample(rng)
