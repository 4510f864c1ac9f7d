"""Prefix sharing gives the bits of scoring one by one in fewer steps, within its budget; the supernet is untouched."""

import gc
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.scoring_cases import POLICIES, DropoutHead, random_images, randomized_norms
from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain, create_supernet
from supernet.blocks.choice import ChoiceBlock
from supernet.blocks.plain import ClassifierHead, ConvBNAct
from supernet.data.images import Images
from supernet.scoring.batch_norm import BatchNormPolicy, Inherit, Recalibrate
from supernet.scoring.memory import tensors_in
from supernet.scoring.metrics import BatchMetric, Metrics, classification
from supernet.scoring.shared_weights import SharedWeights
from supernet.training.distributed import convert_sync_bn

SPACES: dict[str, Callable[[], Chain]] = {
    **{name: lambda name=name: TOY_SPACES[name](num_classes=5, input_size=16) for name in ("chain", "loose", "sliced")},
    "nasbench-macro": lambda: create_supernet("nasbench-macro", num_classes=5, input_size=8),
}


def data(net: Chain) -> tuple[Images, Images]:
    """Returns calibration images, and validation images whose last batch is smaller."""
    size = net.input_shape[-1]
    return random_images(48, size, 1), random_images(40, size, 2)


def population(net: Chain, n: int) -> list[Arch]:
    """Returns a few parents and their children, with repeats: architectures with long shared prefixes."""
    rng = random.Random(4)
    parents = [net.space.sample(rng) for _ in range(3)]
    archs = parents + [net.space.mutate_one(rng.choice(parents), rng) for _ in range(n - 4)]
    return [*archs, parents[0]]


def distinct(net: Chain, archs: list[Arch]) -> list[Arch]:
    return list(dict.fromkeys(map(net.space.normal_form, archs)))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param(
            *case,
            marks=pytest.mark.slow if case[0] == "nasbench-macro" else [],
            id=f"{case[0]}-{type(case[1]).__name__}",
        )
        for case in itertools.product(SPACES, POLICIES)
    ],
)
def test_shared_prefixes_give_the_bits_of_scoring_one_by_one(name: str, policy: BatchNormPolicy) -> None:
    torch.manual_seed(0)
    net = randomized_norms(SPACES[name]())
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    archs = population(net, 10)
    alone = SharedWeights(net, *data(net), bn=policy, batch=16, share=False)
    shared = SharedWeights(net, *data(net), bn=policy, batch=16)
    expected = alone(archs)
    assert len({row["loss"] for row in expected}) > 3
    assert shared(archs) == expected
    order = random.Random(5).sample(range(len(archs)), len(archs))
    assert shared([archs[i] for i in order]) == [expected[i] for i in order]
    assert shared(archs[:1]) == expected[:1]
    assert alone.steps_run == alone.steps_asked == len(distinct(net, archs)) * len(net.step_modules)
    assert shared.steps_run < shared.steps_asked
    assert [part.training for part in net.modules()] == modes
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_changed_weights_are_noticed() -> None:
    torch.manual_seed(0)
    net = randomized_norms(SPACES["chain"]())
    archs = population(net, 6)
    shared = SharedWeights(net, *data(net), bn=POLICIES[2])
    before, settings = shared(archs), shared.settings
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5).add_(0.01)
    assert shared(archs) == SharedWeights(net, *data(net), bn=POLICIES[2], share=False)(archs) != before
    changed = {name for name, value in shared.settings.items() if settings[name] != value}
    assert changed == {"supernet"}


# -- steps run ---------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """An identity step that counts its calls, also those of its copies."""

    stride = 1
    calls = 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x


class InPlace(nn.Module):
    """A step that writes into its input, as a leading `nn.ReLU(inplace=True)` does."""

    stride = 1

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.out_channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.factor)


def awkward() -> Chain:
    """Returns a chain with steps that write in place or return their input, and a last one without batch norm."""
    torch.manual_seed(0)
    steps = [
        ("stem", ConvBNAct(3, 6, kernel=3)),
        ("a", ChoiceBlock({"id": nn.Identity(), "halved": InPlace(6, 0.5), "negated": InPlace(6, -1.0)})),
        ("b", ChoiceBlock({"id": nn.Identity(), "relu": nn.ReLU(inplace=True), "conv": ConvBNAct(6, 6, kernel=3)})),
        ("c", ChoiceBlock({"doubled": InPlace(6, 2.0), "conv": ConvBNAct(6, 6, kernel=3)})),
        ("count", Counting(6)),
        ("head", DropoutHead()),
    ]
    return randomized_norms(Chain("awkward", steps, input_shape=(3, 8, 8)))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_steps_that_write_in_place_do_not_affect_their_siblings(policy: BatchNormPolicy) -> None:
    net = awkward()
    archs = list(net.space.enumerate())
    expected = SharedWeights(net, *data(net), bn=policy, batch=16, share=False)(archs)
    assert SharedWeights(net, *data(net), bn=policy, batch=16)(archs) == expected
    assert SharedWeights(net, *data(net), bn=policy, batch=16, share=False)(archs) == expected  # no dropout


