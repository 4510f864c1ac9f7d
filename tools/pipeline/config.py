"""Recipes as frozen dataclasses: everything that a run needs, complete, typed and free of torch."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from detection.config import DetectionData
from supernet.checked import Checked, Count, NonNegative, Probability, Rule, Share, Text, shown
from supernet.config import Data, Train, Window, read_openings
from supernet.errors import InputError


def are_openings(texts: tuple[str, ...]) -> bool:
    """Whether texts are NAME=EPOCH or NAME=FIRST:LAST, each name once."""
    try:
        read_openings(texts)
    except InputError:
        return False
    return True


def are_settings(texts: tuple[str, ...]) -> bool:
    """Whether texts are NAME=VALUE, each name once."""
    names = [text.partition("=")[0] for text in texts if "=" in text]
    return len(set(names)) == len(texts) and all(names)


Settings = Annotated[tuple[str, ...], Rule("NAME=VALUE texts, each name once", are_settings)]

BatchNorm = Literal["plain", "matched", "keep"]
"""The statistics of batch norm when shared weights are scored or exported; see `SupernetRun.bn`."""


def own_splits(source: str) -> list[str]:
    """Which of "validation" and "test" a folder of images or a data.yaml has; none if it cannot be read."""
    parts = ("validation", "test")
    with warnings.catch_warnings(), contextlib.suppress(InputError, OSError, ValueError):
        warnings.simplefilter("ignore")  # they come again when the images are read
        if source.endswith((".yaml", ".yml")):
            from detection.data.layouts import has_split

            return [part for part in parts if has_split(Path(source), part)]
        if os.path.isdir(source):
            from supernet.data.folder import layout

            found = layout(Path(source))
            return [part for part in parts if getattr(found, part) is not None]
    return []


AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """Which architectures a training step of a supernet uses, and where the weights of its options begin."""

    sampler: Literal["uniform", "weighted", "even", "fair", "balanced", "sandwich"] = "uniform"
    """"uniform" draws one architecture per step (SPOS, DetNAS), "weighted" draws options without weights half as often,
    "even" lets the options of a choice take turns, "fair" uses every option once (FairNAS), "balanced" every option
    equally often up to a difference of one, "sandwich" the largest, the smallest and `random_paths` others (BigNAS)."""
    random_paths: Annotated[int, Ge(0), Le(1000)] = 2
    """Random architectures of a sandwich."""
    largest_epochs: NonNegative = 0.0
    """Epochs at the start that train the largest architecture alone (OFA)."""
    lead: str = AUTO
    """Option that every choice takes for the first `lead_epochs`; the other options then start as copies of it. "auto"
    takes the smallest options if all others can start as their copies and each has weights (ShuffleNet units, for
    example), and none in other spaces; an empty text is none."""
    lead_epochs: NonNegative = 0.0
    """Epochs at the start that train only the architecture that takes `lead` everywhere; with "auto" a fifth of the
    training."""
    opens: Annotated[tuple[str, ...], Rule("texts such as kernel=2 or expand=4:6", are_openings)] = ()
    """Progressive shrinking (OFA): NAME=EPOCH keeps every decision whose name ends with NAME at its largest option
    until that epoch; with NAME=FIRST:LAST its options open one by one, from the largest down."""
    zero_gamma: bool = True
    """Let the last batch norm of every residual branch begin with scale 0, so that the branch adds nothing at first
    (BigNAS, §3.1; Goyal et al., 2017, §5.1). It has no influence on weights of a pre-training."""
    alike: bool = True
    """Let supernets begin so that all options hand on like features (docs/train.md, "How the weights begin"); otherwise
    every layer begins by itself with He initialisation, as published. It has no influence on weights of a
    pre-training."""
    window: Window = field(default_factory=Window)
    """Range of a cost that sampled architectures must lie in. For detectors the cost may also be "backbone_macs", the
    MACs of the backbone at 224 pixels."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Starts that exclude each other or leave nothing of the training, and options for another sampler."""
        train: Train = getattr(self, "train")  # noqa: B009  every recipe declares it
        epochs = train.epochs
        named = self.lead not in ("", AUTO)
        if (named or self.lead_epochs) and self.largest_epochs:
            yield "lead", f"and largest_epochs={self.largest_epochs:g} both come first; drop one"
        if self.lead_epochs and not named:
            yield "lead_epochs", "needs the option that leads; name it with lead"
        if named and self.lead_epochs >= epochs > 0:
            yield (
                "lead_epochs",
                f"leaves none of train.epochs={epochs} to the other options; lower it, or turn the lead off with an "
                "empty lead and lead_epochs 0",
            )
        if self.largest_epochs > epochs > 0:
            yield "largest_epochs", f"should be at most train.epochs={epochs}"
        limited = self.window.low is not None or self.window.high is not None
        if self.opens and (limited or named):
            yield "opens", "cannot be combined with a window or a lead; drop one"
        late = [text for text in self.opens if float(text.partition("=")[2].partition(":")[0]) >= epochs > 0]
        if late:
            yield "opens", f"has {late[0]}, which leaves none of train.epochs={epochs} to the smaller options"
        if self.sampler in ("weighted", "even") and limited:
            yield "sampler", f"is {self.sampler!r}, which cannot be confined to a window; use 'uniform'"
        if train.distill and self.sampler != "sandwich":
            yield "train.distill", f"follows the largest path of the sampler 'sandwich', not of {self.sampler!r}"
        if train.regularize_largest and self.sampler != "sandwich":
            yield "train.regularize_largest", f"needs the largest path of the sampler 'sandwich', not {self.sampler!r}"

    def unused(self) -> Iterator[tuple[str, str]]:
        """The size of a sandwich for another sampler."""
        if self.sampler != "sandwich":
            yield "random_paths", f"with sampler={self.sampler!r}; it is for 'sandwich'"


