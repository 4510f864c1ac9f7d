"""Architectures that a user names, and random ones within limits."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.checked import shown
from supernet.errors import InputError
from supernet.files import read_json
from supernet.seeding import generator
from supernet.space import Arch, SearchSpace
from supernet.strict_json import parse_json, read_text
from supernet_tools.pipeline.command_line import FRONT, START

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
    with _naming(text):
        return Arch.from_json(json.dumps(document["values"]) if exported else written)


@contextlib.contextmanager
def _naming(text: str) -> Iterator[None]:
    """Names the file in an `InputError` about an architecture that was read from one."""
    try:
        yield
    except InputError as error:
        if text.lstrip().startswith("{"):
            raise
        raise InputError(f"the architecture in {shown(text)} cannot be used: {error}") from error


def arch_of(text: str, space: SearchSpace) -> Arch:
    """An architecture of a space, in normal form, from JSON text or a file with it.

    Raises:
        InputError: see `read_arch`, or it is not in the space.
    """
    arch = read_arch(text)
    with _naming(text):
        return space.normal_form(space.canonical(arch))


def named_arch(run: "Run", text: str | None, search: str) -> Arch:
    """The architecture that a user means, in normal form.

    Args:
        run: the run in whose space it is.
        text: JSON, a file with it, `front:3` for the third network of the front of `search` (`front:1` has the best
            score), `largest` or `smallest`, or the key of a network of this run, of which four digits are enough if
            they are unambiguous; None for the best network of `search`.
        search: name of a search of the run.

    Raises:
        InputError: no such search, no such network in it, or an architecture of another space.
    """
    from supernet_tools.pipeline.search import best_arch, searched_front

    if text is None:
        return best_arch(run, search)
    if place := FRONT.fullmatch(text):
        front, _ = searched_front(run, search)
        number = int(place[1])
        if not 1 <= number <= len(front):
            raise InputError(
                f"the front of the search {search!r} has {len(front)} networks; give front:1 to front:{len(front)}, "
                f"not {text}"
            )
        return run.space.normal_form(front[number - 1].arch)
    if text.startswith(START) and not Path(text).exists():
        raise InputError(f"{shown(text)} is no place on the front of a search; give front:1, front:2 or so")
    if text in ("largest", "smallest") and not Path(text).exists():
        from supernet.training.sampling import sandwich

        largest, smallest = sandwich(run.space, table=run.cost, random_paths=0)(0)
        return run.space.normal_form(largest if text == "largest" else smallest)
    if re.fullmatch("[0-9a-f]{1,3}", text) and not Path(text).exists():
        raise InputError(f"{text!r} is too short for a key; give at least four of its digits")
    if re.fullmatch("[0-9a-f]{4,16}", text) and not Path(text).exists():
        return _of_key(run, text)
    return arch_of(text, run.space)


def _of_key(run: "Run", key: str) -> Arch:
    """The network of a run whose key begins with some digits: of its searches, races and retrainings."""
    matches = {arch.key: arch for arch in known_archs(run) if arch.key.startswith(key)}
    if not matches:
        raise InputError(
            f"no search, race or retraining of {run.folder} has a network with the key {key!r}; give its architecture "
            "as JSON or a file, or front:1"
        )
    if len(matches) > 1:
        raise InputError(
            f"{len(matches)} networks of {run.folder} have a key that begins with {key!r}; give more digits"
        )
    return next(iter(matches.values()))


def known_archs(run: "Run") -> Iterator[Arch]:
    """Yields the networks that the files of a run name, in normal form; files that cannot be read are passed over."""
    from searchers import Study

    for study in sorted(run.folder.glob("search/*/study.db")):
        with contextlib.suppress(InputError), Study(study, run.space, read=True) as opened:  # MorphNet's may be wider
            yield from (run.space.normal_form(trial.arch) for trial in opened.trials())
    for file in sorted([*run.folder.glob("retrain/*/result.json"), *run.folder.glob("select/*.json")]):
        with contextlib.suppress(InputError):
            document = read_json(file)
            networks = document.get("networks")
            for row in [document, *(networks if isinstance(networks, list) else ())]:
                if isinstance(row, Mapping) and isinstance(row.get("arch"), Mapping):
                    yield run.space.normal_form(run.space.canonical(row["arch"]))


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
