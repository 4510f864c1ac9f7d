"""How the weights of a supernet begin: so that its options hand on the features of their input.

With He initialisation every option turns its input into other random features. Where one of the options is an identity
or a pooling, a layer behind them then sees its input's features in some steps and random ones in others, and the
supernet hardly learns. If a supernet has such a choice, all of its convolutions begin as copies of their input (Dirac
kernels with a little noise; Zagoruyko & Komodakis, 2017), those of the stem and of layers between the stages too: a
pooling leaves the channels of an image nearly as they are, but not the edges and textures that random filters make of
it. In other supernets convolutions keep He initialisation, which gives their channels different features, residual
branches begin by adding nothing (Goyal et al., 2017, section 5.1), and the other options of a choice begin as one and
the same function where their layers allow it.

All of this is derived from the modules by running each step once per option, so a user's blocks need nothing of their
own.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from supernet.chain.alike import begin_alike
from supernet.chain.initial import initialize
from supernet.chain.layout import Layout, Layouts
from supernet.chain.searchable import Searchable
from supernet.checked import NonNegative, checked_arguments, is_whole, shown
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value

NOISE = 0.1
"""The He-initialised part of a convolution that begins as a copy; without it, equal channels would stay equal."""
MOST_OPTIONS = 16  # of a choice that are traced; of an ordered one, such as a width, two are enough
PROBE = 8  # pixels of the images that trace a step; if they do not fit, the step's true size is used


def initialize_alike(
    module: nn.Module,
    steps: Iterable[tuple[nn.Module, Layouts]],
    generator: torch.Generator | None = None,
    *,
    size: int = 32,
) -> None:
    """Initialises a supernet so that its options hand on the features of their input.

    Args:
        module: the supernet, changed in place.
        steps: its steps with the layout of their input.
        generator: for the draws; torch's global generator if None.
        size: height and width of the supernet's input in pixels.

    Raises:
        InputError: no module, or no pixels.
    """
    if not isinstance(module, nn.Module) or not is_whole(size, 1):
        raise InputError(f"module={shown(module)} and size={shown(size)} should be a Module, and pixels from 1")
    initialize(module, generator)
    if any(parameter.is_meta for parameter in module.parameters()):
        return  # there are no values to set
    known: dict[tuple[str, Layouts], Start] = {}
    starts = list[tuple[nn.Module, Start]]()
    with torch.no_grad():
        for step, layout in steps:
            key = (repr(step), layout)
            if key not in known:
                known[key] = find_start(step, layout, size)
            starts.append((step, known[key]))
        copies = any(start.copying for _, start in starts)
        for step, start in starts:
            if copies and not isinstance(step, Searchable):
                _let_copy(step)
                continue
            for name, part in _ordinary(step) if copies else ():
                if not any(end.startswith(f"{name}.") for end in start.ends):
                    _let_copy(part)
            for name in start.ends:
                step.get_parameter(name).zero_()
            for names in () if copies else start.alike:
                begin_alike([step.get_submodule(name) for name in names])


def _let_copy(module: nn.Module, noise: float = NOISE) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.mul_(noise).add_(copying_kernel(conv))


@torch.no_grad()
@checked_arguments
def initialize_copying(
    module: nn.Module, generator: torch.Generator | None = None, *, noise: NonNegative = NOISE
) -> None:
    """Applies He initialisation times `noise` and lets every convolution start as a copy of its input.

    Args:
        module: changed in place.
        generator: for the draws; torch's global generator if None.
        noise: the share of He initialisation.

    Raises:
        InputError: no module, no generator, or a negative share.
    """
    initialize(module, generator)
    _let_copy(module, noise)


@torch.no_grad()
def unit_scales(module: nn.Module) -> None:
    """Sets to 1, in place, the scales of batch norms that start at 0, which are those that end a residual branch."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine and not norm.weight.any():
            norm.weight.fill_(1.0)


