"""Searchable detectors, which are chains of a backbone, a neck and heads, and the networks cut from them."""

import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detection.backbone import Backbone, EachMap, LooseMaps, SearchableMapStep, backbone_steps
from detection.inputs import ImageBatch, Labelled, Target
from detection.pyramid import draw_weights
from supernet.chain import Chain, Init, Layouts, Searchable, initialize_alike, materialize
from supernet.checked import checked_arguments
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace, compose

PREFIX = "backbone"
"""Prefix of the backbone's choices in a detector's space."""


class DetectorNetwork(nn.Sequential):
    """The detector of one architecture, which returns detections, or losses in training mode."""

    def forward(self, images: Any, targets: list[Target] | None = None) -> Any:
        """Returns one dict of detections per image, or in training mode a dict of losses.

        Args:
            images: normalised images, (N, 3, H, W) or a list of (3, H, W); or `Labelled` images.
            targets: one per image; required in training mode and ignored otherwise.
        """
        state = images if targets is None else Labelled(images, targets)
        for step in self:
            state = step(state)
        return state


class Detector(Chain):
    """A supernet of detectors, whose steps pass on a `DetectorState`.

    Choices of the backbone have the names of the classification space, prefixed with "backbone."; its normal forms
    hold too.

    Args:
        kind: kind of the detector; followed by the backbone's name it is the name of the space.
        backbone: see `as_backbone`.
        batch: the first step, which makes the state.
        steps: names and modules of neck and heads.
        image_size: height and width in pixels at which costs are counted.
        heads_init: initialises every neck and head in a module.

    Raises:
        InputError: `image_size` is smaller than the largest stride.
    """

    def __init__(
        self,
        kind: str,
        backbone: Backbone,
        batch: ImageBatch,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        image_size: tuple[int, int],
        heads_init: Init,
    ) -> None:
        if max(image_size) < batch.stride:
            raise InputError(
                f"images of {image_size[0]}×{image_size[1]} pixels are smaller than the largest stride of the "
                f"detector, {batch.stride}; give a larger image_size, or a backbone of smaller strides"
            )
        if backbone.fit is not None:
            steps = [("states", SearchableMapStep(backbone.fit, "all")), *steps]
        super().__init__(
            f"{kind}-{backbone.name}",
            [("images", batch), *backbone.steps, *steps],
            input_shape=(backbone.in_channels, *image_size),
            init=functools.partial(initialize_detector, backbone_init=backbone.init, heads_init=heads_init),
        )
        self._layouts = backbone.layouts if backbone.starts_alike else ()
        self._heads_init = heads_init
        head_spaces: dict[str, SearchSpace] = {name: step.space for name, step in steps if isinstance(step, Searchable)}
        self.space = compose(self.space.name, {PREFIX: backbone.space, **head_spaces})
        self.out_channels = dict(backbone.out_channels)
        self.backbone_strides = backbone.strides

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Sets the initial weights: of the backbone as in classification, of neck and heads as their builder says.

        Args:
            generator: for the draws; torch's global generator if None.
        """
        if not self._layouts:
            self.init(self, generator)
            return
        for step, layout in zip(backbone_steps(self), self._layouts, strict=True):
            initialize_alike(step.block, [(step.block, layout)], generator, size=min(self.input_shape[1:]))
        _initialize_fits(self, generator)
        self._heads_init(self, generator)

    def forward(self, state: Any, arch: Arch, targets: list[Target] | None = None) -> Any:
        """Returns one dict of detections per image, or in training mode a dict of losses.

        Args:
            state: normalised images, (N, 3, H, W) or a list of (3, H, W); or `Labelled` images.
            arch: the architecture.
            targets: one per image; required in training mode and ignored otherwise.
        """
        return super().forward(state if targets is None else Labelled(state, targets), arch)

    def materialize(self, arch: Arch, layout: Layouts = None) -> DetectorNetwork:
        """Returns a `DetectorNetwork` of the materialised steps, which has its own weights."""
        return self.assemble(materialize(step, sub, here) for step, sub, here in self.walk(arch, layout))

    def assemble(self, modules: Iterable[nn.Module]) -> DetectorNetwork:
        """Returns a `DetectorNetwork` of ordinary modules, one per step, under the names of the steps."""
        return DetectorNetwork(OrderedDict(super().assemble(modules).named_children())).train(self.training)

    def subnet(self, arch: Mapping[str, Any]) -> DetectorNetwork:
        """Returns the detector of one architecture with its own copy of the shared weights.

        Raises:
            InputError: `arch` is not an architecture of this space.
        """
        return self.materialize(self.space.canonical(arch))

    def architecture(self, arch: Mapping[str, Any]) -> Arch:
        """Returns the detector's architecture for decisions whose names may lack the prefix of their part.

        An architecture of the classification space, or of the neck's, is thus also one of a detector in which nothing
        else has choices.

        Raises:
            InputError: `arch` is not an architecture of this space, or several parts have a choice of that name.
        """
        return self.space.canonical({self._full_name(name): value for name, value in arch.items()})

    def _full_name(self, name: str) -> str:
        names = {choice.name for choice in self.space.choices}
        matches = sorted(full for full in names if full.partition(".")[2] == name)
        if name in names or not matches:
            return name
        if len(matches) > 1:
            raise InputError(f"{name!r} is a choice in several parts of the detector; give one of {matches}")
        return matches[0]


@checked_arguments
def backbone_of(detector: nn.Module) -> Any:
    """Returns the part of a detector before its neck, which shares the weights and maps images to a `DetectorState`.

    Of a `Detector` it is a `Chain`, of a network an `nn.Sequential`. Its costs at (3, 224, 224), without classifier,
    neck and heads, are those that papers on searched backbones report.

    Raises:
        InputError: the module is no detector.
    """
    if not isinstance(detector, Detector):
        kept = {name: child for name, child in detector.named_children() if name in ("images", PREFIX)}
        if len(kept) < 2:
            raise InputError(f"detector={type(detector).__name__}(...) should be a Detector or a network of one")
        return nn.Sequential(OrderedDict(kept))
    steps = detector.steps[: len(backbone_steps(detector)) + 1]
    return Chain(f"{detector.space.name}-backbone", steps, input_shape=detector.input_shape)


def initialize_detector(
    module: nn.Module, generator: torch.Generator | None = None, *, backbone_init: Init, heads_init: Init
) -> None:
    """Initialises a detector: the backbone as for classification, neck and heads as their builder says.

    Args:
        module: a detector, or the network of one architecture.
        generator: source of random numbers; torch's global generator if None.
        backbone_init: initialiser of the classification space, called for the block of every backbone step.
        heads_init: initialiser of neck and heads, called for the whole module.
    """
    for step in backbone_steps(module):
        backbone_init(step.block, generator)
    _initialize_fits(module, generator)
    heads_init(module, generator)


def _initialize_fits(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialises the convolutions between searched cells and the pyramid, as lateral convolutions are."""
    for part in module.modules():
        if isinstance(part, LooseMaps | EachMap):
            draw_weights(part, functools.partial(nn.init.kaiming_uniform_, a=1, generator=generator))
