"""The evaluation cache of a run, which keeps every score for all searchers, seeds and reports."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from supernet import sqlite
from supernet.checked import File, arguments_explained, checked_arguments, shown
from supernet.errors import InputError
from supernet.paths import file_operation, lock_file, work_saved
from supernet.ranking.paired import Bits, tied
from supernet.space import Arch

WAIT = 60.0  # seconds that a writer waits for another one; each locks the file for milliseconds

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
    """A network's metrics without costs, and for each image whether it was right, if the metric defines that."""

    metrics: dict[str, float]
    correct: Bits | None = None


class ScoreCache(sqlite.Closing):
    """Scores in one SQLite file, under the settings they depend on and the key of the normal form.

    Any number of processes may read and write at the same time: writers wait for each other, a score is on disk when
    `put` returns, and of two scores of one network the first stays. A killed process leaves nothing half written.

    Args:
        path: the path of the file, `scores.db` in the folder of a run; created if it does not exist.

    Raises:
        InputError: the folder does not exist, or the file is not a cache, is damaged, or has another schema version.
            All methods raise it too if the file turns out to be damaged later.
        RunError: the disk is full, or another process keeps the file locked; so do all methods.
    """

    @checked_arguments
    def __init__(self, path: File) -> None:
        self.path = Path(path)
        sqlite.check_place(self.path, CACHE)
        sqlite.check_start(self.path, CACHE)
        self._contexts: dict[str, int] = {}
        self._db: sqlite3.Connection | None = None
        creating = lock_file(Path(f"{self.path}.lock"), timeout=WAIT)  # only one of several processes creates it
        with sqlite.reported(self.path, CACHE, malformed=sqlite.MALFORMED), creating:
            self._db = sqlite.opened(self.path, CACHE, wait=WAIT)
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may take the last scores, a kill none

    def __len__(self) -> int:
        """Returns the number of scores in the file, under whatever settings."""
        with self._reported() as db:
            return int(db.execute("SELECT count(*) FROM scores").fetchone()[0])

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @arguments_explained
    def get(self, context: Mapping[str, str], key: str) -> Score | None:
        """Returns the score of a network under these settings, or None if there is none.

        Args:
            context: everything that the score depends on except the architecture, see `SharedWeights.context`.
            key: the key of the normal form.

        Raises:
            InputError: settings that are no mapping of texts.
        """
        settings = self._id(context)
        with self._reported() as db:
            row = db.execute(
                "SELECT metrics, images, bits FROM scores WHERE context = ? AND key = ?", (settings, key)
            ).fetchone()
            return None if row is None else Score(_metrics(row[0]), _unpacked(*row[1:]))

    @arguments_explained
    def put(self, context: Mapping[str, str], arch: Arch, score: Score) -> None:
        """Saves the score of a network, given by its normal form; afterwards it survives a kill.

        Raises:
            InputError: there are no metrics, or one is no number: every later command would call the file damaged.
        """
        row = self._row(context, arch, score)
        with self._reported() as db:
            file_operation()
            db.execute(_PUT, row)
            work_saved.set()
            file_operation()

    @arguments_explained
    def put_all(self, context: Mapping[str, str], scores: Mapping[Arch, Score]) -> None:
        """Saves the scores of several networks, given by their normal forms; a kill leaves either all or none.

        Raises:
            InputError: see `put`; nothing is saved.
        """
        rows = [self._row(context, arch, score) for arch, score in scores.items()]
        with self._reported() as db, sqlite.transaction(db):
            db.executemany(_PUT, rows)
        work_saved.set()

    def _row(self, context: Mapping[str, str], arch: Arch, score: Score) -> tuple[object, ...]:
        metrics = score.metrics.values()  # NaN among them is that of a network whose outputs are not finite
        if not metrics or any(isinstance(value, bool) or not isinstance(value, int | float) for value in metrics):
            raise InputError(f"the metrics of {arch.key} are {shown(score.metrics)}; give one or more numbers by name")
        bits = (None, None) if score.correct is None else (len(score.correct), np.packbits(score.correct).tobytes())
        return (self._id(context), arch.key, arch.to_json(), json.dumps(dict(score.metrics)), *bits)

    @arguments_explained
    def correct(self, context: Mapping[str, str], archs: Iterable[Arch] | None = None) -> dict[Arch, Bits]:
        """Returns for each architecture which validation images are classified correctly.

        Args:
            context: as in `get`.
            archs: normal forms, of which those without a score are left out; None for all with a score under these
                settings.
        """
        if archs is not None:
            scores = {arch: self.get(context, arch.key) for arch in archs}
            return {
                arch: score.correct for arch, score in scores.items() if score is not None and score.correct is not None
            }
        settings = self._id(context)
        with self._reported() as db:
            query = "SELECT arch, images, bits FROM scores WHERE context = ? AND bits IS NOT NULL ORDER BY key"
            rows = db.execute(query, (settings,)).fetchall()
            correct = {Arch.from_json(arch): _unpacked(images, bits) for arch, images, bits in rows}
        return {arch: bits for arch, bits in correct.items() if bits is not None}

    def _id(self, context: Mapping[str, str]) -> int:
        settings = json.dumps(dict(context), sort_keys=True)
        if settings not in self._contexts:
            with self._reported() as db:
                db.execute("INSERT OR IGNORE INTO contexts (settings) VALUES (?)", (settings,))
                row = db.execute("SELECT id FROM contexts WHERE settings = ?", (settings,)).fetchone()
            self._contexts[settings] = int(row[0])
        return self._contexts[settings]

    @contextmanager
    def _reported(self) -> Iterator[sqlite3.Connection]:
        """Yields the connection; errors are reported with the name of the file and the remedy."""
        with sqlite.reported(self.path, CACHE, malformed=sqlite.MALFORMED):
            if self._db is None:  # used again after `close`
                self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            yield self._db


def _metrics(text: str) -> dict[str, float]:
    """The metrics of a row. Raises `ValueError` if they are none."""
    metrics = json.loads(text)
    if (
        not isinstance(metrics, dict)
        or not metrics
        or any(type(value) not in (int, float) for value in metrics.values())
    ):
        raise ValueError(f"the metrics of a row are {text[:80]!r}")
    return metrics


def _unpacked(images: int | None, bits: bytes | None) -> Bits | None:
    if images is None and bits is None:
        return None
    if not isinstance(images, int) or not isinstance(bits, bytes) or not 0 <= images <= 8 * len(bits) < images + 8:
        raise ValueError("the scores per image of a row are incomplete")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=images).astype(bool)


@arguments_explained
def tied_with_best(
    cache: ScoreCache,
    context: Mapping[str, str],
    *,
    archs: Iterable[Arch] | None = None,
    cost: Callable[[Arch], float] | None = None,
    level: float = 0.05,
) -> list[Arch]:
    """Returns the architectures in a cache that are statistically tied with the best (see `tied`).

    Args:
        cache: has the scores.
        context: the settings of the scores; see `ScoreCache.get`.
        archs: normal forms to compare, e.g. those of one study; None for all under these settings.
        cost: of an architecture. If given, the cheapest comes first, and of equally cheap ones the more accurate.
        level: see `tied`.

    Raises:
        InputError: the cache has none of them with the correctness of single images, or the level is no probability.
    """
    correct = cache.correct(context, archs)
    if not correct:
        raise InputError(f"{cache.path} has no scores per image of these architectures; evaluate them first")
    best_first = tied(correct, level)
    return best_first if cost is None else sorted(best_first, key=cost)
