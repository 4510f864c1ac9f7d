"""Choose the network to deploy by stand-alone trainings: python tools/select_network.py runs/x --trainings 20"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from supernet.checked import Count, FilePath, Name, Natural, Positive, Seed
from supernet_tools.pipeline.command_line import Flags, closing, command, main, parse
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust
from supernet_tools.pipeline.units import Amount, Limit, cost_in_units


@dataclass(frozen=True)
class Select(Flags):
    """Race the best networks of searches against simple and random ones, all trained by the recipe of the run.

    A race that was stopped goes on where it ended. Under torchrun each process trains networks of its own.
    """

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    search: tuple[Name, ...] = ("aging-evolution",)
    """Names of the searches whose best networks race."""
    trainings: Positive = 20
    """Ends the race: full trainings, of which a training to a quarter of its epochs is a quarter; at least 2."""
    minutes: Positive | None = None
    """Ends the race: after this many minutes of training no other training begins."""
    seeds: Count = 3
    """Most trainings of a network, with the same seeds for all."""
    shares: tuple[float, ...] = ()
    """At these shares of the epochs only the better half goes on; 0.25 by default for four epochs or more."""
    random: Natural = 2
    """Random networks in the race."""
    init: Literal["scratch", "shared"] = "scratch"
    """Start from fresh weights (a detector's backbone as the recipe's `start` says), or fine-tune the shared ones."""
    seed: Seed = 0
    """Seed of the first training of each network."""
    epochs: Count | None = None
    """Epochs instead of the recipe's."""
    lr: Positive | None = None
    """Learning rate instead of the recipe's."""
    max_macs: tuple[Amount, ...] = ()
    """Limit on multiply-accumulates, such as 5M; that of the searches by default, as for all limits. Several give one
    race each, and no network is trained twice for them."""
    max_params: Limit = None
    """Limit on parameters, such as 200k."""
    max_backbone_macs: Limit = None
    """Limit on multiply-accumulates of a detector's backbone at 224 pixels."""
    bn_batches: Count = 10
    """Calibration batches per network that is scored with shared weights."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A search or a limit twice."""
        for name in ("search", "max_macs"):
            if len(set(values := getattr(self, name))) < len(values):
                yield name, "names one twice; give each once"


def run() -> None:
    args = parse(Select, __doc__)

    from supernet.training.distributed import process_group
    from supernet_tools.pipeline.runs import config_of, open_run
    from supernet_tools.pipeline.select import select_stage, select_under_limits

    changes = {name: value for name in ("epochs", "lr") if (value := getattr(args, name)) is not None}
    with process_group(config_of(args.run, args.data).retrain.device) as world:
        opened = open_run(args.run, moved=args.data)
        count = 0

        def say(job: Any, outcome: Any) -> None:
            nonlocal count
            count += 1
            score = "failed" if outcome.score is None else f"{outcome.score:.4f}"
            print(f"{count:4}  {job.arch.key}  seed {args.seed + job.seed}  {job.share:4.0%}  {score}", flush=True)

        train = dataclasses.replace(opened.config.retrain, seed=args.seed, **changes)
        limits: dict[str, float | None] = {"params": args.max_params, "backbone_macs": args.max_backbone_macs}
        settings: dict[str, Any] = {
            "trainings": args.trainings,
            "minutes": math.inf if args.minutes is None else args.minutes,
            "seeds": args.seeds,
            "shares": args.shares,
            "random": args.random,
            "shared": args.init == "shared",
            "bn_batches": args.bn_batches,
            "on_training": say if world.main else None,
            "verbose": world.main,
        }
        if len(args.max_macs) < 2:
            limits["macs"] = next(iter(args.max_macs), None)
            documents = [select_stage(opened, args.search, train, limits=limits, **settings)]
        else:
            documents = select_under_limits(
                opened, args.search, train, cost="macs", bounds=args.max_macs, limits=limits, **settings
            )
    if not world.main:
        return
    for document in documents:
        show(document)
    if len(documents) > 1:
        show_front(documents)
    if all(choice.name.startswith("neck.") for choice in opened.space.choices) and opened.space.choices:
        compare = f"python tools/benchmarks/detectors.py {args.run} --search {args.search[0]} --fpn"
        print(
            f"an ordinary pyramid is no network of this space and did not race; try it on small sets: {compare}",
            file=sys.stderr,
        )
    winners = dict.fromkeys(document["winner"]["key"] for document in documents)
    finals = ("--init", args.init, "--seed", args.seed)
    exports = [command("export", args.run, "--arch", key, *finals) for key in winners]
    closing([args.run / "select"], *exports, command("report", args.run))


