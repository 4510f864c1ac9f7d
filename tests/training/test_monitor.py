"""The health monitor compared with counts by hand, on a chain whose gradients are known."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from supernet import Arch, Chain, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.chain import Layout
from supernet.ranking.statistics import kendall
from supernet.training.monitor import TENTHS, Monitor


class Scale(nn.Module):
    """A step whose parameter's gradient is easily set."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def out_layout(self, layout: Layout) -> Layout:
        return layout

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.sum()


@pytest.fixture
def chain() -> Chain:
    def block() -> ChoiceBlock:
        return ChoiceBlock({"identity": nn.Identity(), "one": Scale(1), "two": Scale(2)})

    return Chain("toy", [("b0", block()), ("b1", block())], input_shape=(1, 4, 4))


def arch(first: str, second: str) -> Arch:
    return Arch({"b0.op": first, "b1.op": second})


def test_visits_are_counted(chain: Chain) -> None:
    monitor = Monitor(chain)
    monitor.begin(100)
    for step, (first, second) in enumerate([("one", "two"), ("one", "one"), ("two", "identity"), ("one", "two")]):
        monitor.losses(step, [arch(first, second)], [1.0])
    assert monitor.report()["visits"]["b0.op"] == {"identity": 0, "one": 3, "two": 1}
    assert monitor.visits()["b1.op"] == {"identity": 0.25, "one": 0.25, "two": 0.5}
    assert monitor.close_epoch(4)["health/visits_least"] == 0


def test_gradients_are_credited_to_the_chosen_options(chain: Chain) -> None:
    monitor = Monitor(chain, every=2)
    weights = {name: parameter for name, parameter in chain.named_parameters()}
    assert len(weights) == 4
    for parameter in weights.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    one, two = arch("one", "one"), arch("two", "one")
    monitor.gradients(0, [one])
    monitor.gradients(1, [two])  # not measured
    shares = monitor.gradient_shares()
    assert shares["b0.op"] == {"identity": 0, "one": 1, "two": 0}
    monitor.gradients(2, [one, two])  # b1 is active in both paths, its gradient counts once
    shares = monitor.gradient_shares()
    assert shares["b0.op"]["one"] == pytest.approx((9 + 9) / (9 + 9 + 18))
    assert shares["b0.op"]["two"] == pytest.approx(18 / (9 + 9 + 18))
    state = monitor.state_dict()["gradients"]
    assert [value for name, index, value in state if (name, index) == ("b1.op", 1)] == pytest.approx([18])


def test_measured_gradients_are_those_of_a_real_step(chain: Chain) -> None:
    monitor = Monitor(chain)
    path = arch("two", "one")
    chain(torch.ones(1, 1, 4, 4), path).sum().backward()
    monitor.gradients(0, [path])
    values = {(name, index): value for name, index, value in monitor.state_dict()["gradients"]}
    # y = 16 · (w1 + w2) · v with all weights 1: dy/dw = 16 each, dy/dv = 32
    assert values == {("b0.op", 2): pytest.approx(2 * 16**2), ("b1.op", 1): pytest.approx(32**2)}
    chain.zero_grad()
    monitor.gradients(10, [arch("identity", "identity")])  # nothing has a gradient
    assert len(monitor.state_dict()["gradients"]) == 2


