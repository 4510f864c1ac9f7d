"""The constructor call of an ordinary module as text, so that the source of an export can be read."""

import builtins
import inspect
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import InputError

Named = type | FunctionType
"""A class or function, which an expression refers to by name."""

_WIDTH = 120
_WIDENED = ("kernel_size", "stride", "padding", "dilation", "output_padding")  # torch keeps one integer as a tuple
_SEQUENTIAL, _LIST, _DICT = nn.Sequential.__init__, nn.ModuleList.__init__, nn.ModuleDict.__init__


def expression(module: nn.Module) -> str:
    """Returns the call that builds a module like this one, with fresh weights.

    Arguments are read from the attributes named like the constructor's parameters; defaults are left out. torch's
    layers are written as members of `nn`, all other classes by their own names.

    Raises:
        InputError: an argument is not kept as an attribute, or its value is neither a number, a string, a boolean,
            None, a class, a function, a module, nor a tuple, list or dict of these.
    """
    return written(module)[0]


def written(module: nn.Module, *, indent: int = 0, lead: int = 0) -> tuple[str, list[Named]]:
    """Returns `expression(module)`, and the classes and functions outside `nn` that it names, each once.

    Args:
        module: the module to write.
        indent: spaces at the start of the line in which the text is placed.
        lead: characters between those spaces and the text.
    """
    writer = _Writer()
    text = writer.text(module, indent=indent, lead=lead, where=type(module).__name__)
    return text, list(dict.fromkeys(writer.used))


def literal(value: object, *, lead: int = 0) -> str:
    """Returns the source of a value for which `is_literal` holds, broken into lines where it is long."""
    return _Writer().text(value, indent=0, lead=lead, where="a constant")


def is_literal(value: object) -> bool:
    """Returns whether a value is None, a bool, int, float or str, or a tuple, list or dict of these; no subclasses."""
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return all(is_literal(item) for item in value)
    if isinstance(value, dict) and type(value) is dict:
        return all(is_literal(part) for item in value.items() for part in item)
    return value is None or type(value) in (bool, int, float, str)


