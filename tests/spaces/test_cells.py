"""Cells: their decisions, one representative per graph, published cells as points, and what a searched one computes."""

import functools
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from searchers import AgingEvolution
from supernet import Arch, SearchSpace, create_supernet
from supernet.blocks.cells.graph import Block, CellGraph, canonical_graph, cell_space, graph_of, loose_ends
from supernet.blocks.cells.ops import AMOEBANET_OPS, OPS, cell_op
from supernet.blocks.cells.plain import BlockCell, DropPath, FactorizedReduction, SamePool2d
from supernet.chain import Chain
from supernet.errors import InputError
from supernet.spaces import NETWORKS, builder
from supernet.spaces.published_cells import CELLS, Cells, arch_of, cell, cells_of, enas_cell


@functools.cache
def space_of(name: str, **settings: Any) -> SearchSpace:
    with torch.device("meta"):
        return builder(name)(phase="standalone", **settings).space


# -- sizes ------------------------------------------------------------------------------------------------------------

INPUTS = math.prod(range(2, 7)) ** 2  # two operands in each of five blocks


def test_sizes_by_the_papers_formulas() -> None:
    nasnet = space_of("nasnet-cifar", chosen=False)
    assert nasnet.size() == (INPUTS * 13**10 * 2**5) ** 2
    assert f"{nasnet.size():.2e}" == "5.23e+36"
    assert f"{space_of('nasnet-cifar', chosen=False, combiners=('add',)).size():.1e}" == "5.1e+33"
    amoebanet = space_of("amoebanet-cifar", chosen=False, ops=AMOEBANET_OPS)
    assert amoebanet.size() == (INPUTS * 8**10) ** 2
    assert f"{amoebanet.size():.1e}" == "3.1e+29"
    pnasnet = space_of("pnasnet-cifar", chosen=False)
    levels = [((b + 2) * 8) ** 2 for b in range(5)]
    assert levels == [256, 576, 1024, 1600, 2304]
    assert pnasnet.size() == sum(math.prod(levels[: b + 1]) for b in range(5))
    assert f"{pnasnet.fix({'cell.blocks': 5}).size():.2e}" == "5.57e+14"
    # with a choice of outputs, any of the six states but the last may be handed on too
    assert space_of("nasnet-cifar").size() == nasnet.size() * (1 + 2**6) ** 2


def test_the_searched_spaces_are_those_of_the_papers() -> None:
    """No choice of outputs, so that of AmoebaNet's decisions half are inputs and half are operations."""
    nasnet, amoebanet = space_of("nasnet-search"), space_of("amoebanet-search")
    assert f"{nasnet.size():.2e}" == "5.23e+36"
    assert f"{amoebanet.size():.1e}" == "3.1e+29"
    assert len(nasnet) == 2 * 25
    assert len(amoebanet) == 2 * 20
    rng, draws = random.Random(0), 4000
    parent = amoebanet.sample(rng)
    changed = Counter(
        next(name for name in parent if child[name] != parent[name])
        for child in (amoebanet.mutate_one(parent, rng) for _ in range(draws))
    )
    shares = Counter(kind for name in changed.elements() for kind in (name.endswith("_op"), name.split(".")[0]))
    assert shares[True] == pytest.approx(draws / 2, abs=150)  # operations
    assert shares["normal"] == pytest.approx(draws / 2, abs=150)
    assert AgingEvolution(amoebanet).identity == 0.05


@pytest.mark.parametrize(
    "settings", [{}, {"fewer": True}, {"combiners": ("add", "concat")}, {"chosen": False}], ids=str
)
def test_sizes_by_enumeration(settings: dict[str, Any]) -> None:
    space = cell_space(("a", "b"), blocks=2, **settings)
    archs = list(space.enumerate())
    assert len(archs) == len(set(archs)) == space.size()


def test_136_cells_of_one_block() -> None:
    space = space_of("pnasnet-cifar", chosen=False).fix({"cell.blocks": 1})
    archs = list(space.enumerate())
    assert len(archs) == 256
    assert len({space.normal_form(arch) for arch in archs}) == 136


