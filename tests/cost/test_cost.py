"""Costs against published tables, hand-computed numbers and torch's own counter; limits that name what is possible."""

import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import shufflenet_v2_x1_0

from helpers.tables import every_cost, table_of
from helpers.toy_spaces import TOY_SPACES
from supernet import Chain, create_network, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.chain import Layout
from supernet.cost import CostTable, Feasible, count
from supernet.cost.count import COSTS
from supernet.cost.table import standalone_chain
from supernet.errors import InputError
from supernet.space import Arch
from supernet.spaces import SPACES as PUBLISHED
from supernet.spaces import build
from supernet.spaces.nasbench_macro import OPTIONS, arch_of, table

SPACES: dict[str, Callable[..., Chain]] = {
    **{f"toy-{name}": builder for name, builder in TOY_SPACES.items()},
    "shufflenet-small": partial(create_supernet, "shufflenet-small"),
    "shufflenet-small-standalone": partial(create_supernet, "shufflenet-small", phase="standalone"),
    "nasbench-macro": partial(create_supernet, "nasbench-macro"),
}


@pytest.fixture(scope="module")
def macro() -> CostTable:
    """Counted costs of NAS-Bench-Macro at its published setting."""
    return table_of("nasbench-macro")


@pytest.fixture(scope="module")
def costs() -> dict[Arch, dict[str, int]]:
    """Those of every architecture of NAS-Bench-Macro."""
    return every_cost("nasbench-macro")


# -- published figures ------------------------------------------------------------------------------------------------


def test_every_row_of_nasbench_macro_to_the_digit(macro: CostTable, costs: dict[Arch, dict[str, int]]) -> None:
    rows = table()
    assert len(rows) == macro.space.size() == 6561
    assert set(rows) == set(costs)
    assert macro.input_shape == (3, 32, 32)
    wrong = {
        arch.to_json(): (costs[arch], row)
        for arch, row in rows.items()
        if costs[arch]["params"] != row["params"] or costs[arch]["macs"] != row["macs"]
    }
    assert not wrong


def test_one_network_has_one_normal_form_and_one_cost(macro: CostTable, costs: dict[Arch, dict[str, int]]) -> None:
    networks: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    # all three trainings of equal networks in the table are the same run, so the table agrees that they are equal
    accuracies: dict[str, set[float]] = defaultdict(set)
    for arch, row in table().items():
        key = macro.space.normal_form(arch).key
        networks[key].add(tuple(costs[arch].values()))
        accuracies[key].add(row["accuracy"])
    assert len(networks) == 3969
    assert all(len(values) == 1 for values in (*networks.values(), *accuracies.values()))


def test_published_first_row() -> None:
    """The table's first line reads 00000000, 387882 parameters and 7713280 FLOPs."""
    row = table()[arch_of("00000000")]
    assert (row["params"], row["macs"]) == (387882, 7713280)
    assert set(arch_of("01201201").values()) == set(OPTIONS)
    assert arch_of("21000000")["stage1.block0.op"] == "mb6_k5"
    assert arch_of("21000000")["stage1.block1.op"] == "mb3_k3"


def test_torchvisions_shufflenet() -> None:
    model = shufflenet_v2_x1_0(weights=None).eval()
    costs = count(model, (3, 224, 224))
    assert costs["params"] == 2_278_604
    assert round(costs["macs"] / 1e6, 1) == 144.9
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert flops.get_total_flops() == 2 * costs["macs"]


