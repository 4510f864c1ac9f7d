"""Progressive search: from the smallest cells up, a surrogate choosing which larger ones are worth an evaluation."""

import itertools
import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, get_args

from searchers.loop import Feasible
from searchers.pnas.ladder import Block, Kind, _Cell, find_ladder
from searchers.proposals import nothing_fits
from searchers.study import Trial, score
from supernet.errors import InputError, nearest
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, SearchSpace

SHORTLIST = 20
"""Times K, the expansions of a level that are brought to their normal form, those predicted best. A normal form is
Python and takes 0.3 ms, and a level of the published search has 590,000 expansions; up to 20 K all are taken."""

MEAN, DEVIATION = 0.86, 0.05
"""What the mean of a level's scores and the deviation of the first level's are mapped to before the surrogate sees
them; 0.86 is the initial output of the surrogate, and was the mean accuracy of the paper's one-block cells."""

_log = logging.getLogger("searchers")


class Correlation(NamedTuple):
    """Spearman's rank correlation of prediction and score on one level; None where it is not defined.

    Attributes:
        fit: of the predictions after learning from the level.
        extrapolation: of those by which the level was chosen, before any of it was scored; None on the first.
    """

    fit: float | None
    extrapolation: float | None


class PNAS:
    """Progressive neural architecture search (Liu et al., ECCV 2018, algorithm 1).

    All cells of one block are evaluated, each network once. Then, level after level, every cell of the level before is
    expanded by every possible block, a surrogate learns from the new scores and predicts all expansions, and the
    `beam` best are evaluated: all of them where there are no more. After the largest level nothing is proposed. The
    search returns the best of all levels (the paper, of the largest).

    The space needs a ladder: an ordered choice of the number of blocks from one on, every block with the same
    decisions `….left`, `….right_op`, …, those of the later ones conditional on it. Decisions outside of it are held at
    their first option (`held`).

    Expansions are predicted as they are written, the best `SHORTLIST` times `beam` brought to their normal form, and
    ordered by the predictions for these. Scores are shifted and scaled before the surrogate sees them: each level has
    mean 0.86, the first a deviation of 0.05. Only the order within a level matters.

    Any number may be asked for at a time. A level is chosen when its first cell is asked for, from what is told by
    then; the published schedule is a batch that divides the sizes of the levels (8 divides 136 and 256). Fewer are
    returned while no cell of the level before has a score. A failed cell is not expanded.

    Args:
        space: to search.
        seed: of the surrogate and of the order of the first level.
        metric: to maximise; with a leading minus, to minimise.
        feasible: limits that every proposal keeps; None for none. Cells outside are not expanded either.
        ladder: name of the choice of the number of blocks; None if there is only one.
        beam: K, cells evaluated per level after the first.
        surrogate: "mlp" (that of the paper's search) or "lstm", see `LadderSurrogate`.
        members: of the ensemble.
        embedding: width of the surrogate's embeddings.
        hidden: units of the surrogate.
        learning_rate: of Adam on the first level.
        later_learning_rate: on the later ones.
        epochs: over the scores of a level [not published].

    Attributes:
        held: the decisions outside of the ladder that have options, and the one that they are held at.

    Raises:
        InputError: a space without a ladder, an unknown surrogate, a number too small; limits that exclude all cells
            of one block.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        metric: str = "accuracy",
        feasible: Feasible | None = None,
        ladder: str | None = None,
        beam: int = 256,
        surrogate: Kind = "mlp",
        members: int = 5,
        embedding: int = 100,
        hidden: int = 100,
        learning_rate: float = 0.01,
        later_learning_rate: float = 0.002,
        epochs: int = 100,
    ) -> None:
        if surrogate not in get_args(Kind):
            raise InputError(f"surrogate={surrogate!r} is unknown; {nearest(surrogate, get_args(Kind))}")
        sizes = {"beam": beam, "members": members, "embedding": embedding, "hidden": hidden, "epochs": epochs}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name}={size} is too small; give at least 1")
        for name, rate in (("learning_rate", learning_rate), ("later_learning_rate", later_learning_rate)):
            if not (math.isfinite(rate) and rate > 0):
                raise InputError(f"{name}={rate} must be a number above 0")
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.ladder = ladder
        self.beam = beam
        self.surrogate: Kind = surrogate
        self.members = members
        self.embedding = embedding
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.later_learning_rate = later_learning_rate
        self.epochs = epochs
        self._ladder = find_ladder(space, ladder)
        self.held = dict(self._ladder.held)
        if self.held:
            _log.info("PNAS holds what is outside of the ladder at %s", self.held)
        from searchers.pnas.surrogate import LadderSurrogate  # torch, which the package does without

        self._model = LadderSurrogate(
            surrogate,
            self._ladder.decisions,
            seed=derive_seed("PNAS", seed),
            members=members,
            embedding=embedding,
            hidden=hidden,
        )
        self._levels: list[list[_Cell]] = []  # chosen so far
        self._queue: deque[_Cell] = deque()
        self._scores: dict[str, float] = {}  # by network
        self._new: dict[str, _Cell] = {}  # scored since the surrogate learnt
        self._failed: set[str] = set()
        self._told: dict[int, list[float]] = {}  # scores by number of blocks, as far as the surrogate knows them
        self._slope: float | None = None  # of what it is shown, by the score
        self._fitted: dict[int, float | None] = {}  # correlation by number of blocks

    def ask(self, n: int) -> list[Arch]:
        """Up to `n` cells never asked for before. Raises `InputError` if the limits exclude the whole first level."""
        found: list[Arch] = []
        while len(found) < n:
            if not self._queue and not self._climb():
                break
            cell = self._queue.popleft()
            if cell.key not in self._scores and cell.key not in self._failed:  # a warm start may have told it
                found.append(cell.arch)
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes up the scores; a failed cell is neither expanded nor learnt from."""
        for trial in trials:
            if trial.failed:
                self._failed.add(trial.key)
            elif trial.key not in self._scores:
                cell = self._cell(self.space.normal_form(trial.arch))
                self._scores[trial.key] = score(trial, self.metric)
                if cell is not None:
                    self._new[trial.key] = cell

    @property
    def correlations(self) -> dict[int, Correlation]:
        """Per number of blocks, how well the surrogate ranked what has been scored by now."""
        found = {}
        for size, level in enumerate(self._levels, start=1):
            scored = [cell for cell in level if cell.key in self._scores and cell.predicted is not None]
            truth = [self._scores[cell.key] for cell in scored]
            guess = [cell.predicted for cell in scored if cell.predicted is not None]
            found[size] = Correlation(self._fitted.get(size), spearman(guess, truth))
        return found

    def _climb(self) -> bool:
        """Chooses the next level; False if there is none, or nothing to choose it by."""
        if not self._levels:
            level = self._first()
        elif len(self._levels) == len(self._ladder.blocks) or not any(
            cell.key in self._scores for cell in self._levels[-1]
        ):
            return False
        else:
            self._learn()
            level = self._chosen()
        if level:
            self._levels.append(level)
            self._queue.extend(level)
        return bool(level)

    def _first(self) -> list["_Cell"]:
        """All cells of one block, in random order."""
        found: dict[str, _Cell] = {}
        for numbers in itertools.product(*map(range, self._ladder.counts(0))):
            cell = self._legal((numbers,))
            if cell is not None:
                found.setdefault(cell.key, cell)
        if not found:
            assert self.feasible is not None
            raise nothing_fits(self.feasible, math.prod(self._ladder.counts(0)))
        level = [found[key] for key in sorted(found)]
        generator("PNAS", self.seed, "first level").shuffle(level)
        _log.info("PNAS: all %d cells of one block", len(level))
        return level

    def _chosen(self) -> list["_Cell"]:
        """The best of the expansions of the last level, by the surrogate."""
        from searchers.pnas.surrogate import ranking

        parents = [cell.blocks for cell in self._levels[-1] if cell.key not in self._failed]
        size = len(self._levels) + 1
        counts = self._ladder.counts(size - 1)
        blocks = list(itertools.product(*map(range, counts)))
        order = ranking(self._model.expanded(parents, counts), seed=derive_seed("PNAS", self.seed, size))
        found: dict[str, _Cell] = {}
        for position in order:
            parent, block = divmod(position, len(blocks))
            cell = self._legal((*parents[parent], blocks[block]))
            if cell is not None and len(cell.blocks) == size:
                found.setdefault(cell.key, cell)
                if len(found) == SHORTLIST * self.beam:
                    break
        if not found:
            _log.info("PNAS: no cell of %d blocks is within the limits", size)
            return []
        cells = list(found.values())  # a prediction is that of the normal form, whichever way the cell was written
        guesses = self._model.predict([cell.blocks for cell in cells])
        ranked = sorted(range(len(cells)), key=lambda i: -round(guesses[i], 7))  # of equals, as ranked before
        if len(cells) <= self.beam:
            _log.info("PNAS: all %d cells of %d blocks, fewer than beam=%d", len(cells), size, self.beam)
        return [cells[i]._replace(predicted=guesses[i]) for i in ranked[: self.beam]]

    def _learn(self) -> None:
        """From what was scored since the last time."""
        cells = list(self._new.values())
        self._new = {}
        if not cells:  # a warm start told the whole level before it was chosen
            return
        for cell in cells:
            self._told.setdefault(len(cell.blocks), []).append(self._scores[cell.key])
        if self._slope is None:
            deviation = statistics.pstdev(self._told[min(self._told)])
            self._slope = DEVIATION / deviation if deviation > 0 else 0.0
        means = {size: statistics.fmean(scores) for size, scores in self._told.items()}
        raw = [MEAN + self._slope * (self._scores[cell.key] - means[len(cell.blocks)]) for cell in cells]
        rate = self.later_learning_rate if len(self._levels) > 1 else self.learning_rate
        rows, targets = [cell.blocks for cell in cells], [min(max(target, 0.0), 1.0) for target in raw]
        self._model.fit(rows, targets, learning_rate=rate, epochs=self.epochs)
        size = len(self._levels)
        level = [cell for cell in cells if len(cell.blocks) == size]
        guesses = self._model.predict([cell.blocks for cell in level])
        self._fitted[size] = spearman(guesses, [self._scores[cell.key] for cell in level])
        _log.info("PNAS: %d blocks, rank correlation %s", size, self.correlations[size])

    def _legal(self, blocks: Sequence[Block]) -> "_Cell | None":
        """The network of these blocks, if it is within the limits."""
        form = self.space.normal_form(self._ladder.arch(self.space, blocks))
        return None if self.feasible is not None and not self.feasible(form) else self._cell(form)

    def _cell(self, form: Arch) -> "_Cell | None":
        """A normal form as blocks; None for one with other values of what is held, which a warm start may tell."""
        if any(form[name] != value for name, value in self.held.items()):
            return None
        return _Cell(form.key, form, self._ladder.read(form))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The correlation of the ranks, equal values sharing theirs; None for fewer than two, or all equal on one side."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered)))}
    last = {value: place for place, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 for value in values]
