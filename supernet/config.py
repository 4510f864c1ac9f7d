"""Configurations as frozen dataclasses: complete, typed, comparable, and free of torch, so that `--help` is instant."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from supernet.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Augment:
    """How each training image is varied; not at all by default."""

    shift: int = 0
    """Random translation by up to this many pixels; the uncovered border is black."""
    flip: bool = False
    """Mirror half of the images."""
    scale: float = 1.0
    """Smallest share of an image's area that a random resized crop keeps (0.08 for ImageNet); 1 for no crop."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation are scaled by factors within 1 ± this (0.4 in SPOS and DetNAS)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 for none. With both, each batch uses one of them at random."""


@dataclass(frozen=True)
class Data:
    """Where images come from and how they are split. Splits depend on the seed alone."""

    source: str = "digits"
    """"digits" (embedded: scikit-learn's 1,797 scans); a folder with one folder of images per class, or with train/ and
    test/ (or val/) that hold the class folders; "cifar10" or "cifar100" from torchvision; "timm:NAME" for a reader of
    timm, read while training; or "package.module:function", which takes this config and returns the splits."""
    root: str = "data"
    """Folder of the files of "cifar10", "cifar100" and "timm:…"."""
    download: bool = False
    """Download "cifar10" or "cifar100" into `root` if they are missing."""
    stream: bool = False
    """Read the training images of a folder from disk while training, for sets that do not fit in memory."""
    workers: int = 4
    """Processes that decode a stream."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, with a warning that names and counts them, instead of stopping."""
    cache: str = "auto"
    """Where the decoded images of a folder are kept, so that later commands start at once: "auto" is the run's folder,
    "off" nowhere, anything else another folder. It has no influence on results."""
    size: int = 32
    """Height and width in pixels; images of another size are resized when they are decoded."""
    calibration: int = 640
    """Images of the training split that recalibrate batch norm before an evaluation."""
    validation: float = 0.2
    """Share of the training images held out to score architectures during the search."""
    test: float = 0.2
    """Share held out for the final report; ignored if the source has its own test split."""
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
    """Any optimizer name of timm, e.g. "adamw"; its "sgd" uses Nesterov momentum."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 5e-4
    """Weight decay of tensors with more than one dimension; biases and batch norm are not decayed."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """How the learning rate falls from its peak."""
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    """When the schedule "step" divides the rate by 10, as shares of all steps (Detectron's by default)."""
    lr_floor: float = 0.0
    """Lowest learning rate of the schedules "cosine" and "linear", as a share of the peak (0.05 in BigNAS)."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, which starts at a tenth of the learning rate."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    auxiliary: float = 0.4
    """Weight of the auxiliary head's loss, in spaces that have one (NASNet)."""
    distill: bool = False
    """In-place distillation (BigNAS): the first architecture of a step learns from the labels, all others from its
    predictions. For the sampler "sandwich", whose first architecture is the largest."""
    clip: float = 0.0
    """Largest gradient norm; 0 for no clipping."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which becomes the result; 0 for none."""
    spike: float = 10.0
    """Stop when a loss exceeds both this many times the recent mean and the loss of guessing (ln of the number of
    classes); 0 stops only when a loss is not finite."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and sampled architectures."""
    device: str = "cpu"
    """Torch device; under torchrun, "cuda" is the device of each process."""
    bf16: bool = False
    """Compute in bfloat16 where autocast considers it safe; weights stay float32."""
    compile: bool = False
    """Compile every candidate block once, for all paths."""
    sync_bn: bool = False
    """Synchronise batch norm over all processes of a torchrun, on CUDA; otherwise each has its own statistics."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, faster for depthwise convolutions on CPU and half precision."""
    save_seconds: float = 30.0
    """Seconds between checkpoints; 0 saves after every step. It has no influence on results."""


@dataclass(frozen=True)
class Window:
    """Restricts sampled architectures to an exact range of a cost; no limits by default."""

    cost: str = "macs"
    """"macs", "params", "activations" or "matmul_macs"."""
    low: float | None = None
    """Smallest cost."""
    high: float | None = None
    """Largest cost."""
    bin: float | None = None
    """Width of bins between `low` and `high`: a bin is drawn first, then an architecture in it (SPOS, DetNAS: 1e7)."""


@dataclass(frozen=True)
class Preprocess:
    """What an exported network expects of its input, and the names of its outputs."""

    input_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    std: tuple[float, ...]
    """Per channel, on the scale 0..1."""
    classes: tuple[str, ...]
    """Class names in the order of the logits; empty for networks that do not classify whole images."""
    interpolation: str = "bilinear"
    """Interpolation of the resize to `input_size`."""


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
    """Returns a config dataclass from a nested dictionary as made by `dataclasses.asdict`.

    Fields missing from the dictionary take their defaults: a new release adds fields whose defaults keep the behaviour.

    Args:
        kind: the dataclass.
        document: its fields by name; lists become tuples.

    Raises:
        InputError: an unknown field, or a missing one without a default, e.g. because another release wrote it.
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
        raise InputError(f"the setting {missing[0]!r} of {kind.__name__} is missing; another release wrote it")
    return kind(**values)
