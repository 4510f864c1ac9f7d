"""From a folder of images with one command: what is derived, kills, the report in a browser, predictions."""

import csv
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import supernet_tools.pipeline.fit as pipeline
from helpers.browser import browser
from helpers.scripts import Call, one_line, run_script
from supernet.cost import CostTable
from supernet.files import read_json
from supernet.ranking.rivals import evenly_spaced
from supernet.space import Arch
from supernet.spaces import build
from supernet_tools.fit import Fit
from supernet_tools.pipeline.choices import Budget, Settings, SourceFacts, Timing
from supernet_tools.pipeline.command_line import parse_recipe
from supernet_tools.pipeline.derive import derive, recipe
from supernet_tools.pipeline.inspect_data import inspect_source
from supernet_tools.pipeline.page import plain
from supernet_tools.pipeline.per_class import calibration_error
from supernet_tools.pipeline.recipes import RECIPES
from supernet_tools.pipeline.report import report_stage
from supernet_tools.pipeline.runs import open_run

ROOT = Path(__file__).parents[2]
CLASSES = ("<script>alert(1)", "a b & <b>x", "猫 🌷")
"""Names of classes that a page must show as they are, in the order of their labels."""
TINY = ("--space", "shufflenet-small", "--space-settings", "depths=[1, 1, 1]", "widths=[8, 16, 24]", "stem=4")
FEW = ("--size", 16, "--batch", 16, "--epochs", 2, "--trials", 8, "--trainings", 2, "--retrain-epochs", 1, *TINY)

PHOTOS = SourceFacts("folder", ("a", "b", "c", "d", "e"), (700, 800, 700, 700, 770), 0, 550, (180, 240, 500), 3)


# -- what is derived --------------------------------------------------------------------------------------------------


def test_every_choice_has_a_reason_and_a_flag() -> None:
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(Fit)}
    for budget in (Budget(), Budget(pretrained="w.pth", model="resnet18"), Budget(minutes=600, max_macs=5e6)):
        for row in derive(PHOTOS, budget).rows:
            assert row.reason
            assert row.flag in flags


def test_given_values_are_kept_and_the_others_follow() -> None:
    settings = derive(PHOTOS, Budget(), {"size": 96, "epochs": 7})
    assert (settings["size"], settings["epochs"]) == (96, 7)
    assert {row.name for row in settings.rows if row.reason == "given"} == {"size", "epochs"}
    assert any("stem_stride=2" in text for text in settings["space_settings"])


def test_more_time_gives_larger_images_and_smaller_sets_smaller_batches() -> None:
    sizes = [derive(PHOTOS, Budget(minutes=minutes))["size"] for minutes in (1, 10, 60, 600)]
    assert sizes == sorted(sizes)
    assert sizes[1] == 64
    assert sizes[-1] <= 240
    small = replace(PHOTOS, counts=(20, 20, 20, 20, 20), sides=(20, 28, 40))
    assert derive(small, Budget())["batch"] <= 12
    assert derive(small, Budget())["size"] == 24
    assert derive(replace(PHOTOS, counts=(10_000,) * 5), Budget())["validation"] == 0.1


def test_pretrained_weights_choose_the_elastic_space() -> None:
    settings = derive(PHOTOS, Budget(pretrained="lite0.pth", model="tf_efficientnet_lite0"))
    assert settings["space"] == "elastic"
    assert settings["space_settings"][:2] == ("model=tf_efficientnet_lite0", "resolutions=[64, 80]")
    assert settings["size"] >= 96
    assert settings["init"] == "shared"
    config = recipe("photos", PHOTOS, settings, pretrained="lite0.pth", seed=3, device="cpu")
    assert (config.sampler, config.pretrained, config.train.seed) == ("sandwich", "lite0.pth", 3)
    assert config.train.distill
    assert 0 < config.largest_epochs < config.train.epochs  # the full network first, which the others learn from
    assert settings["front"] >= 5
    with_front = derive(PHOTOS, Budget(pretrained="lite0.pth", model="resnet18"), {"front": 2})
    assert with_front["front"] == 2
    assert not any("expansions" in text for text in with_front["space_settings"])


