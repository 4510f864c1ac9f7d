"""Local search: move to the first better neighbour, and restart where there is none."""

from collections.abc import Sequence

from searchers.loop import Asked, Limits, Metric
from searchers.proposals import Visited, up_to
from searchers.study import Trial, score
from supernet.checked import Seed, arguments_explained, checked_arguments
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace


class LocalSearch:
    """Query-until-better hill climbing with restarts (White et al., UAI 2021, "Exploring the loss landscape in NAS").

    From a random network, its neighbours (one decision changed) are evaluated in random order until one is better;
    that one is the next centre. If none is better, the climb is over, and the next one starts at a random network that
    was not evaluated before. No network is proposed twice: the search moves to a neighbour whose known score is better,
    and skips one whose known score is not.

    Any number may be asked for at a time. When the neighbours run out, the rest of a batch is random, and the best of a
    batch becomes the next centre if it is better than the centre. When `proposals.TRIES` random draws give nothing new,
    fewer architectures are returned than asked for, and finally none.

    Args:
        space: the space to search.
        seed: the seed of its draws.
        metric: the metric to maximise; with a leading minus, to minimise.
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
        self._rng = generator("local search", seed)
        self._visited = Visited(space, feasible)
        self._known: dict[str, tuple[float, Arch]] = {}  # per network, its score and an architecture of it
        self._centre: tuple[float, Arch] | None = None
        self._neighbours: list[Arch] = []  # of the centre, not tried yet
        self._starts: set[str] = set()  # keys of random networks that were proposed and not scored yet

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        return up_to(n, self._neighbour, self._start)

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Moves to the best of the trials if it is better than the centre. Failed networks are not proposed again."""
        self._visited.tell(trials)
        legal = [t for t in trials if not t.failed and (self.feasible is None or self.feasible(t.arch))]
        scored = {trial.key: (score(trial, self.metric), trial.arch) for trial in legal}
        self._known.update(scored)
        starts, self._starts = [scored[key] for key in scored if key in self._starts], set()
        if self._centre is None or any(value > self._centre[0] for value, _ in scored.values()):
            self._move(list(scored.values()))
        elif not self._neighbours:
            self._move(starts)  # the centre is a local optimum

    def _move(self, candidates: Sequence[tuple[float, Arch]]) -> None:
        self._centre = max(candidates, key=lambda candidate: candidate[0], default=None)
        self._neighbours = [] if self._centre is None else self.space.neighbors(self._centre[1])
        self._rng.shuffle(self._neighbours)

    def _neighbour(self) -> Arch | None:
        """The next neighbour never proposed before. The centre moves to better neighbours that are known on the way."""
        while self._neighbours:
            arch = self._neighbours.pop()
            known = self._known.get(self.space.normal_form(arch).key)
            if known is not None and self._centre is not None and known[0] > self._centre[0]:
                self._move([known])
            elif known is None and self._visited.admit(arch):
                return arch
        return None

    def _start(self) -> Arch | None:
        arch = self._visited.sample(self._rng)
        if arch is not None:
            self._starts.add(self.space.normal_form(arch).key)
        return arch
