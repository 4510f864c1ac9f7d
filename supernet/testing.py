"""The contract of a search space as one call, for this project's spaces and for users' own."""

import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from supernet.chain import Chain, Hidden, Layout, Layouts, Searchable, step_layout
from supernet.chain.copying import copy_module
from supernet.checked import Count, Seed, checked_arguments
from supernet.cost import CostTable, count
from supernet.cost.table import standalone_chain
from supernet.errors import InputError
from supernet.export.expression import expression
from supernet.space import Arch, SearchSpace
from supernet.training.sparse_step import step_active


@checked_arguments
def check_space(
    supernet: Chain, *, archs: Count = 8, seed: Seed = 0, batch: Annotated[int, Ge(2)] = 2, inputs: Any = None
) -> None:
    """Asserts every property that training, scoring, costs and export rely on in a supernet.

    Weights, batch-norm statistics, scale and shift are randomised first, since their defaults hide mistakes. This
    changes the supernet, which is also moved to the CPU and put into eval mode.

    Args:
        supernet: any chain.
        archs: the number of random architectures to draw; repeated ones are checked once.
        seed: the seed of architectures, weights and inputs.
        batch: images per check; at least 2, for batch norm in training mode.
        inputs: the supernet's input, whose first tensor holds the images; None for random images of its input shape.

    Raises:
        AssertionError: a property does not hold; the message names the property and the architecture.
        InputError: no supernet, no architectures, or fewer than two images.
    """
    supernet.cpu()
    randomize(supernet, seed)
    space, rng = supernet.space, random.Random(seed)
    sampled = [space.sample(rng) for _ in range(archs)]
    check_values(space, sampled)
    shape = (batch, *supernet.input_shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) if inputs is None else inputs
    table, final = CostTable(supernet), supernet if supernet.standalone is None else standalone_chain(supernet)
    for arch in dict.fromkeys(sampled):
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
            network = subnet if final is supernet else final.subnet(arch)
            assert table(arch) == count(network, supernet.input_shape), "CostTable differs from a trace of the network"
        except AssertionError as error:
            raise AssertionError(f"{space.name}: {error} (architecture {arch.to_json()})") from error
        except RuntimeError as error:
            problem = f"the supernet or its subnet cannot be run: {_reason(error)}"
            raise AssertionError(f"{space.name}: {problem} (architecture {arch.to_json()})") from error
    check_memory(supernet, sampled, x)


@checked_arguments
def randomize(module: nn.Module, seed: Seed) -> None:
    """Draws random weights, and batch-norm statistics and affine parameters far from their defaults.

    Raises:
        InputError: no module, or a negative seed.
    """
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
    """Asserts that JSON, pickle and index vectors round-trip, and that canonical and normal forms are idempotent."""
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
    """Asserts that supernet and subnet agree bit for bit in eval mode and share no storage."""
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
    """Asserts that supernet and subnet agree bit for bit in training mode under one seed, in outputs or losses."""
    outputs = []
    for network in (copy_module(supernet).bind(arch), supernet.subnet(arch)):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(network.train()(x))
    assert _equal(*outputs), "in training mode supernet(x, arch) differs from supernet.subnet(arch)(x)"


def check_states(supernet: Chain, arch: Arch, x: Any) -> None:
    """Asserts that the state before every step of the supernet is what the layout announces."""
    supernet.eval()
    state: Any = x
    with torch.no_grad():
        for name, (step, sub, layout) in zip(supernet.step_names, supernet.walk(arch), strict=True):
            _check_state(state, layout, x, f"before step {name!r}")
            try:
                state = step(state, sub) if isinstance(step, Searchable) else step(state)
            except RuntimeError as error:  # of torch, for shapes that do not fit together
                raise AssertionError(f"step {name!r} cannot read the state before it: {_reason(error)}") from error


