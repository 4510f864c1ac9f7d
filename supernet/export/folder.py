"""A trained network as a folder that needs only torch: readable source, weights, `torch.export` and ONNX graphs.

Detectors need torchvision too. Their graphs take images of any size and return the named raw outputs of the heads; the
rest is in the source and, with an option, in a second graph that ends with non-maximum suppression.

An export is complete or absent: before the folder gets its name, every artefact is loaded in a process that cannot
import this project, and compared with the trained network.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import os
import shutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from supernet.chain import Bound, Searchable
from supernet.checked import checked_arguments, is_number, is_whole, short_names, shown
from supernet.config import Preprocess
from supernet.data import opening
from supernet.errors import InputError, UnwritableError
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
from supernet.export.runtime import classify, detect, weights
from supernet.export.source import Bundle, bundle, check_copyable
from supernet.paths import file_operation, work_saved
from supernet.space import Arch
from supernet.strict_json import parse_json, read_text

__all__ = ["check_parity", "export", "expression", "load_exported"]

FORMAT = 1
"""The version of the folder's layout, written to parity.json."""
DETECTOR_FORMAT = 2
"""The same of a detector: 2 has batch norm of its own for every level, and resizes images as training does."""

_GRAPHS = {"model.pt2", "model.onnx", "detector.pt2", "detector.onnx"}
_FILES = {"model.py", "model.safetensors", "arch.json", "preprocess.json", "parity.json"} | _GRAPHS
_BATCHES = (2, 1, 3)  # the first is traced: a batch of one would be taken for a constant


