"""Decoded images kept in a file, so that later commands map them into memory instead of decoding them again."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from supernet.errors import InputError, RunError
from supernet.files import remove_temporaries, replacing

FORMAT = 2
"""Raised when the layout of the file or the way images are decoded, resized or cropped changes."""
METADATA = "supernet"
"""Where safetensors keeps the key and the problems."""
ROOM = 2
"""The disk must have this many times the size of a file free, so that checkpoints still fit afterwards."""
LIBRARIES = ("pillow", "torch", "torchvision")
"""Their versions are part of a key: another release may decode or resize with other rounding."""


@dataclass(frozen=True)
class Entry:
    """The contents of a cache file.

    Attributes:
        tensors: decoded images and masks by name. Those read from a file are mapped, not copied.
        problems: name and reason of each image that was left out because it could not be read.
        animated: names of the images with several frames, of which the first is used.
    """

    tensors: dict[str, Tensor]
    problems: list[tuple[str, str]] = field(default_factory=list)
    animated: list[str] = field(default_factory=list)


def cache_folder(setting: str, run: Path | None) -> Path | None:
    """Returns the folder for decoded images that the field `cache` of a data config asks for; None for no cache.

    Args:
        setting: "auto" (the run's folder), "off" or another folder.
        run: the run's folder; None outside a run.

    Raises:
        InputError: the setting is empty, or names a file.
    """
    if not setting:
        raise InputError("data.cache is empty; set it to 'auto', 'off' or a folder")
    if setting == "off":
        return None
    if setting == "auto":
        return run
    if Path(setting).exists() and not Path(setting).is_dir():
        raise InputError(f"data.cache={setting!r} is a file, not a folder; set it to 'auto', 'off' or a folder")
    return Path(setting)


def cache_file(folder: Path, *source: object) -> Path:
    """Returns the file in `folder` for a source of images; when images change, it is replaced and does not pile up."""
    return folder / f"decoded-{hashlib.sha256(repr(source).encode()).hexdigest()[:8]}.safetensors"


def cache_key(*facts: object, files: Iterable[tuple[bytes, str]]) -> str:
    """Returns a digest of everything that decides the decoded pixels.

    Args:
        facts: settings that decide them, with a `repr` that is the same in every process.
        files: name for the key and path of each image; sizes and times of change (ns) are added here.
    """
    sha = hashlib.sha256(repr((FORMAT, [(name, version(name)) for name in LIBRARIES], facts)).encode())
    for name, path in files:
        try:
            stat = os.stat(path)
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:  # decoding reports it
            state = (-1, -1)
        sha.update(b"%s\0%d %d\n" % (name, *state))
    return sha.hexdigest()


def cached(path: Path | None, key: Callable[[], str], decode: Callable[[], Entry]) -> Entry:
    """Returns the decoded images in `path`, or decodes them and writes the file.

    Processes may do so at the same time: the file appears complete or not at all. If it cannot be written, a warning
    says why, and the images are used from memory.

    Args:
        path: the cache file; None for no cache.
        key: computes the key that the file must have; it is called before decoding, so that an image that changes
            meanwhile leaves a key that no longer matches.
        decode: decodes the images; what it raises is passed on, and nothing is written.
    """
    if path is None:
        return decode()
    remove_temporaries(path.parent, alone=False)
    wanted = key()
    entry = _read(path, wanted)
    if entry is None:
        entry = decode()
        if os.environ.get("RANK", "0") == "0":  # of the processes of a torchrun, one writes
            _write(path, wanted, entry)
    return entry


def _write(path: Path, key: str, entry: Entry) -> None:
    """Writes a cache file; if that fails, or would leave little room for checkpoints, warns instead."""
    size = sum(tensor.nbytes for tensor in entry.tensors.values())
    reason = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < ROOM * size:
            reason = f"they take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        else:
            with replacing(path) as temporary:
                notes = json.dumps({"key": key, "problems": entry.problems, "animated": entry.animated})
                safetensors.torch.save_file(entry.tensors, temporary, {METADATA: notes})  # one key: order is fixed
    except OSError as error:
        reason = str(error)
    except RunError as error:
        reason = str(error.__cause__).splitlines()[0]
    if reason is not None:
        warnings.warn(
            f"decoded images cannot be kept in {path.parent} ({reason}): the next command will decode them again; make "
            "room, or set data.cache to another folder or to 'off'",
            stacklevel=5,
        )


def _read(path: Path, key: str) -> Entry | None:
    """Returns the contents of a cache file; None if it is missing, damaged or has another key."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})[METADATA])
            if notes["key"] != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Entry(tensors, [(name, why) for name, why in notes["problems"]], list(notes["animated"]))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None
