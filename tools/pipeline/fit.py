"""From a source of images to an exported network: the stages of `supernet fit`, each an ordinary part of a run."""

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.chain import Chain, largest
from supernet.checked import is_number, problem_of, shown
from supernet.config import DataSummary, from_dict
from supernet.cost import Feasible
from supernet.errors import InputError
from supernet.files import flatten, read_json, write_json
from supernet.paths import inside
from supernet.seeding import generator
from supernet.space import Arch
from supernet.spaces import build
from supernet.train import plan_training
from supernet_tools.pipeline.choices import Budget, Chosen, Derived, Found, Settings, Timing
from supernet_tools.pipeline.command_line import command
from supernet_tools.pipeline.config import Recipe, SupernetRun
from supernet_tools.pipeline.derive import derive, population, recipe
from supernet_tools.pipeline.export import export_folder, export_stage
from supernet_tools.pipeline.folder import FIT, FIT_RESULT, IMAGES, RUN, check_run, removed_on_failure
from supernet_tools.pipeline.front import Point, chosen_points, front_stage
from supernet_tools.pipeline.inspect_data import inspect_source, texts_of
from supernet_tools.pipeline.learned import check_learned
from supernet_tools.pipeline.objects import object_parts
from supernet_tools.pipeline.recipes import detnas_bccd, spos_images
from supernet_tools.pipeline.retrain import fresh_network, trained_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.search import FRONT, create_searcher, search_stage
from supernet_tools.pipeline.select import select_stage
from supernet_tools.pipeline.train import prepare, train_stage
from supernet_tools.pipeline.trust import from_file
from supernet_tools.pipeline.units import cost_in_units
from supernet_tools.pipeline.unpack import is_archive, unpacked

