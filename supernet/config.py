"""Configurations as frozen dataclasses: complete, typed, comparable, and free of torch, so that `--help` is instant."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from supernet.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """Where images come from and how they are split. Splits depend on the seed alone."""

    source: str = "digits"
    """"digits" (embedded: scikit-learn's 1,797 scans), or a folder with a folder of images per class; it may hold
    train/ and test/ (or val/) instead, each with the classes below."""
    size: int = 32
    """Height and width in pixels; images of another size are resized once, when they are decoded."""
    calibration: int = 640
    """Images of the training split that recalibrate batch norm before an evaluation."""
    validation: float = 0.2
    """Share of the training images held out to score architectures during the search."""
    test: float = 0.2
    """Share held out for the final report; ignored where the source has a test split of its own."""
    shift: int = 0
    """Augmentation: random translation by up to this many pixels (zero padding and crop)."""
    flip: bool = False
    """Augmentation: random horizontal flip."""
    seed: int = 0
    """Seed of the splits."""


@dataclass(frozen=True)
class Train:
    """How weights are trained: a supernet's or a standalone network's."""

    epochs: int = 10
    """Passes over the training split."""
    batch: int = 64
    """Images per step."""
    optimizer: str = "sgd"
    """Any optimizer name of timm; "sgd" is with Nesterov momentum there."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of the optimizer."""
    weight_decay: float = 5e-4
    """Decay of weights with more than one dimension; biases and batch norm are left alone."""
    warmup_epochs: float = 1.0
    """Linear warm-up from a tenth of the learning rate."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    clip: float = 0.0
    """Largest gradient norm; 0 for no clipping."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and sampled architectures."""
    device: str = "cpu"
    """Torch device."""
    channels_last: bool = True
    """Keep images and weights in channels-last order, faster for depthwise convolutions on CPU and half precision."""
    save_seconds: float = 30.0
    """Time between checkpoints; 0 saves after every step. It has no influence on results."""


@dataclass(frozen=True)
class SupernetRun:
    """A recipe: everything that `tools/train_supernet.py` needs, and how winners are retrained later."""

    space: str = "shufflenet-small"
    """Name in SPACES, or "package.module:builder" for a space of one's own."""
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    retrain: Train = field(default_factory=Train)
    """How a standalone network is trained from scratch."""
    sampler: str = "uniform"
    """Which architectures a step trains: "uniform" draws one (SPOS), "fair" every option once (FairNAS), "balanced"
    every option equally often up to one."""


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


def from_dict(kind: type[T], document: Mapping[str, Any]) -> T:
    """A config dataclass from the nested dictionary that `dataclasses.asdict` makes of it.

    Raises:
        InputError: an unknown or missing field, as after a change of release.
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
    missing = [name for name in known if name not in values]
    if missing:
        raise InputError(f"the setting {missing[0]!r} of {kind.__name__} is missing: written by another release")
    return kind(**values)
