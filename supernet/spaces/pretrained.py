"""Weights of trained networks from files: read without running code, renamed where another library named them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from supernet.blocks.elastic import AS_GIVEN
from supernet.blocks.mbconv import sort_channels
from supernet.blocks.plain import ConvBNAct
from supernet.chain import Chain
from supernet.checked import File, checked_arguments
from supernet.errors import InputError
from supernet.spaces.elastic import IMAGENET, TORCHVISION_PREFIX, ElasticChain, normalisation, torchvision_network
from supernet.spaces.widths import WidthChain

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
HUB = "timm"
"""Stands for the weights that timm publishes, instead of a file."""
PUBLISHED = {"resnet-50-widths": "resnet50", "mobilenetv2-widths": "mobilenet_v2"}
"""The network of torchvision whose tensors a width space has at its largest, in the same order."""


@checked_arguments
def load_pretrained(supernet: Chain, file: File, *, sort: bool = True) -> None:
    """Loads the weights of a network into the supernet that was made of it.

    A classifier for another number of classes is not loaded: the new one begins at zero, so that its first gradients do
    not disturb the features.

    Args:
        supernet: a supernet of the space "elastic", or of "resnet-50-widths" or "mobilenetv2-widths" with headroom=1,
            which take the weights of torchvision's network; changed in place.
        file: a state dict of timm's or torchvision's network or of EfficientNet-PyTorch, written by safetensors or
            `torch.save`; or "timm" for the weights that timm publishes for the network, which are downloaded unless
            they are in the cache of huggingface_hub.
        sort: whether to sort channels by importance: the middle ones (see `sort_channels`), or those of every group of
            widths (see `sort_widths`).

    Raises:
        InputError: another space; weights that cannot be downloaded; no such file, one that is damaged or holds more
            than weights, or the weights of another network: the first tensor that differs is named, with both shapes.
    """
    model, tensors = _network_of(supernet, file)
    model.load_state_dict(tensors, strict=False)  # counters of batches may be missing
    if isinstance(supernet, ElasticChain):
        supernet.copy_weights(model)
        if sort:
            sort_channels(supernet)
    else:
        assert isinstance(supernet, WidthChain)
        supernet.load_state_dict(dict(zip(supernet.state_dict(), model.state_dict().values(), strict=True)))
        if sort:
            sort_widths(supernet)


@checked_arguments
def check_pretrained(supernet: Chain, file: File) -> None:
    """Checks that a file holds weights for a supernet, which may lie on the meta device and stays as it is.

    Raises:
        InputError: see `load_pretrained`; another number of channels in the images is left to it.
    """
    with torch.device("meta"):
        _network_of(supernet, file, any_channels=True)


def expected_normalisation(supernet: Chain) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns the mean and deviation per channel, on the scale 0..1, that the published weights of a supernet expect.

    None if they are not known, or for another number of channels.
    """
    if isinstance(supernet, WidthChain) and supernet.space.name in PUBLISHED and supernet.input_shape[0] == 3:
        return IMAGENET["mean"], IMAGENET["std"]
    return normalisation(supernet) if isinstance(supernet, ElasticChain) else None


@torch.no_grad()
def sort_widths(chain: WidthChain) -> None:
    """Sorts the channels of every group of a width space by importance, in place, the most important first.

    The importance of a channel is the sum of the absolute weights with which layers read it (Cai et al., 2020, for the
    middle channels of a block), over all layers that do. Apart from the order of its sums, the largest architecture
    computes the same.
    """
    importance: dict[str, Tensor] = {}
    for _, entry, _ in chain.elastic_layers():
        weight = entry.layer.conv.weight if isinstance(entry.layer, ConvBNAct) else entry.layer.weight
        depthwise = isinstance(entry.layer, ConvBNAct) and entry.layer.groups > 1
        if entry.reads != AS_GIVEN and not depthwise:
            read = weight.abs().transpose(0, 1).flatten(1).sum(1)
            importance[entry.reads] = importance.get(entry.reads, torch.zeros_like(read)) + read
    chain.permute({name: value.argsort(descending=True, stable=True) for name, value in importance.items()})


