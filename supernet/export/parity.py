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

ARTEFACTS = ("model.py", "model.pt2", "model.onnx", "detector.pt2", "detector.onnx")
"""The files that are compared. The last two hold a whole detector."""

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


class Graph(nn.Module):
    """The traced part of a detector, which returns a dictionary of named tensors.

    Args:
        leading: the modules that can be traced.
        last: the module after them.
        method: the method of `last` that turns the state into the outputs: "named" or "detected".
    """

    def __init__(self, leading: nn.Module, last: nn.Module, method: str) -> None:
        super().__init__()
        self.leading, self.last, self.method = leading, last, method

    def forward(self, images: Tensor) -> Any:
        """Returns the outputs for images, (N, C, H, W)."""
        return getattr(self.last, self.method)(self.leading(images))


def traced_part(network: nn.Module, method: str = "named") -> nn.Module:
    """Returns the part of a network that a graph holds: its leading part, or all of it.

    The outputs are named where the module after the leading part has the method, as those of detectors have.
    """
    leading = leading_part(network)
    if not leading or not isinstance(network, nn.Sequential):
        return network
    last = network[leading]
    return Graph(network[:leading], last, method).eval() if hasattr(last, method) else network[:leading]


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
    parts = list(trained) if isinstance(trained, nn.Sequential) else []
    if not leading or not hasattr(parts[leading], "detected"):
        return {"model.py": whole, "model.pt2": graph, "model.onnx": graph}
    detected = [
        _padded(leaves, len(images), int(getattr(parts[leading], "detections")))  # noqa: B009  a buffer or module to mypy
        for leaves, images in zip(whole, _inputs(shapes), strict=True)
    ]
    return dict(zip(ARTEFACTS, (whole, graph, graph, detected, detected), strict=True))


def _padded(leaves: Mapping[str, Tensor], images: int, rows: int) -> dict[str, Tensor]:
    """Returns the detections of a batch as a graph returns them: `rows` per image, padded with zeros."""
    padded = {}
    for name in ("boxes", "scores", "labels"):
        per_image = [leaves[f"output[{image}][{name!r}]"] for image in range(images)]
        padded[f"output[{name!r}]"] = torch.stack(
            [torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])]) for x in per_image]
        )
    return padded


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
    for name in ("model.onnx", "detector.onnx"):
        if (folder / name).exists():
            results[name] = _run_onnx(folder / name, _inputs(shapes), expected[name])
    return {
        name: (_detection_difference if name.startswith("detector.") else _largest)(name, expected[name], outputs)
        for name, outputs in results.items()
    }


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


BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-3
"""Largest differences, in pixels and in score, at which two detections with the same label count as a match."""
UNMATCHED_SHARE = 0.01
"""Share of detections that may lack a match: at an IoU near the threshold, rounding can flip a suppression."""


def _detection_difference(artefact: str, expected: Outputs, outputs: Outputs) -> float:
    """Returns the largest difference of boxes and scores between matched detections, in any order of equal scores.

    It is infinite if more than `UNMATCHED_SHARE` of the detections of both sides lack a match on the other side.
    """
    shapes = [[{name: x.shape for name, x in leaves.items()} for leaves in side] for side in (expected, outputs)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{artefact} returns {shapes[1]}, the trained network {shapes[0]}")
    largest, unmatched, count = 0.0, 0, 0
    for pair in zip(expected, outputs, strict=True):
        for image in range(len(pair[0]["output['scores']"])):
            first, second = (_rows(leaves, image) for leaves in pair)
            count += len(first) + len(second)
            if not len(first) or not len(second):
                unmatched += len(first) + len(second)
                continue
            differences = (first[:, None] - second[None]).abs()  # (first, second, 6): box, score, label
            boxes, scores, labels = differences[..., :4], differences[..., 4], differences[..., 5]
            matched = (boxes <= BOX_TOLERANCE).all(-1) & (scores <= SCORE_TOLERANCE) & (labels == 0)
            distances = torch.where(matched, differences[..., :5].amax(-1), torch.inf)
            best = torch.cat([distances.amin(0), distances.amin(1)])
            unmatched += int(best.isinf().sum())
            largest = max([largest, *best[best.isfinite()].tolist()])
    return largest if unmatched <= UNMATCHED_SHARE * count else float("inf")


def _rows(leaves: Mapping[str, Tensor], image: int) -> Tensor:
    """Returns the detections in an image as rows of box, score and label, (n, 6)."""
    boxes, scores, labels = (leaves[f"output[{name!r}]"][image].double() for name in ("boxes", "scores", "labels"))
    return torch.cat([boxes, scores[:, None], labels[:, None]], 1)[scores > 0]


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
