"""References to normal forms: the function that picks the representative of a network, and its version."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supernet.errors import InputError

if TYPE_CHECKING:
    from supernet.space.arch import Arch, Value


Form = Callable[["Arch"], "Mapping[str, Value]"]
"""Maps an architecture to the values of the one that represents its network."""


@dataclass(frozen=True)
class NormalForm:
    """A reference to a function that maps an architecture to the representative of its network.

    Attributes:
        function: `"module:name"`, imported on first use, so that a space restored from JSON finds it again.
        version: compared with the function's `version` attribute; part of the space's digest.
    """

    function: str
    version: int = 1

    @classmethod
    def of(cls, function: Form) -> "NormalForm":
        """Returns the reference to a module-level function, with its `version` attribute or version 1."""
        module, name = function.__module__, getattr(function, "__qualname__", "")
        if "<" in name or "." in name or not name:
            raise InputError(f"a normal form must be a function at the top level of a module, not {name or function!r}")
        return cls(f"{module}:{name}", getattr(function, "version", 1))

    def resolve(self) -> Form:
        """Imports and returns the function. Raises `InputError` if it is missing or has another version."""
        module, _, name = self.function.partition(":")
        try:
            function: Form = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"the normal form {self.function!r} cannot be imported: {error}") from error
        version = getattr(function, "version", 1)
        if version != self.version:
            raise InputError(
                f"normal form {self.function} is at version {version} here, but the space was written with version "
                f"{self.version}; use the release that wrote it, or build the space again"
            )
        return function
