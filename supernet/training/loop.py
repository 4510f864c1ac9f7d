"""One training loop for supernets and standalone networks; a standalone network is a chain without decisions."""

import contextlib
import copy
import io
import math
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from supernet.chain import Chain, PartsMemo
from supernet.config import Augment, Train
from supernet.cost import meta_copy
from supernet.errors import InputError, RunError, nearest
from supernet.files import environment
from supernet.progress import progress
from supernet.seeding import derive_seed
from supernet.space import Arch
from supernet.training.checkpoint import load_state, save_state
from supernet.training.distributed import World, convert_sync_bn, current, reduce_gradients, revert_sync_bn
from supernet.training.monitor import Monitor
from supernet.training.optim import compiled, create_ema, create_optimizer, create_schedule
from supernet.training.sampling import ArchSampler, Lead, uniform
from supernet.training.sparse_step import step_active
from supernet.training.task import Classification, Task, TrainingData, memory_format

EARLIER = {"loss": "loss", "accuracy": "correct", "images": "images"}  # sums by name, and as they were called
RECENT = 0.98  # of the mean loss that a spike is measured against


class Penalty(Protocol):
    """A function of the weights that a training adds to its loss, and that may end it (MorphNet)."""

    def __call__(self, arch: Arch) -> Tensor:
        """What is added to the loss of one architecture of a step: a scalar with a gradient."""

    def settled(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether the training ends here, asked after every epoch; `penalty` in each row is the value at its end."""


@dataclass
class _Loop:
    """Everything a step reads or writes."""

    chain: Chain
    data: TrainingData
    config: Train
    task: Task
    sampler: ArchSampler
    world: World
    optimizer: torch.optim.Optimizer
    schedule: Any
    ema: Any
    parts: PartsMemo
    scheduled: list[Any]  # modules whose behaviour follows the progress of the training, such as drop path
    monitor: Monitor | None
    state: Path | None
    penalty: Penalty | None = None
    lead: Lead | None = None
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: {"images": 0.0})
    recent: float | None = None
    saved: int | None = None
    pending: tuple[int, Sequence[Arch], tuple[str, ...], Tensor] | None = None
    stop: bool = False

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; the last, incomplete batch is left out."""
        return len(self.data.train) // self.config.batch

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.per_epoch * self.config.epochs

    @property
    def finished(self) -> bool:
        """Whether no step is left, or the penalty has settled at the end of an epoch."""
        ends = self.step > 0 and self.step % self.per_epoch == 0
        return self.step >= self.total or bool(ends and self.penalty and self.penalty.settled(self.history))


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
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Train the shared weights in place.

    Each step samples architectures, accumulates their gradients and updates once. A parameter (of a sliced tensor: an
    element) that none of them used keeps its value to the bit, whatever momentum and decay say.

    In a process group (`supernet.training.distributed.process_group`) every process calls this with the same
    arguments. All take the same architectures and their share of the joint batch; only the gradients of the active
    parameters are averaged, and only rank 0 writes.

    Args:
        supernet: any chain; one without decisions is an ordinary network.
        data: splits; only `train` is used.
        config: recipe of the optimisation.
        sampler: which architectures a step trains; `uniform` by default.
        augment: how training images are varied in a classification; not at all by default.
        task: what is learnt instead of a classification, e.g. `detection.task.Detection`; it varies images itself.
        state: checkpoint file. If it exists, training goes on from it to the identical result (on the CPU, for the same
            torch build, device, number of threads and processes; a warning says so if they differ).
        log: folder for TensorBoard events.
        monitor: watches the health of the shared weights.
        penalty: added to the loss of every architecture; may end the training early.
        lead: an architecture that is trained alone at first, and whose weights the other options then begin with.
        verbose: show progress.

    Returns:
        per epoch `epoch`, the task's figures (`loss` and `accuracy` of the sampled paths, in training mode), `lr`, and
        `penalty` if given.

    Raises:
        InputError: see `check_training`; a checkpoint that is damaged or of another network; or options that cannot
            begin as copies of those of the lead.
        RunError: the loss is not finite or has leapt; the step, its architectures and the last checkpoint are named.
    """
    world = current()
    chosen: Task = task or Classification(augment or Augment())
    check_training(config, data, task=chosen)
    loop = _prepare(supernet, data, config, chosen, sampler or uniform(supernet.space, config.seed), world, state)
    loop.monitor, loop.penalty, loop.lead = monitor, penalty, lead
    if lead is not None:
        if lead.steps >= loop.total:
            raise InputError(
                f"a lead of {lead.steps} steps leaves none of {loop.total} to the other options; shorten it"
            )
        meta_copy(supernet).spread(lead.arch)  # what cannot be is an error now, not after its steps
    if monitor is not None:
        monitor.begin(loop.total)
    try:
        with compiled(supernet, enabled=config.compile):
            _run(loop, log if world.main else None, verbose and world.main)
    finally:
        revert_sync_bn(supernet)
    if loop.ema is not None:
        supernet.load_state_dict(loop.ema.module.state_dict())
    return loop.history


def _run(loop: _Loop, log: Path | None, verbose: bool) -> None:
    config = loop.config
    _restore(loop)
    feed = loop.task.batches(loop.data, config, start=loop.step, rank=loop.world.rank, world=loop.world.size)
    writer = _event_writer(log, loop.step)
    last_save = time.monotonic()
    with (
        contextlib.closing(feed),  # type: ignore[type-var]  # a generator
        progress("training", loop.total, start=loop.step, enabled=verbose) as update,
        _deferred_interrupt(loop.world) as interrupted,
    ):
        while not loop.finished:
            _step(loop, next(feed), interrupted)
            epoch_ends = loop.step % loop.per_epoch == 0
            if epoch_ends:
                _close_epoch(loop, writer)
            stop = loop.stop or (loop.world.size == 1 and interrupted.is_set())
            due = time.monotonic() - last_save >= config.save_seconds or loop.finished or stop
            if due and (epoch_ends or loop.data.train.exact):  # a stream without positions goes on at an epoch's start
                _save(loop)
                last_save = time.monotonic()
            update(loop.step, _note(loop))
            if stop:
                raise KeyboardInterrupt
    if writer is not None:
        writer.close()


@contextlib.contextmanager
def _deferred_interrupt(world: World) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set an event instead of stopping a step half-way: such a checkpoint would not resume alike.

    Under torchrun SIGTERM ends the process at once: the launcher sends it to start all ranks anew when one has died,
    and a step would wait for that one.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield interrupted
        return
    handled = (signal.SIGINT, signal.SIGTERM)[: 2 if world.size == 1 else 1]
    before = [signal.signal(number, lambda *_: interrupted.set()) for number in handled]
    try:
        yield interrupted
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


def check_training(
    config: Train,
    data: TrainingData,
    augment: Augment | None = None,
    world: World | None = None,
    *,
    task: Task | None = None,
) -> None:
    """Whether a training can start, before anything is built.

    Raises:
        InputError: no epochs or images in a step, a batch larger than the training split or not divisible among the
            processes, an unknown optimizer, a device that is not there, or options that exclude each other.
    """
    from timm.optim import list_optimizers

    world = world or current()
    task = task or Classification(augment or Augment())
    if config.epochs < 1 or config.batch < 1:
        raise InputError(f"epochs={config.epochs} and batch={config.batch} must be at least 1")
    if config.batch > len(data.train):
        raise InputError(f"the batch of {config.batch} is larger than the training split of {len(data.train)} images")
    if config.batch % world.size:
        raise InputError(
            f"the batch of {config.batch} images cannot be divided among {world.size} processes; give a multiple"
        )
    task.check(config, world.size)
    if config.optimizer not in list_optimizers():
        raise InputError(f"timm has no optimizer {config.optimizer!r}; {nearest(config.optimizer, list_optimizers())}")
    try:
        create_optimizer(nn.Linear(1, 1), config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the optimizer {config.optimizer!r} refuses lr={config.lr}, momentum={config.momentum}, "
            f"weight_decay={config.weight_decay} ({error}); 'sgd' has Nesterov momentum, 'momentum' is without"
        ) from error
    for name, value in (
        ("lr_floor", config.lr_floor),
        ("ema", config.ema),
        ("label_smoothing", config.label_smoothing),
    ):
        if not 0 <= value < 1:
            raise InputError(f"{name}={value} must be at least 0 and below 1")
    if list(config.drops) != sorted(drop for drop in config.drops if 0 < drop < 1):
        raise InputError(f"drops={config.drops} are shares of the training between 0 and 1, the earlier first")
    if config.sync_bn and torch.device(config.device).type != "cuda":
        raise InputError(f"sync_bn needs CUDA, the device is {config.device!r}; leave it out, or recalibrate later")
    try:
        torch.empty(0, device=world.device(config.device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {config.device!r} is not there ({str(error).splitlines()[0]}); try 'cpu'"
        ) from error


def train_standalone(network: nn.Module, data: TrainingData, config: Train, **options: Any) -> list[dict[str, float]]:
    """Train an ordinary network in place by the same loop; `options` as in `train_supernet`."""
    return train_supernet(Chain("standalone", [("network", network)]), data, config, **options)


def plan_training(
    supernet: Chain,
    data: TrainingData,
    config: Train,
    *,
    sampler: ArchSampler | None = None,
    augment: Augment | None = None,
    task: Task | None = None,
) -> dict[str, float]:
    """What a training will take, from three of its steps on a copy; writes nothing and leaves the supernet alone.

    Returns:
        `parameters`; `active_parameters`, the mean over the paths run; `steps`; `seconds_per_step`, the median;
        `seconds` of the whole training; `peak_bytes` of memory (of the device on CUDA, else of this process), optimizer
        state of options not yet sampled included; `disk_bytes` of checkpoint and weights, both versions while one
        replaces the other.
    """
    import resource  # not on every system

    learnt: Task = task or Classification(augment or Augment())
    chosen = sampler or uniform(supernet.space, config.seed)
    check_training(config, data, task=learnt)
    chain = copy.deepcopy(supernet)
    loop = _prepare(chain, data, config, learnt, chosen, current(), None)
    world, seconds, active, device = loop.world, [], [], torch.device(loop.world.device(config.device))
    feed = learnt.batches(loop.data, config, start=0, rank=world.rank, world=world.size)
    with contextlib.closing(feed), compiled(chain, enabled=config.compile):  # type: ignore[type-var]  # a generator
        for step in range(3):
            began = time.perf_counter()
            _step(loop, next(feed), threading.Event())
            _examine(loop)  # waits for the device
            seconds.append(time.perf_counter() - began)
            active += [sum(p.numel() for p in chain.active_parameters(arch)) for arch in chosen(step)]
    parameters = sum(p.numel() for p in chain.parameters())
    weights = sum(t.nbytes for t in chain.state_dict().values())
    moved = {p: sum(t.nbytes for t in s.values() if isinstance(t, Tensor)) for p, s in loop.optimizer.state.items()}
    per_element = sum(moved.values()) / max(sum(p.numel() for p in moved), 1)
    still = sum(p.numel() for p in chain.parameters() if p not in moved) * per_element
    if device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(device))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    checkpoint = weights * (2 if config.ema else 1) + parameters * per_element
    return {
        "parameters": parameters,
        "active_parameters": statistics.mean(active),
        "steps": loop.total,
        "seconds_per_step": statistics.median(seconds),
        "seconds": statistics.median(seconds) * loop.total,
        "peak_bytes": peak + still,
        "disk_bytes": 2 * checkpoint + weights,
    }


def _prepare(
    chain: Chain, data: TrainingData, config: Train, task: Task, sampler: ArchSampler, world: World, state: Path | None
) -> _Loop:
    device = world.device(config.device)
    chain.to(device).to(memory_format=memory_format(config)).train()
    if config.sync_bn and world.size > 1:
        convert_sync_bn(chain)
    optimizer = create_optimizer(chain, config)
    optimizer.zero_grad(set_to_none=True)
    scheduled = [module for module in chain.modules() if hasattr(module, "set_progress")]
    loop = _Loop(
        chain,
        data.to(device),
        config,
        task,
        sampler,
        world,
        optimizer,
        None,
        create_ema(chain, config),
        PartsMemo(chain),
        scheduled,
        None,
        state,
    )
    loop.schedule = create_schedule(optimizer, config, loop.per_epoch)
    return loop


def _paths(loop: _Loop) -> Sequence[Arch]:
    """The architectures of this step; on the first after the lead's, its weights are spread before."""
    lead = loop.lead
    if lead is None or loop.step > lead.steps:
        return loop.sampler(loop.step)
    if loop.step < lead.steps:
        return (lead.arch,)
    for chain in (loop.chain, *([loop.ema.module] if loop.ema is not None else [])):
        chain.spread(lead.arch)
    return loop.sampler(loop.step)


def _step(loop: _Loop, batch: Any, interrupted: threading.Event) -> None:
    """One update: every architecture of the step adds its gradients, the active parameters are averaged over ranks."""
    config, chain, step, rank = loop.config, loop.chain, loop.step, loop.world.rank
    archs = _paths(loop)
    loop.schedule.step_update(step)
    loss_of = loop.task.paths(chain, batch, loop.data, config, step=step, rank=rank)
    torch.manual_seed(derive_seed(config.seed, "step", step, rank))  # dropout and the like, whatever ran before
    for module in loop.scheduled:
        module.set_progress(step / loop.total)
    figures: list[Tensor] = []
    names: tuple[str, ...] = ()
    for arch in archs:
        loss, told = loss_of(arch)
        (loss + (loop.penalty(arch) if loop.penalty is not None else 0.0)).backward()  # type: ignore[no-untyped-call]
        figures += told.values()
        names = tuple(told)
    parts = [part for arch in archs for part in loop.parts(arch)]
    flag = figures[0].new_tensor(float(interrupted.is_set()))
    reduced, _ = reduce_gradients(parts, torch.stack([*figures, flag]))
    _examine(loop)  # of the step before: reading it here does not make the device wait
    assert reduced is not None
    loop.pending = (step, archs, names, reduced)
    if loop.monitor is not None:
        loop.monitor.gradients(step, archs)
    if config.clip:
        nn.utils.clip_grad_norm_(list(dict(parts)), config.clip)
    step_active(loop.optimizer, parts)
    for parameter, _ in parts:  # no other has a gradient, and a supernet has many
        parameter.grad = None
    loop.step += 1
    if loop.ema is not None:
        loop.ema.update(chain)


def _examine(loop: _Loop) -> None:
    """Book the figures of the last step, the same on every rank; stop if its loss cannot come from learning."""
    if loop.pending is None:
        return
    step, archs, names, figures = loop.pending
    loop.pending = None
    *values, stop = figures.tolist()
    loop.stop = stop > 0 and loop.world.size > 1
    images = loop.config.batch
    rows = [dict(zip(names, values[i : i + len(names)], strict=True)) for i in range(0, len(values), len(names))]
    if loop.monitor is not None:
        loop.monitor.losses(step, archs, [row["loss"] for row in rows])
    for arch, row in zip(archs, rows, strict=True):
        loss, bound = row["loss"], loop.config.spike * max(loop.recent or 0.0, loop.task.guess(loop.data))
        if not math.isfinite(loss) or (loop.config.spike and loss > bound):
            _diverged(loop, step, arch, loss, bound)
        loop.recent = loss if loop.recent is None else RECENT * loop.recent + (1 - RECENT) * loss
        for name, value in row.items():
            loop.sums[name] = loop.sums.get(name, 0.0) + value * images
        loop.sums["images"] += images


def _diverged(loop: _Loop, step: int, arch: Arch, loss: float, bound: float) -> None:
    what = "is not finite" if not math.isfinite(loss) else f"exceeds {bound:.3g}, {loop.config.spike:g} times the usual"
    kept = (
        f"the last good checkpoint, {loop.state} after step {loop.saved}, is kept" if loop.saved else "none was saved"
    )
    raise RunError(
        f"the loss {loss:.4g} of step {step} {what}; it trained {arch.to_json()}; {kept}. "
        "A lower --train.lr, --train.clip or a longer warm-up may help, in another folder"
    )


def _close_epoch(loop: _Loop, writer: Any) -> None:
    _examine(loop)
    images = max(loop.sums["images"], 1.0)
    figures = {name: value / images for name, value in loop.sums.items() if name != "images"}
    row = {"epoch": loop.step // loop.per_epoch, **figures, "lr": loop.optimizer.param_groups[0]["lr"]}
    if loop.penalty is not None:
        row["penalty"] = statistics.fmean(loop.penalty(arch).item() for arch in loop.sampler(loop.step - 1))
    loop.history.append(row)
    loop.sums = {"images": 0.0}
    scalars = {f"train/{name}": row[name] for name in (*figures, "lr")}
    if loop.monitor is not None:
        scalars |= loop.monitor.close_epoch(loop.step)
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, loop.step)


def _note(loop: _Loop) -> str:
    if not loop.sums["images"]:
        return f"loss {loop.history[-1]['loss']:.3f}" if loop.history else ""
    return f"loss {loop.sums['loss'] / loop.sums['images']:.3f}"


def _event_writer(log: Path | None, step: int) -> Any:
    if log is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(log), purge_step=step)  # type: ignore[no-untyped-call]


