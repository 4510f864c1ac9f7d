"""Backbones of detectors, cut from classification chains.

The last feature map at each stride is kept, and the classifier head is dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detection.inputs import DetectorState
from supernet.blocks.cells.searchable import LooseCell, LooseConv, Source
from supernet.blocks.elastic import Elastic
from supernet.chain import (
    Chain,
    Init,
    Layout,
    Layouts,
    Part,
    Searchable,
    largest,
    materialize,
    plain_layout,
    step_layout,
)
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace, compose

Mode = Literal["replace", "append", "all"]
"""What a step does with the feature maps of the state.

"replace" puts the block's output in the place of the last map, "append" keeps the last map and adds the output after
it, and "all" replaces all maps by the outputs of a block that takes them together.
"""

_LAYOUTS_COMPARED = 4096  # architectures of a step, at most


class MapStep(nn.Module):
    """A step that applies a module to the maps of a `DetectorState` and leaves image sizes and targets as they are.

    Args:
        block: takes the last map, or in mode "all" the tuple of maps.
        mode: see `Mode`.
        freeze_bn: whether the block's batch norm is frozen: its statistics, scale and shift stay as they are.
        frozen: whether all weights of the block stay as they are, with its batch norm.
    """

    def __init__(self, block: nn.Module, mode: Mode, *, freeze_bn: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.block, self.mode, self.freeze_bn, self.frozen = block, mode, False, False
        if freeze_bn:
            self.freeze_norms()
        if frozen:
            self.freeze()

    def freeze(self) -> None:
        """Fixes all weights of the block and its batch norm, in place."""
        self.frozen = True
        self.freeze_norms()
        self.block.requires_grad_(requires_grad=False)

    def freeze_norms(self) -> None:
        """Replaces every batch norm of the block with its frozen form, in place."""
        self.freeze_bn = True
        if isinstance(self.block, nn.BatchNorm2d):
            self.block = frozen_norm(self.block)
        for parent in list(self.block.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, frozen_norm(child))

    def forward(self, state: DetectorState) -> DetectorState:
        """Returns the `DetectorState` with its maps updated."""
        maps, sizes, targets = state
        output = self.block(read_maps(maps) if self.mode == "all" else maps[-1])
        return update_maps(self.mode, maps, output), sizes, targets

    def out_layout(self, layout: Any) -> Any:
        """Returns the layout of the updated state."""
        maps, *rest = layout
        output = plain_layout(self.block, read_maps(maps) if self.mode == "all" else maps[-1])
        return update_maps(self.mode, maps, output), *rest


class SearchableMapStep(Searchable):
    """A `MapStep` of a searchable block.

    Args:
        block: takes the last map, or in mode "all" the tuple of maps.
        mode: see `Mode`.
    """

    def __init__(self, block: Searchable, mode: Mode) -> None:
        super().__init__()
        self.block, self.mode, self.space = block, mode, block.space

    def forward(self, state: DetectorState, arch: Arch) -> DetectorState:
        """Returns the `DetectorState` with its maps updated."""
        maps, sizes, targets = state
        output = self.block(read_maps(maps) if self.mode == "all" else maps[-1], arch)
        return update_maps(self.mode, maps, output), sizes, targets

    def out_layout(self, arch: Arch, layout: Any) -> Any:
        """Returns the layout of the updated state."""
        maps, *rest = layout
        return update_maps(self.mode, maps, self.block.out_layout(arch, self._block_layout(layout))), *rest

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a `MapStep` of the materialised block."""
        return MapStep(self.block.materialize(arch, self._block_layout(layout)), self.mode)

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the active parts of the block."""
        return self.block.active_parts(arch, self._block_layout(layout))

    def copy_options(self, arch: Arch) -> None:
        """Copies the chosen option of the block into its others; see `Searchable.copy_options`."""
        self.block.copy_options(arch)

    def _block_layout(self, layout: Any) -> Any:
        """The layout of the block's input."""
        return read_maps(layout[0]) if self.mode == "all" else layout[0][-1]


