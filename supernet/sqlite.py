"""SQLite files of this project: opened, checked, locked and reported in one way."""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock

from supernet.errors import DamagedError, InputError, RunError, UnwritableError
from supernet.paths import check_file, file_operation, lock_file

_HEADER = b"SQLite format 3\0"
PAGE = 4096  # bytes; SQLite reads a truncated last page as if zeros followed, so the length is checked here

MALFORMED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError)
"""What decoding the contents of a damaged row raises; see `reported`."""

_META = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_UNWRITABLE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_IN_USE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Closing:
    """What has a file open and closes it at the end of a `with` block."""

    def close(self) -> None:
        """Closes the file."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of SQLite file: its marks, its tables, and how messages speak of it.

    Attributes:
        name: with its article, e.g. "a study".
        application: the application id in the header, which tells these files from other SQLite files.
        version: the version of the schema, kept in the table `meta`; no other version is read.
        tables: the statements that create the tables besides `meta`.
        damaged: the remedy for a file that cannot be read.
        outdated: the remedy for a file of another schema version.
    """

    name: str
    application: int
    version: int
    tables: tuple[str, ...]
    damaged: str
    outdated: str

    @property
    def noun(self) -> str:
        """The name without its article."""
        return self.name.partition(" ")[2]


def check_place(path: Path, kind: FileKind) -> None:
    """Raises `InputError` unless `path` can be a file: its folder exists, and it is neither a folder nor a link.

    SQLite follows links, and would write to whatever a link in a received folder leads to.
    """
    check_file(path, f"the {kind.noun}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for the {kind.noun} {path.name}; create it first")
    for file in (path, *(path.with_name(f"{path.name}-{ending}") for ending in ("wal", "shm", "journal"))):
        if file.is_symlink():
            raise InputError(f"{file} is a link, and {kind.name} is never opened through one; remove the link")


def check_start(path: Path, kind: FileKind) -> None:
    """Raises `InputError` for a file that is no database or another program's, before a lock is put beside it."""
    start = _start(path) if path.exists() else b""
    if start != _HEADER[: len(start)]:
        raise InputError(f"{path} cannot be read as {kind.name} (file is not a database); {kind.damaged}")
    if start and not Path(f"{path}.lock").exists():  # a writer of this project leaves one
        with contextlib.suppress(sqlite3.Error), contextlib.closing(_connected_to_read(path, 0.0)) as db:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # none if its creation was cut short
                _check(db, path, kind, truncated=_truncated(path))


def only_writer(path: Path, kind: FileKind) -> filelock.BaseFileLock:
    """Acquires the lock `PATH.lock`, which holds until it is released or the process ends, however it ends.

    Raises:
        InputError: the file is open elsewhere, cannot be locked, or has no folder.
    """
    check_place(path, kind)
    check_start(path, kind)
    lock = lock_file(Path(f"{path}.lock"))
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"{kind.noun} {path} is open in another process or {kind.noun} object; wait for it, or use another "
            f"{kind.noun} file"
        ) from error
    except OSError as error:
        raise InputError(f"{kind.noun} {path} cannot be locked ({error}); choose a writable folder") from error
    return lock


def opened(
    path: Path | None, kind: FileKind, *, meta: Mapping[str, str] | None = None, wait: float = 5.0
) -> sqlite3.Connection:
    """Opens a file, or creates it where there is none or an empty one; it has a write-ahead log.

    Args:
        path: the path of the file; None for a database in memory.
        kind: what the file must be.
        meta: entries of the table `meta` of a new file, besides the schema version.
        wait: seconds that a statement waits while another process writes.

    Raises:
        InputError: the file belongs to something else or has another schema version. It is left as it was.
        sqlite3.Error: the file is damaged; call this within `reported`.
    """
    truncated = path is not None and _truncated(path)
    file_operation()
    db = sqlite3.connect(path or ":memory:", timeout=wait, isolation_level=None)
    try:
        if not truncated and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _create(db, kind, {} if meta is None else meta)
        _check(db, path, kind, truncated=truncated)
        db.execute("PRAGMA journal_mode=WAL")
    except BaseException:
        db.close()
        raise
    return db


