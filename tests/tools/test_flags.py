"""Wrong flags are refused in one line before any work: nothing is read, trained or written."""

import contextlib
import dataclasses
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from helpers.scripts import Call, one_line
from supernet.errors import InputError
from supernet.files import read_json, write_json
from supernet_tools import (
    draw,
    evaluate,
    export,
    fidelity,
    fit,
    morphnet,
    predict,
    quickstart,
    report,
    retrain,
    search,
    select_network,
)
from supernet_tools.pipeline.command_line import console, parse, parse_recipe
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.folder import RUN_FORMAT
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.retrain import read_result

LONG = "n" * 300
NOT_FINITE = "should be a finite number"

SCRIPTS: list[tuple[str, tuple[object, ...], str]] = [
    ("search", ("--trials", 0), "trials=0 should be greater than or equal to 1; change --trials"),
    ("search", ("--trials", "x"), "--trials"),
    ("search", ("--evaluations", 0), "evaluations=0"),
    ("search", ("--batch", 10**9), "batch=1000000000 should be less than or equal to 100000"),
    ("search", ("--seed", 10**29), "seed=1"),
    ("search", ("--max-macs", "nan"), f"max_macs=nan {NOT_FINITE}; change --max-macs"),
    ("search", ("--max-params", "1e309"), f"max_params=inf {NOT_FINITE}"),
    ("search", ("--max-latency", "-1"), "max_latency=-1.0 should be greater than 0"),
    ("search", ("--latency-batch", "-1"), "latency_batch=-1"),
    ("search", ("--bn-batches", "-1"), "bn_batches=-1"),
    ("search", ("--name", ".."), "name='..' should be a plain name"),
    ("search", ("--name", "a/b"), "name='a/b'"),
    ("search", ("--name", "a\nb"), r"name='a\nb'"),
    ("search", ("--name", LONG), "at most 200 bytes"),
    ("search", ("--trials", 3, "--trials", 4), "the flag --trials is given twice"),
    ("search", ("--max-macs", 3, "--max_macs=4"), "the flag --max-macs is given twice"),
    ("search", ("--resume", "maybe"), "'maybe'"),
    ("search", ("--workers", 0), "workers=0"),
    ("search", ("--workers", 2), "--workers 2 divide the architectures of a batch, and --batch is 1; raise it"),
    (
        "search",
        ("--race-top", 3, "--batch", 3),
        "--race-top 3 compares the networks of a batch in one process: give a --batch",
    ),
    ("search", ("--bn-settle", -1), "bn_settle=-1"),
    ("search", ("--scoring-dtype", "fp16"), "'fp16'"),
    ("evaluate", ("--arch", ""), "arch='' should be some text"),
    ("evaluate", ("--bn-batches", 0), "bn_batches=0"),
    ("evaluate", ("--search", "../other"), "search='../other'"),
    ("retrain", ("--seed", -1), "seed=-1"),
    ("retrain", ("--epochs", 0), "epochs=0"),
    ("retrain", ("--lr", "inf"), f"lr=inf {NOT_FINITE}"),
    ("retrain", ("--seeds", 0), "seeds=0"),
    ("export", ("--out", LONG), "whose names have at most 200 bytes"),
    ("fidelity", ("--n", -1), "n=-1"),
    ("fidelity", ("--resamples", 0), "resamples=0"),
    ("fidelity", ("--labels", -1), "labels=-1"),
    ("fidelity", ("--name", "/tmp/x"), "name='/tmp/x'"),
    ("fidelity", ("--checkpoints", LONG), "checkpoints="),
    ("morphnet", ("--max-macs", "inf"), f"max_macs=inf {NOT_FINITE}"),
    ("morphnet", ("--name", ".."), "name='..'"),
    ("morphnet", ("--rounds", 0), "rounds=0"),
    ("predict", ("--threshold", "nan"), f"threshold=nan {NOT_FINITE}"),
    ("predict", ("--threshold", 2), "threshold=2.0 should be less than or equal to 1"),
    ("predict", ("--test", -1), "test=-1"),
    ("draw", ("--out", LONG), "out="),
    ("draw", ("--arch", ""), "arch=''"),
    ("report", ("--out", "page.svg"), "out='page.svg' should end with .html"),
    ("report", ("--out", "none/page.html"), "there is no folder 'none' to write 'page.html' in; create it"),
    ("evaluate", ("--curves", "a.csv"), "--curves is for exported detectors"),
    ("evaluate", ("--exported", "x", "--run-code", "--curves", "/dev/null/a.csv"), "there is no folder '/dev/null'"),
    ("evaluate", ("--exported", "x", "--run-code", "--curves", "a.html"), "curves='a.html' should end with .csv"),
    ("fidelity", ("--score", ""), "score='' should be some text"),
    ("search", ("--trial", 5), "there is no flag --trial; did you mean --trials"),
    ("evaluate", ("more",), "the argument 'more' belongs to no flag"),
    ("evaluate", ("--colour", "red"), "there is no flag --colour; did you mean --curves?; see"),
]


