"""The contract of a search space as one call, for the spaces of this project and for users' own."""

import copy
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from supernet.chain import Chain, Hidden, Layout, Layouts, Searchable, step_layout
from supernet.cost import CostTable, count
from supernet.errors import InputError
from supernet.export.expression import expression
from supernet.space import Arch, SearchSpace
from supernet.training.sparse_step import step_active


def check_space(supernet: Chain, *, archs: int = 8, seed: int = 0, batch: int = 2, inputs: Any = None) -> None:
    """Assert everything that the rest of the project takes for granted of a supernet.

    Weights, batch-norm statistics, scale and shift are randomised first, since their defaults hide mistakes. The
    supernet given is changed by that; it is put into eval mode and onto the CPU.

    Args:
        supernet: any chain.
        archs: random architectures to check, drawn without repetition where the space has that many.
        seed: of architectures, weights and inputs.
        batch: images per check; at least 2, for batch norm in training mode.
        inputs: what the supernet is given, its first tensor the images; random images of its input shape where None.

    Raises:
        AssertionError: names the broken property and the architecture.
    """
    supernet.cpu()
    randomize(supernet, seed)
    space, rng = supernet.space, random.Random(seed)
    drawn = [space.sample(rng) for _ in range(archs)]
    check_values(space, drawn)
    shape = (batch, *supernet.input_shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) if inputs is None else inputs
    table = CostTable(supernet)
    for arch in dict.fromkeys(drawn):
        try:
            check_states(supernet, arch, x)
            check_outputs(supernet, arch, x)
            check_training(supernet, arch, x)
            check_layouts(supernet, arch, x)
            check_gradients(supernet, arch, x)
            check_elements(supernet, arch, x)
            subnet = supernet.subnet(arch)
            check_used(subnet, x)
            check_expressions(subnet)
            assert table(arch) == count(subnet, supernet.input_shape), "CostTable differs from a trace of the subnet"
        except AssertionError as error:
            raise AssertionError(f"{space.name}: {error} (architecture {arch.to_json()})") from error
    check_memory(supernet, drawn, x)


