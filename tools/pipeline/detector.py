"""Runs of detectors: what their stages do otherwise than those of classifiers (`classifying`)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from detection import DetectorCosts, DetectorPreprocess, create_detector, create_detector_network, load_backbone
from detection.config import DetectorRun
from detection.data.images import DetectionSet
from detection.data.load import DetectionSplits, load
from detection.detector import PREFIX, Detector
from detection.metric import DetectionMetric
from detection.task import Detection
from detection.weights import backbone_weights
from supernet import GENOTYPES, Arch, create_network
from supernet.config import SupernetRun
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.files import read_json
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.cache import ScoreCache
from supernet.scoring.shared_weights import SharedWeights
from supernet.spaces import build
from supernet_tools.pipeline import stages
from supernet_tools.pipeline.classifier import builder_settings

TOLD = (
    "kind",
    "backbone",
    "backbone_settings",
    "backbone_arch",
    "neck",
    "num_classes",
    "image_size",
    "arch",
    "phase",
    "head_width",
    "head_convs",
    "norm",
    "freeze_bn",
    "generator",
)
"""Arguments of `create_detector` that `settings` cannot say: the recipe, the data or the stage does."""


@dataclass(frozen=True)
class Detecting:
    """A recipe's data, networks and scores; attributes as of `classifying.Classifying`."""

    config: DetectorRun
    metric = "map"
    metrics = ("map", "map50", "map75")
    truth = "test_map"
    probes = 4

    @property
    def space(self) -> str:
        """What exports and weights record."""
        return f"{self.config.detector}-{self.config.neck}-{self.config.backbone}"

    @property
    def start(self) -> str:
        """What a retraining begins with."""
        return self.config.start

    @property
    def task(self) -> Detection:
        """What trainings learn."""
        return Detection(self.config.data.augment, self.config.data.workers)

    def resolved(self) -> DetectorRun:
        """The recipe with the architecture of a fixed backbone instead of the name of its file, everything checked."""
        config = self.config
        if config.backbone_arch:
            arch = stages.arch_of(config.backbone_arch, _space(config))
            config = dataclasses.replace(config, backbone_arch=arch.to_json())
        if config.start != "scratch" and not config.pretrained:
            raise InputError(f"start={config.start!r} needs a pre-training; name its folder with --pretrained")
        if config.pretrained:
            check_pretrained(config)
            if Path(config.pretrained).is_file():
                self._check_file(Path(config.pretrained))
        return config

    def _check_file(self, file: Path) -> None:
        """Whether a file of weights fits, before any image is read."""
        with torch.device("meta"):
            supernet = self._supernet(2, None)
            backbone_weights(supernet, file)
        searched = any(choice.name.startswith(f"{PREFIX}.") for choice in supernet.space.choices)
        if searched and self.config.start != "scratch":
            raise InputError(
                f"pretrained={str(file)!r} holds one set of weights, and a retraining with "
                f"start={self.config.start!r} needs those of any backbone of the space; give a run's folder"
            )

    def load(self) -> DetectionSplits:
        """The images."""
        return load(self.config.data)

    def supernet(self, data: DetectionSplits, generator: torch.Generator | None = None) -> Detector:
        """The supernet with the weights that training begins with; those of a pre-training come in `begin`."""
        return self._supernet(len(data.classes), generator)

    def begin(self, supernet: Detector) -> None:
        """Load the pre-trained weights, if the recipe names any, before the first step of a supernet."""
        if self.config.pretrained:
            load_backbone(supernet, self._backbone_file(None, self.config.train.seed))

    def network(self, data: DetectionSplits, arch: Arch, generator: torch.Generator) -> nn.Module:
        """The detector of an architecture with fresh weights."""
        return create_detector_network(**self._arguments(len(data.classes)), arch=arch, generator=generator)

    def prepare(self, network: nn.Module, arch: Arch, seed: int) -> None:
        """Give the backbone of a retraining the weights of `start`, trained on classification now if need be."""
        if self.config.start == "scratch":
            return
        inside = arch.sub(PREFIX)
        if self.config.start == "supernet" and inside:
            load_backbone(network, inherited(Path(self.config.pretrained), inside))
        else:
            load_backbone(network, self._backbone_file(inside or None, seed))

    def costs(self, supernet: Detector) -> DetectorCosts:
        """What architectures cost."""
        return DetectorCosts(supernet)

    def shared_weights(
        self, supernet: Detector, data: DetectionSplits, cache: ScoreCache, bn_batches: int
    ) -> SharedWeights:
        """The evaluator on the search-validation split."""
        batch = self.config.scoring_batch
        return SharedWeights(
            supernet,
            _scored(data.calibration),
            _scored(data.validation),
            bn=Recalibrate(bn_batches, batch),
            batch=batch,
            metric=DetectionMetric(data.validation),
            cache=cache,
        )

    def figures(self, network: nn.Module, data: DetectionSplits, device: str) -> dict[str, float]:
        """COCO's figures of a trained detector, by split."""
        network.eval()
        found = self.scores(network, data.test.to(device)), self.scores(network, data.validation.to(device))
        return {
            **{f"test_{name}": value for name, value in found[0].items()},
            **{f"validation_{name}": found[1][name] for name in self.metrics},
        }

    def scores(self, network: nn.Module, images: DetectionSet) -> Mapping[str, float]:
        """COCO's figures of a network in eval mode."""
        return DetectionMetric(images, every=True)(network, images, self.config.scoring_batch)

    def preprocess(self, data: DetectionSplits) -> DetectorPreprocess:
        """What an export records."""
        mean, std = (tuple(map(float, t.flatten())) for t in (data.train.mean, data.train.std))
        return DetectorPreprocess(self.config.data.size, mean, std, data.classes, longest=self.config.data.longest)

    def _supernet(self, classes: int, generator: torch.Generator | None) -> Detector:
        return create_detector(**self._arguments(classes), generator=generator)

    def _arguments(self, classes: int) -> dict[str, Any]:
        """Arguments of `create_detector` and `create_detector_network` that the recipe fixes."""
        config = self.config
        size = config.data.size
        return {
            "kind": config.detector,
            "backbone": config.backbone,
            "neck": config.neck,
            "num_classes": classes,
            "image_size": (size, config.data.longest or size),
            "head_width": config.head_width,
            "head_convs": config.head_convs,
            "norm": config.norm,
            "backbone_settings": _backbone_settings(config),
            "backbone_arch": _fixed(config),
            **builder_settings(config.settings, "settings", dict.fromkeys(TOLD)),
        }

    def _backbone_file(self, inside: Arch | None, seed: int) -> Path:
        """Weights for the backbone: of the pre-trained supernet, or of a network trained on classification."""
        folder, config = Path(self.config.pretrained), self.config
        if folder.is_file():
            return folder
        if (folder / stages.NETWORK).exists():
            return folder / stages.NETWORK
        wanted = inside if inside is not None else _fixed(config)
        if wanted is None and config.backbone in GENOTYPES:
            genotype = GENOTYPES[config.backbone]
            with torch.device("meta"):
                wanted = build(genotype.space, "standalone", {}).space.from_indices(genotype.indices)
        return folder / stages.WEIGHTS if wanted is None else classified(folder, wanted, seed)


