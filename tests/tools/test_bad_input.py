"""Wrong input to commands that start, race, export and report: one line names the value, and nothing is written.

Whatever the files of a run hold, a report is written about the rest.
"""

import json
import os
import re
import shlex
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.fit_plans import REQUEST, plan_of, setting
from helpers.images import make_folder
from helpers.scripts import Call, one_line
from helpers.tiny import TINY_SPACE
from supernet.cost import LatencyTable
from supernet.errors import InputError
from supernet.ranking.trainings import Job
from supernet.space import Arch
from supernet_tools.pipeline.fit_plan import planned
from supernet_tools.pipeline.folder import FIT
from supernet_tools.pipeline.front import _check_free
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.select import _Trainer


def test_a_recorded_plan_is_read(tmp_path: Path) -> None:
    plan = planned(REQUEST, plan_of(tmp_path), lambda _: None)
    assert plan.config.space == "shufflenet-small"
    assert plan.settings["trials"] == 20


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda d: d.update(request=[1]), "it holds no request"),
        (lambda d: d.update(settings={}), "it holds no request or no settings"),
        (lambda d: d.update(settings=[]), "the setting 'size' of FitSettings is missing"),
        (lambda d: d["settings"][0].update(name=[1]), "lack a name"),
        (lambda d: d["source"].update(classes=5), "classes=5 should be"),
        (lambda d: d.update(timing=None), "should be the settings of Timing"),
        (setting("size", "8"), "size='8' should be a valid integer"),
        (setting("init", "x"), "init='x' should be 'scratch', 'shared' or 'inherit'"),
        (setting("trials", 1.5), "trials=1.5 should be a valid integer"),
        (setting("space_settings", [1]), "space_settings=(1,) should be"),
        (setting("space", "planted:build"), "names 'planted:build' as its space"),
    ],
)
def test_a_plan_that_somebody_has_edited_is_refused(tmp_path: Path, change: Any, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(REQUEST, plan_of(tmp_path, change), lambda _: None)
    assert fragment in str(caught.value)
    assert FIT in str(caught.value) or "edited" in str(caught.value)


def test_refusals_have_the_units_of_the_flags(tmp_path: Path, call: Call) -> None:
    folder = plan_of(tmp_path / "run", lambda document: document["request"]["limits"].update(macs=110_000.0))
    flags = ("digits", "--out", folder, "--max-macs")
    one_line(call("fit", *flags, "120k"), "started with macs=110k, and here it is macs=120k")
    shutil.rmtree(folder)
    plan_of(folder, lambda document: document["request"]["limits"].update(latency_ms=5.0))
    one_line(call("fit", *flags[:3]), "started with latency_ms=5 ms, and here it is latency_ms=None")


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (("fit", "digits", "--out", ""), ("--out ''", "names nothing")),
        (("train_supernet", "quickstart", "--out="), ("--out ''", "names nothing")),
        (("train_supernet", "quickstart", "--out", "a\nb"), (r"out='a\nb'", "without control characters")),
        (("export", "run", "--out", "a\x1b[31mb"), (r"out='a\x1b[31mb'", "without control characters")),
        (("draw", "nasnet-a-large", "--out", "a\nb.svg"), ("without control characters",)),
        (("fit", "digits", "--validation", 0), ("validation=0", "greater than 0")),
        (("draw", "nasbench-macro", "--arch", "{"), ("an architecture is a JSON object", "not '{'")),
        (("search", "run", "--trials", 10**12), ("trials=1000000000000 should be less than",)),
        (("predict", "run", "--test", 0), ("test=0 should be",)),
        (("fidelity", "run", "--truth", "retrain", "--n", 0), ("n=0 is for all networks of a table",)),
        (
            ("train_supernet", "quickstart", "--pretrained", "none.pth", "--train.epochs", 0, "--out", "run"),
            ("pretrained='none.pth' is for spaces in which every decision is ordered", "'shufflenet-small'"),
        ),
        (
            (
                "train_supernet",
                "quickstart",
                "--space-settings",
                "depths=[1,1,1]",
                "widths=[8,16]",
                "stem=4",
                "--out",
                "run",
            ),
            ("sequences that belong together have different lengths",),
        ),
        (("benchmarks.search", "regrets"), ("no command 'regrets'", "'regret'")),
        (("benchmarks.search", "regret", "--seed", 1), ("no flag --seed", "--seeds")),
        (("benchmarks.search", "regret", "--seeds", 0), ("seeds=0 should be",)),
        (("benchmarks.search", "regret", "--seeds", "x"), ("Error parsing --seeds", "'x'")),
        (("benchmarks.search", "gains", "--csv", ""), ("--csv ''",)),
        (("benchmarks.timing", "oracle", "--seeds", 1, "--seeds", 2), ("--seeds is given twice",)),
        (("benchmarks.scoring", "rate", "--threads", 10**6), ("threads=1000000 should be",)),
        (("benchmarks.detection_speed", "pyramids", "--scoring.batches", 0), ("batches=0 should be",)),
        (("benchmarks.timing", "oracle", "--batches"), ("--batches has no value", "leave the flag out")),
        (("benchmarks.growth", "--axes", "trialz"), ("'trialz'", "'trials'")),
        (("benchmarks.growth", "--rounds", 0), ("rounds=0 should be",)),
        (("benchmarks.growth", "--axes", "trials", "--most", 5), ("most=5", "begins with 100")),
        (("benchmarks.training", "uses", "--samplers", "sandwich"), ("sandwich", "uniform, weighted, even")),
        (("benchmarks.ranking", "variants", "--n", 1), ("--n 1", "at least two networks")),
        (("benchmarks.ranking", "variants", "uniform", "evn"), ("no variant 'evn'", "'even'")),
        (("benchmarks.ranking", "picks"), ("at least one folder",)),
        (("benchmarks.training", "engine", "--steps", -1), ("steps=-1 should be",)),
    ],
    ids=str,
)
def test_wrong_words_are_one_line(
    words: tuple[object, ...], fragments: tuple[str, ...], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(call(*words), *fragments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("shared_weights", 5), ("places", [])])
