"""SQLite files: a full disk and a lock that is not released are reported with the remedy, and damage with another."""

import sqlite3
from pathlib import Path

import pytest

from supernet.errors import InputError, RunError
from supernet.sqlite import MALFORMED, FileKind, only_writer, opened, read_meta, reported, transaction

NOTES = FileKind(
    name="a notebook",
    application=0x4E4F5445,
    version=2,
    tables=("CREATE TABLE notes (text TEXT NOT NULL)",),
    damaged="delete it",
    outdated="convert it",
)


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM notes").fetchone()[0])


def test_a_new_file_has_its_marks_and_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    db = opened(path, NOTES, meta={"owner": "me"})
    with transaction(db):
        db.execute("INSERT INTO notes VALUES ('first')")
    db.close()
    db = opened(path, NOTES, meta={"owner": "someone else"})
    assert read_meta(db) == {"version": "2", "owner": "me"}
    assert count(db) == 1
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_a_full_disk_is_a_run_error_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    db = opened(tmp_path / "notes.db", NOTES)
    with transaction(db):
        db.execute("INSERT INTO notes VALUES ('first')")
    db.execute("PRAGMA max_page_count=8")  # SQLite then says what it says when the disk is full
    with (
        pytest.raises(RunError, match=r"notes\.db cannot be written \(database or disk is full\).*Make room"),
        reported(tmp_path / "notes.db", NOTES),
        transaction(db),
    ):
        db.executemany("INSERT INTO notes VALUES (?)", [("x" * 4000,)] * 20)
    assert count(db) == 1
    with transaction(db):  # the connection is usable
        db.execute("INSERT INTO notes VALUES ('second')")
    assert count(db) == 2
    db.close()


def test_a_writer_that_waits_in_vain_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    first, second = opened(path, NOTES), opened(path, NOTES, wait=0.01)
    first.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError, match="stays locked by another process"), reported(path, NOTES), transaction(second):
        pass
    first.execute("COMMIT")
    first.close()
    second.close()


def test_malformed_rows_are_damage_where_rows_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with (
        pytest.raises(InputError, match=r"notes\.db cannot be read as a notebook \('text'\); delete it"),
        reported(path, NOTES, malformed=MALFORMED),
    ):
        raise KeyError("text")
    with pytest.raises(KeyError), reported(path, NOTES):
        raise KeyError("text")


def test_an_older_schema_is_refused_by_its_version(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    opened(path, NOTES).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '1'")
    with pytest.raises(InputError, match="schema version 1, but this release reads version 2; convert it"):
        opened(path, NOTES)


def test_only_one_may_hold_the_lock(tmp_path: Path) -> None:
    lock = only_writer(tmp_path / "notes.db", NOTES)
    with pytest.raises(InputError, match="open in another process or notebook object; wait for it"):
        only_writer(tmp_path / "notes.db", NOTES)
    lock.release()
    only_writer(tmp_path / "notes.db", NOTES).release()
    with pytest.raises(InputError, match="there is no folder"):
        only_writer(tmp_path / "none" / "notes.db", NOTES)
