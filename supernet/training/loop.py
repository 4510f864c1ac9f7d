"""One training loop for supernets and standalone networks; a standalone network is a chain without decisions."""

import contextlib
import json
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.chain import Chain, Searchable
from supernet.checked import checked_arguments, shown
from supernet.config import Augment, Train
from supernet.convolutions import FastConvolutions
from supernet.cost import meta_copy
from supernet.errors import InputError, RunError, Terminated
from supernet.generators import restored_generators
from supernet.paths import check_file
from supernet.progress import progress
from supernet.seeding import derive_seed
from supernet.space import Arch, SearchSpace
from supernet.training.check import check_fit, check_training
from supernet.training.distributed import World, current, reduce_gradients, revert_sync_bn
from supernet.training.events import EventWriter
from supernet.training.lead import Lead
from supernet.training.monitor import Monitor
from supernet.training.optim import compiled
from supernet.training.sampling import ArchSampler, uniform
from supernet.training.sparse_step import step_active
from supernet.training.state import Penalty, TrainingState, prepare
from supernet.training.task import Classification, Task, TrainingData

HeldOut = Callable[[Chain, int], Mapping[str, float]]
"""Scores a supernet after an epoch, whose number counts from 1."""
LOSS_DECAY = 0.98  # decay of the running mean loss, against which a spike is measured


