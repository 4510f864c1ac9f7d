"""A trained network as a folder that needs only torch: readable source, weights, `torch.export` and ONNX graphs.

An export is complete or absent: every artefact is loaded back, in a process where this project cannot be imported, and
compared with the trained network before the folder gets its name.
"""

import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from supernet.config import Preprocess
from supernet.errors import InputError
from supernet.expression import expression, written
from supernet.searchable import Bound, Searchable
from supernet.source import Bundle, bundle, check_copyable
from supernet.space import Arch

__all__ = ["check_parity", "export", "expression", "load_exported"]

FORMAT = 1
"""Version of the folder, written to parity.json."""

_FILES = {"model.py", "model.safetensors", "arch.json", "preprocess.json", "model.pt2", "model.onnx", "parity.json"}
_BLOCKED = ("supernet", "searchers", "detection", "timm", "einops", "safetensors")
_TRACED, *_OTHERS = _BATCHES = (2, 1, 3)  # graphs are traced at two images: one would be taken for a constant
_SEED = 0


def export(
    network: nn.Module,
    folder: str | Path,
    *,
    arch: Mapping[str, Any],
    space: str,
    preprocess: Preprocess,
    in_channels: int = 3,
    onnx: bool = False,
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Write a standalone folder: `model.py` with `build()`, `load()` and `predict(images)`, weights and graphs.

    Args:
        network: takes (N, in_channels, input_size, input_size), returns a tensor or (nested) tuples, lists or dicts of
            tensors; logits (N, classes) where `preprocess` names classes. It is not changed: a copy is exported, in
            eval mode, on the CPU, in float32.
        folder: created, or replaced if it is an export.
        arch: the architecture, and `space` the name of its space; both are only recorded.
        onnx: also write `model.onnx`.
        tolerance: largest absolute difference of any output of any artefact from the network's own.

    Returns:
        the content of parity.json: differences, inputs, tolerance, parameters, required packages, SHA-256 of the files.

    Raises:
        InputError: the network cannot be written, an artefact does not load or differs by more than `tolerance`, or
            `folder` holds something else. Nothing is left behind then.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    _check_preprocess(preprocess, in_channels)
    if onnx:
        _onnx_packages()
    trained = _trained(network)
    shapes = [(batch, in_channels, preprocess.input_size, preprocess.input_size) for batch in _BATCHES]
    expected = _outputs(trained, shapes)
    _check_classes(expected[0], preprocess)
    arch = Arch(arch)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    title = f"A network of the space {space}, architecture {arch.key}: {parameters:,} parameters."
    text, requires = _model_source(trained, title, in_channels=in_channels, size=preprocess.input_size)
    with _appearing(folder) as partial:
        (partial / "model.py").write_text(text, encoding="utf-8")
        _write_json(partial / "arch.json", {"space": space, "key": arch.key, "values": dict(arch)})
        _write_json(partial / "preprocess.json", dataclasses.asdict(preprocess))
        save_file(_weights(trained), partial / "model.safetensors")
        _save_graphs(trained, partial, shapes[0], onnx=onnx)
        differences = _differences(expected, partial, shapes)
        _check_differences(differences, tolerance)
        files = sorted(path.name for path in partial.iterdir())
        parity = {
            "format": FORMAT,
            "differences": differences,
            "tolerance": tolerance,
            "inputs": {"seed": _SEED, "shapes": [list(shape) for shape in shapes], "traced_batch": _TRACED},
            "parameters": parameters,
            "requires": list(requires),
            "torch": str(torch.__version__),
            "sha256": {name: _sha256(partial / name) for name in files},
        }
        _write_json(partial / "parity.json", parity)
    return parity


def check_parity(network: nn.Module, folder: str | Path, *, tolerance: float = 1e-5) -> dict[str, float]:
    """Measure an export against a network again, on the inputs that the export was measured on. Runs its model.py.

    Returns:
        per artefact the largest absolute difference of any output.

    Raises:
        InputError: `folder` is no export, an artefact does not load, or a difference exceeds `tolerance`.
    """
    folder = Path(folder).absolute()
    shapes = [tuple(shape) for shape in _parity(folder)["inputs"]["shapes"]]
    differences = _differences(_outputs(_trained(network), shapes), folder, shapes)
    _check_differences(differences, tolerance)
    return differences


def load_exported(folder: str | Path) -> nn.Module:
    """The network of an export, in eval mode on the CPU. Runs the folder's model.py: load only what you trust.

    Raises:
        InputError: `folder` is no export, or its source or weights are not those that were written.
    """
    folder = Path(folder).absolute()
    parity = _parity(folder)
    for name in ("model.py", "model.safetensors"):
        if _sha256(folder / name) != parity["sha256"][name]:
            raise InputError(f"{folder / name} has changed since it was exported; export the network again")
    # compiled from here, the folder stays free of __pycache__; registered, since dataclasses look their module up
    module = types.ModuleType(f"exported_{parity['sha256']['model.py'][:16]}")
    module.__file__ = str(folder / "model.py")
    sys.modules[module.__name__] = module
    exec(compile((folder / "model.py").read_bytes(), module.__file__, "exec"), vars(module))
    network: nn.Module = module.load(folder)
    return network


# -- what is exported ------------------------------------------------------------------------------------------------


def _trained(network: nn.Module) -> nn.Module:
    """The copy that is exported and compared with. Raises `InputError` for supernets and foreign classes."""
    for part in network.modules():
        if isinstance(part, Searchable | Bound):
            raise InputError("this is a supernet; export the network of one architecture, supernet.subnet(arch)")
        check_copyable(type(part).__module__, type(part).__name__)
    return copy.deepcopy(network).cpu().float().eval()


def _check_preprocess(preprocess: Preprocess, in_channels: int) -> None:
    if not len(preprocess.mean) == len(preprocess.std) == in_channels:
        raise InputError(
            f"preprocess has {len(preprocess.mean)} means and {len(preprocess.std)} deviations for {in_channels} "
            "channels; give one each per channel"
        )
    modes = ("bilinear", "bicubic", "area", "nearest", "nearest-exact")
    if preprocess.interpolation not in modes:
        raise InputError(f"interpolation is one of {', '.join(modes)}, not {preprocess.interpolation!r}")


def _check_classes(outputs: Mapping[str, Tensor], preprocess: Preprocess) -> None:
    found = [tuple(output.shape) for output in outputs.values()]
    if preprocess.classes and found != [(_TRACED, len(preprocess.classes))]:
        raise InputError(
            f"preprocess names {len(preprocess.classes)} classes, but for {_TRACED} images the network returns "
            f"{found}; leave classes empty for a network that does not classify whole images"
        )


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each with storage of its own."""
    state = trained.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"the state {name!r} is no tensor and cannot be exported")
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def _model_source(trained: nn.Module, title: str, *, in_channels: int, size: int) -> tuple[str, tuple[str, ...]]:
    """The text of model.py, and the packages it needs."""
    call, used = written(trained, indent=4, lead=len("return "))
    imported = {"functools": functools, "json": json, "Path": Path, "torch": torch, "nn": nn}
    code: Bundle = bundle(used, imported=imported, defined=("build", "load", "predict", "_tensors", "_loaded"))
    safe = title.replace("\\", "/").replace('"', "'")
    parts = [
        _HEADER.replace("TITLE", safe).replace("REQUIRES", " and ".join(code.requires)) + code.imports,
        code.definitions,
        _BUILD.replace("SHAPE", f"(N, {in_channels}, {size}, {size})").replace("CALL", call),
        _RUNTIME,
    ]
    return "\n\n\n".join(part for part in parts if part), code.requires


def _save_graphs(trained: nn.Module, folder: Path, shape: Sequence[int], *, onnx: bool) -> None:
    images = torch.zeros(*shape)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(trained, (images,), dynamic_shapes=dynamic)
        torch.export.save(program, folder / "model.pt2")
        if onnx:
            path = folder / "model.onnx"
            torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)
    except Exception as error:  # whatever the tracer trips over is the network's doing
        raise InputError(f"the network cannot be traced with a dynamic batch: {_line(error)}") from error


def _onnx_packages() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"writing ONNX needs {error.name}; pip install supernet[onnx]") from error
    return onnxruntime


# -- parity ----------------------------------------------------------------------------------------------------------


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


def _inputs(shapes: Iterable[Sequence[int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def _outputs(trained: nn.Module, shapes: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
    try:
        with torch.no_grad():
            return [_leaves(trained(images)) for images in _inputs(shapes)]
    except Exception as error:  # the forward is the user's
        raise InputError(f"the network fails on images of shape {tuple(shapes[0])}: {_line(error)}") from error


def _differences(expected: list[dict[str, Tensor]], folder: Path, shapes: Sequence[Sequence[int]]) -> dict[str, float]:
    """Per artefact, the largest difference over all inputs and outputs."""
    found = _run_apart(folder, _inputs(shapes))
    if (folder / "model.onnx").exists():
        found["model.onnx"] = _run_onnx(folder / "model.onnx", _inputs(shapes), expected)
    return {name: _largest(name, expected, outputs) for name, outputs in found.items()}


def _run_apart(folder: Path, inputs: list[Tensor]) -> dict[str, list[dict[str, Tensor]]]:
    """The outputs of model.py and model.pt2 in a process that cannot import this project."""
    with tempfile.TemporaryDirectory() as job:
        torch.save(inputs, Path(job, "inputs.pt"))
        code = _RUNNER.replace("BLOCKED", repr(_BLOCKED)).replace("LEAVES", inspect.getsource(_leaves))
        command = [sys.executable, "-I", "-B", "-c", code, str(folder), job]
        done = subprocess.run(command, cwd=folder.anchor, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise InputError(f"the export in {folder} does not load: {lines[-1]}")
        outputs: dict[str, list[dict[str, Tensor]]] = torch.load(Path(job, "outputs.pt"), weights_only=True)
    return outputs


def _run_onnx(path: Path, inputs: list[Tensor], expected: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The outputs of model.onnx, whose order is that of the network's leaves."""
    try:
        session = _onnx_packages().InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        runs = [session.run(None, {name: images.numpy()}) for images in inputs]
    except RuntimeError as error:
        raise InputError(f"{path.name} does not run: {_line(error)}") from error
    return [
        dict(zip(leaves, map(torch.from_numpy, run), strict=True)) for leaves, run in zip(expected, runs, strict=True)
    ]


def _largest(artefact: str, expected: list[dict[str, Tensor]], outputs: list[dict[str, Tensor]]) -> float:
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


def _check_differences(differences: Mapping[str, float], tolerance: float) -> None:
    for name, difference in differences.items():
        if not difference <= tolerance:  # NaN fails too
            raise InputError(
                f"{name} differs from the trained network by {difference:.3g}, more than the tolerance {tolerance:g}"
            )


# -- the folder ------------------------------------------------------------------------------------------------------


def _is_export(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return "parity.json" in names and names <= _FILES | {"__pycache__"}


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and (_is_export(folder) or not any(folder.iterdir()))):
        raise InputError(f"{folder} holds something other than an export; give a folder that is new or empty")


class _appearing:
    """A context: a folder beside the wanted one, which takes its name (and place) if all goes well, or is removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        self.replaced = folder.with_name(folder.name + ".replaced")

    def __enter__(self) -> Path:
        for stale in (self.partial, self.replaced):
            if stale.exists() and not {path.name for path in stale.iterdir()} <= _FILES | {"__pycache__"}:
                raise InputError(f"{stale} is in the way of the export; move it")
            shutil.rmtree(stale, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for path in self.partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if self.folder.exists():
            self.folder.rename(self.replaced)
        self.partial.rename(self.folder)
        shutil.rmtree(self.replaced, ignore_errors=True)


def _parity(folder: Path) -> dict[str, Any]:
    """The checked parity.json of an export whose files are all there."""
    path = folder / "parity.json"
    if not path.is_file():
        raise InputError(f"{folder} is no export: it has no parity.json")
    try:
        parity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, names = parity["format"], {*parity["sha256"], "model.py", "model.safetensors"}
        shapes = parity["inputs"]["shapes"]
        readable = version != FORMAT or bool(shapes) and names <= parity["sha256"].keys()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({_line(error)}); export the network again") from error
    if not readable:
        raise InputError(f"{path} is damaged; export the network again")
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, this release reads {FORMAT}; export the network again")
    for name in sorted(names):
        if not (folder / name).is_file():
            raise InputError(f"the export {folder} lacks {name}; export the network again")
    return parity


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " …"


# -- texts -----------------------------------------------------------------------------------------------------------

_HEADER = '''"""TITLE

Needs only REQUIRES. `load()` gives the trained network; `predict(images)` prepares images for it and reads its outputs.
"""

from __future__ import annotations

'''

_BUILD = '''def build() -> nn.Module:
    """The network with fresh weights; it takes float32 images SHAPE, normalised as in preprocess.json."""
    return CALL'''

_RUNTIME = '''def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The content of a .safetensors file: the header's length, the header as JSON, raw little-endian data."""
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
    """The trained network, in eval mode on the CPU, with the weights in the folder's model.safetensors."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights of build() shall not move the caller's generator
        network = build()
    network.load_state_dict(_tensors(Path(folder) / "model.safetensors"))
    return network.eval()


@functools.cache
def _loaded() -> tuple[nn.Module, dict]:
    return load(), json.loads((Path(__file__).parent / "preprocess.json").read_text(encoding="utf-8"))


def predict(images: torch.Tensor) -> object:
    """What the network sees in images.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), of any size.

    Returns:
        per image a list of (class name, probability), the likeliest first; the raw outputs of a network without
        class names.
    """
    network, preprocess = _loaded()
    mean, std = (torch.tensor(preprocess[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    if images.dtype is not torch.uint8 or images.dim() not in (3, 4) or images.shape[-3] != mean.numel():
        raise ValueError(f"images are uint8, (N, {mean.numel()}, H, W), not {images.dtype}, {tuple(images.shape)}")
    x = images.reshape(-1, *images.shape[-3:]).float()
    size, mode = (preprocess["input_size"],) * 2, preprocess["interpolation"]
    if x.shape[-2:] != size:
        x = nn.functional.interpolate(x, size, mode=mode, antialias=mode in ("bilinear", "bicubic")).clamp(0, 255)
    with torch.no_grad():
        outputs = network((x / 255 - mean) / std)
    if not preprocess["classes"]:
        return outputs
    ranked = outputs.softmax(dim=1).sort(dim=1, descending=True)
    return [
        [(preprocess["classes"][index], probability) for index, probability in zip(indices, values)]
        for indices, values in zip(ranked.indices.tolist(), ranked.values.tolist())
    ]
'''

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

def outputs(network):
    with torch.no_grad():
        return [_leaves(network(images)) for images in torch.load(job / "inputs.pt", weights_only=True)]


folder, job = map(Path, sys.argv[1:])
found = {}
artefact = "model.py"
try:
    spec = importlib.util.spec_from_file_location("model", folder / artefact)
    sys.modules["model"] = model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    found[artefact] = outputs(model.load())
    artefact = "model.pt2"
    found[artefact] = outputs(torch.export.load(folder / artefact).module())
except Exception as error:
    sys.exit(f"{artefact}: {type(error).__name__}: " + " ".join(str(error).split())[:400])
torch.save(found, job / "outputs.pt")
'''
