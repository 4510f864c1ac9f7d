"""Scoring figures of BENCHMARKS.md: python tools/benchmark_scoring.py prefix runs/x, or bn runs/x"""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import tyro
from common import main, print_table


def prefix(
    run: tyro.conf.Positional[Path], trials: int = 1000, generation: int = 50, images: int = 1000,
    calibration: int = 4, usual: int = 20, folder: Path | None = None, threads: int = 1,
) -> None:  # fmt: skip
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
    import stages
    import torch

    from searchers import Study, TopKEvolution, search
    from supernet.evaluate import Recalibrate, SharedWeights

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
            space, population_size=generation, mutants=2 * generation // 5, crossovers=2 * generation // 5,
            parents=generation // 5, crossover=crossover,
        )  # fmt: skip
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
    print_table("one by one over shared prefixes, the same scores", ("evolution", "time ratio", "networks/min, shared",
                "one by one", "n"), rows)  # fmt: skip
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

    from supernet.evaluate import recalibrate_bn

    data = opened.data
    transform = v2.Compose([
        v2.Resize(data.size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(data.calibration.mean.flatten().tolist(), data.calibration.std.flatten().tolist()),
    ])  # fmt: skip
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

    import stages
    import torch
    from scipy.stats import kendalltau

    from supernet.evaluate import BatchStatistics, Inherit, Recalibrate, SharedWeights
    from supernet.spaces.nasbench_macro import table

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
        rows.append((str(policy), f"{statistics.mean(accuracy):.4f}", f"{by_accuracy:.3f}", f"{by_loss:.3f}",
                     f"{60 * networks / seconds:.0f}", networks))  # fmt: skip
    print_table(
        "batch-norm policies", ("policy", "mean accuracy", "τ of accuracy", "τ of loss", "networks/min", "n"), rows
    )


def run() -> None:
    tyro.extras.subcommand_cli_from_dict({"prefix": prefix, "bn": bn}, description=__doc__)


if __name__ == "__main__":
    main(run)