def update_maps(mode: Mode, maps: Any, output: Any) -> Any:
    """Returns the maps, or their layouts, after a step of a mode whose block made `output`."""
    if mode == "all":
        return output
    return (*read_maps(maps), output) if mode == "append" else (*maps[:-1], output)


def read_maps(maps: Any) -> Any:
    """Returns the maps, or their layouts, that a pyramid reads.

    Cells of NASNet hand on the outputs of two cells, the newer one second; a pyramid reads that one.
    """
    *finer, last = maps
    return (*finer, last[1] if type(last) is tuple else last)


def map_step(block: nn.Module, mode: Mode) -> nn.Module:
    """Wraps a block, searchable or not, in a map step."""
    return SearchableMapStep(block, mode) if isinstance(block, Searchable) else MapStep(block, mode)


def backbone_steps(network: nn.Module) -> list[MapStep | SearchableMapStep]:
    """Returns the steps of a detector's backbone in order, for a supernet or a single network."""
    return [step for _, step in named_backbone_steps(network)]


def named_backbone_steps(network: nn.Module) -> list[tuple[str, MapStep | SearchableMapStep]]:
    """Returns the steps of a backbone in order, each with its path in the detector, e.g. `backbone.stage1.block0`."""
    modules = network.named_modules(remove_duplicate=False)
    steps = [(path, module) for path, module in modules if isinstance(module, MapStep | SearchableMapStep)]
    return [(path, step) for path, step in steps if step.mode != "all"]


class EachMap(nn.Module):
    """Applies one module to each of several maps.

    Args:
        layers: one per map.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the outputs of the modules."""
        return tuple(layer(x) for layer, x in zip(self.layers, maps, strict=True))

    def out_layout(self, layout: Any) -> Any:
        """Returns the layouts of the outputs."""
        return tuple(plain_layout(layer, part) for layer, part in zip(self.layers, layout, strict=True))


