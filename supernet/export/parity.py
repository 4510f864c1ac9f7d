"""How far the artefacts of an export are from the trained network, measured where this project cannot be imported."""

import inspect
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import InputError

SEED = 0
"""Of the inputs, which are standard normal."""

Outputs = list[dict[str, Tensor]]
"""Per input all output tensors by path."""

_BLOCKED = ("supernet", "searchers", "detection", "timm", "einops", "safetensors")

_RUNNER = '''
from __future__ import annotations

import sys


class Block:
    """Hides what an export must not need, even where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"exported code must not import {name!r}", name=name)


sys.meta_path.insert(0, Block())

import importlib.util
from pathlib import Path

import torch

LEAVES

def outputs(network, leading=0):
    return [_outputs(network, images, leading) for images in torch.load(job / "inputs.pt", weights_only=True)]


folder, job = map(Path, sys.argv[1:3])
torch.set_num_threads(int(sys.argv[4]))  # on other numbers convolutions round otherwise, and suppression may flip
found = {}
artefact = "model.py"
try:
    spec = importlib.util.spec_from_file_location("model", folder / artefact)
    sys.modules["model"] = model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    found[artefact] = outputs(model.load(), int(sys.argv[3]))
    artefact = "model.pt2"
    found[artefact] = outputs(torch.export.load(folder / artefact).module())
except Exception as error:
    sys.exit(f"{artefact}: {type(error).__name__}: " + " ".join(str(error).split())[:400])
torch.save(found, job / "outputs.pt")
'''


def _leaves(value: Any, path: str = "output") -> dict[str, Tensor]:
    """The tensors in nested tuples, lists and dicts, by path; None stands for no output."""
    if value is None:
        return {}
    if isinstance(value, torch.Tensor):
        return {path: value.detach()}
    if not isinstance(value, dict | list | tuple):
        raise TypeError(f"{path} is of type {type(value).__name__}, not a tensor or a tuple, list or dict of tensors")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, item in items for name, leaf in _leaves(item, f"{path}[{key!r}]").items()}


def _outputs(network: Any, images: Tensor, leading: int) -> dict[str, Tensor]:
    """All outputs for one batch, and those of the first `leading` modules if there are such, by path."""
    with torch.no_grad():
        found = _leaves(network(images))
        return {**found, **_leaves(network[:leading](images), "leading")} if leading else found


def _inputs(shapes: Iterable[Sequence[int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes]


def leading_part(network: nn.Module) -> int:
    """How many modules of an `nn.Sequential` come before the first one with `traceable = False`; 0 if none has it.

    What such a module does depends on values, as non-maximum suppression does.
    """
    parts = list(network) if isinstance(network, nn.Sequential) else []
    return next((number for number, part in enumerate(parts) if not _traceable(part)), 0)


def _traceable(module: nn.Module) -> bool:
    return all(getattr(part, "traceable", True) for part in module.modules())


def traced_part(network: nn.Module) -> nn.Module:
    """What graphs hold of a network: its leading part, or all of it."""
    leading = leading_part(network)
    return network[:leading] if leading and isinstance(network, nn.Sequential) else network


def outputs_of(trained: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, Outputs]:
    """What each artefact is to return for random inputs of each shape.

    model.py holds the network; where only a leading part of it can be traced, the graphs hold that, and it is compared
    in model.py too: on random inputs a detector may find nothing. Raises `InputError` if the network fails on them.
    """
    leading, traced = leading_part(trained), traced_part(trained)
    try:
        whole = [_outputs(trained, images, leading) for images in _inputs(shapes)]
        graph = [_outputs(traced, images, 0) for images in _inputs(shapes)] if leading else whole
        return {"model.py": whole, "model.pt2": graph, "model.onnx": graph}
    except Exception as error:  # the forward is the user's
        raise InputError(f"the network fails on images of shape {tuple(shapes[0])}: {one_line(error)}") from error


def measure(
    expected: Mapping[str, Outputs], folder: Path, shapes: Sequence[Sequence[int]], *, leading: int = 0
) -> dict[str, float]:
    """Load the artefacts of a folder and run them.

    Args:
        expected: `outputs_of` the trained network at the same `shapes`.
        leading: its `leading_part`.

    Returns:
        per artefact the largest absolute difference of any output; NaN where one is not finite.

    Raises:
        InputError: an artefact does not load or run, or returns tensors of other shapes.
    """
    found = _run_apart(folder, _inputs(shapes), leading)
    if (folder / "model.onnx").exists():
        found["model.onnx"] = _run_onnx(folder / "model.onnx", _inputs(shapes), expected["model.onnx"])
    return {name: _largest(name, expected[name], outputs) for name, outputs in found.items()}


def _run_apart(folder: Path, inputs: list[Tensor], leading: int) -> dict[str, Outputs]:
    """The outputs of model.py and model.pt2 in a process that cannot import this project."""
    with tempfile.TemporaryDirectory() as job:
        torch.save(inputs, Path(job, "inputs.pt"))
        code = _RUNNER.replace("BLOCKED", repr(_BLOCKED))
        code = code.replace("LEAVES", f"{inspect.getsource(_leaves)}\n\n{inspect.getsource(_outputs)}")
        settings = [str(leading), str(torch.get_num_threads())]
        command = [sys.executable, "-I", "-B", "-c", code, str(folder), job, *settings]
        done = subprocess.run(command, cwd=folder.anchor, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise InputError(f"the export does not load: {lines[-1]}")
        outputs: dict[str, Outputs] = torch.load(Path(job, "outputs.pt"), weights_only=True)
    return outputs


def _run_onnx(path: Path, inputs: list[Tensor], expected: Outputs) -> Outputs:
    """The outputs of model.onnx, whose order is that of the network's leaves."""
    runtime = onnx_packages()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs = [map(torch.from_numpy, session.run(None, {name: images.numpy()})) for images in inputs]
        return [dict(zip(leaves, run, strict=True)) for leaves, run in zip(expected, runs, strict=True)]
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise InputError(f"{path.name} does not run: {one_line(error)}") from error


def onnx_packages() -> Any:
    """The module onnxruntime. Raises `InputError` if it or what writes ONNX files is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"writing ONNX needs {error.name}; pip install supernet[onnx]") from error
    return onnxruntime


def _largest(artefact: str, expected: Outputs, outputs: Outputs) -> float:
    largest = torch.zeros((), dtype=torch.float64)
    for wanted, got in zip(expected, outputs, strict=True):
        shapes, other = ({path: tuple(t.shape) for path, t in leaves.items()} for leaves in (wanted, got))
        if shapes != other:
            raise InputError(f"{artefact} returns {other}, the trained network {shapes}")
        for path, tensor in wanted.items():
            if tensor.numel():
                difference = (tensor.double() - got[path].double()).abs().max()
                largest = torch.maximum(largest, difference)  # hands NaN on, unlike max()
    return largest.item()


def check_differences(differences: Mapping[str, float], tolerance: float, expected: Mapping[str, Outputs]) -> None:
    """Raises `InputError` naming the first artefact that differs by more than `tolerance`.

    Rounding grows with the numbers: beyond ±1 the tolerance is relative to the largest expected output.
    """
    for name, difference in differences.items():
        tensors = [tensor for leaves in expected[name] for tensor in leaves.values() if tensor.numel()]
        allowed = tolerance * max([1.0, *(float(tensor.abs().max()) for tensor in tensors)])
        if not difference <= allowed:  # NaN fails too
            raise InputError(
                f"{name} differs from the trained network by {difference:.3g}, more than the tolerance {allowed:g}"
            )


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, shortened to 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " …"
