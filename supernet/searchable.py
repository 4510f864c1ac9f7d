"""The weight-sharing contract: `Searchable` modules that take the architecture as an argument, folded by a `Chain`.

A step learns of its predecessors through the `Layout` of what they hand on, never by looking at their decisions.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supernet.errors import InputError
from supernet.normal_form import Form
from supernet.space import Arch, SearchSpace, compose

Init = Callable[[nn.Module, torch.Generator | None], None]
Part = tuple[nn.Parameter, tuple[slice, ...]]
"""A parameter and the index of its used elements; `()` is all of it."""


@dataclass(frozen=True)
class Layout:
    """What one tensor of the state is.

    Attributes:
        channels: size of dimension 1.
        stride: input pixels per pixel of this map; 0 where there is no spatial extent (logits).
        ids: the hidden states concatenated in it, in order, where a later step must tell them apart.
    """

    channels: int
    stride: int = 1
    ids: tuple[int, ...] = ()


Layouts = Layout | tuple["Layouts", ...] | None
"""The layout of a state: of a tensor, of a tuple of states, or None for what no step reads (detections, losses)."""


class Hidden(NamedTuple):
    """A tensor that travels with the ids of the hidden states concatenated in it (`Layout.ids`)."""

    tensor: Tensor  # (N, C, H, W)
    ids: tuple[int, ...]


class Searchable(nn.Module):
    """A module with decisions: one set of weights that serves every architecture of `space`.

    `forward` is a function of its arguments: it keeps no memory of the last architecture and writes nothing but
    batch-norm buffers. For every architecture, `forward(state, arch)` and `materialize(arch, layout)(state)` agree bit
    for bit in eval mode on CPU.
    """

    space: SearchSpace

    def forward(self, state: Any, arch: Arch) -> Any:
        """The state after this step."""
        raise NotImplementedError

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """The layout of what `forward` returns for a state of `layout`; computed without touching a weight."""
        raise NotImplementedError

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """An ordinary module of one argument with its own copy of exactly the weights that `arch` uses."""
        raise NotImplementedError

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """The parameters that `forward` uses under `arch`, with the index of the used elements (`()` for all)."""
        raise NotImplementedError

    def active_parameters(self, arch: Arch, layout: Layouts) -> Iterator[nn.Parameter]:
        """The parameters that receive a gradient under `arch`, each once."""
        seen: set[int] = set()
        for parameter, _ in self.active_parts(arch, layout):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def spread(self, arch: Arch) -> None:
        """Let every option begin as a copy of the one that `arch` chooses; in place.

        Raises:
            InputError: options of other form, or decisions that are not such options.
        """
        if self.space.choices:
            raise InputError(
                f"{self.space.choices[0].name!r} of {type(self).__name__} is no choice between layers of one form; "
                "leave out the lead"
            )

    def bind(self, arch: Arch) -> "Bound":
        """This module with the architecture filled in; the weights stay shared."""
        return Bound(self, arch)


class Bound(nn.Module):
    """A searchable at one architecture, for code that calls `module(x)`; shares the weights."""

    def __init__(self, searchable: Searchable, arch: Arch) -> None:
        super().__init__()
        self.searchable = searchable
        self.arch = searchable.space.canonical(arch)

    def forward(self, state: Any) -> Any:
        """The searchable's state after its last step."""
        return self.searchable(state, self.arch)


