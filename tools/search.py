"""Search a trained supernet: python tools/search.py runs/x --searcher aging-evolution --trials 200 --max-macs 1.4e6"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from annotated_types import Ge, Le

from supernet.checked import Count, FilePath, Name, Natural, NonNegative, Seed, Text
from supernet.errors import InputError
from supernet_tools.pipeline.command_line import Flags, calibration_unused, closing, command, main, parse
from supernet_tools.pipeline.config import BatchNorm
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.tables import print_table
from supernet_tools.pipeline.trust import Trust
from supernet_tools.pipeline.units import Limit, TimeLimit
from supernet_tools.pipeline.workers import workers


@dataclass(frozen=True)
class Search(Flags):
    """Search a trained supernet. A search of the same name goes on where it ended."""

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the trained supernet."""
    searcher: Text = "aging-evolution"
    """random, aging-evolution, top-k-evolution, detnas or spos (its published settings), local-search, predictor,
    nsga2, reinforce, enas (its published settings), pnas, or optuna. The settings of aging-evolution, nsga2, reinforce
    and pnas suit the budget; reinforce:published, for instance, keeps those of its paper."""
    name: Name | None = None
    """Name of the search, a folder below RUN/search/; that of the searcher by default, with - for a colon."""
    trials: Count = 200
    """Ends the search after this many trials, repeats included."""
    evaluations: Count | None = None
    """Ends the search after this many distinct networks have been scored."""
    batch: Annotated[int, Ge(1), Le(100_000)] = 1
    """Architectures proposed at a time."""
    workers: Annotated[int, Ge(1), Le(1024)] = 1
    """Processes on this machine that score the architectures of a batch; the study is the same for any number."""
    seed: Seed = 0
    """Seed of the searcher."""
    max_macs: Limit = None
    """Limit on multiply-accumulates, such as 5M."""
    max_params: Limit = None
    """Limit on parameters, such as 200k."""
    max_backbone_macs: Limit = None
    """Limit on multiply-accumulates of a detector's backbone at 224 pixels."""
    max_latency: TimeLimit = None
    """Limit on measured latency of a forward pass: 5ms, or 5 for milliseconds."""
    latency_batch: Annotated[int, Ge(1), Le(100_000)] = 1
    """Images per timed forward pass."""
    bn_batches: Count = 10
    """Calibration batches per candidate: of 64 images, or of `scoring_batch` for a detector."""
    bn: BatchNorm | None = None
    """Batch norm of shared weights instead of the run's: "plain", "matched" or "keep"; see its recipe."""
    bn_settle: NonNegative = 0.0
    """End the calibration of a batch norm after a batch that moves its statistics by less than this, in standard
    deviations, such as 0.02; 0 uses all calibration batches. Classifiers only."""
    scoring_dtype: Literal["fp32", "bf16", "auto"] = "fp32"
    """The type in which the networks of a classifier are scored. "auto" is bfloat16 if a probe on this machine finds it
    faster with the same ranking of random networks."""
    race_top: Natural = 0
    """Score on all validation images only networks that may be among this many best of their batch; others stop after a
    quarter of the images, once this many are significantly better. 0 scores all exactly. The metric `part` is the share
    of the images behind a score."""
    resume: Literal["exact", "warm"] = "exact"
    """Go on with a search of this name only under the same settings ("exact"), or report its recorded trials to this
    searcher ("warm")."""
    settings: tuple[str, ...] = ()
    """Hyperparameters of the searcher, e.g. population_size=50 tournament_size=10."""
    extrapolate: bool = False
    """Maximise the loss extrapolated to a longer training: large networks learn longest, and how fast their advantage
    grew while the supernet was trained is added to the scores (docs/fidelity.md)."""
    force: bool = False
    """Search although the supernet is no better than guessing."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """How a latency is measured that nothing limits, and batch norm calibrated that is kept."""
        if self.max_latency is None:
            yield "latency_batch", "without --max-latency"
        yield from calibration_unused(self.bn, "bn_batches", "bn_settle")


def run() -> None:
    args = parse(Search, __doc__)
    if args.batch < args.workers:
        raise InputError(
            f"--workers {args.workers} divide the architectures of a batch, and --batch is {args.batch}; raise it, to "
            f"{4 * args.workers} for instance"
        )
    if args.race_top and (args.workers > 1 or args.batch <= args.race_top):
        raise InputError(
            f"--race-top {args.race_top} compares the networks of a batch in one process: give a --batch above it (now "
            f"{args.batch}) and --workers 1"
        )
    with workers(args.workers):
        search(args)


def search(args: Search) -> None:
    """Searches, as one of several processes or alone."""
    from supernet.scoring.racing import Race
    from supernet.training.distributed import process_group
    from supernet_tools.pipeline.growth import EXTRAPOLATED, extrapolator
    from supernet_tools.pipeline.learned import check_learned
    from supernet_tools.pipeline.runs import config_of, open_run
    from supernet_tools.pipeline.scoring_dtype import scored_in_bf16
    from supernet_tools.pipeline.search import create_searcher, recorded_dtype, search_folder, search_stage

    name = args.name or args.searcher.replace(":", "-")
    search_folder(args.run, name)  # a wrong name is reported before any work
    with process_group(config_of(args.run, args.data).train.device) as world:
        opened = open_run(args.run, bn=args.bn, moved=args.data)
        limits = {"macs": args.max_macs, "params": args.max_params, "backbone_macs": args.max_backbone_macs}
        if args.max_latency is not None and world.main:
            opened = opened.with_latency(args.latency_batch)
            limits["latency_ms"] = args.max_latency
        feasible = opened.limits(limits)
        adjust = extrapolator(opened) if args.extrapolate else None
        searcher = create_searcher(
            args.searcher,
            opened,
            feasible,
            args.seed,
            args.settings,
            metric=EXTRAPOLATED if args.extrapolate else None,
            evaluations=min(args.trials, args.evaluations or args.trials),
            study=name if args.resume == "exact" else None,
        )
        if opened.kind.metric != "accuracy":
            args.refuse("scoring_dtype", "race_top", "bn_settle", reason="for a detector, which is scored exactly")
        check_learned(opened, force=args.force)
        bf16 = scored_in_bf16(opened, args.scoring_dtype, recorded_dtype(opened, name), bn_batches=args.bn_batches)
        result = search_stage(
            opened,
            searcher,
            name,
            trials=args.trials,
            evaluations=args.evaluations,
            batch=args.batch,
            bn_batches=args.bn_batches,
            resume=args.resume,
            adjust=adjust,
            bf16=bf16,
            race=Race(args.race_top) if args.race_top else None,
            settle=args.bn_settle,
            otherwise="give another --name, or --resume warm",
        )
    if not world.main:
        return
    show(name, result)
    folder = search_folder(args.run, name)
    closing(
        [folder / "best.json", folder / "front.json"],
        command("select", args.run, "--search", name),
        command("retrain", args.run, "--search", name),
        command("retrain", args.run, "--search", name, "--arch", f"front:{min(3, len(result['front']))}"),
    )


def show(name: str, result: Mapping[str, Any]) -> None:
    """Prints the summary of a search, its Pareto front and, on a line of its own, the best architecture."""
    from supernet.space import Arch

    result = dict(result)
    cheapest, front = result.pop("cheapest_tied", None), result.pop("front")
    if cheapest is not None:
        result["cheapest of these, MACs"] = cheapest["macs"]
    labels = {
        "tied": "statistically tied with the best",
        "end_to_end_ms": "ms of the best, timed as a whole",
        "latency_error": "error of latencies, unseen networks",
    }
    rows = [(labels.get(name, name), value) for name, value in result.items() if name != "arch"]
    print_table(f"search {name}", ("what", "value"), rows)
    columns = [name for name in front[0] if name != "arch"]
    lines = [(*(row[name] for name in columns), Arch(row["arch"]).key) for row in front]
    print_table("Pareto front", (*columns, "architecture"), lines)
    print(Arch(result["arch"]).to_json())


if __name__ == "__main__":
    main(run)