def test_decisions_in_the_order_of_the_controller() -> None:
    names = [choice.name for choice in space_of("nasnet-cifar").choices]
    assert names[:6] == [f"normal.block0.{n}" for n in ("left", "right", "left_op", "right_op", "combine")] + [
        "normal.block1.left"
    ]
    assert len([name for name in names if "block" in name]) == 50
    assert names[25:32] == ["normal.outputs", *(f"normal.output{state}" for state in range(6))]
    assert names[32] == "reduce.block0.left"


def test_fewer_blocks_are_an_ordinary_architecture() -> None:
    space = space_of("pnasnet-small")
    values = {
        f"cell.block{b}.{n}": v
        for b in range(2)
        for n, v in (("left", b), ("right", 0), ("left_op", "sep3"), ("right_op", "max3"))
    }
    arch = space.canonical({"cell.blocks": 2, "cell.outputs": "loose", **values})
    assert len(graph_of(arch.sub("cell")).blocks) == 2
    assert not [choice.name for choice in space.active(arch) if "block2" in choice.name]
    assert space.to_indices(arch)[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"blocks": 0}, "blocks=0"), ({"combiners": ("mul",)}, "'mul'"), ({"combiners": ("concat",)}, "between 'add'")],
)
def test_impossible_spaces_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cell_space(("a",), **settings)


# -- one representative per graph -------------------------------------------------------------------------------------


def moves(graph: CellGraph) -> Iterator[CellGraph]:
    """The graph with one pair of operands swapped, or two neighbouring blocks that do not read each other."""
    for number, block in enumerate(graph.blocks):
        turned = Block(block.right, block.left, block.right_op, block.left_op, block.combine)
        yield CellGraph((*graph.blocks[:number], turned, *graph.blocks[number + 1 :]), graph.outputs)
    for number in range(len(graph.blocks) - 1):
        first, second = graph.blocks[number : number + 2]
        here = number + 2
        if here in (second.left, second.right):
            continue
        turn = {here: here + 1, here + 1: here}
        order = [*graph.blocks[:number], second, first, *graph.blocks[number + 2 :]]
        blocks = tuple(b._replace(left=turn.get(b.left, b.left), right=turn.get(b.right, b.right)) for b in order)
        yield CellGraph(blocks, tuple(sorted(turn.get(state, state) for state in graph.outputs)))


@pytest.mark.parametrize(
    ("ops", "settings"),
    [
        ("ab", {"blocks": 2}),
        ("a", {"blocks": 3, "chosen": False}),
        ("a", {"blocks": 2, "combiners": ("add", "concat")}),
    ],
    ids=str,
)
def test_only_equal_graphs_share_a_normal_form(ops: str, settings: dict[str, Any]) -> None:
    """Against the classes that the smallest steps between equal graphs connect."""
    space = cell_space(tuple(ops), **settings)
    archs = list(space.enumerate())
    leader = {graph_of(arch): graph_of(arch) for arch in archs}

    def root(graph: CellGraph) -> CellGraph:
        while leader[graph] != graph:
            graph = leader[graph]
        return graph

    for graph in list(leader):
        for moved in moves(graph):
            leader[root(moved)] = root(graph)
    classes: dict[CellGraph, set[Arch]] = defaultdict(set)
    for arch in archs:
        normal = space.normal_form(arch)
        assert normal in space
        assert space.normal_form(normal) == normal
        assert graph_of(normal) in leader
        assert root(graph_of(normal)) == root(graph_of(arch))  # no two networks become one
        classes[root(graph_of(arch))].add(normal)
    assert all(len(members) == 1 for members in classes.values())
    assert 1 < len(classes) < len(archs)


def test_large_cells_have_one_normal_form() -> None:
    space, rng = space_of("nasnet-cifar"), random.Random(0)
    for _ in range(50):
        arch = space.sample(rng)
        graph = moved = graph_of(arch.sub("normal"))
        for _ in range(20):
            moved = rng.choice(list(moves(moved)))
        assert canonical_graph(moved) == canonical_graph(graph)
        assert space.normal_form(arch) in space


