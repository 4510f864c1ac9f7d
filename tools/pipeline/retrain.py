"""Standalone networks of a run: trained from scratch or from the shared weights, loaded, and used as the truth."""

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from supernet.checked import Seed, problem_of, shown
from supernet.config import Train
from supernet.errors import InputError, RunError, UnwritableError
from supernet.files import read_json, write_json
from supernet.paths import inside
from supernet.progress import progress
from supernet.scoring.metrics import check_finite
from supernet.space import Arch
from supernet.train import check_training, train_standalone
from supernet.training.checkpoint import load_state, load_weights, save_weights
from supernet.training.distributed import current
from supernet.training.state import steps_per_epoch
from supernet_tools.pipeline.architectures import known_archs
from supernet_tools.pipeline.command_line import command
from supernet_tools.pipeline.folder import claim_run
from supernet_tools.pipeline.run import NETWORK, Run, torch_generator
from supernet_tools.pipeline.validation import BEST, ValidationCurve, best_epoch

STATE = "state.pt"
_RESTORE = "restore it, or remove its folder and train again"


def retrain_stage(
    run: Run, arch: Arch, train: Train, *, shared: bool = False, folder: Path | None = None, verbose: bool = True
) -> dict[str, Any]:
    """Trains one architecture as a standalone network and scores it; a finished one with its weights is only read.

    Args:
        run: supplies images and recipe; with `shared` also the weights to start from.
        arch: the architecture of the run's space.
        train: how to train.
        shared: start from the shared weights instead of fresh ones.
        folder: where its files go instead of `retrain_folder`.
        verbose: show progress.

    Returns:
        the document of `result.json`: metrics by split, costs, seconds.
    """
    folder, kind = folder or retrain_folder(run, arch, train.seed, shared), run.kind
    world, result = current(), folder / "result.json"
    done = bool(world.from_main(b"done" if result.exists() and (folder / NETWORK).exists() else b""))
    if not done:
        check_training(train, run.data, task=kind.retrain_task)  # a training that cannot start leaves no folder behind
        if shared:
            _ = run.supernet  # nor do weights that are damaged
    with claim_run(folder, "retrain", train) if world.main else nullcontext():
        if done:
            return _same(read_result(result, kind.truth), result, arch, train.seed)
        began = time.monotonic()
        network = _trained(run, arch, train, folder, shared=shared, verbose=verbose)
        if not world.main:
            world.barrier()  # until rank 0 has written the result
            return read_result(result, kind.truth)
        figures = kind.figures(network, run.data, train.device)
        check_finite(figures, f"the retrained network {arch.key}")
        save_weights(folder / NETWORK, network, {"space": kind.space, "arch": arch.to_json()})
        document = {
            "format": 1,
            "arch": dict(arch),
            "key": arch.key,
            "seed": train.seed,
            "init": "shared" if shared else kind.start,
            **({"bn": run.bn} if shared else {}),
            **figures,
            **best_epoch(folder / BEST, kind.metric),
            **run.cost(arch),
            "seconds": time.monotonic() - began,
        }
        write_json(result, document)
        world.barrier()
        return document


def partial_score(run: Run, arch: Arch, train: Train, *, epochs: int, shared: bool = False) -> float:
    """Trains one architecture to the end of an epoch and scores it on the validation split.

    `retrain_stage` with the same arguments goes on from there, to the result of an uninterrupted training. Where a
    training has gone further already, another one is made to this epoch, and nothing of it is kept.

    Raises:
        RunError: the training diverged.
    """
    kind = run.kind
    check_training(train, run.data, task=kind.retrain_task)
    folder = retrain_folder(run, arch, train.seed, shared)
    with claim_run(folder, "retrain", train):
        state = folder / STATE
        further = state.exists() and load_state(state).get("step", 0) > epochs * steps_per_epoch(run.data, train)
        network = _trained(run, arch, train, None if further else folder, shared=shared, until=epochs, verbose=False)
        scores = kind.scores(network.eval(), run.data.validation.to(train.device))
    check_finite(scores, f"the network {arch.key} after {epochs} epochs")
    return float(scores[kind.metric])


def _trained(
    run: Run, arch: Arch, train: Train, folder: Path | None, *, shared: bool, until: int | None = None, verbose: bool
) -> nn.Module:
    """The standalone network of an architecture, trained in a claimed folder, where an interrupted training goes on.

    Without a folder nothing is kept.
    """
    kind = run.kind
    network = fresh_network(run, arch, train.seed)
    if folder is None:
        train = dataclasses.replace(train, patience=0)
    if shared:
        inherited = run.shared_weights().subnet(arch).state_dict()
        extra = network.load_state_dict(inherited, strict=False).unexpected_keys
        assert not extra, f"the standalone network lacks {extra}"  # it may have more: affine batch norm
    else:
        kind.prepare(network, arch, train.seed)
    history = train_standalone(
        network,
        run.data,
        train,
        task=kind.retrain_task,
        state=folder and folder / STATE,
        log=folder and inside(folder, "events"),
        held_out=None if folder is None else _curve(run, arch, train, folder),
        watch=f"validation_{kind.metric}",
        accept=run.earlier_digests,
        until=until,
        verbose=verbose,
    )
    if folder is not None and current().main:
        write_json(folder / "history.json", {"format": 1, "epochs": history})
        if train.patience and until is None and (folder / BEST).exists():
            load_weights(folder / BEST, network)
    return network


