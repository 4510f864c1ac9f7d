"""Weights and training states on disk, loaded without unpickling code and only as they were written.

Every file holds the SHA-256 of its own bytes, so that one that has changed since is refused instead of loading as other
weights: a state as the comment of its zip archive, weights in their metadata.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from supernet.chain import has_numbered_steps
from supernet.errors import InputError
from supernet.files import FORMAT, replacing
from supernet.paths import check_regular

METADATA = "supernet"
_DIGITS = 64  # of a SHA-256
_UNKNOWN = "0" * _DIGITS  # stands for the digest while it is computed
_CHECKED = 3  # the first format with digests
_READABLE = (2, FORMAT)
_END = b"PK\x05\x06"  # of a zip archive: a record of 22 bytes whose last two are the length of the comment
_END_SIZE = 22


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors, numbers and strings to a checkpoint of the current format, atomically."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
        with temporary.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest().encode()
            file.seek(-2, io.SEEK_END)
            file.write(_DIGITS.to_bytes(2, "little") + digest)


def read_state(path: Path) -> bytes:
    """Returns what the file of a checkpoint holds. Raises `InputError` if it cannot be read or is empty."""
    try:
        check_regular(path)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error.strerror})") from error
    if not content:
        raise InputError(f"the checkpoint {path} is empty; delete it to train again")
    return content


def load_state(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        path: the checkpoint; messages name it.
        content: the content of the file, where it has been read already.

    Raises:
        InputError: the file is truncated, has changed since it was written, was not written by this project, comes from
            an older release, or has another format.
    """
    content = read_state(path) if content is None else content
    digest, archive = _without_comment(content)
    if digest is not None and digest != hashlib.sha256(archive).hexdigest().encode():
        raise _changed(path)
    try:
        state = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"the checkpoint {path} is truncated or not a checkpoint of this project ({type(error).__name__}); "
            "delete it to train again"
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"the checkpoint {path} was not written by this project; give another output folder")
    if state["format"] == 1:
        raise InputError(f"{path} was written by an older release (numbered steps); train again")
    if state["format"] not in _READABLE:
        raise InputError(f"the checkpoint {path} has format {state['format']}; this release reads format {FORMAT}")
    if state["format"] >= _CHECKED and digest is None:
        raise _changed(path)
    return state


def _without_comment(content: bytes) -> tuple[bytes | None, bytes]:
    """Returns the digest at the end of a zip archive, None if there is none, and the archive without it."""
    end = len(content) - _END_SIZE - _DIGITS
    if end < 0 or content[end : end + 4] != _END or content[-_DIGITS - 2 : -_DIGITS] != _DIGITS.to_bytes(2, "little"):
        return None, content
    return content[-_DIGITS:], content[: -_DIGITS - 2] + b"\0\0"


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes a module's parameters and buffers as safetensors, atomically; equal weights give equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as temporary:
        packed = json.dumps({"format_version": str(FORMAT), **metadata, "sha256": _UNKNOWN}, sort_keys=True)
        safetensors.torch.save_file(tensors, temporary, {METADATA: packed})  # with several keys their order would vary
        with temporary.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest().encode()
            file.seek(0)
            file.seek(_header(file.read(8), file).index(_UNKNOWN.encode()) + 8)
            file.write(digest)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a file of weights.

    Raises:
        InputError: the file cannot be read, or has changed since it was written.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
        return _checked(path, notes)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it, or delete it to train again") from error


def load_weights(path: Path, module: nn.Module) -> dict[str, str]:
    """Loads safetensors into a module, strictly, and returns the file's metadata.

    Raises:
        InputError: the file is missing, damaged, from an older release, has changed since it was written, belongs to
            another network (the message names the first tensor that differs), or holds values that are not finite.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path} is a folder, a pipe or a device, not a file of weights; restore it or train again")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = _checked(path, notes)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; has the training finished?") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error})") from error
    own = module.state_dict()
    if own.keys() != tensors.keys() and has_numbered_steps(tensors):
        raise InputError(f"{path} was written by an older release (numbered steps); train again")
    check_release(path, module, tensors)
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise InputError(f"{path} belongs to another network: tensor {name!r} is missing or has another shape")
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise InputError(f"{path} holds values that are not finite, the first in tensor {name!r}; train again")
    module.load_state_dict(tensors)
    return metadata


def check_release(path: Path, module: nn.Module, names: Iterable[str]) -> None:
    """Refuses tensors of an older release that a module recognises by their names and could not use.

    A part of the module says so by a method `older_release(names)`, which gets the names below its own path and returns
    what is wrong with them, or None.

    Raises:
        InputError: the tensors are from an older release.
    """
    known = list(names)
    for prefix, part in module.named_modules():
        explain = getattr(part, "older_release", None)
        start = f"{prefix}." if prefix else ""
        reason = explain and explain([name.removeprefix(start) for name in known if name.startswith(start)])
        if reason:
            raise InputError(f"{path} was written by an older release: {reason}; train again in a new folder")


def _checked(path: Path, notes: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata of a file of weights. Raises `InputError` if the file is not as it was written."""
    if METADATA not in notes and any("sha256" in note for note in notes.values()):
        raise _changed(path)
    try:
        metadata = json.loads(notes.get(METADATA, "{}"))
        digest = metadata.pop("sha256", None)
        version = int(metadata.get("format_version", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise _changed(path) from error
    if digest is None and version < _CHECKED:  # of an older release, or of another program
        return dict(metadata)
    if not isinstance(digest, str) or len(digest) != _DIGITS:
        raise _changed(path)
    with path.open("rb") as file:
        length = file.read(8)
        header = _header(length, file)
        sha = hashlib.sha256(length + header.replace(digest.encode(), _UNKNOWN.encode(), 1))
        for block in iter(lambda: file.read(2**20), b""):
            sha.update(block)
    if sha.hexdigest() != digest:
        raise _changed(path)
    return dict(metadata)


def _header(length: bytes, file: Any) -> bytes:
    """Returns the header of a safetensors file that is read up to it."""
    header: bytes = file.read(int.from_bytes(length, "little"))
    return header


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} is damaged: its contents are not those that were written (SHA-256); restore it from a copy, or delete "
        "it to train again"
    )
