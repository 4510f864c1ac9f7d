"""Architectures that a user names, and random ones within limits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.checked import shown
from supernet.errors import InputError
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace
from supernet.strict_json import parse_json, read_text

if TYPE_CHECKING:
    from supernet.cost import Feasible
    from supernet_tools.pipeline.run import Run


def read_arch(text: str) -> Arch:
    """An architecture from JSON text or from a file with it, such as an export's arch.json; no space is checked.

    Raises:
        InputError: neither JSON nor a file with it.
    """
    if text.lstrip().startswith("{"):
        return Arch.from_json(text)
    try:
        written = read_text(Path(text))
        document = parse_json(written)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{shown(text)} is neither the JSON of an architecture nor a file with one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"the architecture {shown(text)} cannot be read ({error})") from error
    exported = isinstance(document, dict) and isinstance(document.get("values"), dict)
    return Arch.from_json(json.dumps(document["values"]) if exported else written)


def arch_of(text: str, space: SearchSpace) -> Arch:
    """An architecture of a space, in normal form, from JSON text or a file with it.

    Raises:
        InputError: see `read_arch`, or it is not in the space.
    """
    return space.normal_form(space.canonical(read_arch(text)))


def random_feasible(run: "Run", feasible: "Feasible", n: int, seed: int, tries: int = 10_000) -> list[Arch]:
    """`n` distinct networks drawn uniformly from those within the limits.

    Raises:
        InputError: `tries` draws give fewer.
    """
    rng, archs = generator(seed, "controls"), dict[Arch, None]()
    for _ in range(tries):
        arch = run.space.normal_form(run.space.sample(rng))
        if feasible(arch):
            archs[arch] = None
        if len(archs) == n:
            return list(archs)
    raise InputError(f"{tries:,} draws gave only {len(archs)} of {n} architectures; {feasible.explain()}")