def test_few_passes_leave_images_as_they_are_while_weights_are_shared() -> None:
    shares = {}
    for epochs in (5, 20, 21, 60):
        config = recipe(
            "photos", PHOTOS, derive(PHOTOS, Budget(), {"epochs": epochs}), pretrained="", seed=0, device="cpu"
        )
        shares[epochs] = config.shared_augment
        assert config.data.augment.scale == 0.5  # which the final networks learn from
    assert shares == {5: 0.0, 20: 0.0, 21: 1.0, 60: 1.0}
    settings = derive(PHOTOS, Budget(pretrained="lite0.pth", model="tf_efficientnet_lite0"), {"epochs": 5})
    assert recipe("photos", PHOTOS, settings, pretrained="lite0.pth", seed=0, device="cpu").shared_augment == 1.0


def test_the_networks_of_a_front_are_spread_over_their_costs() -> None:
    costs = (1e6, 1.1e6, 1.2e6, 4e6, 15e6, 16e6)
    assert [costs[place] for place in evenly_spaced(costs, 3)] == [1e6, 4e6, 16e6]
    assert evenly_spaced(costs, 6) == evenly_spaced(costs, 9) == list(range(6))
    assert evenly_spaced(costs, 1) == [5]
    assert evenly_spaced(costs[::-1], 2) == [5, 0]
    assert evenly_spaced((0.0, 5.0, 1e6), 2) == [0, 2]
    assert evenly_spaced(costs, 0) == []


@pytest.mark.parametrize(("minutes", "limit"), [(10, 5e5), (10, 5e6), (10, 3e7)])
def test_the_space_has_networks_on_both_sides_of_the_limit(minutes: float, limit: float) -> None:
    settings = derive(PHOTOS, Budget(minutes=minutes, max_macs=limit))
    arguments: dict[str, Any] = {"num_classes": 5, "input_size": settings["size"], "in_channels": 3}
    for text in settings["space_settings"]:
        name, _, value = text.partition("=")
        arguments[name] = json.loads(value)
    with torch.device("meta"):
        extremes = CostTable(build(settings["space"], "supernet", arguments)).extremes("macs")
    assert extremes is not None
    assert extremes[0] < limit < extremes[1]
    assert extremes[1] > 10 * extremes[0]


def test_the_budgets_follow_from_the_timing() -> None:
    timing = Timing(step=0.1, network_step=0.1, score=0.5, steps=50, spent=20)
    settings = derive(PHOTOS, Budget(minutes=10, timing=timing))
    assert settings["epochs"] == int(0.45 * 580 / 5)
    assert settings["trials"] == int(0.12 * 580 / 0.5) // 20 * 20
    training = settings["trainings"] * settings["retrain_epochs"] * 5
    assert training <= 0.33 * 580
    slow = derive(PHOTOS, Budget(minutes=10, timing=replace(timing, step=50.0, network_step=50.0, score=50.0)))
    assert (slow["epochs"], slow["trials"], slow["trainings"], slow["retrain_epochs"]) == (2, 40, 3, 1)
    assert isinstance(settings, Settings)


def test_with_trained_weights_and_little_time_no_finalist_is_trained() -> None:
    timing = Timing(
        step=0.645, network_step=0.405, score=1.09, steps=82, spent=23
    )  # of EfficientNet-Lite0 at 96 pixels
    budget = Budget(minutes=10, pretrained="lite0.pth", model="tf_efficientnet_lite0", timing=timing)
    short, long, asked = (
        derive(PHOTOS, budget),
        derive(PHOTOS, replace(budget, minutes=60)),
        derive(PHOTOS, budget, {"trainings": 2}),
    )
    assert short["init"] == "inherit"
    assert not {row.name for row in short.rows} & {"trainings", "retrain_epochs"}
    assert long["init"] == asked["init"] == "shared"
    assert short["epochs"] > asked["epochs"]  # the time of the trainings goes to the supernet
    alone, several = timing.network_step * timing.steps, timing.step * timing.steps
    time_of = {
        name: s["largest_epochs"] * alone + (s["epochs"] - s["largest_epochs"]) * several
        for name, s in (("short", short), ("long", long))
    }
    assert 0.85 * 600 > time_of["short"] > 0.85 * 300
    assert short["largest_epochs"] > 0.4 * short["epochs"]  # the rest of the time goes to the full network
    assert derive(PHOTOS, budget, {"epochs": 10})["largest_epochs"] == 4
    assert derive(PHOTOS, budget, {"epochs": 10, "largest_epochs": 7.0})["largest_epochs"] == 7
    config = recipe("photos", PHOTOS, short, pretrained="lite0.pth", seed=3, device="cpu")
    assert config.retrain.epochs == config.train.epochs  # of a later `retrain`


