"""A searchable detector: a chain of a classification space's backbone, a neck and heads."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detection.backbone import Backbone, backbone_steps
from detection.inputs import ImageBatch, Labelled, Target
from supernet.chain import Chain, Init, Layouts, Searchable, materialize
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace, compose

PREFIX = "backbone"


class DetectorNetwork(nn.Sequential):
    """The detector of one architecture: images in, detections out; with targets in training mode, losses out."""

    def forward(self, images: Any, targets: list[Target] | None = None) -> Any:
        """Detections, one dict per image, or a dict of losses.

        Args:
            images: normalised, (N, 3, H, W) or a list of (3, H, W); or a `Labelled` of images and targets.
            targets: one per image; needed in training mode, and read in no other.
        """
        state = images if targets is None else Labelled(images, targets)
        for step in self:
            state = step(state)
        return state


class Detector(Chain):
    """A supernet that detects. The state between its steps is a tuple of maps, image sizes and targets.

    Decisions of the backbone have the names of the classification space below "backbone."; its normal forms hold too.

    Args:
        kind: of detector; with the backbone's name the name of the space.
        batch: the step that begins the state.
        steps: neck and heads.
        image_size: height and width at which costs are counted.
        heads_init: initial weights of neck and heads, wherever they are in the module it is given.

    Raises:
        InputError: images smaller than the largest stride.
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
        super().__init__(
            f"{kind}-{backbone.name}",
            [("images", batch), *backbone.steps, *steps],
            input_shape=(backbone.in_channels, *image_size),
            init=functools.partial(initialize_detector, backbone_init=backbone.init, heads_init=heads_init),
        )
        others: dict[str, SearchSpace] = {}
        for name, step in steps:
            if isinstance(step, Searchable):
                others[name] = step.space
        self.space = compose(self.space.name, {PREFIX: backbone.space, **others})
        self.out_channels = dict(backbone.out_channels)

    def forward(self, state: Any, arch: Arch, targets: list[Target] | None = None) -> Any:
        """Detections, one dict per image; in training mode a dict of losses.

        Args:
            state: images, normalised: (N, 3, H, W) or a list of (3, H, W); or a `Labelled` of images and targets.
            arch: the architecture.
            targets: one per image; needed in training mode, and read in no other.
        """
        return super().forward(state if targets is None else Labelled(state, targets), arch)

    def materialize(self, arch: Arch, layout: Layouts = None) -> DetectorNetwork:
        """A `DetectorNetwork` of the materialised steps, with its own weights."""
        made = DetectorNetwork(*(materialize(step, sub, here) for step, sub, here in self.walk(arch, layout)))
        return made.train(self.training)

    def subnet(self, arch: Mapping[str, Any]) -> DetectorNetwork:
        """The detector of one architecture with its own copy of the shared weights.

        Raises:
            InputError: `arch` is no architecture of this space.
        """
        return self.materialize(self.space.canonical(arch))

    def architecture(self, arch: Mapping[str, Any]) -> Arch:
        """The detector's architecture, also from decisions named as in the space of the part that decides on them.

        So an architecture of the classification space, or of a searched neck alone, is one of a detector in which
        nothing else decides.

        Raises:
            InputError: no architecture of this space, or a name without its part that several parts have.
        """
        return self.space.canonical({self._whole_name(name): value for name, value in arch.items()})

    def _whole_name(self, name: str) -> str:
        names = {choice.name for choice in self.space.choices}
        whole = sorted(own for own in names if own.partition(".")[2] == name)
        if name in names or not whole:
            return name
        if len(whole) > 1:
            raise InputError(f"{name!r} is a decision of several parts of the detector; give one of {whole}")
        return whole[0]


def backbone_of(detector: nn.Module) -> Any:
    """Images to maps: the detector up to its neck, sharing its weights; a `Chain` of a `Detector`, else a network.

    Its costs at (3, 224, 224) are what papers on searched backbones count: no classifier, no neck, no heads.
    """
    count = len(backbone_steps(detector)) + 1
    if not isinstance(detector, Detector):
        return nn.Sequential(*list(detector.children())[:count])
    return Chain(f"{detector.space.name}-backbone", detector.steps[:count], input_shape=detector.input_shape)


def initialize_detector(
    module: nn.Module, generator: torch.Generator | None = None, *, backbone_init: Init, heads_init: Init
) -> None:
    """Initial weights: the backbone's as for classification, those of neck and heads as their detector has them.

    Args:
        module: a detector, or the network of one architecture.
        generator: of the draws; torch's global generator if None.
        backbone_init: of the classification space, given every step of the backbone.
        heads_init: given the whole.
    """
    for step in backbone_steps(module):
        backbone_init(step.block, generator)
    heads_init(module, generator)
