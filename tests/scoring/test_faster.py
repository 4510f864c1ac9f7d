"""Faster scoring: bfloat16 gives nearly the same scores, and races score the best on all images and others on few."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.scoring_cases import random_images, randomized_norms
from helpers.toy_spaces import TOY_SPACES
from supernet import Chain
from supernet.errors import InputError
from supernet.scoring.batch_norm import Recalibrate, recalibrate_bn
from supernet.scoring.cache import ScoreCache
from supernet.scoring.racing import Race, beaten
from supernet.scoring.shared_weights import SharedWeights

CALIBRATION, VALIDATION = random_images(96, 16, 1), random_images(80, 16, 2)


def toy(name: str) -> Chain:
    torch.manual_seed(0)
    net: Chain = randomized_norms(TOY_SPACES[name](num_classes=5, input_size=16))
    return net


def archs_of(net: Chain, n: int) -> list:  # type: ignore[type-arg]
    rng = random.Random(3)
    parents = [net.space.sample(rng) for _ in range(2)]
    return list(dict.fromkeys(net.space.mutate_one(rng.choice(parents), rng) for _ in range(n)))


@pytest.mark.parametrize("name", ["chain", "sliced"])
def test_bf16_scores_are_close_and_have_the_bits_of_one_by_one(name: str) -> None:
    net = toy(name)
    archs = archs_of(net, 6)
    settings = {"bn": Recalibrate(3, 16), "batch": 16}
    exact = SharedWeights(net, CALIBRATION, VALIDATION, **settings)
    shared = SharedWeights(net, CALIBRATION, VALIDATION, **settings, bf16=True)
    alone = SharedWeights(net, CALIBRATION, VALIDATION, **settings, bf16=True, share=False)
    expected, scores = exact(archs), shared(archs)
    assert scores == alone(archs)
    assert scores != expected
    for row, other in zip(scores, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert {p.dtype for p in shared.subnet(archs[0]).parameters()} == {torch.float32}  # what is exported
    assert shared.settings == exact.settings | {"dtype": "bfloat16"}


def test_bf16_needs_a_metric_of_batches() -> None:
    with pytest.raises(InputError, match="runs the network itself, in float32; leave bf16 out"):
        SharedWeights(toy("chain"), CALIBRATION, VALIDATION, metric=lambda *_: {}, bf16=True)


def test_a_race_stops_weak_candidates_and_scores_the_others_exactly(tmp_path: Path) -> None:
    net = toy("chain")
    archs = archs_of(net, 12)
    labels = SharedWeights(net, CALIBRATION, VALIDATION, bn=Recalibrate(3, 16)).subnet(archs[0])(
        VALIDATION.normalize(VALIDATION.pixels)
    )
    validation = type(VALIDATION)(VALIDATION.pixels, labels.argmax(1), VALIDATION.mean, VALIDATION.std)  # archs[0] wins
    settings = {"bn": Recalibrate(3, 16), "batch": 16}
    exact = SharedWeights(net, CALIBRATION, validation, **settings)(archs)
    cache = ScoreCache(tmp_path / "scores.db")
    evaluate = SharedWeights(net, CALIBRATION, validation, **settings, race=Race(1, 0.6, 0.2), cache=cache)
    scores = evaluate(archs)
    stopped = [number for number, row in enumerate(scores) if row["part"] < 1]
    assert 1 <= len(stopped) < len(archs)
    assert 0 not in stopped
    for number, (row, full) in enumerate(zip(scores, exact, strict=True)):
        if number in stopped:
            assert row["part"] == pytest.approx(0.6)
            assert full["accuracy"] < exact[0]["accuracy"]
        else:
            assert row["accuracy"] == full["accuracy"]
            assert row["loss"] == pytest.approx(full["loss"], rel=1e-5)  # another order of images
    again = SharedWeights(net, CALIBRATION, validation, **settings, race=Race(1, 0.6, 0.2), cache=cache)
    assert again(archs) == scores
    assert again.hits == len(archs)
    assert set(cache.correct(evaluate.context)) == {arch for n, arch in enumerate(archs) if n not in stopped}


def test_a_candidate_stops_if_enough_others_are_significantly_better() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # an image is right below a network's level
    correct = np.stack([hard < level for level in (0.9, 0.89, 0.7, 0.5)])
    assert beaten(correct, Race(top=1), others=3).tolist() == [False, False, True, True]
    assert beaten(correct, Race(top=3), others=3).tolist() == [False, False, False, True]
    assert not beaten(correct[:, :6], Race(top=1), others=3).any()  # too few images to tell


@pytest.mark.parametrize("wrong", [{"top": 0}, {"part": 1.0}, {"level": 0.0}])
def test_a_race_needs_sensible_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="top must be at least 1, and part and level between 0 and 1"):
        Race(**wrong)


@pytest.mark.parametrize("hold", [0, 2**29])
def test_statistics_settle_alike_with_and_without_shared_prefixes(hold: int) -> None:
    net = toy("chain")
    archs = archs_of(net, 6)

    def scores(bn: Recalibrate, **options: object) -> list[dict[str, float]]:
        return SharedWeights(net, CALIBRATION, VALIDATION, bn=bn, batch=16, hold=hold, **options)(archs)  # type: ignore[arg-type]

    settled = scores(Recalibrate(12, 8, settle=0.05))
    assert settled == scores(Recalibrate(12, 8, settle=0.05), share=False)
    assert settled != scores(Recalibrate(12, 8))
    assert scores(Recalibrate(12, 8, settle=1e9)) == scores(Recalibrate(2, 8))
    assert scores(Recalibrate(12, 8, settle=1e-12)) == scores(Recalibrate(12, 8))


def test_a_calibration_reads_no_batch_after_all_have_settled() -> None:
    network = SharedWeights(toy("chain"), CALIBRATION, VALIDATION).subnet(archs_of(toy("chain"), 1)[0])
    read = []

    def batches() -> Iterator[torch.Tensor]:
        for number in range(12):
            read.append(number)
            yield CALIBRATION.normalize(CALIBRATION.pixels[8 * number : 8 * number + 8])

    recalibrate_bn(network, batches(), settle=1e9)
    assert read == [0, 1]
