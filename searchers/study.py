"""A study: every trial of one search, in memory and in an SQLite file that survives a kill."""

import gc
import json
import math
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from supernet import sqlite
from supernet.checked import (
    File,
    arguments_explained,
    checked_arguments,
    is_number,
    is_whole,
    plain_scalar,
    problem_of,
    shown,
)
from supernet.errors import InputError, nearest
from supernet.paths import work_saved
from supernet.space import Arch, ArchReader, SearchSpace

SYNC_SECONDS = 1.0  # a sync takes 0.2 to 4 ms, ten times what a trial of a tabulated search does

STUDY = sqlite.FileKind(
    name="a study",
    application=0x4E415354,  # "NAST"
    version=3,
    tables=(
        "CREATE TABLE batches (number INTEGER PRIMARY KEY, asked INTEGER NOT NULL)",
        "CREATE TABLE trials (number INTEGER PRIMARY KEY, batch INTEGER NOT NULL, key TEXT NOT NULL,"
        " arch TEXT NOT NULL, metrics TEXT NOT NULL, repeat INTEGER NOT NULL, seconds REAL NOT NULL,"
        " failed TEXT NOT NULL DEFAULT '')",
        "CREATE TABLE snapshots (trials INTEGER NOT NULL, state BLOB NOT NULL)",  # one row at most
    ),
    damaged="restore it from a copy, or choose another study file",
    outdated="use the release that wrote it, or another study file",
)


@dataclass(frozen=True)
class Trial:
    """One architecture that a searcher proposed, with its score. Trials are equal if all but `seconds` agree.

    `Trial.of` makes one by hand.

    Attributes:
        number: position in the study, from 0.
        arch: the architecture as the searcher proposed it.
        key: the key of its normal form; equal keys mean the same network.
        metrics: the result of the evaluation; empty if it failed.
        repeat: whether the score (or failure) was copied from an earlier trial of the study and nothing was evaluated.
        seconds: the trial's share of its batch's evaluation time; 0 for a repeat.
        batch: the number of the `ask` that it came from, from 0.
        failed: why there is no score; empty for a scored trial.
    """

    number: int
    arch: Arch
    key: str
    metrics: Mapping[str, float] = field(hash=False)
    repeat: bool
    seconds: float = field(compare=False)
    batch: int
    failed: str = ""

    @classmethod
    @arguments_explained  # metrics may be infinite
    def of(
        cls,
        space: SearchSpace,
        arch: Arch,
        metrics: Mapping[str, float],
        *,
        number: int = 0,
        repeat: bool = False,
        failed: str = "",
    ) -> Self:
        """A trial to report to a searcher by hand, as the only one of its batch.

        Args:
            space: the space of the architecture, which gives the key of its normal form.
            arch: the architecture as the searcher proposed it, or any other one.
            metrics: its scores; empty if it failed.
            number: position in the study; only messages and the order among equals use it.
            repeat: its network was reported before.
            failed: why there is no score.

        Raises:
            InputError: metrics that are no mapping of numbers or hold NaN, a reason that is no text, a number that is
                no place in a study, or an architecture of another space.
        """
        if not isinstance(metrics, Mapping):
            raise InputError(f"metrics={shown(metrics)} should be values by name")
        if wrong := [name for name, value in metrics.items() if not isinstance(plain_scalar(value), (int, float))]:
            raise InputError(f"metrics={shown(metrics)}: {wrong[0]!r} should be a number")
        if not isinstance(failed, str):
            raise InputError(f"failed={shown(failed)} should be the reason, or an empty text")
        if missing := [name for name, value in metrics.items() if value != value]:
            raise InputError(f"metrics={shown(metrics)}: {missing[0]!r} is NaN; give failed=REASON without metrics")
        if not is_whole(number, 0):
            raise InputError(f"number={shown(number)} should be a place in a study, from 0")
        space.canonical(arch)  # for its check: the trial has the architecture as it was proposed
        return cls(number, arch, space.normal_form(arch).key, metrics, repeat, 0.0, number, failed)


