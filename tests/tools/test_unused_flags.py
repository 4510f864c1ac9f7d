"""Flags that have no effect beside others, or on what a command is given, are refused in one line that names both."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from detection.config import DetectionData
from helpers.images import make_folder
from helpers.scripts import Call, one_line
from helpers.tiny import TINY, TINY_SPACE
from supernet.checked import unused_fields
from supernet.config import Data, Train
from supernet.errors import InputError
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
from supernet_tools.pipeline.command_line import parse
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.folder import check_run, claim_run
from supernet_tools.pipeline.recipes import RECIPES

KEY = "0123456789abcdef"
BESIDE_ARCH = "has no effect beside --arch, which names the network"
ALONE = ("--table-only", "--resamples", 2)

UNUSED: list[tuple[str, tuple[object, ...], str]] = [
    ("evaluate", ("run", "--arch", KEY, "--search", "nsga2"), f"search='nsga2' {BESIDE_ARCH}"),
    ("evaluate", ("run", "--search", "aging-evolution", "--arch", "{}"), BESIDE_ARCH),  # the default, but typed
    ("evaluate", ("run", "--search=nsga2", f"--arch={KEY}"), "leave out --search"),
    ("evaluate", ("run", "--threshold", 0.3), "threshold=0.3 has no effect without --exported"),
    ("evaluate", ("run", "--batch", 3), "batch=3 has no effect without --exported; leave out --batch"),
    ("evaluate", ("run", "--run-code"), "run_code=True has no effect without --exported"),
    ("evaluate", ("run", "--exported", "x", "--run-code", "--arch", KEY), "has no effect beside --exported"),
    ("evaluate", ("run", "--exported", "x", "--run-code", "--bn_batches", 4), "bn_batches=4 has no effect beside"),
    ("retrain", ("run", "--arch", KEY, "--search", "nsga2"), BESIDE_ARCH),
    ("retrain", ("run", "--seeds", 2), "seeds=2 has no effect without a comparison, --top and --random"),
    ("retrain", ("run", "--bn", "plain"), "bn='plain' has no effect without --init shared"),
    ("export", ("run", "--arch", "largest", "--search", "nsga2"), BESIDE_ARCH),
    ("export", ("run", "--inherit", "--seed", 0), "seed=0 has no effect beside --inherit"),
    ("export", ("run", "--inherit", "--init", "shared"), "init='shared' has no effect beside --inherit"),
    ("export", ("run", "--front", "--seed", 1), "seed=1 has no effect beside --front or --limits"),
    ("export", ("run", "--front", "--inherit"), "inherit=True has no effect beside --front or --limits"),
    ("export", ("run", "--front", "--limits", "5M"), "front=True has no effect beside --limits"),
    ("export", ("run", "--limit-cost", "params"), "limit_cost='params' has no effect without --front or --limits"),
    ("export", ("run", "--bn", "plain"), "bn='plain' has no effect without --inherit or --init shared"),
    ("export", ("run", "--data.source", "x"), "data.source='x' has no effect without --inherit"),
    (
        "search",
        ("run", "--bn", "keep", "--bn-batches", 5),
        "bn_batches=5 has no effect with --bn keep, which",
    ),
    ("search", ("run", "--bn", "keep", "--bn-settle", 0.1), "bn_settle=0.1 has no effect with --bn keep"),
    ("evaluate", ("run", "--bn", "keep", "--bn-batches", 5), "bn_batches=5 has no effect with --bn keep"),
    ("fidelity", ("run", "--bn", "keep", "--bn-batches", 5), "bn_batches=5 has no effect with --bn keep"),
    ("search", ("run", "--latency-batch", 4), "latency_batch=4 has no effect without --max-latency"),
    ("search", ("run", "--settings"), "--settings has no value; give one behind it, or leave the flag out"),
    ("select_network", ("run", "--max-macs"), "--max-macs has no value"),
    ("select_network", ("run", "--search", "a", "b", "a"), "search=('a', 'b', 'a') names one twice"),
    ("fidelity", ("run", "--column", "x"), "column='x' has no effect with --truth table"),
    ("fidelity", ("run", "--truth", "retrain", "--column", "x"), "has no effect with --truth retrain"),
    ("fidelity", ("run", "--truth", "t.csv", "--seeds", 2), "seeds=2 has no effect without --truth retrain"),
    ("fidelity", ("run", "--epochs", 2), "epochs=2 has no effect without --truth retrain"),
    ("fidelity", (*ALONE, "--truth", "retrain"), "truth='retrain' has no effect beside --table-only"),
    ("fidelity", (*ALONE, "--seed", 0), "seed=0 has no effect beside --table-only"),
    ("predict", ("run", "--arch", KEY, "--search", "nsga2"), BESIDE_ARCH),
    ("predict", ("run", "a.png", "--test", 3), "test=3 has no effect beside images that are named"),
    ("draw", ("run", "--arch", KEY, "--search", "nsga2"), BESIDE_ARCH),
]


@pytest.mark.parametrize(("script", "words", "message"), UNUSED, ids=lambda value: str(value)[:60])
def test_flags_without_an_effect_are_refused_before_work(
    script: str, words: tuple[object, ...], message: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(script, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (evaluate.Evaluate, "run --arch front:2 --search nsga2"),
        (evaluate.Evaluate, "run --exported x --run-code --batch 3 --threshold 0.3 --curves a.csv"),
        (retrain.Retrain, "run --arch KEY --seed 0 --init scratch"),
        (retrain.Retrain, "run --init shared --bn keep"),
        (retrain.Retrain, "run --search nsga2 --top 1 --random 1 --seeds 2"),
        (export.Export, "run --arch front:1 --search nsga2 --inherit --bn plain --data.source x"),
        (export.Export, "run --limits 5M --limit-cost params --search nsga2 --bn plain"),
        (search.Search, "run --max-latency 5ms --latency-batch 4"),
        (fidelity.Fidelity, "run --truth t.csv --column top1"),
        (fidelity.Fidelity, "run --truth retrain --seeds 2 --epochs 3"),
        (predict.Predict, "run --test 3 --search nsga2"),
        (draw.Draw, "run --arch front:1 --search nsga2"),
    ],
    ids=str,
)
def test_flags_with_an_effect_are_taken(kind: type[Any], words: str) -> None:
    assert parse(kind, None, words.split())


def test_shares_of_images_that_have_splits_of_their_own_are_refused(call: Call, tmp_path: Path) -> None:
    for split in ("train", "Val", "test"):
        make_folder(tmp_path / "photos" / split, images=1)
    (tmp_path / "data.yaml").write_text("train: a\nval: b\nnames: [x]\n")
    photos = ("train_supernet", "spos-images", "--data.source", tmp_path / "photos", "--out", tmp_path / "run")
    one_line(call(*photos, "--data.test", 0.3), "data.test=0.3 has no effect", "a test split of its own")
    one_line(call(*photos, "--data.validation", 0.3), "data.validation=0.3 has no effect", "a validation split")
    boxes = ("train_supernet", "detnas-bccd", "--data.source", tmp_path / "data.yaml", "--out", tmp_path / "run")
    one_line(call(*boxes, "--data.validation", 0.3), "data.validation=0.3 has no effect", "a validation split")
    assert not (tmp_path / "run").exists()


def test_a_detectors_settings_without_an_effect_are_refused(call: Call, tmp_path: Path) -> None:
    run = ("train_supernet", "detnas-digits", "--out", tmp_path / "run")
    one_line(call(*run, "--data.images", "x"), "data.images='x' has no effect with source='digits'")
    one_line(call(*run, "--data.test", 0.5), "data.test=0.5 has no effect with source='digits'; compose has")
    one_line(call(*run, "--data.source", "a.json", "--data.compose", 3, 3, 3), "it is for 'digits'")


def test_what_settings_have_no_effect_depends_on_the_others(tmp_path: Path) -> None:
    """Sources that may use every field have none without an effect, and those that are named are fields."""
    assert "decay_rate" not in dict(Train(schedule="exponential").unused())
    assert "ema_warmup" not in dict(Train(ema=0.9).unused())
    assert not list(Data("package.module:function").unused())
    assert not list(Data("timm:folder").unused())
    assert {"stream", "skip_unreadable"}.isdisjoint(dict(Data(str(tmp_path)).unused()))
    assert "test" in dict(DetectionData("a.json", test_source="b.json").unused())
    assert "test_images" in dict(DetectionData("a.json").unused())
    for recipe in RECIPES.values():
        config = recipe()
        for name, reason in unused_fields(config):
            assert reason.startswith(("with", "beside"))
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)


@pytest.mark.parametrize(
    "kind",
    [
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
    ],
)
def test_defaults_without_an_effect_are_not_refused(kind: type[Any]) -> None:
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    assert len(required) <= 1
    assert parse(kind, None, ["x"] * len(required))


def test_a_run_of_an_earlier_release_goes_on_without_them(tmp_path: Path) -> None:
    """Its `run.json` may hold typed values without an effect, which the same command would not take any more."""
    with claim_run(tmp_path / "run", "supernet", SupernetRun(train=Train(decay_rate=0.5), random_paths=7)):
        pass
    check_run(tmp_path / "run", "supernet", SupernetRun())
    with pytest.raises(InputError, match=r"train\.schedule is 'cosine' there and 'exponential' here"):
        check_run(tmp_path / "run", "supernet", SupernetRun(train=Train(decay_rate=0.5, schedule="exponential")))


# -- what is only known once the run or the export is opened -----------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--threshold", 0.3), "threshold=0.3 has no effect for a classifier"),
        (("--every", 1), "every=1 has no effect for a classifier"),
        (("--run-code",), "run_code=True has no effect for"),
    ],
)
def test_predictions_of_a_classifier_take_no_flags_of_detectors(
    flags: tuple[object, ...], message: str, tiny_run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})
    if flags != ("--run-code",):
        assert call("retrain", tiny_run, "--arch", arch)[0] == 0
    monkeypatch.chdir(tmp_path)
    one_line(call("predict", tiny_run, "--arch", arch, "--out", "drawn", *flags), message)
    assert not (tmp_path / "drawn").exists()


def test_an_export_takes_no_flags_of_a_run(tmp_path: Path, call: Call) -> None:
    photos = make_folder(tmp_path / "photos", images=1)
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "preprocess.json").write_text("{}")
    for flags in (("--seed", 0), ("--arch", "{}"), ("--init", "shared"), ("--search", "x")):
        one_line(call("predict", folder, photos, "--run-code", *flags), "has no effect for", "which is an export")


def test_an_exported_classifier_takes_no_flags_of_detectors(tiny_run: Path, tmp_path: Path, call: Call) -> None:
    """They are refused before the code of the export runs: this one has none."""
    folder = tmp_path / "exported"
    folder.mkdir()
    document = {"input_size": 8, "mean": [0.5], "std": [1.0], "classes": []}
    (folder / "preprocess.json").write_text(json.dumps(document))
    for flags in (("--threshold", 0.3), ("--batch", 4)):
        one_line(call("evaluate", tiny_run, "--exported", folder, "--run-code", *flags), "for a classifier, as")


def test_moved_images_are_those_that_the_run_has(tiny_run: Path, call: Call) -> None:
    before = sorted(tiny_run.rglob("*"))
    one_line(call("evaluate", tiny_run, "--data.images", "x"), "data.images='x' is for detectors")
    assert sorted(tiny_run.rglob("*")) == before


def test_a_setting_of_another_kind_of_fit_is_refused(tmp_path: Path, call: Call) -> None:
    photos = make_folder(tmp_path / "photos")
    start = ("fit", photos, "--out", tmp_path / "run")
    one_line(call(*start, "--anchor-scale", 2), "anchor_scale is for images with boxes")
    one_line(call(*start, "--device", "tpu"), "the device 'tpu' is not available")
    one_line(call(*start, "--batch", 1000), "batch=1000 is larger than the 20 training images")
    one_line(call(*start, "--space", "spos", "--size", 16), "input_size=16 is too small for the space 'spos'")
    one_line(call(*start, "--max-macs", 1), "has macs <= 1")
    assert not (tmp_path / "run").exists()
    shutil.make_archive(str(tmp_path / "texts"), "zip", root_dir=tmp_path, base_dir="photos/cat")
    one_line(call("fit", tmp_path / "texts.zip", "--out", tmp_path / "run"), "one class only")
    assert not (tmp_path / "run").exists()


def test_shares_that_end_with_the_training_are_refused(tiny_run: Path, call: Call) -> None:
    one_line(call("select_network", tiny_run, "--shares", 0.5), "shares=(0.5,) end with no epoch before the last one")


def test_empty_arguments_name_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path / "photos"))
    for words in (("",), ("run", ""), ("run", "--run-code", "")):
        one_line(call("predict", *words), "an empty argument names nothing")
    with pytest.raises(InputError, match="an empty argument"):
        parse(search.Search, None, ["", "--trials", "3"])


def test_a_run_of_a_link_in_a_circle_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    command = ("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", tmp_path / "loop")
    one_line(call(*command), "loop", "leads in a circle")
