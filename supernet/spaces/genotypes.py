"""Published architectures by name, each with its space and one option number per decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supernet.spaces.attentivenas_stages import HEAD, KERNELS, STAGES, STEM


@dataclass(frozen=True)
class Genotype:
    """A published architecture.

    Attributes:
        space: name in `SPACES`.
        indices: option numbers in the order of the space's decisions, as `SearchSpace.from_indices` reads them.
        source: where the numbers were published.
        settings: settings of the builder that differ from its defaults.
    """

    space: str
    indices: tuple[int, ...]
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A published network made of cells.

    Attributes:
        space: name in `SPACES`.
        cells: name in `supernet.spaces.published_cells.CELLS`.
        settings: settings of the builder that differ from its defaults.
    """

    space: str
    cells: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _tokens(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace("|", " ").split()))


def _pairs(first: str, second: str) -> tuple[int, ...]:
    """Interleaves two lists: two decisions per block."""
    return tuple(token for pair in zip(_tokens(first), _tokens(second), strict=True) for token in pair)


def _ofa(depths: str, kernels: str, expansions: str, *, size: int, width: float = 1.0) -> Genotype:
    """A network of once-for-all: blocks per stage, then the kernel and expansion of every block in use."""
    indices: list[int] = []
    blocks = zip(kernels, expansions, strict=True)
    for depth in map(int, depths):
        used = [index for _ in range(depth) for index in _ofa_block(*next(blocks))]
        indices += [depth - 2, *used, *[0] * (8 - len(used))]
    assert not list(blocks)
    return Genotype(
        "ofa-mobilenetv3",
        tuple(indices),
        "once-for-all code, specialised networks",
        {"input_size": size, "width": width},
    )


def _ofa_block(kernel: str, expansion: str) -> tuple[int, int]:
    return "357".index(kernel), "346".index(expansion)


def _attentivenas(widths: str, depths: str, kernels: str, expansions: str, *, size: int) -> Genotype:
    """A network of AttentiveNAS: widths of stem, stages and head; per stage depth, kernel and expansion."""
    first, *middle, last = map(int, widths.split())
    indices = [STEM.index(first)]
    for stage, width, depth, kernel, expansion in zip(
        STAGES, middle, map(int, depths), map(int, kernels), map(int, expansions), strict=True
    ):
        indices += [stage.widths.index(width), stage.depths.index(depth), KERNELS.index(kernel)]
        indices += [stage.expansions.index(expansion)] if len(stage.expansions) > 1 else []
    indices.append(HEAD.index(last))
    return Genotype("attentivenas", tuple(indices), "AttentiveNAS and AlphaNet code", {"input_size": size})


def _autoformer(size: str, dim: int, heads: str, ratios: str, *, deepest: int) -> Genotype:
    """A network of AutoFormer: option numbers of the heads and of the ratios 3, 3.5 and 4 of every block in use."""
    blocks = _pairs(heads, ratios)
    depth = len(blocks) // 2
    indices = (dim, depth - deepest + 2, *blocks, *[0] * (2 * deepest - len(blocks)))
    return Genotype(f"autoformer-{size}", indices, "AutoFormer code", {"ratios": (3, 3.5, 4)})


_LARGE = _tokens(
    "0 0 3 1 2 1 0 2 | 0 3 1 2 3 3 2 0 | 2 1 1 3 2 0 2 2 2 1 3 1 0 3 3 3 | 1 3 3 3 3 3 3 3"
)  # the 3.8G network is the 1.3G winner, wider