@checked_arguments
def export(
    network: nn.Module,
    folder: str | Path,
    *,
    arch: Mapping[str, Any],
    space: str,
    preprocess: Preprocess,
    onnx: bool = False,
    nms: bool = False,
    tolerance: float = 1e-5,
) -> dict[str, Any]:
    """Writes a standalone folder: `model.py` with `build()`, `load()` and `predict(images)`, weights and graphs.

    Args:
        network: takes (N, C, input_size, input_size), where C is the length of `preprocess.mean`; returns a tensor or
            (nested) tuples, lists or dicts of tensors, and logits (N, classes) where `preprocess` names classes. It is
            not changed: a copy is exported, in eval mode, on the CPU, in float32. An `nn.Sequential` with a module
            whose attribute `traceable` is false is a detector: it returns per image a dict of `boxes`, `scores` and
            `labels`, which count from 1. The graphs hold the modules before that one, and `finish` in model.py turns
            their outputs into detections.
        folder: created, or replaced if it is an export.
        arch: the architecture. It is only recorded, like `space`, the name of its space.
        onnx: also write `model.onnx`.
        nms: for a RetinaNet, also write `detector.pt2` and, with `onnx`, `detector.onnx`: the whole detector with
            non-maximum suppression, see `detection.retinanet.RetinaBoxes.detected`.
        tolerance: largest allowed difference of any artefact's output from the network's: absolute while outputs are
            within ±1, relative to the largest output beyond.

    Returns:
        the content of parity.json: differences, inputs, tolerance, parameters, required packages, SHA-256 of the files.

    Raises:
        InputError: the network cannot be written, or not with `nms`; an artefact does not load or differs by more than
            `tolerance`; or `folder` holds something else. Nothing is left behind in that case.
    """
    if not is_number(tolerance, 0, 1e6):
        raise InputError(f"tolerance={tolerance!r} should be a number of at least 0")
    folder = Path(folder).absolute()
    check_replaceable(folder)
    in_channels = _channels(preprocess)
    if onnx:
        onnx_packages()
    trained = _trained(network)
    leading = leading_part(trained)
    if nms and not (leading and isinstance(trained, nn.Sequential) and hasattr(trained[leading], "detected")):
        raise InputError("nms=True is for RetinaNet, whose detections can be traced; leave it out for this network")
    shapes = _shapes(in_channels, preprocess, detector=bool(leading))
    expected = outputs_of(trained, shapes)
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
        (partial / "model.safetensors").chmod((partial / "model.py").stat().st_mode & 0o777)  # safetensors writes 0600
        _save_graph(traced_part(trained), partial / "model", shapes[0], onnx=onnx, sizes=bool(leading))
        if nms:
            detected = traced_part(trained, "detected")
            _save_graph(detected, partial / "detector", shapes[0], onnx=onnx, sizes=True)
        differences = measure(expected, partial, shapes, leading=leading)
        check_differences(differences, tolerance, expected)
        files = sorted(path.name for path in partial.iterdir())
        parity = {
            "format": DETECTOR_FORMAT if leading else FORMAT,
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


@checked_arguments
def check_parity(network: nn.Module, folder: str | Path, *, tolerance: float = 1e-5) -> dict[str, float]:
    """Compares an export with a network again, on the inputs of its first comparison. Runs the folder's model.py.

    Returns:
        the largest absolute difference of any output, per artefact.

    Raises:
        InputError: `folder` is not an export, an artefact does not load, or a difference exceeds `tolerance`.
    """
    folder = Path(folder).absolute()
    shapes = [tuple(shape) for shape in _parity(folder)["inputs"]["shapes"]]
    trained = _trained(network)
    expected = outputs_of(trained, shapes)
    differences = measure(expected, folder, shapes, leading=leading_part(trained))
    check_differences(differences, tolerance, expected)
    return differences


def load_exported(folder: str | Path) -> nn.Module:
    """Returns the network of an export, in eval mode on the CPU.

    This executes the folder's model.py, which can do everything that you can: load only folders that you trust. The
    hashes in parity.json find damage and forgotten edits; they lie beside the code, so they prove nothing about who
    wrote it.

    Raises:
        InputError: `folder` is not an export, its source or weights have changed since they were written, or the source
            fails; the file is named.
    """
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"an export is given by its folder, not by {folder!r}")
    folder = Path(folder).absolute()
    parity = _parity(folder)
    for name in ("model.py", "model.safetensors"):
        if _sha256(folder / name) != parity["sha256"][name]:
            raise InputError(f"{folder / name} has changed since it was exported; export the network again")
    # compiled here, so that no __pycache__ appears in the folder; registered, since dataclasses look their module up
    module = types.ModuleType(f"exported_{parity['sha256']['model.py'][:16]}")
    module.__file__ = str(folder / "model.py")
    sys.modules[module.__name__] = module
    try:
        exec(compile((folder / "model.py").read_bytes(), module.__file__, "exec"), vars(module))
        network = module.load(folder)
    except ImportError as error:
        raise InputError(f"{folder} needs {' and '.join(parity['requires'])}, but {one_line(error)}") from error
    except SyntaxError as error:
        where = f"line {error.lineno}: {error.msg}"
        raise InputError(f"{module.__file__} is not Python ({where}); export the network again") from error
    except AttributeError as error:
        problem = one_line(error) if hasattr(module, "load") else "it defines no load()"
        raise InputError(f"{module.__file__} cannot be loaded: {problem}; export the network again") from error
    except (Exception, SystemExit) as error:  # the code of a folder may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"{module.__file__} cannot be loaded with the weights in model.safetensors ({reason}); export the network "
            "again"
        ) from error
    finally:
        if not hasattr(module, "load"):
            sys.modules.pop(module.__name__, None)
    if not isinstance(network, nn.Module):
        raise InputError(f"load() of {module.__file__} returns a {type(network).__name__}, not a network")
    return network


# -- what is exported ------------------------------------------------------------------------------------------------


def _trained(network: nn.Module) -> nn.Module:
    """Returns the copy that is exported. Raises `InputError` for supernets and for classes that cannot be copied."""
    for part in network.modules():
        if isinstance(part, Searchable | Bound):
            raise InputError("this is a supernet; export the network of one architecture, supernet.subnet(arch)")
        check_copyable(type(part).__module__, type(part).__name__)
    return copy.deepcopy(network).cpu().float().eval()


def _channels(preprocess: Preprocess) -> int:
    """Returns the number of input channels. Raises `InputError` for an unknown interpolation."""
    modes = ("bilinear", "bicubic", "area", "nearest", "nearest-exact")
    if preprocess.interpolation not in modes:
        raise InputError(f"interpolation is one of {', '.join(modes)}, not {preprocess.interpolation!r}")
    return len(preprocess.mean)


