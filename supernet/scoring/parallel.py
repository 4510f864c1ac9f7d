"""Scoring of architectures by all processes of a torchrun; only rank 0 knows the searcher and its study."""

import bisect
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from supernet.errors import DamagedError, RunError
from supernet.space import Arch, SearchSpace
from supernet.training.distributed import World

Metrics = Mapping[str, float]
Evaluate = Callable[[Sequence[Arch]], Sequence[Metrics | None]]


_CAUSES: Mapping[str, type[Exception]] = {"damaged": DamagedError, "run": RunError}
"""What goes wrong in a process without the fault of an architecture, by its name in the message between processes."""


@contextlib.contextmanager
def _broken_group_reported() -> Iterator[None]:
    """Reports a broken connection as a `RunError`, which ends the search instead of failing an architecture."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"a process of the group is gone ({str(error).splitlines()[0]}); recorded trials are kept, start again"
        ) from error


class ParallelEvaluator:
    """Shares out the architectures of each call among the processes of a group; the scores are those of one process.

    Rank 0 calls it like the evaluator that it wraps, and `close` at the end; every other rank calls `serve`, which then
    returns. Neighbours in index order go to the same process, so that they can share prefixes; the shares are balanced
    by a cost.

    Args:
        evaluate: the evaluator of each process, with the same supernet and images.
        space: the space of the architectures.
        world: the process group.
        costs: the costs of an architecture, which rank 0 adds to its scores.
        balance: the name of the cost to which scoring time is proportional; if None, all take equally long.
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
        """What scores depend on; they do not depend on the number of processes."""
        settings: Mapping[str, Any] = getattr(self.evaluate, "settings", {})
        return settings

    def __call__(self, archs: Sequence[Arch]) -> list[Metrics | None]:
        """Returns one mapping per architecture, in order; to be called on rank 0.

        Raises:
            RuntimeError: the evaluation raised in some process; the message repeats that of the process. Architectures
                that were scored before are in the cache, if the evaluator has one.
            DamagedError, RunError: nothing can be scored any more, since a file that scoring needs is at fault, or a
                process is gone.
        """
        assert self.world.main, "only rank 0 asks for scores; the other ranks serve"
        order = sorted(range(len(archs)), key=lambda i: self.space.to_indices(archs[i]))
        shares = self._shares([archs[i] for i in order])
        message = json.dumps([[dict(arch) for arch in share] for share in shares]).encode()
        with _broken_group_reported():
            self.world.from_main(message)
        answers = self._answers(shares[0])
        scores: list[Metrics | None] = [None] * len(archs)
        for i, answer in zip(order, itertools.chain(*answers), strict=True):
            scores[i] = answer if answer is None or self.costs is None else {**answer, **self.costs(archs[i])}
        return scores

    def serve(self) -> None:
        """Scores this rank's shares until rank 0 closes."""
        while message := self.world.from_main(b""):
            shares = json.loads(message)
            self._answers([Arch(values) for values in shares[self.world.rank]])

    def close(self) -> None:
        """Lets the other ranks return from `serve`; to be called on rank 0. Ranks that are gone do not matter."""
        with contextlib.suppress(RuntimeError):
            self.world.from_main(b"")

    def _answers(self, share: Sequence[Arch]) -> list[list[Metrics | None]]:
        """Scores a share and exchanges the answers of all ranks."""
        own: dict[str, Any]
        try:
            scores = self.evaluate(share) if share else []
            own = {"scores": [m if m is None else {name: float(v) for name, v in m.items()} for m in scores]}
        except Exception as error:  # whatever a user's metric raises, the other ranks wait for an answer
            cause = next((name for name, kind in _CAUSES.items() if isinstance(error, kind)), "")
            own = {"error": f"{type(error).__name__}: {error}", "cause": cause}
        with _broken_group_reported():
            gathered = self.world.gather(json.dumps(own).encode())
        answers = [json.loads(answer) for answer in gathered]
        for rank, answer in enumerate(answers):
            if "error" in answer and self.world.main:
                kind = _CAUSES.get(answer["cause"], RuntimeError)
                raise kind(f"scoring failed in rank {rank}: {answer['error']}")
        return [answer.get("scores", []) for answer in answers]

    def _shares(self, archs: Sequence[Arch]) -> list[list[Arch]]:
        """Returns consecutive pieces of about equal cost, one for each rank."""
        sums = list(itertools.accumulate(map(self._weight, archs)))
        total = sums[-1] if sums else 0.0
        cuts = [bisect.bisect_left(sums, total * rank / self.world.size) for rank in range(1, self.world.size)]
        bounds = [0, *(min(cut + 1, len(archs)) if total else 0 for cut in cuts), len(archs)]
        return [list(archs[start:stop]) for start, stop in itertools.pairwise(bounds)]

    def _weight(self, arch: Arch) -> float:
        return 1.0 if self.costs is None or self.balance is None else self.costs(arch)[self.balance]
