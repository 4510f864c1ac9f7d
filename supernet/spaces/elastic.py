"""A trained network of timm as a supernet whose largest architecture computes the same."""

import copy
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, SelectAdaptivePool2d
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.models import _efficientnet_blocks as timm_blocks
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from supernet.blocks.elastic import ElasticDepth
from supernet.blocks.mbconv import ElasticMBConv
from supernet.blocks.mobile import ConvNormAct, MixingClassifier, SqueezeExcite
from supernet.blocks.plain import PooledClassifier
from supernet.chain import Chain, initialize
from supernet.cost import meta_copy
from supernet.errors import InputError, nearest
from supernet.generators import restored_generators
from supernet.space import Value
from supernet.spaces.ofa import multiple_of_8

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU)
}
"""torch's classes by name; timm's own classes of these names compute the same."""
STANDS_FOR = {"swish": "silu"}


class NoRule(Exception):
    """A module has a form that cannot be cut; the message says which."""


class Whole(nn.Module):
    """A module of another library, used as it is, with its output declared.

    Args:
        module: takes and returns a feature map.
        out_channels, stride: of its output.
    """

    def __init__(self, module: nn.Module, *, out_channels: int, stride: int) -> None:
        super().__init__()
        self.module, self.out_channels, self.stride = module, out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.module(x)
        return out


class ElasticChain(Chain):
    """The supernet of a network (see `elastic`).

    Attributes:
        whole: what could not be cut, each with the reason.
        fresh: builds the network that the supernet was made of, with fresh weights; None if it was given as a module.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[tuple[str, nn.Module]],
        *,
        input_shape: tuple[int, int, int],
        settings: Mapping[str, Any],
        whole: Sequence[str],
    ) -> None:
        super().__init__(name, steps, input_shape=input_shape, init=initialize)
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


def elastic(
    model: nn.Module,
    *,
    kernels: Sequence[int] = (3, 5),
    expansions: Sequence[float] = (2, 3, 4),
    drop: int = 2,
    input_size: int | None = None,
    quiet: bool = False,
) -> ElasticChain:
    """Returns a supernet with the weights of a network; its largest architecture gives the network's own outputs.

    They agree bit for bit in eval mode. Decisions are named `stage0.depth`, and per block `stage0.block0.kernel` and
    `stage0.block0.expand`, the ratio of the middle to the input channels. What has no rule (mixed or conditional
    convolutions, attention, other norms than batch norm) stays as it is, and one warning names it.

    Args:
        model: a network of timm's EfficientNet or MobileNetV3 classes: EfficientNet and its Lite, EdgeTPU and V2
            versions, MobileNet V1 to V4, MNASNet, FBNet, Single-Path NAS, TinyNet, LCNet, HardCoRe-NAS. It is copied.
        kernels: options for the depthwise kernels beside the network's own, where they are smaller.
        expansions: options for the expansions beside the network's own, where they are smaller.
        drop: how many blocks at the end of each stage may be left out; only those that keep the shape are.
        input_size: pixels at which costs are counted; that of timm's configuration by default.
        quiet: whether to leave out the warning.

    Raises:
        InputError: a network of another kind, or one in which nothing can be cut.
    """
    name = type(model).__name__
    if not isinstance(model, EfficientNet | MobileNetV3):
        raise InputError(
            f"{name} cannot be made elastic; give a network of timm's EfficientNet or MobileNetV3 classes, such as "
            "timm.create_model('tf_efficientnet_lite0')"
        )
    if drop < 0 or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels) or any(e <= 0 for e in expansions):
        raise InputError(
            f"kernels={tuple(kernels)} should be odd, expansions={tuple(expansions)} positive, drop={drop} at least 0"
        )
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    size = input_size or config.get("input_size", (3, 224, 224))[-1]
    shape = (model.conv_stem.in_channels, size, size)
    shapes = _shapes(model, shape)
    whole: list[str] = []
    try:
        steps: list[tuple[str, nn.Module]] = [("stem", _conv_norm(model.conv_stem, model.bn1))]
        head = _head(model)
    except NoRule as error:
        raise InputError(f"{name} cannot be made elastic: its stem or head has {error}") from error
    for number, stage in enumerate(model.blocks):
        blocks: list[nn.Module] = []
        kept = 0  # the first blocks, up to the last that changes the shape
        for index, block in enumerate(stage):
            before, after = shapes[number, index]
            try:
                made: nn.Module = _block(block, kernels, expansions)
            except NoRule as error:
                whole.append(f"blocks.{number}.{index} ({error})")
                made = Whole(copy.deepcopy(block), out_channels=after[0], stride=round(before[1] / after[1]))
            blocks.append(made)
            kept = index + 1 if before != after else max(kept, 1)
        fewest = max(kept, len(blocks) - drop)
        if fewest < len(blocks):
            steps.append((f"stage{number}", ElasticDepth(blocks, range(fewest, len(blocks) + 1))))
        else:
            steps += [(f"stage{number}.block{index}", block) for index, block in enumerate(blocks)]
    settings = {"kernels": tuple(kernels), "expansions": tuple(expansions), "drop": drop, "input_size": input_size}
    chain = ElasticChain("elastic", [*steps, *head], input_shape=shape, settings=settings, whole=whole)
    label = config.get("architecture", name)
    if not chain.space.choices:
        raise InputError(f"nothing of {label!r} can be cut with these settings: {', '.join(whole) or 'no block'}")
    if whole and not quiet:
        reasons = Counter(text.partition(" ")[2].strip("()") for text in whole)
        listed = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
        warnings.warn(f"{len(whole)} blocks of {label!r} stay whole: {listed}", stacklevel=2)
    return chain.train(model.training)


def _shapes(model: nn.Module, shape: tuple[int, int, int]) -> dict[tuple[int, int], tuple[tuple[int, ...], ...]]:
    """Returns the shapes (C, H, W) before and after every block, by stage and number, from a run without storage."""
    copied, found = meta_copy(model).eval(), {}

    def record(block: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, key: tuple[int, int]) -> None:
        found[key] = (tuple(inputs[0].shape[1:]), tuple(out.shape[1:]))

    for number, stage in enumerate(copied.blocks):
        for index, block in enumerate(stage):
            block.register_forward_hook(functools.partial(record, key=(number, index)))
    with torch.no_grad():
        copied.forward_features(torch.empty(1, *shape, device="meta"))
    return found


# -- layers -----------------------------------------------------------------------------------------------------------


def _activation(module: nn.Module) -> type[nn.Module] | None:
    """Returns torch's class of an activation, None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    name = type(module).__name__.lower()
    kind = ACTIVATIONS.get(STANDS_FOR.get(name, name))
    if kind is None or any(True for _ in module.parameters()):
        raise NoRule(f"the activation {type(module).__name__}")
    if kind is nn.GELU and getattr(module, "approximate", "none") != "none":
        raise NoRule("an approximate GELU")
    return kind