def unused_shares(source: str) -> Iterator[tuple[str, str]]:
    """Yields the fields of a recipe that are shares of the images, where the source has splits of its own."""
    for part in own_splits(source):
        yield f"data.{part}", f"with data.source={shown(source)}, which has a {part} split of its own"


@dataclass(frozen=True, kw_only=True)
class SupernetRun(Sampling):
    """A recipe of a classifier: how the supernet is trained, and how winners are retrained later."""

    space: Text = "shufflenet-small"
    """Name in SPACES, or "package.module:builder" for a space of your own."""
    space_settings: Settings = ()
    """Arguments of the space's builder as NAME=VALUE, values in JSON: filters=16 'ops=["identity", "max3"]'."""
    pretrained: str = ""
    """Weights that the training starts with: for the space "elastic" a file with a state dict of its network,
    .safetensors or .pth, with the names of timm, torchvision or EfficientNet-PyTorch, or "timm" to download those that
    timm publishes; for "resnet-50-widths" and "mobilenetv2-widths" (headroom=1) a file of torchvision; or the folder of
    a finished run of the same space. Images are then normalised as for these weights, and train.epochs may be 0. Fresh
    weights if empty."""
    bn: Literal["default", "plain", "matched", "keep"] = "default"
    """Batch norm when shared weights are scored or exported: "plain" recalibrates the statistics on calibration images,
    "matched" also gives every norm the mean and deviation that its output has in the full network, "keep" uses the
    statistics in the weights. By default "matched" after a start with `pretrained`, otherwise "plain"."""
    teacher: Literal["none", "start"] = "none"
    """"start": every architecture also learns the predictions of the largest network with the weights of `pretrained`,
    which stay as they are."""
    teacher_weight: NonNegative = 1.0
    """Weight of the teacher's predictions in the loss; that of the labels is 1."""
    data: Data = field(default_factory=Data)
    shared_augment: Probability = 1.0
    """Share of the strength of `data.augment` while the supernet is trained; 0 leaves flips alone. Shared weights learn
    far less than those of a network alone and gain from easier images (docs/recipes.md). Standalone networks are
    trained with all of it."""
    train: Train = field(default_factory=Train)
    """How the supernet is trained. With 0 epochs it is not, and the run serves to retrain given architectures, or
    shares the weights of `pretrained`."""
    retrain: Train = field(default_factory=Train)
    """How a standalone network is trained from scratch."""
    retrain_settings: Settings = ()
    """Arguments of the space's builder for standalone networks alone, besides `space_settings`: auxiliary=true."""
    retrain_cutout: Share = 0.0
    """Side of the square that is cut out of images (`data.augment.cutout`) while standalone networks are trained, as a
    share of the image's side: 0.5 for 16 of 32 pixels."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A teacher without weights, or beside another one."""
        yield from super().conflicts()
        if self.teacher == "start" and not self.pretrained:
            yield "teacher", "is the largest network with the weights of pretrained; name them"
        if self.teacher == "start" and self.train.distill:
            yield "teacher", "and train.distill are two teachers; drop one"

    def unused(self) -> Iterator[tuple[str, str]]:
        """The weight of a teacher that there is not, a share of no variation, and shares of images that are split."""
        yield from super().unused()
        yield from unused_shares(self.data.source)
        if self.teacher == "none":
            yield "teacher_weight", "with teacher='none'"
        if self.data.augment == self.data.augment.weakened(0):
            yield "shared_augment", "with images that are at most flipped (data.augment)"