class Chain(Searchable):
    """A supernet: a fold `state = step(state, arch.sub(name))` over named steps.

    Args:
        name: of the space.
        steps: `(name, module)` in order. A `Searchable` contributes its decisions under its name; an ordinary module
            is a step without decisions and must say what it hands on (`plain_layout`). A repeated name shares its
            decisions, not its weights (the normal cells of NASNet).
        input_shape: (C, H, W) of one input; costs are counted at it.
        normal_form: identities that reach over several steps.
        init: initialises a fresh network; `initialize` by default.

    Raises:
        InputError: steps of one name with different spaces.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        normal_form: Form | None = None,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        self.step_names = tuple(step_name for step_name, _ in steps)
        self.blocks = nn.ModuleList(module for _, module in steps)
        self.input_shape = input_shape
        self.init: Init = init or initialize
        spaces: dict[str, SearchSpace] = {}
        for step_name, module in steps:
            space = module.space if isinstance(module, Searchable) else SearchSpace(step_name)
            known = spaces.setdefault(step_name, space)
            if (known.choices, known.forms) != (space.choices, space.forms):
                raise InputError(
                    f"the steps named {step_name!r} of {name!r} have different spaces, so they cannot share decisions; "
                    "give them different names"
                )
        self.space = compose(name, spaces, normal_form)

    @property
    def steps(self) -> list[tuple[str, nn.Module]]:
        """The `(name, module)` pairs in order."""
        return list(zip(self.step_names, self.blocks, strict=True))

    @property
    def input_layout(self) -> Layout:
        """The layout of the chain's own input."""
        return Layout(self.input_shape[0])

    def forward(self, state: Any, arch: Arch) -> Any:
        """The state after the last step; for classifiers the logits, (N, classes)."""
        for name, step in zip(self.step_names, self.blocks, strict=True):
            state = step(state, arch.sub(name)) if isinstance(step, Searchable) else step(state)
        return state

    def spread(self, arch: Arch) -> None:
        """See `Searchable.spread`; step by step."""
        for name, step in self.steps:
            if isinstance(step, Searchable):
                step.spread(arch.sub(name))

    def walk(self, arch: Arch, layout: Layouts = None) -> Iterator[tuple[nn.Module, Arch, Layouts]]:
        """`(step, its part of arch, layout of its input)` for every step in order."""
        layout = self.input_layout if layout is None else layout
        before: tuple[nn.Module, Arch] | None = None  # what the last step hands on is asked only if a step reads it
        for name, step in zip(self.step_names, self.blocks, strict=True):
            layout = layout if before is None else step_layout(*before, layout)
            before = (step, arch.sub(name))
            yield *before, layout

    def out_layout(self, arch: Arch, layout: Layouts = None) -> Layouts:
        """The layout after the last step; from the chain's own input layout unless another is given."""
        for step, sub, here in self.walk(arch, layout):
            layout = step_layout(step, sub, here)
        return layout

    def materialize(self, arch: Arch, layout: Layouts = None) -> nn.Sequential:
        """An `nn.Sequential` of the materialised steps, with its own weights."""
        made = nn.Sequential(*(materialize(step, sub, here) for step, sub, here in self.walk(arch, layout)))
        return made.train(self.training)

    def active_parts(self, arch: Arch, layout: Layouts = None) -> Iterator[Part]:
        """The used parameters of all steps in order; ordinary modules are used whole."""
        for step, sub, here in self.walk(arch, layout):
            if isinstance(step, Searchable):
                yield from step.active_parts(sub, here)
            else:
                yield from parameters_of([step])

    def active_parameters(self, arch: Arch, layout: Layouts = None) -> Iterator[nn.Parameter]:
        """The parameters that receive a gradient under `arch`, each once."""
        return super().active_parameters(arch, self.input_layout if layout is None else layout)

    def subnet(self, arch: Mapping[str, Any]) -> nn.Sequential:
        """The standalone network of `arch` with its own copy of the shared weights.

        Raises:
            InputError: `arch` is no architecture of this space.
        """
        return self.materialize(self.space.canonical(arch))


MOST_REMEMBERED = 4096  # entries of a PartsMemo: choices have dozens, shared cells may have thousands


