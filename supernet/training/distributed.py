"""Several processes under torchrun: who am I, reduce what the step's architectures use, batch norm over all of them.

Every rank trains the same architectures on its own images. `DistributedDataParallel` would send every gradient of the
supernet; here the active elements travel, which each rank knows from the architectures alone.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    """The place of this process: `rank` of `size` over all machines, `local_rank` on its own and of its CUDA device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: among several, `"cuda"` is the one of its own."""
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
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def current() -> World:
    """The place in the process group that was initialised; `ALONE` without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Joins the processes of a torchrun: NCCL with a device each for `"cuda"`, gloo otherwise; `ALONE` without one.

    Raises:
        InputError: more processes on this machine than CUDA devices, or one device named for all of them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    own = None  # the process's device
    if device.startswith("cuda"):
        local, devices = int(os.environ.get("LOCAL_WORLD_SIZE", size)), torch.cuda.device_count()
        if local > devices:
            raise InputError(
                f"torchrun started WORLD_SIZE={size} processes, {local} of them on this machine, which has {devices} "
                "CUDA devices; give --nproc-per-node the number of devices, or choose the device 'cpu'"
            )
        if device != "cuda":
            raise InputError(f"under torchrun every process has a device of its own: choose 'cuda', not {device!r}")
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    backend, rank = "nccl" if own else "gloo", int(os.environ["RANK"])
    dist.init_process_group(backend, store=_store_of_this_start(rank, size), rank=rank, world_size=size, device_id=own)
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def _store_of_this_start(rank: int, size: int) -> Store:
    """The key-value store through which the processes find each other.

    torchrun may keep one of its own for all restarts, in which restarted processes would meet the addresses of the
    dead; so each start has a prefix.
    """
    environment = os.environ
    of_torchrun = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    local, restarts = int(environment.get("LOCAL_WORLD_SIZE", size)), environment.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if of_torchrun and local < size and restarts != "0":  # machines do not count restarts together
        raise InputError(
            "restarts over several machines need a fresh store each time: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in "
            "the environment of every torchrun, or --max-restarts 0"
        )
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(host, port, world_size=size, is_master=rank == 0 and not of_torchrun, multi_tenant=True)
    return PrefixStore(f"start-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def reduce_gradients(
    parts: Iterable[Part], extra: Tensor | None = None, *, bucket_bytes: int = 25 * 2**20
) -> tuple[Tensor | None, int]:
    """Average the gradients of the active elements over all processes, in place.

    What is sent follows from the architectures, so the ranks agree without asking. A parameter goes once, however many
    architectures used it; of a partly used one, the used elements; frozen ones have no gradient.

    Args:
        parts: the active parts of all architectures of the step, in the same order on every rank.
        extra: a small floating-point tensor (losses, counts) that is averaged in the same messages.
        bucket_bytes: largest message; a larger gradient is a message of its own. By default as in torch's DDP.

    Returns:
        `extra` averaged (a new tensor), and the bytes that this rank gave to all-reduce; `(extra, 0)` if it is alone.
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
        flat = torch.cat([piece.reshape(-1) for piece in bucket]).div_(world.size)  # first, so that no sum overflows
        running.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        sent += flat.nbytes
    for bucket, flat, work in running:
        work.wait()  # type: ignore[union-attr]
        for piece, mean in zip(bucket, flat.split([piece.numel() for piece in bucket]), strict=True):
            piece.copy_(mean.view(piece.shape))
    for (parameter, index), piece in zip(used, pieces, strict=False):
        if isinstance(index, Tensor):  # what a mask picks is a copy; slices are views and done
            parameter.grad[index] = piece  # type: ignore[index]
    return extra, sent


def used_elements(parts: Iterable[Part]) -> list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]]:
    """Every parameter that takes part, in order of first use, with the index of its used elements: the largest slice
    where that holds the others, or else a mask."""
    boxes: dict[nn.Parameter, dict[Box, None]] = {}
    for parameter, index in parts:
        if parameter.requires_grad:
            boxes.setdefault(parameter, {})[_box(index, parameter.shape)] = None
    used: list[tuple[nn.Parameter, tuple[slice, ...] | Tensor]] = []
    for parameter, found in boxes.items():
        largest = max(found, key=lambda box: math.prod(stop - start for start, stop in box))
        if all(a >= c and b <= d for box in found for (a, b), (c, d) in zip(box, largest, strict=True)):
            used.append((parameter, _slices(largest)))
            continue
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        for box in found:
            mask[_slices(box)] = True
        used.append((parameter, mask))
    return used


def _box(index: tuple[slice, ...], shape: torch.Size) -> Box:
    """An index as start and stop in every dimension; a step within them is widened to all between."""
    given = [*index, *[slice(None)] * (len(shape) - len(index))]
    return tuple(one.indices(size)[:2] for one, size in zip(given, shape, strict=True))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*bounds) for bounds in box)


def _buckets(pieces: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """The pieces in messages of one device and type, each of at most `limit` bytes or a single piece."""
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
    """Let every batch norm inside take its statistics over all processes in training (CUDA only); changed in place.

    Raises:
        InputError: a class derived from torch's batch norms, whose own forward would be lost.
    """
    return _swap(module, _to_sync, synced=False)


def revert_sync_bn(module: M) -> M:
    """The way back, in place: every batch norm as it was before, with the parameters and buffers of now."""
    return _swap(module, _to_plain, synced=True)


def _to_sync(norm: _BatchNorm) -> nn.Module:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise InputError(f"{type(norm).__name__} has no synchronised form; turn sync_bn off or use nn.BatchNorm2d")
    made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    vars(made)["plain"] = type(norm)
    return made


def _to_plain(norm: _BatchNorm) -> nn.Module:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made: nn.Module = vars(norm).get("plain", nn.BatchNorm2d)(*settings, device="meta")  # its tensors come below
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(made, name, getattr(norm, name))
    return made.train(norm.training)


def _swap(module: M, change: Callable[[_BatchNorm], nn.Module], *, synced: bool) -> M:
    """Change every batch norm of this kind under all names that it has; a shared one stays shared."""
    changed: dict[nn.Module, nn.Module] = {}
    for path, norm in list(module.named_modules(remove_duplicate=False)):
        if isinstance(norm, _BatchNorm) and isinstance(norm, nn.SyncBatchNorm) == synced:
            changed[norm] = changed[norm] if norm in changed else change(norm)
            module.set_submodule(path, changed[norm])
    return module