FORMAT = 2
"""Of fit.json and of fit-result.json. 2 has the networks of a front."""
COSTS = ("macs", "params", "latency_ms")
"""What may be limited."""
SEARCHER = "nsga2"
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
        config: the recipe, of a classifier or a detector.
        limits: by name of the cost.
    """

    found: Found
    timing: Timing
    settings: Settings
    config: Recipe
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
    check_free(out)
    model = _model_of(wishes) if wishes.pretrained else ""
    found = inspect_source(_place(wishes, out))
    budget = Budget(
        minutes=wishes.minutes,
        max_macs=wishes.limits.get("macs"),
        pretrained=wishes.pretrained,
        model=model,
    )
    if found.boxed:
        budget = dataclasses.replace(budget, factor=_factor(wishes, out, found, budget))
    first = derive(found, budget, wishes.given)
    say("reading the images and timing a few steps")
    with removed_on_failure(out):  # the images that were decoded for it
        timing = _timed(_recipe(wishes, out, found, first, budget.factor), wishes, out)
    settings = derive(found, dataclasses.replace(budget, timing=timing), wishes.given)
    limits = {name: float(limit) for name, limit in wishes.limits.items() if limit is not None}
    plan = Plan(found, timing, settings, _recipe(wishes, out, found, settings, budget.factor), limits)
    document = {
        "format": FORMAT,
        "wishes": dataclasses.asdict(wishes),
        "found": dataclasses.asdict(found),
        "timing": dataclasses.asdict(timing),
        "model": model,
        "factor": budget.factor,
        "settings": [dataclasses.asdict(row) for row in settings.rows],
    }
    write_json(file, document)
    return plan


def check_free(out: Path) -> None:
    """Checks that a folder is free for a run, or holds what a call that was stopped in its planning has left there.

    Raises:
        InputError: it holds something else.
    """
    if (out / RUN).exists():
        raise InputError(f"{out} holds a run that fit did not begin; give another --out")
    check_run(out, "supernet", SupernetRun())


def _place(wishes: Wishes, out: Path) -> str:
    """The source that is read: where an archive was unpacked, otherwise what was given."""
    if is_archive(wishes.source) and not Path(wishes.source).is_dir():
        return str(unpacked(Path(wishes.source), out))
    return wishes.source


def _recipe(wishes: Wishes, out: Path, found: Found, settings: Settings, factor: float) -> Recipe:
    """The recipe of a classifier or, for images with boxes, of a detector."""
    common: dict[str, Any] = {"pretrained": wishes.pretrained, "seed": wishes.seed, "device": wishes.device}
    if found.boxed:
        from supernet_tools.pipeline.derive_objects import object_recipe

        return object_recipe(found, settings, factor=factor, **common)
    return recipe(_place(wishes, out), found, settings, **common)


def _factor(wishes: Wishes, out: Path, found: Found, budget: Budget) -> float:
    """The largest factor of a detector's widths at which the limits leave a choice, before images are read.

    Raises:
        InputError: no network is within the limits at any factor.
    """
    from supernet_tools.pipeline.derive_objects import FACTORS

    limits = {name: limit for name, limit in wishes.limits.items() if limit is not None and name != "latency_ms"}
    counts: dict[str, Any] = dict.fromkeys(("n_train", "n_calibration", "n_validation", "n_test"), 1)
    summary = DataSummary(found.classes, 3, 64, (0.5,) * 3, (0.5,) * 3, digest="", **counts)
    for factor in FACTORS if limits else (1.0,):
        settings = derive(found, dataclasses.replace(budget, factor=factor), wishes.given)
        kind = kind_of(kind_of(_recipe(wishes, out, found, settings, factor)).resolved())
        costs = kind.costs(kind.skeleton(summary))
        spans = {name: costs.extremes(name) for name in limits}
        if all(span is None or span[0] + (span[1] - span[0]) / 4 <= limits[name] for name, span in spans.items()):
            return factor
    if not limits:
        return 1.0
    Feasible(costs, limits).sample(generator(wishes.seed, "limits"))  # raises, and names the range
    return FACTORS[-1]


def _recorded(wishes: Wishes, file: Path) -> Plan:
    """The plan in a `fit.json`. Raises `InputError` if other wishes made it, or it is damaged."""
    document = read_json(file)
    missing = [name for name in ("wishes", "found", "timing", "factor", "settings") if name not in document]
    if document.get("format") != FORMAT or missing:
        raise InputError(f"{file} is damaged or was written by another release; give another --out")
    if not isinstance(document["wishes"], Mapping) or not isinstance(document["settings"], list):
        raise InputError(f"{file} is damaged: it holds no wishes or no settings; give another --out")
    if (problem := problem_of(float, document["factor"])) is not None:
        raise InputError(f"{file} is damaged: factor={shown(document['factor'])} {problem}; give another --out")
    before = flatten(document["wishes"])
    now = flatten(json.loads(json.dumps(dataclasses.asdict(wishes))))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name != "source":  # it may have been moved: its digest is compared
            said = name.removeprefix("given.").removeprefix("limits.")
            raise InputError(
                f"{file.parent} was begun with {_wish(said, before.get(name))}, and here it is "
                f"{_wish(said, now.get(name))}; repeat the first command to go on, or give another --out"
            )
    found = from_dict(Found, document["found"], owner=str(file))
    if found.boxed and before.get("source") != now.get("source") and (parts := object_parts(Path(wishes.source))):
        found = dataclasses.replace(found, places=texts_of(parts))
    timing = from_dict(Timing, document["timing"], owner=str(file))
    rows = []
    for row in document["settings"]:
        known = isinstance(row, Mapping) and row.keys() == {"name", "value", "reason", "flag"}
        if not known or not isinstance(row["name"], str):
            raise InputError(f"{file} is damaged: its settings lack a name, a value or a reason; give another --out")
        value = tuple(row["value"]) if isinstance(row["value"], list) else row["value"]
        rows.append(Derived(row["name"], value, row["reason"], row["flag"]))
    settings = Settings(tuple(rows))
    limits = {name: float(limit) for name, limit in wishes.limits.items() if limit is not None}
    from_dict(Chosen, {row.name: row.value for row in rows}, owner=str(file))
    # the file may come from anybody, and what it names as its space runs only if the user typed or trusted it
    config = from_file(_recipe(wishes, file.parent, found, settings, float(document["factor"])), file)
    return Plan(found, timing, settings, config, limits)


def _wish(name: str, value: Any) -> str:
    """A wish as a message shows it: limits with the units in which they are given."""
    if is_number(value) and name in COSTS:
        return f"{name}={cost_in_units(name, value)}"
    return f"{name}={shown(value)}"


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


def _timed(config: Recipe, wishes: Wishes, out: Path) -> Timing:
    """Times a few steps of the training, of one network's training and of scoring; nothing but images is kept.

    Raises:
        InputError: the recipe does not fit the data, or no network is within the limits.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, largest_epochs=0.0)  # a step of the whole sandwich
    kind = kind_of(kind_of(config).resolved())
    parts = prepare(kind, inside(out, IMAGES))
    run = Run(out, kind, parts.data.summary(), data=parts.data, cost=parts.costs)
    if wishes.limits.get("latency_ms") is not None:  # a limit that no network meets is reported before the training
        out.mkdir(parents=True, exist_ok=True)
        run.__dict__["supernet"] = parts.supernet
        run = run.with_latency(1)
    run.limits(wishes.limits)
    train = kind.config.train
    planned_steps = plan_training(parts.supernet, parts.data, train, sampler=parts.sampler, task=kind.task)
    rng = generator(wishes.seed, "timing")
    trained = isinstance(config, SupernetRun) and config.pretrained
    arch = run.space.normal_form(largest(run.space) if trained else run.space.sample(rng))
    network = Chain("standalone", [("network", fresh_network(run, arch, wishes.seed))])
    single = plan_training(network, parts.data, kind.config.retrain, task=kind.retrain_task)
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
        anchors=_anchors(config, run),
    )


