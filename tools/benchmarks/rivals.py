"""Is a front of shared weights better than the usual ways to a smaller network, for the same compute?

    python tools/benchmarks/rivals.py runs/full runs/shared --limits 49M 35M 25M

The first run trained the full network alone, and the second began with it and trained the shared weights. Within
every limit on MACs the best network of a search of the second, with inherited weights, is compared with four rivals
on the test split:

- depth: the full network without the last blocks of every stage, as few as the limit needs; at a smaller resolution
  where even the shallowest network is too large;
- resolution: the full network on smaller images;
- pruned: the full network with channels removed by Torch-Pruning's group L1 norm (needs `pip install torch-pruning`);
- scratch: the architecture of the front with fresh weights.

Equal compute: the training of the second run counts the multiply-accumulates of all its forward passes, and of a
backward pass twice those of its forward pass. Each rival trains one network per limit with an equal share of that, by
the recipe of the run and with the same teacher; "scratch" has the compute of the first run as well, and no teacher.
Epochs are rounded up, in favour of the rivals. Finished networks are kept below RUN/rivals, and an interrupted
training goes on.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from supernet.errors import InputError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import print_table

if TYPE_CHECKING:
    from torch import nn

    from supernet.chain import Chain
    from supernet.config import Train
    from supernet.space import Arch
    from supernet_tools.pipeline.classifier import ClassifierKind
    from supernet_tools.pipeline.run import Run

Rival = Literal["depth", "resolution", "pruned", "scratch"]
FRONT = "front"
FORMAT = 1
BACKWARD = 2
"""MACs of a backward pass, in forward passes."""
PRUNED, STEPS = 0.9, 90
"""The largest share of channels that is pruned, and in how many steps."""


@dataclass(frozen=True)
class Rivals:
    """Compare networks of a front with rivals of at most the same MACs, trained with the same compute."""

    full: Annotated[Path, tyro.conf.Positional]
    """Folder of the run that trained the full network alone."""
    shared: Annotated[Path, tyro.conf.Positional]
    """Folder of the run that began with it; while it is not searched, only the rivals but "scratch" are trained."""
    limits: tuple[str, ...] = ()
    """Limits on MACs, such as 49M 35M."""
    search: str = "nsga2"
    """Name of the search of the shared run whose best networks within the limits are compared."""
    rivals: tuple[Rival, ...] = get_args(Rival)
    """Which rivals are trained."""
    scratch_lr: float = 0.003
    """Learning rate of fresh weights; that of trained ones is the recipe's."""
    share: float = 1.0
    """Train with this share of the equal compute, for a quick look."""


def run() -> None:
    """Trains what is missing, and prints a table of accuracies and one of paired differences."""
    args = parse(Rivals, __doc__)
    if not args.limits or not 0 < args.share <= 1 or args.scratch_lr <= 0:
        raise InputError("give at least one of --limits, a --share above 0 and up to 1, and a positive --scratch-lr")

    from supernet_tools.pipeline.front import parse_limit
    from supernet_tools.pipeline.runs import open_run

    limits = {text: parse_limit(text, "macs") for text in args.limits}
    full, shared = open_run(args.full), open_run(args.shared, trained=False)
    check_pair(full, shared)
    if "pruned" in args.rivals:
        import_pruning()
        if patch_of(full.supernet) is not None:
            raise InputError("the rival 'pruned' is for convolutional networks alone; leave it out of --rivals")
    rows = compared(args, full, shared, limits)
    show(rows, images=shared.summary.n_test)


def check_pair(full: "Run", shared: "Run") -> None:
    """Raises `InputError` unless both are runs of one elastic network on the same images."""
    settings = [classifier(run).space_settings().get("model") for run in (full, shared)]
    if settings[0] != settings[1] or full.summary.digest != shared.summary.digest:
        raise InputError(
            f"{full.folder} ({settings[0]}) and {shared.folder} ({settings[1]}) should share network and images"
        )