def test_shared_steps_run_once_and_steps_before_no_norm_are_not_calibrated() -> None:
    torch.manual_seed(0)

    def convs() -> dict[str, nn.Module]:
        return {"one": ConvBNAct(6, 6), "three": ConvBNAct(6, 6, kernel=3)}

    steps = [("stem", ConvBNAct(3, 6)), ("a", Counting(6)), ("b", ChoiceBlock(convs())), ("c", ChoiceBlock(convs()))]
    net = Chain("counted", [*steps, ("d", Counting(6)), ("head", DropoutHead())], input_shape=(3, 8, 8))
    archs = list(net.space.enumerate())
    for share, calls, steps_run in ((True, (3 + 3) + 4 * 3, 2 + 2 + 4 + 4 + 4), (False, 4 * 2 * (3 + 3), 4 * 6)):
        Counting.calls = 0
        evaluate = SharedWeights(net, *data(net), bn=Recalibrate(3, 16), batch=16, share=share)
        evaluate([*archs, *archs])
        assert Counting.calls == calls
        assert (evaluate.steps_run, evaluate.steps_asked) == (steps_run, 4 * 6)


def test_a_long_request_is_split_and_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supernet.scoring.shared_weights.GROUP", 5)
    net = awkward()
    archs = list(net.space.enumerate())
    random.Random(0).shuffle(archs)
    expected = SharedWeights(net, *data(net), bn=POLICIES[2], share=False)(archs)
    shared = SharedWeights(net, *data(net), bn=POLICIES[2])
    assert shared(archs) == expected
    assert shared.steps_run < 0.7 * shared.steps_asked


# -- the budget -------------------------------------------------------------------------------------------------------


class Scales(nn.Module):
    """A step that measures, while `on`, the bytes of all live tensors that the garbage collector finds."""

    stride = 1
    on, most = False, 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            type(self).most = max(self.most, live_bytes())
        return x.clone()


