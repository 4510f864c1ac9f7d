"""Configurations as frozen dataclasses: complete, typed, comparable, and free of torch, so that `--help` is instant."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from supernet.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Augment:
    """How training images are varied, each on its own; nothing by default."""

    shift: int = 0
    """Random translation by up to this many pixels; what moves in is black."""
    flip: bool = False
    """Mirror half of the images."""
    scale: float = 1.0
    """Smallest share of an image's area that a random resized crop keeps (0.08 for ImageNet); 1 for no such crop."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation vary by a factor of up to 1 ± this (0.4 in SPOS and DetNAS)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 for none. With both, each batch takes one of them at random."""


@dataclass(frozen=True)
class Data:
    """Where images come from and how they are split. Splits depend on the seed alone."""

    source: str = "digits"
    """"digits" (embedded: scikit-learn's 1,797 scans); a folder with a folder of images per class, which may hold
    train/ and test/ (or val/) instead, each with the classes below; "cifar10" or "cifar100" of torchvision; "timm:NAME"
    for a reader of timm, read while training; or "package.module:function" that takes this config and returns the
    splits."""
    root: str = "data"
    """Folder of the files of "cifar10", "cifar100" and "timm:…"."""
    download: bool = False
    """Fetch "cifar10" or "cifar100" into `root` if they are not there."""
    stream: bool = False
    """Read the training images of a folder from disk while training, for sets that do not fit in memory."""
    workers: int = 4
    """Processes that decode a stream."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, after naming and counting them, instead of stopping."""
    cache: str = "auto"
    """Where the decoded images of a folder are kept, so that later commands start at once: "auto" is beside the run,
    "off" nowhere, anything else a folder. It has no influence on results."""
    size: int = 32
    """Height and width in pixels; images of another size are resized once, when they are decoded."""
    calibration: int = 640
    """Images of the training split that recalibrate batch norm before an evaluation."""
    validation: float = 0.2
    """Share of the training images held out to score architectures during the search."""
    test: float = 0.2
    """Share held out for the final report; ignored where the source has a test split of its own."""
    train_split: str = "train"
    """Name of the training split of "timm:…"."""
    validation_split: str = ""
    """Name of the split of "timm:…" that scores architectures; if empty, `validation` of the training split does."""
    test_split: str = "validation"
    """Name of the split of "timm:…" for the final report."""
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    """Seed of the splits."""


@dataclass(frozen=True)
class Train:
    """How weights are trained: a supernet's or a standalone network's."""

    epochs: int = 10
    """Passes over the training split."""
    batch: int = 64
    """Images per step, over all processes."""
    optimizer: str = "sgd"
    """Any optimizer name of timm; "sgd" is with Nesterov momentum there, "adamw" is AdamW."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 5e-4
    """Decay of weights with more than one dimension; biases and batch norm are left alone."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls from its peak."""
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    """Where the schedule "step" divides by 10, as shares of all steps (Detectron's by default)."""
    lr_floor: float = 0.0
    """Share of the peak below which the schedules "cosine" and "linear" do not fall (0.05 in BigNAS)."""
    warmup_epochs: float = 1.0
    """Linear warm-up from a tenth of the learning rate."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    auxiliary: float = 0.4
    """Weight of the loss of an auxiliary head, in spaces that have one (NASNet)."""
    distill: bool = False
    """In-place distillation (BigNAS): all architectures of a step but the first learn from the predictions of the
    first instead of the labels. For the sampler "sandwich", whose first is the largest."""
    clip: float = 0.0
    """Largest gradient norm; 0 for no clipping."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which then is the result; 0 for none."""
    spike: float = 10.0
    """Stop when a loss exceeds this many times the recent mean, and guessing (ln of the number of classes); 0 stops for
    losses that are not finite only."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and sampled architectures."""
    device: str = "cpu"
    """Torch device; under torchrun "cuda" is each process's own."""
    bf16: bool = False
    """Compute in bfloat16 where autocast deems it safe; weights stay float32."""
    compile: bool = False
    """Compile every candidate block once; it then serves all paths."""
    sync_bn: bool = False
    """Batch norm over all processes of a torchrun, on CUDA; otherwise each has its own statistics."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, faster for depthwise convolutions on CPU and half precision."""
    save_seconds: float = 30.0
    """Time between checkpoints; 0 saves after every step. It has no influence on results."""


