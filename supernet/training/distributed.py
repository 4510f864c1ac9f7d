"""Support for torchrun: ranks, averaging of the gradients in use, and synchronised batch norm.

Every rank trains the same architectures on its own images. `DistributedDataParallel` would send every gradient of the
supernet; here only the active elements are sent, which each rank knows from the architectures alone.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.chain import Part
from supernet.errors import InputError

M = TypeVar("M", bound=nn.Module)
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class World:
    """The place of this process in its group.

    Attributes:
        rank: among the processes of all machines.
        size: the number of processes on all machines.
        local_rank: among the processes of its own machine; also the index of its CUDA device.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints messages."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Returns the device of this process; among several processes, `"cuda"` means its own CUDA device."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.size > 1 else name

    def from_main(self, payload: bytes) -> bytes:
        """Returns the payload of rank 0 on every rank; the payloads of the others are ignored."""
        if self.size == 1:
            return payload
        payloads = [payload]
        dist.broadcast_object_list(payloads, src=0)
        return payloads[0]

    def gather(self, payload: bytes) -> list[bytes]:
        """Returns the payloads of all ranks, in order, on every rank."""
        if self.size == 1:
            return [payload]
        payloads = [b""] * self.size
        dist.all_gather_object(payloads, payload)
        return payloads

    def barrier(self) -> None:
        """Waits until every process has arrived here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
_apart = ContextVar("_apart", default=False)


@contextmanager
def alone() -> Iterator[World]:
    """Lets this process work apart from its group, for instance train a network of its own; others need not take part.

    Its CUDA device stays the one that it has in the group.
    """
    token = _apart.set(True)
    try:
        yield ALONE
    finally:
        _apart.reset(token)


def current() -> World:
    """Returns the place in the initialised process group; `ALONE` without one, or while this process works apart."""
    if _apart.get() or not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))


def check_device(device: str) -> None:
    """Checks that a device computes, before any work. Raises `InputError` if it does not."""
    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise InputError(f"the device {device!r} is not available ({reason}); try 'cpu'") from None


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started; `ALONE` if there is no torchrun.

    The backend is NCCL for `"cuda"`, with one device for each process, and gloo otherwise.

    Raises:
        InputError: the device is not available, there are more processes on this machine than CUDA devices, or `device`
            names a single one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        check_device(device)
        yield ALONE
        return
    own = None  # the process's device
    if device.startswith("cuda"):
        local, devices = int(os.environ.get("LOCAL_WORLD_SIZE", size)), torch.cuda.device_count()
        if local > devices:
            raise InputError(
                f"torchrun started WORLD_SIZE={size} processes, {local} of them on this machine, which has {devices} "
                "CUDA devices; start one process per device, or choose the device 'cpu'"
            )
        if device != "cuda":
            raise InputError(f"under torchrun every process needs a device of its own: choose 'cuda', not {device!r}")
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    backend, rank = "nccl" if own else "gloo", int(os.environ["RANK"])
    dist.init_process_group(backend, store=_store_of_this_start(rank, size), rank=rank, world_size=size, device_id=own)
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def _store_of_this_start(rank: int, size: int) -> Store:
    """Returns the key-value store through which the processes find each other.

    torchrun may keep a single store for all restarts, in which restarted processes would find the addresses of dead
    ones; therefore each start uses its own prefix.
    """
    environment = os.environ
    of_torchrun = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    local, restarts = int(environment.get("LOCAL_WORLD_SIZE", size)), environment.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if of_torchrun and local < size and restarts != "0":  # each machine counts its own restarts
        raise InputError(
            "restarts on several machines need a new store each time: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
            "environment of every torchrun, or allow no restarts"
        )
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(host, port, world_size=size, is_master=rank == 0 and not of_torchrun, multi_tenant=True)
    return PrefixStore(f"start-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def reduce_gradients(
    parts: Iterable[Part], extra: Tensor | None = None, *, bucket_bytes: int = 25 * 2**20
) -> tuple[Tensor | None, int]:
    """Averages the gradients of the active elements over all processes, in place.

    What is sent follows from the architectures, so the ranks agree without communicating. A parameter is sent once,
    however many architectures used it; of a partly used parameter only the used elements are sent; frozen parameters
    have no gradient.

    Args:
        parts: the active parts of all architectures of the step, in the same order on every rank.
        extra: a small floating-point tensor (losses, counts) that is averaged in the same messages.
        bucket_bytes: size of the largest message; a larger gradient is sent alone. The default is that of torch's DDP.

    Returns:
        `extra` averaged (a new tensor), and the bytes that this rank passed to all-reduce; `(extra, 0)` if it is alone.
    """
    world = current()
    if world.size == 1:
        return extra, 0
    used = used_elements(parts)
    missing = [tuple(parameter.shape) for parameter, _ in used if parameter.grad is None]
    assert not missing, f"active_parts lists parameters without a gradient on rank {world.rank}, of shapes {missing}"
    pieces = [parameter.grad[index] for parameter, index in used]  # type: ignore[index]
    if extra is not None:
        extra = extra.detach().clone()
        pieces.append(extra)
    sent, running = 0, []
    for bucket in _buckets(pieces, bucket_bytes):
        flat = torch.cat([piece.reshape(-1) for piece in bucket]).div_(world.size)  # before summing, against overflow
        running.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        sent += flat.nbytes
    for bucket, flat, work in running:
        work.wait()  # type: ignore[union-attr]
        for piece, mean in zip(bucket, flat.split([piece.numel() for piece in bucket]), strict=True):
            piece.copy_(mean.view(piece.shape))
    for (parameter, index), piece in zip(used, pieces, strict=False):
        if isinstance(index, Tensor):  # a mask selects a copy; slices are views
            parameter.grad[index] = piece  # type: ignore[index]
    return extra, sent


def used_elements(parts: Iterable[Part]) -> list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]]:
    """Returns every trainable parameter in use, in order of first use, with the index of its used elements.

    The index is the largest slice if that contains the others, and a mask otherwise.
    """
    boxes: dict[nn.Parameter, dict[Box, None]] = {}  # an ordered set of boxes for each parameter
    for parameter, index in parts:
        if parameter.requires_grad:
            boxes.setdefault(parameter, {})[_box(index, parameter.shape)] = None
    used: list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]] = []
    for parameter, slices in boxes.items():
        largest = max(slices, key=lambda box: math.prod(stop - start for start, stop in box))
        if all(_contains(largest, box) for box in slices):
            used.append((parameter, _slices(largest)))
            continue
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        for box in slices:
            mask[_slices(box)] = True
        used.append((parameter, mask))
    return used


def _contains(outer: Box, inner: Box) -> bool:
    bounds = zip(outer, inner, strict=True)
    return all(start <= inner_start and inner_stop <= stop for (start, stop), (inner_start, inner_stop) in bounds)


def _box(index: tuple[slice, ...], shape: torch.Size) -> Box:
    """Returns an index as start and stop in every dimension; a slice with a step counts as everything in between."""
    whole = [*index, *[slice(None)] * (len(shape) - len(index))]
    return tuple(part.indices(size)[:2] for part, size in zip(whole, shape, strict=True))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*bounds) for bounds in box)


def _buckets(pieces: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Yields the pieces in messages of one device and dtype, each of at most `limit` bytes or a single piece."""
    buckets: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], int]] = {}
    for piece in pieces:
        key = (piece.device, piece.dtype)
        bucket, size = buckets.pop(key, ([], 0))
        if bucket and size + piece.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(piece)
        buckets[key] = (bucket, size + piece.nbytes)
    yield from (bucket for bucket, _ in buckets.values())


