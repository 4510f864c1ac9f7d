"""Predictor-guided search: a surrogate of the score chooses which networks to evaluate."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from scipy.special import ndtr

from searchers.loop import Asked, Feasible, Limits, Metric
from searchers.predictor.encoding import Encoding
from searchers.predictor.ensemble import Ensemble
from searchers.predictor.gaussian_process import GaussianProcess
from searchers.predictor.prediction import Floats, Indices, Prediction, Surrogate
from searchers.proposals import Visited, sampler
from searchers.study import Trial, score
from supernet.checked import NonNegative, Seed, arguments_explained, checked_arguments
from supernet.seeding import derive_seed, generator
from supernet.space import Arch, SearchSpace

Kind = Literal["gp", "ensemble"]
Acquisition = Literal["ei", "ucb", "thompson"]

BASES = 20  # best networks so far to mutate and cross; all neighbours of the first 8 are candidates
NEIGHBOURS, MUTANTS, CROSSED, RANDOM = 400, 150, 100, 50  # largest number of candidates of each kind
CLIMBS, CLIMBED = 2, 4  # how often the neighbours of how many best candidates are added
SHORTLIST = 100  # best candidates that are brought to their normal form, to be chosen one after the other
PLANNED = 32  # largest number of proposals per model once there are many observations
REMEMBERED = 100_000  # normal forms that are kept with the verdict of the limits, about 300 bytes each


class PredictorSearch:
    """Bayesian optimisation over index vectors, with any surrogate and any space.

    The first `initial` networks are random. After that, a surrogate is fitted to all scores so far, and the candidate
    with the highest acquisition value is proposed. Candidates are neighbours, mutations and crossovers of the best
    networks, random networks, and the neighbours of the best candidates (a climb on the acquisition). They are normal
    forms within the limits that were not proposed before. If there are none, a random network is proposed; if random
    draws give nothing new either, fewer are returned than asked for.

    Within a batch, the candidates chosen so far and those whose scores are pending count as evaluated with the mean
    that the surrogate predicts (the kriging believer). With Thompson sampling, each member of a batch has its own draw.

    To bound the cost, weights are fitted again only when the observations have grown by a tenth, one model serves a
    proposal per fifty observations (at most `PLANNED`), and surrogates limit how many observations they use.

    Args:
        space: the space to search.
        seed: the seed of its draws.
        metric: the metric to maximise; with a leading minus, to minimise.
        feasible: the limits that every proposal keeps; None for no limits.
        surrogate: "gp" (a Gaussian process with an overlap kernel) or "ensemble" (small networks).
        acquisition: "ei" (expected improvement, Jones et al., 1998; over the best mean that the surrogate predicts for
            the evaluated networks, since the best score owes most to noise), "ucb" (mean plus `beta` deviations;
            Srinivas et al., 2010) or "thompson" (the best of a draw of the surrogate).
        initial: the number of random networks before the first fit, at least 2.
        beta: the weight of the deviation in "ucb".

    Raises:
        InputError: an unknown surrogate or acquisition, or a number that is too small.
    """

    @checked_arguments
    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: Seed = 0,
        metric: Metric = "accuracy",
        feasible: Limits = None,
        surrogate: Kind = "gp",
        acquisition: Acquisition = "ei",
        initial: Annotated[int, Ge(2)] = 8,
        beta: NonNegative = 1.0,
    ) -> None:
        self.space = space
        self.seed = seed
        self.metric = metric
        self.feasible = feasible
        self.surrogate: Kind = surrogate
        self.acquisition: Acquisition = acquisition
        self.initial = initial
        self.beta = beta
        self._model: Surrogate = (
            GaussianProcess(space) if surrogate == "gp" else Ensemble(space, seed=derive_seed("predictor", seed))
        )
        self._draws = np.random.default_rng(derive_seed("predictor", seed))
        self._rng = generator("predictor", seed)
        self._visited = Visited(space, feasible)
        self._candidates = _Candidates(space, feasible)
        self._scores: dict[str, float] = {}  # by network
        self._rows: list[tuple[int, ...]] = []  # of the same networks, in the same order
        self._legal: list[bool] = []  # within the limits? Networks outside, from a warm start, train the surrogate too
        self._pending: dict[str, tuple[int, ...]] = {}  # planned or proposed, and not scored
        self._planned: deque[tuple[str, Arch]] = deque()  # with the key of its network
        self._learnt = 0  # number of observations of the last fit

    @checked_arguments
    def ask(self, n: Asked) -> list[Arch]:
        """Proposes up to `n` new networks. Raises `InputError` if the limits exclude every draw."""
        archs: list[Arch] = []
        while len(archs) < n:
            if not self._planned:
                self._plan(n - len(archs))
            arch = self._planned.popleft()[1] if self._planned else self._random()
            if arch is None:
                break
            archs.append(arch)
        return archs

    @arguments_explained
    def tell(self, trials: Sequence[Trial]) -> None:
        """Adds the scores to the observations. Failed networks are only not proposed again."""
        self._visited.tell(trials)
        reported = {trial.key for trial in trials}
        self._planned = deque(pair for pair in self._planned if pair[0] not in reported)
        for trial in trials:
            row = self.space.to_indices(self.space.normal_form(trial.arch))
            self._pending.pop(trial.key, None)
            self._candidates.forget(row)
            if not trial.failed and trial.key not in self._scores:
                self._scores[trial.key] = score(trial, self.metric)
                self._rows.append(row)
                self._legal.append(self.feasible is None or self.feasible(trial.arch))

    def _random(self) -> Arch | None:
        """A random new network, noted as pending; None if there is none."""
        arch = self._visited.sample(self._rng)
        if arch is not None:
            self._note(arch)
        return arch

    def _note(self, arch: Arch) -> str:
        """Notes a proposal as pending and returns the key of its network."""
        form = self.space.normal_form(arch)
        row = self.space.to_indices(form)
        self._pending[form.key] = row
        self._candidates.forget(row)
        return form.key

    def _plan(self, n: int) -> None:
        """Plans the next networks, `n` or a few more, or none while there are too few scores to learn from."""
        if len(self._visited) < self.initial or len(self._scores) < 2:
            return
        rows, scores = np.array(self._rows), compressed(np.array(list(self._scores.values())))
        if len(rows) >= 1.1 * self._learnt:
            self._model.fit(rows, scores)
            self._learnt = len(rows)
        else:
            self._model.update(rows, scores)
        legal = np.flatnonzero(self._legal)
        bases = rows[legal[np.argsort(-scores[legal], kind="stable")[:BASES]]]
        best = float(self._model.predict(bases).mean.max()) if len(bases) else 0.0
        pool = self._candidates.around(bases, self._draws, (self._drawn() for _ in range(RANDOM)))
        value = self._value(self._model.predict(pool), best)
        for _ in range(CLIMBS):
            near = self._candidates.beside(pool[_highest(value, CLIMBED)], self._draws)
            pool = np.concatenate([pool, near])
            value = np.concatenate([value, self._value(self._model.predict(near), best)])
        shortlist = self._candidates.legal(pool[_highest(value, len(value))], SHORTLIST)
        wanted = min(max(n, len(rows) // 50), PLANNED)
        if len(shortlist):
            self._choose(shortlist, best, wanted)

    def _choose(self, pool: Indices, best: float, wanted: int) -> None:
        """Adds the best candidates to the plan, one after the other."""
        pending = np.array(list(self._pending.values()), dtype=int).reshape(-1, pool.shape[1])
        prediction = self._model.predict(np.concatenate([pool, pending]))
        for position in range(len(pool), len(pool) + len(pending)):
            prediction.believe(position)
        free = np.zeros(len(pool) + len(pending), dtype=bool)
        free[: len(pool)] = True
        while len(self._planned) < wanted and free.any():
            thompson = self.acquisition == "thompson"
            value = prediction.draw(self._draws) if thompson else self._value(prediction, best)
            position = int(_highest(np.where(free, value, -np.inf), 1)[0])
            free[position] = False
            arch = self.space.from_indices(pool[position].tolist())
            if self._visited.admit(arch):
                self._planned.append((self._note(arch), arch))
                prediction.believe(position)

    def _value(self, prediction: Prediction, best: float) -> Floats:
        """The acquisition value of each candidate. Under Thompson sampling the climb uses mean plus deviation."""
        if self.acquisition == "ei":
            return log_expected_improvement(prediction.mean, prediction.std, best)
        return prediction.mean + (self.beta if self.acquisition == "ucb" else 1.0) * prediction.std

    def _drawn(self) -> tuple[int, ...]:
        return self.space.to_indices(sampler(self.space, self._rng, self.feasible)())


def compressed(scores: Floats) -> Floats:
    """Standardises scores to mean 0 and variance 1 after compressing those below the median by a logarithm.

    A network that diverged should count as bad, but how bad it is would take all variance from the good networks.
    Constant scores become zero.
    """
    middle = np.median(scores)
    above = scores.max() - middle
    z = (scores - middle) / (above if above > 0 else max(np.ptp(scores), 1e-12))
    z = np.where(z < 0, -np.log1p(np.maximum(-z, 0)), z)
    deviation = z.std()
    return (z - z.mean()) / deviation if deviation > 0 else np.zeros_like(z)


def log_expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """The logarithm of E[max(score − best, 0)] of normal scores, which does not underflow far below the best."""
    z = (mean - best) / std
    near = np.maximum(z, -6.0)
    density = np.exp(-0.5 * near**2) / math.sqrt(2 * math.pi)
    log_near = np.log(density + near * ndtr(near))
    far = np.minimum(z, -6.0)  # φ(z) + z Φ(z) = φ(z) (1 − 3/z² + 15/z⁴ − …) / z²
    log_far = -0.5 * far**2 - 0.5 * math.log(2 * math.pi) + np.log1p(-3 / far**2 + 15 / far**4) - 2 * np.log(-far)
    value: Floats = np.log(std) + np.where(z > -6.0, log_near, log_far)
    return value


def _highest(values: Floats, n: int) -> Indices:
    """The positions of the `n` highest values, rounded so that the rounding errors of a machine do not decide ties."""
    order: Indices = np.argsort(-np.round(values, 7), kind="stable")
    return order[:n]


class _Candidates:
    """Generates candidates as rows of option numbers.

    Normal forms and limits are computed in Python and take up to a millisecond per network, so they are evaluated only
    for candidates that the surrogate ranks high.
    """

    def __init__(self, space: SearchSpace, feasible: Feasible | None) -> None:
        self._space = space
        self._feasible = feasible
        self._encode = Encoding(space)
        self._ordered = np.array([choice.ordered for choice in space.choices], dtype=bool)
        self._options = np.array([len(choice.options) for choice in space.choices], dtype=int)
        self._known: set[tuple[int, ...]] = set()
        self._forms: dict[tuple[int, ...], tuple[int, ...] | None] = {}  # by row; None outside the limits

    def forget(self, row: tuple[int, ...]) -> None:
        """Excludes a row from the results of `legal`."""
        self._known.add(row)

    def around(self, bases: Indices, rng: np.random.Generator, random: Iterable[tuple[int, ...]]) -> Indices:
        """Candidates near the bases, which are sorted best first, and the random rows.

        Returns:
            (candidates, choices); some may be outside the limits.
        """
        parts = [np.array(list(random), dtype=int)]
        if len(bases):
            near = np.concatenate([self._neighbours(base) for base in bases[:8]])
            parts += [
                _sampled(near, NEIGHBOURS, rng),
                self._mutants(bases[rng.integers(len(bases), size=MUTANTS)], rng),
                self._crossed(bases[rng.integers(len(bases), size=(2, CROSSED))], rng),
            ]
        return self._shuffled(np.concatenate(parts), rng)

    def beside(self, bases: Indices, rng: np.random.Generator) -> Indices:
        """Neighbours of the given candidates; some may be outside the limits, or candidates already."""
        near = np.concatenate([self._neighbours(base) for base in bases])
        return self._shuffled(_sampled(near, NEIGHBOURS // 2, rng), rng)

    def legal(self, rows: Indices, most: int) -> Indices:
        """The first distinct normal forms of the rows, at most `most`, that are within the limits and not excluded."""
        forms: dict[tuple[int, ...], None] = {}
        for row in map(tuple, rows.tolist()):
            form = self._form(row)
            if form is not None and form not in self._known:
                forms[form] = None
                if len(forms) == most:
                    break
        return np.array(list(forms), dtype=int).reshape(-1, rows.shape[1])

    def _neighbours(self, row: Indices) -> Indices:
        """Changes each active choice in turn to every other option, or to the adjacent ones of an ordered choice."""
        moves = []
        for choice in np.flatnonzero(self._encode.active(row[None])[0]):
            at, last = row[choice], self._options[choice] - 1
            numbers = (at - 1, at + 1) if self._ordered[choice] else range(last + 1)
            moves += [(choice, number) for number in numbers if number != at and 0 <= number <= last]
        neighbours = np.tile(row, (len(moves), 1))
        for line, (choice, number) in enumerate(moves):
            neighbours[line, choice] = number
        return neighbours

    def _mutants(self, rows: Indices, rng: np.random.Generator) -> Indices:
        """Redraws active choices with a probability that makes two of them on average, and all inactive ones."""
        on = self._encode.active(rows)
        chance = 2 / np.maximum(2, on.sum(axis=1, keepdims=True))
        drawn = rng.integers(self._options, size=rows.shape)
        mutants: Indices = np.where((rng.random(rows.shape) < chance) | ~on, drawn, rows)
        return mutants

    def _crossed(self, pairs: Indices, rng: np.random.Generator) -> Indices:
        """Takes each choice from either of two rows; `pairs` is (2, n, choices)."""
        crossed: Indices = np.where(rng.random(pairs[0].shape) < 0.5, pairs[0], pairs[1])
        return crossed

    def _shuffled(self, rows: Indices, rng: np.random.Generator) -> Indices:
        """The distinct canonical rows in random order, so that ties do not favour the first options."""
        shuffled: Indices = rng.permutation(np.unique(self._encode.canonical(rows), axis=0), axis=0)
        return shuffled

    def _form(self, row: tuple[int, ...]) -> tuple[int, ...] | None:
        """The normal form of a row, or None if it is outside the limits."""
        if not self._space.forms and self._feasible is None:
            return row
        if row not in self._forms:
            if len(self._forms) >= REMEMBERED:
                self._forms.clear()
            form = self._space.normal_form(self._space.from_indices(row))
            legal = self._feasible is None or self._feasible(form)
            self._forms[row] = self._space.to_indices(form) if legal else None
        return self._forms[row]


def _sampled(rows: Indices, most: int, rng: np.random.Generator) -> Indices:
    """At most `most` random rows, in their order."""
    sampled: Indices = rows[np.sort(rng.permutation(len(rows))[:most])]
    return sampled
