"""Searchers that know nothing about widths search width spaces, with hundreds of ordered options per decision."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from helpers.searcher_cases import OURS
from searchers import testing
from supernet import create_supernet
from supernet.space import Arch
from supernet.spaces.widths import WidthChain


@dataclass(frozen=True)
class Within:
    """A limit on multiply-accumulates, counted from the layers' formulas."""

    chain: WidthChain
    limits: Mapping[str, float]

    def __call__(self, arch: Arch) -> bool:
        widths = {name: int(value) for name, value in arch.items()}
        return sum(layer.macs(widths) for layer in self.chain.layers()) <= self.limits["macs"]

    def explain(self) -> str:
        """The sentence that the error should include."""
        return "one channel per group is the smallest"


@pytest.mark.parametrize("name", OURS)
def test_every_searcher_proposes_widths_within_a_limit_and_resumes(name: str) -> None:
    """The parts of the contract that depend on the space; test_contract.py checks the others."""
    with torch.device("meta"):
        chain = create_supernet("resnet-20-widths")
    assert isinstance(chain, WidthChain)
    assert max(len(choice.options) for choice in chain.space.choices) == 129
    macs = sum(layer.macs({n: int(v) for n, v in chain.seed.items()}) for layer in chain.layers())
    limit = Within(chain, {"macs": 0.8 * macs})
    testing.check_proposals(OURS[name], chain.space, batch=7, trials=16, feasible=limit)
    testing.check_resume(OURS[name], chain.space, batch=7, trials=16, feasible=limit)
