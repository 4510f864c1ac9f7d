"""Supernets whose options start equal: as copies of one that was trained first, or as identities."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection import create_detector
from detection.nasfpn.plain import MergingConv
from detection.nasfpn.supernet import SearchablePyramid
from helpers.detector_cases import tiny, tiny_network
from helpers.scripts import Call, one_line
from helpers.tiny import TINY_DATA, TINY_SPACE
from supernet import Chain, create_supernet
from supernet.blocks.copying import copy_option
from supernet.blocks.plain import ConvBNAct, ShuffleUnit
from supernet.chain import initialize
from supernet.config import Data, Train
from supernet.data.images import Splits
from supernet.data.load import load
from supernet.errors import InputError
from supernet.space import Arch
from supernet.training.checkpoint import load_state
from supernet.training.lead import Lead, common_lead, create_lead
from supernet.training.loop import train_supernet
from supernet.training.sampling import uniform
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.runs import kind_of
from supernet_tools.pipeline.train import prepare

CONFIG = Train(epochs=2, batch=32, lr=0.05, save_seconds=0.0)
LEAD = 3


@pytest.fixture(scope="module")
def digits() -> Splits:
    """Few digits for training: an epoch has four steps."""
    data = load(Data(size=8))
    return replace(data, train=data.train.subset(torch.arange(128)))


@pytest.fixture(scope="module")
def whole(digits: Splits) -> dict[str, Tensor]:
    """Returns the weights of a training with a lead that nothing stopped."""
    net = small()
    train_supernet(net, digits, CONFIG, lead=Lead(every(net, "shuffle3"), LEAD), verbose=False)
    return weights(net)


def small(**settings: Any) -> Chain:
    defaults = {"num_classes": 10, "input_size": 8, "in_channels": 1, "depths": (1, 2, 1), "widths": (8, 16, 24)}
    settings = {**defaults, "stem": 4, "head": 16, **settings}
    return create_supernet("shufflenet-small", **settings, generator=torch.Generator().manual_seed(0))


def every(net: Chain, option: str) -> Arch:
    return create_lead(net.space, option, 1).arch


def with_statistics(net: nn.Module) -> nn.Module:
    """Gives batch norms values as after training, none of which is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return net


# -- spreading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lead", ["shuffle3", "shuffle5"])
def test_units_with_larger_kernels_compute_what_the_lead_computes(lead: str, training: bool, affine: bool) -> None:
    net = small(phase="standalone" if affine else "supernet", depths=(2, 4, 2))
    initialize(net, torch.Generator().manual_seed(3))  # so that options do not begin alike
    with_statistics(net).train(training)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    larger = ["shuffle5", "shuffle7"] if lead == "shuffle3" else ["shuffle7"]
    with torch.no_grad():
        before, own = net(images, every(net, lead)), net(images, every(net, "shuffle7"))
        net.copy_options(every(net, lead))
        mixed = net.space.canonical({c.name: larger[n % len(larger)] for n, c in enumerate(net.space.choices)})
        after = net(images, mixed)
    assert torch.allclose(after, before, atol=1e-5)
    assert not torch.allclose(own, before, atol=1e-3)


