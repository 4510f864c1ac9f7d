"""What does scoring candidates with shared weights cost, and which batch-norm policy ranks them best?

    python tools/benchmarks/scoring.py prefix runs/x    shared prefixes against one by one, in a top-k evolution
    python tools/benchmarks/scoring.py bn runs/x        batch-norm policies against the NAS-Bench-Macro table
    python tools/benchmarks/scoring.py rate             networks per minute of a space, no trained supernet needed
    python tools/benchmarks/scoring.py dtype            the same in float32 and bfloat16
    python tools/benchmarks/scoring.py latency          latency tables against timing whole networks
    python tools/benchmarks/scoring.py workers runs/x   a search in several processes against one

Each ends with a table: time ratios with 95 % intervals, rank correlations, rates or errors.
"""

import copy
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from annotated_types import Ge

from supernet.checked import Count, FilePath, Pixels, Positive, Seed, Threads
from supernet.errors import InputError, RunError
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.pipeline.command_line import main, run_one_of
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from random import Random

    from supernet.chain import Chain
    from supernet.data.images import Images
    from supernet.scoring.batch_norm import BatchNormPolicy
    from supernet.space import Arch, SearchSpace
    from supernet_tools.pipeline.run import Run

A = TypeVar("A")
B = TypeVar("B")


