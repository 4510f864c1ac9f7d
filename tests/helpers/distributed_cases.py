"""What two processes of a torchrun do for `test_distributed.py`; each writes its results to a folder.

A case is a supernet with one or three architectures, whose losses are summed; each rank has half of a joint batch.
"""

import copy
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain, create_supernet
from supernet.config import Data, Train
from supernet.data import load
from supernet.train import train_supernet
from supernet.training.distributed import World, current, process_group, reduce_gradients

SPACES = ("chain", "loose", "sliced", "shufflenet-small")
CASES = tuple((space, paths) for space in SPACES for paths in (1, 3))
SMALL = {"depths": (1, 2, 1), "widths": (16, 24, 32), "stem": 8, "head": 32}
IMAGES, SIZE, CLASSES = 8, 16, 5
PAYLOADS = (b"", b"\x00\xff\x80 no text", bytes(range(256)) * 40)


def build(space: str) -> Chain:
    """Returns a supernet with the same weights in every process and batch norms that are not identities."""
    torch.manual_seed(0)
    make = TOY_SPACES.get(space)
    net = make(num_classes=CLASSES) if make else create_supernet(space, num_classes=CLASSES, input_size=SIZE, **SMALL)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    last = space == "shufflenet-small"  # one of them with strides that differ from those of the shape
    return net.to(memory_format=torch.channels_last if last else torch.contiguous_format)


def architectures(net: Chain, paths: int) -> list[Arch]:
    rng = random.Random(paths)
    return [net.space.normal_form(net.space.sample(rng)) for _ in range(paths)]


def joint_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(CLASSES, (IMAGES,), generator=generator)


def accumulate(net: Chain, archs: Sequence[Arch], images: Tensor, labels: Tensor) -> Tensor:
    """Accumulates the gradients of the summed losses, one backward pass per architecture, and returns the losses."""
    losses = []
    for arch in archs:
        loss = functional.cross_entropy(net(images, arch), labels)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.contiguous().clone() for name, p in net.named_parameters() if p.grad is not None}


class Summed(nn.Module):
    """The losses of several architectures as one forward pass, as DistributedDataParallel requires."""

    def __init__(self, net: Chain, archs: Sequence[Arch]) -> None:
        super().__init__()
        self.net, self.archs = net, archs

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([functional.cross_entropy(self.net(images, arch), labels) for arch in self.archs]).sum()


def torch_ddp(net: Chain, archs: Sequence[Arch], images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], int]:
    """Returns the gradients of torch's DistributedDataParallel and the bytes of the buckets that it reduced."""
    sent = []

    def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(None, bucket)

    parallel = DistributedDataParallel(Summed(net, archs), find_unused_parameters=True)
    parallel.register_comm_hook(None, count)
    parallel(images, labels).backward()
    return gradients(net), sum(sent)


def messages(net: Chain, archs: Sequence[Arch], **options: Any) -> int:
    """Reduces gradients and returns the number of calls of all_reduce."""
    calls: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, **settings: Any) -> Any:
        calls.append(tensor.nbytes)
        return original(tensor, **settings)

    dist.all_reduce = counted
    try:
        reduce_gradients([part for arch in archs for part in net.active_parts(arch)], **options)
    finally:
        dist.all_reduce = original
    return len(calls)


def compare(space: str, paths: int, world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Runs one case and returns tensors under `KIND/parameter`, and numbers."""
    net, (images, labels) = build(space), joint_batch()
    archs = architectures(net, paths)
    half = slice(world.rank * IMAGES // 2, (world.rank + 1) * IMAGES // 2)
    images, labels = images[half], labels[half]
    nets = {kind: copy.deepcopy(net) for kind in ("ours", "small", "eval", "ddp")}
    nets["eval"].eval()

    def parts(kind: str) -> list[Any]:
        return [part for arch in archs for part in nets[kind].active_parts(arch)]

    losses = accumulate(nets["ours"], archs, images, labels)
    mean, sent = reduce_gradients(parts("ours"), losses)
    assert mean is not None
    accumulate(nets["small"], archs, images, labels)
    many = messages(nets["small"], archs, bucket_bytes=500)
    again = copy.deepcopy(nets["ours"])
    for copied, original in zip(again.parameters(), nets["ours"].parameters(), strict=True):
        copied.grad = None if original.grad is None else original.grad.clone()  # deepcopy copies no gradients
    accumulate(nets["eval"], archs, images, labels)
    reduce_gradients(parts("eval"))
    by_kind = {kind: gradients(nets[kind]) for kind in ("ours", "small", "eval")}
    by_kind["ddp"], ddp_sent = torch_ddp(nets["ddp"], archs, images, labels)
    tensors = {f"{kind}/{name}": value for kind, grads in by_kind.items() for name, value in grads.items()}
    tensors |= {"losses": losses, "mean": mean}
    numbers = {"sent": sent, "ddp": ddp_sent, "many": many, "one": messages(again, archs)}
    return tensors, numbers


def other_results(folder: Path, world: World) -> dict[str, Any]:
    """Returns everything except the gradients of supernets."""
    marker = folder / "late.txt"
    if world.rank == 1:
        time.sleep(0.5)
        marker.touch()
    world.barrier()
    seen = marker.exists()
    received = [world.from_main(payload if world.main else b"of rank 1").hex() for payload in PAYLOADS]
    net = build("chain")
    arch = architectures(net, 1)[0]
    try:
        reduce_gradients(net.active_parts(arch))
        missing = ""
    except AssertionError as error:
        missing = str(error)
    for parameter in net.step_modules[0].parameters():
        parameter.requires_grad_(False)
    accumulate(net, [arch], *joint_batch())
    double = torch.tensor([world.rank, 10.0 * world.rank + 1, 5.0], dtype=torch.float64)
    mean, sent = reduce_gradients(net.active_parts(arch), double)
    assert mean is not None
    frozen = sum(p.numel() for p in net.active_parameters(arch) if p.requires_grad) * 4 + 24
    return {
        "world": [world.rank, world.size, world.local_rank, world == current(), world.device("cuda")],
        "barrier": seen,
        "received": received,
        "missing": missing,
        "frozen": [sent, frozen],
        "double": [mean.tolist(), str(mean.dtype), double.tolist()],
    }


def epochs_with_patience(world: World) -> int:
    """Returns after how many epochs of six a training ends whose score, which only rank 0 knows, falls."""
    net = TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1)
    history = train_supernet(
        net,
        load(Data("digits", size=8, calibration=64)),
        Train(epochs=6, batch=512, patience=2),
        held_out=(lambda _, epoch: {"given": -float(epoch)}) if world.main else None,
        watch="given",
        verbose=False,
    )
    return len(history)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group("cpu") as world:
        numbers: dict[str, Any] = {"other": other_results(folder, world), "patience": epochs_with_patience(world)}
        for space, paths in CASES:
            tensors, numbers[f"{space}-{paths}"] = compare(space, paths, world)
            save_file(tensors, folder / f"{space}-{paths}.{world.rank}.safetensors")
    numbers["after"] = current().size
    (folder / f"{world.rank}.json").write_text(json.dumps(numbers), encoding="utf-8")
