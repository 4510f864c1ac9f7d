"""From a source of images to an exported network: the stages of `supernet fit`, each an ordinary part of a run."""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.chain import Chain
from supernet.config import from_dict
from supernet.errors import InputError
from supernet.files import flatten, read_json, write_json
from supernet.paths import inside
from supernet.seeding import generator
from supernet.space import Arch
from supernet.spaces import build
from supernet.train import plan_training
from supernet_tools.pipeline.command_line import command
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.derive import Budget, Derived, Found, Settings, Timing, derive, recipe
from supernet_tools.pipeline.export import export_folder, export_stage
from supernet_tools.pipeline.folder import FIT, FIT_RESULT, IMAGES, check_run
from supernet_tools.pipeline.inspect_data import inspect_source
from supernet_tools.pipeline.learned import check_learned
from supernet_tools.pipeline.recipes import spos_images
from supernet_tools.pipeline.retrain import fresh_network, trained_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.search import create_searcher, search_stage
from supernet_tools.pipeline.select import select_stage
from supernet_tools.pipeline.train import prepare, train_stage

FORMAT = 1
"""Of fit.json and of fit-result.json."""
SEARCHER = "nsga2"
POPULATION = 20
SEEDS, RANDOM = 2, 1
"""Of the race: most trainings of a network, and random networks."""
MODELS = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "resnet18")
"""Networks of timm whose weights a file may hold, tried in this order."""
IDLE = 1e-6  # seconds: the least that a measured piece of work takes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; a run goes on only with the same wishes.

    Attributes:
        source: the source of the images.
        limits: by name of the cost; None is no limit.
        minutes: the time that the whole command may take.
        pretrained: file of weights, or empty.
        given: settings that the user has set, by name.
        seed: of every random draw.
        device: the torch device.
    """

    source: str
    limits: Mapping[str, float | None]
    minutes: float
    pretrained: str
    given: Mapping[str, Any]
    seed: int
    device: str


@dataclass(frozen=True)
class Plan:
    """What a run of `fit` does: found, measured and derived once, and the same when it goes on.

    Attributes:
        found: in the source.
        timing: measured on this machine.
        settings: derived values with their reasons.
        config: the recipe.
        limits: by name of the cost.
    """

    found: Found
    timing: Timing
    settings: Settings
    config: SupernetRun
    limits: dict[str, float]


def planned(wishes: Wishes, out: Path, say: Say) -> Plan:
    """The plan of a run: read from its `fit.json`, or made and written there.

    Raises:
        InputError: a source that cannot be classified, limits that no network meets, a folder that holds something
            else, or a run that was begun with other wishes.
    """
    file = out / FIT
    if file.exists():
        plan = _recorded(wishes, file)
        say(f"going on with {out}: settings and timings are those of its beginning")
        return plan
    check_run(out, "supernet", SupernetRun())
    found = inspect_source(wishes.source)
    model = _model_of(wishes) if wishes.pretrained else ""
    budget = Budget(
        minutes=wishes.minutes,
        max_macs=wishes.limits.get("macs"),
        pretrained=wishes.pretrained,
        model=model,
    )
    first = derive(found, budget, wishes.given)
    say("reading the images and timing a few steps")
    timing = _timed(_recipe(wishes, found, first), wishes, out)
    settings = derive(found, dataclasses.replace(budget, timing=timing), wishes.given)
    limits = {name: float(limit) for name, limit in wishes.limits.items() if limit is not None}
    plan = Plan(found, timing, settings, _recipe(wishes, found, settings), limits)
    document = {
        "format": FORMAT,
        "wishes": dataclasses.asdict(wishes),
        "found": dataclasses.asdict(found),
        "timing": dataclasses.asdict(timing),
        "model": model,
        "settings": [dataclasses.asdict(row) for row in settings.rows],
    }
    write_json(file, document)
    return plan


def _recipe(wishes: Wishes, found: Found, settings: Settings) -> SupernetRun:
    return recipe(wishes.source, found, settings, pretrained=wishes.pretrained, seed=wishes.seed, device=wishes.device)


def _recorded(wishes: Wishes, file: Path) -> Plan:
    """The plan in a `fit.json`. Raises `InputError` if other wishes made it, or it is damaged."""
    document = read_json(file)
    missing = [name for name in ("wishes", "found", "timing", "settings") if name not in document]
    if document.get("format") != FORMAT or missing:
        raise InputError(f"{file} is damaged or was written by another release; give another --out")
    before = flatten(document["wishes"])
    now = flatten(json.loads(json.dumps(dataclasses.asdict(wishes))))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            shown = name.removeprefix("given.").removeprefix("limits.")
            raise InputError(
                f"{file.parent} was begun with {shown}={before.get(name)!r}, and here it is {now.get(name)!r}; repeat "
                "the first command to go on, or give another --out"
            )
    found = from_dict(Found, document["found"], owner=str(file))
    timing = from_dict(Timing, document["timing"], owner=str(file))
    rows = []
    for row in document["settings"]:
        if not isinstance(row, Mapping) or row.keys() != {"name", "value", "reason", "flag"}:
            raise InputError(f"{file} is damaged: its settings lack a name, a value or a reason; give another --out")
        value = tuple(row["value"]) if isinstance(row["value"], list) else row["value"]
        rows.append(Derived(row["name"], value, row["reason"], row["flag"]))
    settings = Settings(tuple(rows))
    limits = {name: float(limit) for name, limit in wishes.limits.items() if limit is not None}
    return Plan(found, timing, settings, _recipe(wishes, found, settings), limits)


def _model_of(wishes: Wishes) -> str:
    """The network of timm that a file of weights belongs to.

    Raises:
        InputError: the file cannot be read, or belongs to none of `MODELS`.
    """
    import torch

    from supernet.spaces.pretrained import check_pretrained, read_weights

    given = wishes.given.get("space_settings") or ()
    named = [text.partition("=")[2] for text in given if text.startswith("model=")]
    read_weights(wishes.pretrained)  # a file that is none is reported as such
    for model in named or MODELS:
        with torch.device("meta"):
            chain = build("elastic", "supernet", {"model": model, "num_classes": 2, "input_size": 96})
        try:
            check_pretrained(chain, wishes.pretrained)
        except InputError:
            if named:
                raise
            continue
        return model
    raise InputError(
        f"{wishes.pretrained} holds the weights of none of {', '.join(MODELS)}; name its network of timm: "
        "--space-settings model=NAME"
    )


def _timed(config: SupernetRun, wishes: Wishes, out: Path) -> Timing:
    """Times a few steps of the training, of one network's training and of scoring; nothing but images is kept.

    Raises:
        InputError: the recipe does not fit the data, or no network is within the limits.
    """
    began = time.monotonic()
    kind = kind_of(kind_of(config).resolved())
    parts = prepare(kind, inside(out, IMAGES))
    run = Run(out, kind, parts.data.summary(), data=parts.data, cost=parts.costs)
    run.limits({name: limit for name, limit in wishes.limits.items() if name != "latency_ms"})
    train = kind.config.train
    planned_steps = plan_training(parts.supernet, parts.data, train, sampler=parts.sampler, task=kind.task)
    rng = generator(wishes.seed, "timing")
    arch = run.space.normal_form(run.space.sample(rng))
    network = Chain("standalone", [("network", fresh_network(run, arch, wishes.seed))])
    single = plan_training(network, parts.data, kind.config.retrain, task=kind.task)
    archs = [run.space.sample(rng) for _ in range(2)]
    evaluate = kind.shared_weights(parts.supernet.eval(), parts.data, cache=None, bn_batches=10)
    started = time.monotonic()
    evaluate(archs)
    score = (time.monotonic() - started) / len(archs)
    return Timing(
        step=max(planned_steps["seconds_per_step"], IDLE),
        network_step=max(single["seconds_per_step"], IDLE),
        score=max(score, IDLE),
        steps=max(len(parts.data.train) // train.batch, 1),
        spent=time.monotonic() - began,
    )


# -- the stages -------------------------------------------------------------------------------------------------------


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
    searcher = create_searcher(SEARCHER, run, feasible, seed, (f"population_size={POPULATION}",))
    search_stage(run, searcher, SEARCHER, trials=settings["trials"], batch=POPULATION, verbose=verbose)
    shared = settings["init"] == "shared"
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
    folder = export_folder(run, winner, None)
    parity, result = folder / "parity.json", out / FIT_RESULT
    if parity.exists() and result.exists() and read_json(result).get("winner") == race["winner"]:
        report = read_json(parity)
    else:
        network = trained_network(run, winner, seed_of_winner, shared=shared)
        folder, report = export_stage(run, winner, network)
    document = {
        "format": FORMAT,
        "winner": race["winner"],
        "verdict": race["verdict"],
        f"test_{run.kind.metric}": race[f"test_{run.kind.metric}"],
        "export": str(folder.relative_to(out)),
        "differences": report["differences"],
        "commands": commands(plan, out, winner.key),
    }
    write_json(result, document)
    return document


def _progress(say: Say, trainings: float) -> Callable[[Any, Any], None]:
    """Says each outcome of the race."""
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
    from supernet_tools.pipeline.units import in_units

    return f"{run.space.size():,} architectures of {in_units(extremes[0])} to {in_units(extremes[1])} MACs"


# -- commands ---------------------------------------------------------------------------------------------------------


def commands(plan: Plan, out: Path, key: str) -> dict[str, str]:
    """The single command of each stage, which continues it or repeats it; `key` is the winner's."""
    settings, seed, retrain = plan.settings, plan.config.train.seed, plan.config.retrain.seed
    names = {"macs": "--max-macs", "params": "--max-params", "latency_ms": "--max-latency"}
    limits = [word for name, limit in plan.limits.items() for word in (names[name], f"{limit:g}")]
    population = (f"--batch {POPULATION}", f"--settings population_size={POPULATION}")
    finals = ("--init", settings["init"], "--seed", retrain)
    race = ("--trainings", settings["trainings"], "--seeds", SEEDS, "--random", RANDOM)
    searcher = ("--searcher", SEARCHER, "--trials", settings["trials"], "--seed", seed)
    return {
        "train": " ".join([command("train", "spos-images"), *_flags(plan.config), shlex.join(["--out", str(out)])]),
        "search": " ".join([command("search", out, *searcher, *limits), *population]),
        "select": command("select", out, "--search", SEARCHER, *race, *finals),
        "retrain": command("retrain", out, "--search", SEARCHER, "--arch", "front:1", *finals),
        "export": command("export", out, "--arch", key, *finals),
        "report": command("report", out),
    }


def _flags(config: SupernetRun) -> list[str]:
    """The flags that turn the recipe `spos-images` into another one."""
    before, now = (flatten(dataclasses.asdict(each)) for each in (spos_images(), config))
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
