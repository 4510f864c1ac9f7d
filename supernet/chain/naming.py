"""Where the steps of a chain stand among its modules: every step under its dotted name, in nested containers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from supernet.errors import InputError

_NUMBERED = re.compile(r"(blocks\.)?\d+\.")


def step_paths(names: Sequence[str]) -> tuple[str, ...]:
    """Returns a unique dotted path per step: its name, or `name_0`, `name_1`, … where several steps share it.

    Raises:
        InputError: a name with an empty part, a step named like a group of others (`stage1` and `stage1.block0`), two
            equal paths, or a group whose steps do not follow one another.
    """
    repeated = {name for name, times in Counter(names).items() if times > 1}
    numbers: Counter[str] = Counter()
    paths: list[str] = []
    groups: set[str] = set()
    open_groups: set[str] = set()
    for name in names:
        path = f"{name}_{numbers[name]}" if name in repeated else name
        numbers[name] += 1
        parts = path.split(".")
        if not all(parts):
            raise InputError(f"a step cannot be named {name!r}: every part between dots needs at least one character")
        around = {".".join(parts[:end]) for end in range(1, len(parts))}
        if path in paths or path in groups or around & set(paths):
            raise InputError(f"the step {path!r} has the name of another step or group of steps; rename one of them")
        reopened = (around - open_groups) & groups
        if reopened:
            raise InputError(
                f"the steps below {min(reopened)!r} do not follow one another, so they cannot stand in one group; "
                f"rename {name!r}"
            )
        groups |= around
        open_groups = around
        paths.append(path)
    return tuple(paths)


def nest(root: nn.Module, paths: Sequence[str], modules: Iterable[nn.Module], *, group: type[nn.Module]) -> None:
    """Adds modules to `root` at dotted paths, in containers of type `group` that are created on the way.

    Raises:
        InputError: a part of a path is an attribute of its container, such as `forward`.
    """
    for path, module in zip(paths, modules, strict=True):
        *parents, last = path.split(".")
        parent = root
        for name in parents:
            if name not in parent._modules:
                _add(parent, name, group(), path)
            parent = parent.get_submodule(name)
        _add(parent, last, module, path)


def _add(parent: nn.Module, name: str, module: nn.Module, path: str) -> None:
    if hasattr(parent, name) or hasattr(nn.Sequential, name) or hasattr(nn.ModuleDict, name):
        raise InputError(f"a step cannot be named {path!r}: modules have an attribute {name!r}; choose another name")
    parent.add_module(name, module)


def has_numbered_steps(names: Iterable[str]) -> bool:
    """Whether a state dict names steps by their numbers (`blocks.3.…`, `3.…`), as earlier releases did."""
    return all(_NUMBERED.match(name) for name in names)
