"""What a run of `supernet fit` will do: the request, what the source holds, measured times, and what follows."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
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
from supernet.spaces import build
from supernet.train import plan_training
from supernet.training.distributed import check_device
from supernet_tools.pipeline.choices import Budget, Derived, FitSettings, Settings, SourceFacts, Timing
from supernet_tools.pipeline.config import Recipe, SupernetRun
from supernet_tools.pipeline.derive import derive, recipe
from supernet_tools.pipeline.folder import FIT, IMAGES, RUN, check_run, removed_on_failure
from supernet_tools.pipeline.inspect_data import inspect_source, texts_of
from supernet_tools.pipeline.objects import object_parts
from supernet_tools.pipeline.retrain import fresh_network
from supernet_tools.pipeline.run import Run
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.train import prepare
from supernet_tools.pipeline.trust import from_file
from supernet_tools.pipeline.units import cost_in_units
from supernet_tools.pipeline.unpack import is_archive, removed_if_refused, unpacked

FORMAT = 5
"""The format of fit.json. 2 added a front, 3 and 4 name the request and the source otherwise."""
COSTS = ("macs", "params", "latency_ms")
"""The costs that can be limited."""
MODELS = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "resnet18")
"""Networks of timm whose weights a file may hold, tried in this order."""
IDLE = 1e-6  # seconds: the least that a measured piece of work takes

Say = Callable[[str], None]
"""Prints a line of progress."""


@dataclass(frozen=True)
class FitRequest:
    """What the user asked for. A run continues only with the same request.

    Attributes:
        source: the source of the images.
        limits: the limit of each cost by its name, or None.
        minutes: the time that the whole command may take.
        pretrained: file of weights, or empty.
        overrides: settings that the user has set, by name.
        seed: the seed of all random draws.
        device: the torch device.
    """

    source: str
    limits: Mapping[str, float | None]
    minutes: float
    pretrained: str
    overrides: Mapping[str, Any]
    seed: int
    device: str


@dataclass(frozen=True)
class Plan:
    """What a run of `fit` does. It is made once and stays the same when the run continues.

    Attributes:
        facts: what the source holds.
        timing: measured times on this machine.
        settings: derived values with their reasons.
        config: the recipe, of a classifier or a detector.
        limits: the limit of each limited cost by its name.
    """

    facts: SourceFacts
    timing: Timing
    settings: Settings
    config: Recipe
    limits: dict[str, float]


def planned(request: FitRequest, out: Path, say: Say) -> Plan:
    """The plan of a run: read from its `fit.json`, or made and written there.

    Raises:
        InputError: a source that cannot be classified, limits that no network meets, a folder that holds something
            else, or a run that was started with another request.
    """
    file = out / FIT
    if file.exists():
        plan = _recorded(request, file)
        say(f"going on with {out}: settings and timings are those of its start")
        return plan
    _check_used(request)
    check_device(request.device)
    check_free(out)
    with removed_if_refused(out):
        model = _model_of(request) if request.pretrained else ""
        facts = inspect_source(_readable_source(request, out))
        budget = Budget(
            minutes=request.minutes,
            max_macs=request.limits.get("macs"),
            pretrained=request.pretrained,
            model=model,
        )
        if facts.boxed:
            budget = dataclasses.replace(budget, factor=_width_factor(request, out, facts, budget))
        first = derive(facts, budget, request.overrides)
        _check_unread(request, facts, _recipe(request, out, facts, first, budget.factor))
        say("reading the images and timing a few steps")
        with removed_on_failure(out):  # also the images that were decoded for the timing
            timing = _timed(_recipe(request, out, facts, first, budget.factor), request, out)
        settings = derive(facts, dataclasses.replace(budget, timing=timing), request.overrides)
        limits = {name: float(limit) for name, limit in request.limits.items() if limit is not None}
        plan = Plan(facts, timing, settings, _recipe(request, out, facts, settings, budget.factor), limits)
        document = {
            "format": FORMAT,
            "request": dataclasses.asdict(request),
            "source": dataclasses.asdict(facts),
            "timing": dataclasses.asdict(timing),
            "model": model,
            "factor": budget.factor,
            "settings": [dataclasses.asdict(row) for row in settings.rows],
        }
        write_json(file, document)
    return plan


def _check_used(request: FitRequest) -> None:
    """Raises `InputError` for settings of trainings that will not take place."""
    overrides = request.overrides
    unused = [name for name in ("trainings", "retrain_epochs") if overrides.get(name) is not None]
    if overrides.get("init") == "inherit" and unused:
        raise InputError(f"init='inherit' trains no finalist; leave {unused[0]} out, or choose init='shared'")
    if overrides.get("largest_epochs") is not None and not request.pretrained:
        raise InputError("largest_epochs is for a start with trained weights; give --pretrained, or leave it out")


def _check_unread(request: FitRequest, facts: SourceFacts, config: Recipe) -> None:
    """Checks a classifier's recipe before its images are read; `_width_factor` has checked that of a detector.

    Raises:
        InputError: a setting for detectors, a batch of more images than there are, shares that leave a split without
            images, a space that cannot be built at this size of the images, or limits that no network meets.
    """
    if config.train.batch > facts.images:
        raise InputError(f"batch={config.train.batch} is larger than the {facts.images} training images; lower it")
    test = 0 if facts.n_test else round(config.data.test * facts.images)
    validation = 0 if facts.n_validation else round(config.data.validation * (facts.images - test))
    if min(facts.n_test or test, facts.n_validation or validation, facts.images - test - validation) < 1:
        raise InputError(
            f"{facts.images} images are too few for validation={config.data.validation:g} and "
            f"test={config.data.test:g}: {facts.images - test - validation} would be trained on, {validation} would "
            f"score networks and {test} would test the winner; every split needs at least one"
        )
    if not isinstance(config, SupernetRun):
        return
    if request.overrides.get("anchor_scale") is not None:
        raise InputError("anchor_scale is for images with boxes, which train a detector; leave it out")
    kind = kind_of(kind_of(config).resolved())
    costs = kind.costs(kind.skeleton(_unread(facts, config.data.size)))
    limits = {name: limit for name, limit in request.limits.items() if limit is not None and name != "latency_ms"}
    if limits:
        Feasible(costs, limits).sample(generator(request.seed, "limits"))  # raises, and names the range


def _unread(facts: SourceFacts, size: int) -> DataSummary:
    """What the cost of a network depends on, before images are read."""
    counts: dict[str, Any] = dict.fromkeys(("n_train", "n_calibration", "n_validation", "n_test"), 1)
    moments = (0.5,) * facts.channels
    return DataSummary(facts.classes, facts.channels, size, moments, moments, digest="", **counts)


def check_free(out: Path) -> None:
    """Checks that a folder is free for a run, or holds only what an interrupted planning has left there.

    Raises:
        InputError: it holds something else.
    """
    if (out / RUN).exists():
        raise InputError(f"{out} holds a run that fit did not start; give another --out")
    check_run(out, "supernet", SupernetRun())


def _readable_source(request: FitRequest, out: Path) -> str:
    """The source that is read: where an archive was unpacked, otherwise what was given."""
    if is_archive(request.source) and not Path(request.source).is_dir():
        return str(unpacked(Path(request.source), out))
    return request.source


def _recipe(request: FitRequest, out: Path, facts: SourceFacts, settings: Settings, factor: float) -> Recipe:
    """The recipe of a classifier or, for images with boxes, of a detector."""
    common: dict[str, Any] = {"pretrained": request.pretrained, "seed": request.seed, "device": request.device}
    if facts.boxed:
        from supernet_tools.pipeline.derive_objects import object_recipe

        return object_recipe(facts, settings, factor=factor, **common)
    return recipe(_readable_source(request, out), facts, settings, **common)


def _width_factor(request: FitRequest, out: Path, facts: SourceFacts, budget: Budget) -> float:
    """The largest factor of a detector's widths at which the limits leave a choice, before images are read.

    Raises:
        InputError: no network is within the limits at any factor.
    """
    from supernet_tools.pipeline.derive_objects import FACTORS

    limits = {name: limit for name, limit in request.limits.items() if limit is not None and name != "latency_ms"}
    summary = _unread(facts, 64)
    for factor in FACTORS if limits else (1.0,):
        settings = derive(facts, dataclasses.replace(budget, factor=factor), request.overrides)
        kind = kind_of(kind_of(_recipe(request, out, facts, settings, factor)).resolved())
        costs = kind.costs(kind.skeleton(summary))
        spans = {name: costs.extremes(name) for name in limits}
        if all(span is None or span[0] + (span[1] - span[0]) / 4 <= limits[name] for name, span in spans.items()):
            return factor
    if not limits:
        return 1.0
    Feasible(costs, limits).sample(generator(request.seed, "limits"))  # raises, and names the range
    return FACTORS[-1]


def _recorded(request: FitRequest, file: Path) -> Plan:
    """The plan in a `fit.json`. Raises `InputError` if it is of another request, or damaged."""
    document = read_json(file)
    missing = [name for name in ("request", "source", "timing", "factor", "settings") if name not in document]
    if document.get("format") != FORMAT or missing:
        raise InputError(f"{file} is damaged or was written by another release; give another --out")
    if not isinstance(document["request"], Mapping) or not isinstance(document["settings"], list):
        raise InputError(f"{file} is damaged: it holds no request or no settings; give another --out")
    if (problem := problem_of(float, document["factor"])) is not None:
        raise InputError(f"{file} is damaged: factor={shown(document['factor'])} {problem}; give another --out")
    before = flatten(document["request"])
    now = flatten(json.loads(json.dumps(dataclasses.asdict(request))))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name != "source":  # it may have been moved, and its digest is compared
            setting = name.removeprefix("overrides.").removeprefix("limits.")
            raise InputError(
                f"{file.parent} was started with {_shown_setting(setting, before.get(name))}, and here it is "
                f"{_shown_setting(setting, now.get(name))}; repeat the first command to go on, or give another --out"
            )
    facts = from_dict(SourceFacts, document["source"], owner=str(file))
    if facts.boxed and before.get("source") != now.get("source") and (parts := object_parts(Path(request.source))):
        facts = dataclasses.replace(facts, places=texts_of(parts))
    timing = from_dict(Timing, document["timing"], owner=str(file))
    rows = []
    for row in document["settings"]:
        known = isinstance(row, Mapping) and row.keys() == {"name", "value", "reason", "flag"}
        if not known or not isinstance(row["name"], str):
            raise InputError(f"{file} is damaged: its settings lack a name, a value or a reason; give another --out")
        value = tuple(row["value"]) if isinstance(row["value"], list) else row["value"]
        rows.append(Derived(row["name"], value, row["reason"], row["flag"]))
    settings = Settings(tuple(rows))
    limits = {name: float(limit) for name, limit in request.limits.items() if limit is not None}
    from_dict(FitSettings, {row.name: row.value for row in rows}, owner=str(file))
    # the file may come from anybody, and what it names as its space runs only if the user typed or trusted it
    config = from_file(_recipe(request, file.parent, facts, settings, float(document["factor"])), file)
    return Plan(facts, timing, settings, config, limits)


def _shown_setting(name: str, value: Any) -> str:
    """A part of a request as messages show it, limits with their units."""
    if is_number(value) and name in COSTS:
        return f"{name}={cost_in_units(name, value)}"
    return f"{name}={shown(value)}"


def _model_of(request: FitRequest) -> str:
    """The network of timm that a file of weights belongs to.

    Raises:
        InputError: the file cannot be read, or belongs to none of `MODELS`.
    """
    import torch

    from supernet.spaces.pretrained import check_pretrained, read_weights

    stated = request.overrides.get("space_settings") or ()
    named = [text.partition("=")[2] for text in stated if text.startswith("model=")]
    read_weights(request.pretrained)  # first, so that a file without weights is reported as one
    for model in named or MODELS:
        with torch.device("meta"):
            chain = build("elastic", "supernet", {"model": model, "num_classes": 2, "input_size": 96})
        try:
            check_pretrained(chain, request.pretrained)
        except InputError:
            if named:
                raise
            continue
        return model
    raise InputError(
        f"{request.pretrained} holds the weights of none of {', '.join(MODELS)}; name its network of timm: "
        "--space-settings model=NAME"
    )


def _timed(config: Recipe, request: FitRequest, out: Path) -> Timing:
    """Times a few steps of the training, of one network's training and of scoring; nothing but images is kept.

    Raises:
        InputError: the recipe does not fit the data, or no network is within the limits.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, largest_epochs=0.0)  # a step of the whole sandwich
    kind = kind_of(kind_of(config).resolved())
    parts = prepare(kind, inside(out, IMAGES))
    run = Run(out, kind, parts.data.summary(), data=parts.data, cost=parts.costs)
    if request.limits.get("latency_ms") is not None:  # a limit that no network meets is reported before the training
        out.mkdir(parents=True, exist_ok=True)
        run.__dict__["supernet"] = parts.supernet
        run = run.with_latency(1)
    run.limits(request.limits)
    train = kind.config.train
    planned_steps = plan_training(parts.supernet, parts.data, train, sampler=parts.sampler, task=kind.task)
    rng = generator(request.seed, "timing")
    trained = isinstance(config, SupernetRun) and config.pretrained
    arch = run.space.normal_form(largest(run.space) if trained else run.space.sample(rng))
    network = Chain("standalone", [("network", fresh_network(run, arch, request.seed))])
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