# -- what is found ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise in their own colour, with names that are hostile to pages."""
    folder = tmp_path_factory.mktemp("photos") / "flowers"
    rng = numpy.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 160, (20, 24, 3), dtype=numpy.uint8)
            pixels[..., number] += 90
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    (folder / "notes.txt").write_text("x")
    return folder


def test_a_folder_is_looked_at_without_decoding_it(photos: Path) -> None:
    facts = inspect_source(str(photos))
    assert facts.classes == CLASSES
    assert facts.counts == (40, 40, 40)
    assert facts.sides == (20, 20, 20)
    assert "notes.txt" in " ".join(facts.passed)
    digits = inspect_source("digits")
    assert (sum(digits.counts), digits.channels) == (1797, 1)


def test_without_arguments_it_explains_itself(call: Call) -> None:
    code, out, err = call("fit")
    assert (code, err) == (2, "error: name a source of images\n")
    assert "photos --max-macs 5M" in out
    assert "Stopped at any time" in out


def test_wrong_requests_are_refused_in_one_line(call: Call, photos: Path, tmp_path: Path) -> None:
    one_line(call("fit", tmp_path / "none"), "there is no data set")
    one_line(call("fit", photos, "--minutes", 0), "minutes=0.0")
    none = ("--init", "inherit", "--retrain-epochs", 3, "--out", tmp_path / "x")
    one_line(call("fit", photos, *none), "trains no finalist; leave retrain_epochs out")
    one_line(call("fit", photos, "--largest-epochs", 1), "largest_epochs is for a start with trained weights")
    one_line(call("fit", photos, "--max-macs", "5ms"), "'5ms' should be a number")
    one_line(call("fit", photos, "--pretrained", tmp_path / "no.pth", "--out", tmp_path / "x"), "no.pth is not a file")
    few = ("--validation", 0.999, "--batch", 2, "--out", tmp_path / "x" / "y")
    one_line(call("fit", photos, *few), "too few for validation=0.999", "0 would be trained on")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    one_line(call("train_supernet", "quickstart", "--out", tmp_path / "gone"), "gone is a link to nothing")
    assert not (tmp_path / "x").exists()


# -- from images to an export -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its search and went on; its folder has a hostile name too."""
    out = tmp_path_factory.mktemp("fit") / "<img src=x onerror=alert(2)>"
    command = ("fit", photos, "--out", out, *FEW, "--max-macs", "110k")
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        from helpers.apart import server

        patch.setattr("supernet.export.parity._run_runner", server)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(pipeline, "search_stage", stopped)
            assert run_script(*command) == 130
        before = {name: (out / name).read_bytes() for name in ("fit.json", "supernet.safetensors", "run.json")}
        partial = report_stage(out).read_text()
        assert "This report is partial: there is no search yet" in partial
        assert run_script(*command) == 0
        assert {name: (out / name).read_bytes() for name in before} == before
    return out


