"""Networks of timm as backbones of detectors, written with torch alone so that a detector can be exported."""

import timm
from torch import nn

from supernet.blocks.plain import Whole
from supernet.chain import Chain, Layout, largest, step_layout
from supernet.checked import File, checked_arguments
from supernet.errors import InputError
from supernet.spaces.elastic import ElasticChain, elastic_timm
from supernet.spaces.pretrained import load_pretrained

PREFIX = "timm:"
"""What the name of a backbone begins with that is a network of timm."""
MAPS = ("stem", "stage")
"""What the names of steps begin with that have maps: others are a last 1×1 convolution and the classifier."""
REMEDY = "take a ResNet, an EfficientNet or a MobileNet, such as timm:resnet18 or timm:tf_efficientnet_lite0"


def is_timm(backbone: object) -> bool:
    """Returns whether a backbone is given as the name of a network of timm, such as "timm:resnet18"."""
    return isinstance(backbone, str) and backbone.startswith(PREFIX)


@checked_arguments
def timm_backbone(name: str, weights: File | None = None) -> Chain:
    """Returns a network of timm as a chain without choices, for `create_detector` and `create_detector_network`.

    It has no classifier, and its maps are those of `timm.create_model(name, features_only=True)`. The layers are this
    project's, with copies of the weights, and an export writes them out with torch alone.

    Args:
        name: of timm, with or without "timm:" in front: a ResNet, or a network of timm's classes EfficientNet and
            MobileNetV3, all of whose blocks `supernet.spaces.elastic` can write.
        weights: a file of the network's weights, `.safetensors` or `.pth`, with timm's names; fresh weights if None.
            The classifier in it is not used.

    Raises:
        InputError: timm has no such network, it is of another family, or the file does not hold its weights.
    """
    bare = name.removeprefix(PREFIX)
    supernet = elastic_timm(model=bare)
    if supernet.whole:
        raise InputError(
            f"{PREFIX}{bare} cannot be a backbone: {len(supernet.whole)} of its blocks cannot be written with torch "
            f"alone, the first is {supernet.whole[0]}; {REMEDY}"
        )
    if not supernet.step_names[0].startswith(MAPS):
        raise InputError(
            f"{PREFIX}{bare} cannot be a backbone: it has no feature maps, as a vision transformer; {REMEDY}"
        )
    if weights is not None:
        load_pretrained(supernet, weights, sort=False)
    arch = largest(supernet.space)
    modules = supernet.steps_in(supernet.subnet(arch))
    steps: list[tuple[str, nn.Module]] = []
    for name_of_step, module, (step, sub, before) in zip(
        supernet.step_names, modules, supernet.walk(arch), strict=True
    ):
        if not name_of_step.startswith(MAPS):
            break
        after = step_layout(step, sub, before)
        assert isinstance(before, Layout)
        assert isinstance(after, Layout)
        stride = int(after.stride // before.stride)
        steps.append((name_of_step, Whole(module, out_channels=after.channels, stride=stride)))
    return Chain(f"{PREFIX}{bare}", steps, input_shape=supernet.input_shape, init=supernet.init)


def feature_steps(supernet: ElasticChain) -> Chain:
    """Returns the steps of an elastic network up to its last feature map, as `features_only` of timm does.

    Depth, kernels, expansions and widths of its blocks can be searched with a detector; the weights are shared with
    `supernet`.

    Raises:
        InputError: it resizes images, which would move the boxes; or it has no maps, as a vision transformer.
    """
    steps = [(name, step) for name, step in supernet.steps if name.startswith(MAPS)]
    if steps[0][0] != supernet.step_names[0]:
        raise InputError(
            "the backbone of a detector cannot resize images, since boxes are in their pixels; leave resolutions out"
        )
    return Chain(supernet.space.name, steps, input_shape=supernet.input_shape, init=supernet.init)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, on the scale 0..1, that timm's weights of a network expect."""
    config = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None:
        raise InputError(f"timm has no weights for {name!r}; give data.mean and data.std")
    return tuple(map(float, config.mean)), tuple(map(float, config.std))
