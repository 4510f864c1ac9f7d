"""The stages of a run as functions: train a supernet, search it, retrain and export an architecture."""

import dataclasses
import datetime
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection.config import DetectorRun
from supernet import Arch, Chain, SearchSpace, create_supernet
from supernet.config import SupernetRun, Train, from_dict
from supernet.cost import CostTable, Feasible, LatencyTable, meta_copy
from supernet.errors import InputError, RunError
from supernet.export import export
from supernet.files import read_json, write_json
from supernet.progress import progress
from supernet.scoring.cache import ScoreCache
from supernet.scoring.shared_weights import SharedWeights
from supernet.seeding import derive_seed, generator
from supernet.training.checkpoint import load_weights, save_weights
from supernet.training.distributed import current
from supernet.training.loop import check_training, plan_training, train_standalone, train_supernet
from supernet.training.monitor import Monitor
from supernet.training.sampling import ArchSampler, Lead, create_lead, create_sampler
from supernet_tools.pipeline.classifier import Classifying, network_settings, pairs
from supernet_tools.pipeline.command_line import given_arch
from supernet_tools.pipeline.folder import check_run, open_run

__all__ = ["CostTable", "RunError", "check_training", "create_supernet", "network_settings", "pairs", "write_json"]

WEIGHTS, NETWORK = "supernet.safetensors", "network.safetensors"
DIGESTS = "digests.json"
"""Of a run that trains no supernet: its space and images, which weights hold otherwise."""
CONFIGS: dict[str, type[Any]] = {"supernet": SupernetRun, "detector": DetectorRun}
"""What a run folder says it holds, and the recipe that it has then."""


def kind_of(config: Any) -> Any:
    """A recipe's data, networks and scores: a `Classifying`, or a `detecting.Detecting`."""
    if not isinstance(config, DetectorRun):
        return Classifying(config)
    from supernet_tools.pipeline.detector import Detecting  # torchvision's detectors take seconds to load

    return Detecting(config)


def holds(config: Any) -> str:
    """What a run of this recipe says it holds."""
    return next(name for name, kind in CONFIGS.items() if isinstance(config, kind))


@dataclass(frozen=True)
class Run:
    """A trained supernet with its data and configuration."""

    folder: Path
    config: Any
    data: Any
    supernet: Chain
    cost: CostTable

    @property
    def kind(self) -> Any:
        """See `kind_of`."""
        return kind_of(self.config)

    def shared_weights(self, *, bn_batches: int = 10, costs: bool = True) -> SharedWeights:
        """The evaluator of this run: scores on the search-validation split, each kept in `scores.db`."""
        cache = ScoreCache(self.folder / "scores.db")
        evaluate: SharedWeights = self.kind.shared_weights(self.supernet, self.data, cache, bn_batches)
        evaluate.cost = self.cost if costs else None
        return evaluate