def _save(loop: _Loop) -> None:
    _examine(loop)  # a step that went wrong is never saved
    if loop.state is not None and loop.world.main:
        save_state(loop.state, _snapshot(loop))
        loop.saved = loop.step


def _snapshot(loop: _Loop) -> dict[str, Any]:
    return {
        "step": loop.step,
        "model": loop.chain.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "ema": None if loop.ema is None else loop.ema.module.state_dict(),
        "history": loop.history,
        "sums": loop.sums,
        "recent": loop.recent,
        "monitor": None if loop.monitor is None else loop.monitor.state_dict(),
        "data": loop.data.digest,
        "environment": _environment(loop),
    }


def _environment(loop: _Loop) -> dict[str, Any]:
    return environment(loop.world.device(loop.config.device)) | {"processes": loop.world.size}


def _restore(loop: _Loop) -> None:
    """Go on from the checkpoint, if there is one; rank 0 reads it for all."""
    path, world = loop.state, loop.world
    raw = path.read_bytes() if path is not None and world.main and path.exists() else b""
    raw = world.from_main(raw)
    if not raw or path is None:
        return
    state = load_state(path, io.BytesIO(raw))
    if state.get("data") != loop.data.digest:
        raise InputError(f"{path} was trained on other images than these; restore the data or give another folder")
    now, before = _environment(loop), state["environment"]
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed and world.main:
        text = f"going on from {path} under {', '.join(changed)}: results will not be bit-identical"
        warnings.warn(text, stacklevel=4)
    try:
        loop.chain.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if loop.ema is not None:
            loop.ema.module.load_state_dict(state.get("ema"))
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"the checkpoint {path} belongs to another network or optimizer; give another folder"
        ) from error
    loop.step, loop.history, loop.sums = state["step"], list(state["history"]), dict(state["sums"])
    if "correct" in loop.sums:  # a checkpoint from before there were tasks
        loop.sums = {name: loop.sums[old] for name, old in EARLIER.items()}
    loop.recent, loop.saved = state.get("recent"), state["step"]
    if loop.monitor is not None:
        loop.monitor.load_state_dict(state.get("monitor"))