# -- count ------------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int, int, int]] = {
    # input shape, MACs, parameters, activations
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9, 8 * 3 * 9 + 8, 8 * 120),
    "stride": (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (3, 11, 12), 6 * 6 * 8 * 27, 216, 8 * 36),
    "valid": (nn.Conv2d(3, 8, (3, 5)), (3, 10, 12), 8 * 8 * 8 * 3 * 15, 8 * 45 + 8, 8 * 64),
    "groups": (nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), (8, 6, 6), 36 * 12 * 2 * 9, 12 * 18, 12 * 36),
    "depthwise": (nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), (8, 6, 6), 36 * 8 * 25, 200, 8 * 36),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, 2, bias=False), (4, 5, 5), 25 * 4 * 6 * 4, 96, 6 * 100),
    "transposed-groups": (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (4, 5, 5), 25 * 4 * 3 * 4, 48 + 6, 6 * 100),
    "linear": (nn.Linear(7, 5), (7,), 35, 40, 5),
    "linear-no-bias": (nn.Linear(7, 5, bias=False), (7,), 35, 35, 5),
    "linear-tokens": (nn.Linear(7, 5), (3, 7), 3 * 35, 40, 15),
    "conv-1d": (nn.Conv1d(4, 6, 3), (4, 10), 8 * 6 * 12, 6 * 12 + 6, 48),
    "norm-pool-act": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (3, 8, 8), 0, 6, 0),
    "nothing": (nn.Identity(), (3, 8, 8), 0, 0, 0),
}


@pytest.mark.parametrize("case", LAYERS)
def test_count_by_hand(case: str) -> None:
    module, shape, macs, params, activations = LAYERS[case]
    assert count(module, shape) == {"macs": macs, "params": params, "activations": activations, "matmul_macs": 0}


def test_a_tied_weight_counts_once_and_runs_twice() -> None:
    layer = nn.Linear(6, 6, bias=False)
    costs = count(nn.Sequential(layer, nn.ReLU(), layer), (6,))
    assert costs == {"macs": 72, "params": 36, "activations": 12, "matmul_macs": 0}


PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "fused")


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map; the products of q, k and v are written in one of `PRODUCTS`."""

    def __init__(self, channels: int, *, products: str = "matmul", heads: int = 1) -> None:
        super().__init__()
        self.channels, self.products, self.heads = channels, products, heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels, bias=False)

    def out_layout(self, layout: Layout) -> Layout:
        return layout

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (N, pixels, channels)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.products == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        elif self.products == "einsum":
            scores = torch.einsum("bhnc,bhmc->bhnm", q, k)
            mixed = torch.einsum("bhnm,bhmc->bhnc", scores.softmax(-1), v)
        elif self.products == "matmul":
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            if self.products == "bmm":
                scores = torch.bmm(q, k.transpose(1, 2))
            else:
                scores = torch.baddbmm(torch.zeros_like(q[:, :, :1]), q, k.transpose(1, 2))
            mixed = torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, self.heads))
        tokens = self.project(mixed.transpose(1, 2).flatten(2))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("products", PRODUCTS)
def test_attention_products_are_counted_apart(products: str, heads: int) -> None:
    """Linear layers count as in papers; the two products add 2 · 196² · 64 to 4 · 196 · 64²."""
    module = Attention(64, products=products, heads=heads).eval()
    costs = count(module, (64, 14, 14))
    assert costs["macs"] == 4 * 196 * 64**2 == 3_211_264
    assert costs["matmul_macs"] == 2 * 196**2 * 64 == 4_917_248
    assert costs["activations"] == 4 * 196 * 64
    # torch's counter has no formula for its fused attention on CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, torch.no_grad():
        module(torch.zeros(1, 64, 14, 14))
    assert flops.get_total_flops() == 2 * (costs["macs"] + costs["matmul_macs"])


def test_torchs_own_attention_layers_agree_with_its_counter() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    costs = count(layer, (10, 16))
    assert costs["macs"] == 10 * (4 * 16**2 + 2 * 16 * 32)
    assert costs["matmul_macs"] == 2 * 10**2 * 16
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        layer(torch.zeros(1, 10, 16))
    assert flops.get_total_flops() == 2 * (costs["macs"] + costs["matmul_macs"])


def attention_chain() -> Chain:
    """A convolution, and an attention block that may be left out or repeated with other heads."""
    options = {"none": nn.Identity(), "h1": Attention(8), "h2": Attention(8, products="fused", heads=2)}
    steps = [("stem", nn.Conv2d(3, 8, 3, stride=2, padding=1)), ("mix", ChoiceBlock(options))]
    return Chain("attention", [*steps, ("again", ChoiceBlock(options))], input_shape=(3, 16, 16))


def test_the_table_carries_attention_products_and_limits_hold_on_them() -> None:
    chain = attention_chain()
    table = CostTable(chain)
    for arch in chain.space.enumerate():
        assert table(arch) == count(chain.subnet(arch), (3, 16, 16))
    one_block = 2 * 64**2 * 8
    assert table.extremes("matmul_macs") == (0, 2 * one_block)
    feasible = Feasible(table, {"matmul_macs": one_block})
    assert feasible.count() == 5  # of 9: the four with two attention blocks exceed it
    assert feasible.explain().startswith("the limits are matmul_macs <= 65,536 (the space spans 0 to 131,072)")


class Watched(nn.Module):
    """Counts its calls and would take 4 TB if it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.bn(x).repeat(1, 1, 10**6, 10**6)
        return out


