"""An architecture: an immutable, hashable mapping from decision names to values."""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping

from supernet.checked import shown
from supernet.errors import InputError
from supernet.strict_json import parse_json

Value = str | int | float | bool
_PLAIN = (str, int, float)  # a bool is an int; a tuple is checked twice as fast as a union


class Arch(Mapping[str, Value]):
    """An architecture: an immutable, hashable mapping from decision names to values.

    Two architectures are equal if they have the same values under the same names, in any order.
    """

    __slots__ = ("_hash", "_key", "_subs", "_values")

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise InputError(f"an architecture is a mapping of decision names to values, not {str(values)[:80]!r}")
        self._start(dict(values or {}))
        for name, value in self._values.items():
            if not isinstance(name, str) or not isinstance(value, _PLAIN) or value != value:
                raise InputError(
                    f"an architecture maps names to text, numbers or truth values, not {name!r:.80} to {value!r:.80}"
                )

    def _start(self, values: dict[str, Value]) -> None:
        self._values = values
        self._hash: int | None = None
        self._key: str | None = None
        self._subs: dict[str, Arch] = {}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._values.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self._values == other._values

    def __reduce__(self) -> tuple[type["Arch"], tuple[dict[str, Value]]]:
        return Arch, (self._values,)

    def __repr__(self) -> str:
        return f"Arch({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def sub(self, prefix: str) -> "Arch":
        """Returns the sub-architecture below `prefix`: its decisions without the prefix, empty if there are none."""
        sub = self._subs.get(prefix)
        if sub is None:
            if not isinstance(prefix, str):
                raise InputError(f"prefix={prefix!r} should be a text, the name of a step")
            start = prefix + "."
            cut = len(start)
            sub = Arch.__new__(Arch)  # its values have been checked; layers ask for it in every forward pass
            sub._start({name[cut:]: value for name, value in self._values.items() if name.startswith(start)})
            self._subs[prefix] = sub
        return sub

    @property
    def key(self) -> str:
        """16 hex digits of SHA-256 over the sorted names and values, the same in every process."""
        if self._key is None:
            text = json.dumps(self._values, sort_keys=True, separators=(",", ":"))
            self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._key

    def to_json(self) -> str:
        """Returns names and values as a JSON object; it never contains option numbers."""
        return json.dumps(self._values, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Arch":
        """Reads the output of `to_json`. Raises `InputError` for anything but an object of plain values."""
        try:
            values = parse_json(text)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"an architecture is a JSON object of decision names and values, not {shown(text)}: {error}"
            ) from error
        if not isinstance(values, dict) or not all(isinstance(v, str | int | float | bool) for v in values.values()):
            raise InputError(f"an architecture is a JSON object of decision names and plain values, not {text[:80]!r}")
        if any(isinstance(v, float) and not math.isfinite(v) for v in values.values()):
            raise InputError(f"the values of an architecture are finite, not {text[:80]!r}")
        return cls(values)


class ArchReader:
    """Reads many architectures of one space from JSON: the same results as `Arch.from_json`, ten times faster.

    A text as `Arch.to_json` writes it, with one option for each decision in the order of the space, is cut into pairs
    that are looked up; anything else is left to `Arch.from_json`. Names and values are shared between the
    architectures, which saves most of their memory.

    Args:
        options: the options by the name of the decision, in the order of the space.
    """

    MOST_OPTIONS = 10_000

    def __init__(self, options: Mapping[str, Collection[Value]]) -> None:
        self._names = list(options)
        self._pairs = {
            f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}": (name, value)
            for name, values in options.items()
            if len(values) <= self.MOST_OPTIONS
            for value in values
        }

    def __call__(self, text: str) -> Arch:
        """Returns the architecture. Raises `InputError` as `Arch.from_json` does."""
        try:
            pairs = [self._pairs[pair] for pair in text[1:-1].split(", ")]
        except (KeyError, TypeError, AttributeError):
            return Arch.from_json(text)
        values = dict(pairs)
        if text[0] + text[-1] != "{}" or len(pairs) != len(values) or [*values] != self._names:
            return Arch.from_json(text)
        arch = Arch.__new__(Arch)
        arch._start(values)
        return arch