def live_bytes() -> int:
    """Returns the bytes of the tensors created since `gc.freeze()`."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weighed() -> Chain:
    torch.manual_seed(0)
    steps: list[tuple[str, nn.Module]] = [("stem", ConvBNAct(3, 8, kernel=3))]
    for name in "abc":
        steps.append((name, ChoiceBlock({"one": ConvBNAct(8, 8), "three": ConvBNAct(8, 8, kernel=3)})))
        steps.append((f"{name}-scales", Scales(8)))
    return randomized_norms(
        Chain("weighed", [*steps, ("head", ClassifierHead(8, 5, hidden=8))], input_shape=(3, 16, 16))
    )


@pytest.fixture
def scales() -> Iterator[type[Scales]]:
    gc.collect()
    gc.freeze()
    Scales.on, Scales.most = True, 0
    yield Scales
    Scales.on = False
    gc.unfreeze()


@pytest.mark.parametrize("unlimited", [pytest.param(True, marks=pytest.mark.slow), False])
def test_batches_are_grouped_within_the_budget_and_the_bits_stay(scales: type[Scales], unlimited: bool) -> None:
    net = weighed()
    archs = list(net.space.enumerate())
    parts = random_images(16 * 12, 16, 1), random_images(16 * 12 - 5, 16, 2)
    one = 16 * 8 * 16 * 16 * 4  # bytes that a step hands on for a batch of 16
    memory = 2**30 if unlimited else 12 * one
    evaluate = SharedWeights(net, *parts, bn=Recalibrate(12, 16), batch=16, memory=memory, hold=0)
    rows = evaluate(archs)
    assert evaluate.sharing
    assert evaluate.steps_run < evaluate.steps_asked
    if unlimited:
        assert scales.most > 36 * one, "the outputs of three steps for twelve batches stay"
    else:
        assert 6 * one < evaluate.held_bytes <= memory, "the budget is used"
        assert 6 * one < scales.most <= memory + one // 2, "in addition to it copied weights and statistics"
    scales.on = False
    assert rows == SharedWeights(net, *parts, bn=Recalibrate(12, 16), batch=16, share=False)(archs)


def test_nothing_is_shared_if_one_batch_exceeds_the_budget() -> None:
    net = weighed()
    archs = list(net.space.enumerate())
    evaluate = SharedWeights(net, *data(net), bn=POLICIES[2], batch=16, memory=1000)
    with pytest.warns(UserWarning, match=r"memory=1,000 bytes .* one by one"):
        rows = evaluate(archs)
    assert rows == SharedWeights(net, *data(net), bn=POLICIES[2], batch=16, share=False)(archs)
    assert evaluate.steps_run == evaluate.steps_asked == len(archs) * len(net.step_modules)


# -- metrics and states -----------------------------------------------------------------------------------------------


class Energy(BatchMetric):
    """Sums the squares of all outputs, whatever their structure."""

    name = "energy"

    def of_batch(self, outputs: Any, labels: Tensor) -> list[float]:
        return [float(tensor.double().square().sum()) for tensor in tensors_in(outputs)]

    def combine(self, parts: Any) -> Metrics:
        return {str(number): sum(column) for number, column in enumerate(zip(*parts, strict=True))}


def energy(network: nn.Module, of: Images, batch: int) -> Mapping[str, float]:
    """Is the same metric as a plain function, which runs the network and then overwrites its weights."""
    with torch.no_grad():
        metrics = Energy()(network, of, batch)
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
    return metrics


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_any_metric_on_any_state(policy: BatchNormPolicy) -> None:
    """The state is a tuple of feature maps between the steps, and a detector's raw outputs at the end."""
    torch.manual_seed(0)
    net = randomized_norms(TOY_SPACES["detector"](num_classes=5))
    archs = population(net, 5)
    parts = random_images(32, 64, 1), random_images(12, 64, 2)
    rows = [
        SharedWeights(net, *parts, bn=policy, batch=8, metric=metric, share=share)(archs)
        for metric in (Energy(), energy)
        for share in (True, False)
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(rows[0][0]) >= 2
    assert len({row["0"] for row in rows[0]}) > 1


def test_a_metric_gives_the_same_for_batches_and_for_a_network() -> None:
    net = weighed()
    _, validation = data(net)
    network = SharedWeights(net, *data(net), bn=Inherit()).subnet(net.space.sample(random.Random(0)))
    whole = classification(network, validation, 16)
    with torch.no_grad():
        right = network(validation.normalize(validation.pixels)).argmax(1) == validation.labels
        parts = [classification.of_batch(network(x), y) for x, y in validation.batches(16)]
    assert whole["accuracy"] == right.double().mean().item()
    assert classification.combine(parts) == whole
    assert classification.correct(parts).tolist() == right.tolist()


def test_copies_have_plain_instead_of_synchronised_batch_norm() -> None:
    """A synchronised one would wait for the other processes of a group, which score different candidates."""
    net = weighed()
    archs = population(net, 5)
    expected = SharedWeights(net, *data(net), bn=POLICIES[2])(archs)
    convert_sync_bn(net)
    before = [type(part) for part in net.modules()]

    def checked(network: nn.Module, of: Images, batch: int) -> Metrics:
        assert not any(isinstance(part, nn.SyncBatchNorm) for part in network.modules())
        return classification(network, of, batch)

    for share in (True, False):
        for metric in (classification, checked):
            assert SharedWeights(net, *data(net), bn=POLICIES[2], share=share, metric=metric)(archs) == expected
    assert [type(part) for part in net.modules()] == before
    assert nn.SyncBatchNorm in before


def test_phases_of_scoring_can_be_watched() -> None:
    """Every phase is entered, steps are copied inside another phase, and the scores stay the same."""
    net = randomized_norms(SPACES["chain"]())
    archs = population(net, 6)
    entered: set[str] = set()
    open_phases: list[str] = []
    outer_of: dict[str, set[str]] = {}

    @contextmanager
    def watch(phase: str) -> Iterator[None]:
        entered.add(phase)
        outer_of.setdefault(phase, set()).update(open_phases[-1:])
        open_phases.append(phase)
        yield
        open_phases.pop()

    watched = SharedWeights(net, *data(net), bn=Recalibrate(3, 16), batch=16, watch=watch)
    assert watched(archs) == SharedWeights(net, *data(net), bn=Recalibrate(3, 16), batch=16)(archs)
    assert entered == {"materialize", "trunk", "calibrate", "evaluate", "metric"}
    assert outer_of["materialize"] <= {"trunk", "calibrate", "evaluate"}
    assert outer_of["metric"] == {"evaluate"}
    assert not open_phases