def classifier(run: "Run") -> "ClassifierKind":
    """Returns what kind of run it is. Raises `InputError` if it is not one of a classifier over the space "elastic"."""
    from supernet_tools.pipeline.classifier import ClassifierKind

    if not isinstance(run.kind, ClassifierKind) or run.kind.space != "elastic":
        raise InputError(f"{run.folder} is not the run of a classifier over the space 'elastic'")
    return run.kind


def import_pruning() -> Any:
    """Returns the package torch_pruning. Raises `InputError` if it is not installed."""
    try:
        import torch_pruning  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise InputError(
            "the rival 'pruned' needs the package torch-pruning: pip install torch-pruning, or leave it out of --rivals"
        ) from None
    return torch_pruning


def training_compute(run: "Run") -> float:
    """Returns the MACs of a run's training, all images of all steps together."""
    from supernet.chain import largest
    from supernet.training.state import steps_per_epoch
    from supernet_tools.pipeline.config import SupernetRun
    from supernet_tools.pipeline.train import prepare

    train, sampler = run.config.train, prepare(run.kind, run.folder / "images").sampler
    costs: dict[Arch, float] = {}
    taught = isinstance(run.config, SupernetRun) and run.config.teacher != "none"
    teacher = run.cost(largest(run.space))["macs"] if taught else 0.0
    total = 0.0
    for step in range(train.epochs * steps_per_epoch(run.data, train)):
        for arch in sampler(step):
            if arch not in costs:
                costs[arch] = run.cost(arch)["macs"]
            total += (1 + BACKWARD) * costs[arch] * train.batch
        total += teacher * train.batch
    return total


