"""Weights and training states on disk, loaded without unpickling code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import nn

from supernet.chain import has_numbered_steps
from supernet.errors import InputError
from supernet.files import FORMAT, replacing

METADATA = "supernet"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors, numbers and strings to a checkpoint of the current format, atomically."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path, file: BinaryIO | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        path: the checkpoint; messages name it.
        file: is read instead of `path` if given.

    Raises:
        InputError: the file is truncated, was not written by this project, comes from an older release, or has
            another format.
    """
    try:
        state = torch.load(file or path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"the checkpoint {path} is truncated or not a checkpoint of this project ({type(error).__name__}); "
            "delete it to train again"
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise InputError(f"the checkpoint {path} was not written by this project; give another output folder")
    if state["format"] == 1:
        raise InputError(f"{path} was written by an older release (numbered steps); train again")
    if state["format"] != FORMAT:
        raise InputError(f"the checkpoint {path} has format {state['format']}; this release reads format {FORMAT}")
    return state


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes a module's parameters and buffers as safetensors, atomically; equal weights give equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as temporary:
        packed = json.dumps({"format_version": str(FORMAT), **metadata}, sort_keys=True)
        safetensors.torch.save_file(tensors, temporary, {METADATA: packed})  # with several keys their order would vary


def load_weights(path: Path, module: nn.Module) -> dict[str, str]:
    """Loads safetensors into a module, strictly, and returns the file's metadata.

    Raises:
        InputError: the file is missing, damaged, from an older release, or belongs to another network (the message
            names the first tensor that differs).
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; has the training finished?") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error})") from error
    own = module.state_dict()
    if own.keys() != tensors.keys() and has_numbered_steps(tensors):
        raise InputError(f"{path} was written by an older release (numbered steps); train again")
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise InputError(f"{path} belongs to another network: tensor {name!r} is missing or has another shape")
    module.load_state_dict(tensors)
    return metadata