def test_a_step_does_not_wait_for_the_device(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(chain)
    chain(torch.ones(1, 1, 4, 4), arch("one", "one")).sum().backward()

    def refuse(*_: object) -> None:
        raise AssertionError("a step waited for the device")

    for name in ("item", "tolist", "__float__", "__bool__", "cpu"):
        monkeypatch.setattr(Tensor, name, refuse)
    monitor.gradients(0, [arch("one", "one")])
    monitor.losses(0, [arch("one", "one")], [1.0])


def test_the_spread_of_losses_ignores_their_downward_trend(chain: Chain) -> None:
    monitor = Monitor(chain)
    monitor.begin(1000)
    paths = [arch("one", "one"), arch("identity", "identity")]
    for step in range(50):
        monitor.losses(step, paths, [2.0, 3.0])
    spread = monitor.close_epoch(50)["health/loss_spread"]
    assert spread == pytest.approx(0.5, abs=0.01)
    for step in range(50, 100):
        monitor.losses(step, paths, [2.5, 2.5])
    assert monitor.close_epoch(100)["health/loss_spread"] == pytest.approx(0, abs=1e-9)


def test_depth_is_ranked_once_per_tenth_of_the_training(chain: Chain) -> None:
    monitor = Monitor(chain)
    monitor.begin(100)
    paths = [arch("identity", "identity"), arch("one", "identity"), arch("one", "two")]
    for step in range(100):
        deeper_is_better = step < 50
        values = [3.0, 2.0, 1.0] if deeper_is_better else [1.0, 2.0, 3.0]
        monitor.losses(step, paths, values)
        if step == 99:
            scalars = monitor.close_epoch(100)
    rows = monitor.report()["depth"]
    assert [row["tenth"] for row in rows] == list(range(1, TENTHS + 1))
    assert [round(row["tau"]) for row in rows] == [1] * 5 + [-1] * 5
    assert rows[1]["paths"] == 30
    gaps = rows[1]["gap"]
    assert list(gaps) == ["0", "1", "2"]
    assert gaps["0"] - gaps["2"] == pytest.approx(2)
    assert scalars["health/depth_tau"] == rows[-1]["tau"]
    expected = kendall([0, 1, 2] * 10, [-3, -2, -1] * 10)
    assert rows[3]["tau"] == pytest.approx(expected)


def test_a_resumed_monitor_continues_identically(chain: Chain) -> None:
    def feed(monitor: Monitor, steps: range) -> None:
        for step in steps:
            path = arch(("one", "two", "identity")[step % 3], ("two", "one")[step % 2])
            chain.zero_grad()
            chain(torch.full((1, 1, 4, 4), 1.0 + step), path).sum().backward()
            monitor.gradients(step, [path])
            monitor.losses(step, [path], [1.0 + (step * 7 % 5)])
            if (step + 1) % 20 == 0:
                monitor.close_epoch(step + 1)

    whole, first, second = (Monitor(chain, every=3) for _ in range(3))
    for monitor in (whole, first, second):
        monitor.begin(60)
    feed(whole, range(60))
    feed(first, range(33))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    feed(second, range(33, 60))
    assert second.report() == whole.report()
    second.load_state_dict(None)  # a checkpoint written without a monitor
    json.dumps(whole.report(), allow_nan=False)


def test_options_have_curves_only_if_there_are_few(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(chain)
    monitor.losses(0, [arch("one", "one")], [1.0])
    scalars = monitor.close_epoch(1)
    assert scalars["health/visits/b0.op/one"] == 1
    assert "health/gradient/b1.op/two" in scalars
    assert all(math.isfinite(value) for value in scalars.values())
    monkeypatch.setattr("supernet.training.monitor.MOST_SHOWN", 5)
    assert not any(name.startswith("health/visits/") for name in monitor.close_epoch(2))


def test_a_network_without_decisions_has_nothing_to_monitor() -> None:
    monitor = Monitor(Chain("plain", [("scale", Scale())], input_shape=(1, 4, 4)))
    monitor.gradients(0, [Arch()])
    monitor.losses(0, [Arch()], [1.0])
    assert monitor.close_epoch(1) == {}


def test_a_real_supernet_is_monitored() -> None:
    supernet = create_supernet("nasbench-macro", input_size=8)
    monitor = Monitor(supernet)
    path = supernet.space.from_indices([2, 1, 2, 1, 2, 1, 2, 1])
    supernet(torch.randn(2, 3, 8, 8), path).sum().backward()
    monitor.gradients(0, [path])
    shares = monitor.gradient_shares()
    assert all(shares[name][str(value)] == 1 for name, value in path.items())
