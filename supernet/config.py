"""Configurations as frozen dataclasses: complete, typed, comparable, and free of torch, so that `--help` is instant."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from supernet.checked import (
    Checked,
    Count,
    Device,
    Natural,
    NonNegative,
    Pixels,
    Positive,
    Rule,
    Seed,
    Share,
    Text,
    check,
    fields_of,
    one_line,
    shown,
    unchecked,
)
from supernet.errors import InputError, nearest

T = TypeVar("T")


def _ascending(shares: tuple[float, ...]) -> bool:
    return list(shares) == sorted(share for share in shares if 0 < share < 1)


OPENING = re.compile(r"([^=]+)=(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")
"""NAME=EPOCH or NAME=FIRST:LAST."""


def read_openings(texts: Sequence[str]) -> list[tuple[str, float, float]]:
    """Returns the name, the first and the last epoch of openings such as "kernel=2" or "expand=4:6".

    Raises:
        InputError: a text of another form, epochs in descending order, or a name twice.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"openings={shown(texts)} should be a sequence of texts, such as ['kernel=2']")
    openings: dict[str, tuple[str, float, float]] = {}
    for text in texts:
        written = OPENING.fullmatch(text) if isinstance(text, str) else None
        if written is None:
            raise InputError(f"the opening {shown(text)} should be NAME=EPOCH or NAME=FIRST:LAST, such as 'kernel=2'")
        name, first, last = written[1], float(written[2]), float(written[3] or written[2])
        if last < first:
            raise InputError(f"the opening {text!r} ends before it begins; write the smaller epoch first")
        if name in openings:
            raise InputError(f"the opening {text!r} is the second one of {name!r}; give each name once")
        openings[name] = (name, first, last)
    return list(openings.values())


@dataclass(frozen=True)
class Augment(Checked):
    """How each training image is varied; not at all by default."""

    shift: Natural = 0
    """Random translation by up to this many pixels; the uncovered border is black."""
    flip: bool = False
    """Mirror half of the images."""
    scale: Annotated[float, Gt(0), Le(1)] = 1.0
    """Smallest share of an image's area that a random resized crop keeps (0.08 for ImageNet); 1 for no crop."""
    color_jitter: Annotated[float, Ge(0), Le(1)] = 0.0
    """Brightness, contrast and saturation are scaled by factors within 1 ± this (0.4 in SPOS and DetNAS)."""
    cutout: Natural = 0
    """Side in pixels of a black square at a random place of each image, which may lie partly outside (16 on CIFAR-10 in
    DeVries & Taylor, 2017, and NASNet); 0 for none."""
    mixup: NonNegative = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: NonNegative = 0.0
    """Alpha of cutmix; 0 for none. With both, each batch uses one of them at random."""

    def weakened(self, share: float) -> "Augment":
        """Returns augmentation of which everything but flips has this share of its strength, from 0 to 1."""
        return replace(
            self,
            shift=round(self.shift * share),
            scale=1 - (1 - self.scale) * share,
            color_jitter=self.color_jitter * share,
            cutout=round(self.cutout * share),
            mixup=self.mixup * share,
            cutmix=self.cutmix * share,
        )


