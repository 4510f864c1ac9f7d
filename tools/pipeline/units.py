"""Costs on the command line: numbers with the units that people write, such as 5M, 1.2G and 5ms."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from annotated_types import Gt

from supernet.checked import shown

FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
MILLISECONDS = {"": 1.0, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_NUMBER = r"[-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity)"
_PARTS = re.compile(rf"\s*({_NUMBER})\s*([A-Za-zµ]*)\s*", re.IGNORECASE)


def parse_amount(text: str) -> float:
    """A count from text: 1400000, 1.4e6, 1,400,000, 1.4M, 1.2G or 300k. Raises `ValueError` for anything else."""
    return _parsed(text, FACTORS, "a number such as 1400000, 1.4e6, 1.4M or 1.2G")


def parse_milliseconds(text: str) -> float:
    """A time in milliseconds from text: 5, 5ms, 500us or 0.1s. Raises `ValueError` for anything else."""
    return _parsed(text, MILLISECONDS, "a time such as 5ms, 500us or 0.1s")


def _parsed(text: str, factors: dict[str, float], what: str) -> float:
    match = _PARTS.fullmatch(text)
    if match is None or match[2].lower() not in factors:
        raise ValueError(f"{shown(text)} should be {what}")
    return float(re.sub("[_,]", "", match[1])) * factors[match[2].lower()]


def in_units(value: float) -> str:
    """A count as people write it: 1400000 as 1.4M, 999 as 999."""
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if math.isfinite(value) and abs(value) >= 0.99995 * factor:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.4g}"


def cost_in_units(name: str, value: float) -> str:
    """A cost by its name, with its unit: latencies in milliseconds, everything else as a count."""
    return f"{value:.4g} ms" if name == "latency_ms" else in_units(value)


def _flag(parse: Callable[[str], float], metavar: str) -> Any:
    """How tyro reads a flag: one word, which `parse` turns into a number; "None" is no number."""
    return tyro.constructors.PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: None if words[0] == "None" else parse(words[0]),
        is_instance=lambda value: value is None or isinstance(value, int | float),
        str_from_instance=lambda value: ["None" if value is None else f"{value:g}"],
    )


_AMOUNT, _MILLISECONDS = _flag(parse_amount, "NUMBER"), _flag(parse_milliseconds, "TIME")

Amount = Annotated[float, Gt(0), _AMOUNT]
"""A positive count, with an optional k, M or G."""
Limit = Annotated[Annotated[float, Gt(0)] | None, _AMOUNT]
"""A limit on a count such as MACs or parameters, with an optional k, M or G; None is no limit."""
TimeLimit = Annotated[Annotated[float, Gt(0)] | None, _MILLISECONDS]
"""A limit on a time in milliseconds, with an optional us, ms or s; None is no limit."""
