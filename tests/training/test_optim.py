"""The optimizer step on used elements: what the materialised network's optimizer would do, and nothing else."""

from typing import Any

import pytest
import torch
from timm.optim import muon
from torch import Tensor, nn

from supernet import create_supernet
from supernet.chain import Chain, largest
from supernet.config import Train
from supernet.training.optim import create_optimizer, create_schedule
from supernet.training.sparse_step import step_active

WIDE, TALL, INNER = (slice(4), slice(6)), (slice(7), slice(3)), (slice(5), slice(4), slice(1, 2), slice(1, 2))
ELEMENTWISE = ("sgd", "momentum", "adamw", "rmsprop", "lion", "adan")
OTHERS = ("adafactor", "lamb", "lars", "lookahead_momentum", "madgrad", "muon", "sgdp")


def fresh(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns a convolution in channels-last order and its optimizer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last)
    return conv, create_optimizer(conv, Train(optimizer=name, lr=0.02, weight_decay=0.1))


def gradient(parameter: Tensor, *cuts: tuple[slice, ...], seed: int) -> Tensor:
    """Returns a gradient that is random inside the slices and 0 elsewhere."""
    dense = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(parameter.shape)
    for cut in cuts:
        mask[cut] = 1.0
    return (dense * mask).contiguous(memory_format=torch.channels_last) if dense.ndim == 4 else dense * mask


def stepped(conv: nn.Module, optimizer: Any, cuts: list[tuple[slice, ...]], *, seed: int) -> dict[str, Tensor]:
    """Makes one step with these slices, checks the elements that must not move, and returns which used ones moved."""
    named = dict(conv.named_parameters())
    parts = [(parameter, cut[: parameter.ndim]) for cut in cuts for parameter in named.values()]
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    for parameter in named.values():
        parameter.grad = gradient(parameter, *[cut[: parameter.ndim] for cut in cuts], seed=seed)
    step_active(optimizer, parts)
    moved = {}
    for name, parameter in named.items():
        used = torch.zeros(parameter.shape, dtype=torch.bool)
        for cut in cuts:
            used[cut[: parameter.ndim]] = True
        assert torch.equal(parameter.detach()[~used], before[name][~used])
        assert parameter.isfinite().all()
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape == before[name].shape
        assert parameter.stride() == before[name].stride()
        moved[name] = (parameter.detach() != before[name])[used]
    return moved


