"""What a report says about one network: its stages with decisions, shapes, costs and measured times."""

import os
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from supernet.cost.count import meta_copy, trace
from supernet.scoring.memory import tensors_in
from supernet.space import Arch
from supernet_tools.pipeline.page import Section
from supernet_tools.pipeline.retrain import fresh_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.units import in_units

WARM, TIMED = 2, 7
"""The number of warm-up passes, and of timed passes, whose median is reported."""
MOST_MAPS = 6
QUIET = 0.75
"""Load per processor above which a time is said to be measured under load."""


def example_of(run: Run) -> Tensor:
    """One normalised test image, (1, C, H, W), as networks of a run take it."""
    if run.kind.metric == "accuracy":
        return run.data.test.normalize(run.data.test.pixels[:1])  # type: ignore[no-any-return]
    images = run.data.test.subset(torch.tensor([0]))
    return images.normalize(images.seen(0)[None])  # type: ignore[no-any-return]


def stages(run: Run, arch: Arch, section: Section) -> None:
    """Adds a row per stage: its decisions, the shape of its output, MACs, parameters and latency of one image."""
    network = fresh_network(run, arch, 0).eval()
    example = example_of(run)
    empty = meta_copy(network)
    inputs = _inputs(empty, torch.empty(example.shape, device="meta"))
    milliseconds = _timed(network, example)
    rows: list[list[object]] = []
    for name, module in _stages(empty).items():
        if name in inputs:
            costs, out = trace(module, inputs[name])
            rows.append(
                [name, _decided(arch, name), _shape(out), costs["macs"], costs["params"], milliseconds.get(name, 0.0)]
            )
    section.table(
        "stage by stage, for one image on the CPU",
        ("stage", "decisions", "output", "MACs", "parameters", "ms"),
        rows,
        bars={"MACs": in_units, "parameters": in_units, "ms": "{:.2f}".format},
    )
    section.lines.append(
        f"One image of {' × '.join(map(str, example.shape[1:]))} takes {sum(milliseconds.values()):.2f} ms, the sum of "
        f"its stages (medians of {TIMED} passes, {_threads()}, fresh weights)" + busy()
    )


def _threads() -> str:
    count = torch.get_num_threads()
    return "one thread" if count == 1 else f"{count} threads"


def busy() -> str:
    """Returns the end of a sentence about a time; it says so if other work was running on the machine."""
    if not hasattr(os, "getloadavg"):
        return "."
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores * QUIET:
        return "."
    return f"; other work was running (a load of {load:.1f} on {cores} processors), so the true time is shorter."


def _stages(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the stages of a network by name; the stages of a detector's backbone are listed separately."""
    stages_by_name: dict[str, nn.Module] = {}
    for name, module in network.named_children():
        inner = dict(module.named_children()) if name == "backbone" else {}
        parts = {f"backbone.{part}": child for part, child in inner.items()}
        stages_by_name |= parts if len(parts) > 1 else {name: module}
    return stages_by_name


@torch.no_grad()
def _inputs(network: nn.Module, example: Tensor) -> dict[str, Any]:
    """What each stage receives when a network on the meta device is run."""
    received: dict[str, Any] = {}

    def keep(name: str, values: tuple[Any, ...]) -> None:
        received.setdefault(name, values[0])

    hooks = [
        module.register_forward_pre_hook(lambda _, values, name=name: keep(name, values))
        for name, module in _stages(network).items()
    ]
    network(example)
    for hook in hooks:
        hook.remove()
    return received


@torch.no_grad()
def _timed(network: nn.Module, example: Tensor) -> dict[str, float]:
    """Median milliseconds of each stage of a network in eval mode."""
    taken: dict[str, list[float]] = {}
    began: dict[str, float] = {}

    def start(name: str) -> None:
        began[name] = time.perf_counter()

    def stop(name: str) -> None:
        taken.setdefault(name, []).append(1000 * (time.perf_counter() - began[name]))

    hooks = []
    for name, module in _stages(network).items():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: start(name)))
        hooks.append(module.register_forward_hook(lambda *_, name=name: stop(name)))
    for _ in range(WARM + TIMED):
        network(example)
    for hook in hooks:
        hook.remove()
    return {name: statistics.median(values[WARM:]) for name, values in taken.items()}


def _decided(arch: Arch, stage: str) -> str:
    """The decisions of a stage, as in "block0 mb6_k5, block1 skip"."""
    return ", ".join(f"{name.removesuffix('.op')} {value}" for name, value in arch.sub(stage).items())


def _shape(state: Any) -> str:
    """The shapes of the maps in a state, without the batch."""
    tensors = [tensor for tensor in tensors_in(state) if tensor.dim() > 1]
    tensors = [tensor for tensor in tensors if tensor.dim() > 2] or tensors  # a state may also hold the sizes of images
    shapes = [" × ".join(map(str, tensor.shape[1:])) for tensor in tensors]
    return "; ".join(shapes[:MOST_MAPS]) + (f"; {len(shapes) - MOST_MAPS} more" if len(shapes) > MOST_MAPS else "")
