"""Runs of detectors."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detection import DetectorCosts, create_detector, create_detector_network, load_backbone
from detection.build import DETECTORS, detector_builder
from detection.config import DetectorPreprocess
from detection.coverage import WORTH, anchor_coverage, proposed_ratios, proposed_scale
from detection.data import DetectionSet, DetectionSplits, load
from detection.data.summary import COLUMNS, summary_row
from detection.detector import PREFIX, Detector
from detection.metric import DetectionMetric
from detection.task import Detection
from detection.timm_backbone import is_timm, normalisation, timm_backbone
from detection.weights import backbone_weights
from supernet.config import DataSummary
from supernet.cost import CostTable
from supernet.errors import InputError
from supernet.scoring.cache import ScoreCache
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch, SearchSpace
from supernet.spaces import GENOTYPES, build, builder
from supernet.spaces.pretrained import check_pretrained as check_weights
from supernet.spaces.pretrained import expected_normalisation, load_pretrained
from supernet_tools.pipeline.architectures import arch_of
from supernet_tools.pipeline.batch_norm import policy
from supernet_tools.pipeline.config import BatchNorm, DetectorRun
from supernet_tools.pipeline.kinds import Table
from supernet_tools.pipeline.pretrained import check_pretrained, classified, inherited
from supernet_tools.pipeline.run import NETWORK, WEIGHTS
from supernet_tools.pipeline.settings import parse_settings

DECIDED = ("backbone", "num_classes", "image_size", "head_width", "head_convs", "norm")
"""Arguments of a detector's builder that `settings` cannot set: the recipe and the data decide them."""
MOST_NAMES = 20
"""Names of categories that are printed before a training."""


