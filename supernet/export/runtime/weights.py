"""Reads the weights of an export; the functions are copied into model.py."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn


def build() -> nn.Module:
    """Stands for the function of this name that is written into model.py; it is not copied."""
    raise NotImplementedError


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a .safetensors file: the length of the header, the header as JSON, raw little-endian data."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    types |= {"BOOL": torch.bool}
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw, dtype = data[start + begin : start + end], types[entry["dtype"]]
            flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """Returns the trained network, in eval mode on the CPU, with the weights in the folder's model.safetensors."""
    with torch.random.fork_rng(devices=[]):  # build() draws weights; the caller's generator is left as it is
        network = build()
    network.load_state_dict(_tensors(Path(folder) / "model.safetensors"))
    return network.eval()


@functools.cache
def _loaded() -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network and the settings in preprocess.json, read once."""
    return load(), json.loads((Path(__file__).parent / "preprocess.json").read_text(encoding="utf-8"))
