"""Paths that stay in their folder, and files that are never opened through a link; importing this loads no torch."""

import errno
import os
import signal
import stat
import threading
from pathlib import Path, PurePath

import filelock

from supernet.checked import LONGEST_NAME, short_names, shown
from supernet.errors import InputError

work_saved = threading.Event()
"""Is set where a command saves work, so that one that is stopped can say whether it has saved any."""


def check_new_file(path: Path, *, flag: str, suffix: str) -> None:
    """Raises `InputError` unless a file of this name can be written; for the start of a command that ends with it.

    Args:
        path: the file, which may exist.
        flag: how a message calls it.
        suffix: its ending, such as `".svg"`.
    """
    if path.suffix != suffix:
        raise InputError(f"{flag}={str(path)!r} should end with {suffix}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in; create it")
    if path.exists() and not path.is_file():
        raise InputError(f"{flag}={str(path)!r} is a folder or a device, not a file; give another name")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{flag}={str(path)!r} must not be written to; give another name")


def inside(folder: Path, *names: str, what: str = "the name", follow: bool = False) -> Path:
    """Returns the path `folder/names[0]/names[1]/…`, which lies in the folder.

    Args:
        folder: may be a link itself, since whoever named it meant what it leads to.
        names: relative paths, for instance from a file or the command line.
        what: how a message calls the last name.
        follow: allow links below the folder to lead out of it, for files that are only read; the file system is not
            looked at then.

    Raises:
        InputError: a name is empty, absolute or leads out of the folder, by `..` or through a link.
    """
    for name in names:
        parts = PurePath(name).parts
        if not parts or PurePath(name).is_absolute() or ".." in parts or "\0" in name:
            raise InputError(f"{what} {name!r} leads out of {folder}; give a name within that folder")
    path = folder.joinpath(*names)
    if not follow:
        check_inside(folder, path)
    return path


def check_inside(folder: Path, path: Path) -> None:
    """Raises `InputError` if a link on the way from a folder to a path below it leads out of it, or in a circle."""
    for place in (folder, path):
        try:
            place.resolve()
        except (OSError, RuntimeError):  # what Python raises for a circle depends on its version
            raise InputError(f"{place} cannot be followed: a link in it leads in a circle; remove the link") from None
    if path.resolve().is_relative_to(folder.resolve()):
        return
    at = folder
    for part in path.relative_to(folder).parts:
        at = at / part
        if at.is_symlink() and not at.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{at} is a link that leads out of {folder}, and nothing is written there; remove the link"
            )
    raise InputError(f"{path} leads out of {folder}, and nothing is written there; give a name within that folder")


def check_file(path: Path, what: str) -> None:
    """Checks that a file can have this path, whether it is there or not.

    Raises:
        InputError: a name is longer than file systems take or holds control characters, or the path is a folder, a
            device or a pipe, or lies within a file.
    """
    if not path.name or not short_names(path):
        raise InputError(
            f"{what} {shown(str(path))} cannot be a file's name; give names of at most {LONGEST_NAME} bytes without "
            "control characters"
        )
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder, not a file; give a name within it")
    if path.exists() and not path.is_file():
        raise InputError(f"{what} {path} is a device or a pipe, not a file; give another name")
    above = next((parent for parent in path.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        where = f"a file, {above}" if above.exists() else f"a link that leads nowhere, {above}"
        raise InputError(f"{what} {path} lies within {where}; give another folder")


def check_regular(path: str | Path) -> None:
    """Raises `OSError` for a path without a regular file; to open a pipe would wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def no_follow(path: str, flags: int) -> int:
    """Opens a file unless it is a link: the argument `opener` of `open` for files that are appended to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def lock_file(path: Path, *, timeout: float = 0.0) -> filelock.BaseFileLock:
    """Returns the lock in a file, not yet acquired; the file is created, and never opened through a link.

    Args:
        path: the path of the lock.
        timeout: seconds that `acquire` waits for another process; then it raises `filelock.Timeout`.

    Raises:
        InputError: `path` is a link, or something other than a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is not a file of this project but a link, a folder or a device; remove it")
    return filelock.FileLock(path, timeout=timeout)


KILL_AT = "SUPERNET_KILL_AT"
"""For tests: a process with this environment variable ends itself, as by SIGKILL, before the file operation of this
number, counted from 1."""

_operations = 0


def file_operation() -> None:
    """Marks a moment between two operations on files, at which a process may be killed (see `KILL_AT`)."""
    global _operations
    wanted = os.environ.get(KILL_AT)
    if wanted is None:
        return
    _operations += 1
    if _operations == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)
