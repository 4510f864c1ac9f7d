"""One training loop for supernets and standalone networks; a standalone network is a chain without decisions."""

import contextlib
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.checkpoint import environment, load_state, save_state
from supernet.config import Train
from supernet.data import Splits, augment
from supernet.errors import InputError, nearest
from supernet.progress import progress
from supernet.sampling import ArchSampler, uniform
from supernet.searchable import Chain, Part
from supernet.seeding import derive_seed


@dataclass
class _Loop:
    """Everything a step reads or writes."""

    chain: Chain
    data: Splits
    config: Train
    sampler: ArchSampler
    shift: int
    flip: bool
    optimizer: torch.optim.Optimizer
    schedule: Any
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "images": 0.0})


def train_supernet(
    supernet: Chain,
    data: Splits,
    config: Train,
    *,
    sampler: ArchSampler | None = None,
    shift: int = 0,
    flip: bool = False,
    state: Path | None = None,
    log: Path | None = None,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Train the shared weights in place.

    Each step samples architectures, accumulates their gradients and updates once. A parameter (of a sliced tensor: an
    element) that none of them used keeps its value to the bit, whatever momentum and decay say.

    Args:
        supernet: any chain; one without decisions is an ordinary network.
        data: splits; only `train` is used.
        config: recipe of the optimisation.
        sampler: which architectures a step trains; `uniform` by default.
        shift, flip: augmentation, see `Data`.
        state: checkpoint file. If it exists, training goes on from it to the identical result (on the CPU, for the same
            torch build, device and number of threads; a warning says so if they differ).
        log: folder for TensorBoard events.
        verbose: show progress.

    Returns:
        per epoch `epoch`, `loss`, `accuracy` (of the sampled paths, in training mode) and `lr`.

    Raises:
        InputError: a batch larger than the training split, or a checkpoint that is damaged or of another network.
    """
    check_training(config, data)
    loop = _prepare(supernet, data, config, sampler or uniform(supernet.space, config.seed), shift, flip)
    if state is not None and state.exists():
        _restore(loop, load_state(state), state)
    per_epoch = len(data.train) // config.batch
    total = per_epoch * config.epochs
    writer = _event_writer(log, loop.step)
    last_save = time.monotonic()
    with progress("training", total, start=loop.step, enabled=verbose) as update, _deferred_interrupt() as interrupted:
        while loop.step < total:
            _step(loop, per_epoch)
            if loop.step % per_epoch == 0:
                _close_epoch(loop, per_epoch, writer)
            due = time.monotonic() - last_save >= config.save_seconds
            if state is not None and (due or loop.step == total or interrupted.is_set()):
                save_state(state, _snapshot(loop))
                last_save = time.monotonic()
            update(loop.step, _note(loop))
            if interrupted.is_set():
                raise KeyboardInterrupt
    if writer is not None:
        writer.close()
    return loop.history


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets an event instead of stopping a step half-way, whose checkpoint would not resume identically."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def check_training(config: Train, data: Splits) -> None:
    """Whether a training can start, before anything is built.

    Raises:
        InputError: no epochs or images in a step, a batch larger than the training split, an unknown optimizer, or a
            device that is not there.
    """
    from timm.optim import list_optimizers

    if config.epochs < 1 or config.batch < 1:
        raise InputError(f"epochs={config.epochs} and batch={config.batch} must be at least 1")
    if config.batch > len(data.train):
        raise InputError(f"the batch of {config.batch} is larger than the training split of {len(data.train)} images")
    if config.optimizer not in list_optimizers():
        raise InputError(f"timm has no optimizer {config.optimizer!r}; {nearest(config.optimizer, list_optimizers())}")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {config.device!r} is not there ({str(error).splitlines()[0]}); try 'cpu'"
        ) from error


def train_standalone(network: nn.Module, data: Splits, config: Train, **options: Any) -> list[dict[str, float]]:
    """Train an ordinary classifier in place by the same loop; `options` as in `train_supernet`."""
    return train_supernet(Chain("standalone", [("network", network)]), data, config, **options)


def _prepare(chain: Chain, data: Splits, config: Train, sampler: ArchSampler, shift: int, flip: bool) -> _Loop:
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    chain.to(config.device).to(memory_format=_memory_format(config)).train()
    optimizer = create_optimizer_v2(
        chain, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    per_epoch = len(data.train) // config.batch
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(per_epoch * config.epochs, 1),
        warmup_t=round(per_epoch * config.warmup_epochs),
        warmup_lr_init=config.lr / 10,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    on_device = Splits(
        **{part: getattr(data, part).to(config.device) for part in ("train", "calibration", "validation", "test")},
        classes=data.classes,
        digest=data.digest,
    )
    return _Loop(chain, on_device, config, sampler, shift, flip, optimizer, schedule)


def _step(loop: _Loop, per_epoch: int) -> None:
    config, chain, step = loop.config, loop.chain, loop.step
    images, labels = _batch(loop, per_epoch)
    archs = loop.sampler(step)
    loop.schedule.step_update(step)
    torch.manual_seed(derive_seed(config.seed, "step", step))  # dropout and the like, whatever ran before
    loop.optimizer.zero_grad(set_to_none=True)
    for arch in archs:
        logits = chain(images, arch)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        loss.backward()
        loop.sums["loss"] += loss.item() * len(labels)
        loop.sums["correct"] += (logits.argmax(1) == labels).sum().item()
        loop.sums["images"] += len(labels)
    if config.clip:
        nn.utils.clip_grad_norm_(chain.parameters(), config.clip)
    step_active(loop.optimizer, [part for arch in archs for part in chain.active_parts(arch)])
    loop.step += 1


def _batch(loop: _Loop, per_epoch: int) -> tuple[Tensor, Tensor]:
    """The images of a step: a function of seed and step alone."""
    epoch, position = divmod(loop.step, per_epoch)
    train, config = loop.data.train, loop.config
    shuffle = torch.Generator().manual_seed(derive_seed(config.seed, "epoch", epoch))
    order = torch.randperm(len(train), generator=shuffle)
    index = order[position * config.batch : (position + 1) * config.batch].to(train.labels.device)
    draws = torch.Generator().manual_seed(derive_seed(config.seed, "augment", loop.step))
    pixels = augment(train.pixels[index], shift=loop.shift, flip=loop.flip, generator=draws)
    images = train.normalize(pixels).contiguous(memory_format=_memory_format(config))
    return images, train.labels[index]


def _memory_format(config: Train) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format


def step_active(optimizer: torch.optim.Optimizer, parts: Iterable[Part]) -> None:
    """`optimizer.step()` that leaves alone the elements outside `parts` of partly used parameters.

    Parameters without a gradient are skipped by the optimizer itself. For a sliced one, decay and momentum would also
    move the elements that no architecture of the step used; those and their optimizer state are put back.

    Args:
        optimizer: any that keeps element-wise state in tensors of the parameter's shape.
        parts: of all architectures of the step; the union counts.
    """
    parts = list(parts)
    whole = {id(parameter) for parameter, index in parts if index == ()}
    masks: dict[nn.Parameter, Tensor] = {}
    for parameter, index in parts:
        if id(parameter) not in whole:
            masks.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))[index] = True
    before = {parameter: (parameter.detach().clone(), _element_state(optimizer, parameter)) for parameter in masks}
    optimizer.step()
    with torch.no_grad():
        for parameter, (value, states) in before.items():
            parameter.copy_(torch.where(masks[parameter], parameter, value))
            for name, now in optimizer.state[parameter].items():
                if isinstance(now, Tensor) and now.shape == parameter.shape:
                    now.copy_(torch.where(masks[parameter], now, states.get(name, torch.zeros_like(now))))


def _element_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    state: Mapping[str, Any] = optimizer.state.get(parameter, {})
    return {k: v.clone() for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


def _close_epoch(loop: _Loop, per_epoch: int, writer: Any) -> None:
    images = max(loop.sums["images"], 1.0)
    row = {
        "epoch": loop.step // per_epoch,
        "loss": loop.sums["loss"] / images,
        "accuracy": loop.sums["correct"] / images,
        "lr": loop.optimizer.param_groups[0]["lr"],
    }
    loop.history.append(row)
    loop.sums.update(loss=0.0, correct=0.0, images=0.0)
    if writer is not None:
        for name in ("loss", "accuracy", "lr"):
            writer.add_scalar(f"train/{name}", row[name], loop.step)


def _note(loop: _Loop) -> str:
    if not loop.sums["images"]:
        return f"loss {loop.history[-1]['loss']:.3f}" if loop.history else ""
    loss = loop.sums["loss"] / loop.sums["images"]
    return f"loss {loss:.3f}" if math.isfinite(loss) else "loss is not finite"


def _event_writer(log: Path | None, step: int) -> Any:
    if log is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(log), purge_step=step)  # type: ignore[no-untyped-call]


def _snapshot(loop: _Loop) -> dict[str, Any]:
    return {
        "step": loop.step,
        "model": loop.chain.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "history": loop.history,
        "sums": loop.sums,
        "data": loop.data.digest,
        "environment": environment(loop.config.device),
    }


def _restore(loop: _Loop, state: Mapping[str, Any], path: Path) -> None:
    if state.get("data") != loop.data.digest:
        raise InputError(f"{path} was trained on other images than these; restore the data or give another folder")
    now = environment(loop.config.device)
    before = state["environment"]
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        text = f"going on from {path} under {', '.join(changed)}: results will not be bit-identical"
        warnings.warn(text, stacklevel=3)
    try:
        loop.chain.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"the checkpoint {path} belongs to another network or optimizer; give another folder"
        ) from error
    loop.step, loop.history, loop.sums = state["step"], list(state["history"]), dict(state["sums"])
