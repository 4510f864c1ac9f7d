"""Trains the supernet of a recipe, or says what that would take."""

import dataclasses
import datetime
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supernet.chain import Chain, initialize, unit_scales
from supernet.cost import CostTable, meta_copy
from supernet.errors import InputError
from supernet.files import write_json
from supernet.paths import inside
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import SearchSpace
from supernet.train import check_training, plan_training, train_supernet
from supernet.training.checkpoint import save_weights
from supernet.training.distributed import check_device, current
from supernet.training.lead import Lead, common_lead, create_lead
from supernet.training.monitor import Monitor
from supernet.training.opening import opened, parse_openings
from supernet.training.rates import compare_rates
from supernet.training.sampling import ArchSampler, create_sampler
from supernet.training.task import Task
from supernet_tools.pipeline.changed_data import SETTING, STATE, accept_data, earlier_digests
from supernet_tools.pipeline.config import AUTO
from supernet_tools.pipeline.folder import (
    IMAGES,
    check_run,
    claim_run,
    read_run,
    removed_on_failure,
    renew_settings,
)
from supernet_tools.pipeline.held_out import HeldOutCurves
from supernet_tools.pipeline.learned import SCORES, probe_scores, record_scores
from supernet_tools.pipeline.located import FROM_RUN, PLACES, relative_places
from supernet_tools.pipeline.run import WEIGHTS, Run, check_space, read_summary, torch_generator
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from supernet_tools.pipeline.config import Recipe
    from supernet_tools.pipeline.kinds import Kind


@dataclass(frozen=True)
class Prepared:
    """What a training needs, everything checked that can be before work begins."""

    kind: "Kind[Any]"
    data: Any
    supernet: Chain
    costs: CostTable
    sampler: ArchSampler
    lead: Lead | None

    def run(self, folder: Path) -> Run:
        """The run in a folder, with what has been read and built already."""
        return Run(folder, self.kind, self.data.summary(), data=self.data, cost=self.costs, space=self.supernet.space)


def train_stage(config: "Recipe", out: Path, *, accept_changed_data: bool = False, verbose: bool = True) -> Run:
    """Trains the supernet of a recipe into `out`; a finished run is only opened, an interrupted one goes on.

    With `train.epochs` of 0 nothing is trained: the run serves to retrain architectures that are given, or shares the
    weights that it begins with.

    Args:
        config: the recipe.
        out: folder of the run.
        accept_changed_data: go on, or open a finished run, although the images have changed since it began, or
            `data.skip_unreadable` was switched; a warning and `run.json` say what has changed.
        verbose: show progress.

    Raises:
        InputError: the recipe cannot be trained, or the folder holds something else. A run that cannot start leaves no
            folder behind.
        RunError: the training diverged, or the disk is full.
    """
    world = current()
    for training in (config.train, config.retrain):
        check_device(world.device(training.device))
    config = kind_of(config).resolved()
    kind = kind_of(config)
    free = (f"data.{SETTING}",) if accept_changed_data else ()
    if world.main:
        check_run(out, kind.name, config, free=free)
    done = bool(world.from_main(b"done" if (out / WEIGHTS).exists() else b""))
    if done and not accept_changed_data and not _elsewhere(out, config):
        run = Run(out, kind, read_summary(out))
        check_space(out, run.space)
        if world.main:
            renew_settings(out, kind.name, config)
        return run
    with removed_on_failure(out):
        parts = prepare(kind, inside(out, IMAGES))
        trains = kind.has_weights and not done
        if trains:  # before the folder is claimed, since these weights may be refused
            kind.begin(parts.supernet, parts.data)
        task = kind.taught(parts.supernet) if trains else kind.task
        summary = parts.data.summary()
        facts = {
            "data": dataclasses.asdict(summary),
            "space_digest": parts.supernet.space.digest(),
            FROM_RUN: relative_places(out, config),
        }
        with claim_run(out, kind.name, config, free=free, **facts) if world.main else nullcontext():
            if world.main:
                check_space(out, parts.supernet.space)
                accept_data(out, config, summary, accept=accept_changed_data)
                renew_settings(out, kind.name, config)
            earlier = json.loads(world.from_main(json.dumps(_earlier(out)).encode() if world.main else b""))
            if verbose and world.main and not done:
                for table in kind.tables(parts.supernet, parts.data):
                    print_table(*table)
            if trains:
                _train(parts, out, task, accept=earlier, verbose=verbose)
            world.barrier()
    return parts.run(out)