def _anchors(config: Recipe, run: Run) -> tuple[float, ...]:
    """The share of a detector's training objects that anchors of each scale match; nothing for classifiers."""
    if isinstance(config, SupernetRun):
        return ()
    from detection.coverage import anchor_coverage
    from supernet_tools.pipeline.derive_objects import ANCHORS

    shares = []
    for scale in ANCHORS:
        others = tuple(text for text in config.settings if not text.startswith("anchor_scale="))
        other = dataclasses.replace(config, settings=(*others, f"anchor_scale={scale:g}"))
        shares.append(anchor_coverage(kind_of(other).skeleton(run.summary), run.data.train))
    return tuple(shares)


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
    members = population(settings["trials"])
    searcher = create_searcher(SEARCHER, run, feasible, seed, (f"population_size={members}",))
    search_stage(run, searcher, SEARCHER, trials=settings["trials"], batch=members, verbose=verbose)
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
    front = _exported_front(run, settings["front"], verbose=verbose)
    document = {
        "format": FORMAT,
        "winner": race["winner"],
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
    """Exports networks on the front of the search, at most so many, with the shared weights; a whole one is only read.

    Returns:
        their keys, costs, test accuracies and latencies, cheapest first; nothing where no front is wanted.
    """
    if not most:
        return []
    chosen = spread(chosen_points(run, SEARCHER), most)
    place = inside(run.folder, "export", f"front-{SEARCHER}", FRONT)
    rows = read_json(place)["points"] if place.exists() else []
    if [row["key"] for row in rows] != [point.arch.key for point in chosen]:
        limits = [f"{point.trial.metrics['macs']:.0f}" for point in chosen]
        _, rows = front_stage(run, SEARCHER, limits=limits, verbose=verbose)
    shown = ("key", "macs", "params", f"test_{run.kind.metric}", "artefact_ms", "folder")
    return [{name: row[name] for name in shown} for row in rows]


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many networks of a front, cheapest first, whose MACs lie as evenly on a logarithmic scale as they can.

    The cheapest and the dearest are among them.
    """
    logs = [math.log(point.trial.metrics["macs"]) for point in points]
    if len(points) <= most:
        return list(points)
    if most == 1:
        return [points[-1]]
    left = list(range(len(points)))
    wanted = [logs[0] + (logs[-1] - logs[0]) * step / (most - 1) for step in range(most)]
    kept = []
    for value in (wanted[0], wanted[-1], *wanted[1:-1]):
        kept.append(min(left, key=lambda place: (abs(logs[place] - value), place)))
        left.remove(kept[-1])
    return [points[place] for place in sorted(kept)]


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
    base = "detnas-bccd" if plan.found.boxed else "spos-images"
    names = {"macs": "--max-macs", "params": "--max-params", "latency_ms": "--max-latency"}
    limits = [word for name, limit in plan.limits.items() for word in (names[name], f"{limit:g}")]
    members = population(settings["trials"])
    batches = (f"--batch {members}", f"--settings population_size={members}")
    finals = ("--init", settings["init"], "--seed", retrain)
    race = ("--trainings", settings["trainings"], "--seeds", SEEDS, "--random", RANDOM)
    searcher = ("--searcher", SEARCHER, "--trials", settings["trials"], "--seed", seed)
    return {
        "train": " ".join([command("train", base), *_flags(plan.config), shlex.join(["--out", str(out)])]),
        "search": " ".join([command("search", out, *searcher, *limits), *batches]),
        "select": command("select", out, "--search", SEARCHER, *race, *finals),
        "retrain": command("retrain", out, "--search", SEARCHER, "--arch", "front:1", *finals),
        "export": command("export", out, "--arch", key, *finals),
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
