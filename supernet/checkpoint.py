"""Files that survive a kill at any moment: written aside, synced, renamed; loaded without unpickling code."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import safetensors
import safetensors.torch
import torch
from torch import nn

from supernet.config import from_dict
from supernet.errors import InputError, RunError

FORMAT = 1
METADATA = "supernet"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there replaces `path` at once, or not at all.

    Raises:
        RunError: it cannot be written, e.g. because the disk is full; what was at `path` before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors have their own
        before = "what was saved there before is intact" if path.exists() else "nothing was there before"
        raise RunError(
            f"{path} cannot be written ({str(error).splitlines()[0]}); {before}. Make room or give another folder; "
            "the same command then goes on"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `InputError` if the file is missing, damaged or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; is its folder the output of an earlier command?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it or start in a new folder") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return document


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and strings to a checkpoint of this format, atomically."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path, file: BinaryIO | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: where it is, and its name in messages.
        file: read this instead of opening `path`.

    Raises:
        InputError: it is truncated, foreign, or of another format.
    """
    try:
        state = torch.load(file or path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"the checkpoint {path} is truncated or no checkpoint of this project ({type(error).__name__}); "
            "delete it to train again"
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"the checkpoint {path} was not written by this project; give another output folder")
    if state["format"] != FORMAT:
        raise InputError(f"the checkpoint {path} has format {state['format']}; this release reads format {FORMAT}")
    return state


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a module's parameters and buffers as safetensors, atomically; equal weights give equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as temporary:
        packed = json.dumps({"format_version": str(FORMAT), **metadata}, sort_keys=True)
        safetensors.torch.save_file(tensors, temporary, {METADATA: packed})  # of several keys the order would vary


def load_weights(path: Path, module: nn.Module) -> dict[str, str]:
    """Load safetensors into a module, strictly, and return the file's metadata.

    Raises:
        InputError: the file is missing, damaged, or of another network (the first differing tensor is named).
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; has the training finished?") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is truncated or no safetensors file ({error})") from error
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise InputError(f"{path} belongs to another network: tensor {name!r} is missing or has another shape")
    module.load_state_dict(tensors)
    return metadata


def environment(device: str) -> dict[str, Any]:
    """What bit-for-bit reproduction depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": device if device == "cpu" else torch.cuda.get_device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of the working tree this code runs from, None outside one."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


@contextlib.contextmanager
def open_run(folder: Path, kind: str, config: Any) -> Iterator[Path]:
    """Claim a run folder for writing: create it with its `run.json`, or go on with the same run.

    Args:
        folder: the run's folder.
        kind: what the folder holds, e.g. "supernet".
        config: a dataclass with every setting; it is the run's identity, `save_seconds` excepted.

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
        if not name.endswith("save_seconds") and before.get(name) != now.get(name):
            raise InputError(
                f"{folder} holds another run: {name} is {before.get(name)!r} there and {now.get(name)!r} here; "
                "give another folder, or the same settings to go on with it"
            )


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