def test_a_smaller_kernel_is_the_centre_of_the_lead_which_is_unchanged() -> None:
    units = {f"shuffle{k}": ShuffleUnit(8, 16, kernel=k, stride=2) for k in (3, 7)}
    kept = {name: tensor.clone() for name, tensor in units["shuffle7"].state_dict().items()}
    copy_option(units, "shuffle7")
    assert torch.equal(units["shuffle3"].main[1].conv.weight, kept["main.1.conv.weight"][:, :, 2:5, 2:5])
    assert torch.equal(units["shuffle3"].proj[1].conv.weight, kept["proj.1.conv.weight"])
    assert all(torch.equal(tensor, kept[name]) for name, tensor in units["shuffle7"].state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
def test_an_xception_unit_starts_near_the_shuffle_unit(stride: int) -> None:
    """Its function differs, because it normalises and rectifies more often, but most of its features are the same."""
    units = {n: with_statistics(ShuffleUnit(16, 16 * stride, xception=n == "x", stride=stride)) for n in ("s", "x")}
    images = torch.randn(32, 16, 8, 8, generator=torch.Generator().manual_seed(2))

    def correlation() -> float:
        outputs = [unit.train()(images)[:, -8:].flatten() for unit in units.values()]
        return float(torch.corrcoef(torch.stack(outputs))[0, 1])

    with torch.no_grad():
        before = correlation()
        copy_option(units, "s")
        after = correlation()
    assert abs(before) < 0.3
    assert after > 0.4


def test_shared_channels_are_spread_too() -> None:
    net = create_supernet("spos-channels", input_size=32, num_classes=4, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    net.eval()
    narrow = {c.name: c.options[2] for c in net.space.choices}
    arch, other = (
        net.space.canonical({**narrow, **{n: op for n in narrow if n.endswith("op")}})
        for op in ("shuffle3", "shuffle7")
    )
    with torch.no_grad():
        before = net(images, arch)
        net.copy_options(arch)
        assert torch.allclose(net(images, other), before, atol=1e-5)


def test_a_detectors_backbone_is_spread() -> None:
    detector = create_detector(
        "retinanet",
        backbone="shufflenet-small",
        num_classes=3,
        image_size=64,
        head_width=8,
        head_convs=1,
        backbone_settings={"widths": (8, 16, 24), "stem": 4},
        generator=torch.Generator().manual_seed(0),
    )
    lead = create_lead(detector.space, "shuffle3", 1)
    assert common_lead(detector, 1) == lead
    detector.copy_options(lead.arch)
    options = next(m for n, m in detector.steps if n == "backbone.stage1.block0").block.options
    assert torch.equal(options["shuffle7"].main[0].conv.weight, options["shuffle3"].main[0].conv.weight)


def test_options_of_other_form_are_refused() -> None:
    macro = create_supernet("nasbench-macro", input_size=16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="cannot start as a copy"):
        macro.copy_options(every(macro, str(macro.space.choices[0].options[0])))
    cells = create_supernet("nasbench201", generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"leave out the lead|cannot start as a copy"):
        cells.copy_options(every(cells, str(cells.space.choices[0].options[-1])))
    units = {"s": ShuffleUnit(8, 8), "x": ShuffleUnit(8, 8, xception=True)}
    with pytest.raises(InputError, match="'s' cannot start as a copy of 'x'"):
        copy_option(units, "x")
    with pytest.raises(InputError, match="no option 'y'"):
        copy_option(units, "y")
    with pytest.raises(InputError, match="'wide' cannot start"):
        copy_option({"narrow": ConvBNAct(4, 4), "wide": ConvBNAct(4, 8)}, "narrow")  # another output


@pytest.mark.parametrize(
    ("space", "option"),
    [
        ("shufflenet-small", "shuffle3"),
        ("nasbench-macro", None),  # an identity among the options
        ("nasbench201", None),
        ("nasnet-small", None),
        ("spos-channels", None),  # widths of shared layers
        ("resnet-20-widths", None),
        ("mobile-images", None),
    ],
)
def test_the_common_lead_of_published_spaces(space: str, option: str | None) -> None:
    chain = create_supernet(space)
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    lead = common_lead(chain, 5)
    assert lead == (None if option is None else Lead(every(chain, option), 5))
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())
    assert common_lead(chain, 0) is None


def test_a_recipe_leads_by_itself_where_all_options_can_be_copies() -> None:
    def lead_of(**changes: Any) -> Lead | None:
        recipe = replace(RECIPES["quickstart"](), **changes)
        return prepare(kind_of(recipe)).lead

    lead = lead_of()
    assert lead is not None
    assert lead.steps == 350  # a fifth of 50 epochs of 35 steps
    assert set(lead.arch.values()) == {"shuffle3"}
    assert lead_of(lead="") is None
    assert lead_of(alike=False) is None
    assert lead_of(largest_epochs=1.0, sampler="balanced") is None


def bottleneck(mid: int, kernel: int) -> nn.Sequential:
    layers = ConvBNAct(8, mid), ConvBNAct(mid, mid, kernel=kernel, groups=mid), ConvBNAct(mid, 8, act=False)
    return with_statistics(nn.Sequential(*layers)).eval()


def test_a_wider_option_computes_the_same_with_noise_that_lets_its_channels_differ() -> None:
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(2))
    options = {"narrow": bottleneck(12, 3), "wide": bottleneck(30, 5), "narrowest": bottleneck(6, 3)}
    kept = {name: value.clone() for name, value in options["narrow"].state_dict().items()}
    with torch.no_grad():
        before = options["narrow"](x)
        copy_option(options, "narrow")
        assert torch.corrcoef(torch.stack([before.flatten(), options["wide"](x).flatten()]))[0, 1] > 0.95
    assert all(torch.equal(value, kept[name]) for name, value in options["narrow"].state_dict().items())
    first, again = options["wide"][0].conv.weight[0], options["wide"][0].conv.weight[12]
    assert 0 < (first - again).abs().max() < 1
    assert torch.equal(options["narrowest"][0].conv.weight, kept["0.conv.weight"][:6])


