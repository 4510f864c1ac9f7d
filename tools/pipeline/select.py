"""Chooses the network to deploy: the best of searches, simple networks and random ones race by trainings."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from searchers import Study, Trial
from searchers.morphnet.resources import equal_widths
from searchers.study import score
from supernet.checked import problem_of, shown
from supernet.config import Train
from supernet.cost import Feasible
from supernet.errors import InputError, RunError, UnwritableError
from supernet.files import read_json, remove_temporaries, write_json
from supernet.paths import check_file, inside
from supernet.ranking.race import Arm, Margin, Result, Runner, check_race, race
from supernet.ranking.rivals import finalists, simple_networks
from supernet.ranking.statistics import json_safe
from supernet.ranking.trainings import Job, Outcome, Trainings
from supernet.scoring.cache import tied_with_best
from supernet.scoring.metrics import check_finite
from supernet.seeding import generator
from supernet.space import Arch
from supernet.spaces import GENOTYPES
from supernet.spaces.create import NETWORKS
from supernet.spaces.published_cells import CELLS
from supernet.spaces.published_cells import arch_of as arch_of_cells
from supernet.spaces.widths import WidthChain
from supernet.training.distributed import alone, current
from supernet_tools.pipeline.architectures import random_feasible
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.retrain import partial_score, retrain_folder, retrain_stage, trained_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.search import search_folder, searched, shared_scores

FOLDER = "select"
SHIFTS = (0, -1, 1, -2, 2)  # of the levels of a published pyramid
FINALISTS = 50  # of all searches; corrected scores decide which of them are trained

OnTraining = Callable[[Job, Outcome], None]


def select_stage(
    run: Run,
    searches: Sequence[str],
    train: Train,
    *,
    limits: Mapping[str, float | None] | None = None,
    trainings: float = 20,
    minutes: float = math.inf,
    seeds: int = 3,
    shares: Sequence[float] = (),
    random: int = 2,
    shared: bool = False,
    bn_batches: int = 10,
    on_training: OnTraining | None = None,
    verbose: bool = True,
    name: str | None = None,
) -> dict[str, Any]:
    """Races the best networks of searches against simple and random ones; a race that was stopped goes on.

    Races of a run by one recipe share their trainings, whatever their limits. In a process group each rank trains
    networks of its own.

    Args:
        run: whose searches they are.
        searches: their names, at least one.
        train: how every network is trained; its seed is that of the first training.
        limits: by name of the cost; those of the searches, the tightest of each, where they are not given.
        trainings: budget, in full trainings.
        minutes: budget of time.
        seeds: most trainings of a network.
        shares: at which shares of the epochs only the better half goes on; a quarter by default, from four epochs on.
        random: number of random networks.
        shared: start from the shared weights instead of fresh ones.
        bn_batches: calibration batches for the shared scores of simple and random networks.
        on_training: called with every outcome.
        verbose: show progress while networks are scored.
        name: of the document, INIT by default: where the weights of the trained networks start, `scratch` or `shared`.

    Returns:
        the document of `select/NAME.json`: winner, verdict, margins and every network that was trained.

    Raises:
        InputError: no such search, no network of them within the limits, or a budget below two trainings.
        RunError: all trainings failed.
    """
    if not searches:
        raise InputError("name at least one search of this run")
    shares = _epoch_shares(shares, train.epochs)
    check_race(trainings=trainings, minutes=minutes, shares=shares, seeds=seeds)
    world, init = current(), "shared" if shared else run.kind.start
    check_file(inside(run.folder, FOLDER, f"{init}.db"), "the record of trainings")  # before anything is scored
    if world.from_main(b"resumed" if (run.folder / FOLDER / f"{init}.db").exists() else b""):
        with _record(run, init, train):  # refuses another recipe before anything is scored
            pass
    read = functools.partial(_read_field, run, searches, limits or {}, random, train.seed, bn_batches, verbose=verbose)
    bounds, field = _from_main(read)
    trainer = _Trainer(run, train, shared)
    with _record(run, init, train) as record:
        result = race(
            run.space,
            field["finalists"],
            trainer,
            simple=field["simple"],
            random=field["random"],
            scores=field["scores"],
            cost=lambda arch: float(run.cost(arch)["macs"]),
            trainings=trainings,
            minutes=minutes,
            shares=shares,
            seeds=seeds,
            parallel=world.size,
            record=record,
            on_training=on_training,
        )
    document = {
        "format": 1,
        "searches": list(searches),
        "limits": bounds,
        "recipe": dataclasses.asdict(train),
        "init": init,
        **_document(run, result),
        f"test_{run.kind.metric}": trainer.test_scores(result.winner),
    }
    if world.main:
        remove_temporaries(inside(run.folder, FOLDER), alone=False)
        write_json(inside(run.folder, FOLDER, f"{name or init}.json"), json_safe(document))
    return document


def select_under_limits(
    run: Run,
    searches: Sequence[str],
    train: Train,
    *,
    cost: str,
    bounds: Sequence[float],
    limits: Mapping[str, float | None] | None = None,
    shared: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Runs one race per limit on a cost, the tightest first; a network that one has trained is not trained again.

    Every race has the whole budget. What it takes from an earlier race counts too, so that its result does not depend
    on the other limits.

    Args:
        run, searches, train, shared: see `select_stage`.
        cost: name of the cost.
        bounds: its limits, in any order.
        limits: on other costs.
        settings: further arguments of `select_stage`.

    Returns:
        the documents of `select/INIT-COST-BOUND.json`, the tightest limit first.
    """
    init = "shared" if shared else run.kind.start
    return [
        select_stage(
            run,
            searches,
            train,
            limits={**(limits or {}), cost: bound},
            shared=shared,
            name=f"{init}-{cost}-{bound:.0f}",
            **settings,
        )
        for bound in sorted(set(bounds))
    ]