def torch_generator(*parts: object) -> torch.Generator:
    """A generator of its own for initial weights."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def train_stage(config: Any, out: Path, *, verbose: bool = True) -> Run:
    """Train the supernet of a recipe into `out`; a finished run is only loaded, an interrupted one goes on.

    With `train.epochs` of 0 there is no such training: the run is for retrainings of architectures that are given.
    """
    world, config = current(), kind_of(config).resolved()
    kind = kind_of(config)
    if world.main:
        check_run(out, holds(config), config)
    data, supernet, sampler, lead = supernet_parts(config)  # a run that cannot start leaves no folder behind
    with open_run(out, holds(config), config) if world.main else nullcontext():
        metadata = {"space": kind.space, "space_digest": supernet.space.digest(), "data_digest": data.digest}
        end = out / (WEIGHTS if config.train.epochs else DIGESTS)
        done = world.from_main(b"done" if end.exists() else b"")
        if not done and not config.train.epochs:
            if world.main:
                write_json(end, metadata)
        elif not done:
            kind.begin(supernet)
            monitor = Monitor(supernet)
            history = train_supernet(
                supernet,
                data,
                config.train,
                sampler=sampler,
                task=kind.task,
                state=out / "state.pt",
                log=out / "events",
                monitor=monitor,
                lead=lead,
                verbose=verbose,
            )
            if world.main:
                write_json(out / "history.json", {"format": 1, "epochs": history, "health": monitor.report()})
                save_weights(out / WEIGHTS, supernet, metadata)
        world.barrier()
    return open_stage(out, trained=False)


def plan_stage(config: Any) -> list[tuple[str, str]]:
    """What a training will take, as rows to print; writes nothing."""
    if not config.train.epochs:
        raise InputError("train.epochs=0 trains no supernet, so there is nothing to plan")
    config = kind_of(config).resolved()
    data, supernet, sampler, _ = supernet_parts(config)
    plan = plan_training(supernet, data, config.train, sampler=sampler, task=kind_of(config).task)
    eta, mib = datetime.timedelta(seconds=round(plan["seconds"])), 2**20
    return [
        ("parameters", f"{plan['parameters']:,.0f}, {plan['active_parameters']:,.0f} in a path"),
        ("peak memory", f"{plan['peak_bytes'] / mib:,.0f} MiB"),
        ("time per step", f"{plan['seconds_per_step'] * 1000:,.1f} ms"),
        ("time in all", f"{eta} for {plan['steps']:,.0f} steps"),
        ("disk", f"{plan['disk_bytes'] / mib:,.1f} MiB"),
    ]


def supernet_parts(config: Any) -> tuple[Any, Chain, ArchSampler, Lead | None]:
    """Data, fresh supernet, sampler and lead of a recipe, everything checked that can be before work begins."""
    world, kind = current(), kind_of(config)
    fetches = getattr(config.data, "download", False)
    if fetches and not world.main:
        world.barrier()  # rank 0 fetches
    data = kind.load()
    if fetches and world.main:
        world.barrier()
    supernet = kind.supernet(data, torch_generator(config.train.seed, "supernet"))
    if config.train.distill and config.sampler != "sandwich":
        raise InputError(f"train.distill follows the largest path of the sampler 'sandwich', not of {config.sampler!r}")
    per_epoch = len(data.train) // max(config.train.batch, 1)
    sampler = create_sampler(
        config.sampler,
        supernet.space,
        config.train.seed,
        table=kind.costs(supernet),
        window=config.window,
        random_paths=config.random_paths,
        largest_steps=round(config.largest_epochs * per_epoch),
    )
    if (config.lead or config.lead_epochs) and config.largest_epochs:
        raise InputError(f"lead={config.lead!r} and largest_epochs={config.largest_epochs:g} both begin; leave one out")
    if config.lead_epochs and not config.lead:
        raise InputError(f"lead_epochs={config.lead_epochs:g} needs the option that leads; name it with lead")
    if config.lead and config.lead_epochs >= config.train.epochs > 0:
        raise InputError(
            f"lead_epochs={config.lead_epochs:g} leaves none of train.epochs={config.train.epochs:g} to the other "
            "options; lower it, or turn the lead off with an empty lead and lead_epochs 0"
        )
    leads = config.lead and config.train.epochs
    lead = create_lead(supernet.space, config.lead, round(config.lead_epochs * per_epoch)) if leads else None
    if lead is not None:
        meta_copy(supernet).spread(lead.arch)
    for training in (config.train, config.retrain) if config.train.epochs else (config.retrain,):
        check_training(training, data, task=kind.task)
    return data, supernet, sampler, lead


def config_of(folder: Path) -> Any:
    """The recipe of a run. Raises `InputError` for a folder without a supernet."""
    document = read_json(folder / "run.json")
    if document.get("kind") not in CONFIGS:
        raise InputError(f"{folder} holds a {document.get('kind')} run; give the folder of a trained supernet")
    return from_dict(CONFIGS[document["kind"]], document["config"])


def open_stage(folder: Path, *, trained: bool = True) -> Run:
    """Load a supernet, with `trained` one that has weights to share.

    Raises `InputError` for a folder without one, or one trained on other images.
    """
    config = config_of(folder)
    if trained and not config.train.epochs:
        raise InputError(f"the supernet of {folder} has train.epochs=0 and so no weights to share; train it")
    kind = kind_of(config)
    data = kind.load()
    supernet = kind.supernet(data)
    metadata = load_weights(folder / WEIGHTS, supernet) if config.train.epochs else read_json(folder / DIGESTS)
    digests = (("space_digest", "space", supernet.space.digest()), ("data_digest", "set of images", data.digest))
    for name, what, now in digests:
        if metadata.get(name) != now:
            found = f"digest {metadata.get(name)}, now {now}"
            raise InputError(f"{folder} was made with another {what} ({found}); restore it or train again")
    supernet.eval().to(config.train.device)
    return Run(folder, config, data, supernet, kind.costs(supernet))


def limits_of(run: Run, limits: Mapping[str, float | None]) -> Feasible:
    """The given limits over a run's costs; an impossible one, or of a cost that is not there, is an error at once."""
    for name, value in limits.items():
        if value is not None and name not in run.cost.costs:
            raise InputError(
                f"{run.supernet.space.name} has no cost {name!r} to limit; it has {', '.join(run.cost.costs)}"
            )
    return Feasible(run.cost, {name: value for name, value in limits.items() if value is not None})


