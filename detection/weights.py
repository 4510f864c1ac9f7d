"""Loading of backbone weights from networks and files of this project, torchvision or timm."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detection.backbone import named_backbone_steps
from detection.resnet import from_torchvision
from supernet.chain import has_numbered_steps
from supernet.checked import checked_arguments
from supernet.errors import InputError


@checked_arguments
def load_backbone(detector: nn.Module, source: nn.Module | Mapping[str, Tensor] | str | Path) -> None:
    """Copies the weights of a classification network into the backbone of a detector; the classifier head is ignored.

    Args:
        detector: a supernet, or the network of one architecture.
        source: for a supernet a classification supernet, for a network `supernet.subnet(arch)`; or its state dict; or
            a file of the state dict, written by safetensors or `torch.save`. A ResNet's tensors may have the names of
            torchvision and timm.

    Raises:
        InputError: there is no such file, it is not a state dict, `detector` is none, or a tensor is missing,
            unexpected or of another shape.
    """
    for block, tensors in backbone_weights(detector, source):
        block.load_state_dict(tensors, strict=False)


def backbone_weights(
    detector: nn.Module, source: nn.Module | Mapping[str, Tensor] | str | Path
) -> list[tuple[nn.Module, Mapping[str, Tensor]]]:
    """Returns pairs of a backbone's block and its tensors in the source, checked but not loaded.

    Args:
        detector, source: see `load_backbone`.

    Raises:
        InputError: see `load_backbone`.
    """
    tensors = _tensors(source)
    if has_numbered_steps(tensors):
        raise InputError(
            "the backbone's weights name steps by numbers, as an older release did; train the backbone again"
        )
    pairs = list[tuple[nn.Module, Mapping[str, Tensor]]]()
    for path, step in named_backbone_steps(detector):
        start = path.removeprefix("backbone.") + "."
        source_tensors = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        own = step.block.state_dict()
        for name in sorted(own.keys() | source_tensors.keys()):
            if name.endswith("num_batches_tracked"):  # frozen batch norm has no such counter
                continue
            if name not in own or name not in source_tensors or own[name].shape != source_tensors[name].shape:
                raise InputError(
                    f"the weights belong to another backbone: tensor {start + name!r} is missing or has another shape; "
                    "for the detector of one architecture give supernet.subnet(arch)"
                )
        pairs.append((step.block, source_tensors))
    if not pairs:
        raise InputError(f"{type(detector).__name__} is no detector: it has no backbone to give weights to")
    return pairs


def _tensors(source: nn.Module | Mapping[str, Tensor] | str | Path) -> Mapping[str, Tensor]:
    if isinstance(source, nn.Module | Mapping):
        return from_torchvision(source.state_dict() if isinstance(source, nn.Module) else source)
    try:
        saved = torch.load(source, weights_only=True, map_location="cpu") if _pickled(source) else load_file(source)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist; has the training of the backbone finished?") from None
    except SafetensorError as error:
        raise InputError(f"{source} is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(f"{source} is truncated or holds more than weights ({_first_line(error)})") from error
    if not isinstance(saved, Mapping) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        raise InputError(f"{source} does not hold a state dict; save `model.state_dict()` alone")
    return from_torchvision(saved)


def _pickled(source: str | Path) -> bool:
    return Path(source).suffix in (".pth", ".pt", ".bin")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
