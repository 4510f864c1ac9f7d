"""One decision of a search space: its options and the condition under which it is active."""

import math
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from random import Random
from typing import Any

from supernet.errors import InputError
from supernet.space.arch import Value


@dataclass(frozen=True)
class Choice:
    """A decision between several options.

    Attributes:
        name: unique in its space, with dots between levels.
        options: the values to choose from, in the order of index vectors; may be a `range`.
        when: `(parent, values)`: the decision is active only while the earlier decision `parent` is active and has one
            of `values`. An inactive decision takes its first option, so that equal networks have equal values.
        ordered: the options form a scale (a width, a depth), so only adjacent options are neighbours.
    """

    name: str
    options: tuple[Value, ...] | range
    when: tuple[str, tuple[Value, ...]] | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        options = self.options
        if not isinstance(self.name, str):
            raise InputError(f"the name of a choice is a text, not {self.name!r}")
        if not isinstance(options, Iterable):
            raise InputError(f"choice {self.name!r} takes a sequence of options, not {options!r}")
        if self.when is not None and (not isinstance(self.when, tuple | list) or len(self.when) != 2):
            raise InputError(f"choice {self.name!r} takes when=(parent, values), not {self.when!r}")
        if isinstance(options, Mapping | Set | bytes) or not isinstance(self.ordered, bool):
            wrong = f"ordered={self.ordered!r}" if not isinstance(self.ordered, bool) else f"options {options!r}"
            raise InputError(
                f"choice {self.name!r} has {wrong}; give a sequence of options, and ordered as True or False"
            )
        if isinstance(options, str) or (self.when is not None and isinstance(self.when[1], str)):
            raise InputError(f"choice {self.name!r} takes sequences of values, not one string; write ('a', 'b')")
        if isinstance(options, range) and options:  # one spelling per sequence, so that equal spaces have equal JSON
            step = options[1] - options[0] if len(options) > 1 else 1
            object.__setattr__(self, "options", range(options[0], options[-1] + step, step))
        elif not isinstance(options, range):
            object.__setattr__(self, "options", tuple(options))
        if self.when is not None:
            if not isinstance(self.when[0], str) or not isinstance(self.when[1], Iterable):
                raise InputError(f"choice {self.name!r} takes when=(parent, values), not {self.when!r}")
            object.__setattr__(self, "when", (self.when[0], tuple(self.when[1])))
            if not self.when[1]:
                raise InputError(
                    f"choice {self.name!r} has when=({self.when[0]!r}, ()), so it is never active; name the values of "
                    f"{self.when[0]!r} that make it so"
                )
        if not self.name or self.name.startswith(".") or self.name.endswith("."):
            raise InputError(f"a choice needs a name that neither starts nor ends with a dot, not {self.name!r}")
        if not isinstance(self.options, range) and any(option != option for option in self.options):
            raise InputError(f"choice {self.name!r} has NaN among its options, which equals nothing; name it otherwise")
        if not isinstance(self.options, range):
            strange = [
                o for o in self.options if not isinstance(o, str | int | float | bool) or o in (math.inf, -math.inf)
            ]
            if strange:
                raise InputError(f"choice {self.name!r} has options that are no plain values: {strange!r:.80}")
        if len(self.options) == 0:
            raise InputError(f"choice {self.name!r} has no options; give it at least one")
        if not isinstance(self.options, range) and len(set(self.options)) != len(self.options):
            raise InputError(f"choice {self.name!r} lists an option twice: {self.options}")

    def off(self, values: Mapping[str, Value], inactive: Collection[str]) -> bool:
        """Returns whether the condition fails, given the values of earlier choices and the names of inactive ones."""
        return self.when is not None and (self.when[0] in inactive or values[self.when[0]] not in self.when[1])

    def option(self, value: object) -> Value | None:
        """Returns the option that a value stands for, or None if it is none of them.

        A float stands for the integer that it equals, since spreadsheets and pandas write 1.0 for 1. A truth value
        equals 0 or 1 as well, but nobody who writes one means a number, nor the other way round.
        """
        if value not in self.options:
            return None
        option = self.options[self.options.index(value)]  # type: ignore[arg-type]
        return option if isinstance(option, bool) is isinstance(value, bool) else None

    def index(self, value: Value) -> int:
        """Returns the number of `value` among the options."""
        return self.options.index(value)  # type: ignore[arg-type]

    def draw(self, rng: Random) -> Value:
        """Returns a random option, each equally likely."""
        return self.options[rng.randrange(len(self.options))]

    def draw_other(self, value: Value, rng: Random) -> Value:
        """Returns a random option other than `value`, each equally likely; there must be at least two options."""
        index = rng.randrange(len(self.options) - 1)
        return self.options[index if index < self.index(value) else index + 1]

    def adjacent(self, value: Value) -> tuple[Value, ...]:
        """Returns the options one move away: all others, or those next to `value` if the choice is ordered."""
        if not self.ordered:
            return tuple(option for option in self.options if option != value)
        index = self.index(value)
        return tuple(self.options[i] for i in (index - 1, index + 1) if 0 <= i < len(self.options))


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    options = choice.options
    item: dict[str, Any] = {"name": choice.name}
    item["options"] = (
        {"range": [options.start, options.stop, options.step]} if isinstance(options, range) else list(options)
    )
    if choice.when is not None:
        item["when"] = [choice.when[0], list(choice.when[1])]
    if choice.ordered:
        item["ordered"] = True
    return item


def _choice_from_json(item: Mapping[str, Any]) -> Choice:
    raw = item["options"]
    options = range(*raw["range"]) if isinstance(raw, dict) else tuple(raw)
    if not isinstance(options, range) and not all(isinstance(value, str | int | float) for value in options):
        raise InputError(f"choice {item['name']!r} has options that are no plain values: {raw!r:.100}")
    when = (item["when"][0], tuple(item["when"][1])) if "when" in item else None
    return Choice(item["name"], options, when, item.get("ordered", False))