@checked_arguments
def train_supernet(
    supernet: Chain,
    data: TrainingData,
    config: Train,
    *,
    sampler: ArchSampler | None = None,
    augment: Augment | None = None,
    task: Task | None = None,
    state: Path | None = None,
    log: Path | None = None,
    monitor: Monitor | None = None,
    penalty: Penalty | None = None,
    lead: Lead | None = None,
    held_out: HeldOut | None = None,
    watch: str = "",
    accept: Collection[str] = (),
    until: int | None = None,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Trains the shared weights in place.

    Each step samples architectures, accumulates their gradients and updates once. A parameter (of a sliced tensor: an
    element) that none of them used keeps its value to the bit, whatever momentum and decay say. Everything random
    follows from `config.seed` and the step; the global generators of Python, numpy and torch are left as they were.

    In a process group (`supernet.training.distributed.process_group`) every process calls this with the same
    arguments. All train the same architectures on their share of the joint batch; only the gradients of the active
    parameters are averaged, and only rank 0 writes files.

    Args:
        supernet: any chain; one without decisions is an ordinary network.
        data: the splits; only `train` is used.
        config: the optimisation recipe.
        sampler: chooses the architectures that a step trains; `uniform` by default.
        augment: how the training images of a classification are augmented; not at all by default.
        task: what is learnt instead of a classification, e.g. `detection.task.Detection`; it augments images itself.
        state: checkpoint file. If it exists, training resumes from it with the identical result (on the CPU, for the
            same torch build, device, number of threads and processes; a warning names what differs).
        log: folder for TensorBoard events.
        monitor: records the health of the shared weights.
        penalty: added to the loss of every architecture; may end the training early.
        lead: an architecture that is trained alone at first; the other options then start from its weights.
        held_out: called by rank 0 with the supernet, or its moving average if there is one, and the number of every
            epoch that ends; what it returns joins the row of the epoch, e.g. scores on images that are not trained on.
            It must not change the weights.
        watch: a name in what `held_out` returns, larger is better: the training ends once `config.patience` epochs in a
            row have not improved it. On every rank, while only rank 0 needs `held_out`.
        accept: digests of other versions of the data, such as those before a repair, whose checkpoint is taken over; it
            goes on at the same place of the same epoch.
        until: stops at the end of this epoch, from 1; the same call with a later one, or without, goes on from `state`
            to the result of an uninterrupted training, whose schedule of learning rates it follows.
        verbose: whether to show progress.

    Returns:
        one row per epoch with `epoch`, the metrics of the task (`loss` and `accuracy` of the sampled paths, in
        training mode), `lr`, and `penalty` if there is one.

    Raises:
        InputError: see `check_training` and `supernet.training.check.check_fit`; patience without anything to watch; a
            checkpoint that is damaged or belongs to another network; or options that cannot start as copies of those of
            the lead.
        RunError: the loss is not finite or has spiked; the message names the step, its architecture and the last
            checkpoint.
    """
    world = current()
    task = task or Classification(augment or Augment())
    check_training(config, data, task=task)
    if config.patience and not watch:
        raise InputError(
            f"patience={config.patience} waits for a better score on held-out images, and none is watched: pass "
            "held_out and watch, or set patience to 0"
        )
    if state is not None:
        check_file(state, "the checkpoint")
    if until is not None and not 1 <= until <= config.epochs:
        raise InputError(f"until={until} should be an epoch of the training, from 1 to {config.epochs}")
    if log is not None and log.exists() and not log.is_dir():
        raise InputError(f"log={str(log)!r} is not a folder; give another one for TensorBoard's events")
    check_fit(supernet, data, task)
    with restored_generators(world.device(config.device)):
        training = prepare(
            supernet,
            data,
            config,
            task=task,
            sampler=sampler or uniform(supernet.space, config.seed),
            world=world,
            checkpoint=state,
            monitor=monitor,
            penalty=penalty,
            lead=lead,
            accept=accept,
            until=until,
            watch=watch,
        )
        if lead is not None:
            _check_lead(supernet, lead, training.total)
        if monitor is not None:
            monitor.begin(training.total)
        try:
            with compiled(supernet, enabled=config.compile):
                _run(training, log if world.main else None, held_out, verbose=verbose and world.main)
        finally:
            revert_sync_bn(supernet)
    if training.ema is not None:
        supernet.load_state_dict(training.ema.module.state_dict())
    return training.history


@checked_arguments
def train_standalone(network: nn.Module, data: TrainingData, config: Train, **options: Any) -> list[dict[str, float]]:
    """Trains an ordinary network in place by the same loop; `options` as in `train_supernet`.

    Raises:
        InputError: `network` is a supernet or has no parameters; see `train_supernet` for others.
    """
    if isinstance(network, Searchable) and network.space.choices:
        raise InputError(
            f"network is a supernet over {network.space.name!r}; call train_supernet, or train one of its subnets"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("the network has no parameters to train")
    return train_supernet(Chain("standalone", [("network", network)]), data, config, **options)


def _check_lead(supernet: Chain, lead: Lead, steps: int) -> None:
    """Checks that the lead ends before the training does, and that the other options can start as copies of it."""
    if lead.steps >= steps:
        raise InputError(f"a lead of {lead.steps} steps leaves none of {steps} to the other options; shorten it")
    meta_copy(supernet).copy_options(lead.arch)  # fails now instead of after the lead's steps


def _run(training: TrainingState, log: Path | None, held_out: HeldOut | None, *, verbose: bool) -> None:
    config, world = training.config, training.world
    training.restore()
    batches = training.task.batches(training.data, config, start=training.step, rank=world.rank, world=world.size)
    writer = None if log is None else EventWriter(log, training.step)
    last_save = time.monotonic()
    with (
        contextlib.closing(batches),  # type: ignore[type-var]  # a generator
        progress("training", training.total, start=training.step, enabled=verbose) as update,
        _deferred_interrupt(world) as interrupted,
    ):
        while not training.finished:
            train_step(training, _next(batches), interrupted)
            epoch_ended = training.step % training.per_epoch == 0
            if epoch_ended:
                _close_epoch(training, writer, held_out if world.main else None)
            stop = training.stop or (world.size == 1 and interrupted.is_set())
            due = time.monotonic() - last_save >= config.save_seconds or training.finished or stop
            # A stream cannot be resumed within an epoch, so it is saved at the end of one.
            if due and (epoch_ended or training.data.train.exact):
                book_losses(training)  # raises if the step went wrong, so that such weights are never saved
                training.save()
                last_save = time.monotonic()
            update(training.step, _note(training))
            if stop:
                raise Terminated if interrupted.number == signal.SIGTERM else KeyboardInterrupt
    if writer is not None:
        writer.close()


def _next(batches: Iterator[Any]) -> Any:
    """Returns the next batch. Raises `RunError` if a process that makes batches is gone, e.g. killed for memory."""
    try:
        return next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that loads images is gone ({' '.join(str(error).split())[:160]}); the system may have ended it "
            "for lack of memory: free some, or lower data.workers; the same command goes on from the last checkpoint"
        ) from error


class _Interrupt(threading.Event):
    """Is set once a signal has come, whose number it keeps."""

    number = 0

    def receive(self, number: int, frame: object) -> None:
        """Handles a signal."""
        self.number = number
        self.set()


@contextlib.contextmanager
def _deferred_interrupt(world: World) -> Iterator[_Interrupt]:
    """Makes Ctrl-C and SIGTERM set an event, because a training stopped within a step could not resume identically.

    Under torchrun SIGTERM ends the process at once: the launcher sends it to restart all ranks when one has died, and
    finishing the step would mean waiting for the dead one.
    """
    interrupted = _Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield interrupted
        return
    handled = [signal.SIGINT] if world.size > 1 else [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, interrupted.receive) for number in handled]
    try:
        yield interrupted
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


# -- one step ---------------------------------------------------------------------------------------------------------


def train_step(training: TrainingState, batch: Any, interrupted: threading.Event) -> None:
    """Makes one update: every architecture adds its gradients, and the active parameters are averaged over ranks."""
    config, chain, step, rank = training.config, training.chain, training.step, training.world.rank
    archs = _paths(training)
    _check_paths(chain.space, archs, step)
    training.schedule.step_update(step)
    loss_of = training.task.paths(chain, batch, training.data, config, step=step, rank=rank)
    _seed(derive_seed(config.seed, "step", step, rank), training.device)  # dropout and the like
    for module in training.scheduled:
        module.set_progress(step / training.total)
    values: list[Tensor] = []
    names: tuple[str, ...] = ()
    for number, arch in enumerate(archs):
        for module in training.dropping:
            module.training = number == 0
        with FastConvolutions() if training.device.type == "cpu" and not config.compile else contextlib.nullcontext():
            loss, metrics = loss_of(arch)
        penalty = training.penalty(arch) if training.penalty is not None else 0.0
        (loss + penalty).backward()  # type: ignore[no-untyped-call]
        values += metrics.values()
        names = tuple(metrics)
    for module in training.dropping:
        module.training = True
    parts = [part for arch in archs for part in training.parts(arch)]
    stop = values[0].new_tensor(float(interrupted.is_set()))
    reduced, _ = reduce_gradients(parts, torch.stack([*values, stop]))
    assert reduced is not None
    book_losses(training)  # those of the step before: reading them only now does not make the device wait
    training.pending = (step, archs, names, reduced)
    if training.monitor is not None:
        training.monitor.gradients(step, archs)
    if config.clip:
        nn.utils.clip_grad_norm_(list(dict(parts)), config.clip)
    step_active(training.optimizer, parts)
    for parameter, _ in parts:  # no other has a gradient, and a supernet has many parameters
        parameter.grad = None
    training.step += 1
    if training.ema is not None:
        training.ema.update(chain, step=training.step if config.ema_warmup else None)


def _paths(training: TrainingState) -> Sequence[Arch]:
    """Returns the architectures of this step; on the first one after the lead, its weights are copied before."""
    lead = training.lead
    if lead is None or training.step > lead.steps:
        return training.sampler(training.step)
    if training.step < lead.steps:
        return (lead.arch,)
    training.chain.copy_options(lead.arch)
    if training.ema is not None:
        training.ema.module.copy_options(lead.arch)
    return training.sampler(training.step)


def _check_paths(space: SearchSpace, archs: Sequence[Arch], step: int) -> None:
    """Raises `InputError` unless a sampler, which may be a user's, returned architectures of the space."""
    if not isinstance(archs, Sequence):
        raise InputError(f"the sampler returned {shown(archs)} for step {step}; return a sequence of Arch")
    if not archs:
        raise InputError(f"the sampler returned no architecture for step {step}; return one or more")
    for arch in archs:
        if not isinstance(arch, Arch):
            raise InputError(f"the sampler returned {shown(arch)} for step {step}; return a sequence of Arch")
        try:
            space.canonical(arch)
        except InputError as error:
            raise InputError(
                f"the sampler returned an architecture of another space than {space.name!r} for step {step}: {error}"
            ) from error


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of the device.

    `torch.manual_seed` would also seed CUDA where it is not in use, for the moment when it is first used, and
    `restored_generators` could not undo that.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.get_device_module(device.type).manual_seed(seed)


def book_losses(training: TrainingState) -> None:
    """Adds the metrics of the last step, the same on every rank, to the sums of the epoch.

    Raises:
        RunError: the loss is not finite, or has spiked.
    """
    if training.pending is None:
        return
    step, archs, names, reduced = training.pending
    training.pending = None
    *values, stop = reduced.tolist()
    training.stop = stop > 0 and training.world.size > 1
    rows = [dict(zip(names, values[i : i + len(names)], strict=True)) for i in range(0, len(values), len(names))]
    if training.monitor is not None:
        training.monitor.losses(step, archs, [row["loss"] for row in rows])
    images, spike = training.config.batch, training.config.spike
    for arch, row in zip(archs, rows, strict=True):
        loss = row["loss"]
        bound = spike * max(training.mean_loss or 0.0, training.task.guess(training.data))
        if not math.isfinite(loss) or (spike and loss > bound):
            raise _diverged(training, step, arch, loss, bound)
        if training.mean_loss is None:
            training.mean_loss = loss
        else:
            training.mean_loss = LOSS_DECAY * training.mean_loss + (1 - LOSS_DECAY) * loss
        for name, value in row.items():
            training.sums[name] = training.sums.get(name, 0.0) + value * images
        training.sums["images"] += images


def _diverged(training: TrainingState, step: int, arch: Arch, loss: float, bound: float) -> RunError:
    exceeds = f"exceeds {bound:.3g}, {training.config.spike:g} times the usual"
    what = exceeds if math.isfinite(loss) else "is not finite"
    if training.saved:
        kept = f"the last good checkpoint, {training.checkpoint} after step {training.saved}, is kept"
    else:
        kept = "no checkpoint was saved"
    return RunError(
        f"the loss {loss:.4g} of step {step} {what}; the step trained {arch.to_json()}; {kept}. "
        "A lower train.lr, gradient clipping (train.clip) or a longer warm-up may help; train into another folder"
    )


# -- reports ----------------------------------------------------------------------------------------------------------


def _close_epoch(training: TrainingState, writer: Any, held_out: HeldOut | None) -> None:
    book_losses(training)
    images = max(training.sums["images"], 1.0)
    metrics = {name: value / images for name, value in training.sums.items() if name != "images"}
    lr = max(group["lr"] for group in training.optimizer.param_groups)  # that of the last layer
    row = {"epoch": training.step // training.per_epoch, **metrics, "lr": lr}
    if training.penalty is not None:
        row["penalty"] = statistics.fmean(training.penalty(arch).item() for arch in training.sampler(training.step - 1))
    scalars = {f"train/{name}": value for name, value in {**metrics, "lr": lr}.items()}
    scores: dict[str, float] = {}
    if held_out is not None:
        scored = training.chain if training.ema is None else training.ema.module  # what the training will return
        scores = dict(held_out(scored, training.step // training.per_epoch))
    if training.config.patience:  # all ranks have to end at once
        scores = json.loads(training.world.from_main(json.dumps(scores).encode()))
    if scores:
        row |= scores
        scalars |= {f"held_out/{name}": value for name, value in scores.items()}
    training.history.append(row)
    training.sums = {"images": 0.0}
    if training.monitor is not None:
        scalars |= training.monitor.close_epoch(training.step)
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, training.step)


def _note(training: TrainingState) -> str:
    """Returns the text beside the progress bar."""
    if training.sums["images"]:
        return f"loss {training.sums['loss'] / training.sums['images']:.3f}"
    return f"loss {training.history[-1]['loss']:.3f}" if training.history else ""
