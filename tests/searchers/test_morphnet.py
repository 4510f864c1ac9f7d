"""MorphNet: a search that shrinks, expands to its budget, and resumes after SIGKILL."""

import math
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import searchers
from helpers.morphnet_cases import CONFIG, Shrinking, digits, searched, searcher, supernet
from searchers import MorphNet, Study, Trial
from searchers.morphnet.resources import group_scales
from supernet import create_supernet
from supernet.config import Train
from supernet.cost import CostTable, Feasible
from supernet.errors import InputError
from supernet.space import Arch
from supernet.spaces.widths import WidthChain
from supernet.testing import randomize
from supernet.training.loop import train_supernet

ROOT = Path(searchers.__path__[0]).parent


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As in the process that is killed: resume is exact for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the search -------------------------------------------------------------------------------------------------------


def descend(chain: WidthChain, arch: Arch, penalty: Any, run: str) -> None:
    """Ten gradient steps on the regulariser alone, for tests of the steps before and after a training."""
    for _ in range(10):
        penalty(arch).backward()
        with torch.no_grad():
            for parameter in chain.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
                    parameter.grad = None


def varied() -> WidthChain:
    """Scales from 0.5 to 1.5."""
    chain = supernet()
    randomize(chain, 0)
    return chain


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[MorphNet, Shrinking, list[Trial], dict[str, Tensor]]:
    net, train = supernet(), Shrinking()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    morph = searcher(train, net=net)
    trials = searched(morph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())  # a copy is trained
    return morph, train, trials, before


def test_a_search_shrinks_expands_and_records(uninterrupted: Any) -> None:
    morph, train, trials, before = uninterrupted
    assert [trial.arch for trial in trials] == [shrunk.arch for shrunk in morph.history]
    assert [trial.metrics["round"] for trial in trials] == [0.0, 1.0]
    for trial, shrunk in zip(trials, morph.history, strict=True):
        macs = morph.feasible.cost(trial.arch)["macs"]
        assert 0.95 * morph.budget <= macs == shrunk.cost <= morph.budget
        assert trial.metrics["checkpoint"] == int(shrunk.checkpoint[:12], 16)
        assert shrunk.multiplier == trial.metrics["multiplier"]
        assert 0.0 < trial.metrics["accuracy"] <= 1.0
    first = morph.history[0]
    seed = sum(int(width) for width in morph.supernet.seed.values())
    assert sum(first.alive.values()) < 0.9 * seed
    assert first.multiplier > 1.0  # the dead channels made room for the others
    assert first.strength == pytest.approx(2.0 / (2 * morph.feasible.cost(morph.supernet.seed)["macs"]))
    rows = train.history["round0-0"]
    assert rows[0]["penalty"] > 1.5 * rows[-1]["penalty"] > 0
    moved = morph.supernet.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in moved.items())


def test_the_important_channels_come_first(uninterrupted: Any) -> None:
    morph, _, trials, _ = uninterrupted
    last = morph.history[-1]
    for name, scale in group_scales(morph.supernet.scales(trials[0].arch)).items():  # what round 1 trained
        assert scale.tolist() == sorted(scale.tolist(), reverse=True)
        assert last.alive[name] == max(1, int((scale > 0.05).sum()))


def test_a_weak_regulariser_leaves_all_alive() -> None:
    morph = searcher(descend, net=varied(), scan=(1e-6,), rounds=1)
    (arch,) = morph.ask(1)
    assert morph.history[0].alive == dict(morph.supernet.seed)
    assert morph.history[0].multiplier < 1.0
    assert morph.ask(1) == []
    assert arch in morph.space