def _check_classes(outputs: Mapping[str, Tensor], preprocess: Preprocess) -> None:
    """Raises `InputError` unless the outputs are one score per class that `preprocess` names."""
    shapes = [tuple(output.shape) for output in outputs.values()]
    if preprocess.classes and shapes != [(_BATCHES[0], len(preprocess.classes))]:
        raise InputError(
            f"preprocess names {len(preprocess.classes)} classes, but for {_BATCHES[0]} images the network returns "
            f"{shapes}; leave classes empty for a network that does not classify whole images"
        )


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers, each with storage of its own."""
    state = trained.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"the state {name!r} is not a tensor, so it cannot be exported; keep it as a buffer")
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def _model_source(
    trained: nn.Module, title: str, *, in_channels: int, size: int, leading: int
) -> tuple[str, tuple[str, ...]]:
    """Returns the text of model.py and the packages it needs."""
    call, used = written(trained, indent=4, lead=len("return "))
    imported = {"functools": functools, "json": json, "Path": Path, "Any": Any, "torch": torch, "nn": nn}
    if not leading:
        imported["contextlib"] = contextlib
    runtime = {
        **_functions(weights),
        **({} if leading else _functions(opening)),
        **_functions(detect if leading else classify),
    }
    constants = "" if leading else "\n".join(f"{name} = {getattr(opening, name)!r}" for name in _OPENING)
    defined = ["build", "finish", *(["LEADING"] if leading else _OPENING), *runtime]
    code: Bundle = bundle(used, imported=imported, defined=defined)
    safe = title.replace("\\", "/").replace('"', "'")
    parts = [
        _HEADER.replace("TITLE", safe).replace("REQUIRES", " and ".join(code.requires)) + code.imports,
        code.definitions,
        f"LEADING = {leading}  # modules in the graphs; `finish` runs those after them" if leading else "",
        _BUILD.replace("SHAPE", f"(N, {in_channels}, {size}, {size})").replace("CALL", call),
        constants,
        *runtime.values(),
        "" if leading else _SCRIPT,
    ]
    return "\n\n\n".join(part.rstrip("\n") for part in parts if part) + "\n", code.requires


def _shapes(channels: int, preprocess: Preprocess, *, detector: bool) -> list[tuple[int, int, int, int]]:
    """Returns the shapes of the inputs that are compared; detectors take images of any height and width."""
    size, longest = preprocess.input_size, getattr(preprocess, "longest", 0)
    other = longest or size + size // 4
    last = (size, other) if longest else (size, size)  # the shorter side alone may be too small for the last map
    sides = ((size, other), (other, size), last) if detector else ((size, size),) * 3
    return [(batch, channels, *pair) for batch, pair in zip(_BATCHES, sides, strict=True)]


def _save_graph(traced: nn.Module, path: Path, shape: Sequence[int], *, onnx: bool, sizes: bool) -> None:
    """Writes PATH.pt2, and with `onnx` PATH.onnx, of a dynamic batch and with `sizes` a dynamic height and width."""
    images = torch.zeros(*shape, device="cpu", dtype=torch.float32)
    traced = copy.deepcopy(traced).to(memory_format=torch.contiguous_format)  # torch warns of weights in other orders
    names = {0: "batch", 2: "height", 3: "width"} if sizes else {0: "batch"}
    dynamic = ({axis: torch.export.Dim(name, min=1) for axis, name in names.items()},)
    # Sizes of 1 must stay dynamic, or maps of a single row would be traced as a special case; torch.onnx does the same.
    general = torch.fx.experimental._config.patch(backed_size_oblivious=sizes)  # type: ignore[attr-defined]
    try:
        with general, torch.no_grad():
            program = torch.export.export(
                traced, (images,), dynamic_shapes=dynamic, prefer_deferred_runtime_asserts_over_guards=sizes
            )
        content = io.BytesIO()  # written by Python: torch's own writer aborts the process when the disk is full
        torch.export.save(program, content)
        if onnx:
            outputs = traced(images)
            torch.onnx.export(
                program,
                (),
                path.with_suffix(".onnx"),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["images"] if sizes else None,
                output_names=list(outputs) if isinstance(outputs, dict) else None,
            )
    except OSError:  # from writing the ONNX file; `_appearing` reports it
        raise
    except Exception as error:  # the tracer fails with any kind of error
        what = "batch, height and width" if sizes else "batch"
        raise InputError(f"the network cannot be traced with a dynamic {what}: {one_line(error)}") from error
    path.with_suffix(".pt2").write_bytes(content.getvalue())


# -- the folder ------------------------------------------------------------------------------------------------------


def _holds_only_ours(folder: Path) -> bool:
    """Returns whether a folder holds only files that an export writes."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= _FILES | {"__pycache__"}