def randomize(module: nn.Module, seed: int) -> None:
    """Random weights, and batch-norm statistics and affine parameters far from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim <= 1:
                tensor.normal_(0.0, 0.3, generator=generator)
            else:
                fan_in = max(tensor[0].numel(), 1)
                tensor.normal_(0.0, fan_in**-0.5, generator=generator)


def check_values(space: SearchSpace, archs: Sequence[Arch]) -> None:
    """JSON, pickle and index round trips; canonical and normal form are idempotent and stay in the space."""
    assert SearchSpace.from_json(space.to_json()) == space, "the space does not survive JSON"
    assert SearchSpace.from_json(space.to_json()).digest() == space.digest(), "the digest changes through JSON"
    for arch in archs:
        try:
            space.canonical(space.represent(arch))
        except InputError as error:
            raise AssertionError(f"the normal form of {arch} leaves the space: {error}") from error
        normal = space.normal_form(arch)
        assert Arch.from_json(arch.to_json()) == arch, f"{arch} does not survive JSON"
        assert pickle.loads(pickle.dumps(arch)) == arch, f"{arch} does not survive pickle"
        assert space.from_indices(space.to_indices(arch)) == arch, f"{arch} does not survive its index vector"
        assert space.canonical(arch) == arch, f"{arch} is not canonical"
        assert space.normal_form(normal) == normal, f"the normal form of {arch} is not idempotent"


def check_outputs(supernet: Chain, arch: Arch, x: Any) -> None:
    """Supernet and subnet agree bit for bit in eval mode and share no storage; the normal form computes the same."""
    supernet.eval()
    subnet = supernet.subnet(arch).eval()
    with torch.no_grad():
        shared, own = supernet(x, arch), subnet(x)
        assert _equal(shared, own), "supernet(x, arch) differs from supernet.subnet(arch)(x)"
        normal = supernet.subnet(supernet.space.normal_form(arch)).eval()(x)
        shapes = [leaf.shape for leaf in tree_leaves(own)]
        assert [leaf.shape for leaf in tree_leaves(normal)] == shapes, "the normal form has outputs of other shapes"
    storages = {tensor.untyped_storage().data_ptr() for tensor in supernet.state_dict().values()}
    for name, tensor in subnet.state_dict().items():
        assert tensor.untyped_storage().data_ptr() not in storages, f"the subnet's {name} shares storage"


def check_training(supernet: Chain, arch: Arch, x: Any) -> None:
    """In training mode supernet and subnet agree bit for bit under one seed, in outputs or losses."""
    found = []
    for network in (copy.deepcopy(supernet).bind(arch), supernet.subnet(arch)):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(network.train()(x))
    assert _equal(*found), "in training mode supernet(x, arch) differs from supernet.subnet(arch)(x)"


def check_states(supernet: Chain, arch: Arch, x: Any) -> None:
    """Every step of the supernet is given what the layout announces; before anything is cut by it."""
    supernet.eval()
    state: Any = x
    with torch.no_grad():
        for name, (step, sub, layout) in zip(supernet.step_names, supernet.walk(arch), strict=True):
            _check_state(state, layout, x, f"before step {name!r}")
            state = step(state, sub) if isinstance(step, Searchable) else step(state)


def check_elements(supernet: Chain, arch: Arch, x: Any) -> None:
    """`active_parts` announces no elements that feed nothing.

    The subnet holds just what is used, so equal counts settle it. Otherwise NaN in the last announced channel of each
    tensor, which must reach the output, in eval or in training mode, finds the culprit.
    """
    supernet.eval()
    masks: dict[nn.Parameter, Tensor] = {}
    for parameter, index in supernet.active_parts(arch):
        masks.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))[index] = True
    if sum(int(mask.sum()) for mask in masks.values()) == sum(p.numel() for p in supernet.subnet(arch).parameters()):
        return
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    with torch.no_grad():
        for parameter, index in supernet.active_parts(arch):
            used = parameter[index]
            kept = used.clone()
            for dim in range(min(used.ndim, 2)):
                used.select(dim, -1).fill_(float("nan"))
                reached = _gives_nan(supernet, arch, x)
                used.copy_(kept)
                assert reached, f"active_parts announces elements of {names[id(parameter)]} that feed nothing"


def _gives_nan(supernet: Chain, arch: Arch, x: Any) -> bool:
    """Whether an output is NaN in eval mode, or in training mode, in which alone an auxiliary head runs."""
    if any(bool(leaf.isnan().any()) for leaf in _floats(supernet(x, arch))):
        return True
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    found = any(bool(leaf.isnan().any()) for leaf in _floats(supernet.train()(x, arch)))
    for name, buffer in supernet.named_buffers():
        buffer.copy_(buffers[name])
    supernet.eval()
    return found


def check_layouts(supernet: Chain, arch: Arch, x: Any) -> None:
    """Every step's state is what its layout announces, in the supernet and in the materialised steps."""
    supernet.eval()
    shared: Any = x
    own: Any = x
    subnet = supernet.subnet(arch).eval()
    steps = list(supernet.walk(arch))
    with torch.no_grad():
        for index, ((step, sub, layout), made) in enumerate(zip(steps, supernet.steps_in(subnet), strict=True)):
            name = supernet.step_names[index]
            _check_state(shared, layout, x, f"before step {name!r}")
            shared = step(shared, sub) if isinstance(step, Searchable) else step(shared)
            own = made(own)
            assert _equal(shared, own), f"step {name!r} differs from its materialised copy"
    last, sub, layout = steps[-1]
    _check_state(shared, step_layout(last, sub, layout), x, "after the last step")


