"""Arguments of Python calls that no network, limit or search can have: one line that names argument and value."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detection import create_detector
from searchers import RandomSearch, Study, search
from supernet import SearchSpace, create_network, create_supernet
from supernet.cost import CostTable, Feasible, LatencyTable
from supernet.errors import InputError
from supernet.export import export, load_exported
from supernet.scoring.shared_weights import SharedWeights
from supernet.spaces import SPACES


def macro(**arguments: Any) -> Any:
    with torch.device("meta"):
        return create_supernet("nasbench-macro", **arguments)


def detector(**arguments: Any) -> Any:
    with torch.device("meta"):
        return create_detector("retinanet", backbone="shufflenet-small", **arguments)


def searched(evaluate: Any, **budgets: Any) -> Any:
    space = macro().space
    return search(RandomSearch(space), evaluate, Study(None, space), **{"trials": 2, **budgets})


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no name": (lambda: create_supernet(None), "a space is a name, such as .* not None"),  # type: ignore[arg-type]
    "negative classes": (lambda: macro(num_classes=-1), r"num_classes=-1 should be an integer from 1 to 1,000,000"),
    "classes in quotes": (lambda: macro(num_classes="x"), "num_classes='x' should be an integer"),
    "classes true": (lambda: macro(num_classes=True), "num_classes=True should be an integer"),
    "too many classes": (lambda: macro(num_classes=10**12), "num_classes=1000000000000 should be"),
    "size": (lambda: macro(input_size=-1), "input_size=-1 should be an integer from 1"),
    "channels": (lambda: macro(in_channels=0), "in_channels=0 should be an integer from 1"),
    "network": (lambda: create_network("nasnet-a-large", num_classes=1.5), "num_classes=1.5 should"),  # type: ignore[arg-type]
    "phase": (lambda: macro(phase="x"), "phase='x' is none of 'supernet', 'standalone'"),
    "a builder's setting": (
        lambda: create_supernet("shufflenet-small", stem=-1),
        "'shufflenet-small' cannot be built with stem=-1: .*negative",
    ),
    "a limit that is NaN": (lambda: Feasible(CostTable(macro()), {"macs": math.nan}), "the limit macs=nan is not a"),
    "no limit": (lambda: Feasible(CostTable(macro()), {"macs": None}), "macs=None is not a number"),  # type: ignore[dict-item]
    "latency batch": (lambda: LatencyTable(macro(), batch=-1), "batch=-1 should be an integer of at least 1"),
    "no time": (lambda: LatencyTable(macro(), seconds=0), "seconds=0 should be a number from"),
    "time NaN": (lambda: LatencyTable(macro(), seconds=math.nan), "seconds=nan should be"),
    "scoring batch": (lambda: SharedWeights(macro(), None, None, batch=-1), "batch=-1 should be"),  # type: ignore[arg-type]
    "no supernet": (lambda: SharedWeights(None, None, None), "supernet=None is no supernet"),  # type: ignore[arg-type]
    "no architecture": (
        lambda: export(torch.nn.Identity(), "x", arch=None, space="x", preprocess=None),  # type: ignore[arg-type]
        "arch=None is not a mapping",
    ),
    "tolerance": (
        lambda: export(torch.nn.Identity(), "x", arch={}, space="x", preprocess=None, tolerance=-1),  # type: ignore[arg-type]
        "tolerance=-1 should be a number",
    ),
    "no folder": (lambda: load_exported(None), "an export is given by its folder, not by None"),  # type: ignore[arg-type]
    "no option": (
        lambda: SearchSpace.from_json('{"name":"x","choices":[{"name":"a","options":[null]}],"normal_forms":[]}'),
        r"choice 'a' has options that are no plain values: \[None\]",
    ),
    "detector classes": (lambda: detector(num_classes=0), "num_classes=0 should be an integer from 1"),
    "head width": (lambda: detector(head_width=0), "head_width=0 should be an integer from 1"),
    "head convs": (lambda: detector(head_convs=-1), "head_convs=-1 should be an integer from 0"),
    "anchor": (lambda: detector(anchor_scale=math.nan), "anchor_scale=nan should be a number"),
    "no anchor": (lambda: detector(anchor_scale=0), "anchor_scale=0 makes anchors without area"),
    "overlap": (lambda: detector(overlap=1.5), "overlap=1.5 should be a number from 0 to 1"),
    "image size": (lambda: detector(image_size=(64, "64")), r"image_size=\(64, '64'\) should be pixels"),
    "trials": (lambda: searched(None, trials=1.5), "trials=1.5 should be an integer"),
    "no trials": (lambda: searched(None, trials=None), "trials=None should be an integer"),
    "no results": (lambda: searched(lambda archs: None), "evaluate returned a NoneType for 1 architectures"),
    "a generator": (lambda: searched(lambda archs: ({} for _ in archs)), "evaluate returned a generator"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_argument_is_named_with_its_value(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = CALLS[case]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space", ["nasbench-macro", "shufflenet-small", "plain-small-widths", "nasnet-small"])
def test_every_space_checks_its_sizes(space: str) -> None:
    assert space in SPACES
    for name in ("num_classes", "input_size", "in_channels"):
        with pytest.raises(InputError, match=f"{name}=0 should be"):
            create_supernet(space, **{name: 0})  # type: ignore[arg-type]
