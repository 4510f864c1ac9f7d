"""Exports a network of a run as a standalone folder."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from supernet.blocks.resolution import without_resize
from supernet.config import Preprocess, from_dict
from supernet.errors import InputError
from supernet.export import export
from supernet.export.folder import check_replaceable
from supernet.files import read_json
from supernet.paths import inside
from supernet.space import Arch
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.run import Run


def export_folder(run: Run, arch: Arch, out: Path | None) -> Path:
    """The folder of an export. Raises `InputError`, before a network is trained for it, if it holds something else."""
    folder = out or inside(run.folder, "export", arch.key)
    check_replaceable(folder.absolute())
    return folder


def export_stage(
    run: Run, arch: Arch, network: nn.Module, *, onnx: bool = False, nms: bool = False, out: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Writes the standalone folder of a network.

    Args:
        run: supplies the preprocessing and the name of the space.
        arch: the architecture of the network.
        network: in eval mode.
        onnx: also write model.onnx.
        nms: also write the graphs of the whole detector; see `supernet.export.export`.
        out: the folder; `export/KEY` of the run by default.

    Returns:
        the folder and the parity report.
    """
    folder = export_folder(run, arch, out)
    preprocess = run.kind.preprocess(run.summary)
    exported, size = without_resize(network)  # an export resizes images before they reach its network
    if size is not None:
        preprocess = dataclasses.replace(preprocess, input_size=size)
    return folder, export(exported, folder, arch=arch, space=run.kind.space, preprocess=preprocess, onnx=onnx, nms=nms)


def preprocess_of(folder: Path) -> Preprocess:
    """What an exported network expects of images. Raises `InputError` if its preprocess.json is missing or damaged."""
    from detection.config import DetectorPreprocess

    file = folder / "preprocess.json"
    document = read_json(file)
    return from_dict(DetectorPreprocess if "longest" in document else Preprocess, document, owner=str(file))


def is_detector(preprocess: Preprocess) -> bool:
    """Whether this is what a detector expects."""
    from detection.config import DetectorPreprocess

    return isinstance(preprocess, DetectorPreprocess)


def check_repeats(run: Run, repeats: int) -> None:
    """Raises `InputError`, before a network is built for it, unless the run is that of a detector with NAS-FPN."""
    if not isinstance(run.config, DetectorRun) or run.config.neck != "nasfpn":
        raise InputError(f"repeats={repeats} is for detectors with NAS-FPN, and {run.folder} is none; leave it out")


def shortened(network: nn.Module, repeats: int) -> nn.Module:
    """A detector with NAS-FPN that reads its pyramid after fewer repeats (`detection.read_out`).

    Raises:
        InputError: the network is something else, or has fewer repeats.
    """
    from detection import DetectorNetwork, read_out

    if not isinstance(network, DetectorNetwork):
        raise InputError(f"repeats={repeats} is for detectors with NAS-FPN, and this network is none; leave it out")
    return read_out(network, repeats)
