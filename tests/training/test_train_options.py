"""Options of the training loop: schedules, averaged weights, precision, compilation, distillation, mixing, guards."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain
from supernet.blocks.cells.plain import Output
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.config import Augment, Train
from supernet.cost import CostTable
from supernet.data.images import Splits
from supernet.data.training import training_batches
from supernet.errors import InputError, RunError
from supernet.train import check_training, compare_rates, plan_training, train_supernet
from supernet.training.checkpoint import load_state
from supernet.training.monitor import Monitor
from supernet.training.optim import compiled, create_optimizer, create_schedule
from supernet.training.sampling import ArchSampler, create_sampler, uniform

CONFIG = Train(epochs=2, batch=230, lr=0.05)  # 5 steps per epoch


def toy(space: str = "chain") -> Chain:
    torch.manual_seed(0)
    return TOY_SPACES[space](num_classes=10, input_size=8, in_channels=1)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# -- optimisation -----------------------------------------------------------------------------------------------------


def rates_of(config: Train, steps: int) -> list[float]:
    """The learning rate of every step, 25 to an epoch."""
    optimizer = create_optimizer(nn.Linear(2, 2), config)
    schedule, rates = create_schedule(optimizer, config, 25), []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("cosine", lambda t: 0.5 * (1 + math.cos(math.pi * t)), 0),
        ("linear", lambda t: 1 - t, 0),
        ("constant", lambda t: 1, 1),
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_schedules_follow_their_formula_down_to_the_floor(
    schedule: str, middle: Callable[[float], float], end: float, floor: float
) -> None:
    config = Train(epochs=4, lr=0.2, schedule=schedule, lr_floor=floor, warmup_epochs=1.0)  # type: ignore[arg-type]
    rates = rates_of(config, 101)
    assert rates[0] == pytest.approx(0.02)
    assert rates[10] == pytest.approx(0.02 + 0.18 * 10 / 25)
    for step in (25, 50, 99):
        assert rates[step] == pytest.approx(0.2 * (floor + (1 - floor) * middle(step / 100)))
    assert rates[100] == pytest.approx(0.2 * max(floor, end))


def test_the_step_schedule_drops_at_its_settings() -> None:
    """The steps are exact, whatever the warm-up."""
    config = Train(epochs=4, lr=0.2, schedule="step", drops=(0.6, 0.8), warmup_epochs=1.0)
    rates = rates_of(config, 100)
    assert rates[10] == pytest.approx(0.02 + 0.18 * 10 / 25)
    assert rates[25:] == pytest.approx([0.2] * 35 + [0.02] * 20 + [0.002] * 20)


def test_an_average_with_the_decay_of_a_long_training_leaves_the_initial_weights(digits: Splits) -> None:
    """A short training ends nearer to its last weights than to its first; without the warm-up it stays at the first."""
    moved = {}
    for warmup in (True, False):
        net, plain = toy(), toy()
        first = weights(net)
        train_supernet(net, digits, replace(CONFIG, ema=0.9999, ema_warmup=warmup), verbose=False)
        train_supernet(plain, digits, CONFIG, verbose=False)
        moved[warmup] = ((weights(net) - first).norm() / (weights(plain) - first).norm()).item()
    assert moved[True] > 0.5
    assert moved[False] < 0.01


def test_the_exponential_schedule_falls_in_steps_down_to_the_floor() -> None:
    """By 0.97 every 2.4 epochs, to a constant 5 % of the peak, as in BigNAS; here faster."""
    config = Train(epochs=8, lr=0.2, schedule="exponential", decay_rate=0.5, decay_epochs=0.8, lr_floor=0.05)
    rates = rates_of(config, 200)
    assert rates[10] == pytest.approx(0.02 + 0.18 * 10 / 25)
    assert rates[25:] == pytest.approx([max(0.2 * 0.5 ** (step // 20), 0.01) for step in range(25, 200)])
    assert rates[-1] == pytest.approx(0.01)
    assert (Train().decay_rate, Train().decay_epochs) == (0.97, 2.4)


def test_biases_and_batch_norm_are_not_decayed() -> None:
    net = toy()
    groups = create_optimizer(net, Train(weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(p)] for p in net.parameters() if p.ndim == 1} == {0.0}
    assert {decay[id(p)] for p in net.parameters() if p.ndim > 1} == {0.1}


class Watched(nn.Dropout):
    """Dropout that notes whether it drops anything."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.dropped: list[bool] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        self.dropped.append(not torch.equal(out, input))
        return out


