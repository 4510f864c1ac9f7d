"""Training: exact resume after SIGKILL, unused weights untouched, partly used tensors masked by element."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain, create_supernet
from supernet.config import Augment, Data, Train
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.errors import InputError
from supernet.train import plan_training, train_standalone, train_supernet
from supernet.training.checkpoint import load_state, save_weights
from supernet.training.sampling import create_sampler, uniform
from supernet.training.sparse_step import step_active

CONFIG = Train(epochs=2, batch=128, lr=0.05, save_seconds=0.0)

STEPS = 2 * (1150 // 64)


def toy(**settings: int) -> Chain:
    torch.manual_seed(0)
    return TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1, **settings)


FORKING = multiprocessing.get_context("fork")  # the libraries are loaded already


def train_toy(state: Path, data: Splits, begun: Connection) -> None:
    """Trains to the end, and sends the number of each step as it begins."""
    torch.set_num_threads(1)
    net = toy()

    def sampler(step: int) -> tuple[Arch, ...]:
        begun.send(step)
        return uniform(net.space)(step)

    config = Train(epochs=2, batch=64, lr=0.05, save_seconds=0.0)
    train_supernet(net, data, config, sampler=sampler, augment=Augment(shift=1), state=state, verbose=False)
    save_weights(state.with_name("weights.safetensors"), net, {})


def train_apart(state: Path, data: Splits, *, kill_at: int | None = None, delay: float = 0.0) -> None:
    """Trains in a process of its own, or kills that `delay` seconds after it began the step `kill_at`."""
    receiving, sending = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=train_toy, args=(state, data, sending))
    process.start()
    sending.close()
    with contextlib.suppress(EOFError):
        while True:
            step = receiving.recv()
            if kill_at is not None and step >= kill_at:
                time.sleep(delay)
                process.kill()
    process.join()
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_sigkill_and_resume_give_identical_weights(tmp_path: Path, digits: Splits, kills: int) -> None:
    whole, torn = tmp_path / "whole" / "state.pt", tmp_path / "torn" / "state.pt"
    rng = random.Random(kills)
    train_apart(whole, digits)
    for step in sorted(rng.sample(range(3, STEPS - 5), kills)):
        train_apart(torn, digits, kill_at=step, delay=rng.uniform(0, 0.02))
        assert 0 < load_state(torn)["step"] < STEPS
    train_apart(torn, digits)
    weights = [(path.parent / "weights.safetensors").read_bytes() for path in (whole, torn)]
    assert weights[0] == weights[1]
    first, second = load_state(whole), load_state(torn)
    assert first["history"] == second["history"]
    assert first["step"] == second["step"] == STEPS


@pytest.mark.parametrize("optimizer", ["sgd", "nmuon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_an_interrupted_and_resumed_training_is_the_uninterrupted_one(
    digits: Splits, tmp_path: Path, optimizer: str
) -> None:
    whole, parted = toy(), toy()
    config = replace(CONFIG, optimizer=optimizer, lr=0.01)
    history = train_supernet(whole, digits, config, verbose=False)
    stop = 11

    def interrupted(step: int) -> tuple:  # type: ignore[type-arg]
        if step == stop and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C within a step, which is finished first
        return uniform(parted.space)(step)

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train_supernet(parted, digits, config, sampler=interrupted, state=state, verbose=False)
    assert load_state(state)["step"] == stop + 1
    torch.manual_seed(99)
    fresh = TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1)
    resumed = train_supernet(fresh, digits, config, state=state, verbose=False)
    assert resumed == history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_the_seed_determines_the_weights(digits: Splits) -> None:
    nets = [toy(), toy(), toy()]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 7)  # the caller's generator must not matter
        train_supernet(net, digits, Train(epochs=1, batch=128, seed=seed), verbose=False)
    first, same, different = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, same)
    assert not torch.equal(first, different)


def global_draws() -> tuple[float, float, float]:
    """The next value of every global generator."""
    return torch.rand(1).item(), random.random(), float(numpy.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("ends", ["by itself", "by an error"])
def test_the_callers_generators_are_left_as_they_were(digits: Splits, ends: str) -> None:
    """Their next draws follow from the caller's seed, and no longer from that of the training."""
    net = toy()

    def sampler(step: int) -> tuple[Arch, ...]:
        if step == 2 and ends == "by an error":
            raise ZeroDivisionError
        torch.rand(1), random.random(), numpy.random.rand()  # noqa: NPY002
        return uniform(net.space)(step)

    for seed in (1, 2):
        seed_everything(seed)
        expected = global_draws()
        seed_everything(seed)
        config = Train(epochs=1, batch=230)
        plan_training(net, digits, config, augment=Augment(mixup=0.2))
        with contextlib.suppress(ZeroDivisionError):
            train_supernet(net, digits, config, sampler=sampler, augment=Augment(mixup=0.2), verbose=False)
        assert global_draws() == expected


