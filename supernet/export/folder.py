"""A trained network as a folder that needs only torch: readable source, weights, `torch.export` and ONNX graphs.

Detectors need torchvision too; their graphs end at the raw outputs of the heads, the rest is in the source.

An export is complete or absent: every artefact is loaded back, in a process where this project cannot be imported, and
compared with the trained network before the folder gets its name.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from supernet.chain import Bound, Searchable
from supernet.config import Preprocess
from supernet.errors import InputError
from supernet.export.expression import expression, written
from supernet.export.parity import (
    SEED,
    check_differences,
    leading_part,
    measure,
    one_line,
    onnx_packages,
    outputs_of,
    traced_part,
)
from supernet.export.source import Bundle, bundle, check_copyable
from supernet.space import Arch

__all__ = ["check_parity", "export", "expression", "load_exported"]

FORMAT = 1
"""Version of the folder, written to parity.json."""

_FILES = {"model.py", "model.safetensors", "arch.json", "preprocess.json", "model.pt2", "model.onnx", "parity.json"}
_BATCHES = (2, 1, 3)  # the first is traced: a batch of one would be taken for a constant


def export(
    network: nn.Module,
    folder: str | Path,
    *,
    arch: Mapping[str, Any],
    space: str,
    preprocess: Preprocess,
    onnx: bool = False,
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Write a standalone folder: `model.py` with `build()`, `load()` and `predict(images)`, weights and graphs.

    Args:
        network: takes (N, C, input_size, input_size), C the length of `preprocess.mean`; returns a tensor or (nested)
            tuples, lists or dicts of tensors, logits (N, classes) where `preprocess` names classes. It is not changed:
            a copy is exported, in eval mode, on the CPU, in float32. An `nn.Sequential` with a module whose attribute
            `traceable` is false is a detector: it returns per image a dict of `boxes`, `scores` and `labels`, which
            count from 1, the graphs hold the modules before, and `finish` in model.py makes detections of what they
            return.
        folder: created, or replaced if it is an export.
        arch: the architecture, and `space` the name of its space; both are only recorded.
        onnx: also write `model.onnx`.
        tolerance: largest difference of any output of any artefact from the network's own: absolute while outputs are
            within ±1, relative to the largest of them beyond.

    Returns:
        the content of parity.json: differences, inputs, tolerance, parameters, required packages, SHA-256 of the files.

    Raises:
        InputError: the network cannot be written, an artefact does not load or differs by more than `tolerance`, or
            `folder` holds something else. Nothing is left behind then.
    """
    folder = Path(folder).absolute()
    _check_replaceable(folder)
    in_channels = _channels(preprocess)
    if onnx:
        onnx_packages()
    trained = _trained(network)
    shapes = [(batch, in_channels, preprocess.input_size, preprocess.input_size) for batch in _BATCHES]
    expected, leading = outputs_of(trained, shapes), leading_part(trained)
    if not leading:
        _check_classes(expected["model.py"][0], preprocess)
    arch = Arch(arch)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    title = f"A network of the space {space}, architecture {arch.key}: {parameters:,} parameters."
    text, requires = _model_source(trained, title, in_channels=in_channels, size=preprocess.input_size, leading=leading)
    with _appearing(folder) as partial:
        (partial / "model.py").write_text(text, encoding="utf-8")
        _write_json(partial / "arch.json", {"space": space, "key": arch.key, "values": dict(arch)})
        _write_json(partial / "preprocess.json", dataclasses.asdict(preprocess))
        save_file(_weights(trained), partial / "model.safetensors")
        _save_graphs(traced_part(trained), partial, shapes[0], onnx=onnx)
        differences = measure(expected, partial, shapes, leading=leading)
        check_differences(differences, tolerance, expected)
        files = sorted(path.name for path in partial.iterdir())
        parity = {
            "format": FORMAT,
            "differences": differences,
            "tolerance": tolerance,
            "inputs": {"seed": SEED, "shapes": [list(shape) for shape in shapes], "traced_batch": _BATCHES[0]},
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
    trained = _trained(network)
    expected = outputs_of(trained, shapes)
    differences = measure(expected, folder, shapes, leading=leading_part(trained))
    check_differences(differences, tolerance, expected)
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
    try:
        exec(compile((folder / "model.py").read_bytes(), module.__file__, "exec"), vars(module))
    except ImportError as error:
        raise InputError(f"{folder} needs {' and '.join(parity['requires'])}, but {error}") from error
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


def _channels(preprocess: Preprocess) -> int:
    """The number of input channels. Raises `InputError` for settings that contradict each other."""
    if not preprocess.mean or len(preprocess.mean) != len(preprocess.std):
        found = f"{len(preprocess.mean)} means and {len(preprocess.std)} deviations"
        raise InputError(f"preprocess has {found}; give one of each per channel")
    modes = ("bilinear", "bicubic", "area", "nearest", "nearest-exact")
    if preprocess.interpolation not in modes:
        raise InputError(f"interpolation is one of {', '.join(modes)}, not {preprocess.interpolation!r}")
    return len(preprocess.mean)


def _check_classes(outputs: Mapping[str, Tensor], preprocess: Preprocess) -> None:
    found = [tuple(output.shape) for output in outputs.values()]
    if preprocess.classes and found != [(_BATCHES[0], len(preprocess.classes))]:
        raise InputError(
            f"preprocess names {len(preprocess.classes)} classes, but for {_BATCHES[0]} images the network returns "
            f"{found}; leave classes empty for a network that does not classify whole images"
        )


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each with storage of its own."""
    state = trained.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"the state {name!r} is no tensor and cannot be exported")
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def _model_source(
    trained: nn.Module, title: str, *, in_channels: int, size: int, leading: int
) -> tuple[str, tuple[str, ...]]:
    """The text of model.py, and the packages it needs."""
    call, used = written(trained, indent=4, lead=len("return "))
    imported = {"functools": functools, "json": json, "Path": Path, "torch": torch, "nn": nn}
    code: Bundle = bundle(used, imported=imported, defined=_DEFINED)
    safe = title.replace("\\", "/").replace('"', "'")
    parts = [
        _HEADER.replace("TITLE", safe).replace("REQUIRES", " and ".join(code.requires)) + code.imports,
        code.definitions,
        _BUILD.replace("SHAPE", f"(N, {in_channels}, {size}, {size})").replace("CALL", call),
        _RUNTIME,
        _DETECT.replace("LEADING", str(leading)) if leading else _CLASSIFY,
    ]
    return "\n\n\n".join(part for part in parts if part), code.requires


def _save_graphs(trained: nn.Module, folder: Path, shape: Sequence[int], *, onnx: bool) -> None:
    images = torch.zeros(*shape, device="cpu", dtype=torch.float32)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(trained, (images,), dynamic_shapes=dynamic)
        torch.export.save(program, folder / "model.pt2")
        if onnx:
            path = folder / "model.onnx"
            torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)
    except Exception as error:  # whatever the tracer trips over is the network's doing
        raise InputError(f"the network cannot be traced with a dynamic batch: {one_line(error)}") from error


# -- the folder ------------------------------------------------------------------------------------------------------


def _holds_only_ours(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= _FILES | {"__pycache__"}


def _check_replaceable(folder: Path) -> None:
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not free and not (_holds_only_ours(folder) and (folder / "parity.json").exists()):
        raise InputError(f"{folder} holds something other than an export; give a folder that is new or empty")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name and place if all goes well and is removed if not."""
    partial, replaced = (folder.with_name(folder.name + ending) for ending in (".partial", ".replaced"))
    if replaced.exists() and not folder.exists():  # an earlier run was killed between the two renames below
        replaced.rename(folder)
    for stale in (partial, replaced):
        if stale.exists() and not _holds_only_ours(stale):
            raise InputError(f"{stale} is in the way of the export; move it")
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(partial)
        raise
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _parity(folder: Path) -> dict[str, Any]:
    """The checked parity.json of an export whose files are all there."""
    path = folder / "parity.json"
    if not path.is_file():
        raise InputError(f"{folder} is no export: it has no parity.json")
    try:
        parity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, names, shapes = parity["format"], set(parity["sha256"]), parity["inputs"]["shapes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); export the network again") from error
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, this release reads {FORMAT}; export the network again")
    if not shapes or not names >= {"model.py", "model.safetensors", "model.pt2"}:
        raise InputError(f"{path} is damaged (it lacks inputs or files); export the network again")
    for name in sorted(names):
        if not (folder / name).is_file():
            raise InputError(f"the export {folder} lacks {name}; export the network again")
    return parity


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- texts -----------------------------------------------------------------------------------------------------------

_DEFINED = ("build", "load", "predict", "finish", "_tensors", "_loaded", "_scaled")

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
    with torch.random.fork_rng(devices=[]):  # build() draws weights; the caller's generator stays where it is
        network = build()
    network.load_state_dict(_tensors(Path(folder) / "model.safetensors"))
    return network.eval()


@functools.cache
def _loaded() -> tuple[nn.Module, dict]:
    return load(), json.loads((Path(__file__).parent / "preprocess.json").read_text(encoding="utf-8"))


def _scaled(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Images, (N, C, H, W) from 0 to 255, of this height and width, in whole numbers again."""
    if x.shape[-2:] == size:
        return x
    antialias = mode in ("bilinear", "bicubic")
    return nn.functional.interpolate(x, size, mode=mode, antialias=antialias).clamp(0, 255).round()
'''

_CLASSIFY = '''def predict(images: torch.Tensor) -> object:
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
    size, mode, sides = preprocess["input_size"], preprocess["interpolation"], x.shape[-2:]
    if sides != (size, size):  # the shorter side to the size, then the centre, as in training
        height, width = (size * side // min(sides) for side in sides)
        x = _scaled(x, (height, width), mode)
        top, left = round((height - size) / 2), round((width - size) / 2)
        x = x[..., top : top + size, left : left + size]
    with torch.no_grad():
        outputs = network((x / 255 - mean) / std)
    if not preprocess["classes"]:
        return outputs
    names, ranked = preprocess["classes"], outputs.softmax(dim=1).sort(dim=1, descending=True)
    return [
        [(names[index], probability) for index, probability in zip(indices, values, strict=True)]
        for indices, values in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
    ]
'''

_DETECT = '''def finish(outputs: object) -> list:
    """The detections in a batch, of what model.pt2 returns for it."""
    with torch.no_grad():
        return _loaded()[0][LEADING:](outputs)


def predict(images: torch.Tensor | list[torch.Tensor]) -> list:
    """What the network finds in images.

    Args:
        images: uint8, (N, C, H, W) or (C, H, W), or a list of (C, H, W), of any sizes.

    Returns:
        per image a list of (class name, score, (x1, y1, x2, y2)), the likeliest first, in pixels of the image given;
        labels in place of names where there are none.
    """
    network, preprocess = _loaded()
    mean, std = (torch.tensor(preprocess[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    size, longest, inputs, scales = preprocess["input_size"], preprocess.get("longest", 0), [], []
    for image in images[None] if isinstance(images, torch.Tensor) and images.dim() == 3 else images:
        if image.dtype is not torch.uint8 or image.dim() != 3 or image.shape[0] != mean.numel():
            raise ValueError(f"an image is uint8, ({mean.numel()}, H, W), not {image.dtype}, {tuple(image.shape)}")
        sides, target = image.shape[-2:], (size, size)
        if longest:  # the shorter side to the size, unless the longer one would exceed this
            factor = min(size / min(sides), longest / max(sides))
            target = (max(1, round(sides[0] * factor)), max(1, round(sides[1] * factor)))
        x = _scaled(image[None].float(), target, preprocess["interpolation"])
        inputs.append(((x / 255 - mean) / std)[0])
        scales.append(torch.tensor([sides[1] / target[1], sides[0] / target[0]]).repeat(2))
    with torch.no_grad():
        found = network(inputs)
    names = preprocess["classes"]
    return [
        [
            (names[label - 1] if names else label, score, tuple(box))
            for label, score, box in zip(
                each["labels"].tolist(), each["scores"].tolist(), (each["boxes"] * scale).tolist(), strict=True
            )
        ]
        for each, scale in zip(found, scales, strict=True)
    ]
'''
