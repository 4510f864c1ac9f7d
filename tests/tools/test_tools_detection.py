"""The scripts on detectors: from pre-training to drawn predictions, killed and resumed, and with wrong input."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detection import wiring_arch
from detection.data.crops import digit_crops
from detection.data.images import DetectionSet
from helpers.coco import change, make_coco
from helpers.scripts import Call, one_line, run_script
from searchers import Study, list_searchers
from supernet.chain import Chain
from supernet.config import Data, DataSummary
from supernet.data.images import Splits
from supernet.errors import InputError
from supernet.training.checkpoint import load_state, load_weights, save_state
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.retrain import fresh_network, retrain_folder
from supernet_tools.pipeline.run import NETWORK, torch_generator
from supernet_tools.pipeline.runs import kind_of, open_run
from supernet_tools.pipeline.search import create_searcher
from supernet_tools.pipeline.tables import _cell
from supernet_tools.pipeline.trust import trust

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
SPACE = ("depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
PRETRAIN = (
    "detnas-digits-pretrain",
    "--data.source",
    f"{__name__}:few_crops",
    "--data.size",
    16,
    "--data.calibration",
    16,
    "--train.epochs",
    1,
    "--retrain.epochs",
    1,
    "--train.batch",
    32,
    "--retrain.batch",
    32,
    "--lead-epochs",
    0.5,
    "--space-settings",
    *SPACE,
)
SMALL = (
    "detnas-digits",
    "--data.size",
    64,
    "--data.compose",
    24,
    6,
    6,
    "--data.calibration",
    16,
    "--head-width",
    8,
    "--head-convs",
    1,
    "--train.batch",
    8,
    "--retrain.epochs",
    1,
    "--retrain.batch",
    8,
    "--scoring-batch",
    6,
    "--backbone-settings",
    *SPACE,
)
TWO_EPOCHS = ("--train.epochs", 2)
FEW = ("--bn-batches", 1)
TRUST = ("--trust", f"{__name__}:few_crops")  # for commands that use the images of the pre-training


def small(*flags: object) -> tuple[object, ...]:
    """The small recipe with further flags, which replace its own of the same name: a flag given twice is refused."""
    replaced = {flag for flag in flags if str(flag).startswith("--")}
    kept: list[object] = []
    name: object = ""
    for word in (*SMALL, *TWO_EPOCHS):
        name = word if str(word).startswith("--") else name
        if name not in replaced:
            kept.append(word)
    return (*kept, *flags)


def few_crops(config: Data) -> Splits:
    """Returns crops of a few images."""
    return digit_crops(config, counts=(24, 6, 6))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's supernet, trained on crops of the digits."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    assert run_script("train_supernet", *PRETRAIN, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def run_folder(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's supernet that starts from its weights."""
    out = tmp_path_factory.mktemp("detector") / "run"
    assert run_script("train_supernet", *small(*TRUST), "--pretrained", pretrained, "--out", out) == 0
    return out