@arguments_explained
def score(trial: Trial, metric: str) -> float:
    """The value to maximise: the metric, or its negative if `metric` has a leading minus (`"-loss"`).

    Raises:
        InputError: the trial failed, or lacks the metric.
    """
    if trial.failed:
        raise InputError(f"trial {trial.number} ({trial.key}) failed and has no score: {trial.failed}")
    name = metric.removeprefix("-")
    if name not in trial.metrics:
        raise InputError(f"trial {trial.number} ({trial.key}) has no metric {name!r}; {nearest(name, trial.metrics)}")
    value = trial.metrics[name]
    return -value if metric.startswith("-") else value


def preference(trial: Trial, metric: str) -> tuple[float, float]:
    """What is larger for the better of two trials: the score, and between equal scores the negated MACs if known.

    Accuracies on a few hundred images tie often, and the cheaper of two networks of the same accuracy is the better.
    """
    return score(trial, metric), -trial.metrics.get("macs", 0.0)


@checked_arguments
def best_of(trials: Iterable[Trial], metric: str) -> Trial:
    """The trial with the highest `score`: if tied, the one with the fewest MACs (where the trials have them), then the
    first. Trials without a finite value of the metric are skipped.

    Raises:
        InputError: no trial has a finite value.
    """
    name = metric.removeprefix("-")
    trials = list(trials)
    if (should := problem_of(list[Trial], trials)) is not None:
        raise InputError(f"trials={shown(trials)}: each {should}")
    scored = [trial for trial in trials if math.isfinite(trial.metrics.get(name, math.nan))]
    if not scored:
        known = sorted({name for trial in trials for name in trial.metrics})
        failures = [trial.failed for trial in trials if trial.failed]
        empty = f"all failed, the last with: {failures[-1]}" if failures else "there are no trials; search first"
        hint = nearest(name, known) if known else empty
        raise InputError(f"no trial has a finite {name!r}; {hint}")
    return max(scored, key=lambda trial: preference(trial, metric))