@dataclass(frozen=True)
class DetectorKind:
    """A detector's data, networks and scores; see `supernet_tools.pipeline.kinds.Kind`."""

    config: DetectorRun
    name = "detector"
    metric = "map"
    metrics = ("map", "map50", "map75")
    truth = "test_map"
    probes = 4
    curves = ("map", "map50")
    curve_batches = 4

    @property
    def space(self) -> str:
        """Detector, neck and backbone."""
        return f"{self.config.detector}-{self.config.neck}-{self.config.backbone}"

    @property
    def start(self) -> str:
        """What the backbone of a retraining starts from."""
        return self.config.start

    @property
    def task(self) -> Detection:
        """The detector's losses on images varied as the recipe says."""
        return Detection(self.config.data.augment, self.config.data.workers)

    @property
    def retrain_task(self) -> Detection:
        """The same."""
        return self.task

    def resolved(self) -> DetectorRun:
        """The recipe with the architecture of a fixed backbone instead of its file; its detector can be built."""
        config = self.config
        if config.backbone_arch:
            arch = arch_of(config.backbone_arch, self._backbone_space())
            config = dataclasses.replace(config, backbone_arch=arch.to_json())
        if config.start != "scratch" and not config.pretrained:
            raise InputError(f"start={config.start!r} needs a pre-training; name its folder with pretrained")
        if config.pretrained:
            check_pretrained(config, self.backbone_settings())
            if is_timm(config.backbone):
                self._check_timm()
                if not config.data.mean:
                    mean, std = normalisation(config.backbone)
                    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=mean, std=std))
            elif self._elastic:
                chain = self._elastic_chain()
                check_weights(chain, config.pretrained)
                published = expected_normalisation(chain)
                if not config.data.mean and published is not None:
                    mean, std = published
                    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=mean, std=std))
            elif Path(config.pretrained).is_file():
                self._check_file(Path(config.pretrained))
        with torch.device("meta"):
            self._create(2)
        return config

    def _create(self, classes: int, generator: torch.Generator | None = None) -> Detector:
        """The searchable detector; of one with a fixed backbone of timm there may be nothing to search."""
        return create_detector(
            **self._arguments(classes), generator=generator, searched=not is_timm(self.config.backbone)
        )

    @property
    def _elastic(self) -> bool:
        """Whether the backbone is an elastic network that starts with a file of weights."""
        return self.config.backbone == "elastic" and Path(self.config.pretrained).is_file()

    def _elastic_chain(self, *, loaded: bool = False) -> Any:
        """The elastic network that the backbone is part of, with the weights of the file or on the meta device."""
        with torch.device("cpu" if loaded else "meta"):
            chain = build("elastic", "supernet", self.backbone_settings())
        if loaded:
            load_pretrained(chain, self.config.pretrained)
        return chain

    def _check_file(self, file: Path) -> None:
        """Checks before any image is read that a file of weights fits the backbone."""
        with torch.device("meta"):
            detector = self._create(2)
            backbone_weights(detector, file)
        searched = any(choice.name.startswith(f"{PREFIX}.") for choice in detector.space.choices)
        if searched and self.config.start != "scratch":
            raise InputError(
                f"pretrained={str(file)!r} holds one set of weights, and a retraining with "
                f"start={self.config.start!r} needs those of any backbone of the space; give a run's folder"
            )

    def _check_timm(self) -> None:
        """Checks before any image is read that a file holds the weights of a backbone of timm."""
        file = self.config.pretrained
        if not Path(file).is_file():
            raise InputError(f"pretrained={file!r} should be a file of the weights of {self.config.backbone!r}")
        timm_backbone(self.config.backbone, file)

    def load(self, cache: Path | None) -> DetectionSplits:
        """The images."""
        return load(self.config.data, cache=cache)

    def skeleton(self, summary: DataSummary) -> Detector:
        """The searchable detector on the meta device."""
        with torch.device("meta"):
            return self.supernet(summary)

    def supernet(self, summary: DataSummary, generator: torch.Generator | None = None) -> Detector:
        """The searchable detector with fresh weights; those of a pre-training are loaded by `begin`."""
        return self._create(len(summary.classes), generator)

    @property
    def has_weights(self) -> bool:
        """Whether the supernet is trained."""
        return self.config.train.epochs > 0

    @property
    def batch_norm(self) -> BatchNorm:
        """Recalibration; a detector's backbone begins with shared weights at most."""
        return "plain"

    def check_batch_norm(self, policy: BatchNorm) -> None:
        """Raises `InputError` for "matched", since a detector has no full network of its own."""
        if policy == "matched":
            raise InputError("bn='matched' is for classifiers that begin with trained weights; take bn='plain'")

    def taught(self, supernet: Any) -> Detection:
        """The task; there is no teacher."""
        return self.task

    def end(self, supernet: Any, data: DetectionSplits) -> None:
        """Nothing."""

    def begin(self, supernet: Any, data: DetectionSplits) -> None:
        """Loads pre-trained weights into the backbone, if the recipe names any."""
        if self.config.pretrained:
            self._load(supernet, None, self.config.train.seed)

    def network(self, summary: DataSummary, arch: Arch, generator: torch.Generator) -> nn.Module:
        """The detector of an architecture with fresh weights."""
        decided = arch if len(arch) else None  # a fixed backbone and neck leave nothing to decide
        return create_detector_network(**self._arguments(len(summary.classes)), arch=decided, generator=generator)

    def prepare(self, network: nn.Module, arch: Arch, seed: int) -> None:
        """Gives the backbone of a retraining the weights of `start`, which are trained on classification if needed."""
        if self.config.start == "scratch":
            return
        inside = arch.sub(PREFIX)
        if self.config.start == "supernet" and inside and not self._elastic:
            load_backbone(network, inherited(Path(self.config.pretrained), inside))
        else:
            self._load(network, inside or None, seed)

    def _load(self, network: nn.Module, inside: Arch | None, seed: int) -> None:
        """Loads pre-trained weights into the backbone of a detector."""
        if is_timm(self.config.backbone):
            load_backbone(network, timm_backbone(self.config.backbone, self.config.pretrained))
        elif self._elastic:
            chain = self._elastic_chain(loaded=True)
            load_backbone(network, chain if inside is None else chain.subnet(inside))
        else:
            load_backbone(network, self._backbone_file(inside, seed))

    def costs(self, supernet: Any) -> DetectorCosts:
        """MACs of backbone, neck and heads, parameters and activations."""
        return DetectorCosts(supernet)

    def tables(self, supernet: Any, data: DetectionSplits) -> list[Table]:
        """What the images hold, and how many objects of the training images the anchors can match."""
        parts = {"train": data.train, "search validation": data.validation, "test": data.test}
        share, (scale, reached) = anchor_coverage(supernet, data.train), proposed_scale(supernet, data.train)
        names = ", ".join(data.classes[:MOST_NAMES]) + (", …" if len(data.classes) > MOST_NAMES else "")
        facts = [
            ("categories", f"{len(data.classes)}: {names}"),
            ("training objects with an anchor of IoU 0.5 or more", f"{100 * share:.1f} %"),
            ("the most with another anchor_scale", f"{100 * reached:.1f} %, anchor_scale={scale:g}"),
        ]
        ratios, with_ratios = proposed_ratios(supernet, data.train, scale=scale)
        if with_ratios >= reached + WORTH:
            shown = ",".join(f"{ratio:g}" for ratio in ratios)
            facts.append(("… and with the ratios of a k-means", f"{100 * with_ratios:.1f} %, anchor_ratios=[{shown}]"))
        rows = [(name, *summary_row(part)) for name, part in parts.items()]
        return [("images", COLUMNS, rows), ("detector", ("what", "value"), facts)]

    def shared_weights(
        self,
        supernet: Any,
        data: DetectionSplits,
        *,
        cache: ScoreCache | None,
        bn_batches: int,
        bn: BatchNorm = "plain",
        cost: CostTable | None = None,
        hold: int = 2**29,
    ) -> SharedWeights:
        """The evaluator on the search-validation split."""
        batch = self.config.scoring_batch
        return SharedWeights(
            supernet,
            _scored(data.calibration),
            _scored(data.validation),
            bn=policy(bn, bn_batches, batch),
            batch=batch,
            metric=DetectionMetric(data.validation),
            cost=cost,
            cache=cache,
            hold=hold,
        )

    def figures(self, network: nn.Module, data: DetectionSplits, device: str) -> dict[str, float]:
        """COCO's figures on the test split, and `metrics` on the validation split."""
        network.eval()
        test = self.scores(network, data.test.to(device))
        validation = self.scores(network, data.validation.to(device))
        return {
            **{f"test_{name}": value for name, value in test.items()},
            **{f"validation_{name}": validation[name] for name in self.metrics},
        }

    def validation(self, data: DetectionSplits, device: str) -> Callable[[nn.Module], Mapping[str, float]]:
        """The mAP metrics on the search-validation split."""
        images = _scored(data.validation).to(device)
        metric = DetectionMetric(images)
        return lambda network: metric(network, images, self.config.scoring_batch)

    def scores(self, network: nn.Module, images: DetectionSet) -> Mapping[str, float]:
        """COCO's figures of a network in eval mode."""
        return DetectionMetric(images, every=True)(network, images, self.config.scoring_batch)

    def preprocess(self, summary: DataSummary) -> DetectorPreprocess:
        """What an export records."""
        data = self.config.data
        return DetectorPreprocess(
            data.size,
            summary.mean,
            summary.std,
            summary.classes,
            longest=data.longest,
            category_ids=summary.category_ids,
        )

    def backbone_settings(self) -> dict[str, Any]:
        """The recipe's settings of the backbone as arguments of its builder. Raises `InputError` if they do not fit."""
        config = self.config
        if is_timm(config.backbone):
            if config.backbone_settings:
                raise InputError(f"the backbone {config.backbone!r} has no settings; leave backbone_settings out")
            return {}
        space = GENOTYPES[config.backbone].space if config.backbone in GENOTYPES else config.backbone
        reserved = ("phase", "num_classes")
        owner = f"the backbone {config.backbone!r}"
        return parse_settings(builder(space), config.backbone_settings, owner=owner, reserved=reserved)

    def _backbone_space(self) -> SearchSpace:
        with torch.device("meta"):
            return build(self.config.backbone, "standalone", self.backbone_settings()).space

    def _backbone_arch(self) -> Arch | None:
        return Arch.from_json(self.config.backbone_arch) if self.config.backbone_arch else None

    def _arguments(self, classes: int) -> dict[str, Any]:
        """Arguments of `create_detector` and `create_detector_network` that the recipe and the data decide."""
        config, size = self.config, self.config.data.size
        settings = parse_settings(
            detector_builder(config.detector, config.neck),
            _settings_of(config.detector, config.settings),
            owner=f"the detector {config.detector!r} with the neck {config.neck!r}",
            reserved=DECIDED,
            extra={"levels": int},
        )
        return {
            "kind": config.detector,
            "backbone": config.backbone,
            "backbone_settings": self.backbone_settings(),
            "backbone_arch": self._backbone_arch(),
            "neck": config.neck,
            "num_classes": classes,
            "image_size": (size, config.data.longest or size),
            "head_width": config.head_width,
            "head_convs": config.head_convs,
            "norm": config.norm,
            "freeze_bn": config.freeze_bn,
            "frozen_stages": config.frozen_stages,
            **settings,
        }

    def _backbone_file(self, inside: Arch | None, seed: int) -> Path:
        """Weights for the backbone: those of the pre-trained supernet, or of a network trained on classification."""
        folder, config = Path(self.config.pretrained), self.config
        if folder.is_file():
            return folder
        if (folder / NETWORK).exists():
            return folder / NETWORK
        wanted = inside if inside is not None else self._backbone_arch()
        if wanted is None and config.backbone in GENOTYPES:
            genotype = GENOTYPES[config.backbone]
            with torch.device("meta"):
                wanted = build(genotype.space, "standalone", {}).space.from_indices(genotype.indices)
        return folder / WEIGHTS if wanted is None else classified(folder, wanted, seed)


def _settings_of(detector: str, texts: Sequence[str]) -> list[str]:
    """The settings that hold for a detector, without its name in front."""
    kept = []
    for text in texts:
        owner, dot, rest = text.partition(".")
        if not dot or owner not in DETECTORS:
            kept.append(text)
        elif owner == detector:
            kept.append(rest)
    return kept


def _scored(images: DetectionSet) -> DetectionSet:
    """The set in memory as detectors see it, or the set itself where `data.memory` left images on disk."""
    return images.images() if images.held_bytes else images