def choose_stage(
    run: Run, searches: Sequence[str], *, random: int = 2, seed: int = 0, bn_batches: int = 10, verbose: bool = True
) -> dict[str, Any]:
    """Chooses among the networks that would race by their shared weights alone, without any training.

    Args:
        run: whose searches they are.
        searches: their names, at least one.
        random: number of random networks.
        seed: of their draw.
        bn_batches: calibration batches for the shared scores of simple and random networks.
        verbose: show progress while networks are scored.

    Returns:
        the document of `select/inherit.json`, in the form of `select_stage`: the winner has the best score, and the
        fewest MACs among equals.

    Raises:
        InputError: no such search, or no network of them within the limits.
    """
    bounds, field = _read_field(run, searches, {}, random, seed, bn_batches, verbose=verbose)
    scores, best = field["scores"], set(field["finalists"])
    simple = {arch: name for name, arch in field["simple"].items()}

    def runner(arch: Arch) -> Runner:
        arm: Arm = "simple" if arch in simple else "search" if arch in best else "random"
        name, cost, value = simple.get(arch, ""), float(run.cost(arch)["macs"]), scores[arch]
        return Runner(arch, arm, name, cost, {}, (value,), value, failed=False)

    ranked = sorted(map(runner, scores), key=lambda each: (-each.estimate, each.cost))
    winner = ranked[0]
    file, test = inside(run.folder, FOLDER, "inherit.json"), f"test_{run.kind.metric}"
    before = read_json(file) if file.exists() else {}
    if before.get("winner") == json_safe(_network(winner)) and isinstance(before.get(test), list):
        return before
    network = trained_network(run, winner.arch, seed, inherit=True)
    metrics = run.kind.scores(network, run.data.test.to(run.config.train.device))
    check_finite(metrics, f"the network {winner.arch.key}")
    document = {
        "format": 1,
        "searches": list(searches),
        "limits": bounds,
        "init": "inherit",
        "metric": f"validation_{run.kind.metric}",
        "winner": _network(winner),
        "verdict": f"no race was run: of {len(ranked)} networks this one has the best shared weights, on "
        f"{len(run.data.validation):,} validation images; the command select trains the best ones further",
        "paid": None,
        "trainings": 0,
        "margins": {},
        "tied": None,
        "failed": [],
        "networks": [_network(each) for each in ranked],
        test: [float(metrics[run.kind.metric])],
    }
    remove_temporaries(inside(run.folder, FOLDER), alone=False)
    write_json(file, json_safe(document))
    return document


