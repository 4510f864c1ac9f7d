"""JSON from files and flags that somebody else may have written: every text gives a value or one `ValueError`."""

import json
import os
import stat
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Levels of nesting; nothing of ours has more than ten, and Python's parser fails at a thousand."""
MOST_DIGITS = 400
"""Digits of an integer; a float has at most 309 before its point."""
MOST_BYTES = 2**28


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: no JSON, nested too deep, an integer of too many digits, or a name that an object has twice, where
            Python would silently take the last value.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of brackets") from None
    level, inside = 0, [value]
    while inside:
        if level > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of brackets")
        level += 1
        inside = [item for outer in inside if isinstance(outer, dict | list) for item in _items(outer)]
    return value


def read_text(path: Path) -> str:
    """Returns the text of a regular file, without the byte order mark that some editors put first.

    Raises:
        FileNotFoundError, OSError, ValueError: see `read_bytes`, or it is not UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")


def read_bytes(path: Path) -> bytes:
    """Returns what a regular file holds.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        ValueError: something else is there, such as a folder or a pipe, or it is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer must not block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MOST_BYTES:
            raise ValueError(f"{status.st_size:,} bytes, more than any such file has")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _items(outer: dict[str, Any] | list[Any]) -> list[Any]:
    return list(outer.values()) if isinstance(outer, dict) else outer


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {double[:80]!r} stands twice in one object")
    return values


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)