def test_entries_of_a_run_that_are_no_objects_name_the_file(
    tiny_run: Path, call: Call, tmp_path: Path, name: str, value: object
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    document = json.loads((tiny_run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**document, name: value}))
    one_line(call("search", run, "--trials", 2), f"run.json: {name}={value} should be an object")


def test_the_batch_that_is_too_large_is_named(call: Call, tmp_path: Path) -> None:
    run = ("train_supernet", "demo", "--train.epochs", 1, "--out", tmp_path / "run")
    for name in ("train", "retrain"):
        one_line(call(*run, f"--{name}.batch", 5000), "the batch of 5000", f"lower {name}.batch")
    assert not list(tmp_path.iterdir())


def test_a_few_digits_of_a_key_and_limits_given_twice_are_refused(tiny_run: Path, call: Call) -> None:
    one_line(call("evaluate", tiny_run, "--arch", "b5"), "'b5' is too short for a key; give at least four")
    one_line(call("export", tiny_run, "--limits", "30k", "30000"), "the limit '30000' is given twice")


def test_both_ends_of_a_space_without_order_are_those_by_macs(tiny_run: Path, call: Call) -> None:
    macs = []
    for end in ("largest", "smallest"):
        code, out, err = call("evaluate", tiny_run, "--arch", end, "--bn-batches", 1)
        assert code == 0, err
        macs.append(int(re.search(r"macs\W+([\d,]+)", out)[1].replace(",", "")))  # type: ignore[index]
    assert macs == [25_980, 17_000]


def test_repeats_of_a_classifier_are_refused_before_it_is_opened(tiny_run: Path, call: Call) -> None:
    before = sorted(tiny_run.rglob("*"))
    arch = ("--arch", '{"stage1.block0.op": "shuffle3"}', "--inherit")
    one_line(call("export", tiny_run, *arch, "--repeats", 2), "repeats=2 is for detectors")
    assert sorted(tiny_run.rglob("*")) == before


