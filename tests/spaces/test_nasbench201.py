"""NAS-Bench-201: published counts, graphs against a naive evaluation, and which architectures are one network."""

import itertools
import math
import random
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, relu

from supernet import Arch, Chain, create_network, create_supernet
from supernet.blocks.plain import NormClassifier, PooledResidual, ReLUConvBN
from supernet.blocks.sum_cell import SumCell, decision
from supernet.cost import count
from supernet.errors import InputError
from supernet.spaces.nasbench201 import EDGES, NAMES, NODES, OPTIONS
from supernet.testing import (
    check_elements,
    check_expressions,
    check_gradients,
    check_layouts,
    check_outputs,
    check_used,
    randomize,
)

Vector = tuple[int, ...]
NONE, SKIP, CONV1, CONV3, POOL = range(5)
VECTORS = list(itertools.product(range(5), repeat=6))


@cache
def small() -> Chain:
    supernet = create_supernet("nasbench201", cells=1, channels=8, input_size=16, phase="standalone")
    randomize(supernet, seed=0)
    return supernet.eval()


def arch_of(vector: Vector) -> Arch:
    return small().space.from_indices(vector)


def cell_of(vector: Vector) -> Arch:
    return arch_of(vector).sub("cell")


@cache
def normal_forms() -> dict[Vector, Vector]:
    space = small().space
    return {vector: space.to_indices(space.normal_form(space.from_indices(vector))) for vector in VECTORS}


def nodes_of(vector: Vector) -> list[list[tuple[int, int]]]:
    """Per node after the first, its `(source, operation)` pairs, by the benchmark's order of edges."""
    rest = iter(vector)
    return [[(source, next(rest)) for source in range(target)] for target in (1, 2, 3)]


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "params", "macs"), [(NONE, 73_306, 7.78), (CONV1, 241_306, 31.4), (CONV3, 1_531_546, 220.1)]
)
def test_published_counts_to_the_digit(option: int, params: int, macs: float) -> None:
    network = create_network("nasbench201", arch=arch_of((option,) * 6))
    costs = count(network, (3, 32, 32))
    assert costs["params"] == params
    assert round(costs["macs"] / 1e6, 2 if macs < 10 else 1) == macs


def test_skeleton() -> None:
    supernet = create_supernet("nasbench201", num_classes=100)
    cells, between = ["cell"] * 5, (["reduction1"], ["reduction2"])
    assert list(supernet.step_names) == ["stem", *cells, *between[0], *cells, *between[1], *cells, "head"]
    assert [(choice.name, choice.options) for choice in supernet.space.choices] == [
        (name, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"))
        for name in (
            "cell.node1.from0",
            "cell.node2.from0",
            "cell.node2.from1",
            "cell.node3.from0",
            "cell.node3.from1",
            "cell.node3.from2",
        )
    ]
    assert supernet.space.size() == 15_625
    assert supernet.input_shape == (3, 32, 32)
    assert [layout.channels for _, _, layout in supernet.walk(arch_of((SKIP,) * 6))] == [  # type: ignore[union-attr]
        3,
        *[16] * 6,
        *[32] * 6,
        *[64] * 6,
    ]


def test_cells_share_decisions_and_no_weights() -> None:
    supernet = create_supernet("nasbench201", cells=2, channels=4, input_size=8)
    active = list(supernet.active_parameters(supernet.space.from_indices((NONE, NONE, NONE, CONV1, NONE, NONE))))
    shapes = [tuple(p.shape) for p in active if p.ndim == 4 and p.shape[0] == p.shape[1] and p.shape[2] == 1]
    assert shapes == [(width, width, 1, 1) for width in (4, 4, 8, 8, 16, 16)]


def test_batch_norm_of_the_cells_has_no_scale_in_the_supernet_phase_alone() -> None:
    for phase, expected in (("supernet", False), ("standalone", True)):
        supernet = create_supernet("nasbench201", cells=1, channels=4, input_size=8, phase=phase)
        norms = {name: part for name, part in supernet.named_modules() if isinstance(part, nn.BatchNorm2d)}
        inside = {name: part.affine for name, part in norms.items() if ".ops." in name}
        assert set(inside.values()) == {expected}
        assert all(part.affine for name, part in norms.items() if name not in inside)
        assert len(norms) == len(inside) + 1 + 2 * 2 + 1


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="input_size=30 must be a multiple of 4"):
        create_supernet("nasbench201", input_size=30)


