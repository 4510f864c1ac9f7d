"""Is each detector of a front with inherited weights as good as a training of its own?

    python tools/benchmarks/detector_front.py runs/elastic --limits 300M 240M 200M 160M 130M

The run trained a supernet of detectors once, and a search scored its architectures. The best within every limit is
scored on the test split with inherited weights, and then trained alone by the recipe of the run, from the weights that
the supernet began with. The trainings together have --share times the compute of the supernet's training (the
multiply-accumulates of its forward passes, and twice as many for its backward passes), each an equal part; epochs are
rounded up, in favour of the trainings. They are kept in RUN/alone, and an interrupted comparison goes on.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from supernet.checked import FilePath, Name, Positive, Seed
from supernet.errors import InputError
from supernet.paths import inside
from supernet_tools.benchmarks.rivals import BACKWARD, training_compute
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import mean_and_deviation, print_table

if TYPE_CHECKING:
    from torch import nn

    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class DetectorFront:
    """Compare detectors of a front with trainings of their own."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of a supernet of detectors that was searched."""
    limits: tuple[str, ...] = ()
    """Limits on MACs, such as 300M 200M; the front of the search without any."""
    search: Name = "nsga2"
    """Name of the search."""
    share: Positive = 2.0
    """Compute of all trainings together, in trainings of the supernet."""
    lr: Positive | None = None
    """Learning rate of the trainings instead of the recipe's."""
    seed: Seed = 0
    """Seed of the trainings."""


def run() -> None:
    """Trains what is missing and prints a table."""
    args = parse(DetectorFront, __doc__)

    from supernet_tools.pipeline.front import chosen_points
    from supernet_tools.pipeline.retrain import retrain_stage, trained_network
    from supernet_tools.pipeline.runs import open_run

    opened = open_run(args.run)
    if opened.kind.metric != "map":
        raise InputError(f"{args.run} is the run of a classifier; tools/benchmarks/rivals.py compares its front")
    points = chosen_points(opened, args.search, args.limits)
    budget = args.share * training_compute(opened) / len(points)
    changes = {} if args.lr is None else {"lr": args.lr}
    rows, differences = [], []
    for point in reversed(points):
        epochs = math.ceil(budget / ((1 + BACKWARD) * opened.cost(point.arch)["macs"] * len(opened.data.train)))
        train = dataclasses.replace(opened.config.retrain, seed=args.seed, epochs=epochs, **changes)
        name = f"{point.arch.key}-seed{args.seed}-{epochs}-epochs-{train.lr:g}"  # beside retrainings by the recipe
        alone = retrain_stage(opened, point.arch, train, folder=inside(opened.folder, "alone", name))["test_map"]
        inherited = test_map(opened, trained_network(opened, point.arch, args.seed, inherit=True))
        differences.append(inherited - alone)
        macs = f"{opened.cost(point.arch)['macs']:,.0f}"
        rows.append((" ".join(point.limits), point.arch.key, macs, inherited, epochs, alone, f"{differences[-1]:+.4f}"))
    title = f"{opened.summary.n_test} test images; {len(rows)} trainings of {args.share:g} times the compute of the one"
    print_table(title, ("limit", "network", "MACs", "AP inherited", "epochs", "AP alone", "difference"), rows)
    mean = mean_and_deviation(differences) if len(differences) > 1 else f"{differences[0]:+.4f}"
    print(f"inherited minus alone: {mean}; the least {min(differences):+.4f}")


def test_map(run: "Run", network: "nn.Module") -> float:
    """Returns the mAP of a network on the test split of a run."""
    return run.kind.figures(network, run.data, run.config.retrain.device)["test_map"]


if __name__ == "__main__":
    main(run)