def check_elements(supernet: Chain, arch: Arch, x: Any) -> None:
    """Asserts that every element that `active_parts` announces influences the output.

    The subnet holds only elements that are used, so equal counts are sufficient. If the counts differ, each tensor's
    last announced channel is set to NaN, which must reach the output in eval or in training mode.
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
                reached = _outputs_nan(supernet, arch, x)
                used.copy_(kept)
                assert reached, f"active_parts announces elements of {names[id(parameter)]} that feed nothing"


def _outputs_nan(supernet: Chain, arch: Arch, x: Any) -> bool:
    """Returns whether an output is NaN in eval mode or in training mode; auxiliary heads run in the latter only."""
    if any(bool(leaf.isnan().any()) for leaf in _floats(supernet(x, arch))):
        return True
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    reached = any(bool(leaf.isnan().any()) for leaf in _floats(supernet.train()(x, arch)))
    for name, buffer in supernet.named_buffers():
        buffer.copy_(buffers[name])
    supernet.eval()
    return reached


def check_layouts(supernet: Chain, arch: Arch, x: Any) -> None:
    """Asserts that each step's state is what its layout announces, in the supernet and in the materialised steps."""
    supernet.eval()
    shared: Any = x
    own: Any = x
    subnet = supernet.subnet(arch).eval()
    steps = list(supernet.walk(arch))
    with torch.no_grad():
        for index, ((step, sub, layout), module) in enumerate(zip(steps, supernet.steps_in(subnet), strict=True)):
            name = supernet.step_names[index]
            _check_state(shared, layout, x, f"before step {name!r}")
            shared = step(shared, sub) if isinstance(step, Searchable) else step(shared)
            own = module(own)
            assert _equal(shared, own), f"step {name!r} differs from its materialised copy"
    last, sub, layout = steps[-1]
    _check_state(shared, step_layout(last, sub, layout), x, "after the last step")


def _check_state(state: Any, layout: Layouts, x: Any, where: str) -> None:
    if layout is None or (state is x and not isinstance(x, Tensor)):  # the input is up to the first step
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
    """Asserts that gradients reach exactly the active parameters, and that an optimizer step moves nothing else."""
    trained = copy_module(supernet).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for parameter in trained.parameters():  # momentum from an earlier step must not move unused parameters
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
    masks = {parameter: torch.zeros_like(parameter, dtype=torch.bool) for parameter in trained.parameters()}
    for parameter, index in parts:
        masks[parameter][index] = True
    for name, parameter in trained.named_parameters():
        mask = masks[parameter]
        moved = parameter != before[name]
        assert not (moved & ~mask).any(), f"unused elements of {name} moved in the optimizer step"
        if parameter.grad is not None:
            assert not parameter.grad[~mask].any(), f"{name} has gradients outside its active elements"
            assert bool(moved.any()), f"{name} is active but did not move in the optimizer step"


def check_used(subnet: nn.Module, x: Any) -> None:
    """Asserts that the subnet's output depends on each of its parameters."""
    _objective(subnet.train()(x)).backward()
    for name, parameter in subnet.named_parameters():
        assert parameter.grad is not None, f"the subnet holds {name}, which feeds nothing"
    subnet.zero_grad(set_to_none=True)


def check_expressions(subnet: nn.Module) -> None:
    """Asserts that a module rebuilt from its constructor expression has the same state-dict keys and shapes."""
    names = {type(part).__name__: type(part) for part in subnet.modules()}
    rebuilt = eval(expression(subnet), {"nn": nn, "torch": torch, "OrderedDict": OrderedDict, **names})
    shapes = {name: tensor.shape for name, tensor in subnet.state_dict().items()}
    again = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    assert again == shapes, f"the constructor expression builds another network: {_difference(again, shapes)}"


def check_memory(supernet: Chain, archs: Sequence[Arch], x: Any) -> None:
    """Asserts that the forward pass in eval mode depends on no earlier architecture and changes no tensor."""
    supernet.eval()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    with torch.no_grad():
        first = [supernet(x, arch) for arch in archs]
        again = [supernet(x, arch) for arch in reversed(archs)]
    for earlier, later in zip(first, reversed(again), strict=True):
        assert _equal(earlier, later), f"{supernet.space.name}: a result depends on what was evaluated before"
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{supernet.space.name}: evaluation changed {name}"


def _reason(error: Exception) -> str:
    """Returns the message of an error on one line."""
    return " ".join(str(error).split())[:200]


def _objective(output: Any) -> Tensor:
    """Returns a scalar that depends on every floating-point output."""
    return sum((leaf.square().sum() for leaf in _floats(output)), torch.zeros(()))


def _floats(output: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in _tensors(output) if leaf.is_floating_point())


def _tensors(output: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _equal(first: Any, second: Any) -> bool:
    """Returns whether two outputs hold the same tensors, bit for bit."""
    left, right = list(_tensors(first)), list(_tensors(second))
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Returns the name of the first tensor that only one of them has, or whose shapes differ."""
    return min(name for name, _ in set(first.items()) ^ set(second.items()))