@dataclass(frozen=True, kw_only=True)
class DetectorRun(Sampling):
    """A recipe of a detector; the scripts take it like a `SupernetRun`.

    The stages follow DetNAS (Chen et al., 2019): a classification supernet is trained by a `SupernetRun`; `pretrained`
    names its folder and the detector starts with its weights; after the search the winner's backbone is trained on
    classification alone and then in the detector.
    """

    detector: Text = "retinanet"
    """"retinanet" or "faster-rcnn-fpn"."""
    backbone: Text = "shufflenet-small"
    """A space in SPACES or "package.module:builder", which is searched; or what is fixed: a published network, or
    "timm:NAME", a ResNet, EfficientNet or MobileNet of timm. With one of timm and the neck "fpn" nothing is searched,
    and the detector itself is trained."""
    backbone_settings: Settings = ()
    """Arguments of the backbone's builder as NAME=VALUE, values in JSON; the same as in the pre-training."""
    backbone_arch: str = ""
    """Fixes the backbone to this architecture (JSON or a file with it), so that only the neck is searched."""
    freeze_bn: bool = False
    """Keep statistics, scale and shift of batch norm in a fixed, pre-trained backbone as they are."""
    frozen_stages: Annotated[int, Ge(0), Le(16)] = 0
    """Number of stages of a fixed, pre-trained backbone whose weights stay as they are, the finest first."""
    neck: Text = "fpn"
    """"fpn", which has no decisions, or "nasfpn", which is searched (RetinaNet only)."""
    head_width: Annotated[int, Ge(1), Le(2**14)] = 256
    """Channels of pyramid and heads."""
    head_convs: Annotated[int, Ge(0), Le(64)] = 4
    """Convolutions in each tower of RetinaNet, or in the box head of a two-stage detector."""
    norm: Literal["none", "batch", "group"] = "batch"
    """Normalisation after the convolutions of pyramid and heads. DetNAS and NAS-FPN use batch norm everywhere."""
    settings: Settings = ()
    """Further arguments of the detector's builder as NAME=VALUE, values in JSON: repeats=3 anchor_scale=3. One with
    the name of a detector in front, as retinanet.anchor_scale=3, holds for this detector alone."""
    data: DetectionData = field(default_factory=DetectionData)
    train: Train = field(default_factory=Train)
    """How the supernet is trained. With 0 epochs it is not, and the run serves to retrain given architectures."""
    retrain: Train = field(default_factory=Train)
    """How a single detector is trained."""
    pretrained: str = ""
    """Where the backbone's weights come from: the folder of a trained classification supernet over the same space, or
    for a fixed backbone also a folder of its retraining or a file of weights, such as torchvision's or timm's for its
    ResNet or for a backbone "timm:NAME"; fresh weights if empty. data.mean and data.std may repeat the normalisation of
    its images; with weights of timm they are timm's by default."""
    start: Literal["scratch", "supernet", "classification"] = "scratch"
    """What the backbone of a retrained detector starts with: fresh weights, its weights in the pre-trained supernet, or
    weights trained on classification alone by the `retrain` recipe of the pre-training (as in the paper)."""
    scoring_batch: Count = 16
    """Images per forward pass when networks are scored, and per calibration batch."""

    def unused(self) -> Iterator[tuple[str, str]]:
        """Shares of images that are split already."""
        yield from super().unused()
        yield from unused_shares(self.data.source)


Recipe = SupernetRun | DetectorRun