def check_replaceable(folder: Path) -> None:
    """Raises `InputError` unless a folder is new, empty or an export, whose place another export can take."""
    if not short_names(folder):
        raise InputError(f"folder={shown(str(folder))} cannot be a folder's name; give a shorter one")
    if Path.cwd().is_relative_to(folder):  # which the export would replace while this process works in it
        raise InputError(f"{folder} is or holds the working folder; give another folder for the export")
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "a link that leads nowhere" if there.is_symlink() else "a file"
        raise InputError(f"{there} is {what}, not a folder; give another folder for the export")
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not free and not (_holds_only_ours(folder) and (folder / "parity.json").exists()):
        raise InputError(f"{folder} holds something other than an export; give a folder that is new or empty")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder beside the wanted one, which replaces it if all goes well and is removed otherwise."""
    partial, replaced = (folder.with_name(folder.name + ending) for ending in (".partial", ".replaced"))
    if replaced.exists() and not folder.exists():  # an earlier run was killed between the two renames below
        replaced.rename(folder)
    for stale in (partial, replaced):
        if stale.is_symlink() or (stale.exists() and not _holds_only_ours(stale)):
            raise InputError(f"{stale} is in the way of the export; move it")
        shutil.rmtree(stale, ignore_errors=True)
    try:
        file_operation()
        partial.mkdir(parents=True)
        file_operation()
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)  # torch's error for a full disk
        if full or isinstance(error, (OSError, SafetensorError)):
            before = "the export that was there before is intact" if folder.exists() else "nothing is left of it"
            raise UnwritableError(
                f"the export {folder} cannot be written ({one_line(error)}); {before}. Make room or give "
                "another folder, and export again"
            ) from error
        raise
    file_operation()
    if folder.exists():
        folder.rename(replaced)
        file_operation()
    partial.rename(folder)
    work_saved.set()
    file_operation()
    shutil.rmtree(replaced, ignore_errors=True)


def _parity(folder: Path) -> dict[str, Any]:
    """Returns the checked parity.json of an export, all of whose files exist."""
    path = folder / "parity.json"
    if not path.is_file():
        raise InputError(f"{folder} is not an export: it has no parity.json")
    try:
        parity: dict[str, Any] = parse_json(read_text(path))
        version, hashes, shapes = parity["format"], dict(parity["sha256"]), parity["inputs"]["shapes"]
        names, parity["requires"] = set(hashes), [str(name) for name in parity.get("requires", ())]
        if not all(len(shape) == 4 and all(is_whole(side, 1) for side in shape) for shape in shapes):
            raise ValueError("inputs.shapes is not a list of shapes (N, C, H, W)")
        if any(Path(name).name != name for name in names):
            raise ValueError("sha256 names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); export the network again") from error
    if version == FORMAT and _is_detector(folder):
        raise InputError(
            f"{folder} is a detector exported by an older release, which normalised all levels by the same statistics "
            "and resized images by another routine than training; train and export it again"
        )
    if version not in (FORMAT, DETECTOR_FORMAT):
        raise InputError(
            f"{path} has format {version}, this release reads {FORMAT} and {DETECTOR_FORMAT}; export the network again"
        )
    if not shapes or not names >= {"model.py", "model.safetensors", "model.pt2"}:
        raise InputError(f"{path} is damaged (it lacks inputs or files); export the network again")
    for name in sorted(names):
        if not (folder / name).is_file():
            raise InputError(f"the export {folder} lacks {name}; export the network again")
    return parity


def _is_detector(folder: Path) -> bool:
    """Whether an export holds a detector, whose preprocessing knows a longest side."""
    try:
        return "longest" in parse_json(read_text(folder / "preprocess.json"))
    except (OSError, ValueError, TypeError):
        return False


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- texts -----------------------------------------------------------------------------------------------------------

_HEADER = '''"""TITLE

Needs only REQUIRES. `load()` returns the trained network; `predict(images)` prepares images and runs it.
"""

from __future__ import annotations

'''

_BUILD = '''def build() -> nn.Module:
    """The network with fresh weights; it takes float32 images SHAPE, normalised as in preprocess.json."""
    return CALL'''


_OPENING = ("FRAMES", "ORIENTATION", "DEPTHS")
"""Constants of `supernet.data.opening`, whose functions open image files in model.py."""

_SCRIPT = """if __name__ == "__main__":
    import sys

    sys.exit(_main(sys.argv[1:]))"""


def _functions(module: types.ModuleType) -> dict[str, str]:
    """Returns the source of the functions that a runtime module defines, in their order; `build` is left out."""
    functions = (value for value in vars(module).values() if inspect.isroutine(value))
    own = [function for function in functions if function.__module__ == module.__name__]
    return {function.__name__: inspect.getsource(function) for function in own if function.__name__ != "build"}
