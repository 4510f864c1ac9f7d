"""Do shared weights learn as much as a path alone would in the same number of steps?

    python tools/benchmarks/alone.py runs/x runs/y --paths 3

A path shares its steps with all others, so a supernet that learns badly may just have trained too short. For random
paths of trained runs this counts in how many steps of the training each of their weights was used, trains the same path
alone for the mean of these numbers by the recipe of the supernet, and compares the accuracies on the search-validation
split.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from supernet.checked import Count, FilePath, Natural
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust
from supernet_tools.pipeline.trust import trust as trust_code

if TYPE_CHECKING:
    from torch import nn

    from supernet.chain import Chain
    from supernet.config import Train
    from supernet.space import Arch
    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class Alone:
    """Compare random paths of trained supernets with the same paths trained alone for as many steps."""

    runs: Annotated[tuple[FilePath, ...], tyro.conf.Positional]
    """Folders of trained supernets."""
    paths: Natural = 3
    """Random architectures per run."""
    bn_batches: Count = 10
    """Calibration batches of 64 images."""
    trust: Trust = ()
    """Code from outside this project that the runs name and that may run, as package.module:function."""


class Compared(NamedTuple):
    """A path with shared weights and alone."""

    arch: "Arch"
    macs: float
    steps: float
    """Steps of the supernet's training in which its weights were used, a mean over the weights."""
    shared: float
    alone: float


def own_steps(supernet: "Chain", drawn: Sequence[Sequence["Arch"]], archs: Sequence["Arch"]) -> list[float]:
    """Returns in how many steps of a training the weights of architectures were used, means over the weights.

    Args:
        supernet: whose weights are shared; only the shapes of its parameters are read.
        drawn: the architectures of each step.
        archs: the architectures to count for.
    """
    import torch

    from supernet.chain import PartsMemo

    parts = PartsMemo(supernet)
    uses = {parameter: torch.zeros(parameter.shape, dtype=torch.int32) for parameter in supernet.parameters()}
    for step in drawn:
        used: dict[nn.Parameter, dict[str, tuple[slice, ...]]] = {}
        for arch in step:
            for parameter, index in parts(arch):
                used.setdefault(parameter, {})[str(index)] = index  # slices cannot be hashed
        for parameter, indices in used.items():
            if len(indices) == 1:
                uses[parameter][next(iter(indices.values()))] += 1
            else:  # slices of several architectures overlap, and a step counts once
                mask = torch.zeros(parameter.shape, dtype=torch.bool)
                for index in indices.values():
                    mask[index] = True
                uses[parameter] += mask
    means = []
    for arch in archs:
        counts = [uses[parameter][index] for parameter, index in parts(arch)]
        means.append(float(sum(int(count.sum()) for count in counts)) / sum(count.numel() for count in counts))
    return means


def compare(run: "Run", paths: int, bn_batches: int) -> list[Compared]:
    """Scores random paths of a run with shared weights, and after training them alone for as many steps."""
    from supernet.seeding import generator
    from supernet.training.state import steps_per_epoch
    from supernet_tools.pipeline.train import prepare

    config = run.config
    run.check_trained()
    space, rng = run.space, generator(config.train.seed, "paths alone")
    archs = [space.normal_form(space.sample(rng)) for _ in range(paths)]
    total = config.train.epochs * steps_per_epoch(run.data, config.train)
    prepared = prepare(run.kind)
    sampler, lead = prepared.sampler, prepared.lead.steps if prepared.lead else 0
    drawn = [sampler(step) for step in range(lead, total)]
    # After a lead all weights are copies of those that it trained.
    steps = [lead + used for used in own_steps(run.supernet, drawn, archs)]
    evaluate = run.shared_weights(bn_batches=bn_batches, costs=False)
    shared = [scores[run.kind.metric] for scores in evaluate(archs)]
    return [
        Compared(arch, run.cost(arch)["macs"], own, score, _alone(run, arch, config.train, own))
        for arch, own, score in zip(archs, steps, shared, strict=True)
    ]


def _alone(run: "Run", arch: "Arch", train: "Train", steps: float) -> float:
    """The validation metric of a path after training it alone for `steps`, in whole passes if more than one."""
    import torch

    from supernet.seeding import derive_seed
    from supernet.train import train_standalone
    from supernet.training.state import steps_per_epoch
    from supernet_tools.pipeline.retrain import fresh_network

    kind, data = run.kind, run.data
    passes = steps / steps_per_epoch(data, train)
    epochs = max(round(passes), 1)
    if passes < 1:
        images = max(round(steps), 1) * train.batch
        order = torch.Generator().manual_seed(derive_seed(train.seed, "images of a path alone"))
        data = dataclasses.replace(
            data, train=data.train.subset(torch.randperm(len(data.train), generator=order)[:images])
        )
    short = dataclasses.replace(
        train, epochs=epochs, warmup_epochs=epochs * train.warmup_epochs / max(train.epochs, 1), patience=0
    )
    network = fresh_network(run, arch, train.seed)
    kind.prepare(network, arch, train.seed)
    train_standalone(network, data, short, task=kind.task, verbose=False)
    return float(kind.scores(network.eval(), run.data.validation.to(train.device))[kind.metric])


def run() -> None:
    """Compares random paths with shared weights and alone, and prints the ratio of the means for every run last."""
    args = parse(Alone, __doc__)
    if args.paths < 1 or not args.runs:
        raise InputError(f"paths={args.paths} and {len(args.runs)} runs compare nothing; give at least one of each")

    from supernet_tools.pipeline.runs import open_run

    trust_code(args.trust)
    summary: list[tuple[Any, ...]] = []
    for folder in args.runs:
        opened = open_run(folder)
        rows = compare(opened, args.paths, args.bn_batches)
        train = opened.config.train
        title = f"{folder} ({opened.space.name}), {train.optimizer} {train.lr:g}, {opened.config.sampler}"
        images = f"{len(opened.data.validation):,} images of the search-validation split"
        print_table(
            f"{title}: {opened.kind.metric} on {images}",
            ("path", "M MACs", "own steps", "shared", "alone", "ratio"),
            [
                (i, f"{row.macs / 1e6:.2f}", f"{row.steps:.0f}", f"{row.shared:.3f}", f"{row.alone:.3f}", _ratio([row]))
                for i, row in enumerate(rows)
            ],
        )
        means = (statistics.fmean(row.shared for row in rows), statistics.fmean(row.alone for row in rows))
        summary.append((str(folder), opened.space.name, *(f"{mean:.3f}" for mean in means), _ratio(rows)))
    print_table(f"means over {args.paths} paths each", ("run", "space", "shared", "alone", "ratio"), summary)


def _ratio(rows: Sequence[Compared]) -> str:
    alone = sum(row.alone for row in rows)
    return f"{sum(row.shared for row in rows) / alone:.2f}" if alone > 0 and math.isfinite(alone) else "-"


if __name__ == "__main__":
    main(run)
