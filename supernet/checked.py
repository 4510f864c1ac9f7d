"""Dataclasses that check their fields, by the same rules for the command line, for files and for Python calls.

The rules stand in the annotations: types, ranges (`Annotated[int, Ge(1)]`) and conditions (`Rule`). pydantic applies
them strictly, which means that nothing is cast, rounded or guessed, and that NaN and infinities are refused.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import operator
import os
import reprlib
import sys
import typing
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import GenericAlias, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from supernet.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_NAME = 200
"""Bytes of a name in a path: file systems take 255, and temporary names are longer than the final ones."""


@dataclass(frozen=True)
class Rule:
    """A condition in an annotation that no range expresses."""

    should: str
    """What a value should be, e.g. "a plain name"."""
    holds: Callable[[Any], bool]
    """Whether a value of the annotated type meets the condition."""
    alone: bool = False
    """Whether the condition replaces the check of the type, for protocols and classes that pydantic does not know."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """How pydantic applies the condition, after it has checked the type."""
        from pydantic_core import PydanticCustomError, core_schema

        def checked(value: Any) -> Any:
            if not self.holds(value):
                raise PydanticCustomError("rule", "{should}", {"should": self.should})
            return value

        if self.alone:
            return core_schema.no_info_plain_validator_function(checked)
        return core_schema.no_info_after_validator_function(checked, handler(source))


def plain_name(text: str) -> bool:
    """Returns whether a text can be the name of a file or folder and leads nowhere else."""
    return bool(text) and text[0] != "." and text.isprintable() and not set(text) & set("/\\") and short_names(text)


def short_names(path: str | Path) -> bool:
    """Returns whether a file system can take every part of a path and a message can show it; nothing is opened."""
    text = str(path)
    try:
        parts = [part.encode() for part in text.split(os.sep)]
    except UnicodeEncodeError:
        return False
    return one_line(text) and max(map(len, parts)) <= LONGEST_NAME and len(text.encode()) < 3000


def one_line(text: str) -> bool:
    """Returns whether a text holds no control characters, which would break lines of messages and of tables."""
    return not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text)


def _device(text: str) -> bool:
    kind, colon, index = text.partition(":")
    numbered = not colon or (kind != "cpu" and index.isascii() and index.isdigit())  # there is one CPU
    return kind.isascii() and kind.isalpha() and kind != "meta" and numbered


Count = Annotated[int, Ge(1), Le(10**9)]
Natural = Annotated[int, Ge(0), Le(10**15)]
Threads = Annotated[int, Ge(1), Le(1024)]
"""Threads of torch, which fails if there are many more."""
Units = Annotated[int, Ge(1), Le(10_000)]
"""Units of a layer, or members of an ensemble: more would not fit in memory."""
Size = Annotated[int, Ge(1), Le(10**6)]
"""Elements of something that is kept in memory."""
Seed = Annotated[int, Ge(0), Lt(2**63)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Gt(0), Le(10)]
"""A learning rate of Adam, whose steps are as long as the rate."""
Pixels = Annotated[int, Ge(1), Le(2**14)]

_PATH = Rule(f"a path in UTF-8 without control characters whose names have at most {LONGEST_NAME} bytes", short_names)
_NAME = Rule(f"a plain name: no slash, no leading dot, at most {LONGEST_NAME} bytes", plain_name)
_TEXT = Rule("some text", bool)

FilePath = Annotated[Path, _PATH]
File = Annotated[str | Path, Rule("the name of a file; an empty one names nothing", lambda path: path != "")]
"""A file of a Python call. `Path("")` is the working folder, which nobody means who gives an empty text."""
Name = Annotated[str, _NAME]
Text = Annotated[str, _TEXT]
Device = Annotated[str, Rule("'cpu', 'cuda', 'cuda:N' or another device of torch that computes", _device)]


class Checked:
    """Base of dataclasses whose fields are checked when an instance is made, also by `dataclasses.replace`."""

    def __post_init__(self) -> None:
        if not _UNCHECKED.get():
            check(self)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yields names of fields whose values contradict others, each with what is wrong with it."""
        return iter(())

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yields names of fields that have no effect beside the values of others, each with when that is so.

        Such a value is not wrong in itself, since defaults and recipes have it. Commands refuse it where it was typed:
        who types it expects it to do something.
        """
        return iter(())


_UNCHECKED: ContextVar[bool] = ContextVar("_UNCHECKED", default=False)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Lets nested dataclasses be built first and checked later as a whole, so that messages can give dotted names."""
    token = _UNCHECKED.set(True)
    try:
        yield
    finally:
        _UNCHECKED.reset(token)


