"""The differences between an export and the trained network, measured where this project cannot be imported."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.errors import InputError
from supernet.export.runtime import runner

SEED = 0
"""The seed of the inputs, which are standard normal."""

Outputs = list[dict[str, Tensor]]
"""All output tensors by path, per input."""


def _inputs(shapes: Iterable[Sequence[int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes]


def leading_part(network: nn.Module) -> int:
    """Returns how many modules of an `nn.Sequential` precede the first with `traceable = False`; 0 if none has it.

    The operations of such a module depend on values, as in non-maximum suppression.
    """
    parts = list(network) if isinstance(network, nn.Sequential) else []
    return next((number for number, part in enumerate(parts) if not _traceable(part)), 0)


def _traceable(module: nn.Module) -> bool:
    return all(getattr(part, "traceable", True) for part in module.modules())


def traced_part(network: nn.Module) -> nn.Module:
    """Returns the part of a network that graphs hold: its leading part, or all of it."""
    leading = leading_part(network)
    return network[:leading] if leading and isinstance(network, nn.Sequential) else network


def outputs_of(trained: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, Outputs]:
    """Returns the outputs that each artefact must give for random inputs of each shape.

    model.py holds the whole network. Where only a leading part can be traced, the graphs hold that part, and its
    outputs are compared in model.py too, since a detector may find nothing in random inputs.

    Raises:
        InputError: the network fails on these inputs, or an output is not finite.
    """
    leading, traced = leading_part(trained), traced_part(trained)
    try:
        whole = [runner.outputs(trained, images, leading) for images in _inputs(shapes)]
        graph = [runner.outputs(traced, images) for images in _inputs(shapes)] if leading else whole
    except Exception as error:  # the user's forward may raise anything
        raise InputError(f"the network fails on images of shape {tuple(shapes[0])}: {one_line(error)}") from error
    for leaves in (*whole, *graph):
        for path, tensor in leaves.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(
                    f"the {path} of the network is not finite on images of shape {tuple(shapes[0])}, so nothing can be "
                    "compared; train it again"
                )
    return {"model.py": whole, "model.pt2": graph, "model.onnx": graph}


def measure(
    expected: Mapping[str, Outputs], folder: Path, shapes: Sequence[Sequence[int]], *, leading: int = 0
) -> dict[str, float]:
    """Loads the artefacts of a folder, runs them and compares their outputs.

    Args:
        expected: `outputs_of` the trained network at the same `shapes`.
        leading: its `leading_part`.

    Returns:
        the largest absolute difference of any output, per artefact; NaN where one is not finite.

    Raises:
        InputError: an artefact does not load or run, or returns tensors of other shapes.
    """
    results = _run_apart(folder, _inputs(shapes), leading)
    if (folder / "model.onnx").exists():
        results["model.onnx"] = _run_onnx(folder / "model.onnx", _inputs(shapes), expected["model.onnx"])
    return {name: _largest(name, expected[name], outputs) for name, outputs in results.items()}


def _run_apart(folder: Path, inputs: list[Tensor], leading: int) -> dict[str, Outputs]:
    """Returns the outputs of model.py and model.pt2 from a process that cannot import this project."""
    with tempfile.TemporaryDirectory() as job:
        torch.save(inputs, Path(job, "inputs.pt"))
        code, errors = _run_runner([str(folder), job, str(leading), str(torch.get_num_threads())], folder.anchor)
        if code:
            lines = errors.strip().splitlines() or [f"exit status {code}"]
            raise InputError(f"the export does not load: {lines[-1]}")
        outputs: dict[str, Outputs] = torch.load(Path(job, "outputs.pt"), weights_only=True)
    return outputs


def _run_runner(arguments: Sequence[str], cwd: str) -> tuple[int, str]:
    """Runs `runner` by its path, as a process of its own; returns its exit code and what it wrote to standard error."""
    command = [sys.executable, "-I", "-B", runner.__file__, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _run_onnx(path: Path, inputs: list[Tensor], expected: Outputs) -> Outputs:
    """Returns the outputs of model.onnx, which are in the order of the network's leaves."""
    runtime = onnx_packages()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs = [map(torch.from_numpy, session.run(None, {name: images.numpy()})) for images in inputs]
        return [dict(zip(leaves, run, strict=True)) for leaves, run in zip(expected, runs, strict=True)]
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise InputError(f"{path.name} does not run: {one_line(error)}") from error


def onnx_packages() -> Any:
    """Returns the module onnxruntime. Raises `InputError` if it or a package that writes ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"writing ONNX needs {error.name}; pip install supernet[onnx]") from error
    return onnxruntime


def _largest(artefact: str, expected: Outputs, outputs: Outputs) -> float:
    """Returns the largest absolute difference, or NaN."""
    largest = torch.zeros((), dtype=torch.float64)
    for wanted, got in zip(expected, outputs, strict=True):
        shapes, returned = ({path: tuple(t.shape) for path, t in tensors.items()} for tensors in (wanted, got))
        if shapes != returned:
            raise InputError(f"{artefact} returns {returned}, the trained network {shapes}")
        for path, tensor in wanted.items():
            if tensor.numel():
                difference = (tensor.double() - got[path].double()).abs().max()
                largest = torch.maximum(largest, difference)  # propagates NaN, unlike max()
    return largest.item()


def check_differences(differences: Mapping[str, float], tolerance: float, expected: Mapping[str, Outputs]) -> None:
    """Raises `InputError` if an artefact differs by more than `tolerance`; the message names the first one.

    Rounding errors grow with the outputs: beyond ±1 the tolerance is relative to the largest expected output.
    """
    for name, difference in differences.items():
        tensors = [tensor for leaves in expected[name] for tensor in leaves.values() if tensor.numel()]
        allowed = tolerance * max([1.0, *(float(tensor.abs().max()) for tensor in tensors)])
        if not difference <= allowed:  # NaN fails too
            raise InputError(
                f"{name} differs from the trained network by {difference:.3g}, more than the tolerance {allowed:g}"
            )


def one_line(error: BaseException) -> str:
    """Returns an error's message without line breaks, shortened to 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " …"
