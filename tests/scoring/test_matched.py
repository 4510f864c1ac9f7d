"""`Matched` gives the norms of every subnet the moments that they have in the full network, and keeps the full one."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from helpers.scoring_cases import random_images
from supernet import Arch, create_supernet
from supernet.chain import Chain, largest
from supernet.data.batches import Batches
from supernet.data.images import Images
from supernet.errors import InputError
from supernet.evaluate import BatchStatistics, Inherit, Matched, Recalibrate, SharedWeights
from supernet.scoring.batch_norm import output_moments, rebase_norms, take_full_statistics
from supernet.spaces.elastic import elastic

BN = Matched(batches=2, size=32)


@pytest.fixture(scope="module")
def supernet() -> Chain:
    """A small network of timm with the statistics of random images, as if it had been trained on them."""
    torch.manual_seed(0)
    model = timm.create_model("lcnet_035", num_classes=5).train()
    with torch.no_grad():
        for _ in range(50):
            model(images(seed=5, narrow=False)[0])
    return elastic(model.eval(), input_size=32, drop=1)


def image_set(*, seed: int = 1, narrow: bool = True, number: int = 64) -> Images:
    """Random images; narrow ones have much in common."""
    drawn = random_images(number, 32, seed)
    pixels = drawn.pixels // 4 + 150 if narrow else drawn.pixels
    return Images(pixels, drawn.labels, drawn.mean, drawn.std)


def images(*, seed: int, narrow: bool) -> tuple[Tensor, Tensor]:
    return next(iter(image_set(seed=seed, narrow=narrow).batches(64)))


def cut(chain: Chain) -> Arch:
    """Half the expansions and the smallest kernels and depths."""
    return chain.space.canonical({choice.name: choice.options[0] for choice in chain.space.choices})


def moments(network: nn.Module, data: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of every norm's output by its name, computed from the outputs themselves."""
    outputs: dict[str, list[Tensor]] = {}
    norms = {name: part for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda _, __, out, name=name: outputs.setdefault(name, []).append(out.clone()))
    with torch.no_grad():
        for number in range(2):
            index = torch.arange(32 * number, 32 * number + 32)
            network(next(iter(data.subset(index).batches(32)))[0])
    measured = {name: torch.cat(parts).transpose(0, 1).flatten(1) for name, parts in outputs.items()}
    return {name: (values.mean(1), values.std(1, correction=0)) for name, values in measured.items()}


def test_moments_of_the_outputs(supernet: Chain) -> None:
    data = image_set()
    network = supernet.subnet(largest(supernet.space)).eval()
    batches = [next(iter(data.subset(torch.arange(start, start + 32)).batches(32)))[0] for start in (0, 32)]
    computed, expected = output_moments(network, batches), moments(network, data)
    assert computed.keys() == expected.keys()
    for name, pair in expected.items():
        for own, other in zip(computed[name], pair, strict=True):
            assert torch.allclose(own, other, atol=1e-4, rtol=1e-3)


def test_every_norm_of_a_subnet_has_the_moments_of_the_full_network(supernet: Chain) -> None:
    data = image_set()
    scorer = SharedWeights(supernet, data, data, bn=BN, channels_last=False)
    full = moments(supernet.subnet(largest(supernet.space)).eval(), data)
    subnet = moments(scorer.subnet(cut(supernet)).eval(), data)
    plain = SharedWeights(supernet, data, data, bn=Recalibrate(2, 32), channels_last=False)
    unmatched = moments(plain.subnet(cut(supernet)).eval(), data)
    assert subnet.keys() < full.keys()

    def distance(actual: dict[str, tuple[Tensor, Tensor]]) -> float:
        return sum(float((own - full[name][0][: len(own)]).abs().mean()) for name, (own, _) in actual.items())

    assert distance(subnet) < 0.1 * distance(unmatched)