@pytest.mark.parametrize("cut", [WIDE, INNER], ids=["channels", "taps"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_used_elements_move_as_in_the_materialised_network(name: str, cut: tuple[slice, ...]) -> None:
    conv, optimizer = fresh(name)
    small = nn.ParameterList(p.detach()[cut[: p.ndim]].clone() for p in conv.parameters())
    twin = create_optimizer(small, Train(optimizer=name, lr=0.02, weight_decay=0.1))
    for seed in range(4):
        moved = stepped(conv, optimizer, [cut], seed=seed)
        assert all(part.any() for part in moved.values())
        for parameter, own in zip(conv.parameters(), small, strict=True):
            assert parameter.grad is not None
            own.grad = parameter.grad[cut[: parameter.ndim]].clone()
        twin.step()
        for parameter, own in zip(conv.parameters(), small, strict=True):
            assert torch.equal(parameter.detach()[cut[: parameter.ndim]], own.detach())


def check_unused_elements(name: str) -> None:
    conv, optimizer = fresh(name)
    for seed, cuts in enumerate(
        ([WIDE], [WIDE], [TALL], [WIDE, TALL], [INNER], [TALL], [(slice(8), slice(6))], [WIDE])
    ):
        stepped(conv, optimizer, cuts, seed=seed)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_unused_elements_keep_their_values_whatever_the_optimizer(name: str) -> None:
    check_unused_elements(name)


@pytest.mark.slow
def test_unused_elements_keep_their_values_under_every_optimizer_of_timm() -> None:
    from timm.optim import list_optimizers

    tried = 0
    for name in list_optimizers():
        try:
            conv, optimizer = fresh(name)
            for parameter in conv.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()  # some need other arguments or libraries, sliced or not
        except (ImportError, RuntimeError, TypeError, ValueError, AssertionError):
            continue
        check_unused_elements(name)
        tried += 1
    assert tried > 20


def test_norms_are_those_of_the_used_elements() -> None:
    """LAMB divides by the norms of a tensor; from the second step on these are those of the materialised network."""
    conv, optimizer = fresh("lamb")
    weight, group = next(conv.parameters()), optimizer.param_groups
    stepped(conv, optimizer, [WIDE], seed=0)
    small = nn.Parameter(weight.detach()[WIDE].clone())
    twin = create_optimizer(nn.ParameterList([small]), Train(optimizer="lamb", lr=0.02, weight_decay=0.1))
    moments = {n: t[WIDE].clone() for n, t in optimizer.state[weight].items() if isinstance(t, Tensor) and t.ndim == 4}
    twin.state[small].update(moments)
    for either in (optimizer, twin):
        either.defaults["max_grad_norm"] = None  # a norm over all parameters, of which the twin has only one
    for twin_group in twin.param_groups:
        twin_group["step"] = group[0]["step"].clone()
    stepped(conv, optimizer, [WIDE], seed=1)
    small.grad = gradient(weight, WIDE, seed=1)[WIDE].clone()
    twin.step()
    assert torch.equal(weight.detach()[WIDE], small.detach())


@pytest.mark.parametrize("name", ["lookahead_momentum", "madgrad"])
def test_state_that_copies_the_weights_still_does_in_unused_elements(name: str) -> None:
    conv, optimizer = fresh(name)
    weight = next(conv.parameters())
    for seed in range(7):  # Lookahead's slow weights begin with the sixth step
        stepped(conv, optimizer, [WIDE], seed=seed)
    state = getattr(optimizer, "_base_optimizer", optimizer).state[weight]
    copies = [t for n, t in state.items() if n in ("lookahead_slow_buff", "x0")]
    assert len(copies) == 1
    unused = torch.ones(weight.shape, dtype=torch.bool)
    unused[WIDE] = False
    assert torch.equal(copies[0][unused], weight.detach()[unused])
    assert copies[0].shape == weight.shape
    others = [t for n, t in state.items() if isinstance(t, Tensor) and t is not copies[0] and t.ndim]
    assert others
    assert not any(t[unused].any() for t in others)


def test_an_optimizer_that_fails_leaves_the_parameters_whole() -> None:
    conv, optimizer = fresh("sgd")
    stepped(conv, optimizer, [WIDE], seed=0)
    shapes = [parameter.shape for parameter in conv.parameters()]
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        stepped(conv, optimizer, [WIDE], seed=1)
    assert [parameter.shape for parameter in conv.parameters()] == shapes
    assert [optimizer.state[parameter]["momentum_buffer"].shape for parameter in conv.parameters()] == shapes


def test_muon_orthogonalises_in_float32_and_leaves_timm_as_it_was() -> None:
    """timm's own step does so in bfloat16, which is off by more than a percent and slow on most CPUs."""
    weight = nn.Parameter(torch.zeros(16, 144))
    module = nn.Module()
    module.weight = weight
    optimizer = create_optimizer(module, Train(optimizer="muon", lr=1.0, weight_decay=0.0, momentum=0.9))
    iteration = muon.zeropower_via_newtonschulz
    weight.grad = torch.randn(16, 144, generator=torch.Generator().manual_seed(0))
    expected = iteration(
        weight.grad.double() * (1 - 0.9), 5, muon._COEFFICIENTS["quintic"], dtype=torch.float64
    )  # the first value of the moving average
    optimizer.step()
    step = -weight.detach() / muon.get_lr_scale(weight.shape)
    torch.testing.assert_close(step, expected.float(), rtol=0, atol=1e-5)
    assert muon.zeropower_via_newtonschulz is iteration


def test_rates_fall_from_the_head_to_the_stem() -> None:
    net = create_supernet("elastic", model="lcnet_035", num_classes=5, input_size=32, drop=1)
    config = Train(lr=0.1, layer_decay=0.5, weight_decay=0.1, warmup_epochs=0.0, epochs=2)
    for module in (net, Chain("standalone", [("network", net.subnet(largest(net.space)))])):
        optimizer = create_optimizer(module, config)
        create_schedule(optimizer, config, 10).step_update(0)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        named = [(name, rates[id(p)], decays[id(p)], p.ndim) for name, p in module.named_parameters()]
        order = list(dict.fromkeys(rate for _, rate, _, _ in named))
        assert len(order) == 15  # stem, thirteen blocks, head
        assert order == [0.1 * 0.5**power for power in range(14, -1, -1)]
        assert all(decay == (0.1 if ndim > 1 else 0.0) for _, _, decay, ndim in named)
        assert len(named) == len(list(module.parameters()))