def timed(run: Run, batch: int = 1) -> Run:
    """The run with measured latency among its costs, kept in its folder."""
    file = run.folder / f"latency-{batch}.jsonl"
    table = LatencyTable(run.supernet, batch=batch, device=run.config.train.device, file=file)
    return dataclasses.replace(run, cost=table)


def read_arch(run: Run, text: str) -> Arch:
    """An architecture of the run's space from JSON text or a file with it (an export's arch.json too)."""
    return arch_of(text, run.supernet.space)


def arch_of(text: str, space: SearchSpace) -> Arch:
    """An architecture of a space, in normal form, from JSON text or a file with it (an export's arch.json too)."""
    return space.normal_form(space.canonical(given_arch(text)))


def random_feasible(run: Run, feasible: Feasible, n: int, seed: int, tries: int = 10_000) -> list[Arch]:
    """`n` distinct networks drawn uniformly from those within the limits."""
    rng, space = generator(seed, "controls"), run.supernet.space
    found: dict[Arch, None] = {}
    for _ in range(tries):
        arch = space.normal_form(space.sample(rng))
        if feasible(arch):
            found[arch] = None
        if len(found) == n:
            return list(found)
    raise InputError(f"{tries:,} draws gave only {len(found)} of {n} architectures; {feasible.explain()}")


def retrain_stage(run: Run, arch: Arch, train: Train, *, shared: bool = False, verbose: bool = True) -> dict[str, Any]:
    """Train one architecture as a standalone network, from scratch or from the shared weights; score the test split."""
    folder, kind = retrain_folder(run, arch, train.seed, shared), run.kind
    check_training(train, run.data, task=kind.task)
    world = current()
    with open_run(folder, "retrain", train) if world.main else nullcontext():
        result = folder / "result.json"
        if world.from_main(b"done" if result.exists() else b""):
            return read_json(result)
        network = fresh_network(run, arch, train.seed)
        if shared:
            inherited = run.shared_weights().subnet(arch).state_dict()
            extra = network.load_state_dict(inherited, strict=False).unexpected_keys
            assert not extra, f"the standalone network lacks {extra}"  # it may have more: affine batch norm
        else:
            kind.prepare(network, arch, train.seed)
        began = time.monotonic()
        train_standalone(
            network,
            run.data,
            train,
            task=kind.task,
            state=folder / "state.pt",
            log=folder / "events",
            verbose=verbose,
        )
        if not world.main:
            world.barrier()  # until rank 0 has written the result
            return read_json(result)
        save_weights(folder / NETWORK, network, {"space": kind.space, "arch": arch.to_json()})
        document = {
            "format": 1,
            "arch": dict(arch),
            "key": arch.key,
            "seed": train.seed,
            "init": "shared" if shared else kind.start,
            **kind.figures(network, run.data, train.device),
            **run.cost(arch),
            "seconds": time.monotonic() - began,
        }
        write_json(result, document)
        world.barrier()
        return document