@pytest.mark.parametrize(("script", "flags", "message"), SCRIPTS, ids=lambda value: str(value)[:40])
def test_wrong_flags_are_refused_before_work(
    script: str, flags: tuple[object, ...], message: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(call(script, "run", *flags), message)
    assert not list(tmp_path.iterdir())


QUICKSTART = [
    (("--epochs", 0), "epochs=0"),
    (("--retrain-epochs", 0), "retrain_epochs=0 should be greater than or equal to 1; change --retrain-epochs"),
    (("--max-macs", "nan"), "change --max-macs"),
    (("--trainings", 1), "trainings=1.0 should be greater than or equal to 2"),
    (("--threads", 0), "threads=0"),
    (("--seed", -1), "seed=-1"),
    (("--trials", 0), "trials=0"),
    (("--out", LONG), "out="),
    (("--max-macs", 5), "no architecture of 'nasbench-macro' has macs <= 5"),
]


@pytest.mark.parametrize(("flags", "message"), QUICKSTART, ids=lambda value: str(value)[:40])
def test_the_demo_checks_its_flags(
    flags: tuple[object, ...], message: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(call("quickstart", *flags), message)
    assert not list(tmp_path.iterdir())


RECIPE: list[tuple[tuple[object, ...], str]] = [
    (("--train.clip", -1), "train.clip=-1.0 should be greater than or equal to 0; change --train.clip"),
    (("--train.weight-decay", "nan"), f"train.weight_decay=nan {NOT_FINITE}; change --train.weight-decay"),
    (("--train.lr", 0), "train.lr=0.0 should be greater than 0"),
    (("--train.epochs", 10**9), "train.epochs=1000000000"),
    (("--train.warmup-epochs", "1e9"), "train.warmup_epochs=1000000000.0 should be at most epochs=50"),
    (("--train.schedule", "cosin"), "'cosin'"),
    (("--train.device", "meta"), "train.device='meta'"),
    (("--train.save-seconds", -1), "train.save_seconds=-1.0"),
    (("--retrain.warmup-epochs", "nan"), f"retrain.warmup_epochs=nan {NOT_FINITE}"),
    (("--retrain.device", "cuda:77"), "'cuda:77' is not available"),
    (("--data.size", 10**5), "data.size=100000"),
    (("--data.seed", 10**40), "data.seed=1"),
    (("--data.augment.cutmix", "nan"), f"data.augment.cutmix=nan {NOT_FINITE}"),
    (("--window.high", "nan"), f"window.high=nan {NOT_FINITE}"),
    (("--largest-epochs", 51), "largest_epochs=51.0 should be at most train.epochs=50"),
    (("--largest-epochs", "inf"), f"largest_epochs=inf {NOT_FINITE}"),
    (("--random-paths", 10**9), "random_paths=1000000000"),
    (("--train.lr", 0.1, "--train.lr", 0.2), "the flag --train.lr is given twice"),
    (("--data.stream", "--data.no-stream"), "the flag --data.stream is given twice"),
    (("--train.lrr", 0.1), "there is no flag --train.lrr; did you mean --train.lr or --"),
    (("--train.epoch", 3), "no flag --train.epoch; did you mean --train.epochs or --retrain.epochs or --train."),
    (("--space-settings", "stem=0"), "stem=0 should be from 1 to 65,536"),
    (("--space-settings", "widths=[3, 8, 16]"), "'shufflenet-small' cannot be built with widths=(3, 8, 16)"),
    (("--space-settings", "stem=-1"), "stem=-1 should be from 1 to 65,536"),
    (("--space-settings", "depths=[1000000000, 1, 1]"), "depths=(1000000000, 1, 1) should be from 1 to 1,000"),
    (("--space-settings", "stem=1000000000000"), "stem=1000000000000"),
    (
        ("--random-paths", 3),
        "random_paths=3 has no effect with sampler='uniform'; it is for 'sandwich'; leave out --ra",
    ),
    (("--window.cost", "params"), "window.cost='params' has no effect without a bound, low or high"),
    (("--teacher-weight", 2), "teacher_weight=2.0 has no effect with teacher='none'"),
    (("--train.decay-rate", 0.9), "train.decay_rate=0.9 has no effect with schedule='cosine'; it is for 'exponential'"),
    (("--retrain.drops", 0.5), "retrain.drops=(0.5,) has no effect with schedule='cosine'; it is for 'step'"),
    (("--train.schedule", "constant", "--train.lr-floor", 0.1), "train.lr_floor=0.1 has no effect"),
    (("--train.no-ema-warmup",), "train.ema_warmup=False has no effect without an average of the weights, ema"),
    (("--data.stream",), "data.stream=True has no effect with source='digits'; it is for a folder of images"),
    (("--data.root", "x"), "data.root='x' has no effect with source='digits'; it is for 'cifar10' and 'cifar100'"),
    (("--data.test-split", "x"), "data.test_split='x' has no effect with source='digits'; it is for 'timm:NAME'"),
]


@pytest.mark.parametrize(("flags", "message"), RECIPE, ids=lambda value: str(value)[:40])
def test_wrong_settings_of_a_recipe_are_refused_before_images_are_read(
    flags: tuple[object, ...], message: str, call: Call, tmp_path: Path
) -> None:
    one_line(call("train_supernet", "quickstart", "--out", tmp_path / "run", *flags), message)
    assert not list(tmp_path.iterdir())


def test_paths_that_no_file_system_takes(call: Call, tmp_path: Path) -> None:
    one_line(call("train_supernet", "quickstart", "--out", tmp_path / LONG), "out=", "at most 200 bytes")
    for script in ("search", "evaluate", "retrain", "export", "morphnet", "fidelity", "predict"):
        one_line(call(script, LONG), "at most 200 bytes")


def test_no_arguments_say_what_is_missing(
    call: Call, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call("train_supernet")
    assert (code, err) == (2, "error: name a recipe and give --out FOLDER\n")
    assert "usage: train_supernet.py RECIPE" in out
    for script in ("search", "evaluate", "retrain", "export", "morphnet", "predict", "draw", "report"):
        one_line(call(script), "required")
    monkeypatch.setattr(sys, "argv", ["supernet"])
    with pytest.raises(SystemExit, match="2"):
        console()
    said = capfd.readouterr()
    assert said.err.startswith("error: name a command: fit, train, search")
    assert "usage: supernet COMMAND" in said.out


# -- run.json ---------------------------------------------------------------------------------------------------------


def write_run(folder: Path, text: str | None = None, **changes: Any) -> Path:
    config = json.loads(json.dumps(dataclasses.asdict(SupernetRun())))
    facts = {
        "classes": ["a", "b"],
        "in_channels": 1,
        "size": 8,
        "mean": [0.5],
        "std": [0.5],
        "n_train": 9,
        "n_calibration": 3,
        "n_validation": 3,
        "n_test": 3,
        "digest": "0" * 16,
    }
    document = {"format": RUN_FORMAT, "kind": "supernet", "config": config, "commit": None, "data": facts}
    for name, value in changes.items():
        inner: dict[str, Any] = document
        *outer, last = name.split("__")
        for part in outer:
            inner = inner[part]
        inner[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(document) if text is None else text)
    return folder


RUNS: list[tuple[dict[str, Any], str]] = [
    ({"config": None}, "run.json"),
    ({"config": "x"}, "run.json"),
    ({"data": None}, "run.json"),
    ({"format": 99}, "format 99"),
    ({"kind": ["supernet"]}, "run.json"),
    ({"config__train__epochs": "2"}, "run.json: train.epochs='2' should be a valid integer"),
    ({"config__data__size": "16"}, "run.json: data.size='16'"),
    ({"config__data__source": 5}, "run.json: data.source=5"),
    ({"config__space": 5}, "run.json: space=5"),
    (
        {"config__sampler": "unifrom"},
        "run.json: sampler='unifrom' should be 'uniform', 'weighted', 'even', 'fair', 'balanced' or 'sandwich'",
    ),
    ({"config__train": {"clip": -1}}, "run.json: train.clip=-1"),
    ({"data__classes": [1]}, "run.json, data: classes="),
    ({"data__std": [0]}, "run.json, data: std=(0,)"),
    ({"data__n_test": None}, "n_test=None"),
    ({"text": "[" * 2000}, "run.json is damaged (more than 64 levels"),
    ({"text": '{"a": ' * 70 + "1" + "}" * 70}, "run.json is damaged (more than 64 levels"),
    ({"text": '{"format": ' + "9" * 5000 + "}"}, "run.json is damaged (an integer of 5000 digits)"),
    ({"text": '{"format": 2, "format": 2}'}, "run.json is damaged (the name 'format' stands twice"),
    ({"text": "[]"}, "run.json is damaged: it does not hold a JSON object"),
    ({"text": ""}, "run.json is damaged"),
]


@pytest.mark.parametrize(("changes", "message"), RUNS, ids=lambda value: str(value)[:40])
def test_a_wrong_run_is_named(changes: dict[str, Any], message: str, call: Call, tmp_path: Path) -> None:
    one_line(call("search", write_run(tmp_path / "run", **changes)), message)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=r"is damaged|cannot be read"):
            read_json(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "bom.json").write_text("\ufeff{}", encoding="utf-8")
    assert read_json(tmp_path / "bom.json") == {}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "it lacks 'arch'"),
        ({"test_accuracy": "x"}, "test_accuracy='x' should be a valid number"),
        ([], "JSON object"),
    ],
)
def test_a_result_that_says_nothing_is_no_result(document: Any, message: str, tmp_path: Path) -> None:
    complete = {"arch": {}, "key": "0", "seed": 0, "test_accuracy": 0.5}
    file = tmp_path / "result.json"
    write_json(file, complete)
    assert read_result(file, "test_accuracy") == complete
    file.write_text(json.dumps({**complete, **document} if document else document))
    with pytest.raises(InputError, match=f"result.json is damaged: .*{message}"):
        read_result(file, "test_accuracy")


