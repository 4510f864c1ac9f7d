"""Every space keeps the contract; adding one means adding a line to `CASES`."""

from functools import partial

import pytest

from helpers.toy_spaces import GROUNDS
from supernet import create_supernet
from supernet.chain import Chain
from supernet.testing import check_space

CASES = {f"ground-{name}": builder for name, builder in GROUNDS.items()} | {
    "shufflenet-small": partial(create_supernet, "shufflenet-small", input_size=16),
    "shufflenet-small-standalone": partial(
        create_supernet, "shufflenet-small", input_size=16, phase="standalone", shuffle="interleave"
    ),
    "spos": partial(create_supernet, "spos", num_classes=10, input_size=64),
    "spos-channels": partial(create_supernet, "spos-channels", num_classes=10, input_size=64),
    "nasbench-macro": partial(create_supernet, "nasbench-macro", input_size=16),
    "nasbench201": partial(create_supernet, "nasbench201", cells=1, channels=8, input_size=16),
    "nasbench201-standalone": partial(
        create_supernet, "nasbench201", cells=1, channels=8, input_size=16, phase="standalone"
    ),
    "nasnet-small": partial(create_supernet, "nasnet-small", filters=4, input_size=8, blocks=2),
    "nasnet-small-1": partial(create_supernet, "nasnet-small", filters=4, input_size=8, blocks=1),
    "nasnet-small-standalone": partial(
        create_supernet,
        "nasnet-small",
        filters=4,
        input_size=24,
        blocks=2,
        phase="standalone",
        keep=0.5,
        dropout=0.5,
        auxiliary=True,
        auxiliary_channels=(4, 6),
        skip_reduction=True,
    ),
    "nasnet-imagenet": partial(
        create_supernet, "nasnet-imagenet", filters=9, repeats=1, input_size=33, num_classes=5, blocks=1
    ),
    "pnasnet-small": partial(create_supernet, "pnasnet-small", filters=4, input_size=8),
    "pnasnet-imagenet": partial(
        create_supernet, "pnasnet-imagenet", filters=9, repeats=1, input_size=33, num_classes=5, blocks=2
    ),
    "amoebanet-cifar": partial(create_supernet, "amoebanet-cifar", filters=4, repeats=1, input_size=8, blocks=3),
    "plain-small-widths": partial(create_supernet, "plain-small-widths", input_size=8, widths=(4, 6)),
    "resnet-20-widths": partial(create_supernet, "resnet-20-widths", input_size=8, widths=(4, 6), blocks=2),
    "resnet-50-widths": partial(create_supernet, "resnet-50-widths", input_size=32, base=4, depths=(1, 2)),
    "mobilenetv2-widths": partial(
        create_supernet, "mobilenetv2-widths", input_size=32, stem=6, table=((1, 4, 1, 1), (3, 6, 2, 2)), last=20
    ),
}
ARCHS = {"spos-channels": 2}  # half a second each
ARCHS |= {name: 2 for name in CASES if name.startswith(("nasnet", "pnasnet", "amoebanet"))}


SLOW = {
    f"{name}-published": partial(create_supernet, name)
    for name in ("nasbench201", "spos", "spos-channels", "detnas-300m", "detnas-1.3g", "detnas-3.8g")
}
SLOW |= {
    f"{name}-published": partial(create_supernet, name)
    for name in ("plain-small-widths", "resnet-20-widths", "resnet-50-widths", "mobilenetv2-widths")
}
SLOW |= {  # 224 pixels: the stem has no padding, so that it makes 111 of them, a whole pixel less than half
    f"{name}-published": partial(create_supernet, f"{name}-imagenet") for name in ("nasnet", "pnasnet", "amoebanet")
}
SLOW |= {
    f"{name}-{blocks}-blocks": partial(create_supernet, name, filters=4, input_size=8, repeats=2, blocks=blocks)
    for name in ("nasnet-cifar", "pnasnet-cifar", "amoebanet-cifar")
    for blocks in (1, 3, 5)
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_space_keeps_the_contract_at_its_published_size(case: str) -> None:
    check_space(SLOW[case](), archs=1)


@pytest.mark.parametrize("case", CASES)
def test_space_keeps_the_contract(case: str) -> None:
    supernet: Chain = CASES[case]()
    check_space(supernet, archs=12 if case.startswith("ground") else ARCHS.get(case, 4))