def test_decay_and_dropout_may_act_on_the_largest_architecture_alone(digits: Splits) -> None:
    """As in BigNAS, § 3.1. After one step, weights that only the smaller one uses are those of a step without decay."""
    convs = {f"k{kernel}": ConvBNAct(8, 8, kernel=kernel) for kernel in (3, 5)}
    steps = [("stem", ConvBNAct(1, 8, kernel=3)), ("block", ChoiceBlock(convs)), ("drop", Watched())]
    torch.manual_seed(0)
    begun = Chain("largest", [*steps, ("head", ClassifierHead(8, 10, hidden=8))], input_shape=(1, 8, 8))
    paths = tuple(Arch({"block.op": name}) for name in ("k5", "k3"))
    config = Train(epochs=1, batch=500, lr=0.1, warmup_epochs=0.0, optimizer="momentum")
    trained: dict[tuple[float, bool], dict[str, torch.Tensor]] = {}
    for decay, largest in ((0.5, False), (0.5, True), (0.0, True)):
        net = copy.deepcopy(begun)
        settings = replace(config, weight_decay=decay, regularize_largest=largest)
        train_supernet(net, _first(digits, 500), settings, sampler=lambda step: paths, verbose=False)
        assert net.drop.dropped[1:] == [True, not largest]  # the first call only checks the shapes
        assert all(module.training for module in net.modules())
        trained[decay, largest] = dict(net.named_parameters())
    of_small = "block.options.k3.conv.weight"
    for name, weight in trained[0.5, True].items():
        if weight.ndim > 1:
            assert torch.equal(weight, trained[0.0, True][name]) == (name == of_small), name
    assert not torch.equal(trained[0.5, True][of_small], trained[0.5, False][of_small])
    turns, settings = [paths, paths[::-1]], replace(config, regularize_largest=True)
    with pytest.raises(InputError, match=r"regularize_largest=True .* sampler 'sandwich', but this sampler"):
        train_supernet(begun, digits, settings, sampler=lambda step: turns[step % 2], verbose=False)


def _first(data: Splits, n: int) -> Splits:
    return replace(data, train=data.train.subset(torch.arange(n)))


@pytest.mark.parametrize("warmup", [True, False])
def test_averaged_weights_are_the_result_and_resume_exactly(digits: Splits, tmp_path: Path, warmup: bool) -> None:
    config = replace(CONFIG, ema=0.8, ema_warmup=warmup, save_seconds=0.0)
    seen: list[torch.Tensor] = []
    net = toy()

    def watched(step: int) -> tuple[Arch, ...]:
        seen.append(weights(net))
        return uniform(net.space)(step)

    train_supernet(net, digits, config, sampler=watched, state=tmp_path / "state.pt", verbose=False)
    raw = load_state(tmp_path / "state.pt")["model"]
    last = torch.cat([raw[name].flatten() for name, _ in net.named_parameters()])
    average = seen[0]
    for step, now in enumerate([*seen[1:], last], start=1):
        decay = min(0.8, 1 - step ** (-2 / 3)) if warmup else 0.8
        average = decay * average + (1 - decay) * now
    torch.testing.assert_close(weights(net), average)
    assert not torch.allclose(weights(net), last, atol=1e-4)
    parted, half = toy(), tmp_path / "half.pt"
    with pytest.raises(Stop):
        train_supernet(parted, digits, config, sampler=stopping(uniform(parted.space), 6), state=half, verbose=False)
    assert load_state(half)["step"] == 6
    resumed = toy()
    train_supernet(resumed, digits, config, state=half, verbose=False)
    assert torch.equal(weights(resumed), weights(net))


