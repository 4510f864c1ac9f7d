"""What `supernet fit` chooses for images with boxes: a detector's settings, each with its reason."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from detection.config import DetectionAugment, DetectionData
from supernet_tools.pipeline.choices import (
    RACE,
    SEARCH,
    SUPERNET,
    Budget,
    Derived,
    Settings,
    SourceFacts,
    clamped,
    seconds_left,
)
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.recipes import SMALL_STEPS
from supernet_tools.pipeline.units import in_units

SIZES = (64, 80, 96, 120, 160, 200, 240, 320, 400, 480, 600, 800)
OBJECT_PIXELS_PER_MINUTE = 4.5e5
"""Pixels of training images that one core can process often enough; detectors take more time per pixel."""
LEAST_OBJECT = 12
"""Images are not shrunk so far that the median object has a side of fewer pixels."""
TRAINED_LR = 1e-3
"""Learning rate of detectors whose backbone begins with trained weights."""
SPACE = "shufflenet-small"
"""The space of backbones without trained weights."""
WIDTHS, STEM = (32, 64, 128), 8
"""Channels of its backbones before scaling."""
FACTORS = (1.0, 0.75, 0.5, 0.25)
"""Factors on the channels of backbone, pyramid and heads, tried until networks within the limits exist."""
ANCHORS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Sides of the smallest anchor of a level, in its strides."""
ENOUGH = 0.01
"""If two scales differ by no more than this in the share of matched objects, the smaller one is taken."""
EXPORT_AND_REPORT = 90.0
"""Estimated seconds of the export of a detector, which is traced, and of the report."""


def object_rules(
    facts: SourceFacts,
    budget: Budget,
    choice: Callable[[str, Any, str], Derived],
    chosen: Callable[[str], Any],
) -> Iterator[Derived]:
    """Yields the choices for a detector in their order.

    Args:
        facts: what the source holds.
        budget: limits, time, and what was measured.
        choice: makes a choice, or takes what the user has given.
        chosen: the value of an earlier choice.
    """
    yield choice("size", *_size(facts, budget))
    n = facts.images
    yield choice("batch", 4 if n < 5_000 else 8 if n < 50_000 else 16, f"{n:,} training images; small steps learn more")
    own = bool(facts.n_validation)
    why = f"not used: the source has {facts.n_validation:,} validation images of its own" if own else f"{n:,} images"
    yield choice("validation", 0.2 if n < 20_000 else 0.1, why)
    if budget.pretrained:
        yield choice("space", "elastic", f"kernels, widths and depth of {budget.model}, with its weights")
        yield choice("space_settings", (f"model={budget.model}",), f"{budget.pretrained} holds its weights")
    else:
        yield choice("space", SPACE, "a backbone of four operations in eight blocks, as in DetNAS")
        widths = [8 * max(1, round(budget.factor * width / 8)) for width in WIDTHS]
        reason = (
            "the default widths for small sets" if budget.factor == 1 else f"{budget.factor:g} times the default widths"
        )
        within = f" have networks within {in_units(budget.max_macs)} MACs" if budget.max_macs else ""
        if chosen("space") == SPACE:
            yield choice("space_settings", (f"widths={widths}", f"stem={STEM}"), reason + within)
        else:
            yield choice("space_settings", (), "the space's own")
    yield choice("anchor_scale", *_anchors(budget.timing.anchors if budget.timing else ()))
    short = budget.minutes < 120
    yield choice(
        "init",
        "shared" if short else "scratch",
        f"{budget.duration} is short: finalists go on from the shared weights"
        if short
        else "there is enough time to train finalists from scratch",
    )
    yield from _budgets(budget, choice, chosen)
    yield choice("front", 0, "fronts with shared weights are for classifiers")


def _size(facts: SourceFacts, budget: Budget) -> tuple[int, str]:
    _, median, _ = facts.sides
    fitting = [size for size in SIZES if size <= max(median, SIZES[0])]
    allowed = OBJECT_PIXELS_PER_MINUTE * budget.minutes
    affordable = [size for size in fitting if facts.images * size * size * facts.ratio <= allowed]
    needed = [size for size in fitting if size * facts.object_side >= LEAST_OBJECT]
    least = needed[0] if needed else fitting[-1]
    size = max(least, affordable[-1] if affordable else fitting[0])
    what = f"{facts.images:,} images in {budget.duration}; shorter sides are {median} pixels in the median"
    if size == least and size not in affordable:
        what += f", and below {size} the median object has fewer than {LEAST_OBJECT}"
    return size, f"{what}; the longer side gets at most {longest(facts, size)}"