@dataclass(frozen=True)
class Data(Checked):
    """Where images come from and how they are split. Splits depend on the seed alone."""

    source: str = "digits"
    """"digits" (embedded: scikit-learn's 1,797 scans); a folder with one folder of images per class, or with train/ and
    test/ or val/ (or both) that hold them; "cifar10" or "cifar100" from torchvision; "timm:NAME" for a reader of timm,
    read while training; or "package.module:function", which takes this config and returns the splits."""
    root: str = "data"
    """Folder of the files of "cifar10", "cifar100" and "timm:…"."""
    download: bool = False
    """Download "cifar10" or "cifar100" into `root` if they are missing."""
    stream: bool = False
    """Read the training images of a folder from disk while training, for sets that do not fit in memory."""
    workers: Annotated[int, Ge(0), Le(1024)] = 4
    """Processes that decode a stream."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, with a warning that names and counts them, instead of stopping."""
    cache: Text = "auto"
    """Where the decoded images of a folder are kept, so that later commands start at once: "auto" is the run's folder,
    "off" nowhere, anything else another folder. It has no influence on results."""
    size: Pixels = 32
    """Height and width in pixels; images of another size are resized when they are decoded."""
    calibration: Count = 640
    """Images of the training split that recalibrate batch norm before an evaluation; all of a smaller split."""
    validation: Share = 0.2
    """Share of the training images held out to score architectures during the search."""
    test: Share = 0.2
    """Share held out for the final report; ignored if the source has its own test split."""
    train_split: str = "train"
    """Name of the training split of "timm:…"."""
    validation_split: str = ""
    """Name of the split of "timm:…" that scores architectures; if empty, `validation` of the training split does."""
    test_split: str = "validation"
    """Name of the split of "timm:…" for the final report."""
    augment: Augment = field(default_factory=Augment)
    seed: Seed = 0
    """Seed of the splits."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A translation or a square that leaves nothing of an image."""
        if self.augment.shift >= self.size:
            yield "augment.shift", f"should be less than size={self.size}"
        if self.augment.cutout >= self.size:
            yield "augment.cutout", f"should be less than size={self.size}"

    def unused(self) -> Iterator[tuple[str, str]]:
        """What is for other sources; functions, readers of timm and plug-ins may use every field."""
        files = os.path.isdir(self.source)
        if self.source not in ("digits", "cifar10", "cifar100") and not files:
            return
        beside = f"with source={shown(self.source)}"
        for name in ("train_split", "validation_split", "test_split"):
            yield name, f"{beside}; it is for 'timm:NAME'"
        if self.source == "digits" or files:
            for name in ("root", "download"):
                yield name, f"{beside}; it is for 'cifar10' and 'cifar100'"
        if not files:
            for name in ("stream", "skip_unreadable"):
                yield name, f"{beside}; it is for a folder of images"


