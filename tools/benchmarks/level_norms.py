"""What does a batch norm of its own for every level of the pyramid change?

    python tools/benchmarks/level_norms.py runs/bccd --arch KEY --seeds 3

Trains one architecture of a RetinaNet run with several seeds and scores each network twice on the test split: as
trained, and with one running mean and variance for all levels in every norm of the towers. These are what the running
averages of one norm that all levels share would have been in the same training. The weights are the same, so the
difference is that of the statistics alone. Finished trainings are kept, so the same command resumes.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from supernet.checked import Count, FilePath, Name, Text, Threads
from supernet.errors import InputError
from supernet_tools.benchmarks.curves import format_mean
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from torch import nn

METRICS = {"test_map": "AP", "test_map50": "AP50"}


@dataclass(frozen=True)
class LevelNormsCompared:
    """Score trained detectors with the statistics of each level, and with one mean and variance for all levels."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of a run of detectors; its supernet need not be trained."""
    arch: Text = "largest"
    """JSON, a file with it, a key, front:3 for the third of the search's front, "largest" or "smallest"."""
    search: Name = "detnas"
    """Name of the search that --arch front:N refers to."""
    seeds: Count = 3
    """Trainings."""
    threads: Threads = 1
    """Threads of torch."""


def run() -> None:
    """Trains what is missing, scores and prints."""
    args = parse(LevelNormsCompared, __doc__)
    import torch

    from supernet_tools.pipeline.architectures import named_arch
    from supernet_tools.pipeline.retrain import retrain_stage, trained_network
    from supernet_tools.pipeline.runs import open_run

    torch.set_num_threads(args.threads)
    opened = open_run(args.run, trained=False)
    if opened.kind.metric != "map":
        raise InputError(f"{args.run} is the run of a classifier, which has no pyramid")
    arch = named_arch(opened, args.arch, args.search)
    rows: list[tuple[object, ...]] = []
    gains: dict[str, list[float]] = {name: [] for name in METRICS}
    for seed in range(args.seeds):
        retrain_stage(opened, arch, dataclasses.replace(opened.config.retrain, seed=seed))
        network = trained_network(opened, arch, seed)
        device = opened.config.retrain.device
        own = opened.kind.figures(network, opened.data, device)
        shared = opened.kind.figures(one_statistic(network), opened.data, device)
        for name, values in gains.items():
            values.append(own[name] - shared[name])
        rows.append((seed, *(f"{figures[name]:.3f}" for figures in (shared, own) for name in METRICS)))
    titles = [f"{title}, {kind}" for kind in ("one for all levels", "one per level") for title in METRICS.values()]
    print_table(f"{opened.summary.n_test} test images, {args.seeds} trainings", ("seed", *titles), rows)
    for name, title in METRICS.items():
        print(f"{title}, one norm per level minus one for all: {format_mean(gains[name], 3)}")


def one_statistic(network: "nn.Module") -> "nn.Module":
    """Returns a copy whose `LevelNorms` have the statistics that one norm for all levels would have.

    Such a norm meets the levels in turn in every step and moves its averages by `momentum` each time, so the share of a
    level is `(1 - momentum)` to the number of levels after it.

    Raises:
        InputError: the network has no norms per level.
    """
    from detection.pyramid import LevelNorms

    changed = copy.deepcopy(network)
    found = [module for module in changed.modules() if isinstance(module, LevelNorms)]
    if not found:
        raise InputError("the detector has no batch norm per level; take a RetinaNet with norm=batch")
    for norms in found:
        momentum = norms[0].momentum
        assert isinstance(momentum, float)
        kept = [(1 - momentum) ** later for later in reversed(range(len(norms)))]
        for name in ("running_mean", "running_var"):
            statistics = [getattr(norm, name) for norm in norms]
            pooled = sum(share / sum(kept) * values for share, values in zip(kept, statistics, strict=True))
            for values in statistics:
                values.copy_(pooled)
    return changed


if __name__ == "__main__":
    main(run)