def _start(path: Path) -> bytes:
    """The first bytes of a file, which tell whether it is a database; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEADER))
    except OSError:
        return b""


def opened_to_read(path: Path, kind: FileKind, *, wait: float = 5.0) -> sqlite3.Connection:
    """Opens a file without writing to it or waiting for its writer, also on a disk that nothing can be written to.

    What the writer commits meanwhile may be missing.

    Raises:
        InputError, sqlite3.Error: see `opened`; call this within `reported`.
    """
    check_file(path, f"the {kind.noun}")
    if not path.is_file():
        raise InputError(f"there is no {kind.noun} {path}")
    truncated = _truncated(path)
    db = _connected_to_read(path, wait)
    try:
        _check(db, path, kind, truncated=truncated)
    except BaseException:
        db.close()
        raise
    return db


def _connected_to_read(path: Path, wait: float) -> sqlite3.Connection:
    # a writer keeps a log; where there is none, SQLite need not create its files beside this one, which would stay
    still = "" if Path(f"{path}-wal").exists() else "&immutable=1"
    uri = path.resolve().as_uri()
    return sqlite3.connect(f"{uri}?mode=ro{still}", uri=True, timeout=wait, isolation_level=None)


def read_meta(db: sqlite3.Connection) -> dict[str, str]:
    """The entries of the table `meta`."""
    return dict(db.execute("SELECT name, value FROM meta"))


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commits everything that is executed inside, or nothing if something raises."""
    file_operation()
    db.execute("BEGIN IMMEDIATE")
    try:
        file_operation()
        yield db
        file_operation()
        db.execute("COMMIT")
        file_operation()
    except BaseException:
        if db.in_transaction:  # SQLite itself rolls back when the disk is full
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def reported(path: Path | None, kind: FileKind, *, malformed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what goes wrong with a file into an error with its name and the remedy.

    Args:
        path: the path of the file.
        kind: the kind of the file.
        malformed: further exceptions that mean damage, `MALFORMED` where rows are decoded.

    Raises:
        DamagedError: the file is damaged or not a database.
        RunError: it cannot be written, or another process does not let go of it.
    """
    try:
        yield
    except InputError:
        raise
    except filelock.Timeout as error:
        raise _in_use(path, kind) from error
    except Exception as error:
        if not isinstance(error, (sqlite3.Error, OSError, *malformed)):
            raise
        reason = " ".join(str(error).split())
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
        if code in _IN_USE:
            raise _in_use(path, kind) from error
        if code in _UNWRITABLE or isinstance(error, OSError):
            raise UnwritableError(
                f"{kind.noun} {path} cannot be written ({reason}); what was recorded before is intact. Make room or "
                "check the permissions; the same command then goes on"
            ) from error
        raise DamagedError(f"{path} cannot be read as {kind.name} ({reason}); {kind.damaged}") from error


def _in_use(path: Path | None, kind: FileKind) -> RunError:
    return RunError(f"{kind.noun} {path} stays locked by another process; wait for it, and run the same command again")


def _truncated(path: Path) -> bool:
    """Whether the file ends within a page. While a log lies beside it, SQLite itself restores the pages in question."""
    return path.exists() and path.stat().st_size % PAGE != 0 and not Path(f"{path}-wal").exists()


def _create(db: sqlite3.Connection, kind: FileKind, meta: Mapping[str, str]) -> None:
    db.execute(f"PRAGMA page_size={PAGE}")
    db.execute("PRAGMA journal_mode=WAL")
    with transaction(db):
        db.execute(f"PRAGMA application_id={kind.application}")
        for table in (_META, *kind.tables):
            db.execute(table)
        db.executemany("INSERT INTO meta VALUES (?, ?)", {"version": str(kind.version), **meta}.items())


def _check(db: sqlite3.Connection, path: Path | None, kind: FileKind, *, truncated: bool) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != kind.application:
        raise InputError(f"{path} is not {kind.name}, or was only partly written; choose another {kind.noun} file")
    damage = "the file is truncated" if truncated else db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise sqlite3.DatabaseError(damage)
    version = read_meta(db).get("version")
    if version is None:
        raise sqlite3.DatabaseError("it has no schema version")
    if version != str(kind.version):
        raise InputError(
            f"{kind.noun} {path} has schema version {version}, but this release reads version {kind.version}; "
            f"{kind.outdated}"
        )