def test_a_loose_end_is_not_chosen() -> None:
    space = space_of("nasnet-small", blocks=1)
    rng = random.Random(0)
    arch = space.sample(rng)
    chosen = {**arch, "normal.block0.left": 0, "normal.block0.right": 0, "normal.outputs": "chosen"}
    chosen |= {"normal.output0": False, "normal.output1": True}
    assert space.normal_form(space.canonical(chosen))["normal.outputs"] == "loose"
    chosen["normal.output0"] = True
    assert space.normal_form(space.canonical(chosen))["normal.outputs"] == "chosen"


# -- genotypes --------------------------------------------------------------------------------------------------------


def test_published_cells_are_points_of_their_spaces() -> None:
    for network in NETWORKS.values():
        space = space_of(network.space)
        arch = arch_of(CELLS[network.cells], space)
        assert arch in space
        assert cells_of(arch, space).cells == CELLS[network.cells].cells
        assert space.from_indices(space.to_indices(arch)) == arch


def test_published_cells_pass_on_all_loose_ends() -> None:
    """All loose ends, and consumed states besides in nearly all."""
    extra = {
        (name, step): sorted(set(graph.outputs) - set(loose_ends(graph.blocks)))
        for name, cells in CELLS.items()
        for step, graph in cells.cells.items()
    }
    for cells in CELLS.values():
        for graph in cells.cells.values():
            assert set(loose_ends(graph.blocks)) <= set(graph.outputs)
            assert len(graph.blocks) == 5
    assert extra == {
        ("nasnet-a", "normal"): [1],
        ("nasnet-a", "reduce"): [3],
        ("pnasnet-5", "cell"): [4],
        ("amoebanet-a", "normal"): [1],
        ("amoebanet-a", "reduce"): [2, 4],
        ("amoebanet-b", "normal"): [0],
        ("amoebanet-b", "reduce"): [],
        ("amoebanet-c", "normal"): [1, 2],
        ("amoebanet-c", "reduce"): [0, 2, 4],
        ("amoebanet-d", "normal"): [0],
        ("amoebanet-d", "reduce"): [],
        ("enas-micro", "normal"): [],
        ("enas-micro", "reduce"): [],
    }


def test_cells_are_read_from_text() -> None:
    written = "sep5(0) + sep3(1); avg3(2) | identity(1)"
    assert cell(written).blocks == (Block(0, 1, "sep5", "sep3", "add"), Block(2, 1, "avg3", "identity", "concat"))
    assert cell(written).outputs == (3,)
    assert cell("sep5(0)+sep3(0)").outputs == (1, 2)  # the input that no block reads too
    assert cell(written, "3 1").outputs == (1, 3)


def test_enas_counts_the_older_input_first() -> None:
    graph = enas_cell("0 2 1 4 2 0 0 1")
    assert graph.blocks == (Block(1, 0, "avg3", "identity"), Block(2, 1, "sep3", "sep5"))
    assert CELLS["enas-micro"].cells["normal"].blocks[0] == Block(1, 1, "avg3", "sep3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cell("sep5(0)+sep3(1); sep5(0)"), r"block 1 is 'sep5\(0\)'"),
        (
            lambda: Cells({"normal": cell("sep5(0)+sep3(1); sep5(0)+sep3(3)")}),
            r"block 1 of cell 'normal': right reads state 3, but only 0\.\.2",
        ),
        (lambda: Cells({"normal": cell("sep5(0)+sep3(1)", "")}), "cell 'normal': outputs is empty"),
        (lambda: Cells({"normal": cell("sep5(0)+sep3(1)", "2 4")}), r"outputs name state 4, but there are only 0\.\.2"),
        (lambda: enas_cell("0 2 1"), "four numbers per block"),
        (lambda: enas_cell("0 2 1 7"), "block 0: right_op is 7"),
    ],
)
def test_impossible_cells_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


GOOD = "sep3(0)+sep5(1); identity(2)+max3(0)"