def test_a_single_channel_is_repeated_into_finite_weights() -> None:
    options = {name: nn.Sequential(ConvBNAct(1, mid), ConvBNAct(mid, 1)) for name, mid in (("narrow", 1), ("wide", 4))}
    copy_option(options, "narrow")
    assert all(torch.isfinite(value).all() for value in options["wide"].state_dict().values())


def test_a_refused_copy_changes_nothing() -> None:
    options = {"a": bottleneck(6, 3), "b": bottleneck(12, 3), "c": nn.Sequential(bottleneck(6, 3))}
    kept = {name: value.clone() for name, value in options["b"].state_dict().items()}
    with pytest.raises(InputError, match="'c' cannot start as a copy of 'a'"):
        copy_option(options, "a")
    assert all(torch.equal(value, kept[name]) for name, value in options["b"].state_dict().items())


def test_cells_of_a_supernet_start_as_identities() -> None:
    """With independent random weights, every wiring would give the head different random features."""
    detector = tiny("retinanet", neck="nasfpn", repeats=2, head_convs=1, generator=torch.Generator().manual_seed(0))
    pyramid = next(part for part in detector.modules() if isinstance(part, SearchablePyramid))
    network = tiny_network(
        "retinanet",
        neck="nasfpn",
        repeats=2,
        head_convs=1,
        arch=detector.space.sample(random.Random(0)),
        generator=torch.Generator().manual_seed(0),
    )
    weight = next(part for part in network.modules() if isinstance(part, MergingConv)).conv.weight
    assert pyramid.convs["0-0"].conv.weight[:, :, 1, 1].diagonal().mean() > 0.9
    assert abs(float(weight.detach()[:, :, 1, 1].diagonal().mean())) < 0.3  # as published: variance 1 / fan-in


# -- training ---------------------------------------------------------------------------------------------------------


def weights(net: Chain) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_the_lead_trains_alone_and_the_other_options_then_start_from_its_weights(digits: Splits) -> None:
    net = small()
    start, seen = weights(net), dict[int, dict[str, Tensor]]()

    def sampler(step: int) -> tuple[Arch, ...]:
        seen[step] = weights(net)
        return uniform(net.space)(step)

    lead = Lead(every(net, "shuffle3"), LEAD)
    train_supernet(net, digits, CONFIG, sampler=sampler, lead=lead, verbose=False)
    assert min(seen) == LEAD
    spread = seen[LEAD]
    first, other = (f"stage1.block0.options.{op}.main.0.conv.weight" for op in ("shuffle3", "shuffle7"))
    assert not torch.equal(spread[first], start[first])
    assert torch.equal(spread[other], spread[first])
    assert not torch.equal(spread[other], start[other])
    alone = small()
    train_supernet(alone, digits, replace(CONFIG, epochs=2), sampler=lambda _: (lead.arch,), verbose=False)
    assert torch.equal(alone.state_dict()[other], start[other])  # never spread, never trained
    assert len({tuple(seen[step][other].flatten().tolist()) for step in seen}) > 1