@dataclass(frozen=True)
class Train(Checked):
    """How weights are trained: a supernet's or a standalone network's."""

    epochs: Annotated[int, Ge(0), Le(10**6)] = 10
    """Passes over the training split."""
    batch: Annotated[int, Ge(1), Le(2**24)] = 64
    """Images per step, over all processes."""
    optimizer: Text = "sgd"
    """Any optimizer name of timm, e.g. "adamw"; its "sgd" uses Nesterov momentum."""
    lr: Positive = 0.1
    """Peak learning rate."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Factor between the learning rates of one layer (a block, the stem, the head) and of the next; 1 gives all layers
    one rate. A training that begins with trained weights moves the early layers less (0.65 to 0.9)."""
    momentum: Share = 0.9
    """Momentum of the optimizer."""
    weight_decay: NonNegative = 5e-4
    """Weight decay of tensors with more than one dimension; biases and batch norm are not decayed."""
    schedule: Literal["cosine", "linear", "step", "exponential", "constant"] = "cosine"
    """How the learning rate falls from its peak."""
    drops: Annotated[
        tuple[float, ...], Rule("shares of the training between 0 and 1, in ascending order", _ascending)
    ] = (2 / 3, 8 / 9)
    """When the schedule "step" divides the rate by 10, as shares of all steps (Detectron's by default)."""
    decay_rate: Annotated[float, Gt(0), Lt(1)] = 0.97
    """What the schedule "exponential" multiplies the rate by (BigNAS and NASNet: 0.97)."""
    decay_epochs: Positive = 2.4
    """Epochs between two decays (BigNAS and NASNet: 2.4)."""
    lr_floor: Share = 0.0
    """Lowest learning rate of the schedules "cosine", "linear" and "exponential", as a share of the peak (0.05 in
    BigNAS)."""
    warmup_epochs: NonNegative = 1.0
    """Epochs of linear warm-up, which starts at a tenth of the learning rate."""
    label_smoothing: Share = 0.0
    """Label smoothing of the cross-entropy."""
    auxiliary: NonNegative = 0.4
    """Weight of the auxiliary head's loss, in spaces that have one (NASNet)."""
    distill: bool = False
    """In-place distillation (BigNAS): the first architecture of a step learns from the labels, all others from its
    predictions. For the sampler "sandwich", whose first architecture is the largest."""
    regularize_largest: bool = False
    """Weight decay, dropout and drop path act on the largest architecture of a step alone (BigNAS, §3.1): parameters
    that it does not use are not decayed, and the others run without dropout. For the sampler "sandwich"."""
    clip: NonNegative = 0.0
    """Largest gradient norm; 0 for no clipping."""
    ema: Share = 0.0
    """Decay of an exponential moving average of the weights, which becomes the result; 0 for none."""
    ema_warmup: bool = True
    """Let the decay grow with the step t as 1 - t**(-2/3), up to `ema`. Otherwise the average of a training of
    fewer than 1 / (1 - ema) steps is mostly the initial weights."""
    patience: Annotated[int, Ge(0), Le(10**6)] = 0
    """End the training after so many epochs without a better score on held-out images; 0 for never. A network trained
    alone then has the weights of its best epoch. Supernets are scored about ten times, not after every epoch."""
    spike: NonNegative = 10.0
    """Stop when a loss exceeds both this many times the recent mean and the loss of guessing (ln of the number of
    classes); 0 stops only when a loss is not finite."""
    seed: Seed = 0
    """Seed of initial weights, data order, augmentation and sampled architectures."""
    device: Device = "cpu"
    """Torch device; under torchrun, "cuda" is the device of each process."""
    bf16: bool = False
    """Compute in bfloat16 where autocast considers it safe; weights stay float32."""
    compile: bool = False
    """Compile every candidate block once, for all paths."""
    sync_bn: bool = False
    """Synchronise batch norm over all processes of a torchrun, on CUDA; otherwise each has its own statistics."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, faster for depthwise convolutions on CPU and half precision."""
    save_seconds: NonNegative = 30.0
    """Seconds between checkpoints; 0 saves after every step. It has no influence on results."""
    prefetch: bool = True
    """Prepare the next batch of images in memory in a background thread, on the CPU. It has no influence on results."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A warm-up that outlasts the training."""
        if 0 < self.epochs < self.warmup_epochs:
            yield "warmup_epochs", f"should be at most epochs={self.epochs}"

    def unused(self) -> Iterator[tuple[str, str]]:
        """What is for other schedules, and for an average of the weights."""
        beside = f"with schedule={shown(self.schedule)}"
        if self.schedule != "step":
            yield "drops", f"{beside}; it is for 'step'"
        if self.schedule != "exponential":
            yield "decay_rate", f"{beside}; it is for 'exponential'"
            yield "decay_epochs", f"{beside}; it is for 'exponential'"
        if self.schedule in ("step", "constant"):
            yield "lr_floor", f"{beside}; it is for 'cosine', 'linear' and 'exponential'"
        if not self.ema:
            yield "ema_warmup", "without an average of the weights, ema"


@dataclass(frozen=True)
class Window(Checked):
    """Restricts sampled architectures to an exact range of a cost; no limits by default."""

    cost: Text = "macs"
    """"macs", "params", "activations" or "matmul_macs"."""
    low: Annotated[float | None, Ge(0)] = None
    """Smallest cost."""
    high: Annotated[float | None, Ge(0)] = None
    """Largest cost."""
    bin: Annotated[float | None, Gt(0)] = None
    """Width of bins between `low` and `high`: a bin is drawn first, then an architecture in it (SPOS, DetNAS: 1e7)."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A range without bounds for its bins, or with its bounds swapped."""
        if self.bin is not None and (self.low is None or self.high is None):
            yield "bin", "needs both bounds of the window: set low and high too"
        elif self.low is not None and self.high is not None and self.low > self.high:
            yield "low", f"should be at most high={self.high}; swap them"

    def unused(self) -> Iterator[tuple[str, str]]:
        """A cost that nothing bounds."""
        if self.low is None and self.high is None:
            yield "cost", "without a bound, low or high"


