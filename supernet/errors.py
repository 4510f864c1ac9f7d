"""Errors that are written for users, and a helper that suggests the nearest valid name."""

import difflib
from collections.abc import Iterable

SHORTEST = 3
"""Letters from which on the beginning of a name stands for it: fewer begin many names."""


class InputError(ValueError):
    """Raised for wrong input. The message names the value and the remedy; tools print it as one line."""


class DamagedError(InputError):
    """Raised when a file that a whole command reads is damaged: no network is at fault, and none can be scored."""


class RunError(RuntimeError):
    """Raised when a run cannot continue, e.g. because it diverged or the disk is full; its files are intact."""


class UnwritableError(RunError):
    """Raised when a file cannot be written, e.g. because the disk is full: no network and no settings are at fault."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it takes a machine away: what Ctrl-C stops, this stops too."""


def nearest(name: object, valid: Iterable[object]) -> str:
    """Returns "did you mean X?" for the beginning of a name or a near miss, and the list of valid names otherwise."""
    text, names = str(name), list(dict.fromkeys(map(str, valid)))
    begun = [each for each in names if each.startswith(text)] if len(text) >= SHORTEST else []
    close = difflib.get_close_matches(text, begun or names, n=1, cutoff=0.0 if begun else 0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there are none to choose from"
    return f"choose from: {', '.join(names[:12])}" + (", …" if len(names) > 12 else "")