def _elsewhere(out: Path, config: "Recipe") -> bool:
    """Whether a recipe names its images by another path than the run, so that they have to be compared."""
    written = read_run(out)["config"].get("data", {})
    return any(written.get(name) != getattr(config.data, name, None) for name in PLACES if hasattr(config.data, name))


def _earlier(out: Path) -> tuple[str, ...]:
    return earlier_digests(read_run(out))


def _train(parts: Prepared, out: Path, task: Task, *, accept: Sequence[str], verbose: bool) -> None:
    kind, supernet = parts.kind, parts.supernet
    if kind.config.train.epochs:
        monitor = Monitor(supernet, cost=parts.costs)
        history = train_supernet(
            supernet,
            parts.data,
            kind.config.train,
            sampler=parts.sampler,
            task=task,
            state=out / STATE,
            log=inside(out, "events"),
            monitor=monitor,
            lead=parts.lead,
            held_out=_curves(parts),
            watch=f"{'random' if supernet.space.size() > 1 else 'network'}_{kind.metric}",
            accept=accept,
            verbose=verbose,
        )
        kind.end(supernet, parts.data)
        if current().main:
            document = {"format": 1, "epochs": history, "health": monitor.report()}
            write_json(out / "history.json", document | ({"data_changed_from": list(accept)} if accept else {}))
    if current().main:
        metadata = {
            "space": kind.space,
            "space_digest": supernet.space.digest(),
            "data_digest": parts.data.digest,
        }
        # Before the weights: these say that the run is finished, also to a search, so nothing may be missing then.
        record_scores(parts.run(out), supernet.eval())
        save_weights(out / WEIGHTS, supernet, metadata)


def _curves(parts: Prepared) -> HeldOutCurves | None:
    """What rank 0 records of the validation split during the training."""
    if not current().main:
        return None
    kind, train = parts.kind, parts.kind.config.train

    def scorer(supernet: Chain, images: Any) -> SharedWeights:
        data = dataclasses.replace(parts.data, validation=images)
        return kind.shared_weights(supernet, data, cache=None, bn_batches=kind.curve_batches, hold=0)

    return HeldOutCurves(
        parts.supernet,
        parts.data,
        scorer,
        kind.curves,
        parts.costs,
        epochs=train.epochs,
        seed=train.seed,
    )


def prepare(kind: "Kind[Any]", cache: Path | None = None) -> Prepared:
    """Reads the data and builds the fresh supernet, sampler and lead of a recipe.

    Raises:
        InputError: something in the recipe does not fit the data, the space or the rest of the recipe.
    """
    config = kind.config
    data = _load(kind, cache)
    supernet = kind.supernet(data.summary(), torch_generator(config.train.seed, "supernet"))
    if not config.alike and supernet.starts_alike:
        initialize(supernet, torch_generator(config.train.seed, "supernet"))
    if not config.zero_gamma:
        unit_scales(supernet)
    costs = kind.costs(supernet)
    steps_per_epoch = len(data.train) // max(config.train.batch, 1)

    def create(space: SearchSpace) -> ArchSampler:
        return create_sampler(
            config.sampler,
            space,
            config.train.seed,
            table=costs if space is supernet.space else None,
            window=config.window,
            random_paths=config.random_paths,
            largest_steps=round(config.largest_epochs * steps_per_epoch),
            weightless=supernet.weightless_options() if config.sampler == "weighted" else {},
        )

    openings = parse_openings(config.opens, steps_per_epoch)
    sampler = opened(supernet.space, openings, create) if openings else create(supernet.space)
    lead = _lead(config, supernet, steps_per_epoch)
    if config.train.epochs:
        check_training(config.train, data, task=kind.task, prefix="train.")
    check_training(config.retrain, data, task=kind.task, prefix="retrain.")
    return Prepared(kind, data, supernet, costs, sampler, lead)


