"""References to normal forms: the function that picks the representative of a network, and its version."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supernet.errors import InputError
from supernet.user_code import import_function

if TYPE_CHECKING:
    from supernet.space.arch import Arch, Value


Form = Callable[["Arch"], "Mapping[str, Value]"]
"""Maps an architecture to the values of the one that represents its network."""

KNOWN = frozenset(
    {
        "supernet.spaces.nasbench201:one_per_network",
        "supernet.spaces.nasbench_macro:identities_last",
        "supernet.blocks.elastic:whole_branches",
        "supernet.blocks.cells.graph:one_per_graph",
        "detection.nasfpn.space:one_per_pyramid",
    }
)
"""The normal forms of this project, which a space from a file may name."""

_DEFINED: dict[str, Form] = {}  # reference to function, of the spaces that this process has built itself


@dataclass(frozen=True)
class NormalForm:
    """A reference to a function that maps an architecture to the representative of its network.

    Attributes:
        function: `"module:name"`, imported on first use, so that a space restored from JSON finds it again.
        version: compared with the function's `version` attribute; part of the space's digest.
        trusted: whether code named the function, and not only a file. What a file names is not imported unless it is
            `KNOWN` or belongs to a space that this process has built.
    """

    function: str
    version: int = 1
    trusted: bool = field(default=False, compare=False, repr=False)

    @classmethod
    def of(cls, function: Form) -> "NormalForm":
        """Returns the reference to a module-level function, with its `version` attribute or version 1."""
        if not callable(function):
            raise InputError(f"a normal form must be a function at the top level of a module, not {function!r}")
        module, name = function.__module__, getattr(function, "__qualname__", "")
        if "<" in name or "." in name or not name:
            raise InputError(f"a normal form must be a function at the top level of a module, not {name or function!r}")
        reference = f"{module}:{name}"
        _DEFINED[reference] = function
        return cls(reference, getattr(function, "version", 1), trusted=True)

    @classmethod
    def from_file(cls, function: str, version: int, trust: Collection[str]) -> "NormalForm":
        """Returns the reference that a file names.

        Raises:
            InputError: nothing but the file names the function: it is neither of this project, nor of a space that this
                process has built, nor in `trust`.
        """
        if not isinstance(function, str) or type(version) is not int:
            raise InputError(f"the normal form {function!r}, version {version!r}, is not a name and a whole number")
        form = cls(function, version, trusted=function in trust)
        form.check_trusted()
        return form

    def check_trusted(self) -> None:
        """Raises `InputError` if only a file names the function."""
        if not (self.trusted or self.function in KNOWN or self.function in _DEFINED):
            raise InputError(
                f"the normal form {self.function!r} is named by a file and is not one of this project, so it is not "
                "imported; if you trust it, build its space first or give trust=[its name]"
            )

    def resolve(self) -> Form:
        """Returns the function, imported if needed.

        Raises:
            InputError: it is missing, has another version, or is named by a file alone.
        """
        self.check_trusted()
        function = _DEFINED.get(self.function)
        if function is None:
            function = import_function(self.function, f"the normal form {self.function!r}")
        version = getattr(function, "version", 1)
        if version != self.version:
            raise InputError(
                f"normal form {self.function} is at version {version} here, but the space was written with version "
                f"{self.version}; use the release that wrote it, or build the space again"
            )
        return function