# -- layers -----------------------------------------------------------------------------------------------------------


def ready(module: nn.Module) -> Any:
    randomize(module, seed=1)
    return module.eval()


def normalized(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    return batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def rcb(x: Tensor, part: ReLUConvBN) -> Tensor:
    weight = part.conv.weight
    return normalized(conv2d(relu(x), weight, stride=part.stride, padding=weight.shape[-1] // 2), part.bn)


def test_layers_against_references() -> None:
    x = torch.randn(2, 6, 8, 8)
    before = x.clone()
    block, head = ready(PooledResidual(6, 10)), ready(NormClassifier(6, 3))
    shortcut = conv2d(avg_pool2d(x, 2), block.shortcut[1].weight)
    torch.testing.assert_close(block(x), rcb(rcb(x, block.body[0]), block.body[1]) + shortcut, rtol=1e-5, atol=1e-5)
    pooled = relu(normalized(x, head.bn)).mean((2, 3))
    torch.testing.assert_close(head(x), pooled @ head.fc.weight.T + head.fc.bias, rtol=1e-5, atol=1e-5)
    assert block(x).shape == (2, 10, 4, 4)
    assert torch.equal(x, before)


def naive(cell: SumCell, vector: Vector, x: Tensor) -> Tensor:
    """Every edge is run, `none` as multiplication by zero: what the benchmark's own networks do."""
    states = [x]
    for target, pairs in enumerate(nodes_of(vector), start=1):
        values = []
        for source, option in pairs:
            state = states[source]
            if option == NONE:
                values.append(state * 0)
            elif option == SKIP:
                values.append(state)
            elif option == POOL:
                ones = torch.ones_like(state)
                values.append(avg_pool2d(state, 3, 1, 1) / avg_pool2d(ones, 3, 1, 1))
            else:
                values.append(rcb(state, cell.ops[f"{source}-{target}-{OPTIONS[option]}"]))  # type: ignore[arg-type]
        states.append(torch.stack(values).sum(0))
    return states[-1]


def convolves_nothing(vector: Vector) -> bool:
    """Whether a convolution stands behind a node without input."""
    filled = [True]
    for pairs in nodes_of(vector):
        if any(option in (CONV1, CONV3) and not filled[source] for source, option in pairs):
            return True
        filled.append(any(option != NONE and filled[source] for source, option in pairs))
    return False


def test_cells_compute_what_the_benchmarks_do() -> None:
    cell, x = small().step_modules[1], torch.randn(2, 8, 5, 5)
    assert isinstance(cell, SumCell)
    rng = random.Random(0)
    vectors = [vector for vector in rng.sample(VECTORS, 150) if not convolves_nothing(vector)]
    assert len(vectors) > 100
    with torch.no_grad():
        for vector in [*vectors, (NONE,) * 6, (SKIP,) * 6, (POOL,) * 6]:
            torch.testing.assert_close(cell(x, cell_of(vector)), naive(cell, vector, x), rtol=1e-5, atol=1e-5)


def test_behind_a_node_without_input_only_a_constant_is_left_out() -> None:
    """Index vector 0→2 skip, 2→3 skip and a convolution 1→3: the benchmark's adds its batch norm of zeros."""
    cell, x = small().step_modules[1], torch.randn(2, 8, 5, 5)
    assert isinstance(cell, SumCell)
    vector = (NONE, SKIP, NONE, NONE, CONV3, SKIP)
    with torch.no_grad():
        constant = normalized(torch.zeros(1, 8, 1, 1), cell.ops["1-3-nor_conv_3x3"].bn)  # type: ignore[arg-type]
        assert torch.equal(cell(x, cell_of(vector)), x)
        torch.testing.assert_close(naive(cell, vector, x), x + constant)


# -- edges that feed nothing ------------------------------------------------------------------------------------------

# of each: an architecture, and the same network without the edges that feed nothing
DEAD = {
    "no edge": ((NONE, NONE, NONE, NONE, NONE, NONE), (NONE, NONE, NONE, NONE, NONE, NONE)),
    "into a dead end": ((CONV3, CONV1, NONE, SKIP, NONE, NONE), (NONE, NONE, NONE, SKIP, NONE, NONE)),
    "through a dead end": ((CONV3, NONE, CONV3, CONV1, NONE, NONE), (NONE, NONE, NONE, CONV1, NONE, NONE)),
    "out of nothing": ((NONE, NONE, CONV3, CONV1, CONV3, CONV3), (NONE, NONE, NONE, CONV1, NONE, NONE)),
    "nothing arrives": ((CONV3, CONV3, POOL, NONE, NONE, NONE), (NONE, NONE, NONE, NONE, NONE, NONE)),
    "nothing leaves": ((NONE, NONE, CONV3, NONE, CONV3, SKIP), (NONE, NONE, NONE, NONE, NONE, NONE)),
}


@pytest.mark.parametrize("case", DEAD)
def test_edges_that_feed_nothing_are_neither_allocated_nor_trained(case: str) -> None:
    supernet, (vector, alive) = small(), DEAD[case]
    arch, x = arch_of(vector), torch.randn(2, 3, 16, 16)
    subnet = supernet.subnet(arch)
    check_outputs(supernet, arch, x)
    check_layouts(supernet, arch, x)
    check_gradients(supernet, arch, x)
    check_elements(supernet, arch, x)
    check_used(subnet, x)
    check_expressions(subnet)
    assert subnet.state_dict().keys() == supernet.subnet(arch_of(alive)).state_dict().keys()
    assert normal_forms()[vector] == alive


def test_without_a_path_the_image_does_not_matter() -> None:
    network = small().subnet(arch_of((NONE,) * 6)).eval()
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    logits = network(x)
    assert torch.equal(logits, logits[:1].expand_as(logits))
    logits.sum().backward()
    stem = network[0].conv.weight  # the benchmark's networks hold and decay it all the same
    assert x.grad is not None
    assert stem.grad is not None
    assert not stem.grad.any()
    assert not x.grad.any()


# -- one network, one normal form -------------------------------------------------------------------------------------


def simulate(vector: Vector, weights: dict[tuple[int, int], float]) -> float:
    """A cell of numbers: every operation is a function that is zero at zero, convolutions have their edge's weight."""
    values = [0.83]
    for target, pairs in enumerate(nodes_of(vector), start=1):
        total = 0.0
        for source, option in pairs:
            x, w = values[source], weights.get((source, target), 0.0)
            total += (0.0, x, math.tanh(w * x), math.expm1(w * x / 3), 0.7 * x + 0.1 * x * x)[option]
        values.append(total)
    return values[-1]


def outputs(vector: Vector) -> tuple[int, int, frozenset[float]]:
    """How many convolutions of each kind matter, and the output for every way of giving them weights from one list."""
    edges = dict(zip(EDGES, vector, strict=True))
    kinds = [[edge for edge, option in edges.items() if option == kind] for kind in (CONV1, CONV3)]
    base = {edge: 0.31 + 0.17 * n for n, edge in enumerate(EDGES)}
    usual = simulate(vector, base)
    kinds = [[e for e in kind if simulate(vector, base | {e: 2.0}) != usual] for kind in kinds]
    series = [
        [start + 0.37 * n**1.5 for n in range(len(kind))] for start, kind in zip((0.61, 0.47), kinds, strict=True)
    ]
    chosen = set()
    for first, second in itertools.product(*(itertools.permutations(weights) for weights in series)):
        weights = dict(zip(kinds[0] + kinds[1], first + second, strict=True))
        chosen.add(round(simulate(vector, weights), 10))
    return len(kinds[0]), len(kinds[1]), frozenset(chosen)


def test_the_normal_form_tells_networks_apart_by_what_they_compute() -> None:
    """Two architectures have one normal form exactly if they give the same numbers with their weights in some order."""
    forms = normal_forms()
    behaviours = {vector: outputs(vector) for vector in VECTORS}
    by_behaviour: dict[Any, set[Vector]] = defaultdict(set)
    for vector, form in forms.items():
        by_behaviour[behaviours[vector]].add(form)
    assert all(len(members) == 1 for members in by_behaviour.values())
    assert len(by_behaviour) == len(set(forms.values())) == 5_260


def test_the_normal_form_is_the_first_of_its_class() -> None:
    forms = normal_forms()
    first: dict[Vector, Vector] = {}
    for vector in VECTORS:  # ascending
        first.setdefault(forms[vector], vector)
    assert all(form == vector for form, vector in first.items())
    assert all(forms[form] == form for form in first)


def published(vector: Vector) -> str:
    """The expression by which the benchmark distinguishes architectures; there are 6,466 different ones.

    `#` stands for what comes through a `none`. Networks of different size may have the same expression (430 of them).
    """
    arch = arch_of(vector)
    nodes = {0: "0"}
    for target in range(1, NODES):
        terms = []
        for source in range(target):
            option, before = str(arch[f"cell.{decision((source, target))}"]), nodes[source]
            if option == "none" or before == "#":
                terms.append("#")
            else:
                terms.append(before if option == "skip_connect" else f"({before})@{option}")
        nodes[target] = "+".join(sorted(terms))
    return nodes[NODES - 1]


def test_the_published_count_and_why_the_normal_form_has_another() -> None:
    classes: dict[str, set[Vector]] = defaultdict(set)
    for vector, form in normal_forms().items():
        classes[published(vector)].add(form)
    assert len(classes) == 6_466
    sizes = {name: {(f.count(CONV1), f.count(CONV3)) for f in forms} for name, forms in classes.items()}
    assert (
        sum(len(distinct) > 1 for distinct in sizes.values()) == 430
    )  # networks of different size under one expression
    once, twice = (CONV1, NONE, SKIP, NONE, SKIP, SKIP), (CONV1, CONV1, NONE, NONE, SKIP, SKIP)
    assert published(once) == published(twice)  # 2 · conv(x) and conv(x) + another conv(x)
    assert len({normal_forms()[once], normal_forms()[twice]}) == 2


def test_normal_forms_compute_the_same_with_the_weights_in_some_order() -> None:
    """In float64, on the real cell: its convolutions are tried in every order."""
    cell = SumCell(
        {
            "none": None,
            "skip_connect": nn.Identity,
            "nor_conv_1x1": lambda: ReLUConvBN(3, 3),
            "nor_conv_3x3": lambda: ReLUConvBN(3, 3, kernel=3),
            "avg_pool_3x3": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        }
    )
    randomize(cell.double(), seed=2)
    cell.eval()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    layout = small().input_layout
    moved = [vector for vector, form in normal_forms().items() if vector != form and form.count(0) < 5]
    for vector in random.Random(0).sample(moved, 40):
        one, other = (cell.materialize(cell_of(v), layout).eval() for v in (vector, normal_forms()[vector]))
        expected = one(x)
        layers = [[op for op in part.ops if isinstance(op, ReLUConvBN)] for part in (one, other)]  # type: ignore[union-attr]
        assert sorted(op.kernel for op in layers[0]) == sorted(op.kernel for op in layers[1])
        differences = []
        for order in itertools.permutations(layers[0]):
            if [op.kernel for op in order] == [op.kernel for op in layers[1]]:
                for source, target in zip(order, layers[1], strict=True):
                    target.load_state_dict(source.state_dict())
                differences.append(float((other(x) - expected).detach().abs().max()))
        assert min(differences) < 1e-12, f"{vector} is not {normal_forms()[vector]}"


def test_a_fixed_space_keeps_its_architectures() -> None:
    space = small().space.fix({NAMES[0]: "nor_conv_3x3"})
    arch = space.from_indices((0, NONE, NONE, SKIP, NONE, NONE))
    assert space.normal_form(arch) == arch  # its normal form has no edge there
