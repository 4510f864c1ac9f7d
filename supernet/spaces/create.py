"""The published spaces by name, and the two functions that build networks from them; importing it loads no torch."""

import contextlib
import fnmatch
import functools
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from supernet import plugins
from supernet.checked import checked_arguments, declared, is_whole, plain_scalar, problem_of, shown
from supernet.errors import InputError, nearest
from supernet.spaces.genotypes import GENOTYPES as GENOTYPES
from supernet.spaces.genotypes import NETWORKS as NETWORKS
from supernet.user_code import calling, import_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from supernet.chain import Chain


Phase = Literal["supernet", "standalone"]

SPACES: dict[str, str] = {
    "shufflenet-small": "supernet.spaces.shufflenet:shufflenet_small",
    "mobile-images": "supernet.spaces.mobile_images:mobile_images",
    "nasbench-macro": "supernet.spaces.nasbench_macro:nasbench_macro",
    "nasbench201": "supernet.spaces.nasbench201:nasbench201",
    "spos": "supernet.spaces.shufflenet:spos",
    "spos-channels": "supernet.spaces.shufflenet:spos_channels",
    "detnas-300m": "supernet.spaces.shufflenet:detnas_300m",
    "detnas-1.3g": "supernet.spaces.shufflenet:detnas_1_3g",
    "detnas-3.8g": "supernet.spaces.shufflenet:detnas_3_8g",
    "nasnet-cifar": "supernet.spaces.nasnet:nasnet_cifar",
    "nasnet-imagenet": "supernet.spaces.nasnet:nasnet_imagenet",
    "nasnet-search": "supernet.spaces.nasnet:nasnet_search",
    "nasnet-small": "supernet.spaces.nasnet:nasnet_small",
    "pnasnet-cifar": "supernet.spaces.nasnet:pnasnet_cifar",
    "pnasnet-imagenet": "supernet.spaces.nasnet:pnasnet_imagenet",
    "pnasnet-small": "supernet.spaces.nasnet:pnasnet_small",
    "amoebanet-cifar": "supernet.spaces.nasnet:amoebanet_cifar",
    "amoebanet-imagenet": "supernet.spaces.nasnet:amoebanet_imagenet",
    "amoebanet-search": "supernet.spaces.nasnet:amoebanet_search",
    "attentivenas": "supernet.spaces.attentivenas:attentivenas",
    "autoformer-tiny": "supernet.spaces.autoformer:autoformer_tiny",
    "autoformer-small": "supernet.spaces.autoformer:autoformer_small",
    "autoformer-base": "supernet.spaces.autoformer:autoformer_base",
    "elastic": "supernet.spaces.elastic:elastic_timm",
    "ofa-mobilenetv3": "supernet.spaces.ofa:ofa_mobilenetv3",
    "plain-small-widths": "supernet.spaces.widths:plain_small_widths",
    "resnet-20-widths": "supernet.spaces.widths:resnet_20_widths",
    "resnet-50-widths": "supernet.spaces.widths:resnet_50_widths",
    "mobilenetv2-widths": "supernet.spaces.widths:mobilenetv2_widths",
}
"""Name to builder. A space outside this project is named in the same way, `"package.module:builder"`."""


_LARGEST = {"num_classes": 10**6, "input_size": 2**14, "in_channels": 2**14}
"""Arguments that builders have in common, with the largest values that make sense."""

_LARGEST_OWN = {
    **dict.fromkeys(("depths", "blocks", "repeats", "cells"), 1000),
    **dict.fromkeys(("widths", "base", "filters", "channels", "head", "stem", "last", "dims", "heads", "table"), 2**16),
}
"""The same for the builders of this package: numbers of layers and units. More would not fit in memory."""

_REFUSALS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)
"""What torch and the published blocks raise for settings that no network can have, e.g. negative channels."""


@checked_arguments
def list_spaces(pattern: str = "*") -> list[str]:
    """Returns the names of the spaces that match a pattern such as `"*widths"`, sorted; no torch is loaded."""
    return sorted(fnmatch.filter(SPACES, pattern))


@checked_arguments
def list_networks(pattern: str = "*") -> list[str]:
    """Returns the names of the published networks that match a pattern such as `"nasnet*"`, sorted.

    `create_network(name)` builds each of them. No torch is loaded.
    """
    return sorted(fnmatch.filter([*GENOTYPES, *NETWORKS], pattern))


