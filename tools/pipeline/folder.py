"""Run folders: claimed by one writer, identified by their settings."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from supernet.config import from_dict
from supernet.errors import InputError
from supernet.files import FORMAT, commit, flatten, read_json, write_json


@contextlib.contextmanager
def open_run(folder: Path, kind: str, config: Any) -> Iterator[Path]:
    """Claim a run folder for writing: create it with its `run.json`, or go on with the same run.

    Args:
        folder: the run's folder.
        kind: what the folder holds, e.g. "supernet".
        config: a dataclass with every setting; it is the run's identity, `save_seconds` and `data.cache` excepted.

    Raises:
        InputError: the folder holds something else or another run (the first differing setting is named), or another
            process is writing to it.
    """
    check_run(folder, kind, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created ({error.strerror}); give another folder") from error
    lock = filelock.FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another process is writing to {folder}; wait for it or give another folder") from None
    try:
        check_run(folder, kind, config)  # again: another process may have claimed it since
        if not (folder / "run.json").exists():
            document = {"format": FORMAT, "kind": kind, "config": dataclasses.asdict(config), "commit": commit()}
            write_json(folder / "run.json", document)
        yield folder
    finally:
        lock.release()


def check_run(folder: Path, kind: str, config: Any) -> None:
    """Whether a folder is free for a run or holds this one, before any work. Raises `InputError` as `open_run` does."""
    path = folder / "run.json"
    nearest_folder = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), folder)
    if not nearest_folder.is_dir() or not os.access(nearest_folder, os.W_OK):
        raise InputError(f"{nearest_folder} cannot be written to; give another folder")
    if not path.exists():
        if folder.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run; give a new folder")
        return
    found = read_json(path)
    if found.get("kind") != kind:
        raise InputError(f"{folder} holds a {found.get('kind')} run, not a {kind} run; give another folder")
    written = from_dict(type(config), found["config"])  # with the defaults of settings that are newer than the run
    before, now = (flatten(json.loads(json.dumps(dataclasses.asdict(each)))) for each in (written, config))
    for name in sorted(before.keys() | now.keys()):
        if not name.endswith(("save_seconds", "data.cache")) and before.get(name) != now.get(name):
            raise InputError(
                f"{folder} holds another run: {name} is {before.get(name)!r} there and {now.get(name)!r} here; "
                "give another folder, or the same settings to go on with it"
            )
