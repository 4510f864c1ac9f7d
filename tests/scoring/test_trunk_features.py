"""Trunk features are cached between calls: the same bits, computed once, within a budget, and dropped in time."""

import importlib
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.config import DetectionData
from detection.data.load import load
from detection.metric import DetectionMetric
from helpers.coco import make_coco, settings
from helpers.detector_cases import fixed_backbone, tiny
from helpers.scoring_cases import POLICIES, DropoutHead, random_images, randomized_norms
from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ConvBNAct
from supernet.data.batches import Batches, identity
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.scoring.batch_norm import BatchNormPolicy, Inherit, Recalibrate
from supernet.scoring.cache import ScoreCache
from supernet.scoring.memory import tensors_in
from supernet.scoring.metrics import BatchMetric, Metrics
from supernet.scoring.shared_weights import SharedWeights
from supernet.scoring.trie import Trie, fixed_steps
from supernet.testing import randomize


class Energy(BatchMetric):
    """Sums the squares of all outputs, whatever their structure."""

    name = "energy"

    def of_batch(self, outputs: Any, labels: Tensor) -> tuple[float, int]:
        return sum(float(tensor.double().square().sum()) for tensor in tensors_in(outputs)), int(labels.sum())

    def combine(self, parts: Any) -> Metrics:
        return {"energy": sum(energy for energy, _ in parts), "labels": float(sum(labels for _, labels in parts))}


def neck_on_fixed_backbone() -> Chain:
    """Returns a RetinaNet with a searched pyramid on a fixed backbone."""
    few: dict[str, Any] = {"repeats": 1, "cells": 5, "head_convs": 1, "candidates": 20, "detections": 20}
    return tiny("retinanet", backbone=fixed_backbone(), neck="nasfpn", seed=5, **few).eval()


NETS: dict[str, Callable[[], Chain]] = {
    "neck": neck_on_fixed_backbone,
    "stem": lambda: randomized_norms(TOY_SPACES["chain"](num_classes=5, input_size=16)),
}


def parts_of(net: Chain) -> tuple[Images, Images]:
    """Returns three calibration batches of 4 images, and three validation batches of which the last is smaller."""
    size = net.input_shape[-1]
    return random_images(12, size, 1), random_images(11, size, 2)


def distinct(net: Chain, n: int) -> list[Arch]:
    rng, archs = random.Random(4), dict[Arch, None]()
    while len(archs) < n:
        archs[net.space.normal_form(net.space.sample(rng))] = None
    return list(archs)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(
            *case,
            marks=pytest.mark.slow if case[0] == "neck" and not isinstance(case[1], Recalibrate) else [],
            id=f"{case[0]}-{type(case[1]).__name__}",
        )
        for case in itertools.product(NETS, POLICIES)
    ],
)
def test_scores_equal_those_of_scoring_one_by_one_in_every_call(name: str, policy: BatchNormPolicy) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    policy = Recalibrate(3, 4) if isinstance(policy, Recalibrate) else policy
    options: dict[str, Any] = {"bn": policy, "metric": Energy(), "batch": 4}
    archs = distinct(net, 3)
    alone = SharedWeights(net, *parts_of(net), share=False, **options)
    expected = dict(zip(archs, alone(archs), strict=True))
    assert len({row["energy"] for row in expected.values()}) == 3
    shared, saved = SharedWeights(net, *parts_of(net), **options), []
    for call in (archs[:1], archs[2:0:-1], archs):
        before = shared.steps_run
        assert shared(call) == [expected[arch] for arch in call]
        saved.append(Trie(net, call).size - shared.steps_run + before)
    trunk = net.step_names.index("neck") if name == "neck" else 1
    assert saved == [0, trunk, trunk]


# -- steps run ---------------------------------------------------------------------------------------------------------


class Slow(nn.Module):
    """A step that counts its calls, also those of its copies."""

    stride, out_channels, calls = 1, 6, 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x + 1


def counted() -> Chain:
    torch.manual_seed(0)
    options = {"one": ConvBNAct(6, 6), "three": ConvBNAct(6, 6, kernel=3), "relu": nn.ReLU(inplace=True)}
    steps = [("stem", ConvBNAct(3, 6)), ("slow", Slow()), ("a", ChoiceBlock(options)), ("head", DropoutHead())]
    return randomized_norms(Chain("counted", steps, input_shape=(3, 8, 8)))


