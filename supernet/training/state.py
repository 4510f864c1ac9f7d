"""The state of a running training, and how it is saved to a checkpoint and restored from it."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from supernet.blocks.cells import plain as cells
from supernet.blocks.mbconv import ElasticMBConv
from supernet.blocks.mobile import DropPath
from supernet.chain import Chain, PartsMemo
from supernet.config import Train
from supernet.errors import InputError
from supernet.files import environment
from supernet.space import Arch
from supernet.training.checkpoint import check_release, load_state, read_state, save_state
from supernet.training.distributed import World, convert_sync_bn
from supernet.training.lead import Lead
from supernet.training.monitor import Monitor
from supernet.training.optim import create_ema, create_optimizer, create_schedule
from supernet.training.sampling import ArchSampler
from supernet.training.task import Task, TrainingData, memory_format


class Penalty(Protocol):
    """A function of the weights that a training adds to its loss and that may end the training (MorphNet)."""

    def __call__(self, arch: Arch) -> Tensor:
        """Returns what is added to the loss of one architecture: a scalar with a gradient."""

    def settled(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Returns whether the training ends here.

        It is asked after every epoch; `penalty` in each row of the history is the value at the end of that epoch.
        """


@dataclass
class TrainingState:
    """Everything that a training step reads or writes.

    Attributes:
        chain: the network, on its device.
        data: the splits, on the same device.
        scheduled: the modules whose behaviour follows the progress of the training, such as drop path.
        dropping: the modules that drop values in training, if only the first architecture of a step lets them.
        checkpoint: the file that the training is saved to and resumed from; None to keep nothing.
        accept: digests of other data whose checkpoints may be taken over.
        until: the epoch at whose end the training stops for now; None for its last.
        watch: the name of the held-out score on whose improvements the patience of the recipe waits.
        step: the number of steps done.
        history: one row per finished epoch.
        sums: totals over the images of this epoch, by metric; `images` counts them.
        mean_loss: the running mean of the loss, against which a spike is measured; None before the first step.
        saved: the step of the last checkpoint; None if there is none.
        pending: the last step with its architectures, the names of their metrics and the values, which are still on
            the device; None once they have been read.
        stop: whether a process of the group was interrupted.
    """

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
    scheduled: list[Any]
    dropping: list[nn.Module]
    monitor: Monitor | None
    penalty: Penalty | None
    lead: Lead | None
    checkpoint: Path | None
    accept: Collection[str] = ()
    until: int | None = None
    watch: str = ""
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: {"images": 0.0})
    mean_loss: float | None = None
    saved: int | None = None
    pending: tuple[int, Sequence[Arch], tuple[str, ...], Tensor] | None = None
    stop: bool = False

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.world.device(self.config.device))

    @property
    def per_epoch(self) -> int:
        """The steps of an epoch; the last, incomplete batch is left out."""
        return steps_per_epoch(self.data, self.config)

    @property
    def total(self) -> int:
        """The steps of the whole training."""
        return self.per_epoch * self.config.epochs

    @property
    def finished(self) -> bool:
        """Whether no step is left for now, or at the end of an epoch the penalty has settled or patience is over."""
        if self.step >= (self.total if self.until is None else min(self.total, self.per_epoch * self.until)):
            return True
        epoch_ended = self.step > 0 and self.step % self.per_epoch == 0
        if not epoch_ended:
            return False
        settled = self.penalty is not None and self.penalty.settled(self.history)
        return settled or 0 < self.config.patience <= self._stale()

    def _stale(self) -> int:
        """Returns how many epochs have ended since the first of those with the best watched score."""
        scores = [row.get(self.watch, math.nan) for row in self.history]
        scores = [score if math.isfinite(score) else -math.inf for score in scores]
        return len(scores) - 1 - scores.index(max(scores)) if max(scores) > -math.inf else 0

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one; only rank 0 does."""
        if self.checkpoint is not None and self.world.main:
            save_state(self.checkpoint, self._content())
            self.saved = self.step

    def restore(self) -> None:
        """Resumes from the checkpoint, if there is one; rank 0 reads it for all.

        Raises:
            InputError: the file is damaged, or was written with another network, optimizer or data.
        """
        path = self.checkpoint
        content = read_state(path) if path is not None and self.world.main and path.exists() else b""
        content = self.world.from_main(content)
        if not content or path is None:
            return
        state = load_state(path, content)
        _check_content(path, state)
        if state.get("data") not in (self.data.digest, *self.accept):
            raise InputError(f"{path} was trained on other images; restore the data or give another folder")
        check_release(path, self.chain, state["model"])
        self._warn_of_changes(path, state["environment"])
        try:
            self.chain.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state.get("ema"))
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"the checkpoint {path} belongs to another network or optimizer; give another folder"
            ) from error
        self.step, self.history, self.sums = state["step"], list(state["history"]), dict(state["sums"])
        self.mean_loss, self.saved = state.get("recent"), state["step"]
        before = state.get("per_epoch")
        if state["data"] != self.data.digest and isinstance(before, int) and before > 0:
            epoch, place = divmod(self.step, before)  # with more or fewer images than before an epoch has other steps
            self.step = epoch * self.per_epoch + min(place, self.per_epoch - 1)
        if self.monitor is not None:
            self.monitor.load_state_dict(state.get("monitor"))

    def _content(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "per_epoch": self.per_epoch,
            "model": self.chain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "history": self.history,
            "sums": self.sums,
            "recent": self.mean_loss,
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "data": self.data.digest,
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any]:
        return environment(str(self.device)) | {"processes": self.world.size}

    def _warn_of_changes(self, path: Path, before: Mapping[str, Any]) -> None:
        now = self._environment()
        changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
        if changed and self.world.main:
            message = f"resuming from {path} under {', '.join(changed)}: results will not be bit-identical"
            warnings.warn(message, stacklevel=5)  # names the caller of `train_supernet`


def _check_content(path: Path, state: Mapping[str, Any]) -> None:
    """Checks the types of what a checkpoint holds. Raises `InputError` with the name of the first wrong entry."""
    types = {"step": int, "history": list, "sums": dict, "environment": dict, "model": dict, "optimizer": dict}
    wrong = [name for name, kind in types.items() if not isinstance(state.get(name), kind)]
    recent = state.get("recent")
    if recent is not None and not (isinstance(recent, float) and math.isfinite(recent)):
        wrong.append("recent")
    if not wrong and state["step"] < 0:
        wrong = ["step"]
    if wrong:
        raise InputError(f"the checkpoint {path} is damaged: its {wrong[0]!r} cannot be used; delete it to train again")


def steps_per_epoch(data: TrainingData, config: Train) -> int:
    """Returns the number of complete batches in the training split."""
    return len(data.train) // config.batch


def prepare(
    chain: Chain,
    data: TrainingData,
    config: Train,
    *,
    task: Task,
    sampler: ArchSampler,
    world: World,
    checkpoint: Path | None = None,
    monitor: Monitor | None = None,
    penalty: Penalty | None = None,
    lead: Lead | None = None,
    accept: Collection[str] = (),
    until: int | None = None,
    watch: str = "",
) -> TrainingState:
    """Moves the chain and the data to the device and creates what trains them: optimizer, schedule, average."""
    device = world.device(config.device)
    chain.to(device).to(memory_format=memory_format(config)).train()
    if config.sync_bn and world.size > 1:
        convert_sync_bn(chain)
    parts = PartsMemo(chain)
    decayed = {p for p, _ in parts(_largest_path(sampler))} if config.regularize_largest else None
    optimizer = create_optimizer(chain, config, decayed)
    optimizer.zero_grad(set_to_none=True)
    return TrainingState(
        chain=chain,
        data=data.to(device),
        config=config,
        task=task,
        sampler=sampler,
        world=world,
        optimizer=optimizer,
        schedule=create_schedule(optimizer, config, steps_per_epoch(data, config)),
        ema=create_ema(chain, config),
        parts=parts,
        scheduled=[module for module in chain.modules() if hasattr(module, "set_progress")],
        dropping=[m for m in chain.modules() if isinstance(m, _DROPPING)] if config.regularize_largest else [],
        monitor=monitor,
        penalty=penalty,
        lead=lead,
        checkpoint=checkpoint,
        accept=accept,
        until=until,
        watch=watch,
    )


_DROPPING = (nn.modules.dropout._DropoutNd, cells.DropPath, DropPath, ElasticMBConv)
"""Modules that drop values at random if they are in training mode."""


def _largest_path(sampler: ArchSampler) -> Arch:
    """Returns the first architecture of every step. Raises `InputError` if it is not the same in the first steps."""
    first = {sampler(step)[0] for step in range(4)}
    if len(first) > 1:
        raise InputError(
            "regularize_largest=True decays the largest architecture alone, which is the first of each step of the "
            "sampler 'sandwich', but this sampler begins each step with another one; leave it out"
        )
    return first.pop()