def _conv_norm(conv: nn.Module, norm: nn.Module, act: nn.Module | None = None) -> ConvNormAct:
    """Returns a convolution with its batch norm and activation as an ordinary module with its own weights."""
    if type(conv) not in (nn.Conv2d, Conv2dSame) or not isinstance(conv, nn.Conv2d):
        raise NoRule(type(conv).__name__)
    if type(norm) not in (BatchNormAct2d, nn.BatchNorm2d) or not isinstance(norm, nn.BatchNorm2d):
        raise NoRule(f"the norm {type(norm).__name__}")
    if not isinstance(getattr(norm, "drop", nn.Identity()), nn.Identity) or norm.momentum is None or not norm.affine:
        raise NoRule("a batch norm without scale or with dropout")
    sizes = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    if conv.padding_mode != "zeros" or conv.bias is not None or any(len(set(pair)) > 1 for pair in sizes):
        raise NoRule("a convolution with a bias or another padding or shape")
    activation = _activation(getattr(norm, "act", nn.Identity()) if act is None else act)
    with torch.device("meta"):
        made = ConvNormAct(
            conv.in_channels,
            conv.out_channels,
            kernel=conv.kernel_size[0],
            stride=conv.stride[0],
            padding="same" if isinstance(conv, Conv2dSame) else int(conv.padding[0]),
            dilation=conv.dilation[0],
            groups=conv.groups,
            activation=activation,
            eps=norm.eps,
            momentum=norm.momentum,
        )
    _assign(made.conv, conv)
    _assign(made.bn, norm)
    return made


