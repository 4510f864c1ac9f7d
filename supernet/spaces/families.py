"""The families of networks that can be made elastic: which modules are their stem, stages and head."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models.efficientnet as torchvision_efficientnet
import torchvision.models.mobilenetv2 as torchvision_mobilenetv2
import torchvision.models.mobilenetv3 as torchvision_mobilenetv3
import torchvision.models.resnet as torchvision_resnet
from timm.layers import BatchNormAct2d, SelectAdaptivePool2d
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.models import _efficientnet_blocks as timm_blocks
from timm.models import resnet as timm_resnet
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from supernet.blocks.mbconv import ElasticMBConv
from supernet.blocks.mobile import ConvNormAct, HiddenClassifier, MixingClassifier, SqueezeExcite, multiple_of_8
from supernet.blocks.plain import PooledClassifier, Whole
from supernet.chain import Searchable
from supernet.chain.copying import copy_module
from supernet.space import Value
from supernet.spaces.converted import NoRule, activation, assign, conv_norm, squeeze
from supernet.spaces.vit import block_of, embedding_of, head_of


@dataclass(frozen=True)
class Options:
    """What may be cut; see `supernet.spaces.elastic.elastic`."""

    kernels: Sequence[int]
    expansions: Sequence[float]
    shares: Sequence[float]


TORCHVISION = (
    torchvision_mobilenetv2.MobileNetV2,
    torchvision_mobilenetv3.MobileNetV3,
    torchvision_efficientnet.EfficientNet,
)
"""Classes of mobile networks in torchvision."""


@dataclass(frozen=True)
class Parts:
    """A network in parts.

    Attributes:
        stem, head: steps before and behind the stages, with their own copies of the weights.
        stages: the network's own blocks.
        block: returns an elastic block from one of them, or raises `NoRule`.
    """

    stem: list[tuple[str, nn.Module]]
    stages: list[Sequence[nn.Module]]
    head: list[tuple[str, nn.Module]]
    block: Callable[[nn.Module, Options], Searchable]


def parts_of(model: nn.Module) -> Parts | None:
    """Returns the parts of a network; None for a network of an unknown family.

    Raises:
        NoRule: its stem or head has a form that cannot be used.
    """
    if isinstance(model, EfficientNet | MobileNetV3):
        network: Any = model
        stem: nn.Module = conv_norm(network.conv_stem, network.bn1)
        return Parts([("stem", stem)], list(network.blocks), _mobile_head(network), _mobile_block)
    if isinstance(model, TORCHVISION):
        return _torchvision_parts(model)
    if isinstance(model, timm_resnet.ResNet | torchvision_resnet.ResNet):
        network = model
        stages = [network.layer1, network.layer2, network.layer3, network.layer4]
        return Parts([("stem", _resnet_stem(network))], stages, _resnet_head(network), _resnet_block)
    if type(model) is VisionTransformer:
        stages = [model.blocks]
        for block in model.blocks:
            block_of(block, ())  # a block without a rule would read another state than its neighbours
        head: list[tuple[str, nn.Module]] = [("head", head_of(model))]
        return Parts([("embed", embedding_of(model))], stages, head, lambda b, o: block_of(b, tuple(o.shares)))
    return None


# -- EfficientNet and MobileNet ----------------------------------------------------------------------------------------


def _mobile_block(block: Any, options: Options) -> ElasticMBConv:
    """Returns a block of timm as an elastic one. Raises `NoRule` if it has a form that cannot be cut."""
    kind = type(block)
    if kind not in _LAYERS:
        raise NoRule(kind.__name__)
    for name in ("aa", "conv_s2d", "layer_scale"):
        if not isinstance(getattr(block, name, None), nn.Identity | None):
            raise NoRule(f"{kind.__name__} with {type(getattr(block, name)).__name__}")
    layers = {name: layer for name, layer in _LAYERS[kind](block).items() if layer is not None}
    drop_path = float(getattr(block.drop_path, "drop_prob", 0.0) or 0.0)
    return _elastic_block(layers, options, skip=block.has_skip, drop_path=drop_path)


def _elastic_block(
    layers: dict[str, ConvNormAct | SqueezeExcite], options: Options, *, skip: bool, drop_path: float
) -> ElasticMBConv:
    """Returns an elastic block of ordinary layers. Raises `NoRule` for group convolutions."""
    for name, layer in layers.items():
        if isinstance(layer, ConvNormAct) and layer.groups not in (1, layer.out_channels):
            raise NoRule(f"{name} in {layer.groups} groups")
    convs = [layer for layer in layers.values() if isinstance(layer, ConvNormAct)]
    searched = [name for name in ("expand", "middle") if name in layers] if "expand" in layers else []
    mids: dict[Value, int] = {}
    if searched:
        expand = layers["expand"]
        assert isinstance(expand, ConvNormAct)
        for expansion in sorted(set(options.expansions)):
            mid = multiple_of_8(expand.in_channels * expansion)
            if mid < expand.out_channels and mid not in mids.values():
                mids[expansion] = mid
        mids[_ratio(expand.out_channels, expand.in_channels)] = expand.out_channels
    largest = max(layer.kernel for layer in convs)
    smaller = [kernel for kernel in sorted(set(options.kernels)) if kernel < largest]
    return ElasticMBConv(
        layers,
        searched=searched,
        mids=mids,
        kernels=[*smaller, largest] if largest % 2 else (),
        shortcut=nn.Identity() if skip else None,
        drop_path=drop_path,
    )


def _ratio(mid: int, before: int) -> float:
    """Returns mid / before as an integer if it is one, else rounded to three digits."""
    return mid // before if mid % before == 0 else round(mid / before, 3)


Layers = dict[str, ConvNormAct | SqueezeExcite | None]


def _separable(block: Any) -> Layers:
    return {
        "depthwise": conv_norm(block.conv_dw, block.bn1),
        "squeeze": squeeze(block.se),
        "project": conv_norm(block.conv_pw, block.bn2),
    }


def _inverted(block: Any) -> Layers:
    return {
        "expand": conv_norm(block.conv_pw, block.bn1),
        "middle": conv_norm(block.conv_dw, block.bn2),
        "squeeze": squeeze(block.se),
        "project": conv_norm(block.conv_pwl, block.bn3),
    }


def _fused(block: Any) -> Layers:
    return {
        "expand": conv_norm(block.conv_exp, block.bn1),
        "squeeze": squeeze(block.se),
        "project": conv_norm(block.conv_pwl, block.bn2),
    }


def _plain(block: Any) -> Layers:
    return {"conv": conv_norm(block.conv, block.bn1)}


def _universal(block: Any) -> Layers:
    return {
        "start": _timm_conv(block.dw_start),
        "expand": _timm_conv(block.pw_exp),
        "middle": _timm_conv(block.dw_mid),
        "squeeze": squeeze(block.se),
        "project": _timm_conv(block.pw_proj),
        "end": _timm_conv(block.dw_end),
    }


def _timm_conv(module: nn.Module) -> ConvNormAct | None:
    if isinstance(module, nn.Identity):
        return None
    if type(module) is not TimmConvNormAct or not isinstance(getattr(module, "aa", None), nn.Identity | None):
        raise NoRule(type(module).__name__)
    return conv_norm(module.conv, module.bn)


_LAYERS: dict[type, Callable[[Any], Layers]] = {
    timm_blocks.DepthwiseSeparableConv: _separable,
    timm_blocks.InvertedResidual: _inverted,
    timm_blocks.EdgeResidual: _fused,
    timm_blocks.ConvBnAct: _plain,
    timm_blocks.UniversalInvertedResidual: _universal,
}


def _mobile_head(model: Any) -> list[tuple[str, nn.Module]]:
    """Returns the steps behind the stages."""
    pool, classifier = model.global_pool, model.classifier
    _check_head(pool, classifier)
    if isinstance(model, EfficientNet):
        pooled = _pooled(classifier, model.drop_rate)
        before = [] if isinstance(model.conv_head, nn.Identity) else [("last", conv_norm(model.conv_head, model.bn2))]
        return [*before, ("head", pooled)]
    if not isinstance(model.conv_head, nn.Conv2d) or type(model.conv_head) is not nn.Conv2d:
        raise NoRule(type(model.conv_head).__name__)
    norm = model.norm_head
    act = getattr(norm, "act", None) if isinstance(model.act2, nn.Identity) else model.act2
    kind = None if act is None else activation(act)
    if kind is None or not isinstance(norm, nn.Identity | BatchNormAct2d):
        raise NoRule("another order of layers")
    normed: dict[str, Any] = {}
    if isinstance(norm, BatchNormAct2d):
        normed = {"norm": True, "eps": norm.eps, "momentum": norm.momentum}
    with torch.device("meta"):
        mixing = MixingClassifier(
            model.conv_head.in_channels,
            classifier.out_features,
            hidden=model.conv_head.out_channels,
            bias=model.conv_head.bias is not None,
            activation=kind,
            dropout=model.drop_rate,
            **normed,
        )
    assign(mixing.mix, model.conv_head)
    assign(mixing.fc, classifier)
    if normed:
        assign(mixing.bn, norm)
    return [("head", mixing)]


def _check_head(pool: nn.Module, classifier: nn.Module) -> None:
    averages = isinstance(pool, SelectAdaptivePool2d) and pool.pool_type in ("avg", "fast", "fastavg")
    if not averages and not (isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))):
        raise NoRule(f"the pooling {getattr(pool, 'pool_type', type(pool).__name__)!r}")
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        raise NoRule("no linear classifier")


def _pooled(classifier: nn.Linear, dropout: float) -> PooledClassifier:
    with torch.device("meta"):
        pooled = PooledClassifier(classifier.in_features, classifier.out_features, dropout=dropout)
    assign(pooled.fc, classifier)
    return pooled


# -- mobile networks of torchvision -----------------------------------------------------------------------------------


def _torchvision_parts(model: Any) -> Parts:
    first, *inner, last = model.features
    stages: list[Sequence[nn.Module]] = []
    if isinstance(model, torchvision_efficientnet.EfficientNet):
        stages = [list(stage) for stage in inner]
    else:  # the blocks stand in one row; a stage begins with a block that cannot have a shortcut
        rows: list[list[nn.Module]] = []
        for block in inner:
            if block.use_res_connect and rows:
                rows[-1].append(block)
            else:
                rows.append([block])
        stages = [*rows]
    head = _torchvision_head(model.classifier)
    return Parts(
        [("stem", _torchvision_conv(first))], stages, [("last", _torchvision_conv(last)), head], _torchvision_block
    )


def _torchvision_conv(module: Any) -> ConvNormAct:
    if type(module) is not Conv2dNormActivation or len(module) not in (2, 3):
        raise NoRule(type(module).__name__)
    return conv_norm(module[0], module[1], module[2] if len(module) == 3 else nn.Identity())


def _torchvision_squeeze(module: Any) -> SqueezeExcite:
    inner, gate = activation(module.activation), activation(module.scale_activation)
    if inner is None or gate is None:
        raise NoRule("squeeze-and-excitation without an activation")
    with torch.device("meta"):
        excite = SqueezeExcite(module.fc1.in_channels, module.fc1.out_channels, activation=inner, gate=gate)
    assign(excite.reduce, module.fc1)
    assign(excite.expand, module.fc2)
    return excite


def _torchvision_block(block: Any, options: Options) -> ElasticMBConv:
    """Returns a block of torchvision as an elastic one. Raises `NoRule` if it has a form that cannot be cut."""
    known = (torchvision_mobilenetv2.InvertedResidual, torchvision_mobilenetv3.InvertedResidual)
    if type(block) not in (*known, torchvision_efficientnet.MBConv, torchvision_efficientnet.FusedMBConv):
        raise NoRule(type(block).__name__)
    row = list(block.conv if type(block) is torchvision_mobilenetv2.InvertedResidual else block.block)
    if type(row[-1]) is nn.BatchNorm2d:  # MobileNetV2 ends with a bare convolution and its norm
        row[-2:] = [nn.Sequential(row[-2], row[-1])]
    return _elastic_block(_named_layers(row), options, skip=block.use_res_connect, drop_path=_drop_rate(block))


def _named_layers(row: Sequence[Any]) -> dict[str, ConvNormAct | SqueezeExcite]:
    layers: list[ConvNormAct | SqueezeExcite] = []
    for module in row:
        if type(module) is SqueezeExcitation:
            layers.append(_torchvision_squeeze(module))
        elif type(module) is nn.Sequential:
            layers.append(conv_norm(module[0], module[1], nn.Identity()))
        else:
            layers.append(_torchvision_conv(module))
    convs = [layer for layer in layers if isinstance(layer, ConvNormAct)]
    names = {1: ["conv"], 2: ["depthwise" if convs[0].groups > 1 else "expand", "project"]}
    remaining = iter(names.get(len(convs), ["expand", "middle", "project"]))
    return {"squeeze" if isinstance(layer, SqueezeExcite) else next(remaining): layer for layer in layers}


def _drop_rate(block: Any) -> float:
    return float(block.stochastic_depth.p) if hasattr(block, "stochastic_depth") else 0.0


def _torchvision_head(classifier: Any) -> tuple[str, nn.Module]:
    kinds = tuple(type(layer) for layer in classifier)
    if kinds == (nn.Dropout, nn.Linear):
        return "head", _pooled(classifier[1], classifier[0].p)
    if kinds != (nn.Linear, nn.Hardswish, nn.Dropout, nn.Linear):
        raise NoRule("a classifier of another form")
    with torch.device("meta"):
        head = HiddenClassifier(
            classifier[0].in_features,
            classifier[3].out_features,
            hidden=classifier[0].out_features,
            dropout=classifier[2].p,
        )
    assign(head.mix, classifier[0])
    assign(head.fc, classifier[3])
    return "head", head


# -- ResNets ----------------------------------------------------------------------------------------------------------

_PLAIN = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)


def _resnet_stem(model: Any) -> nn.Module:
    layers = [model.conv1, model.bn1, getattr(model, "act1", None) or model.relu, model.maxpool]
    stem = nn.Sequential(*copy.deepcopy(layers))
    _check_plain(stem)
    convs = [part for part in stem.modules() if isinstance(part, nn.Conv2d)]
    stride = 1
    for part in stem.modules():
        if isinstance(part, nn.Conv2d):
            stride *= part.stride[0]
        elif isinstance(part, nn.MaxPool2d | nn.AvgPool2d):
            stride *= part.stride if isinstance(part.stride, int) else part.stride[0]
    return Whole(stem, out_channels=convs[-1].out_channels, stride=stride)


def _resnet_head(model: Any) -> list[tuple[str, nn.Module]]:
    pool = getattr(model, "global_pool", None) or model.avgpool
    _check_head(pool, model.fc)
    return [("head", _pooled(model.fc, float(getattr(model, "drop_rate", 0.0))))]


def _check_plain(module: nn.Module) -> None:
    """Raises `NoRule` unless a module consists of torch's own layers."""
    for part in module.modules():
        if type(part) not in (*_PLAIN, nn.Sequential):
            raise NoRule(type(part).__name__)