@dataclass
class _Writer:
    """Writes values as source and collects the classes and functions that the source names."""

    used: list[Named] = field(default_factory=list)

    def text(self, value: object, *, indent: int, lead: int, where: str) -> str:
        """Returns the source of any value; `where` names its owner in the error for a value without source."""
        if isinstance(value, nn.Module):
            return self._call(value, indent, lead)
        if isinstance(value, type | FunctionType):
            return self._reference(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if type(value) is str:
            return json.dumps(value, ensure_ascii=False)
        if value is None or type(value) in (bool, int, float):
            return repr(value)
        if isinstance(value, tuple | list) and type(value) in (tuple, list, torch.Size):
            items = [self.text(item, indent=indent + 4, lead=0, where=where) for item in value]
            if isinstance(value, list):
                return _wrap("[", items, "]", indent, lead)
            return f"({items[0]},)" if len(items) == 1 else _wrap("(", items, ")", indent, lead)
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            return _wrap("{", self._entries(value, indent + 4, where), "}", indent, lead)
        raise InputError(
            f"{where} is of type {type(value).__name__}, which cannot be written as source; keep the plain value or "
            "module that was passed to the constructor"
        )

    def _entries(self, values: Mapping[Any, object], indent: int, where: str) -> list[str]:
        entries = []
        for key, value in values.items():
            start = self.text(key, indent=indent, lead=0, where=where) + ": "
            entries.append(start + self.text(value, indent=indent, lead=len(start), where=where))
        return entries

    def _reference(self, named: Named) -> str:
        for space, prefix in ((nn, "nn"), (nn.functional, "nn.functional")):
            if getattr(space, named.__name__, None) is named:
                return f"{prefix}.{named.__name__}"
        if getattr(builtins, named.__name__, None) is not named:
            self.used.append(named)
        return named.__name__

    def _call(self, module: nn.Module, indent: int, lead: int) -> str:
        name = self._reference(type(module))
        if type(module).__init__ in (_SEQUENTIAL, _LIST, _DICT):
            return self._container(module, name, indent, lead)
        items = []
        for prefix, value in _arguments(module):
            where = f"the argument {prefix}… of {type(module).__name__}" if prefix else f"an argument of {name}"
            items.append(prefix + self.text(value, indent=indent + 4, lead=len(prefix), where=where))
        return _wrap(f"{name}(", items, ")", indent, lead)

    def _container(self, module: nn.Module, name: str, indent: int, lead: int) -> str:
        """Writes the children by position where their names are their numbers, and by name otherwise."""
        children = module._modules  # named_children() yields a module that occurs twice only once
        kind = type(module).__init__
        if kind is not _DICT and list(children) == [str(i) for i in range(len(children))]:
            items = [self.text(child, indent=indent + 4, lead=0, where=name) for child in children.values()]
            around = ("(", ")") if kind is _SEQUENTIAL else ("([", "])")
        else:
            items = self._entries(children, indent + 4, name)
            around = ("({", "})") if kind is _DICT else ("(OrderedDict({", "}))")
            if kind is not _DICT:
                self.used.append(OrderedDict)
        return _wrap(name + around[0], items, around[1], indent, lead)


def _wrap(opening: str, items: list[str], closing: str, indent: int, lead: int) -> str:
    """Puts all items on one line if they fit, otherwise each on its own line."""
    line = opening + ", ".join(items) + closing
    if indent + lead + len(line) < _WIDTH and "\n" not in line:
        return line
    margin = " " * indent
    return f"{opening}\n" + "".join(f"{margin}    {item},\n" for item in items) + margin + closing


def _arguments(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yields `("", value)` for positional and `("name=", value)` for keyword arguments, in the signature's order."""
    if type(module).__init__ in (nn.Module.__init__, nn.Identity.__init__):
        return  # both accept any arguments and keep none
    layer = type(module).__module__.startswith("torch.")
    parameters = list(inspect.signature(type(module).__init__).parameters.values())[1:]
    unpacked = any(p.kind is p.VAR_POSITIONAL and len(_attribute(module, p.name)) for p in parameters)
    for parameter in parameters:
        name, kind = parameter.name, parameter.kind
        if layer and (name in ("device", "dtype") or (parameter.default is None and not hasattr(module, name))):
            continue  # torch keeps deprecated names of other arguments, with None as their default
        value = _attribute(module, name)
        if kind is parameter.VAR_POSITIONAL:
            yield from (("", item) for item in value)
        elif kind is parameter.VAR_KEYWORD:
            yield from ((f"{key}=", item) for key, item in value.items())
        else:
            value = _constructor_value(module, parameter, value, layer)
            if kind is parameter.POSITIONAL_ONLY or (kind is parameter.POSITIONAL_OR_KEYWORD and unpacked):
                yield "", value
            elif parameter.default is parameter.empty:
                yield f"{name}=" if kind is parameter.KEYWORD_ONLY else "", value
            elif not _is_default(value, parameter.default):
                yield f"{name}=", value


def _attribute(module: nn.Module, name: str) -> Any:
    if not hasattr(module, name):
        raise InputError(
            f"{type(module).__name__} does not keep its constructor argument {name!r}, so it cannot be written as "
            f"source; set self.{name} = {name} in its __init__"
        )
    return getattr(module, name)


def _constructor_value(module: nn.Module, parameter: inspect.Parameter, value: object, layer: bool) -> object:
    """Returns the argument that the constructor received, where torch keeps something else."""
    if parameter.name == "bias" and (isinstance(value, Tensor) or (value is None and parameter.default is True)):
        # a norm without scale has no bias either, and older versions of torch do not know the argument
        return value is not None or getattr(module, "weight", None) is None
    if layer and parameter.name in _WIDENED and isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _is_default(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and is_literal(value) and value == default)