def builder(space: str) -> "Callable[..., Chain]":
    """Returns the function that builds the supernet of a space.

    Args:
        space: a name in `SPACES`, that of a plug-in (see `supernet.plugins`), or `"package.module:function"`, whose
            module is then imported: never pass on such a name from a file that you have received.

    Raises:
        InputError: there is no such space (the nearest name is offered), or the function cannot be imported.
    """
    if not isinstance(space, str):
        raise InputError(f"a space is a name, such as {next(iter(SPACES))!r}, not {space!r}")
    reference = SPACES.get(space) or plugins.plugins(plugins.SPACES).get(space, space)
    if not plugins.FUNCTION.fullmatch(reference):
        raise InputError(f"there is no space {space!r}; {nearest(space, SPACES)}")
    function: Callable[..., Chain] = import_function(reference, f"the space {space!r}")
    try:
        inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InputError(f"the space {space!r} is no function whose arguments can be listed: {error}") from error
    return function


def build(space: str, phase: Phase, settings: Mapping[str, Any]) -> "Chain":
    """Returns the supernet of a space before initialisation; settings that are None keep the default of the builder.

    Torch's global generators are left as they were, although its modules draw weights from them when they are made.

    Raises:
        InputError: see `builder`; or a setting that the builder does not take (the nearest one is offered), or a value
            that its blocks refuse. Whatever a user's own builder raises instead is one line that names it.
    """
    import torch

    from supernet.chain import Chain

    make = builder(space)
    if phase not in get_args(Phase):
        raise InputError(f"phase={phase!r} is none of {', '.join(map(repr, get_args(Phase)))}")
    arguments = {name: plain_scalar(value) for name, value in settings.items() if value is not None}
    for name, largest in _LARGEST.items():
        if name in arguments and not is_whole(arguments[name], 1, largest):
            raise InputError(f"{name}={arguments[name]!r} should be an integer from 1 to {largest:,}")
    if space in SPACES:
        for name, largest in _LARGEST_OWN.items():
            if any(not 1 <= number <= largest for number in _numbers(arguments.get(name))):
                raise InputError(f"{name}={shown(arguments[name])} should be from 1 to {largest:,}")
    signature = inspect.signature(make)
    known = list(signature.parameters)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        for name in arguments:
            if name not in known or name == "phase":
                choices = [setting for setting in known if setting != "phase"]
                raise InputError(f"the space {space!r} has no setting {name!r}; {nearest(name, choices)}")
        phases = {"phase": phase} if "phase" in known else {}
    else:
        phases = {"phase": phase}
    try:
        signature.bind(**phases, **arguments)
    except TypeError as error:
        raise InputError(f"the builder of the space {space!r} cannot be called: {error}") from error
    if space in SPACES:
        _check_numbers(make, arguments)
    with _naming(space), torch.random.fork_rng(devices=[]):
        try:
            with warnings.catch_warnings():  # the error below says it
                warnings.filterwarnings("ignore", "Initializing zero-element tensors")
                chain = make(**phases, **arguments)
        except InputError:
            raise
        except _REFUSALS as error:
            if space not in SPACES and not isinstance(error, ValueError):
                raise
            named = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if reason.startswith("zip() argument"):  # of builders that read several sequences in step
                reason = "sequences that belong together have different lengths"
            raise InputError(f"the space {space!r} cannot be built with {named or 'its defaults'}: {reason}") from error
    if not isinstance(chain, Chain):
        raise InputError(f"the builder of the space {space!r} returned {type(chain).__name__}, not a Chain")
    for name, parameter in chain.named_parameters():
        if not parameter.numel():
            named = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
            raise InputError(
                f"the space {space!r} cannot be built with {named or 'its defaults'}: the layer of {name} has no "
                "inputs or outputs; give it one or more"
            )
    if "input_size" in arguments:
        _check_resolution(chain, space, arguments["input_size"])
    if phases and phase == "supernet":
        chain.standalone = functools.partial(build, space, "standalone", arguments)
    return chain


def _numbers(value: Any) -> Iterator[float]:
    """Yields the numbers of a setting, those of nested lists too."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _check_numbers(make: "Callable[..., Chain]", arguments: Mapping[str, Any]) -> None:
    """Raises `InputError` for an argument that is not of the numbers that the annotation of the builder has."""
    for name, parameter in inspect.signature(make).parameters.items():
        kind = declared(parameter.annotation, make)
        if name not in arguments or kind not in (int, float, Sequence[int], Sequence[float]):
            continue
        value = arguments[name]
        plain = [plain_scalar(each) for each in value] if isinstance(value, list | tuple) else plain_scalar(value)
        if (problem := problem_of(kind, plain)) is not None:
            raise InputError(f"{name}={shown(value)} {problem}")


def _check_resolution(chain: "Chain", space: str, size: int) -> None:
    """Raises `InputError` if images have fewer pixels than the coarsest feature map's pixel stands for."""
    from supernet.chain import Layout

    arch = chain.space.sample(random.Random(0))  # whichever: options of one choice have the same stride, but for this
    resolution = chain.space["input.resolution"].options[0] if "input.resolution" in arch else None
    if resolution is not None:
        arch = chain.space.canonical({**arch, "input.resolution": resolution})
    stride = max((layout.stride for _, _, layout in chain.walk(arch) if isinstance(layout, Layout)), default=1)
    if resolution is not None and size < stride:
        pixels = round(stride * int(resolution) / size)
        raise InputError(
            f"a resolution of {resolution} pixels is too small for the space {space!r}, whose last feature maps have "
            f"one pixel per {pixels} pixels of an image: they would see padding alone; give at least {pixels}"
        )
    if size < stride:
        raise InputError(
            f"input_size={size} is too small for the space {space!r}, whose last feature maps have one pixel per "
            f"{stride} pixels of an image: they would see padding alone; give at least {stride}"
        )


