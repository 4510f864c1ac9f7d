"""A race: stand-alone trainings decide between the best of a search, simple networks and random ones.

The scores of shared weights only propose. Networks enter by a calibrated score (`supernet.ranking.calibrate`) that
every training corrects; they are trained for a share of the full training, and the better half goes on (successive
halving: Jamieson & Talwalkar, 2016); the leaders and the best simple network are then trained again with further seeds,
the same for all, until they are separated or the budget is spent. The interval of the winner's margin holds for all
pairs of networks at once (Tukey, 1949; Kramer, 1956), although the winner was chosen by the same trainings.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import scipy  # its parts load when they are used; statistics take a second
from numpy.typing import NDArray

from supernet.checked import is_number, is_whole, shown
from supernet.errors import InputError, RunError
from supernet.ranking.calibrate import FEWEST, Floats, Ridge, fit_ridge, leave_one_out, one_hot
from supernet.ranking.statistics import LEVEL, Interval
from supernet.ranking.trainings import Job, Outcome
from supernet.space import Arch, SearchSpace

Arm = Literal["search", "simple", "random"]
Train = Callable[[Sequence[Job]], Sequence[float | Outcome | None]]
"""Trains networks on their own and returns a validation score for each job, higher is better; None where it failed.

An `Outcome` instead says how long the training took; otherwise the time of the call is divided by its jobs.
"""

CONFIRMATION = 0.3  # of the budget, for further seeds of the leaders
CLOSE = 0.5  # standard errors of a difference within which the cheaper network is taken: odds of about two to one
ROUNDS = 4  # in which networks of the search enter, each by a score that the trainings before it have corrected
EXACT = 1e-12  # relative difference below which scores are equal
LEAST_VARIANCE = 1e-3  # of a prediction, as a share of a training's: no prediction replaces a training entirely


@dataclass(frozen=True)
class Runner:
    """A network that was trained.

    Attributes:
        arch: in normal form.
        arm: where it comes from. A simple network that a search found too counts as simple.
        name: the name of the simple network; empty for others.
        cost: its cost, usually MACs.
        curve: score by share of a full training, of the first seed.
        scores: the scores of its full trainings, one per seed from the first on; empty if it left the race before.
        estimate: of its true score, from its own trainings and those of the others; NaN without a full training.
        failed: whether a training of it failed.
    """

    arch: Arch
    arm: Arm
    name: str
    cost: float
    curve: dict[float, float]
    scores: tuple[float, ...]
    estimate: float
    failed: bool

    @property
    def mean(self) -> float:
        """The mean score of the full trainings; NaN without one."""
        return sum(self.scores) / len(self.scores) if self.scores else math.nan


@dataclass(frozen=True)
class Margin:
    """By how much the winner is ahead of the best network of another arm.

    Attributes:
        over: that network.
        difference: of the scores of full trainings, adjusted for seeds, with a simultaneous 95 % interval; without one
            where the noise between trainings is not known.
        detectable: the smallest true difference that would have been seen with probability 0.8.
    """

    over: Runner
    difference: Interval
    detectable: float


@dataclass(frozen=True)
class Result:
    """The outcome of a race.

    Attributes:
        winner: the best simple network, unless estimates of others, of those trained most often, lead it by at least
            `CLOSE` standard errors of the difference; then the cheapest of these that is this close to the highest.
            Its trainings are never worse than those of the best simple network.
        runners: all networks that were trained, the winner first, then by estimate.
        margins: over the best network of each other arm.
        tied: the fully trained networks that are statistically tied with the one that leads; None if the noise is not
            known.
        noise: standard deviation of the score between trainings of one network; NaN if not known.
        spent: what was spent, in full trainings.
        without_halving: what the same networks and seeds would have taken if all had been trained to the end.
        seconds: that the trainings took.
        ended: why the race ended.
    """

    winner: Runner
    runners: tuple[Runner, ...]
    margins: dict[Arm, Margin]
    tied: tuple[Runner, ...] | None
    noise: float
    spent: float
    without_halving: float
    seconds: float
    ended: str

    @property
    def paid(self) -> bool:
        """Whether the search found a network that is better than the best simple one, beyond chance."""
        margin = self.margins.get("simple")
        return self.winner.arm == "search" and margin is not None and margin.difference.low > 0

    @property
    def verdict(self) -> str:
        """One sentence: the search paid, no gain is shown, or a simple network won."""
        if self.winner.arm != "search":
            what = "simple" if self.winner.arm == "simple" else "random"
            name = f" ({self.winner.name})" if self.winner.name else ""
            sentence = f"a {what} network won{name}, take it; the search paid nothing"
            return f"{sentence}: {self._behind('search')}" if "search" in self.margins else sentence
        margin = self.margins.get("simple")
        if margin is None:
            return "no gain is shown: no simple network could be trained to the end"
        if self.paid:
            return f"the search paid: {self._behind('simple')}"
        seen = f"a difference of {margin.detectable:.4f} or more would have been seen with probability 0.8"
        if math.isnan(margin.detectable):
            seen = "no network was trained twice, so no difference could have been seen; allow more trainings"
        return f"no gain is shown: {self._behind('simple')}; {seen}"

    def _behind(self, arm: Arm) -> str:
        margin = self.margins[arm]
        other = {"search": "network of the search", "simple": "simple network", "random": "random network"}[arm]
        name = f" ({margin.over.name})" if margin.over.name else ""
        return f"the winner minus the best {other}{name} is {margin.difference}"


def race(
    space: SearchSpace,
    finalists: Sequence[Arch],
    train: Train,
    *,
    simple: Mapping[str, Arch],
    random: Sequence[Arch] = (),
    scores: Mapping[Arch, float] | None = None,
    cost: Callable[[Arch], float],
    trainings: float = 20,
    minutes: float = math.inf,
    shares: Sequence[float] = (1.0,),
    seeds: int = 3,
    noise: float | None = None,
    parallel: int = 1,
    record: MutableMapping[Job, Outcome] | None = None,
    on_training: Callable[[Job, Outcome], None] | None = None,
) -> Result:
    """Trains networks until one is proven or the budget is spent, and says what the search was good for.

    The jobs depend on the arguments and on the outcomes alone. A race that was killed and runs again with its record
    therefore asks for nothing twice and ends identically.

    Args:
        space: the space of all networks.
        finalists: the best of one or more searches, best first; see `supernet.ranking.rivals.finalists`. About fifty
            are enough: those that corrected scores put last never enter.
        train: trains stand-alone networks and returns validation scores. It is called with up to `parallel` jobs.
        simple: the networks that a search has to beat, by name, the most important first; see `simple_networks`.
        random: random networks within the same limits.
        scores: shared score by architecture, higher is better, for all networks above; without them, networks enter in
            the order given until trainings tell more.
        cost: by which ties are decided, usually MACs.
        trainings: budget, in full trainings, at least 2. A training to a quarter counts as a quarter, and going on
            with it to the end as three quarters.
        minutes: budget of time, as the trainings took; nothing begins after it, however long the last one takes.
        shares: at which shares of the full training the better half goes on; ascending, the last is 1.
        seeds: most trainings of a network.
        noise: standard deviation between full trainings of one network with different seeds, if it is known; otherwise
            it is estimated once networks are trained twice.
        parallel: jobs in a call of `train`.
        record: where outcomes are kept, e.g. `supernet.ranking.trainings.Trainings`; outcomes in it are used.
        on_training: called with every outcome, also with those from the record.

    Raises:
        InputError: no finalist or no simple network, a network of another space, or a budget below two trainings.
        RunError: no network was trained to the end, because trainings failed; they are named.
    """
    if not isinstance(space, SearchSpace):
        raise InputError(f"space={shown(space)} should be a SearchSpace")
    check_race(trainings=trainings, minutes=minutes, shares=shares, seeds=seeds, noise=noise, parallel=parallel)
    if not callable(train) or not callable(cost):
        raise InputError("train and cost are functions: one trains networks, the other returns what one costs")
    field_ = _Field.of(space, finalists, simple, random, scores, cost)
    ledger = _Ledger(train, trainings, minutes, parallel, {} if record is None else record, on_training)
    reserve = math.floor(CONFIRMATION * trainings) if seeds > 1 else 0
    if reserve < 2:  # too few for a pair
        reserve = 0
    _explore(field_, ledger, trainings - reserve, shares)
    _check_outcome(ledger)
    ended = _confirm(field_, ledger, seeds, noise)
    return _result(field_, ledger, noise, ended)


def check_race(
    *,
    trainings: float,
    minutes: float = math.inf,
    shares: Sequence[float] = (1.0,),
    seeds: int = 3,
    noise: float | None = None,
    parallel: int = 1,
) -> None:
    """Checks the settings of `race` before any work. Raises `InputError` that names the value and the remedy."""
    for name, value in (
        ("trainings", trainings),
        ("minutes", minutes),
        *(() if noise is None else (("noise", noise),)),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name}={shown(value)} should be a number")
    if not trainings >= 2:
        raise InputError(f"trainings={trainings} is below two: a race needs one network of the search and a simple one")
    if not minutes > 0:
        raise InputError(f"minutes={minutes} should be above 0")
    numbers = isinstance(shares, Sequence) and all(map(is_number, shares))
    if not numbers or not shares or list(shares) != sorted(set(shares)) or shares[0] <= 0 or shares[-1] != 1:
        raise InputError(f"shares={shown(shares)} should ascend from above 0 to 1, such as (0.25, 1.0)")
    if not is_whole(seeds, 1) or not is_whole(parallel, 1):
        raise InputError(f"seeds={shown(seeds)} and parallel={shown(parallel)} should be whole numbers, at least 1")
    if noise is not None and not (math.isfinite(noise) and noise > 0):
        raise InputError(f"noise={noise} should be a standard deviation above 0, or None if it is not known")


# -- who is in the race -----------------------------------------------------------------------------------------------


@dataclass
class _Field:
    """All networks that may enter, in normal form.

    Attributes:
        arms: the arm of each network, in the order of entry without scores.
        names: the names of simple networks.
        prior: shared score of each network; None if any is unknown.
        features: one-hot decisions, (networks, options).
        predicted: the latest corrected score of each network; None before.
    """

    space: SearchSpace
    arms: dict[Arch, Arm]
    names: dict[Arch, str]
    cost: Callable[[Arch], float]
    prior: Floats | None
    features: Floats
    predicted: Floats | None = None

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        finalists: Sequence[Arch],
        simple: Mapping[str, Arch],
        random: Sequence[Arch],
        scores: Mapping[Arch, float] | None,
        cost: Callable[[Arch], float],
    ) -> "_Field":
        """Sorts the networks into arms, each into one."""
        for name, given in (("simple", simple), ("scores", scores or {})):
            if not isinstance(given, Mapping):
                raise InputError(f"{name}={shown(given)} should be a mapping")
        if not finalists:
            raise InputError("there are no finalists: no network of a search is within the limits; raise the limits")
        if not simple:
            raise InputError("there is no simple network to race against; see supernet.ranking.rivals.simple_networks")

        def form(arch: Arch) -> Arch:
            return space.normal_form(space.canonical(arch))

        arms: dict[Arch, Arm] = {}
        names: dict[Arch, str] = {}
        for name, arch in simple.items():
            arms.setdefault(form(arch), "simple")
            names.setdefault(form(arch), name)
        for arch in finalists:
            arms.setdefault(form(arch), "search")
        for arch in random:
            arms.setdefault(form(arch), "random")
        for arch in arms:
            if not is_number(cost(arch)):
                raise InputError(f"cost({arch.key}) should return a number, not {shown(cost(arch))}")
        known = {form(arch): float(score) for arch, score in (scores or {}).items()}
        values = np.array([known.get(arch, math.nan) for arch in arms])
        prior = values if np.isfinite(values).all() else None
        return cls(space, arms, names, cost, prior, one_hot(space, list(arms)))

    def of_arm(self, arm: Arm) -> list[Arch]:
        """Returns the networks of an arm in the order given."""
        return [arch for arch, own in self.arms.items() if own == arm]

    def rows(self, archs: Sequence[Arch]) -> NDArray[np.int64]:
        """Returns the rows of networks in `features`."""
        place = {arch: row for row, arch in enumerate(self.arms)}
        return np.array([place[arch] for arch in archs], dtype=np.int64)

    def correct(self, labels: Mapping[Arch, float]) -> None:
        """Corrects all scores by true ones; fewer than `FEWEST` change nothing."""
        if len(labels) < FEWEST:
            return
        rows, truth = self.rows(list(labels)), np.array(list(labels.values()))
        prior = None if self.prior is None else self.prior[rows]
        model: Ridge = fit_ridge(self.features[rows], truth, prior=prior)
        self.predicted = model(self.features, self.prior)

    def entrants(self, without: Sequence[Arch]) -> list[Arch]:
        """Returns the networks of the search that have not entered, those with the best corrected scores first."""
        seen = set(without)
        archs = [arch for arch in self.of_arm("search") if arch not in seen]
        if self.predicted is None or not archs:
            return archs
        values = self.predicted[self.rows(archs)]
        return [archs[place] for place in np.argsort(-values, kind="stable")]


# -- trainings and the budget -----------------------------------------------------------------------------------------


@dataclass
class _Ledger:
    """Runs jobs, keeps their outcomes and counts what they cost."""

    train: Train
    trainings: float
    minutes: float
    parallel: int
    record: MutableMapping[Job, Outcome]
    on_training: Callable[[Job, Outcome], None] | None
    outcomes: dict[Job, Outcome] = field(default_factory=dict)
    failed: list[Arch] = field(default_factory=list)
    spent: float = 0.0
    seconds: float = 0.0
    out_of_time: bool = False

    @property
    def left(self) -> float:
        """Full trainings that the budget still has."""
        return 0.0 if self.out_of_time else self.trainings - self.spent

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs jobs in order as far as the budget goes; those of networks that failed before are left out."""
        for start in range(0, len(jobs), self.parallel):
            group: list[Job] = []
            price = 0.0
            for job in jobs[start : start + self.parallel]:
                own = job.share - max((done.share for done in self.outcomes if done[:2] == job[:2]), default=0.0)
                if job.arch not in self.failed and self.spent + price + own <= self.trainings + 1e-9:
                    group.append(job)
                    price += own
            if self.seconds >= 60 * self.minutes:
                self.out_of_time = True
            if self.out_of_time:
                return
            self.spent += price
            self._outcomes(group)

    def _outcomes(self, jobs: Sequence[Job]) -> None:
        new = [job for job in jobs if job not in self.record]
        if new:
            began = time.monotonic()
            values = self.train(new)
            seconds = (time.monotonic() - began) / len(new)
            if not hasattr(values, "__len__"):
                raise InputError(f"train returned {shown(values)} for {len(new)} jobs; return one score for each")
            if len(values) != len(new):
                raise InputError(f"train returned {len(values)} scores for {len(new)} jobs; use None for a failure")
            for job, value in zip(new, values, strict=True):
                outcome = value if isinstance(value, Outcome) else Outcome(value, seconds)
                if not _is_outcome(outcome):
                    raise InputError(
                        f"train returned {shown(value)} for {job.arch.key}; return a score, None for a failure, or an "
                        "Outcome of score and seconds"
                    )
                score = None if outcome.score is None or not math.isfinite(outcome.score) else float(outcome.score)
                self.record[job] = Outcome(score, outcome.seconds)
        for job in jobs:
            outcome = self.record[job]
            self.outcomes[job] = outcome
            self.seconds += outcome.seconds
            if outcome.score is None:
                self.failed.append(job.arch)
            if self.on_training is not None:
                self.on_training(job, outcome)

    def labels(self, share: float) -> dict[Arch, float]:
        """Returns the scores of first seeds at a share, without networks that failed."""
        return {
            job.arch: outcome.score
            for job, outcome in self.outcomes.items()
            if job.seed == 0 and job.share == share and outcome.score is not None and job.arch not in self.failed
        }

    def full(self) -> dict[Arch, tuple[float, ...]]:
        """Returns the scores of full trainings by network, in the order of seeds, without networks that failed."""
        scores: dict[Arch, dict[int, float]] = {}
        for job, outcome in self.outcomes.items():
            if job.share == 1 and outcome.score is not None and job.arch not in self.failed:
                scores.setdefault(job.arch, {})[job.seed] = outcome.score
        return {arch: tuple(by_seed[seed] for seed in sorted(by_seed)) for arch, by_seed in scores.items()}