def copying_kernel(conv: nn.Conv2d) -> Tensor:
    """Returns the kernel with which output channel c copies input channel c, in the shape of the weight.

    If the numbers of channels differ, the smaller range is repeated.
    """
    out, per_group, height, width = conv.weight.shape
    kernel = torch.zeros_like(conv.weight)
    channels = torch.arange(max(out, per_group))
    kernel[channels % out, channels % per_group, height // 2, width // 2] = 1.0
    return kernel


@checked_arguments
def largest(space: SearchSpace) -> Arch:
    """Returns the architecture that takes the last option everywhere, the largest of an ordered choice."""
    return space._complete(lambda choice: choice.options[-1])


# -- what a step's modules need ---------------------------------------------------------------------------------------


class Start(NamedTuple):
    """How the modules of a step begin, by their names in the step."""

    copying: tuple[str, ...] = ()
    """Modules whose convolutions begin as copies of their input."""
    ends: tuple[str, ...] = ()
    """Weights at the end of residual branches, which begin at zero."""
    alike: tuple[tuple[str, ...], ...] = ()
    """Modules of which every architecture runs at most one, and which begin as the same function."""


def find_start(step: nn.Module, layout: Layouts, size: int = 32) -> Start:
    """Finds how the modules of a step should begin.

    A residual branch is what is added to a tensor that it was computed from, or the longer of two sums of different
    length (beside the projection of a ResNet). It is found by running the step on a small input and following the
    tensors. Its last weights are the scale and shift of a batch norm, or a layer without a norm behind it. Branches
    that end in an activation are left alone: a ReLU at zero passes no gradient. Of a `Searchable` only those sums count
    that every architecture makes in the same way; the sums of a cell, whose operands are decisions, are no residual
    sums.

    Options are the ordinary modules that some architectures run and others do not. If there is one without weights
    among them, such as an identity or a pooling, the others begin as copies of their input, except for those with a
    residual sum of their own.

    Args:
        step: a step of a chain; its weights and buffers stay as they are.
        layout: of its input. A step that reads several tensors cannot be run on its own; all of its options begin as
            copies if one of its modules has no weights.
        size: height and width of the chain's input in pixels.
    """
    if isinstance(layout, Layout):
        side = max(int(size / layout.stride), 1) if layout.stride else 1
        modes = [(part, part.training) for part in step.modules()]
        step.eval()  # so that nothing is drawn and no running statistics change
        try:
            for pixels in (min(PROBE, side), side):
                try:
                    x = torch.ones(1, layout.channels, pixels, pixels, device=_device(step))
                    return _traced(step, x if layout.stride else x.flatten(1))
                except Exception:  # a user's module may fail in any way on a size that it was not made for
                    continue
        finally:
            for part, mode in modes:
                part.training = mode
    if not isinstance(step, Searchable):
        return Start()
    parts = dict(_ordinary(step))
    return Start(
        tuple(name for name in parts if _weights(parts[name])) if not all(map(_weights, parts.values())) else ()
    )


def _ordinary(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields the largest ordinary modules below searchables and plain containers, with their names."""
    for name, child in module.named_children():
        if isinstance(child, Searchable | nn.ModuleList | nn.ModuleDict):
            yield from _ordinary(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _device(step: nn.Module) -> torch.device:
    return next((parameter.device for parameter in step.parameters()), torch.device("cpu"))


def _traced(step: nn.Module, x: Tensor) -> Start:
    names = {id(parameter): name for name, parameter in step.named_parameters()}
    searchable = {name for name, part in step.named_modules() if isinstance(part, Searchable)}
    summed: dict[str, set[tuple[str, ...]]] = {}  # the ends in each module that sums
    runs: list[set[str]] = []
    for arch in _covering(step) if isinstance(step, Searchable) else (None,):
        flow = _Flow(names)
        flow.record(x, (), ())
        with torch.no_grad(), flow.following(step), flow:
            step(x) if arch is None else step(x, arch)
        runs.append(flow.ran)
        sums: dict[str, list[tuple[str, ...]]] = {}
        for first, second, module in flow.sums:
            sums.setdefault(module, []).append(flow.end_of_branch(first, second))
        for module, ends in sums.items():
            inside = f"{module}." if module else ""
            if module in searchable:
                ends = ends if len(ends) == 1 else [()]  # () stands for a sum without a branch
            else:
                ends = [end for end in ends if end and all(name.startswith(inside) for name in end)]
            summed.setdefault(module, set()).update(ends)
    fixed = [ends for module, ends in summed.items() if module not in searchable or len(ends) == 1]
    zero = tuple(name for ends in fixed for end in sorted(ends) for name in end)
    always, ever = set.intersection(*runs), set.union(*runs)
    options = {name: part for name, part in _ordinary(step) if name not in always}
    own = [name for name in options if any(end.startswith(f"{name}.") for end in zero)]
    # Modules whose weights are sliced never run themselves; where others do, one that has not run yet is an option too.
    if not ever & options.keys() or all(map(_weights, options.values())):
        return Start((), zero, tuple(_exclusive([name for name in options if name not in own], runs)))
    return Start(tuple(name for name, part in options.items() if _weights(part) and name not in own), zero)


def _exclusive(names: list[str], runs: list[set[str]]) -> Iterator[tuple[str, ...]]:
    """Yields the modules of each container of which no run has used two, if there are several."""
    containers: dict[str, list[str]] = {}
    for name in names:
        containers.setdefault(name.rpartition(".")[0], []).append(name)
    for group in containers.values():
        if len(group) > 1 and all(sum(name in run for name in group) <= 1 for run in runs):
            yield tuple(group)


def _covering(step: Searchable) -> Iterator[Arch]:
    """Yields architectures that contain every option of every choice between modules."""
    rng = random.Random(0)
    columns = {choice.name: _column(choice, rng) for choice in step.space.choices}
    for row in range(max(map(len, columns.values()), default=1)):
        yield step.space._complete(lambda choice, row=row: columns[choice.name][row % len(columns[choice.name])])  # type: ignore[misc]


def _column(choice: Choice, rng: random.Random) -> list[Value]:
    options = list(choice.options)
    if choice.ordered:
        return [options[-1], options[len(options) // 2]]
    return rng.sample(options, min(len(options), MOST_OPTIONS))


@dataclass
class _Node:
    """A tensor: all tensors that it depends on, and the operation that it comes from."""

    before: int  # a bit per node, its own included
    parents: tuple[int, ...]
    weights: tuple[str, ...]
    operation: str


_LINEAR = frozenset(
    ("dropout", "dropout_", "feature_dropout", "view", "reshape", "permute", "transpose", "flatten", "contiguous", "to")
)
"""Operations through which a zero stays a zero that passes gradients."""
_SUMS = frozenset(("add", "add_", "__add__", "__iadd__", "__radd__"))


class _Flow(TorchFunctionMode):
    """Follows tensors through torch's functions.

    Attributes:
        sums: `(node, node, name of the module that adds them)`.
        ran: names of the modules that have run.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self._nodes: list[_Node] = []
        self._number: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is only unique as long as its tensor lives
        self._modules: list[str] = []
        self.ran: set[str] = set()
        self.sums: list[tuple[int, int, str]] = []

    def record(self, tensor: Tensor, parents: tuple[int, ...], weights: tuple[str, ...], operation: str = "") -> None:
        """Adds a tensor to the graph."""
        before = 1 << len(self._nodes)
        for parent in parents:
            before |= self._nodes[parent].before
        self._number[id(tensor)] = len(self._nodes)
        self._nodes.append(_Node(before, parents, weights, operation))
        self._alive.append(tensor)

    def following(self, step: nn.Module) -> "_Hooks":
        """Returns a context in which the modules below `step` are known by name while they run."""
        return _Hooks(step, self._modules, self.ran)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function and records what it returns."""
        operands = list(_tensors((*args, *(kwargs or {}).values())))
        parents = tuple(self._number[id(x)] for x in operands if id(x) in self._number)
        out = func(*args, **(kwargs or {}))
        if parents:
            bases = (x if x._base is None else x._base for x in operands)  # a slice of a weight is the weight
            weights = tuple(self._names[id(x)] for x in bases if id(x) in self._names)
            operation = getattr(func, "__name__", "")
            for result in _tensors((out,)):
                self.record(result, parents, weights, operation)
            if operation in _SUMS and len(parents) == 2 and parents[0] != parents[1]:
                self.sums.append((*parents, self._modules[-1]))
        return out

    def end_of_branch(self, first: int, second: int) -> tuple[str, ...]:
        """Returns the weights at the end of the residual branch of a sum; none if there is no branch."""
        one, other = self._nodes[first].before, self._nodes[second].before
        if one >> second & 1:
            branch = first
        elif other >> first & 1:
            branch = second
        else:
            layers = [self._layers(one & ~other), self._layers(other & ~one)]
            if layers[0] == layers[1]:
                return ()
            branch = first if layers[0] > layers[1] else second
        node = self._nodes[branch]
        while not node.weights and len(node.parents) == 1 and node.operation in _LINEAR:
            node = self._nodes[node.parents[0]]
        return node.weights

    def _layers(self, nodes: int) -> int:
        """Returns how many of the nodes come from an operation with weights."""
        return sum(1 for number, node in enumerate(self._nodes) if nodes >> number & 1 and node.weights)


class _Hooks:
    """Keeps the names of the modules that are running, the innermost last."""

    def __init__(self, step: nn.Module, running: list[str], ran: set[str]) -> None:
        self._step, self._running, self._ran = step, running, ran
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for name, module in self._step.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            self._handles.append(module.register_forward_hook(lambda *_: self._leave()))

    def _enter(self, name: str) -> None:
        self._running.append(name)
        self._ran.add(name)

    def _leave(self) -> None:  # a hook that returned something would replace the output
        self._running.pop()

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