class Study(sqlite.Closing):
    """The record of one search, opened or created. A search has no other state.

    One process at a time writes a study (a lock on `PATH.lock`). The file is SQLite with a write-ahead log: a kill
    loses at most the batch in flight. The log is synced to disk with the first batch after `SYNC_SECONDS`, so that a
    power cut loses no more than the batches of the last second; a search that continues from there evaluates them
    again, to the same result. Trials are read once, when the file is opened.

    Args:
        path: the file; None keeps the study in memory.
        space: the space that is searched; a study belongs to one space.
        read: only look at the trials, without a lock: while another process searches, or where nothing can be written.

    Attributes:
        ended: why the last `search` on this object ended; empty before.

    Raises:
        InputError: the folder does not exist, or the file is not a study, is damaged, belongs to another space or
            schema version, or is open elsewhere.
        RunError: the file cannot be written. Methods that write raise it too, for instance when the disk is full.
    """

    @checked_arguments
    def __init__(self, path: File | None, space: SearchSpace, *, read: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.space = space
        self.ended = ""
        self._trials: list[Trial] = []
        self._asked: list[int] = []  # per batch: how many were asked for, which may be more than came
        self._first: dict[str, Trial] = {}  # per network, the trial that evaluated it
        self._settings: dict[str, Any] | None = None
        self._repeats = 0
        self._synced = -math.inf
        self._db: sqlite3.Connection | None = None
        self._read = read and self.path is not None
        self._lock = None if self.path is None or read else sqlite.only_writer(self.path, STUDY)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return "in memory" if self.path is None else str(self.path)

    def __len__(self) -> int:
        """The number of trials."""
        return len(self._trials)

    def close(self) -> None:
        """Closes the file and lets other writers in; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.release()

    # -- reading -----------------------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """All trials in the order in which they were recorded."""
        return list(self._trials)

    def batches(self) -> list[tuple[int, list[Trial]]]:
        """Per `ask`, how many architectures were asked for, and the trials that came of it (at least one)."""
        batches: list[tuple[int, list[Trial]]] = [(asked, []) for asked in self._asked]
        for trial in self._trials:
            batches[trial.batch][1].append(trial)
        return batches

    @property
    def asks(self) -> int:
        """The number of batches, which is also the number of the next one."""
        return len(self._asked)

    @property
    def evaluations(self) -> int:
        """The number of distinct networks evaluated, including those that failed."""
        return len(self._first)

    @property
    def repeats_in_a_row(self) -> int:
        """How many trials in a row at the end of the study evaluated nothing new."""
        return self._repeats

    @property
    def settings(self) -> dict[str, Any] | None:
        """A copy of the settings of the search that wrote the study; None before the first search."""
        return None if self._settings is None else dict(self._settings)

    @property
    def snapshot(self) -> tuple[int, bytes] | None:
        """The last recorded state of the searcher, after how many trials it was taken; None if there is none."""
        row: tuple[int, bytes] | None = self._connection().execute("SELECT trials, state FROM snapshots").fetchone()
        return row

    def first_of(self, key: str) -> Trial | None:
        """The trial, scored or failed, that evaluated the network with this normal-form key; None if there is none."""
        return self._first.get(key)

    def best(self, metric: str) -> Trial:
        """The trial with the highest `metric`, or with a leading minus the lowest.

        If several are tied, it is the one with the fewest MACs (where the trials have them), then the earliest.

        Raises:
            InputError: the study is empty, or no trial has a finite value of this metric.
        """
        return best_of(self._trials, metric)

    # -- writing -----------------------------------------------------------------------------------------------------

    @arguments_explained
    def append(self, batch: Sequence[Trial], *, asked: int | None = None) -> None:
        """Records the trials of one `ask` in one transaction; they are in the file when this returns.

        Args:
            batch: at least one trial; their numbers continue the study's, and all have the next batch number.
            asked: how many architectures the searcher was asked for, if it returned fewer.

        Raises:
            InputError: no trial, or one that does not continue the study.
        """
        if not batch:
            raise InputError(f"batch={batch!r} should be a sequence of at least one Trial")
        for number, trial in enumerate(batch, start=len(self._trials)):
            if (trial.number, trial.batch) != (number, len(self._asked)):
                raise InputError(
                    f"a trial with number={shown(trial.number)} and batch={shown(trial.batch)} does not continue the "
                    f"study, whose next trial has number={number} and batch={len(self._asked)}"
                )
        asked = len(batch) if asked is None else asked
        if not is_whole(asked, 1):
            raise InputError(f"asked={shown(asked)} should be how many architectures the searcher was asked for")
        with self._transaction() as db:
            db.execute("INSERT INTO batches VALUES (?, ?)", (batch[0].batch, asked))
            db.executemany("INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(_row, batch))
        if self.path is not None:
            work_saved.set()
        self._asked.append(asked)
        for trial in batch:
            self._note(trial)

    def set_settings(self, settings: Mapping[str, Any]) -> None:
        """Replaces the settings of the search, a mapping that JSON can hold, and drops the snapshot.

        Raises:
            InputError: they are something else.
        """
        try:
            text = json.dumps(settings)
        except (TypeError, ValueError) as error:
            raise InputError(f"settings={shown(settings)} cannot be written as JSON: {error}") from error
        if not _is_settings(json.loads(text)):
            raise InputError(f"settings={shown(settings)} should be a mapping of the settings of a search")
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('settings', ?)", (text,))
            db.execute("DELETE FROM snapshots")
        self._settings = json.loads(text)

    def set_snapshot(self, state: bytes) -> None:
        """Replaces the recorded state of the searcher, which must know all trials of the study.

        Raises:
            InputError: it is not the bytes that the searcher's `snapshot` returned.
        """
        if not isinstance(state, bytes):
            raise InputError(f"state={shown(state)} should be bytes, as the searcher's snapshot() returns them")
        with self._transaction() as db:
            db.execute("DELETE FROM snapshots")
            db.execute("INSERT INTO snapshots VALUES (?, ?)", (len(self), state))

    def _note(self, trial: Trial) -> None:
        self._trials.append(trial)
        self._first.setdefault(trial.key, trial)
        self._repeats = self._repeats + 1 if trial.repeat else 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._connection()
        sync = time.monotonic() - self._synced >= SYNC_SECONDS
        with sqlite.reported(self.path, STUDY):
            if sync:
                db.execute("PRAGMA synchronous=FULL")  # of the whole log, earlier transactions included
            with sqlite.transaction(db):
                yield db
            if sync:
                self._synced = time.monotonic()
                db.execute("PRAGMA synchronous=NORMAL")

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise InputError(f"study {self} is closed; open it again with Study(path, space)")
        return self._db

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        space = self.space
        with sqlite.reported(self.path, STUDY, malformed=sqlite.MALFORMED):
            if self._read and self.path is not None:
                self._db = sqlite.opened_to_read(self.path, STUDY)
                self._db.execute("BEGIN")  # batches and trials of one moment, while another process writes
            else:
                known = {"space": space.to_json(), "space_digest": space.digest()}
                self._db = sqlite.opened(self.path, STUDY, meta=known)
            meta = sqlite.read_meta(self._db)
            if meta["space_digest"] != space.digest():
                raise InputError(
                    f"study {self} is of space {json.loads(meta['space'])['name']!r} ({meta['space_digest']}), not of "
                    f"{space.name!r} ({space.digest()}); use another study file, or the space of the study"
                )
            self._settings = json.loads(meta["settings"]) if "settings" in meta else None
            if "settings" in meta and not _is_settings(self._settings):
                raise ValueError("its settings are not those of a search")
            self._load(self._db)
            if self._read:
                self._db.execute("COMMIT")

    def _load(self, db: sqlite3.Connection) -> None:
        self._asked = [row[0] for row in db.execute("SELECT asked FROM batches ORDER BY number")]
        if wrong := [asked for asked in self._asked if not is_whole(asked, 1)]:
            raise ValueError(f"a batch has {shown(wrong[0])} for how many were asked for")
        parse = json.JSONDecoder().decode
        read = ArchReader({choice.name: choice.options for choice in self.space.choices})
        with _no_collection():
            for row in db.execute("SELECT * FROM trials ORDER BY number"):
                number, batch, key, text, metrics, repeat, seconds, failed = row
                scores = parse(metrics)
                _check_row(scores, key, seconds, failed)
                if repeat not in (0, 1):
                    raise ValueError(f"the trial of {key!r} has {shown(repeat)} for whether it is a repeat")
                if number != len(self._trials) or not 0 <= batch < len(self._asked):
                    raise sqlite3.DatabaseError(f"trial {number} of batch {batch} is out of order")
                try:
                    arch = read(text)
                except InputError as error:
                    raise ValueError(f"trial {number}: {error}") from error
                self._note(Trial(number, arch, key, scores, bool(repeat), seconds, batch, failed))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python from looking for garbage, a tenth of the time of reading many trials, which make none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _is_settings(settings: Any) -> bool:
    return isinstance(settings, dict) and isinstance(settings.get("told_at_start", 0), int)


_LARGEST = sys.float_info.max


def _check_row(metrics: Any, key: Any, seconds: Any, failed: Any) -> None:
    """Raises `ValueError` if a recorded trial is none that a search writes."""
    if not isinstance(key, str) or not isinstance(failed, str) or not is_number(seconds, 0, _LARGEST):
        raise ValueError(f"the trial of {key!r} has values of wrong types")
    numbers = isinstance(metrics, dict) and all(is_number(value, -_LARGEST, _LARGEST) for value in metrics.values())
    if not numbers or bool(metrics) == bool(failed):
        raise ValueError(f"the metrics of {key!r} are {metrics!r:.80}")


def _row(trial: Trial) -> tuple[int, int, str, str, str, int, float, str]:
    arch, metrics = trial.arch.to_json(), json.dumps(dict(trial.metrics))
    return trial.number, trial.batch, trial.key, arch, metrics, int(trial.repeat), trial.seconds, trial.failed