def check(config: Any, *, remedy: Callable[[str], str] = lambda _: "") -> None:
    """Checks all fields of a dataclass, those of dataclasses in it, and what they say together.

    Args:
        config: the dataclass.
        remedy: what to append to the message, from the dotted name of the field.

    Raises:
        InputError: the first wrong value with its dotted name and what is allowed.
    """
    for name, problem in _problems(config, ""):
        raise InputError(problem + remedy(name))


def unused_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted names of the fields without an effect in a dataclass and those in it, as `Checked.unused`."""
    if not isinstance(config, Checked):
        return
    for name, reason in config.unused():
        yield prefix + name, reason
    owner: Any = type(config)
    for field in fields_of(owner):
        yield from unused_fields(getattr(config, field), f"{prefix}{field}.")


def is_whole(value: object, low: int, high: int = 2**63 - 1) -> bool:
    """Returns whether a value is an integer, and no truth value, in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Returns whether a value is a number other than NaN, and no truth value, in a range."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def shown(value: object) -> str:
    """Returns a value as a message shows it: on one line, and shortened where it is long."""
    try:
        text = _REPR.repr(str(value) if isinstance(value, Path) else value)
    except ValueError:  # an integer with more digits than Python prints
        return "an integer of thousands of digits"
    return " ".join(text.split()) if "\n" in text else text


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def _problems(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields dotted names and messages: wrong values first, then contradictions."""
    sound = True
    owner: Any = type(config)
    for field, kind in fields_of(owner).items():
        value, name = getattr(config, field), prefix + field
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            inner = (
                _problems(value, f"{name}.")
                if isinstance(value, kind)
                else iter([(name, _instance(name, value, kind))])
            )
            for problem in inner:
                sound = False
                yield problem
        elif (should := problem_of(kind, value)) is not None:
            sound = False
            yield name, f"{name}={shown(value)} {should}"
    if sound and isinstance(config, Checked):
        for field, wrong in config.conflicts():
            yield prefix + field, f"{prefix}{field}={shown(attrgetter(field)(config))} {wrong}"


def _instance(name: str, value: object, kind: type) -> str:
    return f"{name}={shown(value)} should be settings of {kind.__name__}"


def checked_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function check its arguments by their annotations before it runs, as `Checked` does with fields.

    Scalars of numpy are passed on as the numbers of Python that they equal.

    Raises:
        InputError: from every call with a wrong value; it names the argument, the value and what is allowed.
    """
    wrong = _argument_check(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        if (problem := wrong(args, kwargs)) is None:
            return function(*args, **kwargs)
        plain_args = tuple(map(plain_scalar, args))
        plain_kwargs = {name: plain_scalar(value) for name, value in kwargs.items()}
        if wrong(plain_args, plain_kwargs) is not None:
            raise InputError(problem)
        return function(*plain_args, **plain_kwargs)  # type: ignore[arg-type]

    return checked


def plain_scalar(value: Any) -> Any:
    """Returns the Python number of a numpy scalar, and anything else as it is."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def arguments_explained(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function check its arguments only when it fails, for those that are called thousands of times a second.

    Raises:
        InputError: in place of a `TypeError`, `LookupError`, `AttributeError` or `ValueError`, if an argument is wrong.
    """
    wrong = _argument_check(function)

    @functools.wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except InputError:
            raise
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            if (problem := wrong(args, kwargs)) is not None:
                raise InputError(problem) from error
            raise

    return explained


def _argument_check(function: Callable[..., Any]) -> Callable[[Sequence[Any], Mapping[str, Any]], str | None]:
    """Returns a function from the arguments of a call to what is wrong with one of them, or None.

    A wrong number of arguments and unknown names are left to Python. Defaults are right whatever the annotation says,
    for instance an infinite bound.
    """
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters}
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    checks: dict[str, Callable[[Any], str | None]] = {}

    def wrong(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        if not checks:  # at the first call, when all names of the module are defined
            for parameter in parameters:
                kind = declared(parameter.annotation, function)
                if kind is not Any and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    checks[parameter.name] = check_of(kind)
        for name, value in (*zip(positional, args, strict=False), *kwargs.items()):
            if name not in checks or value is defaults[name]:
                continue
            if (should := checks[name](value)) is not None:
                return f"{name}={shown(value)} {should}"
        return None

    return wrong


def declared(annotation: Any, function: Callable[..., Any]) -> Any:
    """Returns the type that an annotation means; `Any` for none, and for names imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={"value": annotation})
    try:
        return typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)["value"]
    except NameError:
        return Any


def problem_of(kind: Any, value: object) -> str | None:
    """Returns what a value of an annotated type should be; None if nothing is wrong with it."""
    return check_of(kind)(value)


@cache
def check_of(kind: Any) -> Callable[[Any], str | None]:
    """Returns the function from a value to what a value of this type should be, or to None if nothing is wrong."""
    classes = _classes(kind)
    if classes is not None:
        should = f"should be {' or '.join(map(_noun, classes))}"
        return lambda value: None if any(_is_a(value, each) for each in classes) else should
    from pydantic import ValidationError  # at first use, and not for mere classes

    adapter = _adapter(kind)
    if adapter is None:
        return lambda value: None

    def problem(value: Any) -> str | None:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            problems = dict.fromkeys(_expectation(item) for item in error.errors())
            return f"should be {' or '.join(problems)}"
        return None

    return problem


def _expectation(item: Mapping[str, Any]) -> str:
    """Returns what a value should be, from one error of pydantic."""
    if item["type"] == "sequence_str":  # pydantic says what it does not allow
        return "a sequence of values, not one text"
    if item["type"] == "is_instance_of" and item["ctx"]["class"] == "Sequence":
        return "a sequence of values, such as (1, 2)"
    message: str = item["msg"].removeprefix("Input should be ")
    where = [step for step in item["loc"] if isinstance(step, int)]
    if where and not isinstance(item["input"], Mapping | list | tuple):
        return f"{message}, and item {where[-1]} is {shown(item['input'])}"
    return message


def _classes(kind: Any) -> tuple[Any, ...] | None:
    """Returns the classes of a type that consists of classes of our own, of torch and None; else None."""
    members = typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)
    own = [member for member in members if member is not NoneType]
    known = (int, float, str, bytes, bool, list, tuple, dict, set, frozenset, type, object, Path, Any)
    classes = own and all(isinstance(member, type) and member not in known for member in own)
    return members if classes and not any(isinstance(member, GenericAlias) for member in own) else None


def _is_a(value: object, kind: Any) -> bool:
    """Returns whether a value is an instance of a class, or has all members of a protocol."""
    if not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    members = {name for base in kind.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    public = {name for name in members if not name.startswith("_") or name == "__call__"}
    return not isinstance(value, type) and all(hasattr(value, name) for name in public)


def _noun(kind: Any) -> str:
    return "None" if kind is NoneType else f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Returns the annotated types of a dataclass's fields by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


_OWN = ("supernet", "searchers", "detection", "supernet_tools", "torch", "numpy", "random")
"""Packages whose classes are checked by `isinstance` within other types, such as sequences of them."""


def _with_instances(kind: Any) -> Any:
    """Returns a type in which classes that pydantic does not know are conditions."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is None:
        if not isinstance(kind, type) or kind.__module__.partition(".")[0] not in _OWN:
            return kind
        return Annotated[Any, Rule(_noun(kind), functools.partial(_is_a, kind=kind), alone=True)]
    if origin is Annotated:
        return Annotated[(_with_instances(members[0]), *kind.__metadata__)]
    if origin is typing.Union or origin is UnionType:
        return functools.reduce(operator.or_, map(_with_instances, members))
    if origin is Collection:  # which pydantic does not know
        rule = Rule(
            f"a collection of {_words(members[0])}", functools.partial(_is_collection_of, kind=members[0]), alone=True
        )
        return Annotated[Any, rule]
    if origin is typing.Literal or origin is Callable or origin is type or origin.__module__ in _OWN:
        return kind
    return origin[tuple(map(_with_instances, members))]


def _words(kind: Any) -> str:
    """Returns the name of a type in a message."""
    return getattr(kind, "__name__", None) or " or ".join(map(_words, typing.get_args(kind)))


def _is_collection_of(value: object, kind: Any) -> bool:
    """Returns whether a value is a collection, other than a text, of values of a type."""
    whole = isinstance(value, Collection) and not isinstance(value, str | bytes)
    return whole and all(problem_of(kind, each) is None for each in typing.cast(Collection[object], value))


def _adapter(kind: Any) -> Any:
    """Returns what checks values of a type; None for types that pydantic does not know, which are left unchecked."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter  # at first use: importing this module costs nothing

    try:
        return TypeAdapter(_with_instances(kind), config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:
        return None
