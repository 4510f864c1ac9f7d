"""NAME=VALUE settings of the command line, checked against the signature of what they configure."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

from supernet.checked import declared, shown
from supernet.errors import InputError, nearest
from supernet.strict_json import parse_json


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """`("a=1", …)` as a mapping.

    Raises:
        InputError: a text without an equals sign, or a name that is given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"settings are NAME=VALUE, not {shown(text)}")
        if name in values:
            raise InputError(f"the setting {name!r} is given twice: {shown(values[name])} and {shown(value)}")
        values[name] = value
    return values


def parse_settings(
    target: Callable[..., Any],
    texts: Sequence[str],
    *,
    owner: str,
    reserved: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
    converters: Mapping[str, Callable[[str], Any]] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for `target` from NAME=VALUE texts.

    A value is JSON where it parses as JSON and plain text otherwise (`acquisition=ei`). It must have the type that the
    signature of `target` declares: nothing is rounded or cast, but a list becomes a tuple and an integer may stand for
    a float. Parameters without an annotation, and names that `target` takes as `**settings`, accept any JSON value.

    Args:
        target: a function or class.
        texts: what the user gave.
        owner: what messages call the target, such as "the searcher 'pnas'".
        reserved: parameters that the user cannot set here, since the run decides them.
        extra: further settings and their types.
        converters: functions from text, for parameters that JSON cannot express; they raise `ValueError`.

    Raises:
        InputError: an unknown or reserved name, or a value of the wrong type or out of range.
    """
    types = signature_types(target) | dict(extra or {})
    open_ended = types.pop("**", None) is not None
    known = [name for name in types if name not in reserved]
    values: dict[str, Any] = {}
    for name, text in pairs(texts).items():
        if name in reserved:
            raise InputError(f"{owner} cannot take {name}: it follows from the run, the data or another flag")
        if name not in known and not open_ended:
            raise InputError(f"{owner} has no setting {name!r}; {nearest(name, known)}")
        if converters is not None and name in converters:
            try:
                values[name] = converters[name](text)
            except ValueError as error:
                raise InputError(f"{name}={shown(text)}: {error}") from error
        else:
            values[name] = typed(name, text, types.get(name, Any))
    return values


def signature_types(target: Callable[..., Any]) -> dict[str, Any]:
    """Parameter name to annotated type, `Any` where there is none; `"**"` stands for a `**settings` parameter."""
    function = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    types: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            types["**"] = Any
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            types[name] = declared(parameter.annotation, function)
    return types


def typed(name: str, text: str, kind: Any) -> Any:
    """A value of a type from its text.

    Raises:
        InputError: the text is of another type, NaN or infinite.
    """
    from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

    document = text if _is_json(text) else json.dumps(text)
    if kind is str and not text.startswith('"'):
        document = json.dumps(text)  # a digit is text here too
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    except PydanticSchemaGenerationError:
        adapter = TypeAdapter(Any)
    try:
        value = adapter.validate_json(document, strict=True)
    except ValidationError as error:
        problems = dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors())
        hint = "; a list is written as '[1, 2]', texts in double quotes" if _wants_list(kind) else ""
        raise InputError(f"{name}={shown(text)} should be {' or '.join(problems)}{hint}") from None
    return _frozen(value)


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _wants_list(kind: Any) -> bool:
    return bool(get_args(kind)) and any(word in str(kind) for word in ("tuple", "Sequence", "list"))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