def _resnet_block(block: Any, options: Options) -> ElasticMBConv:
    """Returns a basic block or a bottleneck whose middle channels are searched."""
    kinds = (timm_resnet.BasicBlock, timm_resnet.Bottleneck, torchvision_resnet.BasicBlock)
    if type(block) not in (*kinds, torchvision_resnet.Bottleneck):
        raise NoRule(type(block).__name__)
    for name in ("aa", "drop_block", "se"):
        if not isinstance(getattr(block, name, None), nn.Identity | None):
            raise NoRule(f"{type(block).__name__} with {type(getattr(block, name)).__name__}")
    count = 3 if hasattr(block, "conv3") else 2
    acts = [getattr(block, f"act{number}", None) or block.relu for number in range(1, count + 1)]
    if any(activation(act) is not nn.ReLU for act in acts):
        raise NoRule(f"{type(block).__name__} without ReLU")
    names = [f"conv{number}" for number in range(1, count + 1)]
    layers: dict[str, ConvNormAct | SqueezeExcite] = {}
    for number, name in enumerate(names, start=1):
        act = acts[number - 1] if number < count else nn.Identity()
        layers[name] = conv_norm(getattr(block, name), getattr(block, f"bn{number}"), act)
        if getattr(block, name).groups > 1:
            raise NoRule(f"{type(block).__name__} in groups")
    if block.downsample is not None:
        _check_plain(block.downsample)
    widths = {getattr(block, name).out_channels for name in names[:-1]}
    if len(widths) > 1:
        raise NoRule(f"{type(block).__name__} with two middle widths")
    (widest,) = widths
    mids: dict[Value, int] = {}
    for share in sorted(set(options.shares)):
        mid = multiple_of_8(widest * share)
        if mid < widest and mid not in mids.values():
            mids[share] = mid
    mids[1] = widest
    return ElasticMBConv(
        layers,
        searched=names[:-1],
        mids=mids,
        decision="width",
        shortcut=nn.Identity() if block.downsample is None else copy_module(block.downsample),
        act=True,
        drop_path=float(getattr(getattr(block, "drop_path", None), "drop_prob", 0.0) or 0.0),
    )
