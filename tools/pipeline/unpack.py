"""Unpacks archives of images into the folder of a run, out of which no member can lead."""

import contextlib
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from supernet.errors import InputError
from supernet_tools.pipeline.folder import UNPACKED

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
CHUNK = 2**20
PASSED_OVER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
SPARE = 0.9
"""Share of the free space of the disk that the files may take."""


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its checked path, its declared size in bytes, and the handle that opens it."""

    path: PurePosixPath
    size: int
    handle: tarfile.TarInfo | zipfile.ZipInfo


Reader = Callable[[Any], IO[bytes] | None]
"""Opens a member by its handle."""


def is_archive(source: str) -> bool:
    """Whether a source is named like an archive that can be unpacked."""
    return source.lower().endswith(SUFFIXES)


def unpacked(archive: Path, run: Path) -> Path:
    """Unpacks an archive into a run once, and returns the folder that holds the images.

    The folder gets its final name once all files are complete, so an interrupted call is simply repeated. If a single
    folder of the archive holds everything, that folder is returned.

    Args:
        archive: .zip, .tar, or .tar compressed by gzip, bzip2 or xz.
        run: folder of the run.

    Raises:
        InputError: no such file, or one that is damaged or encrypted; a member that is a link or a device, or whose
            path leaves the folder; more bytes than fit on the disk.
    """
    place = run / UNPACKED
    if not place.is_dir():
        if not archive.is_file():
            raise InputError(f"there is no archive {archive}; give the file of an archive or a folder")
        partial, existed = run / f"{UNPACKED}.partial", run.exists()
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _extract(archive, partial)
            os.replace(partial, place)
        except OSError as error:
            raise InputError(f"{archive} cannot be unpacked into {place} ({error.strerror or error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not existed and not place.is_dir():
                with contextlib.suppress(OSError):
                    run.rmdir()
    entries = [entry for entry in sorted(place.iterdir()) if entry.name not in PASSED_OVER]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not _is_class(entries[0]) else place


@contextlib.contextmanager
def removed_if_refused(run: Path) -> Iterator[None]:
    """Removes what was unpacked into a run in the block if its images are refused; an interruption leaves it.

    The folders above it go too, if the block made them and nothing else is in them.
    """
    place = run / UNPACKED
    before, made = place.exists(), [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        yield
    except InputError:
        if not before:
            shutil.rmtree(place, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise


def _is_class(folder: Path) -> bool:
    """Whether a folder holds files only: then it is a class or a part of the data set, and does not hold all of it."""
    return not any(entry.is_dir() for entry in folder.iterdir())


def _extract(archive: Path, folder: Path) -> None:
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as opened:
                _write(archive, [*_zip_members(archive, opened)], opened.open, folder)
        else:
            with tarfile.open(archive) as tar:
                _write(archive, [*_tar_members(archive, tar)], tar.extractfile, folder)
    except InputError:
        raise
    except (
        ValueError,
        OverflowError,
        struct.error,
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive} cannot be unpacked ({reason})") from error


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        path = _checked(archive, info.filename)
        if info.is_dir() or path is None:
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):  # 0 from systems without such modes
            raise _not_a_file(archive, info.filename)
        if info.flag_bits & 1:
            raise InputError(f"{archive} is encrypted; unpack it and give the folder")
        yield _Member(path, info.file_size, info)


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        path = _checked(archive, info.name)
        if info.isdir() or path is None:
            continue
        if not info.isreg():
            raise _not_a_file(archive, info.name)
        yield _Member(path, info.size, info)


def _not_a_file(archive: Path, name: str) -> InputError:
    return InputError(f"{archive} holds {name!r}, which is a link or a device; pack the files themselves")


def _checked(archive: Path, name: str) -> PurePosixPath | None:
    """The path of a member below the folder; None for what file managers leave.

    Raises:
        InputError: it leaves the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"{archive} holds {name!r}, which leads out of its folder; pack it with relative paths")
    return None if any(part in PASSED_OVER for part in path.parts) or not path.parts else path


def _write(archive: Path, members: list[_Member], reader: Reader, folder: Path) -> None:
    needed, free = sum(member.size for member in members), shutil.disk_usage(folder).free
    if needed > SPARE * free:
        raise InputError(f"{archive} holds {needed:,} bytes, and {folder.parent} has room for {int(SPARE * free):,}")
    if not members:
        raise InputError(f"{archive} holds no file")
    for member in members:
        target = folder / member.path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = reader(member.handle)
        assert source is not None  # a regular file
        with source, target.open("xb") as written:
            left = member.size
            while left and (chunk := source.read(min(CHUNK, left))):
                written.write(chunk)
                left -= len(chunk)
            if left or source.read(1):
                raise InputError(f"{archive} is damaged: {str(member.path)!r} has another size than it declares")
