"""Files that survive a kill at any moment: written under another name, synced, renamed; read without running code.

Nothing here writes through a link or outside the folder that is meant, whatever a received folder holds.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from supernet.errors import InputError, UnwritableError
from supernet.paths import check_inside as check_inside
from supernet.paths import file_operation as file_operation
from supernet.paths import inside as inside
from supernet.paths import lock_file as lock_file
from supernet.paths import no_follow as no_follow
from supernet.paths import work_saved
from supernet.strict_json import parse_json, read_text

FORMAT = 3  # of tensor files: 1 named the steps of a network by their numbers, 3 added checksums


@contextlib.contextmanager
def replacing(path: Path, *, work: bool = True) -> Iterator[Path]:
    """Yields a temporary name beside `path`; the file written there replaces `path` completely or not at all.

    The temporary file is new and has a random name, so that nobody can have put a link in its place; a link at `path`
    is replaced, and what it leads to stays as it is. The mode is that of any new file, whatever the writer chooses.

    Args:
        path: the path of the file.
        work: whether the file holds work, see `supernet.paths.work_saved`.

    Raises:
        UnwritableError: it cannot be written, e.g. because the disk is full; the previous file at `path` is intact.
    """
    temporary = path.with_name(f".{path.name[:80]}.{_host()}{os.getpid() & 0xFFFFFF:06x}{secrets.token_hex(3)}.tmp")
    try:
        file_operation()
        path.parent.mkdir(parents=True, exist_ok=True)
        file_operation()
        created = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        mode = os.fstat(created).st_mode & 0o777
        os.close(created)
        file_operation()
        yield temporary
        file_operation()
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), mode)  # safetensors writes a file of its own, which nobody else can read
            os.fsync(file.fileno())
        file_operation()
        os.replace(temporary, path)
        if work:
            work_saved.set()
        file_operation()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors raise their own
        before = "what was saved there before is intact" if path.exists() else "nothing was there before"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnwritableError(
            f"{path} cannot be written ({reason}); {before}. Make room or give another folder; "
            "the same command then goes on"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp")


def is_temporary(entry: Path) -> bool:
    """Returns whether an entry of a folder is a temporary file of `replacing`, as a killed process leaves them."""
    return _TEMPORARY.fullmatch(entry.name) is not None and entry.is_file() and not entry.is_symlink()


def remove_temporaries(folder: Path, *, alone: bool = True) -> None:
    """Removes what killed processes left in a folder, if it is there.

    Args:
        folder: in which files are written.
        alone: this is the only process that writes there. Otherwise only files of processes of this machine that have
            ended go, and those of other machines after a day.
    """
    with contextlib.suppress(OSError):  # nothing is there, or nothing can be written there
        for entry in folder.iterdir():
            if is_temporary(entry) and (alone or _abandoned(entry)):
                entry.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Returns four hex digits that tell this machine's temporary files from those of others on a shared disk."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:4]


def _abandoned(temporary: Path) -> bool:
    """Returns whether the process that made a temporary file is gone; its number is in the name."""
    token = temporary.name[-20:-4]
    if token[:4] != _host():
        return time.time() - temporary.stat().st_mtime > 86_400
    try:
        os.kill(int(token[4:10], 16), 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False


def write_json(path: Path, document: Mapping[str, Any], *, work: bool = True) -> None:
    """Writes a JSON document atomically; `work` as in `replacing`."""
    with replacing(path, work=work) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    try:
        document = parse_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist; is its folder the output of an earlier command?") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable or name another") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it or start in a new folder") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is damaged: it does not hold a JSON object; restore it or start in a new folder")
    return document


def environment(device: str) -> dict[str, Any]:
    """Returns the versions and settings that bit-for-bit reproduction depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": device if device == "cpu" else torch.cuda.get_device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Returns the commit of the working tree that this code runs from; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        git = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