def _check_generator(generator: object) -> None:
    """Raises `InputError` unless this is a generator of torch or None."""
    import torch

    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator={generator!r} should be a torch.Generator, such as torch.Generator().manual_seed(0)"
        )


def _naming(space: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which what a user's own builder raises becomes one line that names the space."""
    return contextlib.nullcontext() if space in SPACES else calling(f"the builder of the space {space!r}")


def create_supernet(
    space: str,
    *,
    num_classes: int | None = None,
    input_size: int | None = None,
    in_channels: int | None = None,
    phase: Phase = "supernet",
    generator: "torch.Generator | None" = None,
    **settings: Any,
) -> "Chain":
    """Returns a supernet with fresh weights.

    Args:
        space: a name in `SPACES`, or `"package.module:builder"` for your own.
        num_classes, input_size (pixels), in_channels: the published values if None.
        phase: `"supernet"` for the layers trained with shared weights, `"standalone"` for those of the final network.
        generator: draws the initial weights; torch's global generator if None, so `torch.manual_seed` reproduces them.
        settings: settings of the builder; `help(builder(space))` lists them.

    Raises:
        InputError: see `build`.
    """
    _check_generator(generator)
    arguments = {"num_classes": num_classes, "input_size": input_size, "in_channels": in_channels, **settings}
    chain = build(space, phase, arguments)
    with _naming(space):
        try:
            chain.initialize(generator)
        except ArithmeticError as error:  # a layer without inputs or outputs
            named = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items() if value is not None)
            raise InputError(f"the space {space!r} cannot be initialised with {named}: {error}") from error
    return chain


def create_network(
    space: str,
    *,
    arch: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
    in_channels: int | None = None,
    generator: "torch.Generator | None" = None,
    **settings: Any,
) -> "nn.Sequential":
    """Returns the standalone network of one architecture with fresh weights, to be trained from scratch.

    Its supernet only exists on the meta device and therefore takes no memory.

    Args:
        space: as in `create_supernet`, or without `arch` the name of a published network in `GENOTYPES` or `NETWORKS`.
        arch: decision names and values. Other arguments are as in `create_supernet`; None stands for the values of the
            published network.

    Raises:
        InputError: there is no such space or published network, `arch` is not an architecture of the space, or the
            `init` of the space leaves a tensor unset.
    """
    import torch

    from supernet.chain import realize

    _check_generator(generator)
    if arch is not None and (space in NETWORKS or space in GENOTYPES):
        raise InputError(f"{space!r} is a published network, which has its architecture; leave arch out")
    arguments = {"num_classes": num_classes, "input_size": input_size, "in_channels": in_channels, **settings}
    with torch.device("meta"):
        chain, chosen = _published(space, arguments) if arch is None else (build(space, "standalone", arguments), arch)
        network = chain.subnet(chosen)
    return cast("nn.Sequential", realize(network, chain.init, generator))


def _published(name: str, arguments: Mapping[str, Any]) -> "tuple[Chain, Mapping[str, Any]]":
    """Returns the supernet and the architecture of a published network."""
    if name in NETWORKS:
        from supernet.spaces.published_cells import CELLS, arch_of

        network = NETWORKS[name]
        own = {key: value for key, value in arguments.items() if value is not None}
        chain = build(network.space, "standalone", {**network.settings, **own})
        return chain, arch_of(CELLS[network.cells], chain.space)
    if name not in GENOTYPES:
        known = [*GENOTYPES, *NETWORKS]
        raise InputError(f"there is no published network {name!r}; give arch, or {nearest(name, known)}")
    genotype = GENOTYPES[name]
    own = {key: value for key, value in arguments.items() if value is not None}
    chain = build(genotype.space, "standalone", {**genotype.settings, **own})
    return chain, chain.space.from_indices(genotype.indices)
