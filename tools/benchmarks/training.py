"""What does a training step of a supernet cost beside that of a plain network?

    python tools/benchmarks/training.py engine                               a path in the supernet against its subnet
    python tools/benchmarks/training.py throughput --folder cifar10/train    images per second against a plain loop
    python tools/benchmarks/training.py uses                                 how often a sampler trains each weight
    python tools/benchmarks/training.py depthwise                            what other depthwise convolutions save

Each ends with a table of time ratios, rates or counts.
"""

import contextlib
import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.checked import Count, FilePath, Natural, Pixels, Seed, Threads
from supernet.errors import InputError
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supernet.chain import Chain
    from supernet.config import Augment, Train
    from supernet.data.images import Splits
    from supernet.space import Arch


class StopTraining(Exception):
    """Ends a training once enough steps are timed."""


def step_seconds(
    network: "Chain",
    data: "Splits",
    config: "Train",
    augment: "Augment",
    *,
    arch: "Arch",
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Returns the duration of each training step of one path, without the first."""
    from supernet.train import train_supernet

    times: list[float] = []

    def sampler(step: int) -> "tuple[Arch, ...]":
        times.append(clock())
        if len(times) > steps + 1:
            raise StopTraining
        return (arch,)

    with contextlib.suppress(StopTraining):
        train_supernet(network, data, config, sampler=sampler, augment=augment, verbose=False)
    return [after - before for before, after in itertools.pairwise(times)][1:]


def engine(
    spaces: tuple[str, ...] = ("shufflenet-small", "nasbench-macro", "nasbench201"),
    size: Pixels = 16,
    batch: Count = 64,
    paths: Count = 30,
    steps: Count = 4,
    threads: Threads = 1,
    cpu: bool = False,
) -> None:
    """Time of a supernet's training step over that of the subnet of the same path, the two alternating.

    Args:
        spaces: Names of spaces.
        size: Image side in pixels.
        batch: Images per step.
        paths: Random paths per space, after one that warms up.
        steps: Steps per path and side, of which the fastest counts.
        threads: Threads of torch.
        cpu: Measure processor time instead of wall time, for a machine under other load.
    """
    import torch

    from supernet import Arch, create_supernet
    from supernet.chain import Chain
    from supernet.config import Augment, Data, Train
    from supernet.data.load import load
    from supernet.seeding import generator

    torch.set_num_threads(threads)
    data, rows = load(Data(size=size)), []
    config, augment = Train(epochs=steps, batch=batch, lr=1e-3), Augment(shift=1)
    clock = time.process_time if cpu else time.perf_counter
    for space in spaces:
        supernet = create_supernet(space, in_channels=1, input_size=size)
        ratios, fastest = [], []
        for path in range(paths + 1):
            arch = supernet.space.normal_form(supernet.space.sample(generator("engine", path)))
            plain = Chain("plain", [("network", supernet.subnet(arch))])
            shared = step_seconds(supernet, data, config, augment, arch=arch, steps=steps, clock=clock)
            own = step_seconds(plain, data, config, augment, arch=Arch(), steps=steps, clock=clock)
            ratios.append(min(shared) / min(own))
            fastest.append(min(own))
        low, middle, high = statistics.quantiles(ratios[1:], n=4)
        first, last = median_interval(ratios[1:])
        plain_ms = f"{1000 * statistics.median(fastest[1:]):,.1f} ms"
        rows.append((space, plain_ms, f"{middle:.3f}", f"{first:.3f} to {last:.3f}", f"{low:.3f} to {high:.3f}", paths))
    columns = ("space", "plain step", "median ratio", "95 %", "quartiles", "n")
    print_table(f"supernet step over plain step, {size}×{size}, batch {batch}", columns, rows)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Returns a distribution-free interval of the median: the order statistics that enclose it at this level."""
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    skipped = max(int(binom.ppf((1 - level) / 2, n, 0.5)) - 1, 0)  # by a sign test at that level
    return ordered[skipped], ordered[n - 1 - skipped]


def plain_loop(
    space: str,
    arch: "Arch",
    folder: Path,
    *,
    classes: int,
    size: int,
    batch: int,
    workers: int,
    steps: int,
    threads: int,
) -> list[float]:
    """Returns the duration of each step of an ordinary torch training loop, without the first."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    from supernet import create_supernet

    torch.set_num_threads(threads)
    network = create_supernet(space, num_classes=classes, input_size=size).subnet(arch)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    transform = v2.Compose(
        [
            v2.Resize(size),
            v2.RandomCrop(size, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    images = datasets.ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    times = []
    for x, y in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x.to(memory_format=torch.channels_last)), y)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
        if len(times) > steps + 1:
            break
    return [after - before for before, after in itertools.pairwise(times)][1:]


def throughput(
    folder: FilePath,
    space: str = "nasbench-macro",
    size: Pixels = 32,
    batch: Count = 128,
    steps: Count = 40,
    rounds: Count = 5,
    workers: Natural = 1,
    threads: Threads = 1,
) -> None:
    """Images per second of this engine against a plain loop with a DataLoader: one path, the same augmentation.

    The plain loop has a process of its own, without this project's settings of the memory allocator.

    Args:
        folder: Image files in one folder per class.
        space: Name of a space, of which one random path is trained.
        size: Image side in pixels.
        batch: Images per step.
        steps: Steps per round and side.
        rounds: Rounds, in each of which both sides run.
        workers: Worker processes of the DataLoader; 0 loads in the training process.
        threads: Threads of torch.
    """
    import torch

    from supernet import create_supernet
    from supernet.config import Augment, Data, Train
    from supernet.data.load import load
    from supernet.seeding import generator

    torch.set_num_threads(threads)
    began = time.perf_counter()
    data = load(Data(str(folder), size=size, validation=0.02, test=0.02))
    decoding = f"decoding {len(data.train):,} images once took {time.perf_counter() - began:.1f} s"
    network = create_supernet(space, num_classes=len(data.classes), input_size=size)
    arch = network.space.normal_form(network.space.sample(generator(0, "throughput")))
    plain = functools.partial(
        plain_loop,
        space,
        arch,
        folder,
        classes=len(data.classes),
        size=size,
        batch=batch,
        workers=workers,
        steps=steps,
        threads=threads,
    )
    config, augment = Train(epochs=100, batch=batch, lr=1e-3), Augment(shift=4, flip=True)
    rates: dict[str, list[float]] = {"engine": [], "plain loop": []}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        for _ in range(rounds):
            ours = step_seconds(network, data, config, augment, arch=arch, steps=steps)
            theirs = process.submit(plain).result()
            for name, seconds in (("engine", ours), ("plain loop", theirs)):
                rates[name].append(len(seconds) * batch / sum(seconds))
    rates["ratio"] = [a / b for a, b in zip(rates["engine"], rates["plain loop"], strict=True)]
    rows = [(n, f"{statistics.median(r):,.2f}", f"{min(r):,.2f} to {max(r):,.2f}", rounds) for n, r in rates.items()]
    title = f"{space} at {size}×{size}, batch {batch}, {workers} workers; {decoding}"
    print_table(title, ("side", "images/s, median", "range", "rounds"), rows)


ONE_PATH = ("uniform", "weighted", "even")
"""Samplers with one architecture per step."""


def uses(
    spaces: tuple[str, ...] = ("nasbench201", "nasnet-small", "pnasnet-small"),
    samplers: tuple[str, ...] = ONE_PATH,
    steps: Count = 4000,
    seeds: Count = 5,
    first_seed: Seed = 0,
) -> None:
    """How many of the steps of a training use a weight tensor of a candidate operation; nothing is trained.

    Weights are those with two or more dimensions that some architectures use and others do not. The row "as drawn"
    draws every decision uniformly and trains that architecture itself; `uniform` trains its normal form. Means over
    seeds with 95 % intervals.

    Args:
        spaces: Names of spaces.
        samplers: Names of samplers with one architecture per step.
        steps: Of a training.
        seeds: Trainings.
        first_seed: Seed of the first; the others count up from it.
    """
    if several := [sampler for sampler in samplers if sampler not in ONE_PATH]:
        raise InputError(
            f"--samplers {several[0]} is no sampler with one architecture per step: {', '.join(ONE_PATH)} are"
        )
    import torch

    from supernet import create_supernet
    from supernet.chain import PartsMemo
    from supernet.seeding import generator
    from supernet.training.sampling import create_sampler

    for name in spaces:
        with torch.device("meta"):
            net = create_supernet(name)
        parts, rows = PartsMemo(net), []
        weightless = net.weightless_options()
        for kind in ("as drawn", *samplers):
            results = []
            for seed in range(first_seed, first_seed + seeds):
                counts = dict.fromkeys((p for p in net.parameters() if p.ndim > 1), 0)
                sample = None if kind == "as drawn" else create_sampler(kind, net.space, seed, weightless=weightless)
                for step in range(steps):
                    drawn = net.space.sample(generator(seed, "uses", step)) if sample is None else sample(step)[0]
                    for parameter in {part for part, _ in parts(drawn)} & counts.keys():
                        counts[parameter] += 1
                counted = sorted(count for count in counts.values() if count < steps)
                results.append([counted[0], counted[len(counted) // 20], counted[len(counted) // 2], counted[-1]])
            rows.append((kind, *(format_mean(column, 0) for column in zip(*results, strict=True))))
        title = f"{name}: uses of a weight in {steps:,} steps, {len(counted)} weights, {seeds} seeds"
        print_table(title, ("paths", "fewest", "5th percentile", "median", "most"), rows)


def depthwise(
    spaces: tuple[str, ...] = ("nasbench-macro", "spos"),
    size: Pixels = 32,
    batch: Count = 64,
    paths: Count = 10,
    threads: Threads = 1,
) -> None:
    """Processor time of torch's forward and backward pass over that with `FastConvolutions`, the two alternating.

    Args:
        spaces: Names of spaces.
        size: Image side in pixels.
        batch: Images per step.
        paths: Random paths per space, after one that warms up.
        threads: Threads of torch.
    """
    import torch

    from supernet import create_supernet
    from supernet.convolutions import FastConvolutions
    from supernet.seeding import generator

    torch.set_num_threads(threads)
    rows = []
    for space in spaces:
        network = create_supernet(space, num_classes=10, input_size=size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

        ratios, plain = [], []
        for path in range(paths + 1):
            arch = network.space.sample(generator("depthwise", path))
            plain.append(backward_seconds(network, images, arch, contextlib.nullcontext()))
            ratios.append(plain[-1] / backward_seconds(network, images, arch, FastConvolutions()))
        first, last = median_interval(ratios[1:])
        middle = f"{statistics.median(ratios[1:]):.2f}"
        rows.append((space, f"{statistics.median(plain[1:]):.3f} s", middle, f"{first:.2f} to {last:.2f}", paths))
    columns = ("space", "torch alone", "median ratio", "95 %", "n")
    print_table(f"torch's backward pass over the faster one, {size}×{size}, batch {batch}", columns, rows)


def backward_seconds(
    network: "nn.Module", images: "Tensor", arch: "Arch", mode: contextlib.AbstractContextManager[object]
) -> float:
    """Returns the processor time of a forward and a backward pass."""
    began = time.process_time()
    with mode:
        out = network(images, arch)
    out.square().mean().backward()
    return time.process_time() - began


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {
        "engine": engine,
        "throughput": throughput,
        "uses": uses,
        "depthwise": depthwise,
    }
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