@pytest.mark.parametrize("stop", [LEAD, *(pytest.param(LEAD + n, marks=pytest.mark.slow) for n in (-1, 1))])
def test_a_training_stopped_around_the_end_of_the_lead_resumes_to_the_same_weights(
    digits: Splits, whole: dict[str, Tensor], tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = small()
    lead = Lead(every(parted, "shuffle3"), LEAD)
    state = tmp_path / "state.pt"
    forward = parted.forward
    steps = iter(range(1000))

    def crashing(*args: Any) -> Any:
        if torch.is_grad_enabled() and next(steps) == stop:  # not when the data are checked
            raise SystemError("as if the machine had stopped")
        return forward(*args)

    monkeypatch.setattr(parted, "forward", crashing)
    with pytest.raises(SystemError):
        train_supernet(parted, digits, CONFIG, lead=lead, state=state, verbose=False)
    assert load_state(state)["step"] == stop
    fresh = small()
    torch.nn.init.zeros_(next(fresh.parameters()))
    train_supernet(fresh, digits, CONFIG, lead=lead, state=state, verbose=False)
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in whole.items())


def test_the_averaged_weights_are_copied_as_well(digits: Splits) -> None:
    net = small()
    lead = Lead(every(net, "shuffle3"), 5)
    train_supernet(net, digits, replace(CONFIG, ema=0.9), lead=lead, verbose=False, sampler=lambda _: (lead.arch,))
    options = net.step_modules[1].options
    assert not torch.equal(options["shuffle3"].main[0].conv.weight, options["shuffle7"].main[0].conv.weight)
    start = small().step_modules[1].options["shuffle7"].main[0].conv.weight
    assert not torch.equal(options["shuffle7"].main[0].conv.weight, start)


@pytest.mark.slow
def test_with_a_lead_paths_learn_faster() -> None:
    """Compares the loss of the same random paths on the same images after the same number of steps."""
    digits, losses = load(Data(size=8)), {}
    for name in ("own", "lead"):
        net = small()
        lead = Lead(every(net, "shuffle3"), 45) if name == "lead" else None
        config = Train(epochs=9, batch=64, optimizer="adamw", lr=0.01, weight_decay=0.05)
        losses[name] = train_supernet(net, digits, config, lead=lead, verbose=False)[-1]["loss"]
    assert losses["lead"] < 0.8 * losses["own"], losses


def test_an_unsuitable_lead_is_refused_before_any_step(digits: Splits) -> None:
    net = small()
    start = weights(net)
    with pytest.raises(InputError, match=r"no choice of 'shufflenet-small' has the option 'shuffle4'; .*shuffle"):
        create_lead(net.space, "shuffle4", 3)
    with pytest.raises(InputError, match="trains for 0 steps"):
        create_lead(net.space, "shuffle3", 0)
    with pytest.raises(InputError, match="cannot start as a copy of 'xception'"):
        train_supernet(net, digits, CONFIG, lead=Lead(every(net, "xception"), 3), verbose=False)
    with pytest.raises(InputError, match="a lead of 8 steps leaves none of 8"):
        train_supernet(net, digits, CONFIG, lead=Lead(every(net, "shuffle3"), 8), verbose=False)
    assert all(torch.equal(tensor, start[name]) for name, tensor in net.state_dict().items())


def test_a_lead_can_be_set_on_the_command_line(call: Call, tmp_path: Path) -> None:
    short = (*TINY_DATA, "--train.epochs", 2, "--train.batch", 256, "--out", tmp_path / "run")
    quickstart = ("train_supernet", "quickstart", *TINY_SPACE, *short)
    one_line(call(*quickstart, "--lead", "shuffle3"), "lead_epochs above 0")
    one_line(call(*quickstart, "--lead-epochs", 1), "name it with lead")
    both = ("--lead", "shuffle3", "--lead-epochs", 1, "--largest-epochs", 1)
    one_line(call(*quickstart, *both), "drop one")
    one_line(call(*quickstart, "--lead", "shuffle3", "--lead-epochs", 2), "lower it")
    assert not (tmp_path / "run").exists()
    code, out, err = call(*quickstart, "--lead", "shuffle3", "--lead-epochs", 1)
    assert code == 0, err
    assert "shared-weight accuracy" in out
