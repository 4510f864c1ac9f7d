"""Runs of classifiers: what their stages do that those of detectors do otherwise (`detecting`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from supernet import Arch, Chain, create_network, create_supernet
from supernet.config import Preprocess, SupernetRun
from supernet.cost import CostTable
from supernet.data.images import Images, Splits
from supernet.data.load import load
from supernet.errors import InputError
from supernet.scoring.batch_norm import Recalibrate
from supernet.scoring.cache import ScoreCache
from supernet.scoring.metrics import accuracy, classification
from supernet.scoring.shared_weights import SharedWeights
from supernet.training.task import Classification


@dataclass(frozen=True)
class Classifying:
    """A recipe's data, networks and scores.

    Attributes:
        metric: that searches maximise; `metrics` are all that scoring gives.
        truth: the figure of a retraining that rankings are compared with.
        probes: random networks scored after a training.
        start: what a retraining begins with.
    """

    config: SupernetRun
    metric = "accuracy"
    metrics = ("accuracy", "loss")
    truth = "test_accuracy"
    probes = 16
    start = "scratch"

    @property
    def space(self) -> str:
        """What exports and weights record."""
        return self.config.space

    @property
    def task(self) -> Classification:
        """What trainings learn."""
        return Classification(self.config.data.augment)

    def resolved(self) -> SupernetRun:
        """The recipe without names of files that a run must not depend on."""
        return self.config

    def load(self) -> Splits:
        """The images."""
        return load(self.config.data)

    def supernet(self, data: Splits, generator: torch.Generator | None = None) -> Chain:
        """The supernet with the weights that training begins with."""
        return create_supernet(self.config.space, generator=generator, **network_settings(self.config, data))

    def begin(self, supernet: Chain) -> None:
        """What a training does before its first step: nothing."""

    def network(self, data: Splits, arch: Arch, generator: torch.Generator) -> nn.Module:
        """The network of an architecture with fresh weights."""
        settings = network_settings(self.config, data)
        return create_network(self.config.space, arch=arch, generator=generator, **settings)

    def prepare(self, network: nn.Module, arch: Arch, seed: int) -> None:
        """What a retraining does before its first step: nothing."""

    def costs(self, supernet: Chain) -> CostTable:
        """What architectures cost."""
        return CostTable(supernet)

    def shared_weights(self, supernet: Chain, data: Splits, cache: ScoreCache, bn_batches: int) -> SharedWeights:
        """The evaluator on the search-validation split."""
        return SharedWeights(supernet, data.calibration, data.validation, bn=Recalibrate(bn_batches), cache=cache)

    def figures(self, network: nn.Module, data: Splits, device: str) -> dict[str, float]:
        """The report of a trained network, by split."""
        return {
            "test_accuracy": accuracy(network, data.test.to(device)),
            "validation_accuracy": accuracy(network, data.validation.to(device)),
        }

    def scores(self, network: nn.Module, images: Images) -> Mapping[str, float]:
        """All metrics of a network in eval mode."""
        return classification(network, images, 256)

    def preprocess(self, data: Splits) -> Preprocess:
        """What an export records."""
        return data.preprocess()


def network_settings(config: SupernetRun, data: Splits) -> dict[str, Any]:
    """What a builder is told: of the data, and by the recipe."""
    told = {"num_classes": len(data.classes), "input_size": data.size, "in_channels": data.in_channels}
    return told | builder_settings(config.space_settings, "space_settings", told)


def builder_settings(settings: Sequence[str], field: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as NAME=VALUE with values in JSON, as a builder's arguments.

    Raises:
        InputError: other text, or a name that is `told` already.
    """
    found: dict[str, Any] = {}
    for name, text in pairs(settings).items():
        if name in told:
            raise InputError(f"{field} cannot say {name}: it follows from the data, or is a field of the recipe")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise InputError(f"{field} {name}={text!r} is not JSON; texts need double quotes") from None
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def pairs(settings: Sequence[str]) -> dict[str, str]:
    """`("a=1", …)` as a mapping. Raises `InputError` for anything without an equals sign."""
    for text in settings:
        if "=" not in text:
            raise InputError(f"settings are NAME=VALUE, not {text!r}")
    return dict(text.split("=", 1) for text in settings)
