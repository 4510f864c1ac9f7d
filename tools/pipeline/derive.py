"""What `supernet fit` chooses: settings that follow from the images, the limits and the time, each with its reason."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt

from supernet.checked import Checked, Count, NonNegative, Positive
from supernet.config import Augment, Data, Train
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.units import in_units

SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)
WIDTHS = (16, 24, 48, 96)
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""By which the widths of the space for photographs are scaled."""
SPAN = (1.08e6, 29.7e6)
"""MACs of the cheapest and the most expensive network of that space at 64 pixels, factor 1."""
PIXELS_PER_MINUTE = 2e6
"""Of training images that one core can see often enough, in a supernet and in the trainings of the race."""
SUPERNET, SEARCH, RACE = 0.45, 0.12, 0.33
"""Shares of the time; the rest is for reading images, timing, export and report."""


@dataclass(frozen=True)
class Found(Checked):
    """What was found in a source, before an image is decoded."""

    kind: str
    """"folder", "function" or the name of a data set."""
    classes: tuple[str, ...]
    """Names of the classes."""
    counts: tuple[int, ...]
    """Training images per class, those that score architectures and that are tested included if not `held_out`."""
    n_validation: Annotated[int, Ge(0)]
    """Images of a validation split of the source's own; 0 without one."""
    n_test: Annotated[int, Ge(0)]
    """Images of a test split of the source's own; 0 without one."""
    sides: tuple[int, int, int]
    """Smallest, median and largest shorter side, in pixels."""
    channels: Count
    """Of an image."""
    passed: tuple[str, ...] = ()
    """What was passed over, and why."""

    @property
    def images(self) -> int:
        """Images of the training folder."""
        return sum(self.counts)


@dataclass(frozen=True)
class Timing(Checked):
    """How long pieces of work take on this machine, measured once per run."""

    step: Annotated[float, Gt(0)]
    """Seconds of a training step of the supernet."""
    network_step: Annotated[float, Gt(0)]
    """Seconds of a training step of one network."""
    score: Annotated[float, Gt(0)]
    """Seconds to score a candidate."""
    steps: Count
    """Steps of an epoch."""
    spent: NonNegative = 0.0
    """Seconds that reading the images and the timing took."""


@dataclass(frozen=True)
class Budget(Checked):
    """What the user allows, and what is known of the machine."""

    minutes: Positive = 10.0
    """Of the whole command."""
    max_macs: float | None = None
    """Limit on multiply-accumulates."""
    pretrained: str = ""
    """File of weights."""
    model: str = ""
    """Name of the network in timm that the file belongs to."""
    timing: Timing | None = None
    """How long pieces of work take; without it epochs, trials and trainings are those of a small run."""


@dataclass(frozen=True)
class Derived:
    """A value that was chosen, why, and the flag that chooses another."""

    name: str
    value: Any
    reason: str
    flag: str


@dataclass(frozen=True)
class Settings:
    """Everything that `fit` decides, as rows to show and by name."""

    rows: tuple[Derived, ...] = field(default_factory=tuple)

    def __getitem__(self, name: str) -> Any:
        """The value of a name."""
        return next(row.value for row in self.rows if row.name == name)


def derive(found: Found, budget: Budget, given: Mapping[str, Any] | None = None) -> Settings:
    """Chooses size, batch, epochs, space, validation share and budgets. A pure function of its arguments.

    Args:
        found: what the source holds.
        budget: limits and time.
        given: values that the user has set, by name; they are kept.
    """
    rows: list[Derived] = []
    for row in _rules(found, budget, rows, dict(given or {})):
        rows.append(row)
    return Settings(tuple(rows))


