"""Scoring figures of BENCHMARKS.md: python tools/benchmarks/scoring.py prefix runs/x, bn runs/x, rate, or latency"""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import tyro

from supernet_tools.pipeline.command_line import main, print_table


def prefix(
    run: tyro.conf.Positional[Path],
    trials: int = 1000,
    generation: int = 50,
    images: int = 1000,
    calibration: int = 4,
    usual: int = 20,
    folder: Path | None = None,
    threads: int = 1,
) -> None:
    """Scoring the generations of a top-k evolution with shared prefixes, one by one, and the usual way.

    Args:
        run: Folder of a trained supernet.
        trials: Of the evolution; the later half is timed.
        generation: Architectures scored at a time.
        images: Of the search-validation split.
        calibration: Batches of 64 images for batch norm.
        usual: Networks timed the usual way: a copy, recalibrated and evaluated through a DataLoader of image files.
        folder: With a folder of image files per class, for the usual way; left out if not given.
        threads: Of torch.
    """
    import torch

    from searchers import Study, TopKEvolution, search
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights
    from supernet_tools.pipeline import stages

    torch.set_num_threads(threads)
    opened = stages.open_stage(run)
    space, held = opened.supernet.space, opened.data.validation
    part = held.subset(torch.arange(min(images, len(held))))
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
        rows.append((f"{crossover} crossover", interval(ratios), f"{shared:.0f}", f"{alone:.0f}", len(late)))
    print_table(
        "one by one over shared prefixes, the same scores",
        ("evolution", "time ratio", "networks/min, shared", "one by one", "n"),
        rows,
    )
    if folder is not None:
        archs = [space.normal_form(t.arch) for t in late[-usual:]]
        slow = [
            timed(lambda some: usual_way(opened, some[0], folder, images, calibration), [arch])[0] for arch in archs
        ]
        fast = timed(sides[0], archs)[0] / len(archs)
        row = (interval([one / fast for one in slow]), f"{60 / statistics.median(slow):.0f}", len(archs))
        print_table("the usual way over shared prefixes", ("time ratio", "networks/min, usual way", "n"), [row])


def timed(work: Any, argument: Any) -> tuple[float, Any]:
    """Seconds and result of a call."""
    began = time.perf_counter()
    result = work(argument)
    return time.perf_counter() - began, result


def interval(values: list[float]) -> str:
    """Mean with a 95 % interval of the mean."""
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def usual_way(opened: Any, arch: Any, folder: Path, images: int, calibration: int) -> float:
    """A candidate as it is scored elsewhere: a deep copy, batch norm through a loader, accuracy through another."""
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


def bn(run: tyro.conf.Positional[Path], networks: int = 100, images: int = 1000, threads: int = 1) -> None:
    """Accuracy and ranking of random networks under each batch-norm policy, against the NAS-Bench-Macro table.

    Args:
        run: Folder of a supernet over nasbench-macro.
        networks: Distinct ones, drawn uniformly from all.
        images: Of the search-validation split.
        threads: Of torch.
    """
    import random

    import torch
    from scipy.stats import kendalltau

    from supernet.scoring.batch_norm import BatchStatistics, Inherit, Recalibrate
    from supernet.scoring.shared_weights import SharedWeights
    from supernet.spaces.nasbench_macro import table
    from supernet_tools.pipeline import stages

    torch.set_num_threads(threads)
    opened, published = stages.open_stage(run), table()
    forms = list(dict.fromkeys(opened.supernet.space.normal_form(arch) for arch in published))
    archs = random.Random(0).sample(forms, networks)
    part = opened.data.validation.subset(torch.arange(min(images, len(opened.data.validation))))
    truth = [published[arch]["accuracy"] for arch in archs]
    policies = [Inherit(), BatchStatistics(), *(Recalibrate(n) for n in (1, 2, 5, 10, 20, 50))]
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
    size: int = 32,
    batches: int = 10,
    batch: int = 32,
    networks: int = 40,
    rounds: int = 5,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Networks per minute of random weights: drawn at random, and children of ten alike parents as late in evolution.

    Args:
        space: Name of a space.
        size: Image side in pixels.
        batches: For batch norm, and as many for the score.
        batch: Images in each.
        networks: Of each kind and round.
        rounds: The kinds and sides take turns.
        seed: Of the networks and weights.
        threads: Of torch.
    """
    import random

    import torch

    from supernet import create_supernet
    from supernet.data.images import Images
    from supernet.scoring.batch_norm import Recalibrate
    from supernet.scoring.shared_weights import SharedWeights

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    supernet, rng = create_supernet(space, num_classes=10, input_size=size), random.Random(seed)
    pixels = torch.randint(0, 256, (batches * batch, 3, size, size), dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (batches * batch,)), torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1))
    rates: dict[str, list[float]] = {}
    paths = supernet.space
    for _ in range(rounds):
        base = paths.sample(rng)
        parents = [paths.mutate(base, rng, 0.1) for _ in range(10)]
        late = [paths.mutate(rng.choice(parents), rng, 0.1) for _ in range(networks // 2)]
        late += [paths.crossover(*rng.sample(parents, 2), rng) for _ in range(networks - networks // 2)]
        kinds = {
            "random": [paths.sample(rng) for _ in range(networks)],
            "late in an evolution": list(dict.fromkeys(late)),
        }
        for kind, archs in kinds.items():
            scores = []
            for share in (True, False):
                bn = Recalibrate(batches, batch)
                evaluate = SharedWeights(supernet, images, images, bn=bn, batch=batch, share=share)
                seconds, found = timed(evaluate, archs)
                scores.append(found)
                side = f"{kind}, {'shared prefixes' if share else 'one by one'}"
                rates.setdefault(side, []).append(60 * len(archs) / seconds)
            assert scores[0] == scores[1], "shared prefixes changed a score"
    rows = [(side, f"{statistics.median(r):.0f}", f"{min(r):.0f} to {max(r):.0f}", len(r)) for side, r in rates.items()]
    print_table(
        f"{space} at {size}×{size}, {batches} + {batches} batches of {batch}",
        ("networks", "per minute, median", "range", "rounds"),
        rows,
    )


def latency(
    spaces: tuple[str, ...] = ("nasbench-macro", "shufflenet-small", "spos"),
    networks: int = 20,
    batch: int = 1,
    seconds: float = 0.1,
    threads: int = 1,
) -> None:
    """A sum of measured steps against timing whole networks, at each space's own input size.

    Args:
        spaces: Names of spaces.
        networks: Drawn at random.
        batch: Images per forward pass.
        seconds: Of timing per entry of the table.
        threads: Of torch.
    """
    import torch

    from supernet import create_supernet
    from supernet.cost import LatencyTable

    torch.set_num_threads(threads)
    rows = []
    for space in spaces:
        error = LatencyTable(create_supernet(space), batch=batch, seconds=seconds).error(networks)
        rows.append((space, *(f"{error[name]:.3f}" for name in ("mean", "worst", "bias", "tau")), networks))
    print_table(f"latency of {batch} images", ("space", "mean error", "worst", "table / timing", "τ", "n"), rows)


def run() -> None:
    commands = {"prefix": prefix, "bn": bn, "rate": rate, "latency": latency}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    main(run)
