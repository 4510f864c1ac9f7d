"""The engine adds nothing: a step of a supernet costs what a step of the plain network of that path costs."""

import gc
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain, create_supernet
from supernet.chain import PartsMemo, realize
from supernet.config import Augment, Data, Train
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.training.loop import train_standalone, train_supernet
from supernet.training.sparse_step import step_active

IMAGES = 384
FAMILIES = {
    "shufflenet-small": partial(create_supernet, "shufflenet-small"),
    "spos": partial(create_supernet, "spos", num_classes=10),
    "nasbench-macro": partial(create_supernet, "nasbench-macro"),
    "nasbench201": partial(create_supernet, "nasbench201", cells=1),
}


@pytest.fixture(scope="module")
def digits() -> Splits:
    """All scikit-learn digits, but few of them for training: the engine runs the same code for every image."""
    data = load(Data(size=16))
    return replace(data, train=data.train.subset(torch.arange(IMAGES)))


class Recorder(TorchDispatchMode):
    """The aten operations that run inside, with the shapes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, Any]] = []
        self.on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.on:
            leaves = out if isinstance(out, tuple | list) else (out,)
            shapes = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))
            self.operations.append((str(func), shapes))
        return out


def operations_of_a_step(train: Callable[..., object], arch: Arch) -> list[tuple[str, Any]]:
    """From one call of the sampler to the next: forward, backward, update, and the next batch."""
    recorder = Recorder()

    def sampler(step: int) -> tuple[Arch, ...]:
        recorder.on = step == 1
        return (arch,)

    with recorder:
        train(sampler=sampler)
    return recorder.operations


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow if name == "spos" else []) for name in FAMILIES],  # larger
)
def test_a_supernet_step_runs_the_operations_of_the_plain_step(family: str, digits: Splits) -> None:
    torch.manual_seed(0)
    supernet: Chain = FAMILIES[family](in_channels=1, input_size=32 if family == "spos" else 16)
    arch = supernet.space.normal_form(supernet.space.sample(random.Random(1)))
    plain = supernet.subnet(arch)
    config = Train(epochs=1, batch=8, lr=0.01)
    digits = replace(digits, train=digits.train.subset(torch.arange(3 * config.batch)))
    settings = {"augment": Augment(shift=1), "verbose": False}
    shared = operations_of_a_step(partial(train_supernet, supernet, digits, config, **settings), arch)
    own = operations_of_a_step(partial(train_standalone, plain, digits, config, **settings), Arch())
    assert len(shared) > 100
    assert any("convolution_backward" in name for name, _ in shared)
    assert shared == own


@pytest.mark.parametrize("toy", ["chain", "loose", "sliced"])
def test_remembered_parts_are_the_active_parts(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.chain.chain.MOST_REMEMBERED", 8)  # forgets in between
    supernet = TOY_SPACES[toy]()
    remembered = PartsMemo(supernet)
    for seed in range(40):
        arch = supernet.space.sample(random.Random(seed))
        expected = list(supernet.active_parts(arch))
        actual = remembered(arch)
        assert [(id(parameter), index) for parameter, index in actual] == [(id(p), index) for p, index in expected]


@pytest.mark.slow  # the same operations run, as the first test shows; this one measures the time around them
def test_a_step_costs_little_more_than_one_of_the_plain_network() -> None:
    """20 blocks, 1-pixel images; the fastest of many, in CPU time of this thread, so that neighbours do not count.

    A ratio, since a millisecond is much or little depending on the machine.
    """
    torch.manual_seed(0)
    supernet = create_supernet("spos", num_classes=2).train()
    space, x = supernet.space, torch.randn(2, 3, 1, 1)
    arch = space.sample(random.Random(0))
    plain = supernet.subnet(arch)
    active = PartsMemo(supernet)
    shared, own = (torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9) for net in (supernet, plain))

    def of_engine() -> None:
        drawn = space.normal_form(space.sample(random.Random(0)))  # as a sampler does
        supernet(x, drawn).sum().backward()
        parts = active(drawn)
        step_active(shared, parts)
        for parameter, _ in parts:
            parameter.grad = None

    def of_plain() -> None:
        plain(x).sum().backward()
        own.step()
        own.zero_grad(set_to_none=True)

    fastest = [float("inf"), float("inf")]
    for repeat in range(200):
        for side, run in enumerate((of_engine, of_plain)):
            began = time.thread_time()
            run()
            fastest[side] = min(fastest[side], time.thread_time() - began)
        if repeat >= 10 and fastest[0] < 1.06 * fastest[1]:  # a busy machine needs more tries for a quiet moment
            break
    print(f"a step takes {1000 * fastest[0]:.2f} ms, of the plain network {1000 * fastest[1]:.2f} ms")
    assert fastest[0] < 1.10 * fastest[1]


def peak_bytes(work: Callable[[], object], path: Path) -> int:
    """The most memory that torch held at once for what `work` allocated."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    recorded.export_chrome_trace(str(path))
    events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    return max(e["Total Allocated"] for e in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


@pytest.mark.slow  # tests/spaces/test_cells.py: a path keeps no more than its network for the backward pass
def test_memory_is_the_plain_networks_and_the_unused_weights(digits: Splits, tmp_path: Path) -> None:
    """Three steps on three paths: weights and momentum of the other options come on top, activations do not."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"widths": (8, 16, 32), "stem": 4, "head": 32}
    space = create_supernet("shufflenet-small").space
    archs = [space.sample(random.Random(seed)) for seed in range(3)]
    config = Train(epochs=1, batch=len(digits.train) // 3, lr=0.01)
    build = partial(create_supernet, "shufflenet-small", in_channels=1, input_size=16, **size)

    def of_engine() -> None:
        train_supernet(build(), digits, config, sampler=lambda step: (archs[step],), verbose=False)

    def of_plain(arch: Arch) -> None:
        with torch.device("meta"):  # a supernet with memory would count
            supernet = build()
            subnet = supernet.subnet(arch)
        train_standalone(realize(subnet, supernet.init), digits, config, verbose=False)

    engine = peak_bytes(of_engine, tmp_path / "engine.json")
    plain = max(peak_bytes(partial(of_plain, arch), tmp_path / "plain.json") for arch in archs)
    supernet = build()
    weights = sum(tensor.nbytes for tensor in supernet.state_dict().values())
    smallest = min(sum(t.nbytes for t in supernet.subnet(arch).state_dict().values()) for arch in archs)
    allowed = 1.05 * plain + 2 * (weights - smallest)
    print(f"peak {engine:,} B; plain {plain:,} B and unused weights with momentum {2 * (weights - smallest):,} B")
    assert plain > 5 * weights, "activations must dominate for this to say anything"
    assert engine <= allowed
