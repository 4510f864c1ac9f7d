"""Loads an export and saves its outputs, run as a script by path: `python -I -B runner.py FOLDER JOB LEADING THREADS`.

JOB is a folder with inputs.pt, a list of image batches; outputs.pt is written into it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BLOCKED = ("supernet", "searchers", "detection", "timm", "einops", "safetensors")


class Block:
    """An import finder that hides the packages an export must not need, even where they are installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Refuses blocked packages and leaves all others to the next finder."""
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"exported code must not import {name!r}", name=name)


def leaves(value: Any, path: str = "output") -> dict[str, Tensor]:
    """Returns the tensors in nested tuples, lists and dicts by path; None stands for no output."""
    if value is None:
        return {}
    if isinstance(value, torch.Tensor):
        return {path: value.detach()}
    if not isinstance(value, dict | list | tuple):
        raise TypeError(f"{path} is of type {type(value).__name__}, not a tensor or a tuple, list or dict of tensors")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}[{key!r}]").items()}


def outputs(network: Any, images: Tensor, leading: int = 0) -> dict[str, Tensor]:
    """Returns all outputs for one batch by path, and those of the first `leading` modules if it is not 0."""
    with torch.no_grad():
        result = leaves(network(images))
        return {**result, **leaves(network[:leading](images), "leading")} if leading else result


def loaded_model(path: Path) -> Any:
    """Executes a model.py and returns its module."""
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    model = importlib.util.module_from_spec(spec)
    sys.modules["model"] = model  # dataclasses look their module up
    spec.loader.exec_module(model)
    return model


def run(folder: Path, job: Path, leading: int) -> None:
    """Writes the outputs of model.py and of the .pt2 files; exits with one line that names the artefact that fails."""
    inputs: list[Tensor] = torch.load(job / "inputs.pt", weights_only=True)
    results = {}
    artefact = "model.py"
    try:
        network = loaded_model(folder / artefact).load()
        results[artefact] = [outputs(network, images, leading) for images in inputs]
        for artefact in ("model.pt2", "detector.pt2"):
            if (folder / artefact).exists():
                program = torch.export.load(folder / artefact).module()
                results[artefact] = [outputs(program, images) for images in inputs]
    except Exception as error:
        sys.exit(f"{artefact}: {type(error).__name__}: " + " ".join(str(error).split())[:400])
    torch.save(results, job / "outputs.pt")


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())  # type: ignore[arg-type]
    torch.set_num_threads(int(sys.argv[4]))  # with another number convolutions round differently, and NMS may flip
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