def passes(evaluate: SharedWeights, archs: list[Arch]) -> int:
    """Returns the number of batches that go through the trunk in a call."""
    Slow.calls = 0
    evaluate(archs)
    return Slow.calls


FEATURES = 4 * 6 * 8 * 8 * 4
"""Bytes of the fixed steps' output for a batch of four images of `counted`."""


def test_the_trunk_runs_once_until_the_weights_change() -> None:
    net = counted()
    one, other, third = net.space.enumerate()
    evaluate = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4)
    assert [passes(evaluate, [arch]) for arch in (one, other, one)] == [3 + 3, 0, 0]
    before = evaluate([third])
    with torch.no_grad():
        net.step_modules[0].conv.weight.mul_(1.5)
    assert [passes(evaluate, [arch]) for arch in (third, other)] == [3 + 3, 0]
    changed = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, share=False)([third])
    assert evaluate([third]) == changed != before
    none = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, hold=0)
    none([one])  # the first time it is also tried whether two batches may pass at once
    assert passes(none, [other]) == (1 + 1) + 3, "of the calibration's three batches two pass at once"


@pytest.mark.parametrize("memory", [2**30, 12 * FEATURES])
@pytest.mark.parametrize(("room", "again"), [(1.5, [5, 3]), (4.5, [2, 2])])
def test_batches_that_do_not_fit_are_run_again(memory: int, room: float, again: list[int]) -> None:
    """Of three calibration and three validation batches the first ones are kept, and statistics are not counted twice.

    The last architecture has no batch norm of its own to calibrate.
    """
    net = counted()
    archs = list(net.space.enumerate())
    hold = int(room * FEATURES)
    evaluate = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, memory=memory, hold=hold)
    assert [passes(evaluate, [arch]) for arch in archs] == [6, *again]
    assert evaluate.sharing
    assert int(room) * FEATURES < evaluate.held_bytes <= memory + hold
    assert evaluate(archs) == SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, share=False)(archs)


def test_a_batch_that_exceeds_the_budget_leaves_nothing_cached() -> None:
    net = counted()
    archs = list(net.space.enumerate())
    evaluate = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, memory=1000)
    with pytest.warns(UserWarning, match="one by one"):
        rows = evaluate(archs)
    assert rows == SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, share=False)(archs)
    assert not evaluate._prefixes._trunk.size


def test_an_interrupted_calibration_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = counted()
    archs = list(net.space.enumerate())
    evaluate = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4)
    read = Batches.__getitem__

    def broken(batches: Batches, number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return read(batches, number)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", broken)
        with pytest.raises(KeyboardInterrupt):
            evaluate(archs)
    assert evaluate(archs) == SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, share=False)(archs)


def test_scores_from_the_evaluation_cache_run_nothing(tmp_path: Path) -> None:
    net = counted()
    one, other, third = net.space.enumerate()
    with ScoreCache(tmp_path / "scores.db") as cache:
        evaluate = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, cache=cache)
        assert [passes(evaluate, archs) for archs in ([one], [one], [other, one])] == [6, 0, 0]
        again = SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, cache=cache)
        assert [passes(again, archs) for archs in ([one, other], [third], [one])] == [0, 6, 0]
        assert again([third]) == SharedWeights(net, *parts_of(net), bn=Recalibrate(3, 4), batch=4, share=False)([third])


def test_the_trunk_ends_before_the_first_open_choice() -> None:
    """A choice that the space fixes to one option is not open."""
    net = randomized_norms(TOY_SPACES["chain"](num_classes=5, input_size=16))
    first = next(choice for choice in net.space.choices)
    step = net.step_names[1]
    decided = {choice.name: choice.options[0] for choice in net.space.choices if choice.name.startswith(f"{step}.")}
    assert first.name in decided
    assert fixed_steps(net) == 1
    net.space = net.space.fix(decided)
    assert fixed_steps(net) == 2
    net.space = net.space.fix({choice.name: choice.options[0] for choice in net.space.choices})
    assert fixed_steps(net) == len(net.step_modules) - 1
    archs = list(net.space.enumerate())
    options: dict[str, Any] = {"bn": Recalibrate(3, 4), "batch": 4}
    evaluate = SharedWeights(net, *parts_of(net), **options)
    assert evaluate(archs) == evaluate(archs) == SharedWeights(net, *parts_of(net), share=False, **options)(archs)


