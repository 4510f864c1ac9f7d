"""Every way to make settings passes one check: Python calls, `replace`, files and the command line."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from detection.config import DetectionData
from supernet.checked import plain_name, short_names
from supernet.config import Augment, Data, DataSummary, Preprocess, Train, Window, from_dict
from supernet.errors import InputError
from supernet.strict_json import parse_json
from supernet_tools.pipeline.config import DetectorRun, SupernetRun
from supernet_tools.pipeline.recipes import RECIPES

WRONG: list[tuple[type[Any], dict[str, Any], str]] = [
    (Train, {"clip": -1.0}, "clip=-1.0 should be greater than or equal to 0"),
    (Train, {"lr": 0}, "lr=0 should be greater than 0"),
    (Train, {"lr": float("nan")}, "lr=nan should be a finite number"),
    (Train, {"weight_decay": float("inf")}, "weight_decay=inf should be a finite number"),
    (Train, {"momentum": 2.0}, "momentum=2.0 should be less than 1"),
    (
        Train,
        {"schedule": "cosin"},
        "schedule='cosin' should be 'cosine', 'linear', 'step', 'exponential' or 'constant'",
    ),
    (Train, {"epochs": "2"}, "epochs='2' should be a valid integer"),
    (Train, {"epochs": True}, "epochs=True should be a valid integer"),
    (Train, {"epochs": 10**9}, "epochs=1000000000 should be less than or equal to 1000000"),
    (Train, {"seed": -1}, "seed=-1 should be greater than or equal to 0"),
    (Train, {"seed": 10**40}, "should be less than 9223372036854775808"),
    (Train, {"seed": 10**5000}, "seed=an integer of thousands of digits"),
    (Train, {"device": None}, "device=None should be a valid string"),
    (Train, {"device": "meta"}, "device='meta' should be 'cpu', 'cuda'"),
    (Train, {"warmup_epochs": 20.0}, "warmup_epochs=20.0 should be at most epochs=10"),
    (Train, {"drops": (0.5, 0.2)}, "should be shares of the training between 0 and 1, in ascending order"),
    (Train, {"save_seconds": None}, "save_seconds=None should be a valid number"),
    (Data, {"size": 100_000}, "size=100000 should be less than or equal to 16384"),
    (Data, {"source": 5}, "source=5 should be a valid string"),
    (Data, {"augment": None}, "augment=None should be"),
    (Data, {"size": 8, "augment": Augment(shift=8)}, "augment.shift=8 should be less than size=8"),
    (Window, {"high": float("nan")}, "high=nan should be a finite number"),
    (Window, {"low": 3.0, "high": 1.0}, "low=3.0 should be at most high=1.0; swap them"),
    (Window, {"bin": 1e7}, "needs both bounds"),
    (DetectionData, {"mean": (0.5, 0.5, 0.5)}, "three values each, or none"),
    (SupernetRun, {"largest_epochs": -1.0}, "largest_epochs=-1.0 should be greater than or equal to 0"),
    (SupernetRun, {"largest_epochs": 11.0}, "largest_epochs=11.0 should be at most train.epochs=10"),
    (SupernetRun, {"random_paths": 10**9}, "random_paths=1000000000 should be less than or equal to 1000"),
    (SupernetRun, {"train": Train(distill=True)}, "train.distill=True follows the largest path"),
    (SupernetRun, {"train": Train(regularize_largest=True)}, "train.regularize_largest=True needs the largest path"),
    (DetectorRun, {"scoring_batch": 0}, "scoring_batch=0 should be greater than or equal to 1"),
    (DetectorRun, {"head_width": 0}, "head_width=0 should be greater than or equal to 1"),
    (Preprocess, {"input_size": 8, "mean": (0.5,), "std": (0.0,), "classes": ()}, "should be greater than 0"),
    (Preprocess, {"input_size": 8, "mean": (0.5,), "std": (), "classes": ()}, "std=() and mean=(0.5,) should have one"),
    (Preprocess, {"input_size": 8, "mean": (), "std": (), "classes": ()}, "should have one value each per channel"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_value_is_refused_whichever_way_it_comes(kind: type[Any], values: dict[str, Any], message: str) -> None:
    ways: list[Callable[[], Any]] = [
        lambda: kind(**values),
        lambda: from_dict(kind, {name: plain(value) for name, value in values.items()}, owner="run.json"),
    ]
    if kind is not Preprocess:
        ways.append(lambda: dataclasses.replace(kind(), **values))
    for way in ways:
        with pytest.raises(InputError) as refused:
            way()
        assert message in str(refused.value) or values == {"augment": None}
        assert "\n" not in str(refused.value)


def plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def test_files_give_dotted_names() -> None:
    for document, message in (
        ({"retrain": {"clip": -1}}, "run.json: retrain.clip=-1 should be greater than or equal to 0"),
        ({"data": {"augment": {"shift": 40}}}, "run.json: data.augment.shift=40 should be less than size=32"),
        ({"data": {"augment": "flip"}}, "run.json: data.augment='flip' should be the settings of Augment by name"),
        ({"data": None}, "run.json: data=None should be the settings of Data by name"),
        ({"train": {"epoch": 3}}, "run.json: Train has no setting 'train.epoch'; did you mean 'epochs'"),
        ({"train": {"drops": "ab"}}, "run.json: train.drops='ab' should be a valid tuple"),
    ):
        with pytest.raises(InputError) as refused:
            from_dict(SupernetRun, document, owner="run.json")
        assert message in str(refused.value)


def test_good_settings_stay_as_they_are() -> None:
    assert type(Train(lr=1).lr) is int  # nothing is cast
    assert Train(lr=np.float64(0.1)) == Train(lr=0.1)
    assert Train(epochs=0, warmup_epochs=1.0).epochs == 0  # a run that serves to retrain
    for recipe in RECIPES.values():
        config = recipe()
        assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(Train()) == hash(Train())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Train().lr = 0.2  # type: ignore[misc]


def test_names_and_paths() -> None:
    assert all(map(plain_name, ("aging-evolution", "a b", "é", "x" * 200)))
    assert not any(map(plain_name, ("", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 201, "é" * 101, "\udcff")))
    assert all(map(short_names, ("runs/x", "/a/" + "x" * 200, "", "a [b] \U0001f468\u200d\U0001f467")))
    assert not any(
        map(short_names, ("x" * 300, "a\0b", "\udcff", "x/" * 2000, "a\nb", "a\x1b[31mb", "a\tb", "a\u2028b"))
    )


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"classes": ()}, "classes=() should be one or more different names"),
        ({"classes": ("a", "a")}, "classes=('a', 'a') should be one or more different names"),
        ({"classes": ("a\nb",)}, r"should be names without control characters, not 'a\nb'"),
        ({"in_channels": 1}, "should have one value for each of in_channels=1"),
    ],
    ids=str,
)
def test_facts_about_data_that_contradict_each_other_name_their_file(change: dict[str, Any], fragment: str) -> None:
    document = {**dataclasses.asdict(SUMMARY), **change}
    with pytest.raises(InputError, match=r"run\.json: ") as caught:
        from_dict(DataSummary, document, owner="run.json")
    assert fragment in str(caught.value)


@pytest.mark.parametrize("settings", [("stem",), ("=4",), ("stem=4", "stem=5")], ids=str)
def test_settings_of_a_file_are_pairs_and_name_it(settings: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"run\.json: space_settings=.* should be NAME=VALUE texts, each name once"):
        from_dict(SupernetRun, {"space_settings": settings}, owner="run.json")


def test_the_cpu_has_no_number() -> None:
    assert Train(device="cuda:1").device == "cuda:1"
    with pytest.raises(InputError, match="device='cpu:5' should be 'cpu', 'cuda', 'cuda:N'"):
        Train(device="cpu:5")


def test_a_document_is_read_as_a_dataclass() -> None:
    with pytest.raises(InputError, match="should be a dataclass"):
        from_dict(int, {})


# -- anything at all --------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
KINDS = (SupernetRun, DetectorRun, DataSummary, Preprocess)
SUMMARY = DataSummary(("a", "b"), 3, 8, (0.5,) * 3, (0.5,) * 3, 1, 1, 1, 1, "0" * 16)


def mutated(document: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A document with another value, another name or nothing in one place."""
    name = data.draw(st.sampled_from(sorted(document)))
    inner = document[name]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        return {**document, name: mutated(inner, data)}
    action = data.draw(st.sampled_from(("value", "name", "drop")))
    rest = {key: value for key, value in document.items() if key != name}
    if action == "drop":
        return rest
    return {**rest, name if action == "value" else data.draw(st.text(max_size=8)): data.draw(VALUES)}


def check_documents(data: st.DataObject) -> None:
    configs = [SupernetRun(), DetectorRun(), SUMMARY, SUMMARY.preprocess()]
    config = data.draw(st.sampled_from(configs))
    document = mutated(json.loads(json.dumps(dataclasses.asdict(config))), data)
    message = ""
    try:
        again = from_dict(type(config), document)
    except InputError as error:
        message = str(error)
    else:
        assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(again)))) == again
    assert "\n" not in message


def check_texts(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_json(text)


@hypothesis.settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(st.data())
def test_any_document_is_read_or_refused(data: st.DataObject) -> None:
    check_documents(data)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000, deadline=None, database=None)
@hypothesis.given(st.data())
def test_any_document_is_read_or_refused_at_length(data: st.DataObject) -> None:
    check_documents(data)


TEXTS = st.text() | VALUES.map(json.dumps) | st.just("1" * 5000) | st.integers(0, 2000).map(lambda depth: "[" * depth)


@hypothesis.settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(TEXTS)
def test_any_text_is_json_or_refused(text: str) -> None:
    check_texts(text)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000, deadline=None, database=None)
@hypothesis.given(TEXTS)
def test_any_text_is_json_or_refused_at_length(text: str) -> None:
    check_texts(text)
