"""A trained network of timm or torchvision as a supernet whose largest architecture computes the same."""

import dataclasses
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from supernet.blocks.elastic import ElasticDepth
from supernet.blocks.plain import Whole
from supernet.blocks.resolution import resolution_step
from supernet.blocks.transformer import PatchTokens
from supernet.chain import Chain, initialize
from supernet.chain.copying import copy_module
from supernet.checked import Pixels, Share, checked_arguments
from supernet.cost import meta_copy
from supernet.cost.count import trace
from supernet.errors import InputError, nearest
from supernet.generators import restored_generators
from supernet.spaces.autoformer import initialize_transformer
from supernet.spaces.converted import NoRule
from supernet.spaces.families import Options, Parts, parts_of

IMAGENET: Mapping[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""How the images for torchvision's weights are normalised."""


class ElasticChain(Chain):
    """The supernet of a network (see `elastic`).

    Attributes:
        whole: what could not be cut, each with the reason.
        fresh: builds the network that the supernet was made of, with fresh weights; None if it was given as a module.
        normalisation: mean and deviation per channel that the network's weights were trained with, on the scale 0..1;
            empty where they are not known.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        input_shape: tuple[int, int, int],
        settings: Mapping[str, Any],
        whole: Sequence[str],
    ) -> None:
        super().__init__(
            name,
            steps,
            input_shape=input_shape,
            init=initialize_transformer if any(isinstance(step, PatchTokens) for _, step in steps) else initialize,
        )
        self.settings, self.whole = dict(settings), tuple(whole)
        self.fresh: Callable[..., nn.Module] | None = None

    def copy_weights(self, model: nn.Module) -> None:
        """Takes the weights and statistics of a network like the one that this supernet was made of.

        Raises:
            InputError: another network.
        """
        other = elastic(model, **self.settings, quiet=True).state_dict()
        own = self.state_dict()
        for name in sorted(own.keys() | other.keys()):
            if name not in own or name not in other or own[name].shape != other[name].shape:
                raise InputError(f"{type(model).__name__} is another network than this supernet's: {name!r} differs")
        self.load_state_dict(other)


@checked_arguments
def elastic(
    model: nn.Module,
    *,
    kernels: Sequence[int] = (3, 5),
    expansions: Sequence[float] = (2, 3, 4),
    shares: Sequence[float] = (0.5, 0.75),
    drop: int = 2,
    resolutions: Sequence[int] = (),
    input_size: Pixels | None = None,
    quiet: bool = False,
) -> ElasticChain:
    """Returns a supernet with the weights of a network; its largest architecture gives the network's own outputs.

    They agree bit for bit in eval mode. The decisions are `input.resolution` where there are `resolutions`,
    `stage0.depth`, and per block, as in `stage0.block0.kernel`:

    - mobile networks: `kernel`, and `expand`, the ratio of the middle to the input channels;
    - ResNets: `width`, the share of the middle channels;
    - transformers: `heads`, and `ratio`, that of the middle to the outer channels of the perceptron.

    Blocks without a rule (mixed, grouped or conditional convolutions, attention among convolutions, other norms than
    batch norm) stay as they are, and one warning counts them.

    Args:
        model: a ResNet of timm or torchvision, or a network of timm's EfficientNet or MobileNetV3 classes: EfficientNet
            and its Lite, EdgeTPU and V2 versions, MobileNet V1 to V4, MNASNet, FBNet, Single-Path NAS, TinyNet, LCNet,
            HardCoRe-NAS; torchvision's MobileNetV2, MobileNetV3 and EfficientNet; or a vision transformer of timm with
            a class token (ViT, DeiT, DINOv2 without registers). It is copied.
        kernels: options for the kernels of mobile networks beside the network's own, where they are smaller.
        expansions: options for the expansions beside the network's own, where they are smaller.
        shares: options for the middle channels of ResNets, and for heads and perceptrons of transformers, beside all of
            them; below 1.
        drop: how many blocks at the end of each stage may be left out; only those that keep the shape are.
        resolutions: options for the size of images, in pixels, below `input_size`, which is always one: a first step
            resizes the images of a batch (see `supernet.blocks.resolution`). Positions of a transformer are
            interpolated.
        input_size: pixels of the images; that of timm's configuration by default. A transformer has positions for one
            size.
        quiet: whether to leave out the warning.

    Raises:
        InputError: a network of another kind, or one in which nothing can be cut.
    """
    name = type(model).__name__
    odd = all(0 < kernel < 64 and kernel % 2 for kernel in kernels)
    if not (odd and all(0 < value <= 64 for value in expansions) and all(0 < share <= 1 for share in shares)):
        raise InputError(
            f"kernels={tuple(kernels)} should be odd and below 64, expansions={tuple(expansions)} above 0 and at most "
            f"64, shares={tuple(shares)} above 0 and at most 1"
        )
    if drop < 0:
        raise InputError(f"drop={drop} should be at least 0")
    try:
        parts = parts_of(model)
    except NoRule as error:
        raise InputError(f"{name} cannot be made elastic: it has {error}") from error
    if parts is None:
        raise InputError(
            f"{name} cannot be made elastic; give a ResNet, or a network of timm's classes EfficientNet, MobileNetV3 "
            "or VisionTransformer, such as timm.create_model('tf_efficientnet_lite0'), or torchvision's MobileNet or "
            "EfficientNet"
        )
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    fixed = [part.side * part.patch for _, part in parts.stem if isinstance(part, PatchTokens)]
    if fixed and input_size not in (None, *fixed):
        raise InputError(
            f"input_size={input_size} differs from the {fixed[0]} pixels that {name} has positions for; build the "
            "network for it, as timm.create_model(..., img_size=...) does"
        )
    size = fixed[0] if fixed else input_size or config.get("input_size", (3, 224, 224))[-1]
    channels = next(part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d))
    options, shape = Options(kernels, expansions, shares), (channels, size, size)
    shapes, whole = _shapes(model, parts, shape), list[str]()
    _check_patches(parts, resolutions)
    steps = [*resolution_step(channels, resolutions, size), *parts.stem]
    for number, stage in enumerate(parts.stages):
        blocks: list[nn.Module] = []
        kept = 1  # the first blocks, up to the last that changes the shape
        for index, block in enumerate(stage):
            place, before, after = shapes[id(block)]
            try:
                blocks.append(parts.block(block, options))
            except NoRule as error:
                whole.append(f"{place} ({error})")
                stride = round(before[1] / after[1])
                blocks.append(Whole(copy_module(block), out_channels=after[0], stride=stride))
            kept = kept if before == after else index + 1
        fewest = max(kept, len(blocks) - drop)
        if fewest < len(blocks):
            steps.append((f"stage{number}", ElasticDepth(blocks, range(fewest, len(blocks) + 1))))
        else:
            steps += [(f"stage{number}.block{index}", block) for index, block in enumerate(blocks)]
    settings = {
        **dataclasses.asdict(options),
        "drop": drop,
        "resolutions": tuple(resolutions),
        "input_size": input_size,
    }
    chain = ElasticChain("elastic", [*steps, *parts.head], input_shape=shape, settings=settings, whole=whole)
    label = config.get("architecture", name)
    if not chain.space.choices:
        raise InputError(f"nothing of {label!r} can be cut with these settings: {', '.join(whole) or 'no block'}")
    if whole and not quiet:
        reasons = Counter(text.partition(" ")[2].strip("()") for text in whole)
        listed = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
        warnings.warn(f"{len(whole)} blocks of {label!r} stay whole: {listed}", stacklevel=2)
    published = IMAGENET if type(model).__module__.startswith("torchvision.") else config
    chain.normalisation = tuple(published.get("mean", ())), tuple(published.get("std", ()))
    return chain.train(model.training)


def _check_patches(parts: Parts, resolutions: Sequence[int]) -> None:
    """Raises `InputError` for a resolution that the patches of a transformer do not divide."""
    for _, part in parts.stem:
        wrong = [pixels for pixels in resolutions if isinstance(part, PatchTokens) and pixels % part.patch]
        if wrong and isinstance(part, PatchTokens):
            raise InputError(
                f"resolutions={tuple(resolutions)}: {wrong[0]} pixels are not a multiple of the patch of {part.patch}; "
                f"give {max(1, round(wrong[0] / part.patch)) * part.patch}"
            )


Shape = tuple[int, ...]


def _shapes(model: nn.Module, parts: Parts, shape: Shape) -> dict[int, tuple[str, Shape, Shape]]:
    """Returns name and shapes (C, H, W) before and after every block, by its id, from a run without storage."""
    blocks = {id(block) for stage in parts.stages for block in stage}
    copied, shapes = meta_copy(model).eval(), dict[int, tuple[str, Shape, Shape]]()

    def record(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, *, key: int, name: str) -> None:
        shapes[key] = (name, tuple(inputs[0].shape[1:]), tuple(out.shape[1:]))

    for name, module in model.named_modules():
        if id(module) in blocks:
            copied.get_submodule(name).register_forward_hook(functools.partial(record, key=id(module), name=name))
    # A plain call would load torch's compiler, which takes seconds.
    trace(copied, torch.empty(1, *shape, device="meta"))
    return shapes


# -- by name ----------------------------------------------------------------------------------------------------------


@checked_arguments
def elastic_timm(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    model: str = "tf_efficientnet_lite0",
    kernels: Sequence[int] = (3, 5),
    expansions: Sequence[float] = (2, 3, 4),
    shares: Sequence[float] = (0.5, 0.75),
    drop: int = 2,
    resolutions: Sequence[int] = (),
    dropout: Share = 0.0,
    model_args: Mapping[str, Any] = MappingProxyType({}),
) -> ElasticChain:
    """A network of timm or torchvision by name as a supernet (see `elastic`), with fresh weights.

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: the number of image channels.
        model: a name of timm, or "torchvision/NAME".
        kernels, expansions, shares, drop, resolutions: see `elastic`.
        dropout: before the classifier.
        model_args: further arguments of timm's model, such as `{"patch_size": 4, "depth": 6}`.
    """
    fresh: Callable[..., nn.Module] = functools.partial(
        torchvision_network if model.startswith(TORCHVISION_PREFIX) else timm_network,
        model,
        num_classes=num_classes,
        input_size=input_size,
        in_channels=in_channels,
        dropout=dropout,
        model_args=dict(model_args),
    )
    chain = elastic(
        fresh(),
        kernels=kernels,
        expansions=expansions,
        shares=shares,
        drop=drop,
        resolutions=resolutions,
        input_size=input_size,
    )
    chain.fresh = fresh
    return chain


def normalisation(chain: ElasticChain) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns the mean and deviation per channel, on the scale 0..1, that the network's own weights were trained with.

    None where they are not known, and for another number of channels.
    """
    mean, std = chain.normalisation
    return (mean, std) if len(mean) == len(std) == chain.input_shape[0] else None


TORCHVISION_PREFIX = "torchvision/"


def torchvision_network(
    name: str,
    *,
    num_classes: int,
    input_size: int,
    in_channels: int,
    dropout: float,
    model_args: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """Returns a classifier of torchvision with fresh weights; the global generators stay as they are.

    Args:
        name: "torchvision/" and the name that `torchvision.models.get_model` takes.

    Raises:
        InputError: torchvision has no classifier of this name, or images of other than three channels, a dropout where
            the network has none, or further arguments.
    """
    own = name.removeprefix(TORCHVISION_PREFIX)
    known = torchvision.models.list_models(module=torchvision.models)
    if own not in known:
        raise InputError(f"torchvision has no classifier {own!r}; {nearest(own, known)}")
    if model_args:
        raise InputError(f"model_args={dict(model_args)} are for networks of timm, not for {name}; leave them out")
    if in_channels != 3:
        raise InputError(f"{name} reads images of three channels, not of {in_channels}; take a network of timm")
    with restored_generators("cpu"):
        network: nn.Module = torchvision.models.get_model(own, weights=None, num_classes=num_classes)
    drops = [part for part in network.modules() if isinstance(part, nn.Dropout)]
    if dropout and not drops:
        raise InputError(f"{name} has no dropout, so dropout={dropout} cannot be set; leave it out")
    for part in drops:
        part.p = dropout
    return network


def timm_network(
    name: str,
    *,
    num_classes: int,
    input_size: int,
    in_channels: int,
    dropout: float,
    model_args: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """Returns a network of timm with fresh weights; the global generators stay as they are.

    `input_size` matters to networks with a position for each patch only, and `model_args` are further arguments of
    `timm.create_model`.

    Raises:
        InputError: timm has no network of this name, or it does not take these arguments.
    """
    if name not in timm.list_models():
        raise InputError(f"timm has no network {name!r}; {nearest(name, timm.list_models())}")
    sized: dict[str, Any] = (
        {"img_size": input_size} if timm.models.is_model_in_modules(name, ("vision_transformer", "deit")) else {}
    )
    own = {"num_classes": num_classes, "in_chans": in_channels, "drop_rate": dropout, **sized}
    decided = sorted({*own, "pretrained", "img_size"} & model_args.keys())
    if decided:
        raise InputError(f"model_args cannot set {decided[0]}: the data or another setting decide it")
    for key, value in model_args.items():  # a text could be a path whose file timm reads
        if not all(isinstance(item, int | float) for item in (value if isinstance(value, tuple | list) else (value,))):
            raise InputError(f"model_args: {key}={value!r} should be a number, true, false, or a list of these")
    try:
        with restored_generators("cpu"):
            network: nn.Module = timm.create_model(name, pretrained=False, **own, **model_args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if not model_args:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be built with model_args={dict(model_args)} ({reason})") from error
    return network