def test_a_histogram_without_a_gap_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    morph = searcher(descend, net=varied(), scan=(1e-6,), rounds=1, threshold="gap")
    morph.ask(1)
    assert morph.history[0].alive == dict(morph.supernet.seed)
    assert "round0-0: no two scales have a gap of a factor 3" in caplog.text
    caplog.clear()
    split = varied()
    for name, (scale, *_) in split.scales(split.seed).items():
        scale.data[len(scale) // 2 :] = 1e-3 if name != "block0.mid" else 1.0
    morph = searcher(descend, net=split, scan=(1e-6,), rounds=1, threshold="gap")
    morph.ask(1)
    assert morph.history[0].alive["block1.out"] == int(split.seed["block1.out"]) // 2
    assert "gap" not in caplog.text


def test_a_scan_continues_from_its_best() -> None:
    morph = searcher(descend, net=varied(), scan=(0.5, 8.0))
    starts, archs = [], []
    train = morph.train

    def noted(chain: WidthChain, arch: Arch, penalty: Any, run: str) -> None:
        starts.append((arch, {name: tensor.clone() for name, tensor in chain.state_dict().items()}))
        train(chain, arch, penalty, run)

    morph.train = noted
    after = []
    for number, accuracy in enumerate((0.9, 0.2)):
        archs += morph.ask(3)
        after.append({name: tensor.clone() for name, tensor in morph.supernet.state_dict().items()})
        morph.tell([Trial.of(morph.space, archs[-1], {"accuracy": accuracy}, number=number)])
    assert len(archs) == 2
    assert starts[0][0] == starts[1][0] == morph.supernet.seed
    assert all(torch.equal(tensor, starts[1][1][name]) for name, tensor in starts[0][1].items())
    strengths = [shrunk.strength for shrunk in morph.history]
    assert strengths[1] == pytest.approx(16 * strengths[0])
    assert sum(morph.history[1].alive.values()) < sum(morph.history[0].alive.values())
    restored = searcher(descend, net=varied(), scan=(0.5, 8.0))
    restored.restore(morph.snapshot())
    morph.ask(1)
    assert starts[2][0] == archs[0]  # the better score
    kept = [name for name in after[0] if "bn" not in name]
    assert all(torch.equal(starts[2][1][name], after[0][name]) for name in kept)
    restored.ask(1)
    assert restored.history == morph.history


def test_a_search_restored_in_the_middle_of_a_scan_continues_identically() -> None:
    first, second = (searcher(descend, net=varied(), scan=(0.5, 8.0), rounds=1) for _ in range(2))
    (arch,) = first.ask(1)
    first.tell([Trial.of(first.space, arch, {"accuracy": 0.5})])
    second.restore(first.snapshot())
    assert first.ask(1) == second.ask(1)
    assert second.history == first.history


def test_weights_too_large_for_a_study_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchers.morphnet.search.MOST_BYTES", 1000)
    morph = searcher(never)
    data = morph.snapshot()
    assert len(data) < 5000
    with pytest.raises(InputError, match="has no weights, as they exceed 1,000 bytes"):
        morph.restore(data)


def test_a_study_of_other_weights_is_refused(uninterrupted: Any) -> None:
    _, _, (trial, *_), _ = uninterrupted
    morph = searcher(Shrinking(config=replace(CONFIG, lr=0.08)))
    (arch,) = morph.ask(1)
    with pytest.raises(InputError, match=r"trial 0 was scored with other weights than round0-0 has now"):
        morph.tell([replace(trial, arch=arch)])
    morph.tell([replace(trial, arch=arch, repeat=True)])  # the score is that of another training anyway


def test_a_study_continues_from_its_snapshot(tmp_path: Path, uninterrupted: Any) -> None:
    searched(searcher(Shrinking()), tmp_path / "study.db", trials=1)
    train = Shrinking()
    morph = searcher(train)
    assert searched(morph, tmp_path / "study.db") == uninterrupted[2]
    assert list(train.history) == ["round1-0"]
    assert morph.history == uninterrupted[0].history


def test_a_restored_search_continues_identically(uninterrupted: Any) -> None:
    _, _, trials, _ = uninterrupted
    first = searcher(Shrinking())
    assert first.ask(1) == [trials[0].arch]
    first.tell(trials[:1])
    data = first.snapshot()
    second = searcher(Shrinking())
    second.restore(data)
    assert second.history == first.history
    assert second.ask(1) == [trials[1].arch]
    assert second.history[-1].checkpoint == uninterrupted[0].history[-1].checkpoint
    for broken in (data[:40], b"no"):
        with pytest.raises(InputError, match="cannot be read as a MorphNet snapshot"):
            second.restore(broken)
    with pytest.raises(InputError, match="another space"):
        searcher(Shrinking(), net=supernet(widths=(5, 33))).restore(data)


def test_a_search_killed_while_shrinking_ends_as_the_uninterrupted_one(tmp_path: Path, uninterrupted: Any) -> None:
    morph, whole, trials, _ = uninterrupted

    def until_killed() -> None:
        torch.set_num_threads(1)
        searched(searcher(Shrinking(tmp_path, kill=("round1-0", 20))), tmp_path / "study.db")

    process = multiprocessing.get_context("fork").Process(target=until_killed)  # the libraries are loaded already
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Study(tmp_path / "study.db", morph.space) as study:
        assert study.trials() == trials[:1]
    train = Shrinking(tmp_path)
    resumed = searcher(train)
    assert searched(resumed, tmp_path / "study.db") == trials
    assert resumed.history == morph.history
    assert train.history == whole.history
    assert train.steps < 0.45 * whole.steps  # round 0 and the first 20 steps of round 1 are not trained again


def test_only_inplace_trains_the_supernet_itself() -> None:
    net = supernet()
    assert searcher(Shrinking(), net=net, inplace=True).supernet is net
    assert searcher(Shrinking(), net=net).supernet is not net


# -- the training's side ----------------------------------------------------------------------------------------------


class Fixed:
    """A penalty on one scale that settles after a number of epochs."""

    def __init__(self, chain: WidthChain, epochs: int) -> None:
        self.scale, self.epochs = chain.step_modules[0].body[0].bn.weight, epochs

    def __call__(self, arch: Arch) -> Tensor:
        return 0.25 * self.scale[0]

    def settled(self, history: Any) -> bool:
        return len(history) >= self.epochs


def test_a_penalty_adds_its_gradient_and_ends_the_training(tmp_path: Path) -> None:
    config = Train(
        epochs=3,
        batch=1150,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup_epochs=0.0,
        optimizer="momentum",
    )
    results = []
    for penalised in (False, True):
        net = supernet()
        penalty = Fixed(net, epochs=1) if penalised else None
        state = tmp_path / "state.pt" if penalised else None
        options: dict[str, Any] = {"sampler": lambda step, net=net: (net.seed,), "penalty": penalty, "state": state}
        rows = train_supernet(
            net, digits(), config if penalised else replace(config, epochs=1), verbose=False, **options
        )
        results.append((net.step_modules[0].body[0].bn.weight.detach().clone(), rows, net, options))
    (plain, plain_rows, *_), (shrunk, rows, net, options) = results
    assert [len(plain_rows), len(rows)] == [1, 1]
    assert rows[0]["penalty"] == pytest.approx(0.25 * float(shrunk[0]))
    assert "penalty" not in plain_rows[0]
    torch.testing.assert_close(plain - shrunk, torch.eye(len(plain))[0] * 0.1 * 0.25, atol=1e-6, rtol=0)
    again = supernet()
    options["penalty"] = Fixed(again, epochs=1)
    assert train_supernet(again, digits(), config, verbose=False, **options) == rows  # it stays ended
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_the_training_ends_when_the_regulariser_settles() -> None:
    train = Shrinking(config=replace(CONFIG, lr=1e-9, epochs=9))
    searcher(train, patience=2).ask(1)
    assert len(train.history["round0-0"]) == 3
    moving = Shrinking()
    searcher(moving, patience=2).ask(1)
    assert len(moving.history["round0-0"]) == 4


# -- mistakes ---------------------------------------------------------------------------------------------------------


def never(*args: object) -> None:
    raise AssertionError("it trains")


def test_invalid_settings_are_refused_before_training() -> None:
    net = supernet()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"strength": -1.0}, r"strength=-1\.0 should be greater than 0"),
        ({"strength": 0.0}, r"strength=0\.0"),
        ({"scan": (1.0, 0.0)}, r"scan=\(1\.0, 0\.0\) should be greater than 0"),
        ({"scan": ()}, r"scan=\(\)"),
        ({"share": 0.001}, "below the smallest network of 'plain-small-widths', one channel per group"),
        ({"start": {**net.seed, "block0.mid": 0}}, r"0 is not an option of 'block0\.mid'"),
        ({"rounds": 0}, "rounds=0"),
        ({"threshold": "otsu"}, "threshold='otsu'"),
        ({"fill": 1.0}, r"fill=1\.0"),
        ({"net": supernet(affine=False)}, r"'block0\.mid' .* no batch norm with scale"),
    ]
    for settings, message in wrong:
        with pytest.raises(InputError, match=message):
            searcher(never, **settings)