GENOTYPES: dict[str, Genotype] = {
    "detnas-coco-fpn-300m": Genotype(
        "detnas-300m", _tokens("2 1 2 0 | 2 1 1 2 | 3 3 1 3 0 0 3 1 | 3 1 3 2"), "DetNAS code, COCO FPN"
    ),
    "detnas-coco-retinanet-300m": Genotype(
        "detnas-300m", _tokens("2 3 1 1 | 3 2 1 3 | 3 1 1 1 3 3 2 0 | 3 3 3 3"), "DetNAS code, COCO RetinaNet"
    ),
    "detnas-voc-fpn-300m": Genotype(
        "detnas-300m", _tokens("2 1 0 3 | 1 3 0 3 | 2 0 1 1 3 3 3 3 | 3 3 3 1"), "DetNAS code, VOC FPN"
    ),
    "detnas-voc-retinanet-300m": Genotype(
        "detnas-300m", _tokens("1 3 0 0 | 2 3 3 3 | 2 3 3 3 3 2 2 0 | 2 3 1 1"), "DetNAS code, VOC RetinaNet"
    ),
    "detnas-coco-fpn-300m-alt": Genotype(
        "detnas-300m", _tokens("0 0 0 1 | 2 0 3 3 | 1 2 2 2 3 3 3 1 | 3 2 3 2"), "DetNAS code, second COCO FPN network"
    ),
    "detnas-coco-fpn-1.3g": Genotype("detnas-1.3g", _LARGE, "DetNAS code, COCO FPN 1.3G"),
    "detnas-coco-fpn-3.8g": Genotype("detnas-3.8g", _LARGE, "DetNAS code, COCO FPN 3.8G"),
    "spos-a": Genotype(
        "spos", _tokens("2 1 0 1 | 2 0 2 0 | 2 0 2 3 0 0 0 0 | 3 2 3 3"), "SinglePathOneShot code, block search"
    ),
    "spos-channels-a": Genotype(
        "spos-channels",
        _pairs(
            "0 0 3 1 | 1 1 0 0 | 2 0 2 1 1 0 2 0 | 2 1 3 2", "6 5 3 5 | 2 6 3 4 | 2 5 7 5 4 6 7 4 | 4 5 4 3"
        ),  # operations, then channel scales
        "SinglePathOneShot code, block and channel search",
    ),
    "ofa-lg-g8-11ms": _ofa("23233", "3353753535575", "3334443443664", size=156),
    "ofa-lg-g8-24ms": _ofa("23334", "337535553755733", "334336434436664", size=220),
    "ofa-389m": _ofa("23344", "3355355355333373", "3336344364446663", size=224, width=1.2),
    "ofa-595m": _ofa("34444", "3535535753535733353", "3434463663466646663", size=236, width=1.2),
    "ofa-note10-16ms": _ofa("24334", "3355335535533753", "3334434434436443", size=192),
    "ofa-note10-30ms": _ofa("23334", "335335533333333", "334344436446643", size=224, width=1.2),
    "ofa-note10-50ms": _ofa("34443", "533533577357533333", "366466366446666666", size=220, width=1.2),
    "ofa-note10-8ms": _ofa("22322", "33333333335", "33344333444", size=160),
    "ofa-note8-31ms": _ofa("22334", "53553353573355", "33434444346333", size=152),
    "ofa-note8-65ms": _ofa("23334", "733537335335553", "334436646646443", size=204),
    "ofa-pixel1-143ms": _ofa("34444", "5335535753353533353", "3636663666466646663", size=240, width=1.2),
    "ofa-pixel1-28ms": _ofa("23224", "3373373353333", "3436436646436", size=160),
    "ofa-pixel1-58ms": _ofa("23334", "337535553755733", "334336434436664", size=220),
    "ofa-pixel2-25ms": _ofa("22232", "33557377353", "33644343464", size=144),
    "ofa-pixel2-50ms": _ofa("22224", "333335573575", "343336646343", size=208),
    "ofa-s7edge-29ms": _ofa("22222", "3353535535", "3334444463", size=144),
    "attentivenas-a0": _attentivenas("16 16 24 32 64 112 192 216 1792", "1333331", "3333333", "1444466", size=192),
    "attentivenas-a1": _attentivenas("16 16 24 32 64 112 192 216 1984", "1333331", "3335353", "1444466", size=224),
    "attentivenas-a2": _attentivenas("16 16 24 32 64 112 200 224 1984", "1333341", "3333353", "1454466", size=224),
    "attentivenas-a3": _attentivenas("16 16 24 32 64 112 208 224 1984", "2334351", "3335333", "1444466", size=224),
    "attentivenas-a4": _attentivenas("16 16 24 32 64 112 192 216 1984", "1334351", "3335353", "1445466", size=256),
    "attentivenas-a5": _attentivenas("16 16 24 32 72 112 192 216 1792", "1333461", "3335333", "1454466", size=256),
    "attentivenas-a6": _attentivenas("16 16 24 32 64 112 216 224 1984", "1334461", "3333353", "1465466", size=288),
    "alphanet-a5-small": _attentivenas("16 16 24 32 64 112 208 216 1984", "1334451", "3333353", "1445466", size=256),
    "autoformer-tiny-published": _autoformer(
        "tiny", 0, "0 0 0 0 0 0 0 0 0 0 1 0 0", "1 1 0 1 0 0 2 2 1 2 1 2 1", deepest=14
    ),
    "autoformer-small-published": _autoformer(
        "small", 1, "1 1 0 2 0 0 0 1 1 2 2 1 2", "0 1 0 1 2 2 2 2 2 2 2 1 2", deepest=14
    ),
    "autoformer-base-published": _autoformer(
        "base", 1, "0 0 0 0 0 1 0 0 1 0 1 0 0 1", "1 1 2 1 2 1 1 0 2 2 0 2 0 1", deepest=16
    ),
    "ofa-s7edge-58ms": _ofa("22433", "33537533333355", "33344343443644", size=192),
}

