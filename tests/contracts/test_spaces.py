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
    "nasbench-macro": partial(create_supernet, "nasbench-macro", input_size=16),
}


@pytest.mark.parametrize("case", CASES)
def test_space_keeps_the_contract(case: str) -> None:
    supernet: Chain = CASES[case]()
    check_space(supernet, archs=12 if case.startswith("ground") else 4)