# -- sets on disk -----------------------------------------------------------------------------------------------------


def test_images_that_stay_on_disk_are_scored_batch_by_batch(tmp_path: Path) -> None:
    data = load(settings(make_coco(tmp_path), size=64, calibration=6, memory=1, validation=0.4))
    calibration, validation = data.calibration, data.validation
    assert calibration.held_bytes == validation.held_bytes == 0
    net = neck_on_fixed_backbone()
    options: dict[str, Any] = {"bn": Recalibrate(3, 2), "metric": DetectionMetric(validation), "batch": 3}
    archs = distinct(net, 3)
    kept = SharedWeights(net, calibration.images(), validation.images(), **options)
    expected = kept(archs)
    evaluate = SharedWeights(net, calibration, validation, **options)
    assert evaluate(archs[:1]) == expected[:1]
    assert evaluate.settings["images"] == kept.settings["images"]
    alone = SharedWeights(net, calibration, validation, share=False, **options)
    assert alone(archs) == expected
    for file in tmp_path.glob("train/*.png"):
        file.unlink()
    assert evaluate(archs[1:]) == expected[1:]  # their trunk features are cached
    with pytest.raises(InputError, match=r"\.png .* cannot be read"):
        alone(archs)


def test_sets_on_disk_have_different_identities(tmp_path: Path) -> None:
    path = make_coco(tmp_path)
    one, same, larger = (load(settings(path, size=size, memory=1)) for size in (32, 32, 64))
    assert identity(one.calibration, one.validation) == identity(same.calibration, same.validation)
    pairs = [(one.calibration, one.validation), (one.validation, one.calibration), (larger.calibration, one.validation)]
    assert len({identity(*pair) for pair in pairs}) == 3
    batches = Batches(one.train, 2)
    assert len(batches) == len(list(batches)) == -(-len(one.train) // 2)
    for number, (pixels, positions) in enumerate(one.train.batches(2)):
        assert torch.equal(batches[number], pixels)
        assert torch.equal(batches.labels(number), positions)


def test_batches_by_number_are_those_in_order() -> None:
    part = random_images(11, 8, 3)
    batches = Batches(part, 4)
    for number, (pixels, labels) in enumerate(part.batches(4)):
        assert torch.equal(batches[number], pixels)
        assert torch.equal(batches.labels(number), labels)
    assert len(Batches(part, 4, 2)) == 2


def test_a_metric_that_runs_networks_itself_shares_only_the_calibration() -> None:
    net = counted()
    archs = list(net.space.enumerate())

    def energy(network: nn.Module, of: Images, batch: int) -> Metrics:
        return Energy()(network, of, batch)

    for bn in (Inherit(), Recalibrate(3, 4)):
        evaluate = SharedWeights(net, *parts_of(net), bn=bn, batch=4, metric=energy)
        rows = [row for arch in archs for row in evaluate([arch])]
        assert rows == SharedWeights(net, *parts_of(net), bn=bn, batch=4, metric=Energy(), share=False)(archs)
        assert evaluate.steps_run == evaluate.steps_asked


def test_randomised_weights_are_noticed() -> None:
    """`randomize` writes in ways that torch counts, so that the cached features are dropped."""
    net = counted()
    archs = list(net.space.enumerate())
    evaluate = SharedWeights(net, *parts_of(net), bn=Inherit(), batch=4)
    before = evaluate(archs)
    randomize(net, seed=9)
    assert evaluate(archs) == SharedWeights(net, *parts_of(net), bn=Inherit(), batch=4, share=False)(archs) != before


# -- benchmarks -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # that scores are the same is tested above
@pytest.mark.parametrize(("name", "tables"), [("pyramids", 1), ("generation", 2)])
def test_the_benchmarks_score_the_same_both_ways(
    name: str, tables: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    module = importlib.import_module("supernet_tools.benchmarks.detection_speed")
    few = module.Scoring(
        DetectionData(size=64, compose=(10, 5, 5)), batches=2, images=4, batch=4, width=8, convs=1, steps=1
    )
    if name == "pyramids":
        module.pyramids(few, networks=2, call=1, backbone="helpers.detector_cases:fixed_backbone")
    else:
        module.generation(few, networks=2, after=1, backbone="shufflenet-small")
    printed = capsys.readouterr().out
    assert printed.count("largest difference of a score 0.0e+00") == tables
    assert printed.count("images and fixed steps") == tables
