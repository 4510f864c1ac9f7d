"""timm's NASNet-A large and PNASNet-5 large in our standalone networks: equal features, and what would break them."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from supernet import create_network
from supernet.blocks.cells.plain import BlockCell, SamePad2d, SamePool2d
from supernet.chain import Chain
from supernet.spaces import NETWORKS, builder
from supernet.spaces.published_cells import CELLS, Cells, arch_of, cell
from supernet.testing import randomize

TOLERANCE = 1e-6
NASNET, PNASNET = "nasnet-a-large", "pnasnet-5-large"
PEERS = {NASNET: "nasnetalarge", PNASNET: "pnasnet5large"}
both = pytest.mark.parametrize("name", [NASNET, pytest.param(PNASNET, marks=pytest.mark.slow)])


@cache
def theirs(name: str) -> Any:
    """timm's network with random weights, statistics, scale and shift."""
    with torch.device("meta"):
        network = timm.create_model(PEERS[name])
    network = network.to_empty(device="cpu").eval()
    randomize(network, seed=0)
    return network


@cache
def features(name: str, size: int) -> tuple[Tensor, Tensor]:
    """An input, and their activated map before pooling."""
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actual = theirs(name).forward_features(x)
    assert actual.std() > 0.05  # the tolerance means something
    return x, actual


def cut(name: str, *, cells: Cells | None = None, **settings: Any) -> nn.Sequential:
    """Our network without memory; weights are assigned to it."""
    network = NETWORKS[name]
    with torch.device("meta"):
        arguments = {**network.settings, "count_padding": True, **settings}
        chain: Chain = builder(network.space)(phase="standalone", **arguments)
        return chain.subnet(arch_of(cells or CELLS[network.cells], chain.space)).eval()


def our_names(name: str, ours: nn.Sequential) -> dict[str, str]:
    """The peer's state-dict key for each of ours."""
    network, count = NETWORKS[name], 0
    steps = {"conv0": 0, "conv_0": 0, "last_linear": len(ours) - 1, "cell_stem_0": 1, "cell_stem_1": 2}
    for index in range(3, len(ours) - 1):
        reduces = network.space.startswith("nasnet") and ours[index].ops[0].stride == 2  # type: ignore[union-attr, index]
        if reduces:
            steps[f"reduction_cell_{len([key for key in steps if key.startswith('red')])}"] = index
        else:
            steps[f"cell_{count}"], count = index, count + 1
    paths = [path for path, _ in ours.named_children()]
    modules = {}
    for key in theirs(name).state_dict():
        step, _, rest = key.partition(".")
        modules[f"{paths[steps[step]]}.{_inner(rest, ours[steps[step]])}"] = key
    return modules


def _inner(key: str, step: nn.Module) -> str:
    """What stands behind the step's name."""
    if not isinstance(step, BlockCell):
        return f"fc.{key}" if "." not in key else key
    key = re.sub(r"^conv_1x1\.", "squeeze.", key)
    key = re.sub(r"^(conv_prev_1x1\.)?path_(\d)\.conv", r"fit.conv\2", key)
    key = re.sub(r"^(conv_prev_1x1\.)?final_path_bn", "fit.bn", key)
    key = re.sub(r"^conv_prev_1x1\.", "fit.", key)
    key = re.sub(r"separable_(\d)\.(depthwise|pointwise)_conv2d", r"\2\1", key)
    key = re.sub(r"bn_sep_(\d)", r"bn\1", key)
    block = re.match(r"comb_iter_(\d)_(left|right)\.", key)
    if block is None:
        return key
    position = 2 * int(block[1]) + (block[2] == "right")
    inside = (
        "1."
        if isinstance(step.ops[position], nn.Sequential)
        and "conv" not in dict(step.ops[position].named_children())
        and re.search(r"\.(conv|bn)\.", key)
        else ""
    )  # a pool that widens
    return f"ops.{position}.{inside}{key[block.end() :]}"


def transplant(name: str, ours: nn.Sequential) -> None:
    """Every key of the peer, under its name in ours; an error if one has no place, or one of ours no value."""
    state = theirs(name).state_dict()
    ours.load_state_dict({own: state[key] for own, key in our_names(name, ours).items()}, strict=True, assign=True)


def difference(name: str, ours: nn.Sequential, *, size: int = 107) -> float:
    x, expected = features(name, size)
    with torch.no_grad():
        actual = ours[:-1](x)[1].relu()
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


# -- equality ---------------------------------------------------------------------------------------------------------


@cache
def right(name: str) -> nn.Sequential:
    """Ours with the weights of the peer."""
    ours = cut(name)
    transplant(name, ours)
    return ours


def check(name: str, size: int) -> None:
    assert difference(name, right(name), size=size) <= TOLERANCE
    x, expected = features(name, size)
    with torch.no_grad():
        torch.testing.assert_close(right(name)(x), theirs(name).forward_head(expected), rtol=1e-5, atol=1e-6)


@both
def test_features_of_the_peer(name: str) -> None:
    check(name, 107)


