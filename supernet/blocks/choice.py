"""Single-path choice: one of several modules, each with its own weights (SPOS, §3.2)."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from supernet.blocks.copying import copy_option
from supernet.chain import Layouts, Part, Searchable, parameters_of, plain_layout, weightless_among
from supernet.chain.copying import copy_module
from supernet.checked import shown
from supernet.errors import InputError
from supernet.space import Arch, Choice, SearchSpace, Value


class ChoiceBlock(Searchable):
    """Runs the module that the decision `op` names, and no other.

    Args:
        options: name to ordinary module, in the order of index vectors. Each must declare its output (see
            `plain_layout`); the outputs may differ.

    Raises:
        InputError: an option that is no module.
    """

    def __init__(self, options: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, option in options.items():
            if not isinstance(option, nn.Module):
                raise InputError(f"option {name!r} is {shown(option)}; give a module, such as nn.Identity()")
        self.options = nn.ModuleDict(options)
        self.space = SearchSpace("choice", [Choice("op", tuple(options))])

    def _chosen(self, arch: Arch) -> nn.Module:
        return self.options[str(arch["op"])]

    def forward(self, state: Any, arch: Arch) -> Any:
        """Returns the output of the chosen option."""
        return self._chosen(arch)(state)

    def out_layout(self, arch: Arch, layout: Layouts) -> Layouts:
        """Returns the layout after the chosen option."""
        return plain_layout(self._chosen(arch), layout)

    def materialize(self, arch: Arch, layout: Layouts) -> nn.Module:
        """Returns a copy of the chosen option."""
        return copy_module(self._chosen(arch))

    def active_parts(self, arch: Arch, layout: Layouts) -> Iterator[Part]:
        """Yields all parameters of the chosen option."""
        return parameters_of([self._chosen(arch)])

    def weightless_options(self) -> dict[str, frozenset[Value]]:
        """Returns the options without parameters."""
        return {"op": weightless_among({name: [module] for name, module in self.options.items()})}

    def copy_options(self, arch: Arch) -> None:
        """Copies the chosen option into all others (see `supernet.blocks.copying.copy_option`)."""
        copy_option(dict(self.options.items()), str(arch["op"]))