def _rules(found: Found, budget: Budget, rows: list[Derived], given: dict[str, Any]) -> Iterator[Derived]:
    """Yields the choices in their order; each may read those before it in `rows`."""

    def choice(name: str, value: Any, reason: str) -> Derived:
        flag = f"--{name.replace('_', '-')}"
        if given.get(name) is not None:
            return Derived(name, given[name], "given", flag)
        return Derived(name, value, reason, flag)

    def chosen(name: str) -> Any:
        return Settings(tuple(rows))[name]

    yield choice("size", *_size(found, budget))
    yield choice("batch", *_batch(found))
    yield choice("validation", *_validation(found))
    yield choice("space", *_space(budget))
    yield choice("space_settings", *_space_settings(found, budget, chosen("space"), chosen("size")))
    short = budget.minutes < 120 or bool(budget.pretrained)
    why = "the weights are trained already" if budget.pretrained else f"{budget.minutes:g} minutes are short"
    yield choice(
        "init",
        "shared" if short else "scratch",
        f"{why}: finalists go on from the shared weights" if short else "time enough to train finalists from scratch",
    )
    yield choice("epochs", *_epochs(budget))
    yield choice("trials", *_trials(budget))
    yield choice("trainings", *_trainings(budget))
    yield choice("retrain_epochs", *_retrain_epochs(budget, chosen("trainings")))


def _size(found: Found, budget: Budget) -> tuple[int, str]:
    _, median, _ = found.sides
    allowed = PIXELS_PER_MINUTE * budget.minutes
    fitting = [size for size in SIZES if size <= max(median, SIZES[0])]
    affordable = [size for size in fitting if found.images * size * size <= allowed]
    if budget.pretrained:
        least = min(96, fitting[-1])
        size = max(least, affordable[-1] if affordable else least)
        return size, f"trained weights need about 96 pixels; sides are {median} in the median"
    size = affordable[-1] if affordable else min(32, fitting[-1])
    if size == fitting[-1]:
        return size, f"the shorter sides are {median} pixels in the median"
    return size, f"{found.images:,} images in {budget.minutes:g} minutes; sides are {median} in the median"