@pytest.mark.slow
@both
def test_features_of_the_peer_at_full_size(name: str) -> None:
    check(name, 331)


@both
def test_tensorflows_averages_differ_from_the_peers(name: str) -> None:
    """timm divides by the whole window where it stands out over the border; PNASNet-5 has no average pooling."""
    ours = cut(name, count_padding=False)
    transplant(name, ours)
    assert (difference(name, ours) > 1e-3) == (name == NASNET)


# -- what the equality rests on ---------------------------------------------------------------------------------------


def outcome(name: str, ours: nn.Sequential) -> float:
    """The difference, infinite where the weights do not fit."""
    try:
        transplant(name, ours)
    except (RuntimeError, KeyError):
        return float("inf")
    return difference(name, ours)


def swapped(text: str, outputs: str) -> Any:
    turn = str.maketrans("01", "10")
    return cell(re.sub(r"\(\d\)", lambda match: match[0].translate(turn), text), outputs.translate(turn))


NORMAL = "sep5(0)+sep3(1); sep5(1)+sep3(1); avg3(0)+identity(1); avg3(1)+avg3(1); sep3(0)+identity(0)"
REDUCE = "sep5(0)+sep7(1); max3(0)+sep7(1); avg3(0)+sep5(1); identity(3)+avg3(2); sep3(2)+max3(0)"
ONE = "sep5(1)+max3(1); sep7(0)+max3(0); sep5(0)+sep3(0); sep3(4)+max3(0); sep3(1)+identity(0)"
WRONG: dict[str, tuple[str, Callable[[], nn.Sequential], bool]] = {
    # network, how it is made, whether the weights still fit it
    "skip": (NASNET, lambda: cut(NASNET, skip_reduction=False), True),
    "skip-pnasnet": (PNASNET, lambda: cut(PNASNET, skip_reduction=True), True),
    "order": (NASNET, lambda: cut(NASNET, cells=two(swapped(NORMAL, "1 2 3 4 5 6"), reduction())), True),
    "order-pnasnet": (PNASNET, lambda: cut(PNASNET, cells=Cells({"cell": swapped(ONE, "2 3 4 5 6")})), False),
    "unused-only": (NASNET, lambda: cut(NASNET, cells=two(cell(NORMAL), reduction())), False),
    "unused-only-reduction": (NASNET, lambda: cut(NASNET, cells=two(normal(), cell(REDUCE))), False),
    "unused-only-pnasnet": (PNASNET, lambda: cut(PNASNET, cells=Cells({"cell": cell(ONE)})), False),
}


def two(first: Any, second: Any) -> Cells:
    return Cells({"normal": first, "reduce": second})


def normal() -> Any:
    return cell(NORMAL, "1 2 3 4 5 6")


def reduction() -> Any:
    return cell(REDUCE, "3 4 5 6")


def test_the_right_cells_as_they_are_written_here() -> None:
    """What the wrong ones are made from."""
    assert two(normal(), reduction()).cells == CELLS["nasnet-a"].cells
    assert {"cell": cell(ONE, "2 3 4 5 6")} == CELLS["pnasnet-5"].cells


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "unused-only" else pytest.mark.slow) for case in WRONG]
)
def test_a_wrong_network_is_detected(case: str) -> None:
    name, make, fits = WRONG[case]
    actual = outcome(name, make())
    assert actual > 1e-3
    assert (actual < float("inf")) == fits


@both
def test_symmetric_padding_is_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def pad(self: SamePad2d, x: Tensor) -> Tensor:
        return functional.pad(x, [side // 2 for side in reversed(self.kernel) for _ in range(2)])

    def pool(self: SamePool2d, x: Tensor) -> Tensor:
        kind = functional.max_pool2d if self.kind == "max" else functional.avg_pool2d
        return kind(x, self.kernel, self.stride, self.kernel // 2)

    monkeypatch.setattr(SamePad2d, "forward", pad)
    assert difference(name, right(name)) > 1e-3
    monkeypatch.undo()
    monkeypatch.setattr(SamePool2d, "forward", pool)
    assert difference(name, right(name)) > 1e-3


class _Leading(nn.Module):
    """The first channels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]


@both
def test_a_missing_squeeze_of_the_older_input_is_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: Any = right(name)[5]
    monkeypatch.setattr(built, "fit", _Leading(built.squeeze.out_channels))
    assert difference(name, right(name)) > 1e-3
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*fit\.conv\.weight"):
        transplant(name, right(name))  # what is left over of the peer


def test_the_first_cell_reads_the_stem_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    built: Any = right(NASNET)[1]
    assert isinstance(built.fit, nn.Identity)
    monkeypatch.setattr(built, "fit", _Leading(built.squeeze.out_channels))  # as a squeezed one would be
    with pytest.raises(RuntimeError):
        difference(NASNET, right(NASNET))


def test_published_names_build_these_networks() -> None:
    """Smaller here, so that it takes no time."""
    network = create_network(NASNET, filters=24, repeats=1, num_classes=5)
    assert [part.keep_previous for part in network if isinstance(part, BlockCell)] == [
        False,
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)
