"""Scoring a batch of architectures by all processes of a torchrun; rank 0 alone knows the searcher and its study."""

import bisect
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from supernet.errors import RunError
from supernet.space import Arch, SearchSpace
from supernet.training.distributed import World

Metrics = Mapping[str, float]
Evaluate = Callable[[Sequence[Arch]], Sequence[Metrics | None]]


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """A connection that breaks is no failure of an architecture: it ends the search, which goes on when restarted."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"a process of the group is gone ({str(error).splitlines()[0]}); what was recorded is kept, start again"
        ) from error


class ParallelEvaluator:
    """Shares out the architectures of each call among the processes of a group, and returns the same scores as one.

    Rank 0 calls it like the evaluator that it wraps, and `close` at the end; every other rank calls `serve`, which
    returns then. Neighbours in index order go to one process, so that shared prefixes stay together; the shares are
    balanced by a cost.

    Args:
        evaluate: the evaluator of each process, over the same supernet and images.
        space: of the architectures.
        world: the process group.
        costs: an architecture's costs, which rank 0 adds to its scores.
        balance: the one of them that says how long scoring takes; all take equally long if None.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        space: SearchSpace,
        world: World,
        *,
        costs: Callable[[Arch], Metrics] | None = None,
        balance: str | None = None,
    ) -> None:
        assert balance is None or costs is not None
        self.evaluate, self.space, self.world, self.costs, self.balance = evaluate, space, world, costs, balance

    @property
    def settings(self) -> Mapping[str, Any]:
        """What scores depend on; the number of processes is not part of it."""
        settings: Mapping[str, Any] = getattr(self.evaluate, "settings", {})
        return settings

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics | None]:
        """One mapping per architecture, in order; on rank 0.

        Raises:
            RuntimeError: the evaluation raised in a process; its words are repeated. Architectures that were scored
                before are in the cache, if the evaluator has one.
            RunError: a process is gone, so that nothing can be scored any more.
        """
        assert self.world.main, "only rank 0 asks for scores; the others serve"
        order = sorted(range(len(archs)), key=lambda i: self.space.to_indices(archs[i]))
        shares = self._shares([archs[i] for i in order])
        message = json.dumps([[dict(arch) for arch in share] for share in shares]).encode()
        with _told_apart():
            self.world.from_main(message)
        answers = self._answers(shares[0])
        found: list[Metrics | None] = [None] * len(archs)
        for i, answer in zip(order, itertools.chain(*answers), strict=True):
            found[i] = answer if answer is None or self.costs is None else {**answer, **self.costs(archs[i])}
        return found

    def serve(self) -> None:
        """Score this rank's shares until rank 0 closes."""
        while message := self.world.from_main(b""):
            shares = json.loads(message)
            self._answers([Arch(values) for values in shares[self.world.rank]])

    def close(self) -> None:
        """Let the other ranks go, those that are still there; on rank 0."""
        with contextlib.suppress(RuntimeError):
            self.world.from_main(b"")

    def _answers(self, share: Sequence[Arch]) -> list[list[Metrics | None]]:
        """Score a share and exchange the answers of all ranks."""
        mine: dict[str, Any]
        try:
            scores = self.evaluate(share) if share else []
            mine = {"scores": [m if m is None else {name: float(v) for name, v in m.items()} for m in scores]}
        except Exception as error:  # whatever a user's metric may raise: the other ranks wait for an answer
            mine = {"error": f"{type(error).__name__}: {error}"}
        with _told_apart():
            gathered = self.world.gather(json.dumps(mine).encode())
        answers = [json.loads(answer) for answer in gathered]
        failed = [(rank, answer["error"]) for rank, answer in enumerate(answers) if "error" in answer]
        if failed and self.world.main:
            raise RuntimeError(f"scoring failed in rank {failed[0][0]}: {failed[0][1]}")
        return [answer.get("scores", []) for answer in answers]

    def _shares(self, archs: Sequence[Arch]) -> list[list[Arch]]:
        """Consecutive pieces of about equal cost, one per rank."""
        spent = list(itertools.accumulate(map(self._weight, archs)))
        total = spent[-1] if spent else 0.0
        cuts = [bisect.bisect_left(spent, total * rank / self.world.size) for rank in range(1, self.world.size)]
        bounds = [0, *(min(cut + 1, len(archs)) if total else 0 for cut in cuts), len(archs)]
        return [list(archs[start:stop]) for start, stop in itertools.pairwise(bounds)]

    def _weight(self, arch: Arch) -> float:
        return 1.0 if self.costs is None or self.balance is None else self.costs(arch)[self.balance]
