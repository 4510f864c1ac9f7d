"""Weights from files for networks of timm: read without running code, renamed where another library named them."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from supernet.blocks.mbconv import sort_channels
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.spaces.elastic import ElasticChain

PICKLED = (".pth", ".pt", ".bin", ".tar")
STEMS = (
    "conv_stem.weight",
    "_conv_stem.weight",
    "conv1.weight",
    "conv1.0.weight",
    "features.0.0.weight",
    "patch_embed.proj.weight",
)
CLASSIFIERS = ("fc", "head", "classifier", "classifier.3", "classifier.1")
"""Names of the last layer in timm and torchvision."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training scripts keep the weights among other things; averaged weights come first, as in timm."""


def load_pretrained(supernet: Chain, file: str | Path, *, sort: bool = True) -> None:
    """Loads the weights of a network into the supernet that was made of it.

    A classifier for another number of classes is not loaded: the new one begins at zero, so that its first gradients do
    not disturb the features.

    Args:
        supernet: a supernet of the space "elastic", changed in place.
        file: a state dict of timm's network or of EfficientNet-PyTorch, written by safetensors or `torch.save`.
        sort: whether to sort the middle channels by importance (see `sort_channels`).

    Raises:
        InputError: another space; no such file, one that is damaged or holds more than weights, or the weights of
            another network: the first tensor that differs is named, with both shapes.
    """
    chain, model, tensors = _network_of(supernet, file)
    model.load_state_dict(tensors, strict=False)  # counters of batches may be missing
    chain.copy_weights(model)
    if sort:
        sort_channels(chain)


def check_pretrained(supernet: Chain, file: str | Path) -> None:
    """Checks that a file holds weights for a supernet, which may lie on the meta device and stays as it is.

    Raises:
        InputError: see `load_pretrained`; another number of channels in the images is left to it.
    """
    with torch.device("meta"):
        _network_of(supernet, file, any_channels=True)


def _network_of(
    supernet: Chain, file: str | Path, *, any_channels: bool = False
) -> tuple[ElasticChain, nn.Module, dict[str, Tensor]]:
    """Returns the supernet, the network that it is made of with fresh weights, and the checked tensors for it.

    With `any_channels` the network reads images of as many channels as that of the file.
    """
    if not isinstance(supernet, ElasticChain) or supernet.fresh is None:
        raise InputError(
            f"the space {supernet.space.name!r} takes no weights of a network; weights from a file need the space "
            "'elastic', with the network's name as its setting 'model'"
        )
    tensors = read_weights(file)
    stem = next((tensors[name] for name in STEMS if name in tensors), None)
    channels = {"in_channels": stem.shape[1]} if any_channels and stem is not None and stem.ndim == 4 else {}
    model = supernet.fresh(**channels)
    return supernet, model, fitting(tensors, model, source=str(file))


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; nothing in the file is imported or executed.

    Raises:
        InputError: see `load_pretrained`.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a file of weights (.safetensors, .pth)")
    try:
        pickled = path.suffix in PICKLED
        saved: Any = torch.load(path, weights_only=True, map_location="cpu") if pickled else load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is truncated or holds more than weights, and code is not run ({reason})") from error
    for wrapper in WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(wrapper), Mapping):
            saved = saved[wrapper]
            break
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(t, Tensor) for t in saved.values()):
        raise InputError(f"{path} does not hold a state dict; save `model.state_dict()` alone")
    return {str(name).removeprefix("module."): tensor for name, tensor in saved.items()}


def fitting(tensors: Mapping[str, Tensor], model: nn.Module, *, source: str) -> dict[str, Tensor]:
    """Returns a state dict that fits a network of timm; a classifier of other classes becomes zero.

    Args:
        tensors: named as in timm or in EfficientNet-PyTorch.
        model: may lie on the meta device.
        source: what messages call the tensors.

    Raises:
        InputError: a tensor is missing, unexpected or of another shape, or holds values that are not finite.
    """
    tensors = dict(_renamed(tensors, model) if "_conv_stem.weight" in tensors else tensors)
    own = model.state_dict()
    last = next(name for name in CLASSIFIERS if f"{name}.weight" in own)
    classifier = (f"{last}.weight", f"{last}.bias")
    shapes = [t[classifier[0]].shape if classifier[0] in t else torch.Size() for t in (tensors, own)]
    if shapes[0] != shapes[1] and shapes[0][1:] == shapes[1][1:] and classifier[1] in tensors:
        tensors |= {name: torch.zeros_like(own[name], device="cpu") for name in classifier}
    for name in [*own, *sorted(tensors.keys() - own.keys())]:
        if name.endswith("num_batches_tracked") and (name in own) != (name in tensors):
            continue
        if name not in tensors or name not in own or tensors[name].shape != own[name].shape:
            theirs, ours = (tuple(t[name].shape) if name in t else "missing" for t in (tensors, own))
            raise InputError(
                f"{source} holds the weights of another network: {name!r} is {theirs} in the file and {ours} in the "
                "network; name the network that the file belongs to"
            )
        if tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            raise InputError(f"{source} holds values that are not finite, the first in {name!r}")
    return {name: tensor for name, tensor in tensors.items() if name in own}


# -- names of EfficientNet-PyTorch ------------------------------------------------------------------------------------

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = _EXPANDED | {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _renamed(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Returns the tensors of EfficientNet-PyTorch, which numbers blocks through all stages, under timm's names."""
    places = [(stage, index) for stage, blocks in enumerate(model.blocks) for index in range(len(blocks))]
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match is None:
            layer, _, kind = name.partition(".")
            renamed[f"{_OUTSIDE.get(layer, layer)}.{kind}"] = tensor
        elif int(match[1]) < len(places):
            stage, index = places[int(match[1])]
            names = _EXPANDED if hasattr(model.blocks[stage][index], "conv_pwl") else _SEPARABLE
            renamed[f"blocks.{stage}.{index}.{names.get(match[2], match[2])}.{match[3]}"] = tensor
        else:
            renamed[name] = tensor
    return renamed
