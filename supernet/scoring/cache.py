"""The evaluation cache of a run: every score with shared weights once, for all searchers, seeds and reports."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock
import numpy as np

from supernet import sqlite
from supernet.errors import InputError
from supernet.ranking.paired import Bits, tied
from supernet.space import Arch

WAIT = 60.0  # seconds that a writer waits for another one; each holds the file for milliseconds

CACHE = sqlite.FileKind(
    name="an evaluation cache",
    application=0x4E415343,  # "NASC"
    version=1,
    tables=(
        "CREATE TABLE contexts (id INTEGER PRIMARY KEY, settings TEXT NOT NULL UNIQUE)",
        "CREATE TABLE scores (context INTEGER NOT NULL, key TEXT NOT NULL, arch TEXT NOT NULL, metrics TEXT NOT NULL,"
        " images INTEGER, bits BLOB, PRIMARY KEY (context, key)) WITHOUT ROWID",
    ),
    damaged="delete it, and the scores will be computed again, or restore it from a copy",
    outdated="delete it, and the scores will be computed again",
)
_PUT = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Score:
    """A network's metrics, without costs, and per image whether it was right where the metric knows that."""

    metrics: dict[str, float]
    correct: Bits | None = None


class ScoreCache:
    """Scores in one SQLite file, by what they depend on and by the key of the normal form.

    Any number of processes may read and write at a time: writers wait for each other, a score is on file when `put`
    returns, and of two equal ones the first stays. A killed process leaves nothing half written.

    Args:
        path: of the file, `scores.db` beside a run; created where there is none.

    Raises:
        InputError: no such folder, no cache, a damaged one, or one of another schema version. So do all methods, where
            the file turns out to be damaged later or the disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        sqlite.check_place(self.path, CACHE)
        self._contexts: dict[str, int] = {}
        self._db: sqlite3.Connection | None = None
        creating = filelock.FileLock(f"{self.path}.lock", timeout=WAIT)  # of several processes one creates it
        with sqlite.reported(self.path, CACHE, malformed=sqlite.MALFORMED), creating:
            self._db = sqlite.opened(self.path, CACHE, wait=WAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of scores on file, whatever they depend on."""
        with self._reported() as db:
            return int(db.execute("SELECT count(*) FROM scores").fetchone()[0])

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def get(self, context: Mapping[str, str], key: str) -> Score | None:
        """The score of a network under these settings, None if there is none.

        Args:
            context: all that the score depends on but the architecture, as `SharedWeights.context` gives it.
            key: of the normal form.
        """
        with self._reported() as db:
            row = db.execute(
                "SELECT metrics, images, bits FROM scores WHERE context = ? AND key = ?", (self._id(context), key)
            ).fetchone()
            return None if row is None else Score(json.loads(row[0]), _unpacked(*row[1:]))

    def put(self, context: Mapping[str, str], arch: Arch, score: Score) -> None:
        """Keeps the score of a network, given by its normal form; it outlives a kill from here on."""
        bits = (None, None) if score.correct is None else (len(score.correct), np.packbits(score.correct).tobytes())
        row = (self._id(context), arch.key, arch.to_json(), json.dumps(dict(score.metrics)), *bits)
        with self._reported() as db:
            db.execute(_PUT, row)

    def correct(self, context: Mapping[str, str], archs: Iterable[Arch] | None = None) -> dict[Arch, Bits]:
        """Per architecture whether each validation image is classified correctly; those without a score are left out.

        Args:
            context: as in `get`.
            archs: normal forms; None for all that have a score under these settings.
        """
        if archs is not None:
            scores = {arch: self.get(context, arch.key) for arch in archs}
            return {arch: s.correct for arch, s in scores.items() if s is not None and s.correct is not None}
        with self._reported() as db:
            query = "SELECT arch, images, bits FROM scores WHERE context = ? AND bits IS NOT NULL ORDER BY key"
            rows = db.execute(query, (self._id(context),)).fetchall()
            found = {Arch.from_json(arch): _unpacked(images, bits) for arch, images, bits in rows}
        return {arch: bits for arch, bits in found.items() if bits is not None}

    def _id(self, context: Mapping[str, str]) -> int:
        settings = json.dumps(dict(context), sort_keys=True)
        if settings not in self._contexts:
            with self._reported() as db:
                db.execute("INSERT OR IGNORE INTO contexts (settings) VALUES (?)", (settings,))
                found = db.execute("SELECT id FROM contexts WHERE settings = ?", (settings,)).fetchone()
            self._contexts[settings] = int(found[0])
        return self._contexts[settings]

    @contextmanager
    def _reported(self) -> Iterator[sqlite3.Connection]:
        """The connection; what goes wrong with the file is reported with its name and the remedy."""
        with sqlite.reported(self.path, CACHE, malformed=sqlite.MALFORMED):
            if self._db is None:  # used again after `close`
                self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            yield self._db


def _unpacked(images: int | None, bits: bytes | None) -> Bits | None:
    if images is None or bits is None:
        return None
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=images).astype(bool)


def tied_with_best(
    cache: ScoreCache,
    context: Mapping[str, str],
    *,
    archs: Iterable[Arch] | None = None,
    cost: Callable[[Arch], float] | None = None,
    level: float = 0.05,
) -> list[Arch]:
    """`tied` on what a cache holds; with a cost the cheapest comes first.

    Args:
        cache, context: where the scores are; see `ScoreCache.get`.
        archs: normal forms to compare, those of one study for instance; None for all under these settings.
        cost: of an architecture; of equally cheap ones the more accurate comes first.
        level: see `tied`.

    Raises:
        InputError: the cache holds none of them with the correctness of single images.
    """
    found = cache.correct(context, archs)
    if not found:
        raise InputError(f"{cache.path} holds no scores of these architectures with single images; evaluate them first")
    best_first = tied(found, level)
    return best_first if cost is None else sorted(best_first, key=cost)