def _assign(target: nn.Module, source: nn.Module) -> None:
    """Gives a module copies of the tensors of another."""
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()}, assign=True)


def _squeeze(module: nn.Module) -> SqueezeExcite | None:
    if isinstance(module, nn.Identity):
        return None
    if type(module) is not timm_blocks.SqueezeExcite:
        raise NoRule(type(module).__name__)
    activation, gate = _activation(module.act1), _activation(module.gate)
    if activation is None or gate is None:
        raise NoRule("squeeze-and-excitation without an activation")
    with torch.device("meta"):
        made = SqueezeExcite(
            module.conv_reduce.in_channels, module.conv_reduce.out_channels, activation=activation, gate=gate
        )
    _assign(made.reduce, module.conv_reduce)
    _assign(made.expand, module.conv_expand)
    return made


# -- blocks -----------------------------------------------------------------------------------------------------------


def _block(block: nn.Module, kernels: Sequence[int], expansions: Sequence[float]) -> ElasticMBConv:
    """Returns a block of timm as an elastic one. Raises `NoRule` if it has a form that cannot be cut."""
    kind = type(block)
    if kind not in _LAYERS:
        raise NoRule(kind.__name__)
    for name in ("aa", "conv_s2d", "layer_scale"):
        if not isinstance(getattr(block, name, None), nn.Identity | None):
            raise NoRule(f"{kind.__name__} with {type(getattr(block, name)).__name__}")
    layers = {name: layer for name, layer in _LAYERS[kind](block).items() if layer is not None}
    for name, layer in layers.items():
        if isinstance(layer, ConvNormAct) and layer.groups not in (1, layer.out_channels):
            raise NoRule(f"{name} in {layer.groups} groups")
    convs = [layer for layer in layers.values() if isinstance(layer, ConvNormAct)]
    searched = [name for name in ("expand", "middle") if name in layers] if "expand" in layers else []
    mids: dict[Value, int] = {}
    if searched:
        expand = layers["expand"]
        assert isinstance(expand, ConvNormAct)
        for expansion in sorted(set(expansions)):
            mid = multiple_of_8(expand.in_channels * expansion)
            if mid < expand.out_channels and mid not in mids.values():
                mids[expansion] = mid
        mids[_ratio(expand.out_channels, expand.in_channels)] = expand.out_channels
    largest = max(layer.kernel for layer in convs)
    return ElasticMBConv(
        layers,
        searched=searched,
        mids=mids,
        kernels=[kernel for kernel in sorted(set(kernels)) if kernel < largest] + [largest] if largest % 2 else (),
        residual=bool(block.has_skip),
        drop_path=float(getattr(block.drop_path, "drop_prob", 0.0) or 0.0),
    )


def _ratio(mid: int, before: int) -> float:
    """Returns mid / before as an integer if it is one, else rounded to three digits."""
    return mid // before if mid % before == 0 else round(mid / before, 3)


Layers = dict[str, ConvNormAct | SqueezeExcite | None]


def _separable(block: Any) -> Layers:
    return {
        "depthwise": _conv_norm(block.conv_dw, block.bn1),
        "squeeze": _squeeze(block.se),
        "project": _conv_norm(block.conv_pw, block.bn2),
    }


def _inverted(block: Any) -> Layers:
    return {
        "expand": _conv_norm(block.conv_pw, block.bn1),
        "middle": _conv_norm(block.conv_dw, block.bn2),
        "squeeze": _squeeze(block.se),
        "project": _conv_norm(block.conv_pwl, block.bn3),
    }


def _fused(block: Any) -> Layers:
    return {
        "expand": _conv_norm(block.conv_exp, block.bn1),
        "squeeze": _squeeze(block.se),
        "project": _conv_norm(block.conv_pwl, block.bn2),
    }


def _plain(block: Any) -> Layers:
    return {"conv": _conv_norm(block.conv, block.bn1)}


