"""What the supernet of a classifier starts with: the weights of a trained network, or those of another run."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from supernet.chain import Chain, largest
from supernet.checked import shown
from supernet.data import Splits
from supernet.data.batches import Batches
from supernet.errors import InputError
from supernet.scoring.batch_norm import check_full, rebase_norms, take_full_statistics
from supernet.training.checkpoint import load_weights
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.folder import read_run
from supernet_tools.pipeline.run import WEIGHTS, read_summary

BATCHES, SIZE = 10, 64
"""Calibration batches, and images of each, that the norms are expressed by."""


def check_start(config: SupernetRun, chain: Chain) -> None:
    """Checks before images are read that the weights of a recipe fit its supernet, which may lie on the meta device.

    Raises:
        InputError: no such file or run, weights of another network (the first tensor that differs is named), or a
            space without a full network.
    """
    if not config.pretrained:
        return
    try:
        check_full(chain.space)
    except InputError as error:
        raise InputError(
            f"pretrained={shown(config.pretrained)} is for spaces in which every decision is ordered, such as "
            f"'elastic' and those of widths, and {chain.space.name!r} has others; leave it out"
        ) from error
    source = Path(config.pretrained)
    if source.is_dir():
        _check_run(source, chain, any_channels=True)
    else:
        from supernet.spaces.pretrained import check_pretrained  # loads timm, which takes a second

        check_pretrained(chain, source)


def load_start(config: SupernetRun, supernet: Chain, data: Splits) -> None:
    """Gives a supernet the weights that its recipe names, with its norms expressed by the calibration images.

    A classifier of other classes begins at zero. The full network then computes what it did in its original training,
    and batches of these images, normalised by their own statistics as a training does, hardly change that.
    """
    if not config.pretrained:
        return
    source, batches = Path(config.pretrained), calibration_batches(data)
    if source.is_dir():
        _load_run(source, supernet)
        if not read_run(source)["config"].get("pretrained"):  # its statistics are a mixture over all paths
            take_full_statistics(supernet, batches)
            return
    else:
        from supernet.spaces.pretrained import load_pretrained

        load_pretrained(supernet, source)
    rebase_norms(supernet, batches)


def starting_normalisation(config: SupernetRun, chain: Chain) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns the mean and deviation per channel that the weights of a recipe expect; None if they are not known."""
    if not config.pretrained:
        return None
    source = Path(config.pretrained)
    if source.is_dir():
        summary = read_summary(source)
        return summary.mean, summary.std
    from supernet.spaces.pretrained import expected_normalisation

    return expected_normalisation(chain)


def frozen_teacher(supernet: Chain) -> nn.Module:
    """Returns a copy of the largest network in eval mode, which no training changes.

    Raises:
        InputError: its classifier is new, so it predicts nothing.
    """
    network = supernet.subnet(largest(supernet.space)).eval().requires_grad_(False)
    weight = [parameter for parameter in network.parameters() if parameter.ndim == 2][-1:]
    if weight and not weight[0].any():
        raise InputError(
            "the teacher has a new classifier, since the weights of pretrained are for other classes; train the "
            "largest network first (largest_epochs), and name that run as pretrained"
        )
    return network


def calibration_batches(data: Splits, device: torch.device | str = "cpu") -> Batches:
    """Returns batches of the calibration images, all of one size, on a device."""
    size = min(SIZE, len(data.calibration))
    return Batches(data.calibration.to(device), size, min(BATCHES, len(data.calibration) // size))


# -- from another run -------------------------------------------------------------------------------------------------


def _check_run(folder: Path, chain: Chain, *, any_channels: bool = False) -> None:
    """Raises `InputError` unless a run has weights for a supernet, apart from the number of classes.

    With `any_channels` its images may have another number of channels, for a supernet built before the data are known.
    """
    document = read_run(folder)
    if document["kind"] != "supernet" or not (folder / WEIGHTS).exists():
        raise InputError(
            f"pretrained={str(folder)!r} holds no {WEIGHTS} of a classifier; name a finished run of "
            "tools/train_supernet.py, or a file of weights"
        )
    own = {name: tuple(tensor.shape) for name, tensor in chain.state_dict().items()}
    theirs = dict(_shapes(folder / WEIGHTS))
    channels = next((name for name, shape in own.items() if len(shape) == 4), "")  # of the first convolution
    for name in [*own, *sorted(theirs.keys() - own.keys())]:
        shapes = [shapes.get(name) for shapes in (theirs, own)]
        if shapes[0] == shapes[1]:
            continue
        if shapes[0] and shapes[1]:
            if name in _classifier(chain) and shapes[0][1:] == shapes[1][1:]:
                continue
            if any_channels and name == channels and shapes[0][:1] + shapes[0][2:] == shapes[1][:1] + shapes[1][2:]:
                continue
        actual, expected = ("missing" if shape is None else shape for shape in shapes)
        raise InputError(
            f"pretrained={str(folder)!r} is the run of another network: {name!r} is {actual} in its {WEIGHTS} and "
            f"{expected} here; give both the same space and settings"
        )


def _load_run(folder: Path, supernet: Chain) -> None:
    _check_run(folder, supernet)
    shapes = dict(_shapes(folder / WEIGHTS))
    changed = [name for name, tensor in supernet.state_dict().items() if tuple(tensor.shape) != shapes[name]]
    kept = {name: _parameter(supernet, name) for name in changed}
    for name, (module, last, tensor) in kept.items():  # shaped as in the file for a moment, then new and zero
        setattr(module, last, torch.nn.Parameter(tensor.new_zeros(shapes[name])))
    load_weights(folder / WEIGHTS, supernet)
    for module, last, tensor in kept.values():
        setattr(module, last, tensor)
        with torch.no_grad():
            tensor.zero_()


def _parameter(supernet: Chain, name: str) -> tuple[torch.nn.Module, str, Tensor]:
    path, _, last = name.rpartition(".")
    return supernet.get_submodule(path), last, supernet.get_parameter(name)


def _classifier(chain: Chain) -> list[str]:
    """Returns the names of the tensors whose first dimension is the number of classes."""
    head = [name for name, _ in chain.named_parameters() if name.startswith(f"{chain.step_paths[-1]}.")]
    return head[-2:]


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes of a file of weights, whose values are not read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield name, tuple(tensors.get_slice(name).get_shape())
    except SafetensorError as error:
        raise InputError(f"{file} is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error
