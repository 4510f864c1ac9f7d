"""Published architectures by name: the space they are points of, and one option number per decision."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Genotype:
    """A published architecture.

    Attributes:
        space: name in `SPACES`.
        indices: option numbers in the order of the space's decisions, as `SearchSpace.from_indices` reads them.
        source: where the numbers stand.
    """

    space: str
    indices: tuple[int, ...]
    source: str


def _tokens(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace("|", " ").split()))


def _pairs(first: str, second: str) -> tuple[int, ...]:
    """Two decisions per block, written in two lists."""
    return tuple(token for pair in zip(_tokens(first), _tokens(second), strict=True) for token in pair)


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
}