def _scored(images: DetectionSet) -> Images | DetectionSet:
    """All as they are seen in memory, or read for every pass where `data.memory` left them on disk."""
    return images.images() if images.held_bytes else images


def _backbone_settings(config: DetectorRun) -> dict[str, Any]:
    return builder_settings(config.backbone_settings, "backbone_settings", dict.fromkeys(("phase", "num_classes")))


def _fixed(config: DetectorRun) -> Arch | None:
    return Arch.from_json(config.backbone_arch) if config.backbone_arch else None


def _space(config: DetectorRun) -> Any:
    """The space of the backbone."""
    with torch.device("meta"):
        return build(config.backbone, "standalone", _backbone_settings(config)).space


# -- pre-training -----------------------------------------------------------------------------------------------------


def check_pretrained(config: DetectorRun) -> None:
    """Whether a folder of weights fits a recipe, before anything is built; a file is compared where it is loaded.

    Raises:
        InputError: there is none, its training has not finished, or it is over another space.
    """
    folder = Path(config.pretrained)
    if (folder / stages.NETWORK).exists() or folder.is_file():
        return
    if not folder.is_dir() or not (folder / stages.WEIGHTS).exists():
        raise InputError(
            f"pretrained={config.pretrained!r} holds no {stages.WEIGHTS}; name the folder of a finished "
            "tools/train_supernet.py over the backbone's space, or for a fixed backbone a file of weights"
        )
    if read_json(folder / "run.json").get("kind") != "supernet":
        raise InputError(
            f"pretrained={config.pretrained!r} is no run of a classifier; name the one of the pre-training"
        )
    there = cast(SupernetRun, stages.config_of(folder))
    space = GENOTYPES[config.backbone].space if config.backbone in GENOTYPES else config.backbone
    own = _backbone_settings(config)
    theirs = builder_settings(there.space_settings, "space_settings", {})
    if there.space != space or own != theirs:
        raise InputError(
            f"pretrained={config.pretrained!r} was trained over {there.space!r} with {theirs or 'no settings'}, and "
            f"the backbone is of {space!r} with {own or 'no settings'}; both must be the same"
        )


def classified(folder: Path, arch: Arch, seed: int) -> Path:
    """The weights of an architecture trained on classification by the recipe of its run; trained now, if not yet."""
    run = stages.open_stage(folder)
    train = dataclasses.replace(run.config.retrain, seed=seed)
    form = run.supernet.space.normal_form(run.supernet.space.canonical(arch))
    stages.retrain_stage(run, form, train)
    return stages.retrain_folder(run, form, seed) / stages.NETWORK


def inherited(folder: Path, arch: Arch) -> Mapping[str, torch.Tensor]:
    """The weights of an architecture in a pre-trained supernet, its batch norm recalibrated."""
    run = stages.open_stage(folder)
    shared = run.shared_weights().subnet(arch)
    network = create_network(run.config.space, arch=arch, **stages.network_settings(run.config, run.data))
    extra = network.load_state_dict(shared.state_dict(), strict=False).unexpected_keys
    assert not extra, f"the standalone network lacks {extra}"
    return network.state_dict()