def prefix(
    run: tyro.conf.Positional[FilePath],
    trials: Count = 1000,
    generation: Count = 50,
    images: Count = 1000,
    calibration: Count = 4,
    usual: Count = 20,
    folder: FilePath | None = None,
    threads: Threads = 1,
) -> None:
    """Time to score the generations of a top-k evolution: with shared prefixes, one by one, and as is common elsewhere.

    Args:
        run: Folder of a trained supernet.
        trials: Trials of the evolution; its later half is timed.
        generation: Architectures scored together.
        images: Images of the search-validation split that score a network.
        calibration: Calibration batches, of 64 images each.
        usual: Networks timed the common way: a deep copy, recalibrated and evaluated through a DataLoader of files.
        folder: Image files in one folder per class, for the common way, which is left out without them.
        threads: Threads of torch.
    """
    import torch

    from searchers import Study, TopKEvolution, search
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights
    from supernet_tools.pipeline.runs import open_run

    torch.set_num_threads(threads)
    opened = open_run(run)
    space, validation = opened.supernet.space, opened.data.validation
    part = validation.subset(torch.arange(min(images, len(validation))))
    rows = []
    for crossover in ("uniform", "one-point"):
        sides = [
            SharedWeights(opened.supernet, opened.data.calibration, part, bn=Recalibrate(calibration), share=share)
            for share in (True, False)
        ]
        evolution = TopKEvolution(
            space,
            population_size=generation,
            mutants=2 * generation // 5,
            crossovers=2 * generation // 5,
            parents=generation // 5,
            crossover=crossover,
        )
        study = Study(None, space)
        search(evolution, sides[0], study, trials=trials, batch=generation)
        late = [t for t in study.trials() if t.number >= trials // 2 and not t.repeat]
        ratios, rates = [], []
        for start in range(0, len(late), generation):
            archs = [space.normal_form(t.arch) for t in late[start : start + generation]]
            seconds, scores = zip(*(timed(side, archs) for side in sides), strict=True)
            assert scores[0] == scores[1], "shared prefixes changed a score"
            ratios.append(seconds[1] / seconds[0])
            rates.append([60 * len(archs) / spent for spent in seconds])
        shared, alone = (statistics.median(rate[side] for rate in rates) for side in (0, 1))
        rows.append((f"{crossover} crossover", format_mean(ratios, 2), f"{shared:.0f}", f"{alone:.0f}", len(late)))
    print_table(
        "one by one over shared prefixes, the same scores",
        ("evolution", "time ratio", "networks/min, shared", "one by one", "n"),
        rows,
    )
    if folder is not None:
        archs = [space.normal_form(t.arch) for t in late[-usual:]]
        usual_seconds = [timed(lambda arch: common_way(opened, arch, folder, images, calibration), a)[0] for a in archs]
        shared_seconds = timed(sides[0], archs)[0] / len(archs)
        ratio = format_mean([seconds / shared_seconds for seconds in usual_seconds], 2)
        row = (ratio, f"{60 / statistics.median(usual_seconds):.0f}", len(archs))
        print_table("the common way over shared prefixes", ("time ratio", "networks/min, common way", "n"), [row])


def timed(work: Callable[[A], B], argument: A) -> tuple[float, B]:
    """Returns the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = work(argument)
    return time.perf_counter() - began, result


def common_way(opened: "Run", arch: "Arch", folder: Path, images: int, calibration: int) -> float:
    """Returns the accuracy of a candidate as other libraries compute it.

    The supernet is deep-copied; one DataLoader of image files recalibrates batch norm, another one gives the accuracy.
    """
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from supernet.scoring.batch_norm import recalibrate_bn

    data = opened.data
    transform = v2.Compose(
        [
            v2.Resize(data.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.calibration.mean.flatten().tolist(), data.calibration.std.flatten().tolist()),
        ]
    )
    files = ImageFolder(str(folder), transform)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    network = copy.deepcopy(opened.supernet).subnet(arch).eval()
    recalibrate_bn(network, (x for x, _ in DataLoader(Subset(files, order[: 64 * calibration]), 64)))
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(Subset(files, order[64 * calibration :][:images]), 256):
            right += int((network(x).argmax(1) == y).sum())
    return right / images


def bn(run: tyro.conf.Positional[FilePath], networks: Count = 100, images: Count = 1000, threads: Threads = 1) -> None:
    """Mean accuracy of random networks under each batch-norm policy, and agreement with the NAS-Bench-Macro table.

    Args:
        run: Folder of a supernet over nasbench-macro.
        networks: Distinct networks, drawn uniformly from the table.
        images: Images of the search-validation split that score a network.
        threads: Threads of torch.
    """
    import random

    import torch
    from scipy.stats import kendalltau

    from supernet.scoring.batch_norm import BatchStatistics, Inherit, Recalibrate
    from supernet.scoring.shared_weights import SharedWeights
    from supernet.spaces.nasbench_macro import table
    from supernet_tools.pipeline.runs import open_run

    torch.set_num_threads(threads)
    opened, published = open_run(run), table()
    if opened.space.name != "nasbench-macro":
        raise InputError(
            f"{run} is a run of {opened.space.name!r}; give one of 'nasbench-macro', whose table this reads"
        )
    forms = list(dict.fromkeys(opened.supernet.space.normal_form(arch) for arch in published))
    archs = random.Random(0).sample(forms, networks)
    part = opened.data.validation.subset(torch.arange(min(images, len(opened.data.validation))))
    truth = [published[arch]["accuracy"] for arch in archs]
    policies: list[BatchNormPolicy] = [Inherit(), BatchStatistics(), *(Recalibrate(n) for n in (1, 2, 5, 10, 20, 50))]
    rows = []
    for policy in policies:
        evaluate = SharedWeights(opened.supernet, opened.data.calibration, part, bn=policy)
        seconds, scores = timed(evaluate, archs)
        accuracy, loss = ([score[name] for score in scores] for name in ("accuracy", "loss"))
        by_accuracy, by_loss = kendalltau(accuracy, truth).statistic, -kendalltau(loss, truth).statistic
        rows.append(
            (
                str(policy),
                f"{statistics.mean(accuracy):.4f}",
                f"{by_accuracy:.3f}",
                f"{by_loss:.3f}",
                f"{60 * networks / seconds:.0f}",
                networks,
            )
        )
    print_table(
        "batch-norm policies", ("policy", "mean accuracy", "τ of accuracy", "τ of loss", "networks/min", "n"), rows
    )


def rate(
    space: str = "spos",
    size: Pixels = 32,
    batches: Count = 10,
    batch: Count = 32,
    networks: Count = 40,
    rounds: Count = 5,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Networks scored per minute, with random weights: random ones, and children of ten similar parents.

    The children stand for the late generations of an evolution, which share long prefixes.

    Args:
        space: Name of a space.
        size: Image side in pixels.
        batches: Calibration batches, and as many validation batches.
        batch: Images per batch.
        networks: Networks of each sort per round.
        rounds: Rounds, in each of which every sort is scored both ways.
        seed: Seed of networks and weights.
        threads: Threads of torch.
    """
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    supernet, images, rng = random_supernet(space, size, images=batches * batch, seed=seed, threads=threads)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for population, archs in populations(supernet.space, networks, rng).items():
            scores = []
            for share in (True, False):
                bn = Recalibrate(batches, batch)
                evaluate = SharedWeights(supernet, images, images, bn=bn, batch=batch, share=share)
                seconds, metrics = timed(evaluate, archs)
                scores.append(metrics)
                side = f"{population}, {'shared prefixes' if share else 'one by one'}"
                rates.setdefault(side, []).append(60 * len(archs) / seconds)
            assert scores[0] == scores[1], "shared prefixes changed a score"
    rows = [(side, f"{statistics.median(r):.0f}", f"{min(r):.0f} to {max(r):.0f}", len(r)) for side, r in rates.items()]
    print_table(
        f"{space} at {size}×{size}, {batches} + {batches} batches of {batch}",
        ("networks", "per minute, median", "range", "rounds"),
        rows,
    )


def dtype(
    space: str = "spos",
    size: Pixels = 32,
    batches: Count = 10,
    batch: Count = 32,
    networks: Count = 40,
    rounds: Count = 5,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Networks scored per minute of processor time in float32 and bfloat16, with random weights, in turn.

    The same two kinds of networks as `rate`. The last row is the ratio of the rates.

    Args:
        space: Name of a space.
        size: Image side in pixels.
        batches: Calibration batches, and as many validation batches.
        batch: Images per batch.
        networks: Networks of each sort per round.
        rounds: Rounds, in each of which every sort is scored both ways.
        seed: Seed of networks and weights.
        threads: Threads of torch.
    """
    from supernet.ranking.statistics import kendall
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    supernet, images, rng = random_supernet(space, size, images=batches * batch, seed=seed, threads=threads)
    rates: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds):
        for population, archs in populations(supernet.space, networks, rng).items():
            for number, name in enumerate(("float32", "bfloat16")):
                bn = Recalibrate(batches, batch)
                evaluate = SharedWeights(supernet, images, images, bn=bn, batch=batch, bf16=name == "bfloat16")
                began = time.process_time()
                metrics = evaluate(archs)
                seconds = time.process_time() - began
                rates.setdefault(population, {}).setdefault(name, []).append(60 * len(archs) / seconds)
                losses.setdefault(population, ([], []))[number].extend(row["loss"] for row in metrics)
    rows = []
    for population, sides in rates.items():
        for name, values in sides.items():
            rows.append(
                (population, name, f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}")
            )
        rows.append((population, "τ of the losses", f"{kendall(*losses[population]):.3f}", ""))
    for population, sides in rates.items():
        ratios = [fast / exact for exact, fast in zip(sides["float32"], sides["bfloat16"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append((population, "ratio", f"{statistics.median(ratios):.2f}", spread))
    title = f"{space} at {size}×{size}, {batches} + {batches} batches of {batch}, per processor minute, n = {rounds}"
    print_table(title, ("networks", "scored in", "median", "range"), rows)


def random_supernet(space: str, size: int, *, images: int, seed: int, threads: int) -> "tuple[Chain, Images, Random]":
    """Returns a supernet with random weights, noise with labels of ten classes, and a generator of architectures.

    Seeds torch's global generator, and sets its number of threads.
    """
    import random

    import torch

    from supernet import create_supernet
    from supernet.data.images import Images

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    supernet = create_supernet(space, num_classes=10, input_size=size)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    return supernet, Images(pixels, labels, torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1)), random.Random(seed)


def populations(space: "SearchSpace", networks: int, rng: "Random") -> dict[str, "list[Arch]"]:
    """Returns random networks, and mutants and children of ten similar parents, as late in an evolution."""
    base = space.sample(rng)
    parents = [space.mutate(base, rng, 0.1) for _ in range(10)]
    late = [space.mutate(rng.choice(parents), rng, 0.1) for _ in range(networks // 2)]
    for _ in range(networks - networks // 2):
        first, second = rng.sample(parents, 2)
        late.append(space.crossover(first, second, rng))
    return {
        "random": [space.sample(rng) for _ in range(networks)],
        "late in an evolution": list(dict.fromkeys(late)),
    }


def latency(
    spaces: tuple[str, ...] = ("nasbench-macro", "shufflenet-small", "spos"),
    networks: Count = 20,
    batch: Count = 1,
    seconds: Positive = 0.1,
    threads: Threads = 1,
) -> None:
    """Error of a latency table against timing whole networks at the space's input size.

    First of the plain sum over measured steps, then of the same table corrected by other networks, timed as a whole.

    Args:
        spaces: Names of spaces.
        networks: Random networks per space.
        batch: Images per forward pass.
        seconds: Seconds of timing per entry of the table.
        threads: Threads of torch.
    """
    import torch

    from supernet import create_supernet
    from supernet.cost import LatencyTable

    torch.set_num_threads(threads)
    rows = []
    for space in spaces:
        table = LatencyTable(create_supernet(space), batch=batch, seconds=seconds)
        for name in ("sum of steps", "corrected"):
            if name == "corrected":
                table.correct(seed=1)  # error() draws with another seed
            error = table.error(networks)
            rows.append((space, name, *(f"{error[key]:.3f}" for key in ("mean", "worst", "bias", "tau")), networks))
    print_table(
        f"latency of {batch} images", ("space", "table", "mean error", "worst", "table / timing", "τ", "n"), rows
    )


def workers(
    run: tyro.conf.Positional[FilePath],
    processes: Annotated[int, Ge(2)] = 2,
    trials: Count = 96,
    batch: Count = 16,
    rounds: Count = 3,
) -> None:
    """Networks per minute of a random search by one process and by several, each with one thread; both in turn.

    The time of a search of one batch is subtracted, so that starting the processes and reading the run do not count.
    The last row is the ratio of the rates. Raises `AssertionError` if the searches differ.

    Args:
        run: Folder of a trained supernet; searches run in copies of it, without its cache of scores.
        processes: Processes of the other side.
        trials: Networks of a search.
        batch: Networks that are scored together.
        rounds: Rounds, in each of which both sides run.
    """
    from supernet_tools.pipeline.runs import open_run

    if trials <= batch:
        raise InputError(f"--trials {trials} should be above --batch {batch}, whose time is subtracted")
    if batch < processes:
        raise InputError(f"--processes {processes} divide a --batch of {batch}; raise it")
    open_run(run)
    rates: dict[int, list[float]] = {1: [], processes: []}
    for seed in range(rounds):
        found = set()
        for count, values in rates.items():
            short, _ = _search_seconds(run, count, batch, batch, seed)
            seconds, best = _search_seconds(run, count, trials, batch, seed)
            found.add(best)
            values.append(60 * (trials - batch) / (seconds - short))
        assert len(found) == 1, f"the searches of one and of {processes} processes differ"
    ratios = [several / one for one, several in zip(rates[1], rates[processes], strict=True)]
    rows = [
        (f"{count} processes", f"{statistics.median(r):.0f}", f"{min(r):.0f} to {max(r):.0f}")
        for count, r in rates.items()
    ]
    rows.append(("ratio", f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"))
    print_table(f"random search, batches of {batch}, n = {rounds}", ("side", "networks/min, median", "range"), rows)


def _search_seconds(run: Path, processes: int, trials: int, batch: int, seed: int) -> tuple[float, str]:
    """Returns the seconds of a search in a copy of a run, and its document. Raises `RunError` if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "run"
        shutil.copytree(
            run, copied, ignore=shutil.ignore_patterns("scores.db*", "search", "retrain", "select", "alone")
        )
        script = Path(__file__).parents[1] / "search.py"
        flags = {"searcher": "random", "trials": trials, "batch": batch, "workers": processes, "seed": seed}
        command = [sys.executable, str(script), str(copied)]
        for name, value in flags.items():
            command += [f"--{name}", str(value)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RunError(f"the search by {processes} processes failed: {done.stderr.strip().splitlines()[-1:]}")
        return time.perf_counter() - began, (copied / "search" / "random" / "best.json").read_text()


def run() -> None:
    """Runs the command that the first argument names."""
    commands: dict[str, Callable[..., None]] = {
        "prefix": prefix,
        "bn": bn,
        "rate": rate,
        "dtype": dtype,
        "latency": latency,
        "workers": workers,
    }
    run_one_of(commands, __doc__)


if __name__ == "__main__":
    main(run)
