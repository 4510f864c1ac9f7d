"""Loading of backbone weights from networks and files of this project, torchvision or timm."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from detection.backbone import named_backbone_steps
from detection.resnet import from_torchvision
from supernet.chain import has_numbered_steps
from supernet.checked import File, checked_arguments
from supernet.errors import InputError
from supernet.spaces.pretrained import read_saved, state_dict_of


@checked_arguments
def load_backbone(detector: nn.Module, source: nn.Module | Mapping[str, Tensor] | File) -> None:
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
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path} does not exist; has the training of the backbone finished?")
    return from_torchvision(state_dict_of(read_saved(path), path))
