"""Published networks to the digit, convolution biases excluded; MACs at 224×224."""

from functools import cache

import pytest
import torch

from supernet import GENOTYPES, create_network
from supernet.chain import Chain
from supernet.cost import count
from supernet.errors import InputError
from supernet.spaces import builder

# name: backbone params, backbone MACs / 1e6, all params (None: not published), all MACs / 1e6
ROWS = {
    "detnas-coco-fpn-300m": (1_849_664, 288.1, 3_531_072, 321.2),
    "detnas-coco-fpn-300m-alt": (1_857_344, 299.9, 3_538_752, 333.1),
    "detnas-coco-retinanet-300m": (2_041_872, 291.2, 3_723_280, 324.3),
    "detnas-voc-fpn-300m": (1_967_680, 316.4, None, 349.5),
    "detnas-voc-retinanet-300m": (1_796_032, 327.5, None, 360.6),
    "detnas-coco-fpn-1.3g": (8_415_168, 1269.2, 10_424_256, 1318.4),
    "detnas-coco-fpn-3.8g": (26_724_356, 3937.8, 29_519_876, 4025.6),
    "spos-a": (None, None, 3_558_464, 322.9),
    "spos-channels-a": (None, None, 3_432_579, 327.9),
}


SLOW = {
    "detnas-coco-fpn-300m-alt",
    "detnas-voc-fpn-300m",
    "detnas-voc-retinanet-300m",
    "detnas-coco-fpn-300m",
    "detnas-coco-fpn-1.3g",
    "detnas-coco-fpn-3.8g",
}


def test_every_genotype_has_a_row() -> None:
    elastic = ("ofa-mobilenetv3", "attentivenas", "autoformer-")  # whose counts stand in the tests of these spaces
    assert ROWS.keys() == {name for name, network in GENOTYPES.items() if not network.space.startswith(elastic)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in ROWS])
def test_published_counts_to_the_digit(name: str) -> None:
    network = create_network(name)
    whole, backbone = count(network, (3, 224, 224)), count(network[:-1], (3, 224, 224))
    actual = (backbone["params"], backbone["macs"], whole["params"], whole["macs"])
    for got, wanted, scale in zip(actual, ROWS[name], (1, 1e6, 1, 1e6), strict=True):
        if wanted is not None:
            assert round(got / scale, 1) == wanted


@cache
def weightless() -> Chain:
    """DetNAS on the meta device."""
    with torch.device("meta"):
        return builder("detnas-300m")(phase="standalone")


@pytest.mark.parametrize(
    ("option", "params", "macs"),
    [
        (0, 3.155, 295.8),
        pytest.param(1, 3.212, 313.7, marks=pytest.mark.slow),
        pytest.param(2, 3.298, 340.4, marks=pytest.mark.slow),
        (3, 3.871, 358.8),
    ],
)
def test_networks_of_one_operation(option: int, params: float, macs: float) -> None:
    chain = weightless()
    with torch.device("meta"):
        network = chain.subnet(chain.space.from_indices([option] * 20))
    costs = count(network, (3, 224, 224))
    assert (round(costs["params"] / 1e6, 3), round(costs["macs"] / 1e6, 1)) == (params, macs)


def test_searched_channels_to_all_known_digits() -> None:
    network = create_network("spos-channels-a")
    assert round(count(network, (3, 224, 224))["macs"] / 1e6, 2) == 327.86
    assert [unit.mid for stage in network[1:-1] for unit in stage] == [  # int(scale · half the output channels)
        44,
        38,
        25,
        38,
        48,
        112,
        64,
        80,
        96,
        192,
        256,
        192,
        160,
        224,
        256,
        160,
        320,
        384,
        320,
        256,
    ]


def test_an_unknown_network_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'detnas-coco-fpn-300m'"):
        create_network("detnas-coco-fpn-30m")


def test_dropout_before_the_linear_layer_is_that_of_the_released_code() -> None:
    """DetNAS drops channels in its supernet too, SPOS only in the standalone network."""
    for name, supernet, standalone in (("detnas-300m", 0.2, 0.2), ("detnas-1.3g", 0.2, 0.2), ("spos", 0.0, 0.1)):
        with torch.device("meta"):
            rates = [builder(name)(phase=phase).head.drop.p for phase in ("supernet", "standalone")]
        assert rates == [supernet, standalone]
    with torch.device("meta"):
        assert builder("detnas-300m")(dropout=0.0).head.drop.p == 0.0