def compared(args: Rivals, full: "Run", shared: "Run", limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns a row per network: limit, rival, what it is, MACs, epochs and which test images it gets right."""
    compute = training_compute(shared) * args.share / len(limits)
    before = training_compute(full) * args.share / len(limits) if "scratch" in args.rivals else 0.0
    rows = front(args, shared)
    if not rows:
        print(
            f"{shared.folder} has no search {args.search!r} yet: nothing is compared, and scratch is left out",
            flush=True,
        )
    for rival in (rival for rival in args.rivals if rows or rival != "scratch"):
        for text, limit in limits.items():
            budget = compute + (before if rival == "scratch" else 0.0)
            row = trained(args, rival, text, limit, budget, full, shared)
            rows += [row] if row else []
    return rows


def front(args: Rivals, shared: "Run") -> list[dict[str, Any]]:
    """Returns the rows of the front's networks; none before the search has ended."""
    from supernet_tools.pipeline.front import chosen_points
    from supernet_tools.pipeline.retrain import trained_network
    from supernet_tools.pipeline.search import FRONT as ENDED
    from supernet_tools.pipeline.search import search_folder

    if not (search_folder(shared.folder, args.search) / ENDED).exists():
        return []
    rows = []
    for point in chosen_points(shared, args.search, args.limits):
        correct = answers(trained_network(shared, point.arch, 0, inherit=True), shared)
        row = {"rival": FRONT, "what": point.arch.key, "macs": shared.cost(point.arch)["macs"], "epochs": 0}
        rows += [{**row, "limit": text, "correct": correct} for text in point.limits]
    return rows


def trained(
    args: Rivals, rival: Rival, text: str, limit: float, budget: float, full: "Run", shared: "Run"
) -> dict[str, Any] | None:
    """Returns the row of a rival within a limit, which is trained unless it was; None if there is none so small."""
    from supernet.cost import count
    from supernet.files import read_json, write_json
    from supernet.scoring.batch_norm import recalibrate_bn
    from supernet.train import train_standalone
    from supernet_tools.pipeline.start import calibration_batches, frozen_teacher

    network, what = create(args, rival, text, limit, full, shared)
    if network is None:
        return None
    shape = (shared.summary.in_channels, shared.summary.size, shared.summary.size)
    macs = count(network, shape)["macs"]
    config, data = shared.config, shared.data
    teacher = frozen_teacher(full.supernet) if rival != "scratch" and config.teacher != "none" else None
    per_image = (1 + BACKWARD) * macs + (count(teacher, shape)["macs"] if teacher is not None else 0)
    epochs = max(1, math.ceil(budget / (per_image * len(data.train))))
    fresh = {"lr": args.scratch_lr, "layer_decay": 1.0} if rival == "scratch" else {}
    train: Train = dataclasses.replace(config.train, epochs=epochs, patience=0, **fresh)
    folder = shared.folder / "rivals" / f"{rival}-{text}-{epochs}-{config.train.lr:g}"
    if rival == "scratch":
        folder = folder.with_name(f"{rival}-{text}-{epochs}-{args.scratch_lr:g}-{what}")
    result = folder / "result.json"
    if result.exists():
        return dict(read_json(result))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{rival} within {text}: {what}, {macs:,} MACs, {epochs} epochs", flush=True)
    task = dataclasses.replace(classifier(shared).task, teacher=teacher, teacher_weight=config.teacher_weight)
    train_standalone(network, data, train, task=task, state=folder / "state.pt")
    recalibrate_bn(network, calibration_batches(data))
    row = {
        "format": FORMAT,
        "rival": rival,
        "limit": text,
        "what": what,
        "macs": macs,
        "epochs": epochs,
        "correct": answers(network, shared),
    }
    write_json(result, row)
    return row


def answers(network: "nn.Module", run: "Run") -> str:
    """Returns 1 for every test image that a network in eval mode gets right, and 0 for the others."""
    import torch

    network.eval()
    with torch.inference_mode():
        right = torch.cat([network(x).argmax(1) == y for x, y in run.data.test.batches(64)])
    return "".join("1" if value else "0" for value in right.tolist())


# -- the rivals -------------------------------------------------------------------------------------------------------


def create(
    args: Rivals, rival: Rival, text: str, limit: float, full: "Run", shared: "Run"
) -> "tuple[nn.Module | None, str]":
    """Returns the network of a rival before its training and what it is; None where no network is so small."""
    if rival == "scratch":
        from supernet_tools.pipeline.front import chosen_points
        from supernet_tools.pipeline.retrain import fresh_network

        (point,) = chosen_points(shared, args.search, [text])
        return fresh_network(shared, point.arch, shared.config.train.seed), point.arch.key
    if rival == "pruned":
        return pruned(full, limit)
    chain = cuts(full)
    arch, what = (shallower if rival == "depth" else smaller)(chain, limit)
    return (None, "") if arch is None else (inherited(chain, arch, full), what)


def cuts(full: "Run") -> "Chain":
    """Returns a supernet of the same network in which only depth and resolution can be cut, each as far as possible."""
    from supernet.spaces import create_supernet

    patch = patch_of(full.supernet)
    step, least = (patch, 2 * patch) if patch is not None else (4, 32)
    settings = {
        **classifier(full).builder_arguments(full.summary),
        "kernels": (),
        "expansions": (),
        "shares": (),
        "drop": 100,
        "resolutions": tuple(range(least, full.summary.size, step)),
    }
    return create_supernet("elastic", **settings)


def patch_of(chain: "Chain") -> int | None:
    """Returns the side of a transformer's patches in pixels; None for a convolutional network."""
    from supernet.blocks.transformer import PatchTokens

    return next((module.patch for module in chain.modules() if isinstance(module, PatchTokens)), None)


def smaller(chain: "Chain", limit: float, depth: "Arch | None" = None) -> "tuple[Arch | None, str]":
    """Returns the architecture at the largest resolution within a limit, the full one by default, and that size."""
    from supernet.chain import largest
    from supernet.cost import CostTable

    table, start = CostTable(chain), depth or largest(chain.space)
    sizes = [choice.options for choice in chain.space.choices if choice.name == "input.resolution"]
    for size in reversed(sizes[0] if sizes else ()):
        arch = chain.space.canonical({**start, "input.resolution": size})
        if table(arch)["macs"] <= limit:
            return arch, f"{size} pixels"
    return None, ""


def shallower(chain: "Chain", limit: float) -> "tuple[Arch | None, str]":
    """Returns the architecture with as few blocks dropped per stage as a limit needs, and how many those are."""
    from supernet.chain import largest
    from supernet.cost import CostTable

    table, full = CostTable(chain), largest(chain.space)
    depths = [choice for choice in chain.space.choices if choice.name.endswith("depth")]
    arch = full
    for dropped in range(1, max((len(choice.options) for choice in depths), default=1)):
        depth = {choice.name: choice.options[max(-1 - dropped, -len(choice.options))] for choice in depths}
        arch = chain.space.canonical({**full, **depth})
        if table(arch)["macs"] <= limit:
            return arch, f"depth -{dropped}"
    cut, size = smaller(chain, limit, arch)
    return cut, f"fewest blocks at {size}" if cut is not None else ""


def inherited(chain: "Chain", arch: "Arch", full: "Run") -> "nn.Module":
    """Returns the network of an architecture with the weights of the full network; it must only leave blocks out."""
    from supernet.chain import largest

    network, theirs = chain.subnet(arch), full.supernet.subnet(largest(full.space)).state_dict()
    network.load_state_dict({name: theirs[name] for name in network.state_dict()})
    return network


def pruned(full: "Run", limit: float) -> "tuple[nn.Module | None, str]":
    """Returns the full network with the channels of smallest group L1 norm removed until it is within a limit."""
    import torch
    from torch import nn

    from supernet.chain import largest
    from supernet.cost import count

    pruning = import_pruning()
    network = full.supernet.subnet(largest(full.space)).eval()
    shape = (full.summary.in_channels, full.summary.size, full.summary.size)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = pruning.pruner.BasePruner(
        network,
        torch.zeros(1, *shape),
        importance=pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=PRUNED,
        iterative_steps=STEPS,
        ignored_layers=[last],
        round_to=8,
    )
    for step in range(1, STEPS + 1):
        pruner.step()
        if count(network, shape)["macs"] <= limit:
            return network, f"{step * PRUNED / STEPS:.0%} of the channels removed"
    return None, ""


# -- the tables -------------------------------------------------------------------------------------------------------


def show(rows: Sequence[Mapping[str, Any]], *, images: int) -> None:
    """Prints all networks, and per limit the differences of every rival from the front on the same images."""
    fronts = {row["limit"]: row for row in rows if row["rival"] == FRONT}
    lines = []
    for row in sorted(rows, key=lambda row: -max(other["macs"] for other in rows if other["limit"] == row["limit"])):
        share = row["correct"].count("1") / len(row["correct"])
        compared = row["rival"] != FRONT and row["limit"] in fronts
        against = difference(row, fronts[row["limit"]]) if compared else ("", "", "")
        lines.append((row["limit"], row["rival"], row["what"], f"{row['macs']:,.0f}", row["epochs"], share, *against))
    head = ("limit", "network", "which", "MACs", "epochs", "accuracy", "minus front", "95 %", "McNemar's p")
    print_table(f"{images} test images, each limit's networks with equal compute", head, lines)


def difference(row: Mapping[str, Any], front: Mapping[str, Any]) -> tuple[str, str, str]:
    """The difference of two accuracies on the same images, its 95 % interval, and McNemar's exact p-value."""
    from scipy.stats import binomtest

    from supernet.ranking.statistics import paired

    mine, theirs = ([int(bit) for bit in one["correct"]] for one in (row, front))
    mean = paired(mine, theirs).mean
    won = sum(a > b for a, b in zip(mine, theirs, strict=True))
    lost = sum(a < b for a, b in zip(mine, theirs, strict=True))
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return f"{mean.value:+.3f}", f"{mean.low:+.3f} to {mean.high:+.3f}", f"{p:.3f}"


if __name__ == "__main__":
    main(run)