class LooseMaps(Searchable):
    """Brings maps of any hidden states to one number of channels by ReLU, 1×1 convolution and batch norm.

    The outputs of searched cells are concatenations of loose ends, which differ between architectures. As in the next
    cell, the convolution has weights of its own for every state, and those of the states that are present are used.

    Args:
        sources: what each map may consist of.
        width: channels of the outputs.
    """

    def __init__(self, sources: Sequence[Source], width: int) -> None:
        super().__init__()
        self.space, self.width = SearchSpace("loose-maps"), width
        self.fits = nn.ModuleList(LooseConv(source, width) for source in sources)

    def forward(self, maps: tuple[Any, ...], arch: Arch) -> tuple[Tensor, ...]:
        """Returns one tensor of `width` channels for each map."""
        return tuple(fit(x) for fit, x in zip(self.fits, maps, strict=True))

    def _placed(self, layout: Layouts) -> list[tuple[Searchable, Layouts]]:
        """Returns the convolutions with the layouts of their inputs."""
        assert isinstance(layout, tuple)
        return list(zip(cast("Iterable[Searchable]", self.fits), layout, strict=True))

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layouts of the outputs."""
        return tuple(fit.out_layout(Arch(), part) for fit, part in self._placed(layout))

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns an `EachMap`."""
        return EachMap(nn.ModuleList(materialize(fit, Arch(), part) for fit, part in self._placed(layout)))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields the weights of the states that are present, and the batch norms."""
        for fit, part in self._placed(layout):
            yield from fit.active_parts(Arch(), part)


@dataclass(frozen=True)
class Backbone:
    """The steps of a classification chain that a detector reads feature maps from.

    Attributes:
        name: name of the classification space.
        steps: pairs of a name, which starts with "backbone.", and a module from one `DetectorState` to the next.
        space: the classification space with its choices and normal forms, without choices of the classifier head.
        out_channels: stride to channels of each kept map, the finest first; their largest number if it is searched.
        in_channels: channels of the images.
        layouts: the layouts of the input of each step.
        strides: the strides of the output of each step.
        init: initialises the steps of a standalone network as in classification.
        starts_alike: whether the options of a supernet begin alike (see `supernet.chain.Chain`).
        fit: brings the kept maps to the channels of `out_channels` if they are the outputs of searched cells, or None.
        elastic: whether the channels of a kept map depend on the architecture.
    """

    name: str
    steps: tuple[tuple[str, nn.Module], ...]
    space: SearchSpace
    out_channels: dict[int, int]
    in_channels: int
    layouts: tuple[Layouts, ...]
    strides: tuple[int, ...]
    init: Init
    starts_alike: bool
    fit: LooseMaps | None = None
    elastic: bool = False


def as_backbone(classifier: Chain, *, levels: int, width: int | None = None) -> Backbone:
    """Returns the steps of a classification chain up to its head as a backbone; modules are shared, not copied.

    Args:
        classifier: a supernet, or a chain without choices.
        levels: how many of the coarsest strides are kept, each at its last step.
        width: channels that the outputs of searched cells are brought to (`LooseMaps`); those of one state if None.

    Raises:
        InputError: a searched step other than a cell returns more than one map, or a map whose stride depends on the
            architecture; there are fewer strides than `levels`; a supernet has frozen batch norm.
    """
    name = classifier.space.name
    steps: list[tuple[str, nn.Module, Layout]] = []
    cells = any(isinstance(step, LooseCell) and step.space.choices for _, step in classifier.steps)
    inputs: list[Layouts] = []  # of each step
    narrowest: list[int] = []  # the smallest number of channels after each step
    low = high = cast("Layouts", classifier.input_layout)
    for step_name, step in classifier.steps:
        before, (low, high) = high, _extreme_layouts(name, step_name, step, low, high)
        fewest, out = read_maps((low,))[0], read_maps((high,))[0]
        assert isinstance(fewest, Layout)
        assert isinstance(out, Layout)
        if out.stride == 0:
            break
        steps.append((step_name, step, out))
        inputs.append(before)
        narrowest.append(fewest.channels)
    last = {out.stride: number for number, (_, _, out) in enumerate(steps)}  # the last step at each stride
    kept = sorted(last.values())[-levels:] if levels > 0 else []
    if len(kept) < levels or not kept:
        raise InputError(
            f"a detector on {levels} levels needs a backbone with as many strides; {name!r} has {sorted(last)}; "
            "give another backbone or fewer levels"
        )
    check_frozen(classifier, [step for _, step, _ in steps])
    sources = [_source(step, out) for _, step, out in (steps[number] for number in kept)]
    fit = LooseMaps(sources, width or max(source.width for source in sources)) if cells else None
    return Backbone(
        name,
        tuple(
            (f"backbone.{step_name}", map_step(step, "append" if number - 1 in kept else "replace"))
            for number, (step_name, step, _) in enumerate(steps)
        ),
        _space_of(classifier, steps),
        {int(steps[number][2].stride): steps[number][2].channels if fit is None else fit.width for number in kept},
        classifier.input_shape[0],
        tuple(inputs),
        tuple(int(out.stride) for _, _, out in steps),
        classifier.init,
        classifier.starts_alike and bool(classifier.space.choices),
        fit,
        fit is None and any(narrowest[number] < steps[number][2].channels for number in kept),
    )


def _space_of(classifier: Chain, steps: Sequence[tuple[str, nn.Module, Layout]]) -> SearchSpace:
    """Returns the space of a classifier without the decisions of its head, which `steps` lack."""
    name = classifier.space.name
    spaces = {step_name: step.space for step_name, step, _ in steps if isinstance(step, Searchable)}
    kept = {f"{step_name}.{choice.name}" for step_name, space in spaces.items() for choice in space.choices}
    return classifier.space if len(kept) == len(classifier.space.choices) else compose(name, spaces)


def _source(step: nn.Module, out: Layout) -> Source:
    """Returns what the map after a step may consist of."""
    return step.source if isinstance(step, LooseCell) else Source(out.channels, int(out.stride))


def _extreme_layouts(space: str, name: str, step: nn.Module, low: Layouts, high: Layouts) -> tuple[Layouts, Layouts]:
    """Returns the output layouts of a step with the fewest and with the most channels; of a cell any layout, twice.

    Args:
        space, name: of the backbone and of the step.
        step: any step.
        low, high: the layouts of its input with the fewest and with the most channels.
    """
    if isinstance(step, LooseCell):
        layout = step.out_layout(next(step.space.enumerate()), high)
        return layout, layout
    archs = [Arch()]
    if isinstance(step, Elastic):  # the channels grow with the width, and there are too many widths to compare them all
        archs = [step.space.from_indices([0] * len(step.space.choices)), largest(step.space)]
    elif isinstance(step, Searchable):
        archs = list(islice(step.space.enumerate(), _LAYOUTS_COMPARED))
    layouts = {step_layout(step, arch, before) for before in {low, high} for arch in archs}
    if len(layouts) == 1 and not (isinstance(step, Searchable) and step.space.choices):
        (layout,) = layouts
        return layout, layout
    maps = [layout for layout in layouts if isinstance(layout, Layout) and not layout.ids]
    if len(maps) < len(layouts) or len({layout.stride for layout in maps}) > 1:
        raise InputError(
            f"{space!r} cannot be a searchable backbone: its step {name!r} returns several states, or maps whose size "
            "depends on the architecture, and a feature pyramid reads one map per stride; fix the backbone to one "
            "architecture with backbone_arch"
        )
    return min(maps, key=_channels), max(maps, key=_channels)


def _channels(layout: Layout) -> int:
    return layout.channels


# -- frozen batch norm ------------------------------------------------------------------------------------------------


class FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """torchvision's frozen batch norm with the constructor arguments as attributes, for exports."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.num_features = num_features