@dataclass(frozen=True)
class Window:
    """Confines sampled architectures to a range of a cost, exactly; no limits by default."""

    cost: str = "macs"
    """"macs", "params" or "activations"."""
    low: float | None = None
    """Smallest cost."""
    high: float | None = None
    """Largest cost."""
    bin: float | None = None
    """Width of bins between `low` and `high`: first a bin is drawn, then an architecture in it (SPOS, DetNAS: 1e7)."""


@dataclass(frozen=True)
class SupernetRun:
    """A recipe: everything that `tools/train_supernet.py` needs, and how winners are retrained later."""

    space: str = "shufflenet-small"
    """Name in SPACES, or "package.module:builder" for a space of one's own."""
    space_settings: tuple[str, ...] = ()
    """Arguments of the space's builder as NAME=VALUE, values in JSON: filters=16 'ops=["identity", "max3"]'."""
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    """How the supernet is trained; with 0 epochs it is not, and the run is for retrainings of given architectures."""
    retrain: Train = field(default_factory=Train)
    """How a standalone network is trained from scratch."""
    sampler: str = "uniform"
    """Which architectures a step trains: "uniform" draws one (SPOS), "fair" every option once (FairNAS), "balanced"
    every option equally often up to one, "sandwich" the largest, the smallest and `random_paths` others (BigNAS)."""
    random_paths: int = 2
    """Random architectures of a sandwich."""
    largest_epochs: float = 0.0
    """Epochs at the start that train the largest architecture alone (OFA)."""
    lead: str = ""
    """Option that every choice takes at first, for `lead_epochs`; then all other options begin as copies of it."""
    lead_epochs: float = 0.0
    """Epochs at the start that train the architecture of `lead` alone."""
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class Preprocess:
    """What an exported network expects of its input, and what its outputs are called."""

    input_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    std: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    classes: tuple[str, ...]
    """Class names in the order of the logits; empty for networks that do not classify whole images."""
    interpolation: str = "bilinear"
    """Of the resize to `input_size`."""


@dataclass(frozen=True)
class DataSummary:
    """The facts about a data set that networks, limits, drawings and exports need, without its images."""

    classes: tuple[str, ...]
    """Class names in the order of the labels; a detector's labels start at 1, so that `classes[0]` is label 1."""
    in_channels: int
    """Channels of an image."""
    size: int
    """Height and width in pixels; the shorter side where a detector keeps the aspect ratio."""
    mean: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    std: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    n_train: int
    """Number of training images."""
    n_calibration: int
    """Number of calibration images, a subset of the training images."""
    n_validation: int
    """Number of images that score architectures during a search."""
    n_test: int
    """Number of images for the final report."""
    digest: str
    """16 hex digits that identify the images, labels and splits."""

    def preprocess(self) -> Preprocess:
        """Returns what a classifier trained on this data set expects of its input."""
        return Preprocess(self.size, self.mean, self.std, self.classes)


def from_dict(kind: type[T], document: Mapping[str, Any]) -> T:
    """A config dataclass from the nested dictionary that `dataclasses.asdict` makes of it.

    A field that the dictionary lacks takes its default: releases add fields whose defaults do what was done before.

    Raises:
        InputError: an unknown field, or a missing one without a default, as after a change of release.
    """
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            raise InputError(f"{kind.__name__} has no setting {name!r}; {nearest(name, known)}")
        inner: Any = known[name].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            value = from_dict(inner, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    unset = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [n for n, item in known.items() if n not in values and (item.default, item.default_factory) == unset]
    if missing:
        raise InputError(f"the setting {missing[0]!r} of {kind.__name__} is missing: written by another release")
    return kind(**values)
