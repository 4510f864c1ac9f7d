"""Any classification chain as the backbone of a detector: the last map at each stride is kept, the head is dropped."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detection.inputs import State
from supernet.chain import Chain, Init, Layout, Layouts, Part, Searchable, plain_layout, step_layout
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

Mode = Literal["replace", "append", "all"]
"""What a step does with the maps: work on the last, work on the last and keep it, or turn all into others."""

_MOST_LOOKED_AT = 4096  # architectures of a step whose layouts are compared


class MapStep(nn.Module):
    """Applies a module to the maps of a state; the rest of the state passes.

    Args:
        block: takes one map, or with the mode "all" the tuple of maps.
    """

    def __init__(self, block: nn.Module, mode: Mode) -> None:
        super().__init__()
        self.block, self.mode = block, mode

    def forward(self, state: State) -> State:
        """A `State` with other maps."""
        maps, sizes, targets = state
        made = self.block(maps if self.mode == "all" else maps[-1])
        return joined(self.mode, maps, made), sizes, targets

    def out_layout(self, layout: Any) -> Any:
        """The layouts of the maps, those of the block after the kept ones."""
        maps, *rest = layout
        made = plain_layout(self.block, maps if self.mode == "all" else maps[-1])
        return joined(self.mode, maps, made), *rest


class SearchableMapStep(Searchable):
    """A `MapStep` of a searchable block."""

    def __init__(self, block: Searchable, mode: Mode) -> None:
        super().__init__()
        self.block, self.mode, self.space = block, mode, block.space

    def forward(self, state: State, arch: Arch) -> State:
        """A `State` with other maps."""
        maps, sizes, targets = state
        made = self.block(maps if self.mode == "all" else maps[-1], arch)
        return joined(self.mode, maps, made), sizes, targets

    def out_layout(self, arch: Arch, layout: Any) -> Any:
        """The layouts of the maps, those of the block after the kept ones."""
        maps, *rest = layout
        return joined(self.mode, maps, self.block.out_layout(arch, self._given(layout))), *rest

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """A `MapStep` of the materialised block."""
        return MapStep(self.block.materialize(arch, self._given(layout)), self.mode)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The parts of the block."""
        return self.block.active_parts(arch, self._given(layout))

    def spread(self, arch: Arch) -> None:
        """That of the block."""
        self.block.spread(arch)

    def _given(self, layout: Any) -> Any:
        return layout[0] if self.mode == "all" else layout[0][-1]


def joined(mode: Mode, maps: Any, made: Any) -> Any:
    """The maps after a step, or their layouts."""
    if mode == "all":
        return made
    return (*maps, made) if mode == "append" else (*maps[:-1], made)


def map_step(block: nn.Module, mode: Mode) -> nn.Module:
    """The step around any block."""
    return SearchableMapStep(block, mode) if isinstance(block, Searchable) else MapStep(block, mode)


def backbone_steps(network: nn.Module) -> list[MapStep | SearchableMapStep]:
    """The steps of a detector's backbone in order, of a supernet and of a network alike."""
    steps = network.blocks if isinstance(network, Chain) else network.children()
    return [step for step in steps if isinstance(step, MapStep | SearchableMapStep) and step.mode != "all"]


@dataclass(frozen=True)
class Backbone:
    """A chain of feature maps.

    Attributes:
        name: of the classification space.
        steps: named below "backbone."; each maps a `State` to a `State`.
        space: decisions and normal forms of the classification space.
        out_channels: stride to channels of each map that is kept, the finest first.
        in_channels: of images.
        init: initialises the classification network.
    """

    name: str
    steps: tuple[tuple[str, nn.Module], ...]
    space: SearchSpace
    out_channels: dict[int, int]
    in_channels: int
    init: Init


def as_backbone(classifier: Chain, *, levels: int) -> Backbone:
    """The steps of a classification chain up to its head as a backbone; the modules are shared, not copied.

    Args:
        levels: how many of the coarsest strides are kept, each at its last step.

    Raises:
        InputError: a step hands on more than one map, or maps whose shape depends on the architecture; the head has
            decisions; there are fewer strides than `levels`; the supernet has frozen batch norms.
    """
    name = classifier.space.name
    found: list[tuple[str, nn.Module, Layout]] = []
    layout: Layouts = classifier.input_layout
    for step_name, step in classifier.steps:
        layout = _only_layout(name, step_name, step, layout)
        if layout.stride == 0:
            break
        found.append((step_name, step, layout))
    for step_name, step in classifier.steps[len(found) :]:
        if isinstance(step, Searchable) and step.space.choices:
            raise InputError(f"{name!r} decides on its head, {step_name!r}, which a detector leaves out")
    last = {at.stride: number for number, (_, _, at) in enumerate(found)}  # the last step at each stride
    kept = sorted(last.values())[-levels:] if levels > 0 else []
    if len(kept) < levels or not kept:
        raise InputError(
            f"a detector on {levels} levels needs a backbone of as many strides; {name!r} has {sorted(last)}; "
            "give another backbone or fewer levels"
        )
    check_frozen(classifier, [step for _, step, _ in found])
    return Backbone(
        name,
        tuple(
            (f"backbone.{step_name}", map_step(step, "append" if number - 1 in kept else "replace"))
            for number, (step_name, step, _) in enumerate(found)
        ),
        classifier.space,
        {found[number][2].stride: found[number][2].channels for number in kept},
        classifier.input_shape[0],
        classifier.init,
    )


def _only_layout(space: str, name: str, step: nn.Module, layout: Layouts) -> Layout:
    """What a step hands on under every architecture."""
    archs = islice(step.space.enumerate(), _MOST_LOOKED_AT) if isinstance(step, Searchable) else [Arch()]
    layouts = {step_layout(step, arch, layout) for arch in archs}
    (one, *others) = layouts
    if others or not isinstance(one, Layout) or one.ids:
        raise InputError(
            f"{space!r} cannot be a backbone: its step {name!r} hands on several states, or channels that depend on "
            "the architecture; a feature pyramid reads one map of fixed channels per stride"
        )
    return one


# -- frozen batch norm ------------------------------------------------------------------------------------------------


class FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """torchvision's batch norm with fixed statistics, scale and shift; it keeps what it was built with."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.num_features = num_features


def check_frozen(supernet: Chain, steps: list[nn.Module], *, freeze: bool = False) -> None:
    """Refuses frozen batch norms where several architectures share the weights around them.

    Raises:
        InputError: `freeze`, or a batch norm that is frozen already, in a chain with more than one architecture.
    """
    if supernet.space.size() == 1:
        return
    frozen = [part for step in steps for part in step.modules() if type(part).__name__.startswith("Frozen")]
    if freeze or frozen:
        raise InputError(
            f"batch norm cannot be frozen in the supernet {supernet.space.name!r}: its running statistics mix all "
            "paths and fit none; train it with batch norm and re-estimate the statistics of each architecture "
            "(Recalibrate), or give arch for a single network"
        )


def freeze_batch_norm(network: nn.Module) -> None:
    """Replaces every batch norm in the backbone of a single network by its frozen form, in place."""
    for step in backbone_steps(network):
        for parent in list(step.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, _frozen(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenNorm:
    made = FrozenNorm(norm.num_features, norm.eps)
    for name, tensor in norm.state_dict().items():
        if name != "num_batches_tracked":
            made.get_buffer(name).data = tensor.detach().clone()
    made.train(norm.training)
    return made