def _batch(found: Found) -> tuple[int, str]:
    n = found.images
    batch = 32 if n < 3000 else 64 if n < 30_000 else 128
    batch = max(2, min(batch, n // 8))
    return batch, f"{n:,} training images"


def _validation(found: Found) -> tuple[float, str]:
    if found.n_validation:
        return 0.2, f"not used: the source has {found.n_validation:,} validation images of its own"
    if found.images >= 20_000:
        return 0.1, f"a tenth of {found.images:,} images is enough to tell networks apart"
    return 0.2, f"{found.images:,} images are few, and a small share could not tell networks apart"


def _space(budget: Budget) -> tuple[str, str]:
    if budget.pretrained:
        return "elastic", f"{budget.pretrained} holds the weights of {budget.model or 'a network'}"
    return "mobile-images", "mobile networks for photographs, costs over a factor of more than ten"


def _space_settings(found: Found, budget: Budget, space: str, size: int) -> tuple[tuple[str, ...], str]:
    if space == "elastic":
        return (f"model={budget.model or 'tf_efficientnet_lite0'}",), "the network that the weights belong to"
    if space != "mobile-images":
        return (), "the space's own"
    stride = 1 if size < 48 else 2
    factor, reason = _factor(budget, size, stride)
    widths = [8 * max(1, round(factor * width / 8)) for width in WIDTHS]
    settings = (
        f"widths={widths}",
        f"stem={widths[0]}",
        f"stem_stride={stride}",
        f"head={max(64, round(256 * factor))}",
    )
    return settings, reason


def _factor(budget: Budget, size: int, stride: int) -> tuple[float, str]:
    """By how much the widths are scaled: by the limit, or without one by the time."""
    by_time = 0.5 if budget.minutes <= 20 else 0.75 if budget.minutes <= 60 else 1.0 if budget.minutes <= 240 else 1.5
    if budget.max_macs is None:
        return by_time, f"{by_time:g} times the usual widths in {budget.minutes:g} minutes"
    limit, scale = budget.max_macs, (size / 64) ** 2 * (4 / stride**2)

    def holds(factor: float) -> bool:
        """Whether the limit leaves a choice: networks on both sides of it."""
        low, high = (edge * factor**1.8 * scale for edge in SPAN)
        return bool(2 * low <= limit <= high)

    def distance(factor: float) -> tuple[bool, float]:
        middle = math.sqrt(SPAN[0] * SPAN[1]) * factor**1.8 * scale
        return not holds(factor), abs(math.log(limit / middle))

    factor = by_time if holds(by_time) else min(FACTORS, key=distance)
    return factor, f"{factor:g} times the usual widths have networks on both sides of {in_units(budget.max_macs)} MACs"


# -- what follows from the time ---------------------------------------------------------------------------------------


def _seconds(budget: Budget) -> float:
    """What is left of the time after the timing."""
    spent = 0.0 if budget.timing is None else budget.timing.spent
    return max(60 * budget.minutes - spent, 0.5 * 60 * budget.minutes)


def _clamped(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))


def _epochs(budget: Budget) -> tuple[int, str]:
    if budget.timing is None:
        return 10, "a small run"
    epoch = budget.timing.step * budget.timing.steps
    epochs = _clamped(SUPERNET * _seconds(budget) / epoch, 2, 300)
    return (
        epochs,
        f"an epoch takes {epoch:.1f} s, and {SUPERNET:.0%} of {budget.minutes:g} minutes are for the supernet",
    )


def _trials(budget: Budget) -> tuple[int, str]:
    if budget.timing is None:
        return 60, "a small run"
    trials = _clamped(SEARCH * _seconds(budget) / budget.timing.score, 40, 400) // 20 * 20
    return trials, f"a candidate takes {budget.timing.score:.2f} s, and {SEARCH:.0%} of the time are for the search"


def _race_epochs(budget: Budget) -> float:
    """Epochs of single networks that the race may take."""
    if budget.timing is None:
        return 24.0
    return RACE * _seconds(budget) / (budget.timing.network_step * budget.timing.steps)


def _trainings(budget: Budget) -> tuple[int, str]:
    trainings = _clamped(_race_epochs(budget) / 6, 3, 12)
    return trainings, "trainings that decide between the finalists, in full trainings"


def _retrain_epochs(budget: Budget, trainings: int) -> tuple[int, str]:
    epochs = _clamped(_race_epochs(budget) / trainings, 1, 100)
    return epochs, f"{RACE:.0%} of the time for {trainings} trainings"


# -- the recipe -------------------------------------------------------------------------------------------------------


def recipe(source: str, found: Found, settings: Settings, *, pretrained: str, seed: int, device: str) -> SupernetRun:
    """The recipe of a run with these settings."""
    size, batch = settings["size"], settings["batch"]
    photographs = found.channels > 1
    augment = Augment(scale=0.5, flip=True) if photographs and size >= 32 else Augment(shift=max(1, size // 16))
    training = {"batch": batch, "seed": seed, "device": device, "label_smoothing": 0.1 if photographs else 0.0}

    def train(epochs: int, **options: Any) -> Train:
        return Train(epochs=epochs, warmup_epochs=min(1.0, epochs / 4), **training, **options)

    # In a short training Muon learns more than AdamW and SGD (docs/recipes.md). Trained weights take small steps.
    if settings["space"] == "elastic":
        options: dict[str, Any] = {"sampler": "sandwich", "random_paths": 1}
        optimizer: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.85}
        rates = {"supernet": 1e-3, "shared": 5e-4, "scratch": 1e-3}
    else:
        options = {}
        optimizer = {"optimizer": "nmuon", "weight_decay": 5e-4}
        rates = {"supernet": 0.02, "shared": 0.01, "scratch": 0.02}
    return SupernetRun(
        space=settings["space"],
        space_settings=tuple(settings["space_settings"]),
        pretrained=pretrained,
        data=Data(source, size=size, validation=settings["validation"], augment=augment, seed=seed),
        train=train(settings["epochs"], lr=rates["supernet"], **optimizer),
        retrain=train(settings["retrain_epochs"], lr=rates[settings["init"]], **optimizer),
        **options,
    )
