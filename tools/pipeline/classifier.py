"""Runs of classifiers."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.chain import Chain
from supernet.config import DataSummary, Preprocess
from supernet.cost import CostTable
from supernet.data import Images, Splits, load
from supernet.plugins import FUNCTION
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.cache import ScoreCache
from supernet.scoring.metrics import accuracy, classification
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch
from supernet.spaces import build, builder, create_network, create_supernet
from supernet.training.task import Classification
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.kinds import Table
from supernet_tools.pipeline.settings import parse_settings

STAND_INS = {"num_classes": 10, "input_size": 32, "in_channels": 3}
"""What a space is built with before the data are known, to see whether its settings fit."""
FROM_DATA = ("num_classes", "input_size", "in_channels", "phase")
"""Arguments of a space's builder that the data and the stage decide."""


@dataclass(frozen=True)
class ClassifierKind:
    """A classifier's data, networks and scores; see `supernet_tools.pipeline.kinds.Kind`."""

    config: SupernetRun
    name = "supernet"
    metric = "accuracy"
    metrics = ("accuracy", "loss")
    curves = ("accuracy",)
    curve_batches = 2
    truth = "test_accuracy"
    probes = 16
    start = "scratch"

    @property
    def space(self) -> str:
        """The name in the recipe."""
        return self.config.space

    @property
    def task(self) -> Classification:
        """Cross-entropy on images varied as the recipe says."""
        return Classification(self.config.data.augment)

    @property
    def retrain_task(self) -> Classification:
        """The same with the cutout of standalone networks."""
        data = self.config.data
        side = round(self.config.retrain_cutout * data.size)
        return Classification(replace(data.augment, cutout=max(data.augment.cutout, side)))

    def resolved(self) -> SupernetRun:
        """The recipe, of which the space can be built."""
        arguments = self.space_settings()
        if not FUNCTION.fullmatch(self.config.data.source):  # a function may return images of another size
            arguments["input_size"] = self.config.data.size
        parameters = inspect.signature(builder(self.config.space)).parameters
        for name, value in STAND_INS.items():  # for a builder without defaults
            if name in parameters and parameters[name].default is inspect.Parameter.empty:
                arguments.setdefault(name, value)
        with torch.device("meta"):
            chain = build(self.config.space, "supernet", arguments)
        if self.config.retrain_settings:
            with torch.device("meta"):
                build(self.config.space, "standalone", arguments | self.retrain_settings())
        if self.config.pretrained:
            from supernet.spaces.pretrained import check_pretrained  # loads timm, which takes a second

            check_pretrained(chain, self.config.pretrained)
        return self.config

    def space_settings(self) -> dict[str, Any]:
        """The recipe's settings of the space as arguments of its builder. Raises `InputError` if they do not fit."""
        owner = f"the space {self.config.space!r}"
        target = builder(self.config.space)
        return parse_settings(target, self.config.space_settings, owner=owner, reserved=FROM_DATA)

    def retrain_settings(self) -> dict[str, Any]:
        """What the recipe adds to the settings of the space for standalone networks. Raises `InputError` likewise."""
        owner = f"the space {self.config.space!r}"
        target = builder(self.config.space)
        return parse_settings(target, self.config.retrain_settings, owner=owner, reserved=FROM_DATA)

    def builder_arguments(self, summary: DataSummary) -> dict[str, Any]:
        """All arguments of the space's builder: those that follow from the data, and the recipe's."""
        return {
            "num_classes": len(summary.classes),
            "input_size": summary.size,
            "in_channels": summary.in_channels,
            **self.space_settings(),
        }

    def load(self, cache: Path | None) -> Splits:
        """The images."""
        return load(self.config.data, cache=cache)

    def skeleton(self, summary: DataSummary) -> Chain:
        """The supernet on the meta device."""
        with torch.device("meta"):
            return build(self.config.space, "supernet", self.builder_arguments(summary))

    def supernet(self, summary: DataSummary, generator: torch.Generator | None = None) -> Chain:
        """The supernet with the weights that training starts with."""
        return create_supernet(self.config.space, generator=generator, **self.builder_arguments(summary))

    def begin(self, supernet: Chain) -> None:
        """Loads the weights of a network, if the recipe names a file of them."""
        if self.config.pretrained:
            from supernet.spaces.pretrained import load_pretrained

            load_pretrained(supernet, self.config.pretrained)

    def network(self, summary: DataSummary, arch: Arch, generator: torch.Generator) -> nn.Module:
        """The standalone network of an architecture with fresh weights."""
        arguments = self.builder_arguments(summary) | self.retrain_settings()
        return create_network(self.config.space, arch=arch, generator=generator, **arguments)

    def prepare(self, network: nn.Module, arch: Arch, seed: int) -> None:
        """Nothing: a classifier starts from fresh weights."""

    def costs(self, supernet: Chain) -> CostTable:
        """MACs, parameters and activations."""
        return CostTable(supernet)

    def tables(self, supernet: Chain, data: Splits) -> list[Table]:
        """Nothing: `run.json` has the numbers of images and the classes."""
        return []

    def shared_weights(
        self,
        supernet: Chain,
        data: Splits,
        *,
        cache: ScoreCache | None,
        bn_batches: int,
        cost: CostTable | None = None,
        hold: int = 2**29,
    ) -> SharedWeights:
        """The evaluator on the search-validation split."""
        bn = Recalibrate(bn_batches)
        return SharedWeights(supernet, data.calibration, data.validation, bn=bn, cost=cost, cache=cache, hold=hold)

    def figures(self, network: nn.Module, data: Splits, device: str) -> dict[str, float]:
        """Accuracy on the test and the validation split."""
        return {
            "test_accuracy": accuracy(network, data.test.to(device)),
            "validation_accuracy": accuracy(network, data.validation.to(device)),
        }

    def validation(self, data: Splits, device: str) -> None:
        """Nothing."""

    def scores(self, network: nn.Module, images: Images) -> Mapping[str, float]:
        """Accuracy and loss of a network in eval mode."""
        return classification(network, images, 256)

    def preprocess(self, summary: DataSummary) -> Preprocess:
        """What an export records."""
        return Preprocess(summary.size, summary.mean, summary.std, summary.classes)