def show(document: dict[str, Any]) -> None:
    """Prints the networks, the winner and the verdict."""
    from supernet.space import Arch

    limits = (
        ", ".join(f"{name} <= {cost_in_units(name, limit)}" for name, limit in document["limits"].items())
        or "no limits"
    )
    rows = [
        (
            row["name"] or row["arm"],
            row["key"],
            row["macs"],
            ", ".join(f"{value:.4f}" for value in row["scores"])
            or ("failed" if row["failed"] else ", ".join(f"{v:.4f} at {s}" for s, v in row["curve"].items())),
        )
        for row in document["networks"]
    ]
    metric = document["metric"].replace("_", " ")
    print_table(f"trained by one recipe, {limits}", ("from", "network", "macs", f"{metric} per seed"), rows)
    test = next(name for name in document if name.startswith("test_"))
    facts = [
        ("winner", document["winner"]["key"]),
        (test.replace("_", " "), ", ".join(f"{value:.4f}" for value in document[test])),
        ("trainings", document["trainings"]),
        ("trainings without halving", document["trainings_without_halving"]),
        ("minutes", document["minutes"]),
        ("ended", document["ended"]),
    ]
    for arm, margin in document["margins"].items():
        ahead = margin["difference"]
        known = ahead["low"] is not None and math.isfinite(ahead["low"])
        interval = f" ({ahead['low']:+.4f} to {ahead['high']:+.4f})" if known else ""
        facts.append((f"ahead of the best of arm {arm!r}", f"{ahead['value']:+.4f}{interval}"))
    print_table("selected", ("what", "value"), facts)
    print(document["verdict"])
    print(Arch(document["winner"]["arch"]).to_json())


def show_front(documents: list[dict[str, Any]]) -> None:
    """Prints the winner under each limit, and what the races have saved by sharing their trainings."""
    rows: list[tuple[object, ...]] = []
    for document in documents:
        winner, limit = document["winner"], document["limits"]["macs"]
        test = next(name for name in document if name.startswith("test_"))
        means = [sum(values) / len(values) for values in (winner["scores"], document[test])]
        paid = "yes" if document["paid"] else "no"
        rows.append((limit, winner["key"], winner["name"] or winner["arm"], winner["macs"], *means, paid))
    metric = documents[0]["metric"].replace("_", " ")
    columns = ("limit", "winner", "from", "macs", metric, metric.replace("validation", "test"), "paid")
    print_table("the winner under each limit", columns, rows)
    alone = sum(document["trainings"] for document in documents)
    print(f"{distinct_trainings(documents):g} trainings for all limits; {alone:g} if no race had used another's")


def distinct_trainings(documents: list[dict[str, Any]]) -> float:
    """Full trainings that races took together; those that several of them used count once."""
    trained: dict[tuple[str, int], float] = {}
    for row in (row for document in documents for row in document["networks"]):
        shares = dict.fromkeys(range(len(row["scores"])), 1.0) or {0: max(map(float, row["curve"]), default=0.0)}
        for seed, share in shares.items():
            trained[row["key"], seed] = max(share, trained.get((row["key"], seed), 0.0))
    return sum(trained.values())


if __name__ == "__main__":
    main(run)
