"""Progressive search: cells grow block by block, and a surrogate chooses which larger cells to evaluate."""

import itertools
import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from searchers.loop import Asked, Feasible, Limits, Metric
from searchers.pnas.ladder import Block, Kind, Ladder, _Cell, find_ladder
from searchers.proposals import nothing_fits
from searchers.study import Trial, score
from supernet.checked import Count, Natural, Rate, Seed, Text, Units, arguments_explained, checked_arguments
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, SearchSpace

SHORTLIST = 20
"""How many of a level's best predicted expansions are brought to their normal form, as a multiple of K. A normal form
is computed in Python in 0.3 ms, and a published level has 590,000 expansions. Up to 20 K, all are taken."""

BEAM = 256
"""K of the paper."""

PROBE_TRIES = 100
"""Draws per random cell of a level before fewer are taken, in a level that is small or barely within the limits."""

Targets = Literal["level", "common"]

MEAN, DEVIATION = 0.86, 0.05
"""The surrogate is trained on scores rescaled so that the first level has this mean and this deviation.
0.86 is the initial output of the surrogate, and was the mean accuracy of the paper's one-block cells."""

_log = logging.getLogger("searchers")


EPOCHS = {"mlp": 100, "lstm": 20}
"""Passes over the scores of a level, by surrogate. On synthetic cells the LSTM ranks after 20 as after 100 within noise
(docs/benchmarks/searchers.md), in a fifth of the time."""


class Correlation(NamedTuple):
    """Spearman's rank correlation of predictions and scores on one level; None where it is not defined.

    Attributes:
        fit: for the predictions of all its scored cells after training on the level.
        extrapolation: for the predictions of its random cells (`probes`) before any cell of the level was scored, as
            in § 5.2 of the paper; None on the first level, and without probes.
        beam: the same for the cells that were chosen by these predictions. Their predictions are all close to the
            highest, so that this is near zero, or negative, even if the surrogate extrapolates well; None on the first
            level.
    """

    fit: float | None
    extrapolation: float | None
    beam: float | None