def test_count_neither_runs_nor_changes_the_module() -> None:
    module = Watched().train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    assert count(module, (2, 1, 1))["params"] == 4
    assert module.calls == 0
    assert module.training
    for name, tensor in module.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_params_are_the_trainable_ones() -> None:
    layer = nn.Linear(6, 6)
    layer.bias.requires_grad_(False)
    assert count(layer, (6,))["params"] == 36


# -- the table --------------------------------------------------------------------------------------------------------


LARGE = {("shufflenet-small", 33), ("nasbench-macro", 33)}


@pytest.mark.parametrize(
    ("space", "size"),
    [
        pytest.param(space, size, marks=[] if space.startswith("toy-") or (space, size) in LARGE else pytest.mark.slow)
        for space in SPACES
        for size in (16, 33, 47)
    ],
)
def test_the_table_equals_a_trace_at_any_size(space: str, size: int) -> None:
    supernet = SPACES[space](input_size=32)
    costs = CostTable(supernet, (3, size, size))
    rng = random.Random(size)
    final = standalone_chain(supernet)
    for arch in {supernet.space.sample(rng) for _ in range(4)}:
        assert costs(arch) == count(final.subnet(arch), (3, size, size))


SMALL = ("shufflenet-small", "nasbench201", "nasnet-small", "plain-small-widths")