def longest(facts: SourceFacts, size: int) -> int:
    """Most pixels of the longer side, in steps of 8."""
    return 8 * round(size * facts.ratio / 8)


def _anchors(shares: Sequence[float]) -> tuple[float, str]:
    if not shares:
        return 3.0, "the default for small images"
    best = max(shares)
    scale, share = next(pair for pair in zip(ANCHORS, shares, strict=True) if pair[1] >= best - ENOUGH)
    return scale, f"{share:.1%} of the training objects have an anchor of IoU 0.5 or more"


def _budgets(
    budget: Budget, choice: Callable[[str, Any, str], Derived], chosen: Callable[[str], Any]
) -> Iterator[Derived]:
    budget = replace(budget, pretrained="")  # the shares of the time with trained weights are for classifiers
    timing = budget.timing
    if timing is None:
        small = {"epochs": 10, "trials": 40, "trainings": 2, "retrain_epochs": 4}
        yield from (choice(name, value, "a small run") for name, value in small.items())
        return
    seconds, epoch = seconds_left(budget), timing.step * timing.steps
    seconds = max(seconds - EXPORT_AND_REPORT, seconds / 2)
    trials = clamped(SEARCH * seconds / timing.score, 20, 200) // 20 * 20
    trained = max(seconds - trials * timing.score, seconds / 3)  # what is left for trainings, shared and single ones
    shared = SUPERNET / (SUPERNET + RACE)
    yield choice(
        "epochs",
        clamped(shared * trained / epoch, 2, 300),
        f"an epoch takes {epoch:.1f} s, and {shared * trained:.0f} s of {budget.duration} are for the supernet",
    )
    yield choice(
        "trials",
        trials,
        f"a candidate takes {timing.score:.2f} s, and at least {SEARCH:.0%} of the time is for the search",
    )
    epochs = (1 - shared) * trained / (timing.network_step * timing.steps)
    yield choice(
        "trainings", clamped(epochs / 6, 2, 8), "trainings that decide between the finalists, in full trainings"
    )
    yield choice(
        "retrain_epochs",
        clamped(epochs / chosen("trainings"), 1, 60),
        f"{(1 - shared) * trained:.0f} s for {chosen('trainings')} trainings",
    )


def object_recipe(
    facts: SourceFacts, settings: Settings, *, pretrained: str, factor: float, seed: int, device: str
) -> DetectorRun:
    """The recipe of a detector with these settings."""
    size, epochs = settings["size"], settings["epochs"]
    places: dict[str, Any] = dict(text.split("=", 1) for text in facts.places)
    data = DetectionData(
        **places,
        size=size,
        longest=longest(facts, size),
        validation=settings["validation"],
        calibration=min(DetectionData.calibration, 80),
        workers=1,
        augment=DetectionAugment(flip=True, scale=(0.8, 1.25)),
        seed=seed,
    )
    steps = replace(SMALL_STEPS, batch=settings["batch"], seed=seed, device=device)

    def train(count: int, lr: float) -> Any:
        return replace(steps, epochs=count, lr=lr, warmup_epochs=min(1.0, count / 4))

    shared = settings["init"] == "shared"
    rate = TRAINED_LR if pretrained else SMALL_STEPS.lr
    common = {
        "data": data,
        "train": train(epochs, rate),
        "retrain": train(settings["retrain_epochs"], rate / 2 if shared else rate),
        "scoring_batch": 8,
    }
    anchors = f"anchor_scale={settings['anchor_scale']:g}"
    if pretrained:
        return DetectorRun(
            backbone=settings["space"],
            backbone_settings=tuple(settings["space_settings"]),
            head_width=8 * round(64 * factor / 8),
            head_convs=2,
            settings=("levels=3", anchors),
            pretrained=pretrained,
            start="classification",
            sampler="sandwich",
            random_paths=1,
            lead="",
            lead_epochs=0.0,
            **common,
        )
    return DetectorRun(
        backbone=settings["space"],
        backbone_settings=tuple(settings["space_settings"]),
        head_width=8 * round(64 * factor / 8),
        head_convs=2,
        settings=("levels=2", anchors),
        **common,
    )
