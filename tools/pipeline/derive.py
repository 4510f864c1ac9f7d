"""What `supernet fit` chooses: settings that follow from the images, the limits and the time, each with its reason."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from supernet.config import Augment, Data, Train
from supernet_tools.pipeline.choices import (
    FEWEST_EPOCHS,
    SHORT,
    Budget,
    Derived,
    Settings,
    SourceFacts,
    Timing,
    clamped,
    front_size,
    race_epochs,
    seconds_left,
    shares,
)
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.derive_objects import object_rules
from supernet_tools.pipeline.units import in_units

SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)
RESOLUTIONS, LEAST_RESOLUTION = (0.5, 2 / 3, 5 / 6), 64
"""Shares of the size of the images that an elastic network may read them at, and the fewest pixels."""
MOBILE = ("tf_efficientnet", "efficientnet", "mobilenetv3")
"""Names of networks whose blocks have expansions."""
WIDTHS = (16, 24, 48, 96)
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Factors on the widths of the space for photographs."""
SPAN = (1.08e6, 29.7e6)
"""MACs of the cheapest and the most expensive network of that space at 64 pixels, factor 1."""
PIXELS_PER_MINUTE = 2e6
"""Pixels of training images that one core can process often enough, in a supernet and in the trainings of the race."""
TRAINED_PIXELS_PER_MINUTE = 1.3e6
"""The same with trained weights: a network of timm takes more time per pixel than the space for photographs."""
LARGEST, MOST_LARGEST = 0.4, 2 / 3
"""Share of a training from trained weights in which only the full network is trained, and the largest such share."""
IDLE = 1e-6  # seconds
FEW_PASSES = 20
"""Epochs up to which images only need flips while weights are shared: such weights do not overfit (docs/recipes.md)."""
CALIBRATION = 320
"""Images that recalibrate batch norm after a start with trained weights; the norms are matched to the full network."""