def _universal(block: Any) -> Layers:
    return {
        "start": _timm_conv(block.dw_start),
        "expand": _timm_conv(block.pw_exp),
        "middle": _timm_conv(block.dw_mid),
        "squeeze": _squeeze(block.se),
        "project": _timm_conv(block.pw_proj),
        "end": _timm_conv(block.dw_end),
    }


def _timm_conv(module: nn.Module) -> ConvNormAct | None:
    if isinstance(module, nn.Identity):
        return None
    if type(module) is not TimmConvNormAct or not isinstance(getattr(module, "aa", None), nn.Identity | None):
        raise NoRule(type(module).__name__)
    return _conv_norm(module.conv, module.bn)


_LAYERS: dict[type, Callable[[Any], Layers]] = {
    timm_blocks.DepthwiseSeparableConv: _separable,
    timm_blocks.InvertedResidual: _inverted,
    timm_blocks.EdgeResidual: _fused,
    timm_blocks.ConvBnAct: _plain,
    timm_blocks.UniversalInvertedResidual: _universal,
}


# -- heads ------------------------------------------------------------------------------------------------------------


def _head(model: Any) -> list[tuple[str, nn.Module]]:
    """Returns the steps behind the stages."""
    pool, classifier = model.global_pool, model.classifier
    if not isinstance(pool, SelectAdaptivePool2d) or pool.pool_type not in ("avg", "fast", "fastavg"):
        raise NoRule(f"the pooling {getattr(pool, 'pool_type', type(pool).__name__)!r}")
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        raise NoRule("no linear classifier")
    if isinstance(model, EfficientNet):
        with torch.device("meta"):
            pooled = PooledClassifier(classifier.in_features, classifier.out_features, dropout=model.drop_rate)
        _assign(pooled.fc, classifier)
        before = [] if isinstance(model.conv_head, nn.Identity) else [("last", _conv_norm(model.conv_head, model.bn2))]
        return [*before, ("head", pooled)]
    if not isinstance(model.conv_head, nn.Conv2d) or type(model.conv_head) is not nn.Conv2d:
        raise NoRule(type(model.conv_head).__name__)
    norm = model.norm_head
    act = getattr(norm, "act", None) if isinstance(model.act2, nn.Identity) else model.act2
    activation = None if act is None else _activation(act)
    if activation is None or not isinstance(norm, nn.Identity | BatchNormAct2d):
        raise NoRule("another order of layers")
    normed = {} if isinstance(norm, nn.Identity) else {"norm": True, "eps": norm.eps, "momentum": norm.momentum}
    with torch.device("meta"):
        mixing = MixingClassifier(
            model.conv_head.in_channels,
            classifier.out_features,
            hidden=model.conv_head.out_channels,
            bias=model.conv_head.bias is not None,
            activation=activation,
            dropout=model.drop_rate,
            **normed,
        )
    _assign(mixing.mix, model.conv_head)
    _assign(mixing.fc, classifier)
    if normed:
        _assign(mixing.bn, norm)
    return [("head", mixing)]


# -- by name ----------------------------------------------------------------------------------------------------------


def elastic_timm(
    *,
    num_classes: int = 1000,
    input_size: int = 224,
    in_channels: int = 3,
    model: str = "tf_efficientnet_lite0",
    kernels: Sequence[int] = (3, 5),
    expansions: Sequence[float] = (2, 3, 4),
    drop: int = 2,
    dropout: float = 0.0,
) -> ElasticChain:
    """A network of timm by name as a supernet (see `elastic`), with fresh weights.

    Args:
        num_classes: size of the logits.
        input_size: pixels.
        in_channels: of the images.
        model: a name of timm.
        kernels, expansions, drop: see `elastic`.
        dropout: before the classifier.
    """
    fresh = functools.partial(timm_network, model, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
    chain = elastic(fresh(), kernels=kernels, expansions=expansions, drop=drop, input_size=input_size)
    chain.fresh = fresh
    return chain


def timm_network(name: str, *, num_classes: int, in_channels: int, dropout: float) -> nn.Module:
    """Returns a network of timm with fresh weights; the global generators stay as they are.

    Raises:
        InputError: timm has no network of this name.
    """
    if name not in timm.list_models():
        raise InputError(f"timm has no network {name!r}; {nearest(name, timm.list_models())}")
    with restored_generators("cpu"):
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout
        )
    return network
