"""The errors that a user is meant to read, and the helper that offers the nearest valid name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong. The message names the value and the remedy; tools print it as one line."""


class RunError(RuntimeError):
    """A run cannot go on: it diverged, or the disk is full. What it saved before is intact; tools print one line."""


def nearest(name: object, valid: Iterable[object]) -> str:
    """`"did you mean X?"` for a near miss, the list of valid names otherwise."""
    names = [str(item) for item in valid]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"choose from: {shown or 'nothing (there are none)'}"