def _check_state(state: Any, layout: Layouts, x: Any, where: str) -> None:
    if layout is None or (state is x and not isinstance(x, Tensor)):  # what is given is the first step's affair
        return
    if isinstance(layout, Layout):
        tensor, ids = (state.tensor, state.ids) if isinstance(state, Hidden) else (state, layout.ids)
        assert isinstance(tensor, Tensor), (
            f"{where} the layout announces one tensor, the state is {type(state).__name__}"
        )
        assert tuple(ids) == layout.ids, f"{where} the layout announces the states {layout.ids}, there are {ids}"
        assert tensor.shape[1] == layout.channels, (
            f"{where} the layout announces {layout.channels} channels, there are {tensor.shape[1]}"
        )
        for real, whole in zip(tensor.shape[2:], next(_tensors(x)).shape[2:], strict=False):
            expected = whole / layout.stride if layout.stride else 0
            assert -1 <= real - expected < 1, (  # a convolution without padding may lose a pixel
                f"{where} the layout announces stride {layout.stride}, a side of {whole} became {real}"
            )
        return
    assert isinstance(state, tuple), f"{where} the layout announces {len(layout)} states, there is one"
    assert len(state) == len(layout), f"{where} the layout announces {len(layout)} states, there are {len(state)}"
    for part, announced in zip(state, layout, strict=True):
        _check_state(part, announced, x, where)


def check_gradients(supernet: Chain, arch: Arch, x: Any) -> None:
    """Gradients reach exactly the active parameters; nothing else moves in a step with momentum and decay."""
    trained = copy.deepcopy(supernet).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for parameter in trained.parameters():  # momentum from an earlier step must not move what is unused now
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    _objective(trained(x, arch)).backward()
    parts = list(trained.active_parts(arch))
    active = {id(parameter) for parameter in trained.active_parameters(arch)}
    for name, parameter in trained.named_parameters():
        expected = id(parameter) in active
        assert (parameter.grad is not None) == expected, (
            f"{name} {'has no' if expected else 'has a'} gradient, but active_parameters says otherwise"
        )
    step_active(optimizer, parts)
    for name, parameter in trained.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        for used, index in parts:
            if used is parameter:
                mask[index] = True
        moved = parameter != before[name]
        assert not (moved & ~mask).any(), f"unused elements of {name} moved in the optimizer step"
        if parameter.grad is not None:
            assert not parameter.grad[~mask].any(), f"{name} has gradients outside its active elements"
            assert bool(moved.any()), f"{name} is active but did not move in the optimizer step"


def check_used(subnet: nn.Module, x: Any) -> None:
    """The subnet holds nothing that its output does not depend on."""
    _objective(subnet.train()(x)).backward()
    for name, parameter in subnet.named_parameters():
        assert parameter.grad is not None, f"the subnet holds {name}, which feeds nothing"
    subnet.zero_grad(set_to_none=True)


def check_expressions(subnet: nn.Module) -> None:
    """A module rebuilt from its constructor expression has the same state-dict keys and shapes."""
    names = {type(part).__name__: type(part) for part in subnet.modules()}
    rebuilt = eval(expression(subnet), {"nn": nn, "torch": torch, "OrderedDict": OrderedDict, **names})
    shapes = {name: tensor.shape for name, tensor in subnet.state_dict().items()}
    again = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    assert again == shapes, f"the constructor expression builds another network: {_difference(again, shapes)}"


def check_memory(supernet: Chain, archs: Sequence[Arch], x: Any) -> None:
    """The forward pass remembers no architecture and writes nothing in eval mode."""
    supernet.eval()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    with torch.no_grad():
        first = [supernet(x, arch) for arch in archs]
        again = [supernet(x, arch) for arch in reversed(archs)]
    for one, other in zip(first, reversed(again), strict=True):
        assert _equal(one, other), f"{supernet.space.name}: a result depends on what was evaluated before"
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{supernet.space.name}: evaluation changed {name}"


def _objective(output: Any) -> Tensor:
    return sum((leaf.square().sum() for leaf in _floats(output)), torch.zeros(()))


def _floats(output: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in _tensors(output) if leaf.is_floating_point())


def _tensors(output: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _equal(one: Any, other: Any) -> bool:
    first, second = list(_tensors(one)), list(_tensors(other))
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The name of the first tensor that only one of them has, or that has another shape."""
    return min(name for name, _ in set(one.items()) ^ set(other.items()))