def test_the_result_is_exported_and_every_stage_has_its_command(
    fitted: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = read_json(fitted / "fit-result.json")
    assert result["winner"]["macs"] <= 110_000
    assert (fitted / result["export"] / "model.py").is_file()
    assert max(result["differences"].values()) < 1e-5
    mode = (fitted / result["export"] / "model.safetensors").stat().st_mode
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(mode) == 0o666 & ~umask
    words = shlex.split(result["commands"]["train"])
    at = words.index("spos-images")
    monkeypatch.setattr(sys, "argv", ["train", *words[at:]])
    config, out, *_ = parse_recipe(RECIPES, "")
    assert config == open_run(fitted).config  # the single command continues the same run
    assert out == fitted
    assert {"search", "select", "export", "report"} <= result["commands"].keys()


def test_without_a_race_the_best_shared_weights_are_exported(
    photos: Path, tmp_path: Path, call: Call, forked_runner: None
) -> None:
    out = tmp_path / "run"
    few = ("--size", 16, "--batch", 16, "--epochs", 2, "--trials", 8, *TINY)
    code, _, err = call("fit", photos, "--out", out, *few, "--init", "inherit")
    assert code == 0, err
    document, result = read_json(out / "select" / "inherit.json"), read_json(out / "fit-result.json")
    scores = [row["estimate"] for row in document["networks"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["arm"] for row in document["networks"]} >= {"search", "simple"}
    assert result["winner"] == document["winner"] == document["networks"][0]
    assert not (out / "retrain").exists()
    run = open_run(out)
    network = run.shared_weights().subnet(Arch(result["winner"]["arch"]))
    exported = load_file(out / result["export"] / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in network.state_dict().items() if name in exported)
    assert run.kind.figures(network, run.data, "cpu")["test_accuracy"] == result["test_accuracy"][0]
    page = (out / "report.html").read_text()
    assert "no race was run" in page
    assert "the best by its shared weights" in page
    assert "confusion" in page
    words = shlex.split(result["commands"]["export"])
    assert call("export", *words[words.index(str(out)) :], "--out", tmp_path / "again")[0] == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in exported.items())
    assert "This report is partial" not in page
    alone = out / result["export"]
    (out / "export" / "front-nsga2").mkdir()
    alone.rename(out / "export" / "front-nsga2" / alone.name)  # where the networks of a front are
    assert call("report", out)[0] == 0
    assert "This report is partial" not in (out / "report.html").read_text()


def test_a_run_does_not_continue_with_another_request(fitted: Path, photos: Path, call: Call) -> None:
    command = ("fit", photos, "--out", fitted, *FEW)
    one_line(
        call(*command, "--max-macs", "120k"), "started with macs=110k, and here it is macs=120k", "give another --out"
    )


def test_a_finished_run_is_only_read(fitted: Path, photos: Path, call: Call) -> None:
    before = (fitted / "fit-result.json").read_bytes()
    code, _, err = call("fit", photos, "--out", fitted, *FEW, "--max-macs", "110k")
    assert code == 0
    assert (fitted / "fit-result.json").read_bytes() == before
    assert "going on with" in err
    assert "report.html" in err
    assert "predict" in err


# -- the report -------------------------------------------------------------------------------------------------------


def test_names_stay_text_in_the_report(fitted: Path) -> None:
    page = (fitted / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "<img src=x onerror" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "猫 🌷" in page
    assert "This report is partial" not in page
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    by_name = {plot["id"]: plot for plot in plots}
    assert {"classes", "loss", "held-out", "health", "time-0", "cost-0", "race-0", "confusion"} <= by_name.keys()
    assert "Not shown" not in page
    assert "stage by stage" in page
    assert by_name["classes"]["data"][0]["x"] == [plain(name) for name in CLASSES]  # plotly reads tags and entities
    assert {trace["name"] for trace in by_name["cost-0"]["data"]} >= {"all candidates", "Pareto front"}
    assert len(page.encode()) < 8_000_000
    markup = re.sub(r"<script\b.*?</script>", "<script></script>", page, flags=re.DOTALL)  # plotly's code has links
    assert not re.search(r'(?:src|href)="(?:https?:)?//', markup)
    assert not re.search(r"<script[^>]*\bsrc=", page)


POINTS = """[...document.querySelectorAll(".plot")].filter((plot) =>
    !plot.querySelector(".point, .js-line, .points path, .hm")).map((plot) => plot.id)"""
"""The plots in which nothing is drawn."""


def test_a_browser_draws_every_plot_within_the_width_of_the_page(fitted: Path, tmp_path: Path) -> None:
    page = fitted / "report.html"
    expected = page.read_text().count('<div class="plot"')
    with browser(tmp_path) as shown:
        for width in (1400, 400):
            shown.load(page, width, "document.body && document.body.dataset.drawn")
            assert shown.value("innerWidth") == width
            assert shown.value("document.body.dataset.drawn") == str(expected)
            assert shown.value("document.body.dataset.errors") == "0"
            assert shown.value("document.documentElement.scrollWidth <= innerWidth")
            assert shown.value(POINTS) == []
        assert shown.said == []


# -- predictions ------------------------------------------------------------------------------------------------------


def test_files_of_equal_stems_are_predicted_and_nothing_is_overwritten(
    fitted: Path, photos: Path, call: Call, tmp_path: Path
) -> None:
    export = fitted / read_json(fitted / "fit-result.json")["export"]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for place in ("a.png", "a.jpg", "deep/a.png"):
        Image.open(photos / CLASSES[2] / "0.png").save(tmp_path / "in" / place)
    (tmp_path / "in" / "torn.png").write_bytes(b"torn")
    one_line(call("predict", export, tmp_path / "in"), "model.py is executed", "--run-code")
    for number in ("", "-2"):
        code, out, err = call("predict", export, tmp_path / "in", "--run-code", "--out", tmp_path / "out")
        assert code == 2
        assert "torn.png cannot be read" in err
        assert out.count("a.png: ") == 2
        with (tmp_path / "out" / f"predictions{number}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted(row["file"] for row in rows) == sorted(
            str(tmp_path / "in" / place) for place in ("a.png", "a.jpg", "deep/a.png")
        )
        for row in rows:
            assert sum(float(row[f"p({name})"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
            assert row["label"] == max(CLASSES, key=lambda name: float(row[f"p({name})"]))
        page = (tmp_path / "out" / f"predictions{number}.html").read_text()
        assert "<script>" not in page
        assert page.count("data:image/jpeg") == 3


def test_the_exported_file_predicts_by_itself(fitted: Path, photos: Path, call: Call, tmp_path: Path) -> None:
    export = fitted / read_json(fitted / "fit-result.json")["export"]
    file = photos / CLASSES[0] / "3.png"
    done = subprocess.run(
        [sys.executable, "-I", "-B", export / "model.py", file, tmp_path / "none.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith(f"{file}: ")
    assert "none.png: cannot be read as an image" in said[1]
    code, out, _ = call("predict", export, file, "--run-code", "--out", tmp_path)
    assert code == 0
    label, probability = re.search(r"3\.png: (.*?) ([\d.]+),", out).groups()  # type: ignore[union-attr]
    assert f": {label} {probability}" in said[0]


def test_evaluate_says_more_than_the_accuracy(fitted: Path, call: Call) -> None:
    export = fitted / read_json(fitted / "fit-result.json")["export"]
    code, out, _ = call("evaluate", fitted, "--exported", export, "--run-code")
    assert code == 0
    for words in ("precision", "recall", "images by true class", "expected calibration error", "images/s", "猫"):
        assert words in out


def test_the_calibration_error_is_that_of_the_paper() -> None:
    """Two bins: confidence 0.9 and right half of the time, 0.6 and always right."""
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == pytest.approx(0)


# -- kills ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_winner(photos: Path, tmp_path: Path) -> None:
    """Killed again and again after a growing time, until it comes through."""

    def fit(out: Path, seconds: float | None) -> int:
        command = [sys.executable, "tools/fit.py", str(photos), "--out", str(out), *map(str, FEW)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()

    assert fit(tmp_path / "whole", None) == 0
    kills, seconds = 0, 8.0
    while fit(tmp_path / "killed", seconds) != 0:
        kills, seconds = kills + 1, seconds + 4
        time.sleep(0.1)
    assert kills
    whole, killed = (read_json(tmp_path / name / "fit-result.json") for name in ("whole", "killed"))
    for name in ("winner", "verdict", "test_accuracy"):
        assert whole[name] == killed[name]
