"""The record of stand-alone trainings in a file: what a killed race has trained is not trained again."""

import json
import math
import sqlite3
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from supernet import sqlite
from supernet.checked import is_number, is_whole
from supernet.errors import InputError
from supernet.space import Arch, SearchSpace

TRAININGS = sqlite.FileKind(
    name="a record of trainings",
    application=0x4E415354 + 1,
    version=1,
    tables=(
        "CREATE TABLE trainings (key TEXT NOT NULL, seed INTEGER NOT NULL, share REAL NOT NULL, arch TEXT NOT NULL,"
        " score REAL, seconds REAL NOT NULL, PRIMARY KEY (key, seed, share))",
    ),
    damaged="restore it from a copy, or remove it and train again",
    outdated="use the release that wrote it, or another folder",
)


class Job(NamedTuple):
    """A stand-alone training that is asked for.

    Attributes:
        arch: in normal form.
        seed: number of the training, from 0; all networks with the same number should see the same data order.
        share: of a full training after which the score is taken. A job with a larger share goes on from the smaller.
    """

    arch: Arch
    seed: int = 0
    share: float = 1.0


class Outcome(NamedTuple):
    """What a training gave: its score, None if it failed, and how many seconds it took."""

    score: float | None
    seconds: float = 0.0


class Trainings(MutableMapping[Job, Outcome], sqlite.Closing):
    """Outcomes by job, in an SQLite file that one process at a time writes; an outcome is in the file once it is set.

    Args:
        path: the file, made if it is not there.
        space: the space of the networks.
        recipe: how they are trained, anything JSON can hold. A file of another recipe is refused.

    Raises:
        InputError: the file is damaged, open elsewhere, or belongs to another space or recipe.
    """

    def __init__(self, path: Path, space: SearchSpace, recipe: Mapping[str, Any]) -> None:
        self.path, self.space = path, space
        text = json.dumps(recipe, sort_keys=True)
        self._outcomes: dict[Job, Outcome] = {}
        self._lock = sqlite.only_writer(path, TRAININGS)
        self._db: sqlite3.Connection | None = None
        try:
            with sqlite.reported(path, TRAININGS, malformed=sqlite.MALFORMED):
                self._db = sqlite.opened(path, TRAININGS, meta={"space_digest": space.digest(), "recipe": text})
                self._db.execute("PRAGMA synchronous=FULL")
                meta = sqlite.read_meta(self._db)
                if meta["space_digest"] != space.digest():
                    raise InputError(
                        f"{path} records trainings of another space (digest {meta['space_digest']}, this one has "
                        f"{space.digest()}); use another file"
                    )
                _check_recipe(path, json.loads(meta["recipe"]), json.loads(text))
                for row in self._db.execute(
                    "SELECT key, arch, seed, share, score, seconds FROM trainings ORDER BY rowid"
                ):
                    key, text_of_arch, seed, share, score, seconds = row
                    if score is not None and not math.isfinite(score):
                        raise ValueError(f"the score {score} is not finite")
                    if (
                        not is_whole(seed, 0)
                        or not is_number(share, 0, 1)
                        or not is_number(seconds, 0, sys.float_info.max)
                    ):
                        raise ValueError(f"a training has seed {seed!r}, share {share!r} and seconds {seconds!r}")
                    try:
                        arch = Arch.from_json(text_of_arch)
                        values = space.canonical(arch)
                    except InputError as error:
                        raise ValueError(str(error)) from error
                    if arch.key != key:
                        raise ValueError(f"the training of {key!r} is of another architecture")
                    self._outcomes[Job(values, seed, share)] = Outcome(score, seconds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file and lets other writers in."""
        if self._db is not None:
            self._db.close()
            self._db = None
        self._lock.release()

    def __getitem__(self, job: Job) -> Outcome:
        return self._outcomes[job]

    def __iter__(self) -> Iterator[Job]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __setitem__(self, job: Job, outcome: Outcome) -> None:
        row = (job.arch.key, job.seed, job.share, job.arch.to_json(), outcome.score, outcome.seconds)
        self._execute("INSERT OR REPLACE INTO trainings VALUES (?, ?, ?, ?, ?, ?)", row)
        self._outcomes[job] = outcome

    def __delitem__(self, job: Job) -> None:
        row = (job.arch.key, job.seed, job.share)
        self._execute("DELETE FROM trainings WHERE key=? AND seed=? AND share=?", row)
        del self._outcomes[job]

    def _execute(self, statement: str, values: tuple[object, ...]) -> None:
        if self._db is None:
            raise InputError(f"the record of trainings {self.path} is closed; open it again")
        with sqlite.reported(self.path, TRAININGS), sqlite.transaction(self._db) as db:
            db.execute(statement, values)


def _check_recipe(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `InputError` that names the first setting in which two recipes differ."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path} records trainings by another recipe: {name} is {before.get(name)!r} there and "
                f"{now.get(name)!r} here; use the same settings, or remove the file to train again"
            )
