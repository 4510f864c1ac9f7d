"""Every space keeps the contract; adding one means adding a line to `CASES`."""

from functools import partial

import pytest
from grounds import GROUNDS

from supernet import create_supernet
from supernet.searchable import Chain
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
}
ARCHS = {"spos-channels": 2}  # half a second each


SLOW = {
    f"{name}-published": partial(create_supernet, name)
    for name in ("nasbench201", "spos", "spos-channels", "detnas-300m", "detnas-1.3g", "detnas-3.8g")
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_space_keeps_the_contract_at_its_published_size(case: str) -> None:
    check_space(SLOW[case](), archs=1)


@pytest.mark.parametrize("case", CASES)
def test_space_keeps_the_contract(case: str) -> None:
    supernet: Chain = CASES[case]()
    check_space(supernet, archs=12 if case.startswith("ground") else ARCHS.get(case, 4))
