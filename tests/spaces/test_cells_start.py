"""How the weights of a cell supernet start: all paths with nearly the same features."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from supernet import Arch, create_supernet
from supernet.chain import Chain, initialize
from supernet.spaces.nasnet import initialize_passing


def small(**settings: Any) -> Chain:
    return create_supernet("nasnet-small", **{"filters": 4, "input_size": 8, "blocks": 2, **settings})


def test_convolutions_of_a_fresh_supernet_pass_their_input_on() -> None:
    """Without noise exactly: channel for channel, repeated where there are more, summed where there are fewer."""
    x = torch.rand(2, 6, 5, 5)
    for out, expected in ((6, x), (12, torch.cat([x, x], 1)), (3, x[:, :3] + x[:, 3:])):
        conv = nn.Conv2d(6, out, 3, padding=1, bias=False)
        initialize_passing(conv, noise=0.0)
        torch.testing.assert_close(conv(x), expected)
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    initialize_passing(depthwise, noise=0.0)
    torch.testing.assert_close(depthwise(x), x)
    assert small().init is initialize_passing
    assert small(phase="standalone").init is initialize  # a network on its own starts as the papers' do


@torch.no_grad()
def test_paths_of_a_fresh_supernet_start_with_like_features() -> None:
    """Correlation of the mean state of two random paths over images and channels; He initialisation gives 0.1."""

    def features(chain: Chain, arch: Arch, x: Tensor) -> Tensor:
        state: Any = x
        for step, sub, _ in list(chain.walk(arch))[:-1]:
            state = step(state, sub) if sub or isinstance(state, tuple) else step(state)
        return state[1].tensor.unflatten(1, (len(state[1].ids), -1)).mean(dim=(1, 3, 4)).flatten()

    rng, x = random.Random(0), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3)
    found = {}
    for init in (initialize_passing, initialize):
        chain = small(blocks=2, ops=("sep3", "sep5", "max3", "identity"), chosen=False, combiners=("add",)).train()
        init(chain, torch.Generator().manual_seed(0))
        rows = torch.stack([features(chain, chain.space.sample(rng), x) for _ in range(6)])
        found[init] = float(torch.corrcoef(rows)[*torch.triu_indices(6, 6, 1)].mean())
    print(found)
    assert found[initialize_passing] > 0.5 > 0.3 > found[initialize]