class PartsMemo:
    """`chain.active_parts(arch)` for a training loop: each step's part is found once per (decisions, input layout).

    It holds as long as the chain keeps its modules and parameters: a device must have been chosen before.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._known: dict[tuple[int, Arch, Layouts], tuple[list[Part], Layouts]] = {}

    def __call__(self, arch: Arch) -> list[Part]:
        """The used parameters of all steps in order."""
        parts: list[Part] = []
        layout: Layouts = self._chain.input_layout
        last = len(self._chain.blocks) - 1
        for index, name in enumerate(self._chain.step_names):
            key = (index, arch.sub(name), layout)
            found = self._known.get(key)
            if found is None:
                step, sub, before = self._chain.blocks[index], key[1], layout
                used = step.active_parts(sub, before) if isinstance(step, Searchable) else parameters_of([step])
                found = (list(used), None if index == last else step_layout(step, sub, before))
                if len(self._known) >= MOST_REMEMBERED:
                    self._known.clear()
                self._known[key] = found
            parts += found[0]
            layout = found[1]
        return parts


def step_layout(step: nn.Module, arch: Arch, layout: Layouts) -> Layouts:
    """The layout that any step, searchable or ordinary, hands on."""
    return step.out_layout(arch, layout) if isinstance(step, Searchable) else plain_layout(step, layout)


def materialize(step: nn.Module, arch: Arch, layout: Layouts) -> nn.Module:
    """An ordinary module from any step; an ordinary one is copied."""
    return step.materialize(arch, layout) if isinstance(step, Searchable) else copy.deepcopy(step)


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
_SAME = (nn.Identity, *_ACTIVATIONS, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout2d)


def plain_layout(module: nn.Module, layout: Layouts) -> Layouts:
    """What an ordinary module hands on, read from what it says of itself.

    An `out_layout(layout)` method decides where there is one. Otherwise the attributes `out_channels` and `stride`
    (1 if absent; 0 after global pooling) do, which torch's convolutions have anyway. Activations, batch norm, dropout
    and identities change nothing; an `nn.Sequential` is folded.

    Raises:
        InputError: the module says nothing.
    """
    own = getattr(module, "out_layout", None)
    if own is not None:
        result: Layouts = own(layout)
        return result
    if isinstance(module, nn.Sequential):
        for part in module:
            layout = plain_layout(part, layout)
        return layout
    if isinstance(module, _SAME):
        return layout
    channels, stride = getattr(module, "out_channels", None), getattr(module, "stride", 1)
    if not isinstance(channels, int) or getattr(module, "transposed", False):
        raise InputError(
            f"{type(module).__name__} is a step of a chain and must say what it hands on: give it the attributes "
            "out_channels and stride, or a method out_layout(layout)"
        )
    stride = stride[0] if isinstance(stride, tuple) else stride
    before = layout.stride if isinstance(layout, Layout) else 1
    return Layout(channels, before * stride)


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """He initialisation, fan-out, for convolutions and linear layers; batch norm to the identity.

    Convolutions: normal, variance 2 / (k·k·out / groups) (He et al., 2015). Linear: normal with deviation 0.01, bias 0.

    Args:
        generator: of the draws; torch's global generator if None.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_parameters()


def parameters_of(modules: Iterable[nn.Module]) -> Iterator[Part]:
    """Every parameter of the modules, whole, in the order of `parameters()`."""
    waiting = [*modules][::-1]
    while waiting:  # called in every step: a plain stack takes a quarter of the time of `parameters()`
        module = waiting.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                yield parameter, ()
        waiting.extend(child for child in reversed(module._modules.values()) if child is not None)


def realize(network: nn.Module, init: Init, generator: torch.Generator | None = None) -> nn.Module:
    """A network built on the meta device, given memory on the default device and initialised.

    Every tensor is first filled with NaN (integers with their smallest value), so that one that `init` forgets is
    found here and not in training.

    Raises:
        InputError: `init` left a parameter or buffer unset.
    """
    network = network.to_empty(device=torch.get_default_device())
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    marks = {name: _mark(tensor.dtype) for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.fill_(marks[name])
    init(network, generator)
    for name, tensor in tensors.items():
        mark = marks[name]
        if mark and (tensor.isnan() if mark != mark else tensor == mark).any():
            raise InputError(f"the space's init leaves {name!r} unset; let it initialise every parameter and buffer")
    return network


def _mark(dtype: torch.dtype) -> float:
    """A value that no init sets; 0 for booleans and unsigned integers, which have none to spare."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return torch.iinfo(dtype).min if dtype.is_signed else 0