def _curve(run: Run, arch: Arch, train: Train, folder: Path) -> ValidationCurve | None:
    """The validation curve of a kind that has one, with the best weights beside the last ones; on rank 0.

    A classifier has one only where it decides when the training ends.
    """
    kind = run.kind
    if not current().main:
        return None
    score = kind.validation(run.data, train.device)
    if score is None:
        if not train.patience:
            return None
        images = run.data.validation.to(train.device)

        def score(network: nn.Module) -> Mapping[str, float]:
            return kind.scores(network, images)

    return ValidationCurve(score, kind.metric, folder / BEST, {"space": kind.space, "arch": arch.to_json()})


def read_result(file: Path, truth: str) -> dict[str, Any]:
    """The document of a finished retraining.

    Raises:
        InputError: it lacks what a result says, or its metric is no finite number.
    """
    document = read_json(file)
    for name, kind in {"arch": dict[str, Any], "key": str, "seed": Seed, truth: float}.items():
        if name not in document:
            raise InputError(f"{file} is damaged: it lacks {name!r}; {_RESTORE}")
        if (problem := problem_of(kind, document[name])) is not None:
            raise InputError(f"{file} is damaged: {name}={shown(document[name])} {problem}; {_RESTORE}")
    for name in ("macs", "params"):
        if (problem := problem_of(float, document.get(name, 0))) is not None:
            raise InputError(f"{file} is damaged: {name}={shown(document[name])} {problem}; {_RESTORE}")
    return document


def _same(document: dict[str, Any], file: Path, arch: Arch, seed: int) -> dict[str, Any]:
    """The result in a file. Raises `InputError` if it is that of another training than its folder's."""
    for name, value in {"arch": dict(arch), "key": arch.key, "seed": seed}.items():
        if document[name] != value:
            raise InputError(f"{file} is damaged: {name}={shown(document[name])} is not of its folder; {_RESTORE}")
    return document


def retrain_folder(run: Run, arch: Arch, seed: int, shared: bool = False) -> Path:
    """The folder of a retraining: one per architecture, seed and start, which depends on the batch-norm policy."""
    policy = "" if run.bn == "plain" else f"-{run.bn}"
    return inside(run.folder, "retrain", f"{arch.key}-seed{seed}{f'-shared{policy}' if shared else ''}")


def fresh_network(run: Run, arch: Arch, seed: int) -> nn.Module:
    """The standalone network of an architecture, initialised from a seed."""
    network: nn.Module = run.kind.network(run.summary, arch, torch_generator(seed, "network"))
    return network


def trained_network(run: Run, arch: Arch, seed: int, *, inherit: bool = False, shared: bool = False) -> nn.Module:
    """A retrained network in eval mode, or with `inherit` the subnet of the supernet with recalibrated batch norm.

    Raises:
        InputError: there is no such retraining, or it has not finished.
    """
    if inherit:
        return run.shared_weights().subnet(arch)
    file = retrain_folder(run, arch, seed, shared) / NETWORK
    if not file.exists():
        known = any(other.key == arch.key for other in known_archs(run))
        which = (
            "--arch",
            arch.key if known else arch.to_json(),
            "--seed",
            seed,
            "--init",
            "shared" if shared else "scratch",
        )
        raise InputError(
            f"no retraining of the network {arch.key} with seed {seed} has finished in {run.folder}; run "
            f"{command('retrain', run.folder, *which)}"
        )
    network = fresh_network(run, arch, seed)
    load_weights(file, network)
    return network.eval()


def true_accuracies(
    run: Run, archs: Sequence[Arch], train: Train, *, seeds: int = 1, verbose: bool = True
) -> dict[Arch, tuple[float | None, ...]]:
    """The `truth` of retrainings of each architecture, one per seed from `train.seed` on; None where one failed."""
    results: dict[Arch, tuple[float | None, ...]] = {}
    with progress("retraining", len(archs), enabled=verbose) as update:
        for arch in archs:
            trainings = (dataclasses.replace(train, seed=train.seed + number) for number in range(seeds))
            results[arch] = tuple(_truth(run, arch, training) for training in trainings)
            update(len(results), "")
    return results


def _truth(run: Run, arch: Arch, train: Train) -> float | None:
    try:
        return float(retrain_stage(run, arch, train, verbose=False)[run.kind.truth])
    except UnwritableError:  # a full disk says nothing about the network
        raise
    except RunError as error:
        warnings.warn(f"{arch.key}, seed {train.seed}: {error}", stacklevel=2)
        return None