def convert_sync_bn(module: M) -> M:
    """Makes every batch norm inside use the statistics of all processes in training (CUDA only), in place.

    Raises:
        InputError: a class derived from torch's batch norms, whose own forward would be lost.
    """
    return _swap(module, _to_sync, synced=False)


def revert_sync_bn(module: M) -> M:
    """Undoes `convert_sync_bn` in place; parameters and buffers keep their current values."""
    return _swap(module, _to_plain, synced=True)


def _to_sync(norm: _BatchNorm) -> nn.Module:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise InputError(f"{type(norm).__name__} has no synchronised form; turn sync_bn off or use nn.BatchNorm2d")
    synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    vars(synced)["plain"] = type(norm)  # for the way back
    return synced


def _to_plain(norm: _BatchNorm) -> nn.Module:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    kind = vars(norm).get("plain", nn.BatchNorm2d)
    plain: nn.Module = kind(*settings, device="meta")  # without storage, since its tensors are replaced
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(plain, name, getattr(norm, name))
    return plain.train(norm.training)


def _swap(module: M, change: Callable[[_BatchNorm], nn.Module], *, synced: bool) -> M:
    """Replaces every batch norm of this kind under all of its names; a shared one stays shared."""
    changed: dict[nn.Module, nn.Module] = {}
    for path, norm in list(module.named_modules(remove_duplicate=False)):
        if isinstance(norm, _BatchNorm) and isinstance(norm, nn.SyncBatchNorm) == synced:
            changed[norm] = changed[norm] if norm in changed else change(norm)
            module.set_submodule(path, changed[norm])
    return module