def test_the_limit_and_the_supernet_are_checked() -> None:
    net, other = supernet(), supernet(widths=(5, 33))
    table = CostTable(net)
    macs = table(net.seed)["macs"]
    for feasible in (None, Feasible(table, {"macs": macs, "params": 1e9}), Feasible(table, {"activations": 1e9})):
        with pytest.raises(InputError, match="one limit, on one of macs, params"):
            MorphNet(net.space, supernet=net, train=never, feasible=feasible)
    with pytest.raises(InputError, match="feasible counts"):
        MorphNet(net.space, supernet=net, train=never, feasible=Feasible(CostTable(net, (1, 16, 16)), {"macs": macs}))
    feasible = Feasible(table, {"params": 1e9})
    with pytest.raises(InputError, match="give its own space"):
        MorphNet(net.space, supernet=other, train=never, feasible=feasible)
    plain = create_supernet("shufflenet-small")
    with pytest.raises(InputError, match="no widths to shrink"):
        MorphNet(plain.space, supernet=plain, train=never, feasible=feasible)  # type: ignore[arg-type]
    assert MorphNet(net.space, supernet=net, train=never, feasible=feasible).limit == "params"


def test_the_limit_names_what_is_regularised() -> None:
    net = supernet()
    table, seen = CostTable(net), []

    def note(chain: WidthChain, arch: Arch, penalty: Any, run: str) -> None:
        seen.append((penalty.resource, penalty.strength, penalty(arch).item()))

    for limit in ("macs", "params"):
        feasible = Feasible(table, {limit: table(net.seed)[limit]})
        (arch,) = MorphNet(net.space, supernet=net, train=note, feasible=feasible, scan=(1.0,)).ask(1)
        assert arch == net.seed
    (flops, first, value), (size, second, other) = seen
    weights = sum(layer.weights(net.seed) for layer in net.layers())
    assert (flops, size) == ("flops", "size")
    assert first == pytest.approx(1 / (2 * table(net.seed)["macs"]))
    assert second == pytest.approx(1 / weights)
    for penalty in (value, other):  # all scales are 1: every layer counts twice, except ends without scales
        assert 1.9 < penalty <= 2.0
    assert math.isclose(searcher(never, strength=1e-7, net=net).strength or 0, 1e-7)
