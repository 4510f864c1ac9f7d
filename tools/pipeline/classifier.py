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
from supernet.errors import InputError
from supernet.plugins import FUNCTION
from supernet.scoring.batch_norm import take_full_statistics
from supernet.scoring.cache import ScoreCache
from supernet.scoring.metrics import accuracy, classification
from supernet.scoring.racing import Race
from supernet.scoring.shared_weights import SharedWeights
from supernet.space import Arch
from supernet.spaces import build, builder, create_network, create_supernet
from supernet.training.task import Classification
from supernet_tools.pipeline.batch_norm import policy
from supernet_tools.pipeline.config import BatchNorm, SupernetRun
from supernet_tools.pipeline.kinds import Table
from supernet_tools.pipeline.settings import parse_settings
from supernet_tools.pipeline.start import (
    calibration_batches,
    check_start,
    frozen_teacher,
    load_start,
    starting_normalisation,
)

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
        """Cross-entropy on images varied as the recipe says for shared weights."""
        return Classification(self.config.data.augment.weakened(self.config.shared_augment))

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
        check_start(self.config, chain)
        if self.batch_norm == "matched":
            self.check_batch_norm("matched")
        return self.config

    @property
    def has_weights(self) -> bool:
        """Whether the supernet is trained, or begins with the weights of a network."""
        return self.config.train.epochs > 0 or bool(self.config.pretrained)

    @property
    def batch_norm(self) -> BatchNorm:
        """The policy of the recipe; by default "matched" for a start with trained weights, otherwise "plain"."""
        if self.config.bn != "default":
            return self.config.bn
        return "matched" if self.config.pretrained else "plain"

    def check_batch_norm(self, policy: BatchNorm) -> None:
        """Checks that a policy can be used. Raises `InputError` for "matched" without a full network of its own."""
        if policy == "matched" and not self.config.pretrained:
            raise InputError(
                "bn='matched' follows the full network of a run that begins with trained weights (pretrained), and "
                "this one does not; take bn='plain'"
            )

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
        """The images, normalised as the weights expect that the recipe starts with."""
        data = load(self.config.data, cache=cache)
        if not self.config.pretrained:
            return data
        known = starting_normalisation(self.config, self.skeleton(data.summary()))
        return data if known is None or len(known[0]) != data.in_channels else data.normalized_by(*known)

    def skeleton(self, summary: DataSummary) -> Chain:
        """The supernet on the meta device."""
        with torch.device("meta"):
            return build(self.config.space, "supernet", self.builder_arguments(summary))

    def supernet(self, summary: DataSummary, generator: torch.Generator | None = None) -> Chain:
        """The supernet with the weights that training starts with."""
        return create_supernet(self.config.space, generator=generator, **self.builder_arguments(summary))

    def begin(self, supernet: Chain, data: Splits) -> None:
        """Loads the weights of a network or of another run, if the recipe names them."""
        load_start(self.config, supernet, data)

    def taught(self, supernet: Chain) -> Classification:
        """The task, with the largest network in its present state as a frozen teacher if the recipe wants one."""
        if self.config.teacher == "none":
            return self.task
        return replace(self.task, teacher=frozen_teacher(supernet), teacher_weight=self.config.teacher_weight)

    def end(self, supernet: Chain, data: Splits) -> None:
        """Gives a supernet that began with trained weights the statistics of its full network."""
        if self.config.pretrained:
            take_full_statistics(supernet, calibration_batches(data, next(supernet.parameters()).device))

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
        bn: BatchNorm = "plain",
        cost: CostTable | None = None,
        hold: int = 2**29,
        bf16: bool = False,
        race: Race | None = None,
        settle: float = 0.0,
    ) -> SharedWeights:
        """The evaluator on the search-validation split; see `SharedWeights` and `Recalibrate` for the last three."""
        return SharedWeights(
            supernet,
            data.calibration,
            data.validation,
            bn=policy(bn, bn_batches, settle=settle),
            cost=cost,
            cache=cache,
            hold=hold,
            bf16=bf16,
            race=race,
        )

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