def _network_of(
    supernet: Chain, file: str | Path, *, any_channels: bool = False
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns the network that a supernet is made of, with fresh weights, and the checked tensors for it.

    With `any_channels` the network reads images of as many channels as that of the file.
    """
    if isinstance(supernet, WidthChain) and supernet.space.name in PUBLISHED:
        tensors, model = read_weights(file), _published(supernet)
        return model, fitting(tensors, model, source=str(file))
    if not isinstance(supernet, ElasticChain) or supernet.fresh is None:
        raise InputError(
            f"the space {supernet.space.name!r} takes no weights of a network; weights from a file need the space "
            f"'elastic', with the network's name as its setting 'model', or {' or '.join(map(repr, PUBLISHED))}"
        )
    tensors = read_weights(published_weights(supernet.fresh()) if str(file) == HUB else file)
    stem = next((tensors[name] for name in STEMS if name in tensors), None)
    channels = {"in_channels": stem.shape[1]} if any_channels and stem is not None and stem.ndim == 4 else {}
    model = supernet.fresh(**channels)
    return model, fitting(tensors, model, source=str(file))


def _published(chain: WidthChain) -> nn.Module:
    """Returns torchvision's network with the tensors of a width space. Raises `InputError` if the space is another."""
    name = f"{TORCHVISION_PREFIX}{PUBLISHED[chain.space.name]}"
    own = chain.state_dict()
    classes, channels = own[list(own)[-1]].shape[0], chain.input_shape[0]
    model = torchvision_network(name, num_classes=classes, input_size=224, in_channels=channels, dropout=0.0)
    theirs = model.state_dict()
    for (mine, tensor), other in zip(own.items(), theirs.values(), strict=False):
        if tensor.shape != other.shape:
            raise InputError(
                f"{chain.space.name!r} is as wide as {name} only with headroom=1 and its other settings as they are: "
                f"{mine!r} is {tuple(tensor.shape)} here and {tuple(other.shape)} there"
            )
    if len(own) != len(theirs):
        raise InputError(f"{chain.space.name!r} is as deep as {name} only with its settings as they are")
    return model


def published_weights(model: nn.Module) -> Path:
    """Returns the file of the weights that timm publishes for a network, a safetensors file, which holds no code.

    It is downloaded unless it is in the cache of huggingface_hub.

    Args:
        model: a network of timm, which may lie on the meta device.

    Raises:
        InputError: timm publishes none for it, or they cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    config = getattr(model, "pretrained_cfg", {})
    name, repository = config.get("architecture", type(model).__name__), config.get("hf_hub_id")
    if not repository:
        raise InputError(f"timm publishes no weights of {name!r}; give a file of weights as pretrained")
    repository, _, revision = str(repository).partition("@")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision or None))
    except Exception as error:  # huggingface_hub and its HTTP client raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"the weights of {name!r} cannot be downloaded from {repository} ({type(error).__name__}: {reason}); "
            "without a network connection give a file of weights as pretrained"
        ) from error


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name; nothing in the file is imported or executed.

    Raises:
        InputError: see `load_pretrained`.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a file of weights (.safetensors, .pth)")
    saved = read_saved(path)
    for wrapper in WRAPPERS:
        if isinstance(saved, Mapping) and isinstance(saved.get(wrapper), Mapping):
            saved = saved[wrapper]
            break
    return {name.removeprefix("module."): tensor for name, tensor in state_dict_of(saved, path).items()}


def read_saved(path: Path) -> Any:
    """Returns what a file of safetensors or `torch.save` holds, as tensors and plain containers.

    Raises:
        InputError: it cannot be read, is damaged, or holds more than that.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu") if path.suffix in PICKLED else load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch raises many types for damaged files, and its text advises to run the code
        raise InputError(
            f"{path} is damaged or holds more than weights, and code is not run; save `model.state_dict()` alone, or "
            "download the file again"
        ) from error


def state_dict_of(saved: Any, path: Path) -> dict[str, Tensor]:
    """Returns what a file holds if that is tensors by name. Raises `InputError` otherwise."""
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(t, Tensor) for t in saved.values()):
        raise InputError(f"{path} does not hold a state dict; save `model.state_dict()` alone")
    return {str(name): tensor for name, tensor in saved.items()}


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