def killed(done: Callable[[], bool], name: str, *arguments: object) -> None:
    """Runs a script in a process of its own and kills it as soon as `done()` holds."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not done():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


# -- the stages -------------------------------------------------------------------------------------------------------


def test_search_retrain_export_evaluate_predict(
    pretrained: Path, run_folder: Path, call: Call, tmp_path: Path, forked_runner: None
) -> None:
    """The three stages of DetNAS; the backbone of the winner is pre-trained on classification first."""
    limit = open_run(run_folder).cost.extremes("backbone_macs")[0] * 1.2
    flags = ("--searcher", "detnas", "--trials", 5, "--batch", 3, "--max-backbone-macs", limit, *FEW)
    code, out, err = call("search", run_folder, *flags)
    assert code == 0, err
    arch = json.loads(out.strip().splitlines()[-1])
    assert {name.partition(".")[0] for name in arch} == {"backbone"}
    code, out, err = call("retrain", run_folder, "--search", "detnas", *TRUST)
    assert code == 0, err
    assert err.count("training:") == 2
    retrained = next((run_folder / "retrain").glob("*-seed0"))
    result = json.loads((retrained / "result.json").read_text())
    (row,) = json.loads((retrained / "history.json").read_text())["epochs"]
    assert row["validation_map50"] == pytest.approx(result["validation_map50"])
    assert result["best_epoch"] == 1
    assert (retrained / "best.safetensors").is_file()
    rows = json.loads((run_folder / "history.json").read_text())["epochs"]
    assert all(f"{which}_map50" in row for row in rows for which in ("small", "large", "random"))
    assert result["arch"] == arch
    assert result["backbone_macs"] <= limit
    assert {"test_map", "test_map50", "test_mar100", "validation_map50"} <= result.keys()
    assert next((pretrained / "retrain").glob("*-seed0")).is_dir()
    code, out, err = call("export", run_folder, "--search", "detnas")
    assert code == 0, err
    folder = next((run_folder / "export").iterdir())
    assert max(json.loads((folder / "parity.json").read_text())["differences"].values()) <= 1e-5
    code, _, err = call("draw", run_folder, "--arch", folder / "arch.json", "--out", tmp_path / "found.svg")
    assert code == 0, err
    code, out, err = call("evaluate", run_folder, "--exported", folder, "--run-code")
    assert code == 0, err
    assert f"│ mar100     │ {shown(result['test_mar100'])}" in out
    Image.new("RGB", (80, 50), "gray").save(tmp_path / "gray.png")
    code, out, err = call(
        "predict", folder, "--run-code", "--images", tmp_path / "gray.png", "--threshold", 0, "--out", tmp_path / "x"
    )
    assert code == 0, err
    assert "gray.png: " in out
    assert Image.open(tmp_path / "x" / "gray.png").size == (480, 300)
    code, out, err = call("predict", run_folder, "--search", "detnas", "--test", 2, "--out", tmp_path / "y")
    assert code == 0, err
    tables = ["detections.csv", "detections.json"]
    assert sorted(path.name for path in (tmp_path / "y").iterdir()) == [*tables, "test0.png", "test1.png"]
    ids = {row["image_id"] for row in json.loads((tmp_path / "y" / "detections.json").read_text())}
    assert ids <= set(open_run(run_folder).data.test.annotations.ids[:2].tolist())


def shown(value: float) -> str:
    """Returns a number as tables show it."""
    return _cell(value)


def test_every_searcher_maximises_map(run_folder: Path) -> None:
    opened = open_run(run_folder)
    free = opened.limits({})
    for name in list_searchers():
        if name not in ("optuna", "pnas"):  # an extra package; a space with a ladder
            searcher = create_searcher(name, opened, free, 0, ())
            assert searcher.metric == "map", name
    assert create_searcher("nsga2", opened, free, 0, ()).objectives == ("map", "-macs")
    for_map50 = create_searcher("random", opened, free, 0, ("metric=map50",))
    assert for_map50.metric == "map50"


def test_the_backbone_starts_as_the_recipe_says(pretrained: Path, run_folder: Path) -> None:
    """A supernet starts from the supernet's weights; a retraining from those, from its own pre-training or fresh."""
    trust(TRUST[1:])
    opened, backbone = open_run(run_folder), open_run(pretrained)
    arch = opened.space.normal_form(opened.space.from_indices([1, 2, 3]))
    fresh = opened.kind.supernet(opened.summary, torch_generator(0, "supernet"))
    opened.kind.begin(fresh, opened.data)
    before = load_file(pretrained / "supernet.safetensors")
    stem = "stem.conv.weight"
    assert stem in before
    for path in backbone.supernet.step_paths[:-1]:
        mine = fresh.get_submodule(f"backbone.{path}").block.state_dict()
        assert mine
        assert all(torch.equal(value, before[f"{path}.{name}"]) for name, value in mine.items())
    drawn = {}
    for start in ("scratch", "supernet", "classification"):
        kind = kind_of(dataclasses.replace(opened.config, start=start))
        network = kind.network(opened.summary, arch, torch_generator(0, "network"))
        kind.prepare(network, arch, 0)
        drawn[start] = network.state_dict()["backbone.stem.block.conv.weight"]
    alone = fresh_network(backbone, arch.sub("backbone"), 0)
    file = retrain_folder(backbone, arch.sub("backbone"), 0) / NETWORK
    load_weights(file, alone)
    assert torch.equal(drawn["classification"], alone.state_dict()["stem.conv.weight"])
    assert torch.equal(drawn["supernet"], before[stem])
    assert not torch.equal(drawn["scratch"], before[stem])
    assert not torch.equal(drawn["classification"], before[stem])