@pytest.mark.parametrize(
    ("normal", "outputs", "settings", "message"),
    [
        (
            "sep3(0)+sep9(1); identity(2)+max3(0)",
            None,
            {},
            r"block 0 of cell 'normal': right_op is 'sep9' in space 'nasnet-small': did you mean",
        ),
        (
            "sep3(0)+sep5(1); identity(2)|max3(0)",
            None,
            {"combiners": ("add",)},
            r"block 1 of cell 'normal': combine is 'concat', for which space 'nasnet-small' has no choice",
        ),
        (
            GOOD + "; sep3(0)+sep3(1)",
            None,
            {},
            r"block 2 of cell 'normal': cells of space 'nasnet-small' have 2 blocks",
        ),
        ("sep3(0)+sep5(1)", None, {}, "cell 'normal' has 1 blocks, cells of space 'nasnet-small' have 2"),
        ("sep3(0)+sep5(1); identity(0)+max3(0)", "3", {}, "outputs leave out state 2, which no block reads"),
        (
            GOOD,
            "2 3",
            {"chosen": False},
            "cell 'normal': outputs is 'chosen', for which space 'nasnet-small' has no choice",
        ),
    ],
)
def test_cells_outside_a_space_are_refused(
    normal: str, outputs: str | None, settings: dict[str, Any], message: str
) -> None:
    space = space_of("nasnet-small", blocks=2, **settings)
    assert arch_of(Cells({"normal": cell(GOOD), "reduce": cell(GOOD)}), space) in space
    with pytest.raises(InputError, match=message):
        arch_of(Cells({"normal": cell(normal, outputs), "reduce": cell(GOOD)}), space)


def test_cells_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"has the cells \['cell'\], space 'nasnet-cifar' has \['normal', 'reduce'\]"):
        arch_of(CELLS["pnasnet-5"], space_of("nasnet-cifar"))
    with pytest.raises(InputError, match="space 'chain' is not a space of cells"):
        cells_of(Arch({"a": 1}), SearchSpace("chain"))