def derive(facts: SourceFacts, budget: Budget, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Chooses size, batch, epochs, space, validation share and budgets. A pure function of its arguments.

    Args:
        facts: what the source holds.
        budget: limits and time.
        overrides: values that the user has set, by name; they are kept.
    """
    rows: list[Derived] = []
    for row in _rules(facts, budget, rows, dict(overrides or {})):
        rows.append(row)
    return Settings(tuple(rows))


def _rules(facts: SourceFacts, budget: Budget, rows: list[Derived], overrides: dict[str, Any]) -> Iterator[Derived]:
    """Yields the choices in their order; each may read those before it in `rows`."""

    def choice(name: str, value: Any, reason: str) -> Derived:
        flag = f"--{name.replace('_', '-')}"
        if overrides.get(name) is not None:
            return Derived(name, overrides[name], "given", flag)
        return Derived(name, value, reason, flag)

    def chosen(name: str) -> Any:
        return Settings(tuple(rows))[name]

    if facts.boxed:
        yield from object_rules(facts, budget, choice, chosen)
        return
    yield choice("size", *_size(facts, budget))
    yield choice("batch", *_batch(facts))
    yield choice("validation", *_validation(facts, budget))
    yield choice("space", *_space(budget))
    yield choice("space_settings", *_space_settings(facts, budget, chosen("space"), chosen("size")))
    yield choice("init", *_init(budget, raced=bool(overrides.get("trainings") or overrides.get("retrain_epochs"))))
    raced = chosen("init") != "inherit"
    yield choice("epochs", *_epochs(budget, raced=raced))
    if budget.pretrained:
        yield choice("largest_epochs", *_largest_epochs(budget, chosen("epochs"), raced=raced))
    yield choice("trials", *_trials(budget))
    if raced:
        yield choice("trainings", *_trainings(budget))
        yield choice("retrain_epochs", *_retrain_epochs(budget, chosen("trainings")))
    yield choice("front", *_front(budget))


def _size(facts: SourceFacts, budget: Budget) -> tuple[int, str]:
    _, median, _ = facts.sides
    allowed = (TRAINED_PIXELS_PER_MINUTE if budget.pretrained else PIXELS_PER_MINUTE) * budget.minutes
    fitting = [size for size in SIZES if size <= max(median, SIZES[0])]
    affordable = [size for size in fitting if facts.images * size * size <= allowed]
    if budget.pretrained:
        least = min(96, fitting[-1])
        size = max(least, affordable[-1] if affordable else least)
        return size, (
            f"{facts.images:,} images in {budget.duration}, and trained weights need about 96 pixels; sides "
            f"are {median} in the median"
        )
    size = affordable[-1] if affordable else min(32, fitting[-1])
    if size == fitting[-1]:
        return size, f"the shorter sides are {median} pixels in the median"
    return size, f"{facts.images:,} images in {budget.duration}; sides are {median} in the median"


def _batch(facts: SourceFacts) -> tuple[int, str]:
    n = facts.images
    batch = 32 if n < 3000 else 64 if n < 30_000 else 128
    batch = max(2, min(batch, n // 8))
    return batch, f"{n:,} training images"


def _validation(facts: SourceFacts, budget: Budget) -> tuple[float, str]:
    if facts.n_validation:
        return 0.2, f"not used: the source has {facts.n_validation:,} validation images of its own"
    if facts.images >= 20_000:
        return 0.1, f"a tenth of {facts.images:,} images is enough to tell networks apart"
    if budget.pretrained and budget.minutes < SHORT:
        return 0.1, f"{budget.duration} is short, and scores on more images take more of it"
    return 0.2, f"{facts.images:,} images are few, and a small share could not tell networks apart"


def _front(budget: Budget) -> tuple[int, str]:
    if budget.pretrained:
        return (
            front_size(budget),
            "with trained weights the shared ones are good enough to deploy at several costs",
        )
    return 0, "without trained weights the shared ones only rank; supernet export --front exports them all the same"


def _space(budget: Budget) -> tuple[str, str]:
    if budget.pretrained:
        return "elastic", f"{budget.pretrained} holds the weights of {budget.model or 'a network'}"
    return "mobile-images", "mobile networks for photographs, costs over a factor of more than ten"


def _space_settings(facts: SourceFacts, budget: Budget, space: str, size: int) -> tuple[tuple[str, ...], str]:
    if space == "elastic":
        model = f"model={budget.model or 'tf_efficientnet_lite0'}"
        smaller = sorted({16 * round(share * size / 16) for share in RESOLUTIONS})
        smaller = [pixels for pixels in smaller if LEAST_RESOLUTION <= pixels < size]
        cuts = [f"resolutions={smaller}"] if smaller else []
        if budget.model.startswith(MOBILE):
            cuts += ["expansions=[3, 4]", "drop=1"]
        return (model, *cuts), "the network that the weights belong to; images of several sizes, mild cuts"
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
        return by_time, f"{by_time:g} times the usual widths in {budget.duration}"
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


def _init(budget: Budget, *, raced: bool) -> tuple[str, str]:
    """What finalists start from; `raced` says whether the user has asked for trainings."""
    if not budget.pretrained:
        if budget.minutes < 120:
            return "shared", f"{budget.duration} is short: finalists go on from the shared weights"
        return "scratch", "time enough to train finalists from scratch"
    if not raced and race_epochs(budget) < FEWEST_EPOCHS:
        return "inherit", (
            f"{budget.duration} is short: the network with the best shared weights is taken as it is, and the time of "
            "the trainings goes to the supernet"
        )
    return "shared", "the weights are trained already: finalists go on from the shared weights"


def _epochs(budget: Budget, *, raced: bool) -> tuple[int, str]:
    timing = budget.timing
    if timing is None:
        return 10, "a small run"
    seconds, epoch = _training_seconds(budget, raced=raced), timing.step * timing.steps
    what = f"{seconds:.0f} s of {budget.duration} are for the supernet"
    if not budget.pretrained:
        return clamped(seconds / epoch, 2, 300), f"an epoch takes {epoch:.1f} s, and {what}"
    epochs, _ = _epochs_from_trained_weights(seconds, timing)
    alone = timing.network_step * timing.steps
    return epochs, f"an epoch takes {epoch:.1f} s, of the full network alone {alone:.1f} s, and {what}"


def _largest_epochs(budget: Budget, epochs: int, *, raced: bool) -> tuple[float, str]:
    alone = LARGEST * epochs
    if budget.timing is not None:
        derived, largest = _epochs_from_trained_weights(_training_seconds(budget, raced=raced), budget.timing)
        alone = largest if epochs == derived else alone
    return round(alone, 2), "the first epochs train the full network alone, which the others then follow"


def _epochs_from_trained_weights(seconds: float, timing: Timing) -> tuple[int, float]:
    """Returns the epochs of a training, and how many of them are of the full network alone.

    That is a share of `LARGEST`, or a larger one, up to `MOST_LARGEST`, where the time is then enough for one more
    epoch.
    """
    alone, several = timing.network_step * timing.steps, timing.step * timing.steps
    epochs = clamped(seconds / (LARGEST * alone + (1 - LARGEST) * several), 2, 300)
    share = (several - seconds / (epochs + 1)) / max(several - alone, IDLE)
    if LARGEST <= share <= MOST_LARGEST:
        return epochs + 1, share * (epochs + 1)
    return epochs, LARGEST * epochs


def _training_seconds(budget: Budget, *, raced: bool) -> float:
    """Returns the seconds for the training of the supernet, which has those of the race too if there is none."""
    supernet, _, race = shares(budget)
    return (supernet if raced else supernet + race) * seconds_left(budget)


def _trials(budget: Budget) -> tuple[int, str]:
    timing, (_, share, _) = budget.timing, shares(budget)
    if timing is None:
        return 60, "a small run"
    fewest = 20 if budget.pretrained else 40
    trials = clamped(share * seconds_left(budget) / timing.score, fewest, 400) // 20 * 20
    return trials, f"a candidate takes {timing.score:.2f} s, and {share:.0%} of the time are for the search"


def population(trials: int) -> int:
    """Members of the search's population, and candidates that are scored at once: four generations at least."""
    return max(4, min(20, trials // 4))


def _trainings(budget: Budget) -> tuple[int, str]:
    what = "trainings that decide between the finalists, in full trainings"
    if budget.pretrained:
        return clamped(race_epochs(budget) / 2, 2, 8), what
    return clamped(race_epochs(budget) / 6, 3, 12), what


def _retrain_epochs(budget: Budget, trainings: int) -> tuple[int, str]:
    epochs = clamped(race_epochs(budget) / trainings, 1, 10 if budget.pretrained else 100)
    return epochs, f"{shares(budget)[2]:.0%} of the time for {trainings} trainings"


# -- the recipe -------------------------------------------------------------------------------------------------------


def recipe(
    source: str, facts: SourceFacts, settings: Settings, *, pretrained: str, seed: int, device: str
) -> SupernetRun:
    """The recipe of a classifier with these settings."""
    size, batch = settings["size"], settings["batch"]
    photographs = facts.channels > 1
    augment = Augment(scale=0.5, flip=True) if photographs and size >= 32 else Augment(shift=max(1, size // 16))
    few_passes = not pretrained and settings["epochs"] <= FEW_PASSES
    training = {"batch": batch, "seed": seed, "device": device, "label_smoothing": 0.1 if photographs else 0.0}

    def train(epochs: int, **options: Any) -> Train:
        return Train(epochs=epochs, warmup_epochs=min(1.0, epochs / 4), **training, **options)

    # In a short training Muon learns more than AdamW and SGD (docs/recipes.md). Trained weights take small steps.
    if settings["space"] == "elastic":
        options: dict[str, Any] = {"sampler": "sandwich", "random_paths": 1}
        optimizer: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.85}
        rates = {"supernet": 1e-3, "shared": 3e-4, "scratch": 1e-3}
    else:
        options = {}
        optimizer = {"optimizer": "nmuon", "weight_decay": 5e-4}
        rates = {"supernet": 0.02, "shared": 0.01, "scratch": 0.02}
    supernet = train(settings["epochs"], lr=rates["supernet"], **optimizer)
    retrain_epochs = settings["epochs"] if settings["init"] == "inherit" else settings["retrain_epochs"]
    calibration = Data().calibration
    if pretrained:  # the full network learns the classes, then the others learn from it
        options["largest_epochs"] = settings["largest_epochs"]
        supernet = replace(supernet, distill=True)
        calibration = min(CALIBRATION, max(facts.images // 2, 1))
    return SupernetRun(
        space=settings["space"],
        space_settings=tuple(settings["space_settings"]),
        pretrained=pretrained,
        shared_augment=0.0 if few_passes else 1.0,
        data=Data(
            source,
            size=size,
            validation=settings["validation"],
            calibration=calibration,
            augment=augment,
            seed=seed,
        ),
        train=supernet,
        retrain=train(
            retrain_epochs, lr=rates["shared" if settings["init"] == "inherit" else settings["init"]], **optimizer
        ),
        **options,
    )