def check_frozen(supernet: Chain, steps: list[nn.Module], *, freeze: bool = False) -> None:
    """Refuses frozen batch norm where several architectures share the weights around it.

    Args:
        supernet: the classification chain.
        steps: those of its steps that are used.
        freeze: whether batch norm is about to be frozen.

    Raises:
        InputError: the chain has more than one architecture, and `freeze` is set or a step has frozen batch norm.
    """
    if supernet.space.size() == 1:
        return
    frozen = [part for step in steps for part in step.modules() if type(part).__name__.startswith("Frozen")]
    if freeze or frozen:
        raise InputError(
            f"batch norm cannot be frozen in the supernet {supernet.space.name!r}: its running statistics mix all "
            "paths and fit none; train it with batch norm and recalibrate each architecture (Recalibrate), or make the "
            "network of one architecture"
        )


def freeze_batch_norm(network: nn.Module) -> None:
    """Replaces every batch norm in the backbone of a detector with its frozen form, in place."""
    for step in backbone_steps(network):
        assert isinstance(step, MapStep), "batch norm is frozen in fixed backbones alone (`check_frozen`)"
        step.freeze_norms()


def freeze_stages(network: nn.Module, strides: Sequence[int], stages: int) -> None:
    """Fixes the weights of the first stages of a backbone, in place.

    Args:
        network: a detector with a fixed backbone, or the network of one architecture.
        strides: the strides of the output of each step of the backbone (`Backbone.strides`).
        stages: number of stages; a stage holds the steps whose outputs have one stride. Of a ResNet, the first are the
            stem and `layer1`, as MMDetection counts them.

    Raises:
        InputError: the backbone has fewer stages, or a step with choices.
    """
    present = sorted(set(strides))
    if not 0 <= stages <= len(present):
        raise InputError(
            f"frozen_stages={stages!r} should be an integer from 0 to {len(present)}, the number of stages of the "
            "backbone"
        )
    for step, stride in zip(backbone_steps(network), strides, strict=True):
        if stride not in present[:stages]:
            continue
        if not isinstance(step, MapStep):
            raise InputError(
                f"frozen_stages={stages} needs a fixed backbone: the weights of a searched one are trained with the "
                "detector"
            )
        step.freeze()


def frozen_norm(norm: nn.BatchNorm2d) -> FrozenNorm:
    """Returns the frozen form of a batch norm, with copies of its tensors."""
    frozen = FrozenNorm(norm.num_features, norm.eps)
    for name, tensor in norm.state_dict().items():
        if name != "num_batches_tracked":
            frozen.get_buffer(name).data = tensor.detach().clone()
    frozen.train(norm.training)
    return frozen
