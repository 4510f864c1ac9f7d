"""Are the widths that MorphNet finds better than uniform or random widths of equal cost?

    python tools/benchmarks/widths.py runs/x --max-macs 5e6

Retrains each network with several seeds and ends with a table of accuracies and one of differences with 95 % intervals.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from supernet.checked import Count, FilePath, Name, Natural, Positive, Seed, Share
from supernet.errors import InputError, RunError
from supernet_tools.pipeline.command_line import main, parse
from supernet_tools.pipeline.tables import mean_and_deviation, print_differences, print_table
from supernet_tools.pipeline.units import Limit

if TYPE_CHECKING:
    from supernet.config import Train
    from supernet.ranking.statistics import Difference
    from supernet.space import Arch
    from supernet_tools.pipeline.run import Run


@dataclass(frozen=True)
class Widths:
    """Retrain width vectors of equal cost by the recipe of the run: MorphNet's, uniformly scaled and random ones.

    All are filled up to the budget in the same way. Finished trainings are kept, so the same command resumes.
    """

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of a trained width supernet and its searches."""
    max_macs: Limit = None
    """Budget of multiply-accumulates …"""
    max_params: Limit = None
    """… or of parameters; the same as in the searches."""
    searches: tuple[Name, ...] = ("morphnet",)
    """Names of searches, whose best networks are compared."""
    random: Natural = 10
    """Random width vectors."""
    spread: Positive = 4.0
    """Each group is scaled by a random factor between 1 / spread and spread before all are scaled to the budget."""
    seeds: Count = 3
    """Trainings per network, with seeds that count up from --seed; the same for all."""
    seed: Seed = 0
    """The first of these seeds; it also draws the random widths."""
    share: Share = 0.01
    """How far below the budget a network may lie, as a share of it."""
    epochs: Count | None = None
    """Overrides the recipe."""
    batch: Count | None = None
    """Overrides the recipe."""
    lr: Positive | None = None
    """Overrides the recipe."""
    name: Name = "widths"
    """Name of the result, RUN/widths/NAME.json."""


def run() -> None:
    """Retrains and compares the networks of all arms, writes the result and prints it."""
    args = parse(Widths, __doc__)
    if (args.max_macs is None) == (args.max_params is None):
        raise InputError("equal cost means one limit: give either --max-macs or --max-params")
    if min(args.random, args.seeds) < 2 or not args.searches:
        raise InputError("a comparison needs --random and --seeds of at least 2, and at least one of --searches")
    if args.spread <= 1 or not 0 < args.share < 1:
        raise InputError(
            f"--spread must be above 1, not {args.spread:g}, and --share between 0 and 1, not {args.share:g}"
        )

    from supernet.files import write_json
    from supernet.paths import inside
    from supernet.train import check_training
    from supernet_tools.pipeline.runs import open_run

    file = inside(args.run, "widths", f"{args.name}.json")
    opened = open_run(args.run)
    changed = {name: value for name in ("epochs", "batch", "lr") if (value := getattr(args, name)) is not None}
    train = dataclasses.replace(opened.config.retrain, **changed)
    check_training(train, opened.data, opened.config.data.augment)
    arms = networks(args, opened)
    results = compared(retrained(args, opened, arms, train))
    document = {
        "format": 1,
        "command": {name: str(value) for name, value in dataclasses.asdict(args).items()},
        "recipe": dataclasses.asdict(train),
        "images": len(opened.data.test),
        **results,
    }
    write_json(file, document)
    show(document)


