"""What `supernet fit` knows of a source, a machine and a request, what it chooses, and how it divides the time."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from supernet.checked import Checked, Count, NonNegative, Pixels, Positive, Share, Text

LAYOUTS = ("COCO", "YOLO", "Pascal VOC", "CSV")
"""Layouts of images with boxes."""
SUPERNET, SEARCH, RACE = 0.45, 0.12, 0.33
"""Shares of the time; the rest is for reading images, timing, export and report."""
TRAINED_SUPERNET, TRAINED_SEARCH, TRAINED_RACE = 0.6, 0.15, 0.25
"""The shares when training starts from trained weights. The times of probes and exports are known then and excluded."""
FEWEST_EPOCHS = 4.0
"""Epochs of single networks below which no race is run from trained weights: an epoch each changes little."""
FRONT, SHORT_FRONT = 6, 5
"""Networks exported beside the winner when training starts from trained weights, and fewer below `SHORT` minutes."""
SHORT = 20
"""Minutes."""
PROBES = 56
"""Networks that are scored during and after the training of a supernet: four at ten times for its curves, sixteen for
its check."""
REPORT_SECONDS = 15.0
"""Estimated time of the start of a command and of the report."""
EXPORT_SECONDS = 20.0
"""Estimated time of an export without scoring its network."""


@dataclass(frozen=True)
class SourceFacts(Checked):
    """What a source holds, read before any image is decoded."""

    kind: str
    """"folder", "function" or the name of a data set; of images with boxes its layout (see `LAYOUTS`)."""
    classes: tuple[str, ...]
    """Names of the classes."""
    counts: tuple[int, ...]
    """Training images per class, or objects per class in the training images, including those held out later."""
    n_validation: Annotated[int, Ge(0)]
    """Images of a validation split of the source's own; 0 without one."""
    n_test: Annotated[int, Ge(0)]
    """Images of a test split of the source's own; 0 without one."""
    sides: tuple[int, int, int]
    """Smallest, median and largest shorter side, in pixels."""
    channels: Count
    """Channels of an image."""
    passed: tuple[str, ...] = ()
    """What was left out, and why."""
    n_boxed: Annotated[int, Ge(0)] = 0
    """Training images with boxes; 0 for a classification, where `counts` are of images."""
    places: tuple[str, ...] = ()
    """Where annotations and images with boxes are, as NAME=VALUE of `detection.config.DetectionData`."""
    ratio: Annotated[float, Ge(1), Le(4)] = 1.0
    """The 90th percentile of the longer over the shorter side of images with boxes."""
    object_side: Annotated[float, Ge(0)] = 0.0
    """Median side of an object (the root of its area), as a share of the shorter side of its image."""

    @property
    def boxed(self) -> bool:
        """Whether the images have boxes, so that a detector is trained."""
        return self.kind in LAYOUTS

    @property
    def images(self) -> int:
        """The number of training images, including those held out later."""
        return self.n_boxed if self.boxed else sum(self.counts)


@dataclass(frozen=True)
class Timing(Checked):
    """How long pieces of work take on this machine, measured once per run."""

    step: Annotated[float, Gt(0)]
    """Seconds of a training step of the supernet."""
    network_step: Annotated[float, Gt(0)]
    """Seconds of a training step of one network: a random one, or with trained weights the full one."""
    score: Annotated[float, Gt(0)]
    """Seconds to score a candidate."""
    steps: Count
    """Steps of an epoch."""
    spent: NonNegative = 0.0
    """Seconds that reading the images and the timing took."""
    anchors: tuple[float, ...] = ()
    """Shares of the training objects that have an anchor of IoU 0.5, by the scale of the anchors (see
    `derive_objects.ANCHORS`); of detectors only."""


@dataclass(frozen=True)
class Budget(Checked):
    """What the user allows, and what is known of the machine."""

    minutes: Positive = 10.0
    """Minutes that the whole command may take."""
    max_macs: float | None = None
    """Limit on multiply-accumulates."""
    pretrained: str = ""
    """File of weights."""
    model: str = ""
    """Name of the network in timm that the file belongs to."""
    timing: Timing | None = None
    """How long pieces of work take; without it epochs, trials and trainings are those of a small run."""
    factor: Positive = 1.0
    """Factor on the widths of a detector, so that networks within the limits exist."""

    @property
    def duration(self) -> str:
        """The minutes in words."""
        return f"{self.minutes:g} minute{'' if self.minutes == 1 else 's'}"


@dataclass(frozen=True)
class FitSettings(Checked):
    """The settings that `fit` decides, with the types and ranges of its flags; checks those read from a file."""

    size: Pixels
    batch: Annotated[int, Ge(2), Le(2**24)]
    validation: Share
    space: Text
    space_settings: tuple[str, ...]
    init: Literal["scratch", "shared", "inherit"]
    epochs: Count
    trials: Count
    front: Annotated[int, Ge(0), Le(1000)]
    trainings: Annotated[float, Ge(2)] = 2
    """Not used without a race, with `init="inherit"`; nor are the epochs of its trainings."""
    retrain_epochs: Count = 1
    largest_epochs: NonNegative = 0.0
    """Of a start with trained weights only."""
    anchor_scale: Positive = 3.0


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


def seconds_left(budget: Budget) -> float:
    """Returns the seconds left after the timing, and with trained weights after probes and exports too."""
    timing, whole = budget.timing, 60 * budget.minutes
    if timing is None:
        return whole
    later = 0.0
    if budget.pretrained:
        exports = front_size(budget) + (budget.minutes >= SHORT)  # a winner without a race is in the front
        later = REPORT_SECONDS + PROBES * timing.score + exports * (EXPORT_SECONDS + 2 * timing.score)
    return max(whole - timing.spent - later, 0.4 * whole)


def shares(budget: Budget) -> tuple[float, float, float]:
    """Returns the shares of supernet, search and race."""
    return (TRAINED_SUPERNET, TRAINED_SEARCH, TRAINED_RACE) if budget.pretrained else (SUPERNET, SEARCH, RACE)


def clamped(value: float, low: int, high: int) -> int:
    """Returns the integer part of a value, clamped to bounds."""
    return max(low, min(high, int(value)))


def race_epochs(budget: Budget) -> float:
    """Returns how many epochs of single networks the race may take."""
    if budget.timing is None:
        return 24.0
    return shares(budget)[2] * seconds_left(budget) / (budget.timing.network_step * budget.timing.steps)


def front_size(budget: Budget) -> int:
    """Returns the number of networks of the exported front; 0 without trained weights."""
    if not budget.pretrained:
        return 0
    return FRONT if budget.minutes >= SHORT else SHORT_FRONT