def _epoch_shares(shares: Sequence[float], epochs: int) -> tuple[float, ...]:
    """Shares of a training that end with an epoch, ascending to 1."""
    wanted = shares or ((0.25,) if epochs >= 4 else ())
    for share in wanted:
        if not 0 < share <= 1:
            raise InputError(f"shares={tuple(shares)} should be above 0 and at most 1")
    rounded = tuple(sorted({max(1, round(share * epochs)) / epochs for share in wanted} | {1.0}))
    if rounded == (1.0,) and any(share < 1 for share in wanted):
        raise InputError(
            f"shares={tuple(shares)} end with no epoch before the last one, as there are {epochs}; leave them out, or "
            "train for more epochs"
        )
    return rounded


# -- who races --------------------------------------------------------------------------------------------------------


def _from_main(
    read: Callable[[], tuple[dict[str, float], dict[str, Any]]],
) -> tuple[dict[str, float], dict[str, Any]]:
    """The limits, and the networks with their scores, which rank 0 reads for all."""
    world = current()
    text = b""
    try:
        if world.main:
            with alone():
                limits, field = read()
            text = json.dumps([limits, {name: _written(value) for name, value in field.items()}]).encode()
    except BaseException:
        world.from_main(b"")
        raise
    text = world.from_main(text)
    if not text:
        raise InputError("rank 0 could not read the searches")
    limits, written = json.loads(text)
    return limits, {name: _read(rows) for name, rows in written.items()}