def networks(args: Widths, opened: "Run") -> "dict[str, list[tuple[str, Arch]]]":
    """Returns `(name, widths)` of every network by arm; all cost at most the limit and at most `share` less.

    Raises:
        InputError: the run has no widths to search, or the best network of a search is not within that range.
    """
    from searchers.morphnet.resources import equal_widths, random_widths
    from supernet.seeding import generator
    from supernet.spaces.widths import WidthChain
    from supernet_tools.pipeline.search import best_arch

    net = opened.supernet
    if not isinstance(net, WidthChain):
        raise InputError(
            f"{net.space.name!r} has no widths to choose; give the run of a space such as 'resnet-20-widths'"
        )
    what, limit = ("macs", args.max_macs) if args.max_macs is not None else ("params", args.max_params)
    assert limit is not None
    layers, space = net.layers(), net.space
    largest = {choice.name: int(choice.options[-1]) for choice in space.choices}
    seed = {name: int(width) for name, width in net.seed.items()}

    def cost(widths: Mapping[str, int]) -> int:
        return sum(layer.macs(widths) if what == "macs" else layer.params(widths) for layer in layers)

    arms = {"morphnet": [(name, best_arch(opened, name)) for name in args.searches]}
    for name, arch in arms["morphnet"]:
        if not (1 - args.share) * limit <= (spent := cost({k: int(v) for k, v in arch.items()})) <= limit:
            raise InputError(
                f"the best of search {name!r} has {spent:,} {what}, which is not within {args.share:.0%} "
                f"below {limit:,.0f}; search with this limit and fill={args.share:g}"
            )
    settings: dict[str, Any] = {"limit": limit, "share": args.share}
    arms["uniform"] = [("uniform", space.canonical(equal_widths(seed, largest, cost, **settings)))]
    random_arms = [
        random_widths(generator(args.seed, "widths", n), seed, largest, cost, spread=args.spread, **settings)
        for n in range(args.random)
    ]
    arms["random"] = [(f"random {n}", space.canonical(widths)) for n, widths in enumerate(random_arms)]
    return arms


def retrained(
    args: Widths, opened: "Run", arms: "Mapping[str, Sequence[tuple[str, Arch]]]", train: "Train"
) -> list[dict[str, Any]]:
    """Returns a row per network with its test accuracy per seed, None for a failed training."""
    from supernet.progress import progress
    from supernet_tools.pipeline.retrain import retrain_stage

    rows: list[dict[str, Any]] = [
        {"arm": arm, "name": name, "arch": dict(arch), "key": arch.key, **opened.cost(arch), "accuracy": []}
        for arm, members in arms.items()
        for name, arch in members
    ]
    archs = [arch for members in arms.values() for _, arch in members]
    with progress("retraining", len(archs) * args.seeds) as update:
        for number in range(args.seeds):
            config = dataclasses.replace(train, seed=args.seed + number)
            for index, (row, arch) in enumerate(zip(rows, archs, strict=True)):
                try:
                    row["accuracy"].append(retrain_stage(opened, arch, config, verbose=False)["test_accuracy"])
                except RunError:
                    row["accuracy"].append(None)
                update(number * len(archs) + index + 1, row["name"])
    return rows


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows and MorphNet's difference to the other arms: paired by seed, and by network (Welch).

    Over seeds: do these networks differ? Over networks: are MorphNet's widths better in general? A network with a
    failed training is left out.

    Raises:
        RunError: every network of an arm has a failed training.
    """
    from supernet.ranking.statistics import paired, welch

    kept = {
        arm: [row["accuracy"] for row in rows if row["arm"] == arm and None not in row["accuracy"]]
        for arm in ("morphnet", "uniform", "random")
    }
    if empty := [arm for arm, runs in kept.items() if not runs]:
        raise RunError(f"every network of {', '.join(empty)} has a failed training; a lower --lr may help")
    by_seed = {arm: [statistics.fmean(seed) for seed in zip(*runs, strict=True)] for arm, runs in kept.items()}
    by_network = {arm: [statistics.fmean(seeds) for seeds in runs] for arm, runs in kept.items()}
    differences: dict[str, Difference] = {}
    for arm in ("uniform", "random"):
        differences[f"morphnet less {arm}, by seed"] = paired(by_seed["morphnet"], by_seed[arm])
    differences["morphnet less random, by network"] = welch(by_network["morphnet"], by_network["random"])
    return {"networks": rows, "differences": {name: dataclasses.asdict(value) for name, value in differences.items()}}


def show(document: dict[str, Any]) -> None:
    """Prints networks, arms and differences."""
    rows, arms = [], dict[str, list[float]]()
    for row in document["networks"]:
        known = [value for value in row["accuracy"] if value is not None]
        arms.setdefault(row["arm"], []).extend(known)
        by_seed = ", ".join("failed" if value is None else f"{value:.4f}" for value in row["accuracy"])
        rows.append((row["name"], row["macs"], row["params"], by_seed, mean_and_deviation(known)))
    rows += [(f"all of {arm}", "", "", f"n = {len(known)}", mean_and_deviation(known)) for arm, known in arms.items()]
    title = f"accuracy on {document['images']:,} test images, a column per seed"
    print_table(title, ("widths", "macs", "params", "accuracy", "mean ± s.d."), rows)
    print_differences(document["differences"])


if __name__ == "__main__":
    main(run)