def test_training_on_the_cpu_does_not_seed_cuda(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA is not in use yet, its seed could not be restored afterwards."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    net = toy()
    assert seeds  # the control: `torch.manual_seed` does it
    seeds.clear()
    train_supernet(net, digits, Train(epochs=1, batch=1150), verbose=False)
    assert not seeds


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002


def test_training_learns(digits: Splits) -> None:
    net = toy()
    history = train_supernet(net, digits, Train(epochs=8, batch=64, lr=0.1), verbose=False)
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["accuracy"] > 0.7
    assert history[-1]["loss"] < history[0]["loss"] / 2


@pytest.mark.parametrize("space", ["chain", "loose", "sliced"])
def test_unsampled_weights_are_bit_identical_after_an_epoch(digits: Splits, space: str) -> None:
    torch.manual_seed(0)
    net = TOY_SPACES[space](num_classes=10, input_size=8, in_channels=1)
    arch = net.space.normal_form(net.space.sample(random.Random(3)))
    before = {name: tensor.clone() for name, tensor in net.named_parameters()}
    train_supernet(
        net, digits, Train(epochs=1, batch=128, weight_decay=0.1), sampler=lambda step: (arch,), verbose=False
    )
    used: dict[int, torch.Tensor] = {}
    for parameter, index in net.active_parts(arch):
        used.setdefault(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))[index] = True
    moved_somewhere = False
    for name, parameter in net.named_parameters():
        moved = parameter != before[name]
        moved_somewhere |= bool(moved.any())
        assert not (moved & ~used.get(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))).any(), name
    assert moved_somewhere
    assert any(id(p) not in used or not used[id(p)].all() for p in net.parameters()), "the arch uses everything"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_elements_outside_the_slice_keep_value_and_momentum(kind: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    settings = {"lr": 0.1, "weight_decay": 0.5} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizer = kind([weight], **settings)
    index = (slice(2), slice(None))
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        weight[index].square().sum().backward()
        step_active(optimizer, [(weight, index)])
    assert torch.equal(weight[2:], torch.ones(2, 3))
    assert (weight[:2] < 1).all()
    for state in optimizer.state[weight].values():
        if state.shape == weight.shape:
            assert not state[2:].any()
            assert state[:2].any()
    weight[:].square().sum().backward()
    plain = kind([nn.Parameter(weight.detach().clone())], **settings)
    plain.param_groups[0]["params"][0].grad = weight.grad
    plain.step()  # the control: without the mask, decay and gradient move everything
    assert not torch.equal(plain.param_groups[0]["params"][0][2:], torch.ones(2, 3))


def test_a_standalone_network_goes_through_the_same_loop(digits: Splits) -> None:
    net = toy()
    arch = net.space.normal_form(net.space.sample(random.Random(0)))
    shared, own = toy(), toy().subnet(arch)
    config = Train(epochs=1, batch=128)
    train_supernet(shared, digits, config, sampler=lambda step: (arch,), verbose=False)
    train_standalone(own, digits, config, verbose=False)
    for name, tensor in shared.subnet(arch).state_dict().items():
        assert torch.equal(tensor, own.state_dict()[name]), name


def test_bad_input_is_named_before_training(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch of 4096 is larger than the training split of 1150"):
        train_supernet(toy(), digits, Train(batch=4096))
    with pytest.raises(InputError, match=r"no sampler 'unifrom'; did you mean 'uniform'"):
        create_sampler("unifrom", toy().space)
    state = tmp_path / "state.pt"
    train_supernet(toy(), digits, Train(epochs=1, batch=512), state=state, verbose=False)
    with pytest.raises(InputError, match="belongs to another network"):
        train_supernet(create_supernet("nasbench-macro", in_channels=1), digits, CONFIG, state=state, verbose=False)
    with pytest.raises(InputError, match="trained on other images"):
        train_supernet(toy(), load(Data(size=8, seed=1)), CONFIG, state=state, verbose=False)
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or not a checkpoint"):
        train_supernet(toy(), digits, CONFIG, state=state, verbose=False)
    torch.save({"weights": torch.ones(2)}, state)
    with pytest.raises(InputError, match="not written by this project"):
        train_supernet(toy(), digits, CONFIG, state=state, verbose=False)
    torch.save({"format": 999}, state)
    with pytest.raises(InputError, match="format 999"):
        train_supernet(toy(), digits, CONFIG, state=state, verbose=False)


def test_a_different_number_of_threads_is_reported(digits: Splits, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train_supernet(toy(), digits, Train(epochs=1, batch=512), state=state, verbose=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=f"threads {threads} -> {threads + 1}.*not be bit-identical"):
            train_supernet(toy(), digits, Train(epochs=2, batch=512), state=state, verbose=False)
    finally:
        torch.set_num_threads(threads)


def test_a_training_stops_at_an_epoch_and_goes_on_to_the_same_weights(digits: Splits, tmp_path: Path) -> None:
    """It follows the schedule of the whole training, and averaged weights are those of the epoch."""
    config = Train(epochs=3, batch=512, lr=0.05, ema=0.9)
    whole, parts = toy(), toy()
    train_supernet(whole, digits, config, verbose=False)
    history = train_supernet(parts, digits, config, state=tmp_path / "state.pt", until=1, verbose=False)
    assert [row["epoch"] for row in history] == [1]
    assert any((a != b).any() for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    resumed = toy()
    train_supernet(resumed, digits, config, state=tmp_path / "state.pt", until=3, verbose=False)
    assert all((a == b).all() for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    for epoch in (0, 4):
        with pytest.raises(InputError, match=f"until={epoch} should be an epoch of the training, from 1 to 3"):
            train_supernet(toy(), digits, config, until=epoch, verbose=False)