_LARGE_IMAGES = {"input_size": 331, "repeats": 6}

NETWORKS: dict[str, Network] = {
    "nasnet-a-mobile": Network("nasnet-imagenet", "nasnet-a"),
    "nasnet-a-large": Network(
        "nasnet-imagenet",
        "nasnet-a",
        {**_LARGE_IMAGES, "filters": 168, "stem": 96, "skip_reduction": True, "keep": 0.7},
    ),
    "nasnet-a-cifar": Network("nasnet-cifar", "nasnet-a"),
    "pnasnet-5-mobile": Network("pnasnet-imagenet", "pnasnet-5"),
    "pnasnet-5-large": Network(
        "pnasnet-imagenet", "pnasnet-5", {"input_size": 331, "repeats": 4, "filters": 216, "stem": 96, "keep": 0.6}
    ),
    "pnasnet-5-cifar": Network("pnasnet-cifar", "pnasnet-5"),
    "amoebanet-a-mobile": Network("amoebanet-imagenet", "amoebanet-a"),
    "amoebanet-a-190": Network("amoebanet-imagenet", "amoebanet-a", {**_LARGE_IMAGES, "filters": 190, "keep": 0.7}),
    "amoebanet-a-448": Network("amoebanet-imagenet", "amoebanet-a", {**_LARGE_IMAGES, "filters": 448, "keep": 0.7}),
    "amoebanet-a-cifar-32": Network("amoebanet-cifar", "amoebanet-a", {"filters": 32}),
    "amoebanet-a-cifar-36": Network("amoebanet-cifar", "amoebanet-a"),
    "amoebanet-b-mobile": Network("amoebanet-imagenet", "amoebanet-b", {"filters": 62, "repeats": 3}),
    "amoebanet-b-512": Network(
        "amoebanet-imagenet", "amoebanet-b", {"filters": 512, "repeats": 6, "input_size": 480, "keep": 0.7}
    ),
    "amoebanet-c-mobile": Network("amoebanet-imagenet", "amoebanet-c"),
    "amoebanet-c-228": Network("amoebanet-imagenet", "amoebanet-c", {**_LARGE_IMAGES, "filters": 228, "keep": 0.7}),
    "amoebanet-d-256": Network("amoebanet-imagenet", "amoebanet-d", {"filters": 256, "repeats": 6}),
    "enas-micro-cifar": Network("nasnet-cifar", "enas-micro", {"filters": 36, "repeats": 5}),  # on NASNet's skeleton
}
"""The published networks of cells; `create_network(name)` builds each of them."""
