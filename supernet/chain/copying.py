"""Copies of modules; subnets are copied out of a supernet by the thousands."""

import copy
import typing
from collections import OrderedDict
from functools import cache
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_SHARED = frozenset({NoneType, bool, int, float, str, bytes, type, FunctionType, BuiltinFunctionType})
"""Types whose values are never changed, so that copies share them."""
_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has; most are containers of hooks, which are empty and belong to it alone."""


def copy_module(module: M, memo: dict[int, Any] | None = None) -> M:
    """Returns what `copy.deepcopy` returns for a module, in less than half of the time.

    Most of that time goes into the general protocol of copying, which finds out for each module what it is made of.
    A module that takes part in that protocol with methods of its own is copied by `copy.deepcopy`, and so is every
    attribute that is no module, tensor, plain value or plain container of such.

    Args:
        module: the module; tensors that its parts share are shared in the copy too.
        memo: copies to use, by the `id` of the original, as for `copy.deepcopy`.
    """
    copied: M = _copied(module, {} if memo is None else memo)
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _SHARED:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is nn.Parameter or kind is Tensor:
        return value.__deepcopy__(memo)
    if kind is dict or kind is OrderedDict:
        new = memo[id(value)] = kind()
        for key, item in value.items():
            new[_copied(key, memo)] = _copied(item, memo)
        return new
    if kind is tuple and all(type(item) in _SHARED for item in value):
        return value
    if isinstance(value, nn.Module) and _plain(typing.cast(Any, kind)):
        new = memo[id(value)] = object.__new__(kind)
        state = dict(value.__getstate__())
        for name, item in state.items():
            of_item = type(item)
            if of_item not in _SHARED:
                state[name] = of_item() if name in _OWN and not item else _copied(item, memo)
        new.__setstate__(state)
        return new
    return copy.deepcopy(value, memo)


@cache
def _plain(kind: Any) -> bool:
    """Returns whether a class of modules leaves copying to Python, as nearly all do."""
    own = any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__getstate__ is nn.Module.__getstate__
    return default and not own and not slots