def test_the_full_network_stays_what_it_is_on_narrow_images(supernet: Chain) -> None:
    """A plain recalibration removes what the calibration images have in common."""
    calibration, (x, _) = image_set(), images(seed=2, narrow=True)
    with torch.no_grad():
        expected = supernet(x, largest(supernet.space))
        errors = {
            type(bn): float(
                (SharedWeights(supernet, calibration, calibration, bn=bn).subnet(largest(supernet.space))(x) - expected)
                .abs()
                .mean()
            )
            for bn in (BN, Recalibrate(2, 32))
        }
    assert errors[Matched] < 0.5 * errors[Recalibrate]


def test_sharing_prefixes_gives_the_same_scores_and_the_networks_that_are_scored(supernet: Chain) -> None:
    calibration, validation = image_set(), image_set(seed=3)
    archs = [largest(supernet.space), cut(supernet)]
    shared, alone = (SharedWeights(supernet, calibration, validation, bn=BN, share=share) for share in (True, False))
    assert shared(archs) == alone(archs)
    assert shared(archs) != SharedWeights(supernet, calibration, validation, bn=Recalibrate(2, 32))(archs)
    assert shared.settings["batch norm"] == "Matched(batches=2, size=32)"
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    network = shared.subnet(cut(supernet))
    x, labels = next(iter(validation.batches(256)))
    with torch.no_grad():
        accuracy = float((network(x).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(shared([cut(supernet)])[0]["accuracy"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_changed_weights_are_matched_again(supernet: Chain) -> None:
    calibration = image_set()
    scorer = SharedWeights(supernet, calibration, calibration, bn=BN)
    before = scorer([cut(supernet)])
    norm = supernet.get_parameter("stem.bn.bias")
    kept = norm.detach().clone()
    with torch.no_grad():
        norm.add_(1.0)
    after = scorer([cut(supernet)])
    assert after == SharedWeights(supernet, calibration, calibration, bn=BN)([cut(supernet)])
    assert after != before
    with torch.no_grad():
        norm.copy_(kept)


def test_a_space_without_a_full_network_is_refused() -> None:
    net, data = create_supernet("shufflenet-small", input_size=16), random_images(16, 16, 0)
    with pytest.raises(InputError, match=r"'stage1\.block0\.op' of 'shufflenet-small' is not ordered"):
        SharedWeights(net, data, data, bn=Matched())
    for policy in (Inherit(), BatchStatistics(), Recalibrate()):
        SharedWeights(net, data, data, bn=policy)


def test_rebased_norms_keep_the_full_network_and_make_plain_recalibration_match_it(supernet: Chain) -> None:
    net, calibration = copy.deepcopy(supernet), image_set()
    full, half, x = largest(net.space), cut(net), image_set(seed=3).pixels.float() / 64
    with torch.no_grad():
        before = net(x, full)
    expected = SharedWeights(supernet, calibration, calibration, bn=BN).subnet(half)
    rebase_norms(net, Batches(calibration, 32, 2))
    with torch.no_grad():
        assert torch.allclose(net(x, full), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
        plain = SharedWeights(net, calibration, calibration, bn=Recalibrate(2, 32)).subnet(half)
        assert torch.allclose(plain(x), expected(x), atol=0.05 * float(expected(x).abs().max()))
        wrecked = SharedWeights(supernet, calibration, calibration, bn=Recalibrate(2, 32)).subnet(half)
        assert not torch.allclose(wrecked(x), expected(x), atol=0.05 * float(expected(x).abs().max()))


def test_statistics_of_the_full_network_are_its_own_again(supernet: Chain) -> None:
    net, calibration = copy.deepcopy(supernet), image_set()
    for name, buffer in net.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.add_(1.0)  # as a training of many paths leaves them
    take_full_statistics(net, Batches(calibration, 32, 2))
    kept, plain = (
        SharedWeights(net, calibration, calibration, bn=bn, batch=32)([largest(net.space)])
        for bn in (Inherit(), Recalibrate(2, 32))
    )
    assert kept[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-3)
