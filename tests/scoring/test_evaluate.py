"""Scores with shared weights use recalibrated statistics, do not depend on order, and leave the supernet untouched."""

import random
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from helpers.toy_spaces import TOY_SPACES
from supernet import Arch, Chain
from supernet.config import Data, Train
from supernet.cost import CostTable
from supernet.data.images import Images, Splits
from supernet.data.load import load
from supernet.errors import InputError
from supernet.scoring.batch_norm import BatchStatistics, Inherit, Recalibrate, recalibrate_bn
from supernet.scoring.metrics import accuracy
from supernet.scoring.shared_weights import SharedWeights
from supernet.training.loop import train_supernet


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(Data(size=8, calibration=256))


@pytest.fixture(scope="module")
def trained(digits: Splits) -> Chain:
    torch.manual_seed(0)
    net = TOY_SPACES["chain"](num_classes=10, input_size=8, in_channels=1)
    train_supernet(net, digits, Train(epochs=5, batch=64, lr=0.1), verbose=False)
    return net


def test_recalibration_is_the_mean_of_batch_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    batches = [torch.randn(4, 2, 6, 6) * scale + scale for scale in (1.0, 2.0, 5.0)]
    with torch.no_grad():
        maps = [net[0](images) for images in batches]
    recalibrate_bn(net, batches)
    mean = torch.stack([m.mean(dim=(0, 2, 3)) for m in maps]).mean(0)
    var = torch.stack([m.var(dim=(0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, var)
    assert net[1].momentum == 0.1
    assert not any(part.training for part in net.modules())
    statistics = net[1].running_mean.clone()
    recalibrate_bn(net, batches[::-1])
    torch.testing.assert_close(net[1].running_mean, statistics)


def test_the_supernet_is_untouched_and_scores_do_not_depend_on_order(trained: Chain, digits: Splits) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    modes = [part.training for part in trained.modules()]
    rng = random.Random(0)
    archs = [trained.space.sample(rng) for _ in range(6)]
    evaluate = SharedWeights(trained, digits.calibration, digits.validation, cost=CostTable(trained))
    scores = evaluate(archs)
    assert evaluate(archs[::-1])[::-1] == scores
    assert [evaluate([arch])[0] for arch in archs] == scores
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [part.training for part in trained.modules()] == modes
    assert scores[0].keys() == {"accuracy", "loss", "macs", "params", "activations", "matmul_macs"}
    assert scores[0]["macs"] == CostTable(trained)(archs[0])["macs"]


def test_recalibration_matters_and_policies_differ(trained: Chain, digits: Splits) -> None:
    rng = random.Random(1)
    archs = [trained.space.sample(rng) for _ in range(8)]
    scores = {}
    for policy in (Inherit(), BatchStatistics(), Recalibrate(1), Recalibrate(4)):
        evaluate = SharedWeights(trained, digits.calibration, digits.validation, bn=policy)
        scores[policy] = [row["accuracy"] for row in evaluate(archs)]
    assert len({tuple(values) for values in scores.values()}) == 4
    mean = {policy: sum(values) / len(values) for policy, values in scores.items()}
    assert mean[Recalibrate(4)] > 0.6
    assert mean[BatchStatistics()] > 0.6
    with torch.no_grad():
        for norm in (part for part in trained.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.add_(2.0)  # an extreme case of what a mixture over paths does
    wrong = SharedWeights(trained, digits.calibration, digits.validation, bn=Inherit())(archs)
    right = SharedWeights(trained, digits.calibration, digits.validation, bn=Recalibrate(4))(archs)
    assert [row["accuracy"] for row in right] == scores[Recalibrate(4)]
    assert sum(row["accuracy"] for row in wrong) / 8 < 0.4


@pytest.mark.parametrize("share", [True, False])
def test_the_callers_generators_are_left_as_they_were(digits: Splits, share: bool) -> None:
    """Materialising a sliced network creates modules, whose initialisation draws from torch's global generator."""
    net = TOY_SPACES["sliced"](num_classes=10, input_size=8, in_channels=1)

    def metric(network: nn.Module, images: Images, batch: int) -> dict[str, float]:
        torch.rand(1), random.random(), numpy.random.rand()  # noqa: NPY002
        return {"accuracy": accuracy(network, images, batch)}

    evaluate = SharedWeights(net, digits.calibration, digits.validation, metric=metric, share=share)
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()  # noqa: NPY002
    archs = [net.space.sample(random.Random(0)) for _ in range(2)]
    evaluate(archs)
    evaluate.subnet(archs[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_the_batch_of_the_validation_pass_does_not_change_scores(trained: Chain, digits: Splits) -> None:
    arch = trained.space.sample(random.Random(2))
    rows = [
        SharedWeights(trained, digits.calibration, digits.validation, batch=batch)([arch])[0] for batch in (37, 256)
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_settings_list_what_scores_depend_on(trained: Chain, digits: Splits) -> None:
    def settings(**options: Any) -> dict[str, str]:
        return SharedWeights(trained, digits.calibration, **{"validation": digits.validation, **options}).settings

    base = settings()
    assert base["metric"] == "classification"
    assert settings(share=False, memory=10**6, cost=CostTable(trained)) == base
    for name, options in (
        ("batch norm", {"bn": Recalibrate(3)}),
        ("batch", {"batch": 64}),
        ("memory format", {"channels_last": False}),
        ("metric", {"metric": lambda network, images, batch: {"accuracy": 0.0}}),
        ("images", {"validation": digits.test}),
    ):
        assert {key for key, value in settings(**options).items() if value != base[key]} == {name}


@pytest.mark.parametrize("sizes", [(0, 64), (10, 0)])
def test_a_recalibration_needs_images(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="greater than or equal to 1"):
        Recalibrate(*sizes)


def test_an_architecture_of_another_space_is_refused(trained: Chain, digits: Splits) -> None:
    with pytest.raises(InputError, match="conv9"):
        SharedWeights(trained, digits.calibration, digits.validation)([Arch({"a.op": "conv9"})])


def test_accuracy_counts_correct_images(digits: Splits) -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[torch.full((len(x),), 3)]

    share = (digits.test.labels == 3).float().mean().item()
    assert accuracy(Always(), digits.test) == pytest.approx(share)