def test_a_refused_fit_leaves_nothing(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image per class cannot be split, and no network is so fast; both are known before anything is trained."""
    monkeypatch.setattr("supernet_tools.pipeline.run.LatencyTable", partial(LatencyTable, seconds=1e-4))
    photos = make_folder(tmp_path / "photos", images=1)
    space = ("--space", "shufflenet-small", "--space-settings", *TINY_SPACE[1:], "--size", 8)
    for source, flags in ((photos, ("--size", 16)), ("digits", ("--max-latency", "1e-6us", *space))):
        code, out, err = call("fit", source, *flags, "--out", tmp_path / "run")
        assert code == 2, (out, err)
        assert "training:" not in err
        assert not (tmp_path / "run").exists()
    assert "latency_ms <= 1e-09 ms" in err


def test_a_report_says_which_files_are_damaged(tiny_run: Path, call: Call) -> None:
    """Also of a run whose training has not ended, and whose history is not a list."""
    damaged = {
        "history.json": {"epochs": 5},
        "select/scratch.json": {"networks": 5, "winner": None},
        "fidelity/x.json": {"rankers": [{"name": "<b>", "tau": 5}]},
        "export/x/parity.json": {"differences": "x"},
        "fit-result.json": {"commands": 5, "winner": "x"},
        "fit.json": {"source": 5, "settings": [{}]},
    }
    for name, document in damaged.items():
        (tiny_run / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny_run / name).write_text(json.dumps(document))
    os.unlink(tiny_run / "supernet.safetensors")
    code, out, err = call("report", tiny_run)
    assert code == 0, (out, err)
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "has not ended (Not shown: a file of the run is damaged" in page
    assert page.count("Not shown") >= 5


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({}, "preprocess.json: the setting 'input_size' of Preprocess is missing"),
        ({"input_size": 8, "mean": [None], "std": [1.0], "classes": []}, "mean=(None,) should be"),
        ({"input_size": 8, "mean": [0.5], "std": [1.0], "classes": ["a", "b"]}, "knows 2 classes, and the images of"),
        (
            {"input_size": 8, "mean": [0.5], "std": [1.0], "classes": ["a"], "longest": 0, "category_ids": [1]},
            "is the export of a detector",
        ),
    ],
)
def test_an_export_that_does_not_fit_is_refused_before_its_code_runs(
    tiny_run: Path, tmp_path: Path, call: Call, document: dict[str, object], fragment: str
) -> None:
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/preprocess.json").write_text(json.dumps(document))
    one_line(call("evaluate", tiny_run, "--exported", tmp_path / "exported", "--run-code"), fragment)


def test_a_front_is_not_written_into_another_folder(tmp_path: Path) -> None:
    front = tmp_path / "front"
    front.mkdir()
    for name in ("front.json", "0123456789abcdef", ".front.json.0123456789abcdef.tmp"):
        (front / name).touch()
    _check_free(front)
    (front / "holiday.png").touch()
    with pytest.raises(InputError, match=r"holds 'holiday\.png', which is not part of a front"):
        _check_free(front)


OPS = ("shuffle3", "shuffle5", "shuffle7")
ARCHS = [json.dumps({f"stage{stage}.block0.op": op for stage in (1, 2, 3)}) for op in OPS]


def statement(path: Path, sql: str) -> None:
    """Executes a statement on an SQLite file."""
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()


def test_a_damaged_cache_ends_a_search_and_fails_no_network(tiny_run: Path, call: Call) -> None:
    command = ("search", tiny_run, "--trials", 3, "--bn-batches", 1, "--force", "--name")
    assert call(*command, "first")[0] == 0
    statement(tiny_run / "scores.db", "UPDATE scores SET metrics = 'x'")
    code, out, err = call(*command, "second")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {tiny_run / 'scores.db'} cannot be read as an evaluation cache")
    assert "evaluating" not in err
    assert not (tiny_run / "search" / "second").exists()
    study = tiny_run / "search" / "first" / "study.db"
    statement(study, "UPDATE trials SET metrics = '{\"accuracy\": 0.5}' WHERE number = 1")
    one_line(call(*command, "first"), f"trial 1 of the study {study} has no 'macs'", "another --name")


def test_damaged_weights_are_named_before_a_training(tiny_run: Path, call: Call) -> None:
    (tiny_run / "supernet.safetensors").write_bytes(b"x")
    one_line(call("retrain", tiny_run, "--arch", ARCHS[0], "--init", "shared"), "supernet.safetensors is truncated")
    one_line(call("fidelity", tiny_run, "--truth", "retrain", "--n", 2), "supernet.safetensors is truncated")
    assert not (tiny_run / "retrain").exists() or not list((tiny_run / "retrain").iterdir())


def test_places_that_are_taken_are_named_before_anything_is_scored(tiny_run: Path, call: Call, tmp_path: Path) -> None:
    (tiny_run / "fidelity").write_text("x")
    one_line(call("fidelity", tiny_run, "--truth", "retrain", "--n", 2), "the report", "lies within a file")
    (tiny_run / "select").write_text("x")
    (tiny_run / "search").write_text("x")
    for command in (("search", tiny_run, "--trials", 1), ("select_network", tiny_run, "--trainings", 2)):
        one_line(call(*command), "lies within a file")
    (tiny_run / "select").unlink()
    (tiny_run / "select").symlink_to(tmp_path)
    one_line(call("select_network", tiny_run, "--trainings", 2), "select is a link that leads out of")
    (tmp_path / "link").symlink_to("nowhere")
    export = ("export", tiny_run, "--arch", ARCHS[0], "--inherit", "--out", tmp_path / "link")
    one_line(call(*export), "is a link that leads nowhere, not a folder")
    (tiny_run / "report.html").mkdir()
    one_line(call("report", tiny_run), "the page", "report.html is a folder, not a file")


def test_other_images_are_refused_in_one_line(tiny_run: Path, call: Call, tmp_path: Path) -> None:
    """The run's 64 calibration images are more than the folder has, which is beside the point."""
    photos = make_folder(tmp_path / "photos")
    one_line(call("evaluate", tiny_run, "--arch", ARCHS[0], "--data.source", photos), "another set of images")
    assert not (tiny_run / "images").exists()


def test_a_result_of_another_training_is_not_taken(tiny_run: Path, call: Call) -> None:
    command = ("retrain", tiny_run, "--arch", ARCHS[0])
    assert call(*command)[0] == 0
    (file,) = (tiny_run / "retrain").glob("*/result.json")
    complete = json.loads(file.read_text())
    for name, value, fragment in (
        ("arch", {}, "arch={} is not of its folder"),
        ("arch", 5, "arch=5 should be a valid dictionary"),
        ("key", "0", "key='0' is not of its folder"),
        ("seed", 1, "seed=1 is not of its folder"),
        ("seed", -1, "seed=-1 should be"),
        ("macs", None, "macs=None should be a valid number"),
    ):
        file.write_text(json.dumps({**complete, name: value}))
        one_line(call(*command), "result.json is damaged", fragment)
    file.write_text(json.dumps({**complete, "validation_accuracy": "x"}))
    run = open_run(tiny_run)
    with pytest.raises(InputError, match=r"result\.json is damaged: validation_accuracy='x' should be a valid number"):
        _Trainer(run, run.config.retrain, shared=False)._outcome(Job(Arch(complete["arch"]), 0, 1.0))


def test_a_detector_without_annotations_names_the_source(call: Call, tmp_path: Path) -> None:
    command = ("train_supernet", "detnas-bccd", "--out", tmp_path / "new")
    one_line(call(*command), "there is no data set ''", "data.source is 'digits', or annotations")
    assert not (tmp_path / "new").exists()


def test_more_labels_than_networks_are_refused_before_any_work(tiny_run: Path, call: Call, tmp_path: Path) -> None:
    one_line(call("fidelity", tiny_run, "--truth", "retrain", "--labels", 20, "--n", 10), "--labels 20", "--n 10")
    assert not (tiny_run / "retrain").exists()
    truth = tmp_path / "truth.csv"
    rows = [f"{digits},0.{number + 1}" for number, digits in enumerate(("000", "111", "222", "012"))]
    truth.write_text("\n".join(["arch,accuracy", *rows]))
    one_line(call("fidelity", tiny_run, "--truth", truth, "--labels", 20), "--labels 20", "the 4 networks in")


def test_a_search_of_other_settings_is_remedied_by_flags(tiny_run: Path, call: Call) -> None:
    command = ("search", tiny_run, "--searcher", "random", "--trials", 2, "--bn-batches", 1)
    assert call(*command)[0] == 0
    remedy = "give another --name, or --resume warm"
    code, _, err = call(*command, "--seed", 5)
    assert code == 2
    assert err.splitlines()[-1].endswith(f"with seed=0, and now with seed=5; repeat --seed 0, or {remedy}")
    code, _, err = call(*command, "--max-macs", "1M")
    assert code == 2
    assert err.splitlines()[-1].endswith(f"1,000,000; keep the setting, or {remedy}")


def test_a_file_without_an_architecture_is_named(tiny_run: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "listed.json"
    for text, fragment in (("[1,2]", "is a JSON object"), ('{"x": 1}', "has no choice 'x'")):
        file.write_text(text)
        one_line(call("retrain", tiny_run, "--arch", file), "listed.json", fragment)
    one_line(call("retrain", tiny_run, "--arch", '{"x": 1}'), "error: space 'shufflenet-small' has no choice 'x'")


def test_a_folder_that_is_not_there_predicts_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        command = ("predict", tmp_path / name, tmp_path / "file", "--run-code")
        one_line(call(*command), f"there is no folder '{tmp_path / name}'")


def test_a_place_on_no_front_is_named(tiny_run: Path, call: Call) -> None:
    for place in ("front:x", "front:", "front:-1"):
        for command in ("evaluate", "retrain", "export"):
            one_line(
                call(command, tiny_run, "--search", "nsga2", "--arch", place), f"'{place}' is no place on the front"
            )


def test_a_retraining_that_is_missing_is_named_with_its_command(tiny_run: Path, call: Call) -> None:
    result = call("export", tiny_run, "--arch", ARCHS[0], "--seed", 7)
    one_line(
        result, "no retraining of the network", f"with seed 7 has finished in {tiny_run}; run python tools/retrain.py"
    )
    assert call("retrain", *shlex.split(result[2].partition("tools/retrain.py ")[2]))[0] == 0
    one_line(
        call("predict", tiny_run, "--arch", ARCHS[0], "--seed", 8), f"--arch {Arch.from_json(ARCHS[0]).key} --seed 8"
    )


def test_one_of_the_damaged_images_of_a_folder_is_named(call: Call, tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos")
    images = [path for path in sorted(photos.rglob("*")) if path.is_file()]
    for path in images:
        path.write_bytes(b"torn")
    one_line(call("fit", photos, "--out", tmp_path / "run"), f"the {len(images)} images looked at", str(images[0]))