@dataclass(frozen=True)
class Preprocess(Checked):
    """What an exported network expects of its input, and the names of its outputs."""

    input_size: Pixels
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    std: tuple[Positive, ...]
    """Per channel, on the scale 0..1."""
    classes: tuple[str, ...]
    """Class names in the order of the logits; empty for networks that do not classify whole images."""
    interpolation: str = "bilinear"
    """Interpolation of the resize to `input_size`."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Channels without one of the two."""
        if not self.mean or len(self.std) != len(self.mean):
            yield "std", f"and mean={shown(self.mean)} should have one value each per channel"


@dataclass(frozen=True)
class DataSummary(Checked):
    """The facts about a data set that networks, limits, drawings and exports need, without its images."""

    classes: tuple[str, ...]
    """Class names in the order of the labels; a detector's labels start at 1, so that `classes[0]` is label 1."""
    in_channels: Count
    """Channels of an image."""
    size: Pixels
    """Height and width in pixels; the shorter side where a detector keeps the aspect ratio."""
    mean: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    std: tuple[Positive, ...]
    """Per channel, on the scale 0..1."""
    n_train: Natural
    """Number of training images."""
    n_calibration: Natural
    """Number of calibration images, a subset of the training images."""
    n_validation: Natural
    """Number of images that score architectures during a search."""
    n_test: Natural
    """Number of images for the final report."""
    digest: str
    """16 hex digits that identify the images, labels and splits."""
    category_ids: tuple[int, ...] = ()
    """Ids of a detector's classes in the annotations of its training images."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Channels without one of the two, and classes without an id, or names that tell them apart."""
        if len(self.std) != len(self.mean):
            yield "std", f"and mean={shown(self.mean)} should have one value each per channel"
        if len(self.mean) != self.in_channels:
            yield "mean", f"should have one value for each of in_channels={self.in_channels}"
        if not self.classes or len(set(self.classes)) < len(self.classes):
            yield "classes", "should be one or more different names"
        if unprintable := [name for name in self.classes if not one_line(name)]:
            yield "classes", f"should be names without control characters, not {shown(unprintable[0])}"
        if self.category_ids and len(self.category_ids) != len(self.classes):
            yield "category_ids", f"and classes={shown(self.classes)} should have one value each per class"

    def preprocess(self) -> Preprocess:
        """Returns what a classifier trained on this data set expects of its input."""
        return Preprocess(self.size, self.mean, self.std, self.classes)


def from_dict(kind: type[T], document: Mapping[str, Any], *, owner: str = "") -> T:
    """Returns a config dataclass from a nested dictionary as made by `dataclasses.asdict`.

    Fields missing from the dictionary take their defaults: a new release adds fields whose defaults keep the behaviour.

    Args:
        kind: the dataclass.
        document: its fields by name; lists become tuples.
        owner: what messages call the document, such as the name of its file.

    Raises:
        InputError: an unknown field, a missing one without a default, e.g. because another release wrote it, or a value
            of a wrong type or out of range.
    """
    where = f"{owner}: " if owner else ""
    if not dataclasses.is_dataclass(kind):
        raise InputError(f"kind={shown(kind)} should be a dataclass")
    try:
        with unchecked():
            config = _built(kind, document, "")
        check(config)
    except InputError as error:
        raise InputError(f"{where}{error}") from None
    return config


def _built(kind: type[T], document: Any, prefix: str) -> T:
    """Returns a dataclass whose values are still to be checked."""
    if not isinstance(document, Mapping):
        name = prefix.removesuffix(".") or kind.__name__
        raise InputError(f"{name}={shown(document)} should be the settings of {kind.__name__} by name")
    known, types = {item.name: item for item in dataclasses.fields(kind)}, fields_of(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            raise InputError(f"{kind.__name__} has no setting {shown(prefix + str(name))}; {nearest(name, known)}")
        if isinstance(types[name], type) and dataclasses.is_dataclass(types[name]):
            value = _built(types[name], value, f"{prefix}{name}.")
        values[name] = tuple(value) if isinstance(value, list) else value
    unset = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [n for n, item in known.items() if n not in values and (item.default, item.default_factory) == unset]
    if missing:
        raise InputError(f"the setting {prefix + missing[0]!r} of {kind.__name__} is missing; another release wrote it")
    return kind(**values)