# -- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_operations_give_the_filters_at_either_stride(name: str) -> None:
    for channels, stride, side in itertools.product((8, 6), (1, 2), (7, 8)):
        op = cell_op(name, channels, 8, stride=stride).eval()
        assert op(torch.randn(2, channels, side, side)).shape == (2, 8, -(-side // stride), -(-side // stride))
    kept = cell_op(name, 8, 8)
    params = sum(p.numel() for p in kept.parameters())
    assert (
        params
        == {  # at 8 filters; batch norm has 16
            "identity": 0,
            "avg3": 0,
            "max2": 0,
            "max3": 0,
            "max5": 0,
            "max7": 0,
            "sep3": 2 * (72 + 64 + 16),
            "sep5": 2 * (200 + 64 + 16),
            "sep7": 2 * (392 + 64 + 16),
            "dilsep3": 2 * (72 + 64 + 16),
            "conv1": 64 + 16,
            "conv3": 576 + 16,
            "dil3": 576 + 16,
            "conv1x3_3x1": 2 * (192 + 16),
            "conv1x7_7x1": 2 * (448 + 16),
            "neck3": 16 + 4 + 36 + 4 + 16 + 16,
            "neck1x7_7x1": 16 + 4 + 2 * (28 + 4) + 16 + 16,
            "neckdil3_2": 92,
            "neckdil3_4": 92,
            "neckdil3_6": 92,
            "neck1x3_3x1": 24 + 6 + 2 * (27 + 6) + 24 + 16,
        }[name]
    )


def test_operations_change_channels_as_published() -> None:
    """Pools widen without ReLU, a strided identity has one; too few filters for a bottleneck make a full layer."""
    x = -torch.rand(1, 6, 4, 4)
    pool, identity = cell_op("avg3", 6, 8).eval(), cell_op("identity", 6, 8, stride=2).eval()
    assert pool(x).abs().min() > 0
    assert not identity(x).any()
    assert sum(p.numel() for p in cell_op("neck3", 3, 3).parameters()) == 81 + 6
    with pytest.raises(InputError, match="no cell operation 'sep9'; did you mean 'sep"):
        cell_op("sep9", 4, 4)


@pytest.mark.parametrize(("kernel", "stride", "side"), itertools.product((3, 5), (1, 2), (6, 7)))
def test_averages_leave_padding_out(kernel: int, stride: int, side: int) -> None:
    x = torch.rand(1, 2, side, side)
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    around = (total // 2, total - total // 2) * 2
    sums, seen = (functional.avg_pool2d(functional.pad(t, around), kernel, stride) for t in (x, torch.ones_like(x)))
    torch.testing.assert_close(SamePool2d("avg", kernel=kernel, stride=stride)(x), sums / seen)
    counted = SamePool2d("avg", kernel=kernel, stride=stride, count_padding=True)(x)
    torch.testing.assert_close(counted, sums if stride == 2 else sums / seen)


@pytest.mark.parametrize(("kernel", "stride", "side"), itertools.product((2, 3, 7), (1, 2), (6, 7)))
def test_maxima_never_see_padding(kernel: int, stride: int, side: int) -> None:
    x = -1 - torch.rand(1, 2, side, side)
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    padded = functional.pad(x, (total // 2, total - total // 2) * 2, value=-9.0)
    assert torch.equal(
        SamePool2d("max", kernel=kernel, stride=stride)(x), functional.max_pool2d(padded, kernel, stride)
    )


def test_a_factorized_reduction_reads_both_diagonals() -> None:
    part = FactorizedReduction(1, 3, relu=False).eval()
    for conv in (part.conv1, part.conv2):
        nn.init.ones_(conv.weight)
    x = torch.arange(25.0).view(1, 1, 5, 5)
    out = part(x)[0] * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(out[0], torch.tensor([[0.0, 2, 4], [10, 12, 14], [20, 22, 24]]))
    torch.testing.assert_close(out[1], torch.tensor([[6.0, 8, 0], [16, 18, 0], [0, 0, 0]]))  # the odd filter too
    torch.testing.assert_close(out[2], out[1])
    assert not FactorizedReduction(1, 2).eval()(-x - 1).any()
    assert part(-x - 1)[0, 0, 0, 0] < 0


# -- searched cells ---------------------------------------------------------------------------------------------------


def small(**settings: Any) -> Chain:
    return create_supernet("nasnet-small", **{"filters": 4, "input_size": 12, "blocks": 3, **settings}).eval()


class _Calls(TorchDispatchMode):
    """The operators that run, but for those that join parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.joined = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        banks = func.overloadpacket.__name__ == "cat" and all(isinstance(part, nn.Parameter) for part in args[0])
        self.joined += banks
        self.names += [] if banks else [str(func)]
        return func(*args, **(kwargs or {}))


def test_a_path_runs_what_its_network_runs() -> None:
    supernet, rng, x = small(), random.Random(1), torch.randn(1, 3, 12, 12)
    joined = 0
    for _ in range(3):
        arch = supernet.space.sample(rng)
        subnet = supernet.subnet(arch)
        with torch.no_grad(), _Calls() as shared:
            supernet(x, arch)
        with torch.no_grad(), _Calls() as own:
            subnet(x)
        assert shared.names == own.names
        assert len(own.names) > 50
        assert own.joined == 0
        joined += shared.joined
    assert joined > 0


def saved_bytes(run: Any, without: nn.Module) -> int:
    """What a forward pass keeps for the backward pass, parameters apart."""
    apart = {tensor.untyped_storage().data_ptr() for tensor in without.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    out.sum().backward()
    return sum(kept.values())


def test_a_path_keeps_no_more_than_its_network_and_its_weights() -> None:
    supernet, x = small().train(), torch.randn(2, 3, 12, 12)
    arch = supernet.space.sample(random.Random(2))
    subnet = supernet.subnet(arch)
    shared, own = saved_bytes(lambda: supernet(x, arch), supernet), saved_bytes(lambda: subnet(x), subnet)
    weights = sum(p.numel() * p.element_size() for p in subnet.parameters())
    assert 0 < own <= shared <= own + weights


def test_both_sides_of_a_block_share_weights_and_a_network_has_two() -> None:
    supernet = small(blocks=1, chosen=False)
    values = {"left": 0, "right": 0, "left_op": "sep3", "right_op": "sep3", "combine": "add"}
    arch = supernet.space.canonical({f"{c}.block0.{n}": v for c in ("normal", "reduce") for n, v in values.items()})
    subnet = supernet.subnet(arch)
    cell_ = subnet[1]
    assert isinstance(cell_, BlockCell)
    assert cell_.ops[0] is not cell_.ops[1]
    assert cell_.outputs == (1, 2)  # the input that no block reads is a loose end
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(supernet(x, arch), subnet(x))
    turned = supernet.space.canonical({**arch, "normal.block0.right_op": "sep5"})
    ops = supernet.subnet(turned)[1].ops  # type: ignore[union-attr]
    again = supernet.subnet({**turned, "normal.block0.left_op": "sep5", "normal.block0.right_op": "sep3"})[1].ops  # type: ignore[union-attr]
    assert torch.equal(ops[0].depthwise1.weight, again[1].depthwise1.weight)  # type: ignore[index]


def test_an_older_input_of_the_right_width_passes_unchanged() -> None:
    """With one loose end as wide as the filters; with more, a convolution fits it."""
    supernet = create_supernet("nasnet-cifar", filters=4, repeats=3, input_size=8, blocks=2)
    one = "sep3(0)+max3(1); sep3(2)+sep3(2)"
    for text, kind in ((one, "Identity"), ("sep3(0)+max3(1); sep3(0)+sep3(1)", "ConvNorm")):
        arch = arch_of(Cells({"normal": cell(text), "reduce": cell(one)}), supernet.space)
        subnet = supernet.subnet(arch).eval()
        assert type(subnet[3].fit).__name__ == kind
        x = torch.randn(1, 3, 8, 8)
        assert torch.equal(supernet.eval()(x, arch), subnet(x))


# -- drop path, progress ----------------------------------------------------------------------------------------------


def set_progress(network: nn.Module, progress: float) -> None:
    """Sets how much of the training is over, as the training loop does."""
    for module in network.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(progress)


def test_drop_path_falls_on_examples_and_grows_with_the_progress() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.6), torch.ones(4000, 2, 3, 1)
    assert drop.eval()(x) is x
    drop.train()
    for progress, keep in ((0.0, 1.0), (0.5, 0.8), (1.0, 0.6), (3.0, 0.6)):
        set_progress(nn.Sequential(drop), progress)
        out = drop(x)
        kept = out[:, 0, 0, 0] > 0
        assert (out.flatten(1) == out[:, 0, 0]).all()  # an example as a whole
        assert float(kept.float().mean()) == pytest.approx(keep, abs=0.03)
        torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / keep))


def test_drop_path_spares_identities_and_the_supernet() -> None:
    settings: dict[str, Any] = {"phase": "standalone", "keep": 1e-6, "chosen": False, "blocks": 1}
    supernet = small(**settings).train()
    assert all(part.drop.keep == 1.0 for part in small(**{**settings, "phase": "supernet"}).step_modules[1:-1])
    assert [part.keep for part in supernet.step_modules[1:-1]] == pytest.approx([0.8, 0.6, 0.4, 0.2, 1e-6], abs=1e-5)
    both = "identity(0)+identity(1)", "max3(0)+identity(1)"
    for text, undropped in zip(both, ((0, 1), (1,)), strict=True):
        arch = arch_of(Cells({"normal": cell(text), "reduce": cell(text)}), supernet.space)
        subnet = supernet.subnet(arch).train()
        assert {part.undropped for part in subnet if isinstance(part, BlockCell)} == {undropped}
        for network in (subnet, supernet.bind(arch)):
            x = torch.randn(4, 3, 12, 12)
            set_progress(network, 1.0)
            torch.manual_seed(0)
            dropped = network(x)
            set_progress(network, 0.0)
            assert torch.equal(dropped, network(x)) == (len(undropped) == 2)
            assert torch.equal(network(x), network(x))