class Stop(Exception):
    """A user's own exception, in the middle of a training."""


def stopping(sampler: ArchSampler, at: int) -> ArchSampler:
    def sample(step: int) -> tuple[Arch, ...]:
        if step == at:
            raise Stop
        return sampler(step)

    return sample


def test_clipping_bounds_the_step(digits: Splits) -> None:
    for clip, bound in ((0.0, None), (1e-3, 1e-3)):
        net, config = (
            toy(),
            Train(
                epochs=1,
                batch=1150,
                lr=1.0,
                optimizer="momentum",
                momentum=0.0,
                weight_decay=0.0,
                warmup_epochs=0,
                clip=clip,
            ),
        )
        before = weights(net)
        train_supernet(net, digits, config, verbose=False)
        moved = float((weights(net) - before).norm())
        assert moved > 0.1 if bound is None else moved == pytest.approx(bound, rel=1e-3)


def test_bfloat16_computes_coarsely_and_keeps_float32_weights(digits: Splits) -> None:
    nets = [toy(), toy()]
    losses = [
        train_supernet(net, digits, replace(CONFIG, bf16=bf16), verbose=False)[-1]["loss"]
        for net, bf16 in zip(nets, (False, True), strict=True)
    ]
    assert all(p.dtype is torch.float32 for p in nets[1].parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_compiled_blocks_serve_every_path_and_learn_the_same(digits: Splits) -> None:
    """Takes 30 s: a C++ compiler runs once per candidate block, not once per path."""
    from torch._dynamo.utils import counters

    counters.clear()
    eager, fast = toy(), toy()
    keys = list(fast.state_dict())
    single = Train(epochs=1, batch=len(digits.train), lr=0.05, warmup_epochs=0)
    train_supernet(eager, digits, single, verbose=False)
    train_supernet(fast, digits, replace(single, compile=True), verbose=False)
    assert float((weights(fast) - weights(eager)).abs().max()) < 1e-4  # rounding: 1.4e-5 after a step, 1e-3 after ten
    counters.clear()
    train_supernet(fast, digits, replace(CONFIG, compile=True), verbose=False)
    blocks = 2 + sum(
        1 for step in fast.step_modules for child in getattr(step, "options", {}).values() if list(child.parameters())
    )
    assert 0 < counters["stats"]["unique_graphs"] <= blocks
    assert list(fast.state_dict()) == keys
    with compiled(fast):
        assert fast.step_modules[0]._compiled_call_impl is not None
    assert fast.step_modules[0]._compiled_call_impl is None


# -- targets of a step -----------------------------------------------------------------------------------------------


def test_in_place_distillation_follows_the_largest(digits: Splits) -> None:
    """Compares one step with gradients written by hand: labels for the first path, its predictions for the others."""
    net, by_hand = toy("sliced"), toy("sliced")
    sampler = create_sampler("sandwich", net.space, 3, table=CostTable(net), random_paths=1)
    config = Train(
        epochs=1,
        batch=len(digits.train),
        optimizer="momentum",
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        warmup_epochs=0,
        distill=True,
        channels_last=False,
    )
    train_supernet(net, digits, config, sampler=sampler, verbose=False)
    images, labels = next(training_batches(digits.train, Augment(), batch=config.batch, seed=0))
    first, *others = sampler(0)
    assert len(others) == 2
    by_hand.train()
    logits = by_hand(images, first)
    nn.functional.cross_entropy(logits, labels).backward()
    soft = logits.detach().softmax(1)
    for arch in others:
        (-(soft * by_hand(images, arch).log_softmax(1)).sum(1).mean()).backward()
    for (name, learned), parameter in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        wanted = parameter.detach() - (0 if parameter.grad is None else 0.1 * parameter.grad)
        torch.testing.assert_close(learned.detach(), wanted, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_mixing_changes_the_result_and_is_seeded(digits: Splits) -> None:
    nets = [toy() for _ in range(3)]
    for net, augment in zip(nets, (Augment(), Augment(mixup=0.5), Augment(mixup=0.5)), strict=True):
        random.seed(len(nets))  # the caller's generators must not matter
        torch.manual_seed(random.randrange(100))
        train_supernet(net, digits, CONFIG, augment=augment, verbose=False)
    plain, mixed, again = map(weights, nets)
    assert torch.equal(mixed, again)
    assert not torch.allclose(plain, mixed, atol=1e-3)


def test_batches_that_a_thread_prepares_change_nothing(digits: Splits) -> None:
    nets = [toy(), toy()]
    for net, prefetch in zip(nets, (True, False), strict=True):
        config = replace(CONFIG, prefetch=prefetch)
        train_supernet(net, digits, config, augment=Augment(shift=1), verbose=False)
    ahead, plain = map(weights, nets)
    assert torch.equal(ahead, plain)


# -- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "what"), [(math.nan, "is not finite"), (1e4, "10 times the usual")])
def test_a_loss_spike_stops_before_the_checkpoint_is_overwritten(
    digits: Splits, tmp_path: Path, factor: float, what: str
) -> None:
    net, state = toy(), tmp_path / "state.pt"

    def poisoned(step: int) -> tuple[Arch, ...]:
        if step == 7:
            with torch.no_grad():
                net.step_modules[-1].fc.weight.mul_(factor)  # type: ignore[union-attr, operator]
        return uniform(net.space)(step)

    config = replace(CONFIG, save_seconds=0.0)
    with pytest.raises(RunError, match=what) as error:
        train_supernet(net, digits, config, sampler=poisoned, state=state, verbose=False)
    assert "of step 7" in str(error.value)
    assert uniform(net.space)(7)[0].to_json() in str(error.value)
    assert f"{state} after step 7" in str(error.value)
    kept = load_state(state)
    assert kept["step"] == 7  # steps 0 to 6
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())
    resumed, whole = toy(), toy()
    train_supernet(resumed, digits, config, state=state, verbose=False)
    train_supernet(whole, digits, config, verbose=False)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_bound_on_spikes_can_be_turned_off(digits: Splits) -> None:
    config = Train(epochs=1, batch=230, lr=500.0, warmup_epochs=0, weight_decay=0.0)
    with pytest.raises(RunError, match=r"times the usual|not finite"):
        train_supernet(toy(), digits, config, verbose=False)
    history = train_supernet(toy(), digits, replace(config, lr=20.0, spike=0.0), verbose=False)
    assert history[-1]["loss"] > math.log(10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_floor": 1.5}, "lr_floor=1.5"),
        ({"drops": (0.9, 0.6)}, "drops=.*in ascending order"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"sync_bn": True}, "sync_bn needs CUDA"),
        ({"optimizer": "sgdd"}, "no optimizer 'sgdd'"),
        ({"device": "cuda:7"}, "not available"),
        ({"epochs": 0}, "epochs=0"),
        ({"momentum": 0.0}, "'momentum' is without"),
        ({"lr": -1.0}, "lr=-1.0 should be greater than 0"),
    ],
)
def test_wrong_settings_are_named(digits: Splits, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_training(replace(CONFIG, **settings), digits)  # type: ignore[arg-type]


def test_mixing_needs_pairs(digits: Splits) -> None:
    with pytest.raises(InputError, match="each process has 31"):
        check_training(replace(CONFIG, batch=31), digits, Augment(mixup=0.2))


# -- planning ---------------------------------------------------------------------------------------------------------


def test_a_plan_counts_and_leaves_the_supernet_alone(digits: Splits, tmp_path: Path) -> None:
    net = toy()
    before = weights(net)
    plan = plan_training(net, digits, CONFIG)
    assert torch.equal(weights(net), before)
    assert plan["parameters"] == len(before)
    sizes = [sum(p.numel() for p in net.active_parameters(uniform(net.space)(step)[0])) for step in range(3)]
    assert plan["active_parameters"] == pytest.approx(sum(sizes) / 3)
    assert plan["steps"] == 10
    state = tmp_path / "state.pt"
    train_supernet(net, digits, CONFIG, sampler=create_sampler("balanced", net.space), state=state, verbose=False)
    assert state.stat().st_size < plan["disk_bytes"] < 4 * state.stat().st_size


def test_rates_are_tried_on_copies_with_the_same_batches(digits: Splits) -> None:
    net = toy()
    before, state = weights(net), torch.get_rng_state()
    losses = compare_rates(net, digits, CONFIG, rates=[1e-6, CONFIG.lr], steps=30)
    assert losses[CONFIG.lr] < losses[1e-6] - 0.05  # so small a rate learns nothing
    assert torch.equal(weights(net), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert compare_rates(net, digits, CONFIG, rates=[CONFIG.lr], steps=30) == {CONFIG.lr: losses[CONFIG.lr]}


def test_a_rate_that_diverges_has_an_infinite_loss(digits: Splits) -> None:
    assert compare_rates(toy(), digits, CONFIG, rates=[1e30], steps=9) == {1e30: math.inf}


def test_rates_and_steps_out_of_range_are_named(digits: Splits) -> None:
    with pytest.raises(InputError, match="lr=-1"):
        compare_rates(toy(), digits, CONFIG, rates=[-1.0])
    with pytest.raises(InputError, match="steps=2 should be an integer from 3"):
        compare_rates(toy(), digits, CONFIG, steps=2)


# -- schedules and auxiliary heads inside networks ---------------------------------------------------------------------


class TwoHeads(nn.Module):
    """A head with an auxiliary head in training, which records the progress of the training."""

    stride = 0
    out_channels = 10

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(64, 10), nn.Linear(64, 10)
        self.seen: list[float] = []

    def set_progress(self, t: float) -> None:
        self.seen.append(t)

    def forward(self, x: torch.Tensor) -> torch.Tensor | Output:
        flat = x.flatten(1)
        return Output(self.main(flat), self.side(flat)) if self.training else self.main(flat)


@pytest.mark.parametrize("weight", [0.4, 0.0])
def test_an_auxiliary_head_trains_alongside_with_its_weight(digits: Splits, weight: float) -> None:
    torch.manual_seed(0)
    head = TwoHeads()
    chain = Chain("two-heads", [("head", head)], input_shape=(1, 8, 8))
    before = {name: parameter.detach().clone() for name, parameter in chain.named_parameters()}
    config = Train(
        epochs=1,
        batch=len(digits.train),
        optimizer="momentum",
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        warmup_epochs=0,
        auxiliary=weight,
    )
    train_supernet(chain, digits, config, verbose=False)
    images, labels = next(training_batches(digits.train, Augment(), batch=config.batch, seed=0))
    for side, share in (("main", 1.0), ("side", weight)):
        w, b = (before[f"head.{side}.{name}"].requires_grad_() for name in ("weight", "bias"))
        loss = share * nn.functional.cross_entropy(images.flatten(1) @ w.T + b, labels)
        (gradient,) = torch.autograd.grad(loss, w)
        torch.testing.assert_close(getattr(head, side).weight.detach(), w.detach() - 0.1 * gradient)


def test_networks_receive_the_progress_of_the_training(digits: Splits) -> None:
    head = TwoHeads()
    train_supernet(Chain("two-heads", [("head", head)], input_shape=(1, 8, 8)), digits, CONFIG, verbose=False)
    assert head.seen == [step / 10 for step in range(10)]


def test_the_health_of_a_training_is_resumed_with_it(digits: Splits, tmp_path: Path) -> None:
    whole, parted, resumed = toy(), toy(), toy()
    watch = Monitor(whole)
    train_supernet(whole, digits, CONFIG, monitor=watch, verbose=False)
    state, config = tmp_path / "state.pt", replace(CONFIG, save_seconds=0.0)
    sampler = stopping(uniform(parted.space), 6)
    with pytest.raises(Stop):
        train_supernet(parted, digits, config, sampler=sampler, monitor=Monitor(parted), state=state, verbose=False)
    again = Monitor(resumed)
    train_supernet(resumed, digits, config, monitor=again, state=state, verbose=False)
    assert again.report() == watch.report()
    assert sum(watch.report()["visits"]["a.op"].values()) == 10