@pytest.mark.slow  # tests/tools/test_tools_fidelity.py compares rankings with retrained classifiers
def test_rankings_are_compared_with_retrained_detectors(run_folder: Path, call: Call) -> None:
    short = ("--epochs", 1)
    code, out, err = call(
        "fidelity", run_folder, "--truth", "retrain", "--n", 2, "--resamples", 20, *short, *FEW, *TRUST
    )
    assert code == 0, err
    assert "agreement with the truth, 2 networks" in out
    assert "shared map50" in out
    report = json.loads(next((run_folder / "fidelity").glob("retrain-map-*.json")).read_text())
    assert report["settings"]["score"] == "map"
    search = ("--searcher", "random", "--name", "few", "--trials", 2, *FEW)
    assert call("search", run_folder, *search)[0] == 0
    code, out, err = call("retrain", run_folder, "--search", "few", "--top", 1, "--random", 1, *TRUST)
    assert code == 0, err
    assert "test map per seed" in out
    assert "map" in out.strip().splitlines()[-1]
    flags = ("--search", "few", "--trainings", 2, "--random", 0, *FEW, *TRUST)
    code, out, err = call("select_network", run_folder, *flags)
    assert code == 0, err
    document = json.loads(next((run_folder / "select").glob("*.json")).read_text())
    assert {row["arm"] for row in document["networks"]} == {"search", "simple"}
    assert "validation map per seed" in out


@pytest.mark.slow  # tests/detection/test_fixed_backbones.py searches pyramids without scripts
def test_a_pyramid_is_searched_on_a_fixed_backbone(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fixed = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})
    neck = ("--neck", "nasfpn", "--start", "scratch", "--backbone-arch", fixed)
    settings = ("--settings", "levels=2", "repeats=1", "cells=5", "ordered=true", "drop_block=0.1")
    code, _, err = call("train_supernet", *small("--train.epochs", 1, *neck, *settings, "--out", out))
    assert code == 0, err
    code, out_text, err = call("search", out, "--searcher", "reinforce", "--trials", 4, "--batch", 4, *FEW)
    assert code == 0, err
    arch = json.loads(out_text.strip().splitlines()[-1])
    assert {name.partition(".")[0] for name in arch} == {"neck"}
    assert "neck.cell1.first" in arch
    beside = ("--score", "map", "--searchers", "random", "reinforce", "--evaluations", 4, "--points", 4, "--batch", 4)
    code, shown, err = call("benchmarks.search", "supernet", out, *beside, "--seeds", 2, "--bn-batches", 1)
    assert code == 0, err
    assert shown.count("│ reinforce │") == 3  # of each table, and its difference to random search
    assert "above that of random search with the same seed" in " ".join(shown.split())