def _load(kind: "Kind[Any]", cache: Path | None) -> Any:
    """The images; where they are downloaded, rank 0 goes first."""
    world = current()
    fetches = getattr(kind.config.data, "download", False)
    if fetches and not world.main:
        world.barrier()
    data = kind.load(cache)
    if fetches and world.main:
        world.barrier()
    return data


LEAD, LONGEST_LEAD = 0.2, 1000
"""Share of a training that the lead "auto" takes, and its largest number of steps."""


def _lead(config: "Recipe", supernet: Chain, steps_per_epoch: int) -> Lead | None:
    if not config.lead or not config.train.epochs:
        return None
    if config.lead == AUTO:
        elsewhere = config.pretrained or config.largest_epochs or config.opens or not config.alike
        steps = min(round(LEAD * config.train.epochs * steps_per_epoch), LONGEST_LEAD)
        return None if elsewhere else common_lead(supernet, steps)
    lead = create_lead(supernet.space, config.lead, round(config.lead_epochs * steps_per_epoch))
    meta_copy(supernet).copy_options(lead.arch)  # fails here rather than after the first epochs
    return lead


def plan_stage(config: "Recipe") -> list[tuple[str, str]]:
    """What a training would take, as rows to print; writes nothing."""
    if not config.train.epochs:
        raise InputError("train.epochs=0 trains no supernet, so there is nothing to plan")
    kind = kind_of(kind_of(config).resolved())
    parts, task = prepare(kind), kind.task
    if getattr(config, "teacher", "none") != "none":  # it sees every batch too
        kind.begin(parts.supernet, parts.data)
        task = kind.taught(parts.supernet)
    plan = plan_training(parts.supernet, parts.data, config.train, sampler=parts.sampler, task=task)
    eta, mib = datetime.timedelta(seconds=round(plan["seconds"])), 2**20
    return [
        ("parameters", f"{plan['parameters']:,.0f}, {plan['active_parameters']:,.0f} in a path"),
        ("peak memory", f"{plan['peak_bytes'] / mib:,.0f} MiB"),
        ("time per step", f"{plan['seconds_per_step'] * 1000:,.1f} ms"),
        ("time in all", f"{eta} for {plan['steps']:,.0f} steps"),
        ("disk", f"{plan['disk_bytes'] / mib:,.1f} MiB"),
    ]


def rates_stage(config: "Recipe", steps: int) -> dict[float, float]:
    """The losses of short trainings by learning rate, on copies of the supernet as the training starts it."""
    if not config.train.epochs:
        raise InputError("train.epochs=0 trains no supernet, so no learning rate matters")
    kind = kind_of(kind_of(config).resolved())
    parts = prepare(kind)
    kind.begin(parts.supernet, parts.data)
    task = kind.taught(parts.supernet)
    return compare_rates(parts.supernet, parts.data, config.train, sampler=parts.sampler, task=task, steps=steps)


def supernet_accuracy(run: Run) -> dict[str, float]:
    """Mean and deviation of the metric of random architectures with shared weights, on the search-validation split.

    They were recorded at the end of the training; they are computed again if the images have changed since then.
    """
    record = read_run(run.folder).get(SCORES)
    if isinstance(record, dict) and not run.earlier_digests:
        recorded = {
            name: record[name] for name in ("mean", "deviation", "n") if isinstance(record.get(name), int | float)
        }
        if len(recorded) == 3:
            return recorded
    scores = probe_scores(run)
    return {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores), "n": len(scores)}
