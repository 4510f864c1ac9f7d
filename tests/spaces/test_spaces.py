"""Every space keeps the contract; adding one means adding a line to `CASES`."""

import inspect
import random
import subprocess
import sys
from functools import partial

import pytest
import torch

from helpers.mbconv_space import build as build_mbconv
from helpers.toy_spaces import TOY_SPACES
from supernet import GENOTYPES, SPACES, create_network, create_supernet, list_networks, list_spaces
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.spaces import NETWORKS, builder
from supernet.spaces.shufflenet import SCALES, channel_choice, shuffle_stages
from supernet.testing import check_space


def searched_channels() -> Chain:
    """The choice block of `spos-channels`, once at each stride."""
    stages = shuffle_stages(4, (8,), (2,), shuffle="parity", affine=False, block=channel_choice)
    steps = [("stem", ConvBNAct(3, 4, kernel=3)), *stages, ("head", ClassifierHead(8, 5, hidden=8))]
    return Chain("channels", steps, input_shape=(3, 8, 8))


CASES = {f"toy-{name}": builder for name, builder in TOY_SPACES.items()} | {
    "shufflenet-small": partial(create_supernet, "shufflenet-small", input_size=16),
    "shufflenet-small-standalone": partial(
        create_supernet, "shufflenet-small", input_size=16, phase="standalone", shuffle="interleave"
    ),
    "spos": partial(create_supernet, "spos", num_classes=10, input_size=32),
    "spos-channels": partial(create_supernet, "spos-channels", num_classes=10, input_size=32),
    "blocks-of-spos-channels": searched_channels,
    "nasbench-macro": partial(create_supernet, "nasbench-macro", input_size=16),
    "mobile-images": partial(
        create_supernet, "mobile-images", widths=(4, 8, 8, 12), depths=(1, 2, 3, 1), input_size=16
    ),
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
    "pnasnet-small": partial(create_supernet, "pnasnet-small", filters=4, input_size=8, blocks=3),
    "pnasnet-imagenet": partial(
        create_supernet, "pnasnet-imagenet", filters=9, repeats=1, input_size=33, num_classes=5, blocks=2
    ),
    "amoebanet-cifar": partial(create_supernet, "amoebanet-cifar", filters=4, repeats=1, input_size=8, blocks=2),
    "attentivenas": partial(
        create_supernet,
        "attentivenas",
        num_classes=4,
        input_size=32,
        stem=(8, 16),
        table=(((8, 16), (1, 2), (1,), 1, False), ((16, 24), (1, 2), (2, 3), 2, True)),
        head=(24, 32),
        ratio=2,
    ),
    "autoformer-tiny": partial(
        create_supernet,
        "autoformer-tiny",
        num_classes=4,
        input_size=32,
        dims=(8, 12),
        heads=(1, 2),
        ratios=(1.5, 2),
        depths=(1, 2),
        patch=8,
    ),
    "ofa-mobilenetv3": partial(
        create_supernet,
        "ofa-mobilenetv3",
        width=0.5,
        num_classes=4,
        input_size=32,
        depths=(1, 2),
        table=((8, 2, True, False), (12, 1, True, True)),
    ),
    "plain-small-widths": partial(create_supernet, "plain-small-widths", input_size=8, widths=(4, 6)),
    "resnet-20-widths": partial(create_supernet, "resnet-20-widths", input_size=8, widths=(4, 6), blocks=2),
    "resnet-50-widths": partial(create_supernet, "resnet-50-widths", input_size=32, base=4, depths=(1, 2)),
    "mobilenetv2-widths": partial(
        create_supernet, "mobilenetv2-widths", input_size=32, stem=6, table=((1, 4, 1, 1), (3, 6, 2, 2)), last=20
    ),
}
TOYS = 4
ARCHS = {"nasbench201": 3, "plain-small-widths": 3}  # of all other cases one, which takes a second or more


SLOW = {
    f"{name}-published": partial(create_supernet, name)
    for name in (
        "attentivenas",
        "nasbench201",
        "ofa-mobilenetv3",
        "spos",
        "spos-channels",
        "detnas-300m",
        "detnas-1.3g",
        "detnas-3.8g",
    )
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


LIKE_ANOTHER = {
    "amoebanet-cifar",
    "nasnet-small",
    "nasnet-small-1",
    "nasnet-small-standalone",
    "pnasnet-imagenet",
    "shufflenet-small-standalone",
    "spos",
    "spos-channels",
}
"""Cases whose blocks or skeleton another case has, in a smaller network."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in LIKE_ANOTHER else []) for case in CASES]
)
def test_space_keeps_the_contract(case: str) -> None:
    supernet: Chain = CASES[case]()
    check_space(supernet, archs=TOYS if case.startswith("toy-") else ARCHS.get(case, 1))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("toy-")])
def test_four_architectures_keep_the_contract(case: str) -> None:
    check_space(CASES[case](), archs=4, seed=1)


# -- names and settings -----------------------------------------------------------------------------------------------


def test_spaces_and_networks_are_listed() -> None:
    assert list_spaces() == sorted(SPACES)
    assert list_spaces("detnas-*") == ["detnas-1.3g", "detnas-3.8g", "detnas-300m"]
    assert list_networks() == sorted([*GENOTYPES, *NETWORKS])
    assert list_networks("spos*") == ["spos-a", "spos-channels-a"]
    assert list_spaces("none*") == []
    code = "import sys, supernet; supernet.list_spaces(), supernet.list_networks(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", SPACES)
def test_builders_spell_out_their_settings(name: str) -> None:
    parameters = inspect.signature(builder(name)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    assert {"num_classes", "input_size", "in_channels"} <= {p.name for p in parameters}


@pytest.mark.parametrize("name", ["detnas-300m", "spos", "nasnet-small", "nasbench-macro", "resnet-20-widths"])
def test_a_wrong_setting_is_named_with_the_nearest_one(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' has no setting 'inputsize'; did you mean 'input_size'\?"):
        create_supernet(name, inputsize=64)
    with pytest.raises(InputError, match="no setting 'inputsize'"):
        create_network(name, arch={}, inputsize=64)


def with_phase(*, num_classes: int = 10, input_size: int = 16, in_channels: int = 1, phase: str = "supernet") -> Chain:
    phases.append(phase)
    return TOY_SPACES["chain"]()


def without_phase(*, num_classes: int = 10, input_size: int = 16, in_channels: int = 1) -> Chain:
    return TOY_SPACES["chain"]()


def with_anything(**settings: object) -> Chain:
    phases.append(str(settings["phase"]))
    return TOY_SPACES["chain"]()


phases: list[str] = []


def test_the_phase_is_given_to_builders_that_take_it() -> None:
    phases.clear()
    for function in (with_phase, without_phase, with_anything):
        create_supernet(f"{__name__}:{function.__name__}", phase="standalone")
    assert phases == ["standalone", "standalone"]


def test_blocks_of_a_user_meet_the_contract_without_further_work() -> None:
    chain = build_mbconv(num_classes=3, input_size=16)
    assert chain.space.size() == 5**5 * 4**3
    check_space(chain, archs=2)


@torch.no_grad()
def test_the_smallest_scale_of_a_narrow_block_keeps_a_channel() -> None:
    chain = searched_channels().eval()
    drawn = (chain.space.sample(random.Random(seed)) for seed in range(100))
    arch = next(arch for arch in drawn if arch["stage1.block1.scale"] == min(SCALES))
    x = torch.randn(2, *chain.input_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chain(x, arch), chain.subnet(arch).eval()(x))