# -- anything at all --------------------------------------------------------------------------------------------------

KINDS: list[Any] = [
    search.Search,
    evaluate.Evaluate,
    retrain.Retrain,
    select_network.Select,
    export.Export,
    fidelity.Fidelity,
    morphnet.Morph,
    predict.Predict,
    draw.Draw,
    quickstart.Quickstart,
    fit.Fit,
    report.Report,
]
WORDS = st.sampled_from(
    [
        "0",
        "-1",
        "1e309",
        "nan",
        "inf",
        "None",
        "",
        " ",
        "..",
        "a/b",
        "[bold]",
        "{}",
        "9" * 5000,
        LONG,
        "true",
        "--",
        "-",
        "=",
        "\udcff",
    ]
) | st.text(max_size=6)


def check_flags(data: st.DataObject) -> None:
    """Any words behind any flags are parsed or refused in one line."""
    kind = data.draw(st.sampled_from([*KINDS, "recipe"]))
    names = (
        [
            "out",
            "plan",
            "find-lr",
            "space",
            "train.lr",
            "train.epochs",
            "data.augment.shift",
            "window.high",
            "retrain.drops",
            "lead",
        ]
        if kind == "recipe"
        else [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    )
    flag = st.sampled_from(names).map("--{}".format)
    words = data.draw(st.lists(flag | WORDS, max_size=6))
    message, code = "", 0
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", "quickstart", *words])
        try:
            if kind == "recipe":
                parse_recipe(RECIPES, "")
            else:
                parse(kind, "", words)
        except InputError as error:
            message = str(error)
        except SystemExit as stopped:
            code = stopped.code
    assert "\n" not in message
    assert code == 0  # of --help; anything else is an error in one line


@hypothesis.settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(st.data())
def test_any_words_are_parsed_or_refused(data: st.DataObject) -> None:
    check_flags(data)


@pytest.mark.slow
@hypothesis.settings(max_examples=2000, deadline=None, database=None)
@hypothesis.given(st.data())
def test_any_words_are_parsed_or_refused_at_length(data: st.DataObject) -> None:
    check_flags(data)
