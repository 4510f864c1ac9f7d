"""From a source of images to an exported network: the stages of `supernet fit`, each an ordinary part of a run."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from supernet.errors import InputError
from supernet.files import flatten, read_json, write_json
from supernet.paths import inside
from supernet.ranking.rivals import evenly_spaced
from supernet.space import Arch
from supernet_tools.pipeline.command_line import command
from supernet_tools.pipeline.config import Recipe, SupernetRun
from supernet_tools.pipeline.derive import population
from supernet_tools.pipeline.export import export_folder, export_stage
from supernet_tools.pipeline.fit_plan import Plan, Say
from supernet_tools.pipeline.folder import FIT_RESULT
from supernet_tools.pipeline.front import chosen_points, front_stage
from supernet_tools.pipeline.learned import check_learned
from supernet_tools.pipeline.recipes import detnas_bccd, spos_images
from supernet_tools.pipeline.retrain import trained_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.search import FRONT, create_searcher, search_stage
from supernet_tools.pipeline.select import choose_stage, select_stage
from supernet_tools.pipeline.train import train_stage
from supernet_tools.pipeline.units import in_units

FORMAT = 2
"""The format of fit-result.json. 2 added the networks of a front."""
SEARCHER = "nsga2"
SEEDS, RANDOM = 2, 1
"""The most trainings of a network in the race, and the number of random networks in it."""


def fit_stage(plan: Plan, out: Path, say: Say, *, verbose: bool = True) -> dict[str, Any]:
    """Trains, searches, races and exports; what is done already is only read.

    Returns:
        the document of `fit-result.json`: winner, verdict, export, parity, and the command of every stage.
    """
    settings, seed = plan.settings, plan.config.train.seed
    say(f"1 of 4: training the supernet, {settings['epochs']} epochs")
    run = train_stage(plan.config, out, verbose=verbose)
    try:
        check_learned(run)
    except InputError as error:
        what = str(error).partition(". Train again")[0]
        raise InputError(f"{what}; allow more --minutes or --epochs, with another --out") from error
    if "latency_ms" in plan.limits:
        run = run.with_latency(1)
    feasible = run.limits(plan.limits)
    say(f"2 of 4: searching, {settings['trials']} candidates; {_range(run, plan.limits)}")
    members = population(settings["trials"])
    searcher = create_searcher(
        SEARCHER,
        run,
        feasible,
        seed,
        (f"population_size={members}",),
        evaluations=settings["trials"],
        study=SEARCHER,
    )
    search_stage(run, searcher, SEARCHER, trials=settings["trials"], batch=members, verbose=verbose)
    shared, inherit = (settings["init"] == name for name in ("shared", "inherit"))
    if inherit:
        say("3 of 4: choosing among the best, simple and random networks by their shared weights")
        race = choose_stage(run, [SEARCHER], random=RANDOM, seed=seed, verbose=verbose)
    else:
        say(f"3 of 4: racing the best, simple and random networks, {settings['trainings']} trainings")
        race = select_stage(
            run,
            [SEARCHER],
            plan.config.retrain,
            trainings=settings["trainings"],
            seeds=SEEDS,
            random=RANDOM,
            shared=shared,
            verbose=False,
            on_training=_progress(say, settings["trainings"]) if verbose else None,
        )
    winner = Arch(race["winner"]["arch"])
    say(f"4 of 4: exporting {winner.key}")
    seed_of_winner = plan.config.retrain.seed
    front = _exported_front(run, settings["front"], verbose=verbose)
    result = out / FIT_RESULT
    if inherit and winner.key in (row["key"] for row in front):  # the same network with the same weights
        folder = inside(run.folder, "export", f"front-{SEARCHER}", winner.key)
        report = read_json(folder / "parity.json")
    else:
        folder = export_folder(run, winner, None)
        parity = folder / "parity.json"
        if parity.exists() and result.exists() and read_json(result).get("winner") == race["winner"]:
            report = read_json(parity)
        else:
            network = trained_network(run, winner, seed_of_winner, inherit=inherit, shared=shared)
            folder, report = export_stage(run, winner, network)
    document = {
        "format": FORMAT,
        "winner": race["winner"],
        "init": settings["init"],
        "verdict": race["verdict"],
        f"test_{run.kind.metric}": race[f"test_{run.kind.metric}"],
        "export": str(folder.relative_to(out)),
        "differences": report["differences"],
        "front": front,
        "commands": commands(plan, out, winner.key),
    }
    write_json(result, document)
    return document


def _exported_front(run: Run, most: int, *, verbose: bool) -> list[dict[str, Any]]:
    """Exports up to `most` networks on the front of the search with the shared weights; a finished front is only read.

    Returns:
        their keys, costs, test accuracies and latencies, cheapest first; nothing where no front is wanted.
    """
    if not most:
        return []
    points = chosen_points(run, SEARCHER)
    chosen = [points[place] for place in evenly_spaced([point.trial.metrics["macs"] for point in points], most)]
    place = inside(run.folder, "export", f"front-{SEARCHER}", FRONT)
    rows = read_json(place)["points"] if place.exists() else []
    if [row["key"] for row in rows] != [point.arch.key for point in chosen]:
        limits = [f"{point.trial.metrics['macs']:.0f}" for point in chosen]
        _, rows = front_stage(run, SEARCHER, limits=limits, verbose=verbose)
    columns = ("key", "macs", "params", f"test_{run.kind.metric}", "artefact_ms", "folder")
    return [{name: row[name] for name in columns} for row in rows]


def _progress(say: Say, trainings: float) -> Callable[[Any, Any], None]:
    """Returns a function that prints each outcome of the race."""
    spent: dict[Any, float] = {}

    def outcome(job: Any, result: Any) -> None:
        spent[job.arch, job.seed] = max(job.share, spent.get((job.arch, job.seed), 0.0))
        score = "failed" if result.score is None else f"{result.score:.4f}"
        say(f"   {sum(spent.values()):5.2f} of {trainings:g} trainings: {job.arch.key} {job.share:4.0%} {score}")

    return outcome


def _range(run: Run, limits: Mapping[str, float]) -> str:
    """What the space spans, in the costs that are limited, or in MACs."""
    if limits:
        return run.limits(limits).explain()
    extremes = run.cost.extremes("macs")
    if extremes is None:
        return f"{run.space.size():.3g} architectures"
    return f"{run.space.size():,} architectures of {in_units(extremes[0])} to {in_units(extremes[1])} MACs"


# -- commands ---------------------------------------------------------------------------------------------------------


def commands(plan: Plan, out: Path, key: str) -> dict[str, str]:
    """The single command of each stage, which continues it or repeats it; `key` is the winner's."""
    settings, seed, retrain = plan.settings, plan.config.train.seed, plan.config.retrain.seed
    base = "detnas-bccd" if plan.facts.boxed else "spos-images"
    names = {"macs": "--max-macs", "params": "--max-params", "latency_ms": "--max-latency"}
    limits = [word for name, limit in plan.limits.items() for word in (names[name], f"{limit:g}")]
    members = population(settings["trials"])
    batches = (f"--batch {members}", f"--settings population_size={members}")
    inherit = settings["init"] == "inherit"
    finals = ("--init", "shared" if inherit else settings["init"], "--seed", retrain)
    race = () if inherit else ("--trainings", settings["trainings"], "--seeds", SEEDS, "--random", RANDOM)
    searcher = ("--searcher", SEARCHER, "--trials", settings["trials"], "--seed", seed)
    return {
        "train": " ".join([command("train", base), *_flags(plan.config), shlex.join(["--out", str(out)])]),
        "search": " ".join([command("search", out, *searcher, *limits), *batches]),
        "select": command("select", out, "--search", SEARCHER, *race, *finals),
        "retrain": command("retrain", out, "--search", SEARCHER, "--arch", "front:1", *finals),
        "export": command("export", out, "--arch", key, *(("--inherit",) if inherit else finals)),
        "report": command("report", out),
    }


def _flags(config: Recipe) -> list[str]:
    """The flags that turn the recipe `spos-images`, or `detnas-bccd` for a detector, into another one."""
    base = spos_images() if isinstance(config, SupernetRun) else detnas_bccd()
    before, now = (flatten(dataclasses.asdict(each)) for each in (base, config))
    words = []
    for name, value in now.items():
        if before[name] == value:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parent, _, last = flag.removeprefix("--").rpartition(".")
            flag = f"--{parent + '.' if parent else ''}{'' if value else 'no-'}{last}"
            words.append(flag)
        elif isinstance(value, tuple | list):
            words.append(shlex.join([flag, *map(str, value)]))
        else:
            words.append(shlex.join([flag, str(value)]))
    return words