def retrain_folder(run: Run, arch: Arch, seed: int, shared: bool = False) -> Path:
    """Where a retraining lives: one folder per architecture, seed and start."""
    return run.folder / "retrain" / f"{arch.key}-seed{seed}{'-shared' if shared else ''}"


def fresh_network(run: Run, arch: Arch, seed: int) -> nn.Module:
    """The standalone network of an architecture, initialised from a seed."""
    network: nn.Module = run.kind.network(run.data, arch, torch_generator(seed, "network"))
    return network


def trained_network(run: Run, arch: Arch, seed: int, *, inherit: bool = False, shared: bool = False) -> nn.Module:
    """A retrained network, or with `inherit` the recalibrated subnet of the supernet."""
    if inherit:
        return run.shared_weights().subnet(arch)
    network = fresh_network(run, arch, seed)
    load_weights(retrain_folder(run, arch, seed, shared) / NETWORK, network)
    return network.eval()


def shared_scores(
    run: Run, archs: Sequence[Arch], *, bn_batches: int = 10, weights: Path | None = None, verbose: bool = True
) -> dict[Arch, dict[str, float]]:
    """Shared-weight metrics of many networks; with `weights`, those of another run's or checkpoint's supernet."""
    if weights is not None:
        other = run.kind.supernet(run.data)
        load_weights(weights / WEIGHTS if weights.is_dir() else weights, other)
        run = dataclasses.replace(run, supernet=other.eval().to(run.config.train.device))
    evaluate, found = run.shared_weights(bn_batches=bn_batches, costs=False), dict[Arch, dict[str, float]]()
    with progress("scoring", len(archs), enabled=verbose) as update:
        for start in range(0, len(archs), 64):
            group = archs[start : start + 64]
            found |= zip(group, evaluate(group), strict=True)
            update(len(found), f"{evaluate.hits} from the cache")
    return found


def true_accuracies(
    run: Run, archs: Sequence[Arch], train: Train, *, seeds: int = 1, verbose: bool = True
) -> dict[Arch, tuple[float | None, ...]]:
    """The `truth` of retrainings per seed from `train.seed` on, None where one failed; those done are only read."""
    found: dict[Arch, tuple[float | None, ...]] = {}
    with progress("retraining", len(archs), enabled=verbose) as update:
        for arch in archs:
            found[arch] = tuple(
                _accuracy(run, arch, dataclasses.replace(train, seed=train.seed + number)) for number in range(seeds)
            )
            update(len(found), "")
    return found


def _accuracy(run: Run, arch: Arch, train: Train) -> float | None:
    try:
        return float(retrain_stage(run, arch, train, verbose=False)[run.kind.truth])
    except RunError as error:
        warnings.warn(f"{arch.key}, seed {train.seed}: {error}", stacklevel=2)
        return None


def export_stage(
    run: Run, arch: Arch, network: nn.Module, *, onnx: bool = False, out: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Write the standalone folder; returns its path and the parity report."""
    folder = out or run.folder / "export" / arch.key
    report = export(
        network,
        folder,
        arch=arch,
        space=run.kind.space,
        preprocess=run.kind.preprocess(run.data),
        onnx=onnx,
    )
    return folder, report


def supernet_accuracy(run: Run, archs: int | None = None) -> dict[str, float]:
    """Mean and deviation of the shared-weight accuracy, or mAP, of uniform architectures, search-validation split."""
    rng, space = generator(run.config.train.seed, "probe"), run.supernet.space
    archs = archs or run.kind.probes
    scores = [m[run.kind.metric] for m in run.shared_weights()([space.sample(rng) for _ in range(archs)])]
    return {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores), "n": archs}