class PNAS:
    """Progressive neural architecture search (Liu et al., ECCV 2018, algorithm 1).

    All cells of one block are evaluated, each network once. Then, level after level, every cell of the level before is
    expanded by every possible block; a surrogate is trained on the new scores and predicts all expansions, and the
    `beam` best are evaluated, or all if there are fewer. Nothing is proposed after the largest level. The search
    returns the best cell of all levels (in the paper, of the largest).

    The space needs a ladder: an ordered choice of the number of blocks, starting at one, where all blocks have the same
    decisions (`….left`, `….right_op`, …) and those of the later blocks are conditional on it. Decisions outside the
    ladder are fixed at their first option (`held`).

    Expansions are predicted as they are written. The best `SHORTLIST` times `beam` of them are brought to their normal
    form and ordered by the predictions for it. Scores are shifted and scaled before the surrogate is trained on them
    (`targets`); the first level then has mean 0.86 and deviation 0.05.

    Any number may be asked for at a time. A level is chosen when its first cell is asked for, from the scores known by
    then. The published schedule is a batch that divides the sizes of the levels (8 divides 136 and 256). Fewer cells
    are returned while no cell of the level before has a score. A failed cell is not expanded.

    Args:
        space: the space to search.
        seed: the seed of the surrogate and of the order of the first level.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits. Cells outside are not expanded either.
        ladder: the name of the choice of the number of blocks; None if there is only one.
        beam: K, the number of cells to evaluate per level after the first.
        surrogate: "mlp" (that of the paper's search) or "lstm"; see `LadderSurrogate`.
        members: the size of the surrogate's ensemble; 1 for a single network.
        targets: "level" shifts the scores of every level to mean 0.86, since only the order within a level matters;
            "common" shifts all levels alike, as in the paper, which trains on accuracies.
        embedding: the width of the surrogate's embeddings.
        hidden: the number of hidden units of the surrogate.
        learning_rate: the learning rate of Adam on the first level.
        later_learning_rate: the learning rate on the later levels.
        epochs: passes over the scores of a level [not published]; None for those of `EPOCHS`.
        probes: random cells of each later level that are evaluated beside the beam, to measure how well the surrogate
            extrapolates (`correlations`). The surrogate learns from them too; they are not expanded.

    Attributes:
        held: the decisions outside the ladder that have several options, each with the option it is fixed at.

    Raises:
        InputError: a space without a ladder, an unknown surrogate, a number that is too small, or, from `ask`, limits
            that exclude all cells of one block.
    """

    @staticmethod
    @checked_arguments
    def for_budget(
        space: SearchSpace, evaluations: Count, overrides: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """The beam with which a small budget reaches the largest cells; nothing if the published one does.

        The first level takes all its cells, and each later one an equal share of the rest. A budget that leaves nothing
        gives a beam of 1, and `schedule` then says what the search lacks.

        Args:
            space: the space to search.
            evaluations: the number of networks that the search will score.
            overrides: settings chosen by hand, which the others then suit.

        Raises:
            InputError: the space has no ladder, or several.
        """
        ladder = find_ladder(space, overrides.get("ladder"))
        left = evaluations - len(one_block(space, ladder, None))
        beam = max(1, left // (len(ladder.blocks) - 1) - int(overrides.get("probes", 0)))
        return {"beam": beam} if beam < BEAM else {}

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        ladder: Text | None = None,
        beam: Count = BEAM,
        surrogate: Kind = "mlp",
        members: Units = 5,
        targets: Targets = "level",
        embedding: Units = 100,
        hidden: Units = 100,
        learning_rate: Rate = 0.01,
        later_learning_rate: Rate = 0.002,
        epochs: Count | None = None,
        probes: Natural = 0,
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.ladder = ladder
        self.beam = beam
        self.surrogate: Kind = surrogate
        self.members = members
        self.targets: Targets = targets
        self.embedding = embedding
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.later_learning_rate = later_learning_rate
        self.epochs = epochs
        self.probes = probes
        self._ladder = find_ladder(space, ladder)
        self.held = dict(self._ladder.held)
        if self.held:
            _log.info("PNAS fixes the decisions outside the ladder at %s", self.held)
        from searchers.pnas.surrogate import LadderSurrogate  # loads torch, which importing the package does not

        self._model = LadderSurrogate(
            surrogate,
            self._ladder.decisions,
            seed=derive_seed("PNAS", seed),
            members=members,
            embedding=embedding,
            hidden=hidden,
        )
        self._levels: list[list[_Cell]] = []  # the levels chosen so far
        self._random: list[list[_Cell]] = []  # the probes of each level
        self._queue: deque[_Cell] = deque()
        self._scores: dict[str, float] = {}  # by network
        self._new: dict[str, _Cell] = {}  # scored since the surrogate was trained
        self._failed: set[str] = set()
        self._learnt: dict[int, list[float]] = {}  # scores by number of blocks that the surrogate was trained on
        self._slope: float | None = None  # by which scores are multiplied for the surrogate
        self._fitted: dict[int, float | None] = {}  # correlation by number of blocks

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new cells. Raises `InputError` if the limits exclude the whole first level."""
        archs: list[Arch] = []
        while len(archs) < n:
            if not self._queue and not self._climb():
                break
            cell = self._queue.popleft()
            if cell.key not in self._scores and cell.key not in self._failed:  # unless known from a warm start
                archs.append(cell.arch)
        return archs

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Notes the scores. A failed cell is neither expanded nor used for training."""
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
        """Per number of blocks, how well the surrogate ranked the cells scored so far."""
        return {
            size: Correlation(self._fitted.get(size), self._agreement(probes), self._agreement(level))
            for size, (level, probes) in enumerate(zip(self._levels, self._random, strict=True), start=1)
        }

    @property
    def schedule(self) -> list[int]:
        """The number of cells per level that the search evaluates if no level is smaller than its beam and probes."""
        later = [self.beam + self.probes] * (len(self._ladder.blocks) - 1)
        return [len(one_block(self.space, self._ladder, self.feasible)), *later]

    def predict(self, archs: Sequence[Arch]) -> list[float]:
        """What the surrogate, as it is trained now, predicts for cells of any size.

        Args:
            archs: architectures of the space; decisions outside the ladder are not looked at.

        Returns:
            predictions between 0 and 1, comparable within a level.
        """
        forms = [self.space.normal_form(arch) for arch in archs]
        return self._model.predict([self._ladder.read(form) for form in forms])

    def _agreement(self, cells: Sequence["_Cell"]) -> float | None:
        """The rank correlation of predictions and scores over the cells that have both."""
        scored = [cell for cell in cells if cell.key in self._scores and cell.predicted is not None]
        predicted = [cell.predicted for cell in scored if cell.predicted is not None]
        return spearman(predicted, [self._scores[cell.key] for cell in scored])

    def _climb(self) -> bool:
        """Chooses the next level; returns False if there is none, or no score to choose it by."""
        probes: list[_Cell] = []
        if not self._levels:
            level = self._first()
        elif len(self._levels) == len(self._ladder.blocks) or not any(
            cell.key in self._scores for cell in self._levels[-1]
        ):
            return False
        else:
            self._learn()
            level = self._chosen()
            probes = self._probes(level) if level else []
        if level:
            self._levels.append(level)
            self._random.append(probes)
            keys = {cell.key for cell in level}
            self._queue.extend([*level, *(cell for cell in probes if cell.key not in keys)])
        return bool(level)

    def _first(self) -> list["_Cell"]:
        """All cells of one block, in random order."""
        forms = one_block(self.space, self._ladder, self.feasible)
        if not forms:
            assert self.feasible is not None
            raise nothing_fits(self.feasible, math.prod(self._ladder.counts(0)))
        cells = {form.key: _Cell(form.key, form, self._ladder.read(form)) for form in forms}
        level = [cells[key] for key in sorted(cells)]
        generator("PNAS", self.seed, "first level").shuffle(level)
        _log.info("PNAS: all %d cells of one block", len(level))
        return level

    def _chosen(self) -> list["_Cell"]:
        """The expansions of the last level that the surrogate predicts best."""
        from searchers.pnas.surrogate import ranking

        parents = [cell.blocks for cell in self._levels[-1] if cell.key not in self._failed]
        size = len(self._levels) + 1
        counts = self._ladder.counts(size - 1)
        blocks = list(itertools.product(*map(range, counts)))
        order = ranking(self._model.expanded(parents, counts), seed=derive_seed("PNAS", self.seed, size))
        shortlist: dict[str, _Cell] = {}
        for position in order:
            parent, block = divmod(position, len(blocks))
            cell = self._legal((*parents[parent], blocks[block]))
            if cell is not None and len(cell.blocks) == size:
                shortlist.setdefault(cell.key, cell)
                if len(shortlist) == SHORTLIST * self.beam:
                    break
        if not shortlist:
            _log.info("PNAS: no cell of %d blocks is within the limits", size)
            return []
        cells = list(shortlist.values())
        predictions = self._model.predict([cell.blocks for cell in cells])  # for the normal forms
        ranked = sorted(range(len(cells)), key=lambda i: -round(predictions[i], 7))  # ties stay in their order
        if len(cells) <= self.beam:
            _log.info("PNAS: all %d cells of %d blocks, fewer than beam=%d", len(cells), size, self.beam)
        return [cells[i]._replace(predicted=predictions[i]) for i in ranked[: self.beam]]

    def _probes(self, level: Sequence["_Cell"]) -> list["_Cell"]:
        """Distinct random cells of the size of a level, with their predictions."""
        size = len(level[0].blocks)
        rng = generator("PNAS", self.seed, "probes", size)
        probes: dict[str, _Cell] = {}
        for _ in range(PROBE_TRIES * self.probes):
            if len(probes) == self.probes:
                break
            numbers = [tuple(rng.randrange(n) for n in self._ladder.counts(block)) for block in range(size)]
            cell = self._legal(numbers)
            if cell is not None and len(cell.blocks) == size:
                probes.setdefault(cell.key, cell)
        predictions = self._model.predict([cell.blocks for cell in probes.values()])
        return [cell._replace(predicted=p) for cell, p in zip(probes.values(), predictions, strict=True)]

    def _learn(self) -> None:
        """Trains the surrogate on the scores since the last training."""
        cells = list(self._new.values())
        self._new = {}
        if not cells:  # the whole level was known from a warm start before it was chosen
            return
        for cell in cells:
            self._learnt.setdefault(len(cell.blocks), []).append(self._scores[cell.key])
        if self._slope is None:
            deviation = statistics.pstdev(self._learnt[min(self._learnt)])
            self._slope = DEVIATION / deviation if deviation > 0 else 0.0
        means = {size: statistics.fmean(scores) for size, scores in self._learnt.items()}
        if self.targets == "common":
            means = dict.fromkeys(means, means[min(means)])
        raw = [MEAN + self._slope * (self._scores[cell.key] - means[len(cell.blocks)]) for cell in cells]
        rate = self.later_learning_rate if len(self._levels) > 1 else self.learning_rate
        rows, targets = [cell.blocks for cell in cells], [min(max(target, 0.0), 1.0) for target in raw]
        self._model.fit(rows, targets, learning_rate=rate, epochs=self.epochs or EPOCHS[self.surrogate])
        size = len(self._levels)
        level = [cell for cell in cells if len(cell.blocks) == size]
        predictions = self._model.predict([cell.blocks for cell in level])
        self._fitted[size] = spearman(predictions, [self._scores[cell.key] for cell in level])
        _log.info("PNAS: %d blocks, rank correlation %s", size, self.correlations[size])

    def _legal(self, blocks: Sequence[Block]) -> "_Cell | None":
        """The cell with these blocks if it is within the limits, or None."""
        form = self.space.normal_form(self._ladder.arch(self.space, blocks))
        return None if self.feasible is not None and not self.feasible(form) else self._cell(form)

    def _cell(self, form: Arch) -> "_Cell | None":
        """A normal form as a cell; None if a fixed decision has another value, which a warm start may bring."""
        if any(form[name] != value for name, value in self.held.items()):
            return None
        return _Cell(form.key, form, self._ladder.read(form))


def one_block(space: SearchSpace, ladder: Ladder, feasible: Feasible | None) -> list[Arch]:
    """The normal forms of all cells of one block within the limits, each network once."""
    blocks = itertools.product(*map(range, ladder.counts(0)))
    forms = dict.fromkeys(space.normal_form(ladder.arch(space, [block])) for block in blocks)
    return [form for form in forms if feasible is None or feasible(form)]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than two values, or where all values of one side are equal."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy.stats import spearmanr  # takes a while to import, and nothing else here needs it

    return float(spearmanr(first, second).statistic)
