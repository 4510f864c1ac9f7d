"""NAME=VALUE settings have the types of the signature that they configure; nothing is rounded or guessed."""

import dataclasses
import random
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from helpers.scripts import Call, one_line
from helpers.tiny import TINY, TINY_SPACE
from supernet.config import Augment, Data
from supernet.errors import InputError
from supernet_tools.pipeline.settings import pairs, parse_settings


def configured(
    space: object,
    *,
    size: int = 3,
    rate: float = 0.5,
    name: str = "x",
    on: bool = False,
    ops: Sequence[str] = ("a",),
    scan: tuple[float, ...] = (),
    method: Literal["ei", "ucb"] = "ei",
    bound: float | Literal["gap"] = 0.1,
    ladder: str | None = None,
    anything=None,
) -> None:
    """Every kind of parameter that searchers and builders have."""


def parsed(*texts: str) -> dict[str, Any]:
    return parse_settings(configured, texts, owner="the thing", reserved=("space",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("size=4", 4),
        ("rate=2", 2.0),
        ("rate=1e-3", 0.001),
        ("name=ei", "ei"),
        ("name=7", "7"),
        ('name="a b"', "a b"),
        ("on=true", True),
        ('ops=["conv", "pool"]', ("conv", "pool")),
        ("scan=[1, 10]", (1.0, 10.0)),
        ("method=ucb", "ucb"),
        ("bound=gap", "gap"),
        ("bound=0.25", 0.25),
        ("ladder=null", None),
        ("ladder=blocks", "blocks"),
        ("anything=[1, [2]]", (1, (2,))),
        ("anything=text", "text"),
    ],
)
def test_values_have_the_declared_type(text: str, value: object) -> None:
    (result,) = parsed(text).values()
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=2.9", "size='2.9' should be a valid integer"),
        ("size=true", "size='true' should be a valid integer"),
        ("size=", "size='' should be a valid integer"),
        ("rate=nan", "rate='nan' should be a valid number"),
        ("rate=NaN", "rate='NaN' should be a finite number"),
        ("rate=1e999", "rate='1e999' should be a finite number"),
        ("on=1", "on='1' should be a valid boolean"),
        ("ops=conv", "ops='conv' should be .*; a list is written as"),
        ("method=gp", "method='gp' should be 'ei' or 'ucb'"),
        ("bound=gop", "bound='gop' should be a valid number or 'gap'"),
        ("sizes=3", "the thing has no setting 'sizes'; did you mean 'size'"),
        ("space=3", "the thing cannot take space"),
        ("size", "NAME=VALUE, not 'size'"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(text)


def test_a_setting_is_given_once() -> None:
    assert pairs(["a=1", "b=c=d"]) == {"a": "1", "b": "c=d"}
    with pytest.raises(InputError, match="'a' is given twice: '1' and '2'"):
        pairs(["a=1", "a=2"])


def test_converters_and_open_signatures() -> None:
    def builder(**settings: object) -> None:
        """Takes anything."""

    assert parse_settings(builder, ["a=1", "b=x"], owner="it") == {"a": 1, "b": "x"}
    values = parse_settings(configured, ["size=12"], owner="it", converters={"size": lambda text: len(text)})
    assert values == {"size": 2}
    with pytest.raises(InputError, match=r"size='x': invalid literal"):
        parse_settings(configured, ["size=x"], owner="it", converters={"size": int})


def test_recipes_are_checked_before_images_are_read(call: Call, tmp_path: Path) -> None:
    recipe = ("spos-images", "--data.source", tmp_path / "missing", "--out", tmp_path / "run", "--space-settings")
    one_line(call("train_supernet", *recipe, "stem=2.5"), "stem='2.5' should be a valid integer")
    one_line(call("train_supernet", *recipe, "stems=2"), "the space 'shufflenet-small' has no setting 'stems'")
    one_line(call("train_supernet", *recipe, "num_classes=2"), "cannot take num_classes")
    assert not (tmp_path / "run").exists()


def test_networks_trained_from_scratch_have_settings_of_their_own() -> None:
    """nasnet-cifar10 retrains with an auxiliary head, cutout and plain momentum; its supernet has none of them."""
    import torch

    from supernet_tools.pipeline.classifier import ClassifierKind
    from supernet_tools.pipeline.recipes import nasnet_cifar10

    config = nasnet_cifar10()
    assert (config.retrain.optimizer, config.retrain.lr, config.retrain.weight_decay) == ("momentum", 0.025, 5e-4)
    small = (*config.space_settings[2:], "blocks=1", "filters=2")
    kind = ClassifierKind(dataclasses.replace(config, space_settings=small))
    assert kind.resolved() is kind.config
    assert (kind.task.augment.cutout, kind.retrain_task.augment.cutout) == (0, 16)
    summary: Any = SimpleNamespace(classes=range(10), size=32, in_channels=3)
    chain = kind.skeleton(summary)
    assert "auxiliary" not in chain.step_names
    network = kind.network(summary, chain.space.sample(random.Random(0)), torch.Generator().manual_seed(0))
    assert any(type(module).__name__ == "AuxiliaryHead" for module in network.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrain_cutout": 1.0}, "retrain_cutout=1.0 should be less than 1"),
        ({"retrain_settings": ("auxilary=true",)}, "did you mean 'auxiliary'"),
        ({"data": Data("digits", size=8)}, "the auxiliary head pools over 5×5 pixels"),
    ],
)
def test_settings_for_networks_trained_from_scratch_are_checked_first(settings: dict[str, Any], message: str) -> None:
    from supernet_tools.pipeline.classifier import ClassifierKind
    from supernet_tools.pipeline.recipes import nasnet_cifar10

    with pytest.raises(InputError, match=re.escape(message)):
        ClassifierKind(dataclasses.replace(nasnet_cifar10(), **settings)).resolved()


def test_shared_weights_learn_from_less_varied_images_than_networks_alone(call: Call, tmp_path: Path) -> None:
    from supernet_tools.pipeline.runs import open_run

    varied = ("--data.augment.shift", 2, "--data.augment.cutout", 4)
    parts = {"plain": ("--data.augment.shift", 0), "none": (*varied, "--shared-augment", 0), "all": varied}
    weights = {}
    for name, flags in parts.items():
        code, _, err = call("train_supernet", "quickstart", *TINY, *TINY_SPACE, *flags, "--out", tmp_path / name)
        assert code == 0, err
        weights[name] = load_file(tmp_path / name / "supernet.safetensors")
    assert all(torch.equal(weights["plain"][key], weights["none"][key]) for key in weights["none"])
    assert any(not torch.equal(weights["all"][key], weights["none"][key]) for key in weights["none"])
    assert open_run(tmp_path / "none").kind.retrain_task.augment == Augment(shift=2, cutout=4)


def test_a_share_of_no_variation_is_refused(call: Call, tmp_path: Path) -> None:
    flags = ("--data.augment.shift", 0, "--shared-augment", 0.5, "--out", tmp_path / "run")
    one_line(call("train_supernet", "quickstart", *TINY_SPACE, *flags), "shared-augment", "at most flipped")
    one_line(call("train_supernet", "quickstart", "--shared-augment", 2, "--out", tmp_path / "run"), "shared_augment=2")


def test_weakened_augmentation_keeps_flips() -> None:
    strong = Augment(shift=4, flip=True, scale=0.5, color_jitter=0.4, cutout=16, mixup=0.2, cutmix=1.0)
    assert strong.weakened(0) == Augment(flip=True)
    assert strong.weakened(1) == strong
    assert strong.weakened(0.5) == Augment(2, True, 0.75, 0.2, 8, 0.1, 0.5)
