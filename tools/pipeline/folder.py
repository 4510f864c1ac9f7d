"""Run folders: one writer at a time, identified by their settings, and what `run.json` says of them."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from supernet.checked import shown, unused_fields
from supernet.config import from_dict
from supernet.errors import InputError
from supernet.files import commit, flatten, is_temporary, lock_file, read_json, remove_temporaries, write_json
from supernet_tools.pipeline.located import FROM_RUN, PLACES, relative_places

RUN_FORMAT = 2
"""The format of run.json. 2 added the facts about the data and the names of a chain's steps in files of weights."""
DETECTOR_FORMAT = 3
"""The format of a detector's run.json. 3 has batch norm of its own for every level in RetinaNet's towers."""
LOCK, RUN, IMAGES, FIT, FIT_RESULT = ".lock", "run.json", "images", "fit.json", "fit-result.json"
UNPACKED = "unpacked"
"""The folder of an archive's files."""
LATENCIES = r"latency-\d+\.jsonl"
"""Pattern of the names of files of latencies, which `fit` measures before the run begins."""
FOREIGN = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in a folder that they have shown."""


@contextlib.contextmanager
def claim_run(folder: Path, kind: str, config: Any, *, free: Collection[str] = (), **facts: Any) -> Iterator[Path]:
    """Claims a run folder for writing: creates it with its `run.json`, or goes on with the same run.

    Args:
        folder: the run's folder.
        kind: what the folder holds, e.g. "supernet".
        config: a dataclass with every setting. It is the run's identity, except for `save_seconds`, `prefetch`,
            `data.cache`, what has no effect (`Checked.unused`), and in a supernet's run where its images are and how
            networks are retrained.
        free: further settings that may differ from those of the run, such as "data.skip_unreadable".
        facts: what else `run.json` keeps, such as class names, so that later commands need not read images for it.

    Raises:
        InputError: the folder holds something else or another run (the first setting that differs is named), or another
            process is writing to it.
    """
    check_run(folder, kind, config, free=free)
    if folder.is_symlink() and not folder.exists():
        raise InputError(f"{folder} is a link to nothing; remove it, or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created ({error.strerror}); give another folder") from error
    lock = lock_file(folder / LOCK)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"another process is writing to {folder}; wait for it or give another folder") from None
    try:
        check_run(folder, kind, config, free=free)  # again: another process may have claimed it since
        remove_temporaries(folder)
        if not (folder / RUN).exists():
            settings = dataclasses.asdict(config)
            document = {"format": _format(kind), "kind": kind, "config": settings, "commit": commit(), **facts}
            write_json(folder / RUN, document, work=False)
        yield folder
    finally:
        lock.release()


def check_run(folder: Path, kind: str, config: Any, *, free: Collection[str] = ()) -> None:
    """Checks before any work that a folder is free for a run or holds this one.

    Raises:
        InputError: see `claim_run`.
    """
    nearest_folder = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), folder)
    if not nearest_folder.is_dir() or not os.access(nearest_folder, os.W_OK):
        raise InputError(f"{nearest_folder} cannot be written to; give another folder")
    if not (folder / RUN).exists():
        if folder.exists() and any(not _negligible(entry) for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run; give a new folder")
        return
    document = read_run(folder)
    if document["kind"] != kind:
        raise InputError(f"{folder} holds a {document['kind']} run, not a {kind} run; give another folder")
    # settings that are newer than the run take their defaults
    written = from_dict(type(config), document["config"], owner=str(folder / RUN))
    before, now = (flatten(json.loads(json.dumps(dataclasses.asdict(each)))) for each in (written, config))
    for name in sorted(before.keys() | now.keys()):
        if name.endswith(("save_seconds", "prefetch", "data.cache")) or name in free or _renewable(kind, name):
            continue
        if before.get(name) == now.get(name) or (name in _unused(written) and name in _unused(config)):
            continue
        more = " (--accept-changed-data takes this one)" if name == "data.skip_unreadable" else ""
        raise InputError(
            f"{folder} holds another run: {name} is {before.get(name)!r} there and {now.get(name)!r} here; "
            f"give another folder, or the same settings to go on with it{more}"
        )


def _unused(config: Any) -> set[str]:
    """Names of the settings that have no effect, whose flags would not be taken either; may list a folder of images."""
    return {name for name, _ in unused_fields(config)}


def _renewable(kind: str, name: str) -> bool:
    """Whether a setting may change in a run: where its images are, whose digest decides; how networks are retrained."""
    if kind not in ("supernet", "detector"):
        return False
    return name.startswith("retrain.") or name in {f"data.{place}" for place in PLACES}


def renew_settings(folder: Path, kind: str, config: Any) -> None:
    """Writes into `run.json` where the images are now, and how networks are retrained, if that has changed."""
    document = read_run(folder)
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    before = flatten(document["config"])
    changed = [name for name, value in flatten(now).items() if _renewable(kind, name) and before.get(name) != value]
    if not changed:
        return
    document["config"]["retrain"] = now["retrain"]
    document["config"]["data"] |= {name: now["data"][name] for name in PLACES if name in now["data"]}
    document[FROM_RUN] = relative_places(folder, config)
    write_json(folder / RUN, document)


def _negligible(entry: Path) -> bool:
    """Whether an entry does not keep a folder from becoming a run: ours, or what a file manager leaves."""
    ours = entry.name in (LOCK, IMAGES, FIT, UNPACKED, f"{UNPACKED}.partial")
    return ours or bool(re.fullmatch(LATENCIES, entry.name)) or entry.name in FOREIGN or is_temporary(entry)


def read_run(folder: Path) -> dict[str, Any]:
    """The `run.json` of a folder.

    Raises:
        InputError: there is none, it is damaged, or another release wrote it.
    """
    document = read_json(folder / RUN)
    detector = document.get("kind") == "detector"
    if detector and document.get("format") == RUN_FORMAT:
        raise InputError(
            f"{folder} holds a detector of an older release, which scored every level of a RetinaNet with the same "
            "batch-norm statistics and images with their padding, so its mAP is too low; train again in a new folder"
        )
    if document.get("format") != _format(document.get("kind")):
        raise InputError(
            f"{folder} was written by another release (format {shown(document.get('format'))}, this one reads "
            f"{_format(document.get('kind'))}); train again in a new folder"
        )
    for name in ("shared_weights", FROM_RUN):
        if not isinstance(document.get(name, {}), dict):
            raise InputError(f"{folder / RUN}: {name}={shown(document[name])} should be an object; restore the file")
    missing = {"kind", "config"} - document.keys()
    if missing or not isinstance(document["config"], Mapping):
        raise InputError(f"{folder / RUN} is damaged: it lacks {min(missing, default='its settings')!r}; restore it")
    if not isinstance(document["kind"], str):
        raise InputError(f"{folder / RUN} is damaged: kind={shown(document['kind'])} should be a text; restore it")
    return document


def _format(kind: object) -> int:
    """The format of run.json for a kind of run."""
    return DETECTOR_FORMAT if kind == "detector" else RUN_FORMAT


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Removes what a run that cannot start has left: decoded images, latencies, and the folders that are new."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        if not (folder / RUN).exists():
            shutil.rmtree(folder / IMAGES, ignore_errors=True)
            for entry in folder.glob("latency-*.jsonl"):
                entry.unlink(missing_ok=True)
            for place in made:
                with contextlib.suppress(OSError):
                    place.rmdir()
        raise