def _written(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return [[dict(arch), None] for arch in value]
    return [[dict(key), number] if isinstance(key, Arch) else [dict(number), key] for key, number in value.items()]


def _read(rows: Sequence[Sequence[Any]]) -> Any:
    """The inverse of `_written`: a list, architectures by name, or numbers by architecture."""
    if all(other is None for _, other in rows):
        return [Arch(values) for values, _ in rows]
    if all(isinstance(other, str) for _, other in rows):
        return {name: Arch(values) for values, name in rows}
    return {Arch(values): number for values, number in rows}


def _read_field(
    run: Run,
    searches: Sequence[str],
    requested: Mapping[str, float | None],
    random: int,
    seed: int,
    bn_batches: int,
    *,
    verbose: bool,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The limits of a race, and its finalists, simple and random networks with their shared scores."""
    space = run.space
    studies = {name: searched(run, name) for name in searches}
    metrics = {metric for _, _, metric in studies.values()}
    metric = metrics.pop() if len(metrics) == 1 else run.kind.metric
    feasible = _tightest(run, [own for _, own, _ in studies.values()], requested)
    scores = _scores_within(run, [trials for trials, _, _ in studies.values()], metric, feasible)
    if not scores:
        raise InputError(
            f"none of the networks of {', '.join(searches)} is a finalist; {feasible.explain()}; raise the limits or "
            "search under them"
        )

    def macs(arch: Arch) -> float:
        return float(run.cost(arch)["macs"])

    best = finalists(space, scores, FINALISTS, cost=macs, tied=_tied(run, scores, bn_batches))
    scaled = scaled_widths(run, feasible.limits)
    simple = scaled | simple_networks(
        space,
        cost=macs,
        feasible=feasible,
        rng=generator(seed, "simple"),
        published=published_networks(run),
        sample=feasible.sample,
    )
    drawn = _random(run, feasible, random, seed)
    raced = dict.fromkeys([*best, *simple.values(), *drawn])
    own_weights = any(_has_own_weights(run, name) for name in searches)
    others = list(raced) if own_weights else [arch for arch in raced if arch not in scores]
    for arch, row in shared_scores(run, others, bn_batches=bn_batches, verbose=verbose).items():
        name = metric.removeprefix("-")
        scores[arch] = -row[name] if metric.startswith("-") else row[name]
    kept = {arch: scores[arch] for arch in raced}
    return dict(feasible.limits), {"finalists": best, "simple": simple, "random": drawn, "scores": kept}


def _tightest(run: Run, searched_under: Sequence[Feasible], requested: Mapping[str, float | None]) -> Feasible:
    """The limits of several searches, the tightest on each cost, unless another is given."""
    limits: dict[str, float] = {}
    cost = run.cost
    for own in searched_under:
        limits |= {name: min(limit, limits.get(name, math.inf)) for name, limit in own.limits.items()}
        cost = own.cost if "latency_ms" in own.limits else cost
    limits |= {name: limit for name, limit in requested.items() if limit is not None}
    for name in limits:
        if name not in cost.costs:
            raise InputError(f"{run.space.name} has no cost {name!r} to limit; it has {', '.join(cost.costs)}")
    return Feasible(cost, limits)


def _scores_within(run: Run, studies: Sequence[Sequence[Trial]], metric: str, feasible: Feasible) -> dict[Arch, float]:
    """The best score of each network within the limits that a search has scored by the metric."""
    scores: dict[Arch, float] = {}
    for trials in studies:
        for trial in trials:
            form = run.space.normal_form(trial.arch)
            if feasible(form) and metric.removeprefix("-") in trial.metrics:
                scores[form] = max(score(trial, metric), scores.get(form, -math.inf))
    return scores


def _tied(run: Run, scores: Collection[Arch], bn_batches: int) -> list[Arch]:
    """The networks that are statistically tied with the best; none where correctness by image is not kept."""
    if run.kind.metric != "accuracy":
        return []
    evaluate = run.shared_weights(bn_batches=bn_batches)
    if evaluate.cache is None:
        return []
    try:
        return tied_with_best(evaluate.cache, evaluate.context, archs=scores)
    except InputError:  # scored with other calibration batches
        return []


def _random(run: Run, feasible: Feasible, n: int, seed: int) -> list[Arch]:
    """Up to `n` random networks: a limit that few meet is no reason not to race."""
    while n:
        with contextlib.suppress(InputError):
            return random_feasible(run, feasible, n, seed, tries=1000)
        n -= 1
    return []


def _has_own_weights(run: Run, name: str) -> bool:
    """Whether a search has scored with weights of its own, which say nothing of networks that it has not seen."""
    with Study(search_folder(run.folder, name) / "study.db", run.space, read=True) as study:
        return (study.settings or {}).get("searcher") == "MorphNet"


def scaled_widths(run: Run, limits: Mapping[str, float]) -> dict[str, Arch]:
    """The published network of a space of widths, all its groups scaled by one factor up to the limit; none elsewhere.

    With several limits, that on MACs decides if there is one.
    """
    supernet = run.kind.skeleton(run.summary)
    bounds = [(name, limits[name]) for name in ("macs", "params") if name in limits]
    if not isinstance(supernet, WidthChain) or not bounds:
        return {}
    space, layers, (cost, limit) = run.space, supernet.layers(), bounds[0]

    def spent(widths: Mapping[str, int]) -> int:
        return sum(layer.macs(widths) if cost == "macs" else layer.params(widths) for layer in layers)

    largest = {choice.name: int(choice.options[-1]) for choice in space.choices}
    seed = {name: int(width) for name, width in supernet.seed.items()}
    try:
        arch = space.normal_form(space.canonical(equal_widths(seed, largest, spent, limit=limit, share=0.01)))
    except InputError:  # even one channel per group costs more, though a network without some groups may fit
        return {}
    within = all(run.cost(arch)[name] <= bound for name, bound in limits.items() if name in run.cost.costs)
    return {"the published widths, scaled to the limit": arch} if within else {}


def published_networks(run: Run) -> dict[str, Arch]:
    """The published networks of the run's space, by name; a space with other settings may have none.

    A published pyramid is moved to the levels that the run has, as P3 to P7 to P2 to P6.
    """
    config, space = run.config, run.space
    detector = isinstance(config, DetectorRun)
    own = config.backbone if detector else config.space
    networks: dict[str, Arch] = {}
    for name, genotype in GENOTYPES.items():
        if genotype.space == own:
            with contextlib.suppress(InputError):
                networks[name] = space.from_indices(genotype.indices)
    for name, network in NETWORKS.items():
        if network.space == own and not detector:
            with contextlib.suppress(InputError):
                networks[name] = arch_of_cells(CELLS[network.cells], space)
    if isinstance(config, DetectorRun) and config.neck == "nasfpn":
        from detection.nasfpn.space import WIRINGS, wiring_arch
        from detection.nasfpn.supernet import NECK

        for (name, wiring), shift in itertools.product(WIRINGS.items(), SHIFTS):
            with contextlib.suppress(InputError):
                moved = f" on P{wiring.finest + shift} to P{wiring.finest + shift + wiring.levels - 1}"
                arch = space.canonical(wiring_arch(name, space, prefix=NECK, shift=shift))  # of the pyramid alone
                networks[name + (moved if shift else "")] = arch
    return networks


# -- trainings --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _record(run: Run, init: str, train: Train) -> Iterator[MutableMapping[Job, Outcome]]:
    """The outcomes so far: in a file that rank 0 writes, and as they are at the start on the other ranks."""
    world = current()
    recipe = dataclasses.asdict(train)
    del recipe["save_seconds"], recipe["prefetch"]  # which have no influence on results
    with contextlib.ExitStack() as stack:
        record: MutableMapping[Job, Outcome] = {}
        text = b""
        try:
            if world.main:
                folder = inside(run.folder, FOLDER)
                folder.mkdir(parents=True, exist_ok=True)
                record = stack.enter_context(Trainings(folder / f"{init}.db", run.space, recipe))
                text = json.dumps([[dict(job.arch), *job[1:], *outcome] for job, outcome in record.items()]).encode()
        except BaseException:
            world.from_main(b"")
            raise
        text = world.from_main(text)
        if not text:
            raise InputError("rank 0 could not open the record of trainings")
        if not world.main:
            for values, seed, share, value, seconds in json.loads(text):
                record[Job(Arch(values), seed, share)] = Outcome(value, seconds)
        yield record


@dataclasses.dataclass
class _Trainer:
    """Trains networks of a run; each rank its share of the jobs."""

    run: Run
    train: Train
    shared: bool

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcomes of jobs, the same on every rank."""
        world = current()
        with alone():
            own = [self._outcome(job) for job in jobs[world.rank :: world.size]]
        gathered = [json.loads(part) for part in world.gather(json.dumps(own).encode())]
        return [Outcome(*gathered[place % world.size][place // world.size]) for place in range(len(jobs))]

    def _outcome(self, job: Job) -> Outcome:
        train, began = self._recipe(job.seed), time.monotonic()
        try:
            if job.share < 1:
                epochs = round(job.share * train.epochs)
                value = partial_score(self.run, job.arch, train, epochs=epochs, shared=self.shared)
            else:
                result = retrain_stage(self.run, job.arch, train, shared=self.shared, verbose=False)
                name = f"validation_{self.run.kind.metric}"
                if (problem := problem_of(float, result.get(name))) is not None:
                    file = retrain_folder(self.run, job.arch, train.seed, self.shared) / "result.json"
                    raise InputError(f"{file} is damaged: {name}={shown(result.get(name))} {problem}; restore it")
                value = float(result[name])
        except UnwritableError:  # a full disk says nothing about the network
            raise
        except RunError as error:
            warnings.warn(f"{job.arch.key}, seed {train.seed}: {error}", stacklevel=2)
            return Outcome(None, time.monotonic() - began)
        return Outcome(value, time.monotonic() - began)

    def _recipe(self, seed: int) -> Train:
        return dataclasses.replace(self.train, seed=self.train.seed + seed)

    def test_scores(self, runner: Runner) -> list[float]:
        """The score on the test split of every full training of a network."""
        with alone():
            results = [
                retrain_stage(self.run, runner.arch, self._recipe(seed), shared=self.shared, verbose=False)
                for seed in range(len(runner.scores))
            ]
        return [float(result[self.run.kind.truth]) for result in results]


# -- the document -----------------------------------------------------------------------------------------------------


def _document(run: Run, result: Result) -> dict[str, Any]:
    return {
        "metric": f"validation_{run.kind.metric}",
        "winner": _network(result.winner),
        "verdict": result.verdict,
        "paid": result.paid,
        "ended": result.ended,
        "trainings": result.spent,
        "trainings_without_halving": result.without_halving,
        "minutes": result.seconds / 60,
        "noise": result.noise,
        "margins": {arm: _margin(margin) for arm, margin in result.margins.items()},
        "tied": None if result.tied is None else [runner.arch.key for runner in result.tied],
        "failed": [runner.arch.key for runner in result.runners if runner.failed],
        "networks": [_network(runner) for runner in result.runners],
    }


def _margin(margin: Margin) -> dict[str, Any]:
    return {
        "over": margin.over.arch.key,
        "difference": dataclasses.asdict(margin.difference),
        "detectable": margin.detectable,
    }


def _network(runner: Runner) -> dict[str, Any]:
    return {
        "arch": dict(runner.arch),
        "key": runner.arch.key,
        "arm": runner.arm,
        "name": runner.name,
        "macs": runner.cost,
        "scores": list(runner.scores),
        "estimate": runner.estimate,
        "curve": {f"{share:g}": value for share, value in runner.curve.items()},
        "failed": runner.failed,
    }
