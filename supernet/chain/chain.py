"""A supernet: a fold over named steps, each of which receives its sub-architecture."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supernet.chain.initial import Init, initialize
from supernet.chain.layout import Layout, Layouts
from supernet.chain.naming import nest, step_paths
from supernet.chain.searchable import Part, Searchable, materialize, parameters_of, step_layout
from supernet.chain.start import initialize_alike, largest
from supernet.checked import checked_arguments, is_whole
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace, Value, compose
from supernet.space.normal_form import Form


def _check_steps(name: object, steps: object, input_shape: object) -> None:
    """Raises `InputError` unless these are a name, pairs of names and modules, and a shape."""
    if not isinstance(name, str):
        raise InputError(f"the name of a chain is a text, not {name!r}")
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise InputError(f"the steps of {name!r} are a sequence of (name, module), not {steps!r:.80}")
    if not steps:
        raise InputError(f"{name!r} has no steps; give at least one (name, module)")
    for step in steps:
        pair = isinstance(step, tuple | list) and len(step) == 2
        if not pair or not isinstance(step[0], str) or not isinstance(step[1], nn.Module):
            raise InputError(
                f"a step of {name!r} is a pair of a name and a module, not {' '.join(repr(step).split()):.80}"
            )
    sides = input_shape if isinstance(input_shape, Sequence) else ()
    if len(sides) != 3 or not all(is_whole(side, 1) for side in sides):
        raise InputError(f"input_shape={input_shape!r:.80} should be channels, height and width in pixels")


class Chain(Searchable):
    """A supernet: a fold `state = step(state, arch.sub(name))` over named steps.

    Args:
        name: the name of the space.
        steps: `(name, module)` in order. A `Searchable` contributes its decisions under its name; an ordinary module
            is a step without decisions and must declare its output (`plain_layout`). A repeated name shares its
            decisions, not its weights (the normal cells of NASNet). The step's module stands under its name, so that
            state dicts read `stage1.block0.…`; steps of one name are numbered (`normal_0.…`, `normal_1.…`).
        input_shape: (C, H, W) of one input; costs are counted at it.
        normal_form: for identities across several steps.
        init: sets the initial weights of the supernet and of fresh standalone networks. By default the options of a
            supernet begin alike (see `supernet.chain.start`), and standalone networks as `initialize` sets them.

    Attributes:
        init: sets the initial weights of a fresh standalone network.
        starts_alike: whether `initialize` lets the options of the supernet begin alike, since no `init` was given.
        standalone: builds the chain of the same space in the standalone phase, where its networks have other parameters
            than the subnets of this one; None if they are the same. Costs are those of the standalone phase.

    Raises:
        InputError: steps of one name with different spaces, or names that modules cannot have (see `step_paths`).
    """

    standalone: "Callable[[], Chain] | None" = None

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        normal_form: Form | None = None,
        init: Init | None = None,
    ) -> None:
        _check_steps(name, steps, input_shape)
        super().__init__()
        self.step_names = tuple(step_name for step_name, _ in steps)
        self.step_paths = step_paths(self.step_names)
        self.input_shape = input_shape
        self.init: Init = init or initialize
        self.starts_alike = init is None
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
        nest(self, self.step_paths, (module for _, module in steps), group=nn.ModuleDict)

    @property
    def step_modules(self) -> list[nn.Module]:
        """The modules of the steps, in order."""
        return self.steps_in(self)

    def steps_in(self, network: nn.Module) -> list[nn.Module]:
        """Returns the modules of the steps in a network of this chain, such as `subnet(arch)`, in order."""
        return [network.get_submodule(path) for path in self.step_paths]

    def step_module(self, number: int) -> nn.Module:
        """The module of one step."""
        return self.get_submodule(self.step_paths[number])

    @property
    def steps(self) -> list[tuple[str, nn.Module]]:
        """The `(name, module)` pairs in order."""
        return list(zip(self.step_names, self.step_modules, strict=True))

    @property
    def input_layout(self) -> Layout:
        """The layout of the chain's own input."""
        return Layout(self.input_shape[0])

    def forward(self, state: Any, arch: Arch) -> Any:
        """Returns the state after the last step; for classifiers the logits, (N, classes)."""
        if not isinstance(arch, Arch):
            raise InputError(f"arch={arch!r:.80} should be an Arch; space.canonical(values) makes one of a dictionary")
        given = state
        try:
            for name, step in zip(self.step_names, self.step_modules, strict=True):
                state = step(state, arch.sub(name)) if isinstance(step, Searchable) else step(state)
        except RuntimeError as error:
            if isinstance(given, Tensor) and (given.dim() != 4 or given.shape[1] != self.input_shape[0]):
                raise InputError(
                    f"an input of shape {tuple(given.shape)} does not fit {self.space.name!r}; it takes (N, C, H, W) "
                    f"with C={self.input_shape[0]}"
                ) from error
            raise
        except KeyError:
            self.space.canonical(arch)  # names a decision that is missing or unknown
            raise
        return state

    @checked_arguments
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Sets the initial weights of a fresh supernet, in place: by `init` if it was given, otherwise alike.

        A chain without choices is an ordinary network and begins like one.

        Args:
            generator: for the draws; torch's global generator if None.
        """
        if not self.starts_alike or not self.space.choices:
            self.init(self, generator)
            return
        steps = ((step, layout) for step, _, layout in self.walk(largest(self.space)))
        initialize_alike(self, steps, generator, size=self.input_shape[-1])

    def copy_options(self, arch: Arch) -> None:
        """Copies the chosen option into all others in every step (see `Searchable.copy_options`)."""
        for name, step in self.steps:
            if isinstance(step, Searchable):
                step.copy_options(arch.sub(name))

    def weightless_options(self) -> dict[str, frozenset[Value]]:
        """Returns the options that have nothing to train in any step, by choice, where other options do."""
        weightless: dict[str, frozenset[Value]] = {}
        for name, step in zip(self.step_names, self.step_modules, strict=True):
            if isinstance(step, Searchable):
                for choice, options in step.weightless_options().items():
                    key = f"{name}.{choice}"
                    weightless[key] = weightless.get(key, options) & options
        return {name: options for name, options in weightless.items() if options}

    def walk(self, arch: Arch, layout: Layouts = None) -> Iterator[tuple[nn.Module, Arch, Layouts]]:
        """Yields `(step, sub-architecture, layout of its input)` for every step in order."""
        layout = self.input_layout if layout is None else layout
        before: tuple[nn.Module, Arch] | None = None  # the last step's layout is computed only if another step reads it
        for name, step in zip(self.step_names, self.step_modules, strict=True):
            layout = layout if before is None else step_layout(*before, layout)
            before = (step, arch.sub(name))
            yield *before, layout

    def out_layout(self, arch: Arch, layout: Layouts = None) -> Layouts:
        """Returns the layout after the last step, for an input of the chain's own layout unless another is given."""
        for step, sub, here in self.walk(arch, layout):
            layout = step_layout(step, sub, here)
        return layout

    def materialize(self, arch: Arch, layout: Layouts = None) -> nn.Sequential:
        """Returns the materialised steps with their own weights, in nested `nn.Sequential`s named as in the chain."""
        return self.assemble(materialize(step, sub, here) for step, sub, here in self.walk(arch, layout))

    def assemble(self, modules: Iterable[nn.Module]) -> nn.Sequential:
        """Returns a network of ordinary modules, one per step, under the names of the steps."""
        network = nn.Sequential()
        nest(network, self.step_paths, modules, group=nn.Sequential)
        return network.train(self.training)

    def active_parts(self, arch: Arch, layout: Layouts = None) -> Iterator[Part]:
        """Yields the parameters in use of all steps in order; of ordinary modules all."""
        for step, sub, here in self.walk(arch, layout):
            if isinstance(step, Searchable):
                yield from step.active_parts(sub, here)
            else:
                yield from parameters_of([step])

    def active_parameters(self, arch: Arch, layout: Layouts = None) -> Iterator[nn.Parameter]:
        """Yields the parameters that receive a gradient under `arch`, each once."""
        return super().active_parameters(arch, self.input_layout if layout is None else layout)

    def subnet(self, arch: Mapping[str, Any]) -> nn.Sequential:
        """Returns the standalone network of `arch` with its own copy of the shared weights.

        Raises:
            InputError: `arch` is not an architecture of this space.
        """
        return self.materialize(self.space.canonical(arch))


MOST_REMEMBERED = 4096  # entries of a PartsMemo: choices have dozens, cells of shared decisions may have thousands


class PartsMemo:
    """Returns `chain.active_parts(arch)` to a training loop; each step is asked once per (decisions, input layout).

    It is valid as long as the chain keeps its modules and parameters, so the chain must be on its device before.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._known: dict[tuple[int, Arch, Layouts], tuple[list[Part], Layouts]] = {}

    def __call__(self, arch: Arch) -> list[Part]:
        """Returns the parameters in use of all steps in order."""
        parts: list[Part] = []
        layout: Layouts = self._chain.input_layout
        last = len(self._chain.step_names) - 1
        for index, name in enumerate(self._chain.step_names):
            key = (index, arch.sub(name), layout)
            entry = self._known.get(key)
            if entry is None:
                step, sub, before = self._chain.step_module(index), key[1], layout
                used = step.active_parts(sub, before) if isinstance(step, Searchable) else parameters_of([step])
                entry = (list(used), None if index == last else step_layout(step, sub, before))
                if len(self._known) >= MOST_REMEMBERED:
                    self._known.clear()
                self._known[key] = entry
            parts += entry[0]
            layout = entry[1]
        return parts