@pytest.mark.slow  # each is searched alone in another test
def test_backbone_and_pyramid_are_searched_together(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    neck = ("--neck", "nasfpn", "--start", "scratch", "--settings", "levels=2", "repeats=1", "cells=5")
    code, _, err = call("train_supernet", *small("--train.epochs", 1, *neck, "--out", out))
    assert code == 0, err
    few = ("population_size=4", "parents=2", "mutants=1", "crossovers=1")
    trials = ("--searcher", "detnas", "--trials", 8, "--batch", 4)
    code, out_text, err = call("search", out, *trials, *FEW, "--settings", *few)
    assert code == 0, err
    arch = out_text.strip().splitlines()[-1]
    assert {name.partition(".")[0] for name in json.loads(arch)} == {"backbone", "neck"}
    code, _, err = call("retrain", out, "--search", "detnas")
    assert code == 0, err
    code, _, err = call("draw", out, "--arch", arch, "--out", tmp_path / "both.svg")
    assert code == 0, err
    assert {"stage3.block0", "c5 ="} <= set(re.findall(r"stage\d\.block\d|c\d =", (tmp_path / "both.svg").read_text()))


@pytest.mark.slow  # tests/scoring/test_trunk_features.py scores such images by the same class
def test_images_left_on_disk_are_scored_from_there(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set larger than `data.memory` is read batch by batch, and scores are the same."""
    annotations = make_coco(tmp_path, images=24, size=(64, 64))
    results = []
    for memory in (2**31, 0):
        out = tmp_path / str(memory)
        code, _, err = call(
            "train_supernet",
            "detnas-bccd",
            *SMALL[1:3],
            *SMALL[7:],  # without --data.compose, which is for digits
            "--data.longest",
            64,
            "--data.workers",
            0,
            "--data.source",
            annotations,
            "--data.images",
            tmp_path,
            "--data.memory",
            memory,
            "--train.epochs",
            1,
            "--lead",
            "",
            "--lead-epochs",
            0,
            "--out",
            out,
        )
        assert code == 0, err
        code, _, err = call("search", out, "--searcher", "random", "--trials", 3, *FEW)
        assert code == 0, err
        space = open_run(out).space
        with Study(out / "search" / "random" / "study.db", space) as study:
            results.append([(trial.key, dict(trial.metrics)) for trial in study.trials()])
        monkeypatch.setattr(DetectionSet, "images", refuse_to_load)
    assert len(results[0]) == 3
    assert results[0] == results[1]


def summary_of(*classes: str) -> DataSummary:
    """The facts about a data set of which only the classes matter."""
    return DataSummary(classes, 3, 64, (0.5,) * 3, (0.5,) * 3, 1, 1, 1, 1, "")


def refuse_to_load(images: DetectionSet) -> None:
    raise AssertionError(f"{len(images)} images were loaded into memory")


def built(name: str, *classes: str) -> Chain:
    """Returns the supernet of a recipe without memory for its weights; the data consist of class names only."""
    kind = kind_of(kind_of(dataclasses.replace(RECIPES[name](), start="scratch")).resolved())
    with torch.device("meta"):
        return kind.supernet(summary_of(*classes))


@pytest.mark.slow
def test_every_recipe_builds_its_detector() -> None:
    names = [name for name, make in RECIPES.items() if isinstance(make(), DetectorRun)]
    sizes = {name: built(name, "cat", "dog").space.size() for name in names}
    assert len(sizes) == 10
    assert sizes["detnas-coco-fpn"] == sizes["detnas-voc-retinanet"] == 4**20
    assert round(sizes["nasfpn-coco"] / 1e15, 1) == 3.0


@pytest.mark.slow  # tests/detection/test_detectors_behaviour.py builds a detector of this size
def test_a_recipe_of_paper_scale_builds_its_detector() -> None:
    assert built("detnas-voc-retinanet", "cat", "dog").space.size() == 4**20


@pytest.mark.slow  # tests/detection/test_nasfpn.py counts the published pyramid
def test_the_final_recipe_of_nasfpn_builds_the_published_detector() -> None:
    supernet = built("nasfpn-coco-final", *map(str, range(91)))
    with torch.device("meta"):
        published = supernet.subnet(wiring_arch("nasfpn-7", supernet.space, prefix="neck"))
    assert supernet.input_shape == (3, 640, 640)
    assert round(sum(p.numel() for p in published.parameters()) / 1e6, 1) == 60.1


# -- killed -----------------------------------------------------------------------------------------------------------


def fine_tuning(pretrained: Path, out: Path) -> tuple[object, ...]:
    """Returns the arguments with which the supernet of `run_folder` is trained, saving after every step."""
    return (*small(*TRUST), "--pretrained", pretrained, "--out", out, "--train.save-seconds", 0)


def check_resumed(out: Path, run_folder: Path) -> None:
    """Checks that a resumed training is the one that nothing stopped."""
    assert (out / "supernet.safetensors").read_bytes() == (run_folder / "supernet.safetensors").read_bytes()
    histories = [json.loads((folder / "history.json").read_text()) for folder in (out, run_folder)]
    assert histories[0] == histories[1]
    assert {"loss", "classification", "bbox_regression"} <= histories[0]["epochs"][0].keys()


@pytest.mark.slow  # tests/training/test_train.py stops trainings of classifiers
def test_a_stopped_fine_tuning_resumes_to_identical_weights(
    pretrained: Path, run_folder: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 2

    def save_and_stop(path: Path, state: dict[str, Any]) -> None:
        save_state(path, state)
        if state["step"] == step:
            raise SystemExit(9)

    flags = fine_tuning(pretrained, tmp_path / "run")
    monkeypatch.setattr("supernet.training.state.save_state", save_and_stop)
    assert call("train_supernet", *flags)[0] == 9
    monkeypatch.undo()
    assert not (tmp_path / "run" / "supernet.safetensors").exists()
    assert load_state(tmp_path / "run" / "state.pt")["step"] == step
    code, _, err = call("train_supernet", *flags)
    assert code == 0, err
    check_resumed(tmp_path / "run", run_folder)


@pytest.mark.slow  # tests/training/test_train.py kills trainings
def test_sigkill_during_fine_tuning_gives_identical_weights(
    pretrained: Path, run_folder: Path, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = fine_tuning(pretrained, out)
    killed((out / "state.pt").exists, "train_supernet", *flags)
    assert not (out / "supernet.safetensors").exists()
    assert 0 < torch.load(out / "state.pt", weights_only=True)["step"] < 6
    code, _, err = call("train_supernet", *flags)
    assert code == 0, err
    check_resumed(out, run_folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals a process group")
def test_a_signal_to_all_processes_ends_after_a_step(pretrained: Path, call: Call, tmp_path: Path) -> None:
    """Terminals and job schedulers signal the whole process group, workers included."""
    out = tmp_path / "run"
    flags = small(*TRUST, "--pretrained", pretrained, "--out", out, "--train.epochs", 200, "--train.save-seconds", 0)
    command = [sys.executable, TOOLS / "train_supernet.py", *map(str, flags)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (out / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert torch.load(out / "state.pt", weights_only=True)["step"] > 0


@pytest.mark.slow  # tests/searchers/test_kill.py kills searches that score with a function
def test_sigkill_during_a_search_gives_identical_trials(run_folder: Path, call: Call, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy, ignore=shutil.ignore_patterns("search", "scores.db*"))
    file = copy / "search" / "cut" / "study.db"
    flags = ("--searcher", "aging-evolution", "--trials", 10, "--settings", "population_size=4", *FEW)

    def has_two_trials() -> bool:
        if not file.exists():
            return False
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            try:
                return bool(database.execute("SELECT count(*) FROM trials").fetchone()[0] >= 2)
            except sqlite3.OperationalError:  # no table yet
                return False

    killed(has_two_trials, "search", copy, "--name", "cut", *flags)
    for folder, name in ((copy, "cut"), (run_folder, "whole")):
        code, _, err = call("search", folder, "--name", name, *flags)
        assert code == 0, err
    space = open_run(copy).space
    results = []
    for path in (file, run_folder / "search" / "whole" / "study.db"):
        with Study(path, space) as study:
            results.append(study.trials())
    assert len(results[0]) == 10
    assert results[0] == results[1]


@pytest.mark.slow  # tests/detection/test_detection_data.py reads such a file
def test_images_without_objects_are_trained_on_and_rank_nothing(call: Call, tmp_path: Path) -> None:
    """They are legal; that nothing can be found on them is said, and a search by mAP is refused after some steps."""
    file = change(make_coco(tmp_path, images=40), lambda document: document["annotations"].clear())
    out, images = tmp_path / "run", ("--data.source", file, "--data.images", file.parent, "--data.size", 64)
    sizes = ("--data.calibration", 4, "--head-width", 8, "--head-convs", 1, "--train.batch", 1, "--retrain.batch", 8)
    steps = ("--train.epochs", 1, "--retrain.epochs", 1, "--train.lr", 1e-4, "--retrain.lr", 1e-4)
    lead = ("--lead", "", "--lead-epochs", 0, "--backbone-settings", *SPACE)
    code, _, err = call("train_supernet", "detnas-bccd", *images, *sizes, *steps, *lead, "--out", out)
    assert code == 0, err
    document = json.loads((out / "run.json").read_text())
    record, scored = document["shared_weights"], document["data"]["n_validation"]
    assert (record["best"], record["learned"], record["images"]) == (-1.0, False, scored)
    search = ("search", out, "--searcher", "random", "--trials", 2)
    one_line(call(*search), f"none of the {scored} images of the search-validation split", "--force")
    assert call(*search, "--force")[0] == 0
    code, _, err = call("retrain", out, "--search", "random")
    assert code == 0, err
    result = json.loads(next((out / "retrain").glob("*/result.json")).read_text())
    assert (result["test_map"], result["validation_map"]) == (-1.0, -1.0)


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_recipes_that_cannot_start_are_refused(pretrained: Path, run_folder: Path, call: Call, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    trusted = (*out, *TRUST, "--pretrained")
    for flags, messages in (
        (out, ("start='classification'", "pretrained")),
        ((*out, "--pretrained", tmp_path / "no"), ("pretrained=", "no' holds no")),
        ((*out, "--pretrained", run_folder), ("does not hold a classifier's run",)),
        ((*out, "--pretrained", pretrained / "supernet.safetensors"), ("run's folder",)),
        ((*out, "--pretrained", pretrained), ("--trust", "data.source")),
        ((*trusted, pretrained, "--backbone-settings", "depths=[1, 1, 1]"), ("widths", "must be the same")),
    ):
        one_line(call("train_supernet", *small(*flags)), *messages)
    for flags, messages in (
        (("--detector", "retinanett"), ("no detector 'retinanett'", "'retinanet'")),
        (("--settings", "level=2"), ("level",)),
        (("--settings", "norm=2"), ("cannot take norm",)),
        (
            ("--data.size", 32, "--settings", "levels=2", "pooled_levels=5", "--neck", "nasfpn"),
            ("smaller than the largest stride",),
        ),
        (("--train.distill", "--sampler", "sandwich"), ("distill",)),
        (("--train.batch", 25), ("batch of 25", "24 images")),
        (("--window.cost", "flops", "--window.high", 1), ("flops",)),
        (("--data.source", "no.json"), ("no.json",)),
    ):
        one_line(call("train_supernet", *small(*out, "--start", "scratch", *flags)), *messages)
    assert not (tmp_path / "run").exists()


def test_invalid_limits_and_images_are_refused(pretrained: Path, run_folder: Path, call: Call, tmp_path: Path) -> None:
    one_line(call("search", pretrained, *TRUST, "--max-backbone-macs", 1e8), "no cost 'backbone_macs'")
    one_line(call("search", run_folder, "--max-backbone-macs", 10), "no architecture", "backbone_macs <= 10")
    one_line(
        call("search", run_folder, "--searcher", "nsga2", "--settings", 'objectives=["accuracy", "-macs"]'),
        "'accuracy'",
    )
    one_line(call("fidelity", run_folder, "--truth", "retrain", "--score", "loss"), "not scored by 'loss'")
    one_line(call("morphnet", run_folder, "--max-macs", 1e6), "detector")
    one_line(call("predict", run_folder, "--images", tmp_path / "no.png"), "no image file")
    one_line(call("predict", run_folder, "--threshold", 2), "threshold=2.0")
    one_line(call("predict", pretrained, *TRUST), "no search 'aging-evolution'")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    (tmp_path / "preprocess.json").write_text(json.dumps({"input_size": 8}))
    one_line(call("predict", tmp_path, "--images", tmp_path / "torn.png"), "model.py is executed", "--run-code")
    one_line(call("predict", tmp_path, "--run-code", "--images", tmp_path / "torn.png"), "preprocess.json", "'mean'")


def test_a_detector_is_exported_after_some_of_its_repeats() -> None:
    from torch import nn

    from helpers.detector_cases import images, same, tiny, tiny_network
    from supernet_tools.pipeline.export import shortened

    settings = {"neck": "nasfpn", "repeats": 2, "head_convs": 1, "anytime": True, "norm": "batch"}
    with torch.device("meta"):
        space = tiny("retinanet", **settings).space
    network: Any = tiny_network("retinanet", **settings, arch=space.sample(random.Random(0))).eval()
    assert same(shortened(network, 2)(images()), network(images()))
    assert sum(p.numel() for p in shortened(network, 1).parameters()) < sum(p.numel() for p in network.parameters())
    with pytest.raises(InputError, match="has 2 repeats"):
        shortened(network, 3)
    with pytest.raises(InputError, match="repeats=1 is for detectors with NAS-FPN"):
        shortened(nn.Identity(), 1)