@pytest.mark.parametrize(
    "space", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_costs_are_those_of_the_network_that_is_trained_from_scratch(space: str) -> None:
    """The blocks of some supernets have batch norm without scale and shift, which the networks have."""
    settings: dict[str, Any] = {"blocks": 2} if space == "nasnet-small" else {}
    with torch.device("meta"):
        supernet = build(space, "supernet", settings)
        standalone = build(space, "standalone", settings)
    assert supernet.space.digest() == standalone.space.digest()
    costs, rng = CostTable(supernet), random.Random(1)
    for number in range(2):
        arch = supernet.space.sample(rng)
        network = standalone.subnet(arch) if number else create_network(space, arch=arch, **settings)
        assert costs(arch) == count(network, supernet.input_shape)
    if space == "shufflenet-small":
        assert costs(arch)["params"] > count(supernet.subnet(arch), supernet.input_shape)["params"]


def test_options_of_one_layout_may_round_a_stride_differently() -> None:
    """33 pixels become 17 or 16; both are at stride 2, and the next step's cost depends on the pixels."""
    halve = {"up": nn.Conv2d(3, 4, 3, 2, padding=1), "down": nn.Conv2d(3, 4, 2, 2)}
    chain = Chain("c", [("a", ChoiceBlock(halve)), ("b", nn.Conv2d(4, 4, 1))], input_shape=(3, 33, 33))
    costs = CostTable(chain)
    for arch in chain.space.enumerate():
        assert costs(arch) == count(chain.subnet(arch), (3, 33, 33))
    assert costs.extremes("activations") == (4 * (16**2 + 16**2), 4 * (17**2 + 17**2))


def test_the_table_takes_the_supernets_own_size_and_leaves_it_alone() -> None:
    supernet = TOY_SPACES["sliced"](input_size=24).train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    costs, rng = CostTable(supernet), random.Random(0)
    archs = [supernet.space.sample(rng) for _ in range(5)]
    first = [costs(arch) for arch in archs]
    assert first == [count(supernet.subnet(arch), (3, 24, 24)) for arch in archs]
    first[0]["macs"] = 0  # a caller that changes the answer does not change the table
    assert costs(archs[0])["macs"] > 0
    assert supernet.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_entries_are_bounded_and_dropped_ones_are_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new cell architecture adds an entry per cell, so a long search would fill the memory."""
    monkeypatch.setattr("supernet.cost.table.MOST_ENTRIES", 8)
    supernet = TOY_SPACES["loose"]()
    table, rng = CostTable(supernet), random.Random(0)
    archs = [supernet.space.sample(rng) for _ in range(30)]
    first = [table(arch) for arch in archs]
    assert len(table._entries) == 8
    assert [table(arch) for arch in archs] == first
    assert first[0] == count(supernet.subnet(archs[0]), supernet.input_shape)


# -- extremes ---------------------------------------------------------------------------------------------------------


def test_extremes_of_nasbench_macro(macro: CostTable, costs: dict[Arch, dict[str, int]]) -> None:
    for cost in COSTS:
        values = [row[cost] for row in costs.values()]
        assert macro.extremes(cost) == (min(values), max(values))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("toy", ["chain", "sliced", "detector"])
def test_extremes_where_a_step_depends_on_the_one_before(toy: str, cost: str) -> None:
    costs = CostTable(TOY_SPACES[toy]())
    values = [costs(arch)[cost] for arch in costs.space.enumerate()]
    assert costs.extremes(cost) == (min(values), max(values))


def test_no_extremes_where_decisions_are_shared() -> None:
    assert CostTable(TOY_SPACES["loose"]()).extremes("macs") is None


# -- limits -----------------------------------------------------------------------------------------------------------


def test_an_unknown_cost_offers_the_nearest(macro: CostTable) -> None:
    with pytest.raises(InputError, match="no cost 'mac'; did you mean 'macs'"):
        Feasible(macro, {"mac": 1e6})
    with pytest.raises(InputError, match="no cost 'latency'; choose from: macs, params, activations"):
        Feasible(macro, {"macs": 1e9, "latency": 1})


def test_an_impossible_limit_names_the_cheapest(macro: CostTable) -> None:
    extremes = macro.extremes("macs")
    assert extremes is not None
    low, high = extremes
    message = f"'nasbench-macro' has macs <= {low - 1:,}; the cheapest has {low:,} and the most expensive {high:,}"
    with pytest.raises(InputError, match=message):
        Feasible(macro, {"macs": low - 1})
    feasible = Feasible(macro, {"macs": low})
    within = [arch for arch in macro.space.enumerate() if feasible(arch)]
    assert within == [arch_of("00000000")]


def test_every_limit_must_hold(macro: CostTable) -> None:
    feasible = Feasible(macro, {"macs": 5e7, "params": 1.5e6})
    archs = random.Random(0).sample(list(macro.space.enumerate()), 500)
    costs = [macro(arch) for arch in archs]
    assert [feasible(arch) for arch in archs] == [c["macs"] <= 5e7 and c["params"] <= 1.5e6 for c in costs]
    assert {(c["macs"] <= 5e7, c["params"] <= 1.5e6) for c in costs} == {(x, y) for x in (0, 1) for y in (0, 1)}
    assert all(map(Feasible(macro, {}), archs))


def test_explain_says_limits_and_ranges(macro: CostTable) -> None:
    low, high = macro.extremes("params") or (0, 0)
    text = Feasible(macro, {"macs": 3e7, "params": 2e6}).explain()
    assert text.startswith("the limits are macs <= 30,000,000 (the space spans 7,713,280 to ")
    assert text.endswith(f", params <= 2,000,000 (the space spans {low:,} to {high:,})")
    assert Feasible(CostTable(TOY_SPACES["loose"]()), {"macs": 1}).explain() == "the limits are macs <= 1"