def _is_outcome(outcome: Outcome) -> bool:
    """Returns whether an outcome has seconds, and a number, which may be NaN or of another library, or None."""
    try:
        math.isfinite(0.0 if outcome.score is None else outcome.score)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # also of a tensor of several numbers
        return False
    return not isinstance(outcome.score, bool) and is_number(outcome.seconds, 0)


def _check_outcome(ledger: _Ledger) -> None:
    if not ledger.full():
        names = ", ".join(dict.fromkeys(arch.key for arch in ledger.failed))
        why = f"the trainings of {names} failed; a lower lr may help" if names else "the time was too short for any"
        raise RunError(f"no network was trained to the end: {why}")


# -- exploration ------------------------------------------------------------------------------------------------------


def _explore(entries: _Field, ledger: _Ledger, budget: float, shares: Sequence[float]) -> None:
    """Lets networks enter in rounds to the first share; from each share to the next, the better half go on."""
    simple, searched, random = (entries.of_arm(arm) for arm in ("simple", "search", "random"))
    places = 2
    while _price(places + 1, shares, bool(random)) <= budget + 1e-9:
        places += 1
    simples = max(1, min(len(simple), places // 3))
    randoms = min(len(random), places // 6)
    searches = min(len(searched), places - simples - randoms)
    simples = min(len(simple), places - searches - randoms)
    randoms = min(len(random), places - searches - simples)
    entered = [*simple[:simples], *random[:randoms]]
    for number in range(ROUNDS):
        size = searches // ROUNDS + (number < searches % ROUNDS)
        new = entries.entrants(entered)[:size]
        jobs = [*(entered if number == 0 else ()), *new]
        if number == 0:  # one of each arm first, should the time be short
            first = [arms[0] for arms in (simple[:simples], new, random[:randoms]) if arms]
            jobs = list(dict.fromkeys([*first, *jobs]))
        ledger.run([Job(arch, 0, shares[0]) for arch in jobs])
        entered += new
        entries.correct(ledger.labels(shares[0]))
    for before, share in itertools.pairwise(shares):
        labels = ledger.labels(before)
        ranked = sorted(labels, key=lambda arch: -labels[arch])
        of_arms = [[arch for arch in ranked if entries.arms[arch] == arm] for arm in ("simple", "search", "random")]
        half = ranked[: math.ceil(len(ranked) / 2)]
        best = [archs[0] for archs in of_arms if archs]  # of each arm, for the margins; they come first
        ledger.run([Job(arch, 0, share) for arch in dict.fromkeys([*best, *half])])
        if entries.predicted is not None:
            entries.prior = entries.predicted
        entries.correct(ledger.labels(share))


def _price(places: int, shares: Sequence[float], random: bool) -> float:
    """Returns the full trainings that `places` networks take, if the best of two arms are not in the better half."""
    total, running, before = 0.0, places, 0.0
    for number, share in enumerate(shares):
        if number:
            running = min(running, math.ceil(running / 2) + 1 + random)
        total += running * (share - before)
        before = share
    return total


# -- confirmation -----------------------------------------------------------------------------------------------------


def _confirm(entries: _Field, ledger: _Ledger, seeds: int, noise: float | None) -> str:
    """Trains the leaders and the best simple network with further seeds; returns why it ended."""
    size = len(ledger.full())
    for seed in range(1, seeds if size > 1 else 1):
        standing = _Standing.of(entries, ledger, noise)
        rivals = standing.tied()
        if rivals is not None and len(rivals) == 1:
            break
        best_simple = standing.best("simple")
        ranked = [arch for arch in standing.ranked if rivals is None or arch in rivals]
        size = max(2, min(math.ceil(size / 2), math.floor(ledger.left / (seeds - seed))))
        jobs: list[Job] = []
        while size > 1:
            leaders = ranked[:size]
            if best_simple is not None and best_simple not in leaders:
                leaders = [*leaders[: size - 1], best_simple]
            pairs = [Job(arch, number, 1.0) for number in range(1, seed + 1) for arch in leaders]
            jobs = [job for job in pairs if job not in ledger.outcomes]
            if len(jobs) <= ledger.left:
                break
            size -= 1
        if size < 2 or not jobs:
            break
        ledger.run(jobs)
    rivals = _Standing.of(entries, ledger, noise).tied()
    if rivals is not None and len(rivals) == 1:
        return "the leader is separated from all others"
    if ledger.out_of_time:
        return "the time is over"
    most = max(map(len, ledger.full().values()))
    return "the rest are statistically tied" if rivals is not None and most == seeds else "the budget is spent"


@dataclass
class _Standing:
    """What all full trainings so far say.

    Attributes:
        archs: networks with a full training.
        scores: the scores of their full trainings, by seed.
        effects: the effect of each network, adjusted for seeds, (networks,).
        covariance: the covariance of the effects, in units of the noise variance, (networks, networks).
        noise: standard deviation between trainings; NaN if not known.
        freedom: degrees of freedom of the noise.
        estimates: true score of each, (networks,).
        errors: standard error of each estimate; NaN if the noise is not known.
    """

    entries: _Field
    archs: list[Arch]
    scores: list[tuple[float, ...]]
    effects: Floats
    covariance: Floats
    noise: float
    freedom: float
    estimates: Floats
    errors: Floats

    @classmethod
    def of(cls, entries: _Field, ledger: _Ledger, noise: float | None) -> "_Standing":
        """Fits the additive model network + seed to all full trainings and combines it with predictions."""
        full = ledger.full()
        archs = list(full)
        effects, covariance, residual, freedom = additive(list(full.values()))
        if noise is not None:
            freedom = math.inf
        elif freedom > 0 and residual > 0:  # equal scores tell nothing of the noise
            noise = math.sqrt(residual / freedom)
        else:
            noise = math.nan
        own = noise**2 * np.diag(covariance)
        estimates, errors = effects.copy(), np.sqrt(own)
        rows = entries.rows(archs)
        if math.isfinite(noise) and len(archs) > FEWEST:
            prior = None if entries.prior is None else entries.prior[rows]
            predicted = leave_one_out(entries.features[rows], effects, prior, 1.0)
            if np.isfinite(predicted).all():
                excess = float(np.mean((predicted - effects) ** 2) - own.mean())
                variance = max(excess, LEAST_VARIANCE * noise**2)
                errors = np.sqrt(1 / (1 / own + 1 / variance))
                estimates = errors**2 * (effects / own + predicted / variance)
        return cls(entries, archs, list(full.values()), effects, covariance, noise, freedom, estimates, errors)

    @property
    def ranked(self) -> list[Arch]:
        """The networks by estimate, of equal ones the cheapest first."""
        value = dict(zip(self.archs, self.estimates.tolist(), strict=True))
        return sorted(self.archs, key=lambda arch: (-value[arch], self.entries.cost(arch), arch.key))

    def best(self, arm: Arm) -> Arch | None:
        """Returns the network of an arm with the best trainings."""
        own = [row for row, arch in enumerate(self.archs) if self.entries.arms[arch] == arm]
        return self.archs[max(own, key=lambda row: self.effects[row])] if own else None

    def tied(self) -> list[Arch] | None:
        """Returns the networks that are not separated from the one with the best trainings; None without noise."""
        if math.isnan(self.noise):
            return None
        best = self.archs[int(np.argmax(self.effects))]
        return [arch for arch in self.archs if arch == best or self.difference(best, arch).low <= 0]

    def winner(self) -> Arch:
        """Returns the winner; see `Result`."""
        value = dict(zip(self.archs, self.estimates.tolist(), strict=True))
        effect = dict(zip(self.archs, self.effects.tolist(), strict=True))
        most = max(map(len, self.scores))
        able = {arch for arch, scores in zip(self.archs, self.scores, strict=True) if len(scores) == most}
        simple = self.best("simple")
        if simple is not None:
            able = {
                arch
                for arch in able
                if effect[arch] >= effect[simple]
                and (self._is_simple(arch) or value[arch] >= value[simple] + self._band(arch, simple))
            } | {simple}
        best = next(arch for arch in self.ranked if arch in able)
        tied = [arch for arch in able if value[arch] >= value[best] - self._band(arch, best)]
        return min(tied, key=lambda arch: (self.entries.cost(arch), -value[arch], arch.key))

    def _is_simple(self, arch: Arch) -> bool:
        return self.entries.arms[arch] == "simple"

    def _band(self, first: Arch, second: Arch) -> float:
        """Returns the difference of two estimates within which the two count as equal; 0 without noise."""
        errors = [float(self.errors[self.archs.index(arch)]) for arch in (first, second)]
        return CLOSE * math.hypot(*errors) if math.isfinite(self.noise) and first != second else 0.0

    def difference(self, first: Arch, second: Arch) -> Interval:
        """Returns the difference of two networks' trainings with its simultaneous interval."""
        a, b = self.archs.index(first), self.archs.index(second)
        mean = float(self.effects[a] - self.effects[b])
        if math.isnan(self.noise):
            return Interval(mean)
        half = self._critical * self._error(a, b)
        return Interval(mean, mean - half, mean + half)

    def detectable(self, first: Arch, second: Arch) -> float:
        """Returns the true difference that the interval excludes 0 for with probability 0.8; NaN without noise."""
        if math.isnan(self.noise):
            return math.nan
        error = self._error(self.archs.index(first), self.archs.index(second))
        return (self._critical + float(scipy.stats.t.ppf(0.8, self.freedom))) * error

    def _error(self, a: int, b: int) -> float:
        covariance = self.covariance
        return self.noise * math.sqrt(max(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b], 0.0))

    @property
    def _critical(self) -> float:
        return _studentized(len(self.archs), self.freedom)


_CRITICAL: dict[tuple[int, float], float] = {}


def _studentized(groups: int, freedom: float) -> float:
    """Returns the critical value of all pairwise differences, in standard errors of a difference."""
    key = max(groups, 2), freedom
    if key not in _CRITICAL:  # takes up to a second with few degrees of freedom
        _CRITICAL[key] = float(scipy.stats.studentized_range.ppf(LEVEL, *key)) / math.sqrt(2)
    return _CRITICAL[key]


def additive(scores: Sequence[Sequence[float]]) -> tuple[Floats, Floats, float, float]:
    """Fits network + seed to scores by least squares.

    Args:
        scores: the scores of each network, one per seed from the first on, at least one.

    Returns:
        the level of each network at the average seed of those that all networks share, (networks,); its covariance in
        units of the noise variance; the residual sum of squares; and its degrees of freedom.

    Raises:
        InputError: no networks, or one without a score.
    """
    if not scores or not all(len(own) for own in scores):
        raise InputError(f"scores={shown(scores)} should have at least one score of each of one or more networks")
    networks, seeds = len(scores), max(map(len, scores))
    rows = [(network, seed) for network, own in enumerate(scores) for seed in range(len(own))]
    design = np.zeros((len(rows), networks + seeds - 1))
    for row, (network, seed) in enumerate(rows):
        design[row, network] = 1
        if seed:
            design[row, networks + seed - 1] = 1
    values = np.array([score for own in scores for score in own])
    covariance = np.linalg.pinv(design.T @ design)
    solution = covariance @ design.T @ values
    residual = values - design @ solution
    exact = EXACT * float(np.abs(values).max())  # rounding must not decide between equal scores
    residual[np.abs(residual) < exact] = 0.0
    freedom = len(rows) - int(np.linalg.matrix_rank(design))
    shared = min(map(len, scores))
    average = np.eye(networks, len(solution))
    for seed in range(1, shared):
        average[:, networks + seed - 1] = 1 / shared
    spread: Floats = average @ covariance @ average.T
    levels: Floats = average @ solution
    if exact > 0:
        levels = np.asarray(np.round(levels / exact) * exact, float)
    return levels, spread, float(residual @ residual), float(freedom)


# -- the result -------------------------------------------------------------------------------------------------------


def _result(entries: _Field, ledger: _Ledger, noise: float | None, ended: str) -> Result:
    standing, full = _Standing.of(entries, ledger, noise), ledger.full()
    value = dict(zip(standing.archs, standing.estimates.tolist(), strict=True))
    curves: dict[Arch, dict[float, float]] = {}
    for job, outcome in ledger.outcomes.items():
        curve = curves.setdefault(job.arch, {})
        if job.seed == 0 and outcome.score is not None:
            curve[job.share] = outcome.score

    def runner(arch: Arch) -> Runner:
        return Runner(
            arch,
            entries.arms[arch],
            entries.names.get(arch, ""),
            entries.cost(arch),
            curves[arch],
            full.get(arch, ()),
            value.get(arch, math.nan),
            arch in ledger.failed,
        )

    best = standing.winner()
    margins: dict[Arm, Margin] = {}
    for arm in ("simple", "random", "search"):
        other = standing.best(arm)
        if other is not None and entries.arms[best] != arm:
            margins[arm] = Margin(runner(other), standing.difference(best, other), standing.detectable(best, other))
    others = [arch for arch in [*standing.ranked, *curves] if arch != best]
    tied = standing.tied()
    return Result(
        runner(best),
        tuple(map(runner, dict.fromkeys([best, *others]))),
        margins,
        None if tied is None else tuple(map(runner, tied)),
        standing.noise,
        ledger.spent,
        float(len({job[:2] for job in ledger.outcomes})),
        ledger.seconds,
        ended,
    )
