"""The scripts as users run them: the whole loop, and wrong input that ends in one line and exit code 2."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.scripts import Call, one_line, run_script
from helpers.tiny import TINY, TINY_DATA, TINY_SPACE, TINY_TRAINING
from searchers import Study
from supernet.cost import LatencyTable
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.recipes import demo
from supernet_tools.pipeline.runs import open_run

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
SHORT = (*TINY, *TINY_SPACE)


def script(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own, as a user does."""
    command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def run_folder(tiny_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained for one epoch."""
    return shutil.copytree(tiny_trained, tmp_path_factory.mktemp("tools") / "run")


def test_search_retrain_evaluate(run_folder: Path, call: Call) -> None:
    limit = ("--max-macs", "2e4", "--bn-batches", 1)
    code, out, err = call(
        "search", run_folder, "--trials", 12, "--settings", "population_size=4", "tournament_size=2", *limit
    )
    assert code == 0, err
    arch = json.loads(out.strip().splitlines()[-1])
    assert len(arch) == 3
    code, again, _ = call(
        "search", run_folder, "--trials", 12, "--settings", "population_size=4", "tournament_size=2", *limit
    )
    assert code == 0
    assert again.strip().splitlines()[-1] == out.strip().splitlines()[-1]
    objectives = ("--settings", "population_size=4", 'objectives=["-loss", "-params"]', "--bn-batches", 1)
    code, out, err = call("search", run_folder, "--searcher", "nsga2", "--trials", 8, *objectives)
    assert code == 0, err
    assert re.search(r"┃ loss +┃ params +┃ architecture", out)
    assert 0 <= float(re.findall(r"│ hypervolume +│ ([\d.]+) ", out)[0]) <= 1
    assert call("retrain", run_folder)[0] == 0
    result = json.loads(next((run_folder / "retrain").glob("*-seed0/result.json")).read_text())
    assert result["macs"] <= 2e4
    assert 0 <= result["test_accuracy"] <= 1
    assert call("retrain", run_folder, "--init", "shared", "--epochs", 1)[0] == 0
    assert len(list((run_folder / "retrain").iterdir())) == 2
    code, out, err = call("evaluate", run_folder, "--arch", json.dumps(arch))
    assert code == 0, err
    assert "accuracy" in out


def test_a_terminal_shows_the_best_so_far(run_folder: Path) -> None:
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:  # the libraries are loaded already
        code = 1
        try:
            os.environ.update(TERM="xterm", COLUMNS="120", LINES="40")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            code = run_script("search", run_folder, "--searcher", "random", "--name", "seen", "--trials", 9)
            sys.stderr.flush()
        finally:
            os._exit(code)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    for words in ("best so far", "trials/s", "scores from the cache", "s left", "9/9"):
        assert words in shown.decode(), shown


def test_later_commands_know_the_latency_limit_of_a_search(
    run_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands after a search know its limits, measured ones too; a second search reads the same measurements."""
    monkeypatch.setattr("supernet_tools.pipeline.run.LatencyTable", partial(LatencyTable, seconds=1e-4))
    flags = ("--searcher", "random", "--name", "fast", "--trials", 3, "--max-latency", 1000, "--latency-batch", 2)
    code, out, err = call("search", run_folder, *flags)
    assert code == 0, err
    measured = (run_folder / "latency-2.jsonl").read_bytes()
    arch = json.loads(out.strip().splitlines()[-1])
    code, out, err = call("evaluate", run_folder, "--search", "fast")
    assert code == 0, err
    code, again, err = call("search", run_folder, *flags)
    assert code == 0, err
    assert json.loads(again.strip().splitlines()[-1]) == arch
    assert (run_folder / "latency-2.jsonl").read_bytes() == measured
    one_line(call("search", run_folder, "--name", "none", "--max-latency", 1e-6), "no architecture", "latency")


def test_a_plan_is_printed_and_nothing_written(call: Call, tmp_path: Path) -> None:
    code, out, err = call("train_supernet", "quickstart", *SHORT, "--out", tmp_path / "run", "--plan")
    assert code == 0, err
    for what in ("parameters", "peak memory", "time per step", "for 4 steps", "disk"):
        assert what in out
    assert not (tmp_path / "run").exists()


def test_learning_rates_are_tried_and_nothing_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernet_tools.train_supernet.STEPS", 3)
    monkeypatch.setattr("supernet.training.rates.FACTORS", (0.1, 1))
    flags = ("train_supernet", "quickstart", *SHORT, "--out", tmp_path / "run", "--find-lr")
    code, out, err = call(*flags)
    assert code == 0, err
    assert "the lowest loss is that of --train.lr 0." in out
    assert not (tmp_path / "run").exists()
    one_line(call(*flags, "--plan"), "--plan and --find-lr are two questions")


def test_wrong_settings_of_a_space_are_named_before_anything_is_written(call: Call, tmp_path: Path) -> None:
    cells = ("--space", "nasnet-small", *TINY_DATA, "--space-settings")
    for wrong, *named in (
        ("filters=a", "filters", "integer"),
        ("filter=8", "filter"),
        ("num_classes=3", "num_classes"),
    ):
        one_line(call("train_supernet", "macro-digits", *cells, wrong, "--out", tmp_path / "none"), *named)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow  # other tests retrain cells, and give settings of a space
def test_a_cell_is_retrained_at_another_size(call: Call, tmp_path: Path) -> None:
    """Settings of a space hold for training, search and retraining.

    A cell found with few filters is retrained with more, in a run that has no supernet.
    """
    params, cells = {}, ("blocks=1", 'ops=["identity", "sep3"]', 'combiners=["add"]', "chosen=false")
    arch = tmp_path / "arch.json"
    for filters, epochs in ((4, 1), (8, 0)):
        out = tmp_path / str(filters)
        size = ("--space-settings", *cells, f"filters={filters}")
        short = ("--train.epochs", epochs, *TINY_DATA, *TINY_TRAINING)
        code, _, err = call("train_supernet", "nasnet-digits", *short, *size, "--out", out)
        assert code == 0, err
        if epochs:
            code, said, err = call("search", out, "--searcher", "random", "--trials", 2, "--batch", 2)
            assert code == 0, err
            arch.write_text(said.strip().splitlines()[-1])
            ops = {value for name, value in json.loads(arch.read_text()).items() if name.endswith("_op")}
            assert ops
            assert ops <= {"identity", "sep3"}
        code, _, err = call("retrain", out, "--arch", arch)
        assert code == 0, err
        params[filters] = json.loads(next((out / "retrain").glob("*/result.json")).read_text())["params"]
    assert params[8] > 2 * params[4]
    one_line(call("search", tmp_path / "8", "--searcher", "random"), "train.epochs=0")
    code, _, err = call("draw", tmp_path / "8", "--arch", arch, "--out", tmp_path / "cell.svg")
    assert code == 0, err  # draws with the blocks and operations of the run
    one_line(call("draw", "nasnet-small", "--arch", arch, "--out", tmp_path / "cell.svg"), "lacks")


def test_training_accepts_options_of_every_kind(call: Call, tmp_path: Path) -> None:
    code, _, err = call(
        "train_supernet",
        "quickstart",
        *SHORT,
        "--out",
        tmp_path / "run",
        "--sampler",
        "sandwich",
        "--train.distill",
        "--window.high",
        "2e4",
        "--random-paths",
        "1",
        "--train.schedule",
        "linear",
        "--train.lr-floor",
        "0.05",
        "--train.optimizer",
        "adamw",
        "--train.lr",
        "0.001",
        "--train.ema",
        "0.9",
        "--train.bf16",
        "--data.augment.cutmix",
        "1.0",
    )
    assert code == 0, err
    assert (tmp_path / "run" / "supernet.safetensors").exists()


def test_contradictory_training_options_are_refused(call: Call, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    quickstart = ("train_supernet", "quickstart", *TINY_SPACE, *out)
    one_line(call(*quickstart, "--train.distill"), "'sandwich'", "'uniform'")
    one_line(call(*quickstart, "--window.high", "10"), "no architecture", "between 0 and 10")
    one_line(
        call(*quickstart, "--data.augment.scale", "0"),
        "augment.scale=0.0 should be greater than 0",
    )
    one_line(call("train_supernet", "macro-cifar10", *out, "--data.root", tmp_path / "no"), "data.download=True")
    one_line(
        call("train_supernet", "spos-imagenet", *out, "--train.device", "cpu", "--retrain.device", "cpu"),
        "no data set ''",
    )
    assert not (tmp_path / "run").exists()


def test_wrong_names_offer_the_nearest(run_folder: Path, call: Call, tmp_path: Path) -> None:
    one_line(call("train_supernet", "macro-digit", "--out", tmp_path), "no recipe 'macro-digit'", "'macro-digits'")
    space = ("quickstart", "--space", "shufflenet-smal", "--out", tmp_path / "a")
    one_line(call("train_supernet", *space), "no space 'shufflenet-smal'", "'shufflenet-small'")
    one_line(call("train_supernet", "quickstart", "--space", "nowhere:build", "--out", tmp_path / "b"), "nowhere:build")
    one_line(call("train_supernet", "quickstart", "--sampler", "unifrom", "--out", tmp_path / "c"), "'uniform'")
    one_line(call("search", run_folder, "--searcher", "aging-evolutoin"), "did you mean 'aging-evolution'")
    one_line(call("search", run_folder, "--settings", "populaton_size=4"), "did you mean 'population_size'")
    one_line(
        call("search", run_folder, "--settings", "population_size=many"),
        "population_size='many' should be a valid integer",
    )
    one_line(call("search", run_folder, "--settings", "population_size"), "NAME=VALUE")
    one_line(
        call("search", run_folder, "--name", "unscored", "--settings", "metric="),
        "metric='' should be the name of a metric",
    )
    assert not (run_folder / "search" / "unscored").exists()


def test_wrong_data_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    flags = ("spos-images", "--out", tmp_path / "run", "--data.source")
    one_line(call("train_supernet", *flags, tmp_path / "images"), "holds no images")
    torch.save(torch.zeros(1), tmp_path / "images" / "cat" / "0.png")
    one_line(call("train_supernet", *flags, tmp_path / "images"), "one class only, 'cat'")
    one_line(call("train_supernet", *flags, tmp_path / "nowhere"), "no data set")


def test_a_run_that_cannot_start_claims_no_folder(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("train_supernet", "quickstart", *TINY_SPACE, "--out", out)
    one_line(call(*flags, "--train.batch", 5000), "batch of 5000 is larger than the training split of 1150")
    one_line(call(*flags, "--train.optimizer", "adamww"), "no optimizer 'adamww'; did you mean 'adamw'")
    one_line(call(*flags, "--retrain.epochs", 0), "epochs=0")
    if not torch.cuda.is_available():
        one_line(call(*flags, "--train.device", "cuda"), "device 'cuda' is not available")
    one_line(call("train_supernet", "spos-images", "--out", out), "no data set ''")
    assert not out.exists()


def test_an_impossible_limit_names_the_cheapest(run_folder: Path, call: Call) -> None:
    one_line(
        call("search", run_folder, "--name", "tight", "--max-macs", "1000"), "macs <= 1,000", "the cheapest has 17,000"
    )
    assert not (run_folder / "search" / "tight").exists()


def test_an_arch_of_another_space_is_refused(run_folder: Path, call: Call, tmp_path: Path) -> None:
    foreign = json.dumps({"stage1.block0.op": "mb3_k3"})
    one_line(call("evaluate", run_folder, "--arch", foreign), "'mb3_k3' is not an option", "shufflenet-small")
    one_line(call("retrain", run_folder, "--arch", "{"), "JSON object")
    one_line(call("retrain", run_folder, "--arch", tmp_path / "arch.json"), "nor a file with one")
    one_line(call("retrain", run_folder, "--search", "never-run"), "no search 'never-run'")


def test_the_best_follows_the_metric_and_limits_of_its_search(run_folder: Path, call: Call) -> None:
    flags = ("--searcher", "random", "--name", "loss", "--trials", 8)
    assert call("search", run_folder, *flags, "--settings", "metric=-loss")[0] == 0
    space = open_run(run_folder).space
    with Study(run_folder / "search" / "loss" / "study.db", space) as study:
        trials = study.trials()
    best = min(trials, key=lambda trial: trial.metrics["loss"])
    code, out, err = call("evaluate", run_folder, "--search", "loss")
    assert code == 0, err
    assert f"│ {best.metrics['macs']:,.0f}" in out
    limit = sorted(trial.metrics["macs"] for trial in trials)[3]
    tight = ("--settings", "metric=-loss", "--max-macs", limit, "--resume", "warm")
    assert call("search", run_folder, *flags, *tight)[0] == 0  # no new trials, but a limit from now on
    inside = min((t for t in trials if t.metrics["macs"] <= limit), key=lambda trial: trial.metrics["loss"])
    code, out, err = call("evaluate", run_folder, "--search", "loss")
    assert code == 0, err
    assert f"│ {inside.metrics['macs']:,.0f}" in out


def test_a_changed_study_names_the_setting(run_folder: Path, call: Call) -> None:
    assert call("search", run_folder, "--searcher", "random", "--name", "mine", "--trials", 3)[0] == 0
    flags = ("--searcher", "random", "--name", "mine", "--trials", 5)
    one_line(call("search", run_folder, *flags, "--seed", 1), "seed=0", "seed=1")
    one_line(call("search", run_folder, *flags, "--bn-batches", 3), "Recalibrate(batches=10", "Recalibrate(batches=3")
    one_line(call("search", run_folder, "--searcher", "aging-evolution", "--name", "mine"), "searcher")
    assert call("search", run_folder, *flags)[0] == 0
    study = run_folder / "search" / "mine" / "study.db"
    study.write_bytes(study.read_bytes()[:5000])
    one_line(call("search", run_folder, *flags), "study.db")


def test_folders_of_other_runs_are_refused(run_folder: Path, call: Call, tmp_path: Path) -> None:
    other = ("train_supernet", "quickstart", *SHORT, "--train.seed", 1, "--out", run_folder)
    one_line(call(*other), "another run: train.seed is 0 there and 1 here")
    (tmp_path / "thesis.tex").touch()
    one_line(call("train_supernet", "quickstart", "--out", tmp_path), "holds no run")
    one_line(call("search", tmp_path), "run.json does not exist")
    weights = run_folder / "supernet.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:1000])
        one_line(call("search", run_folder), "supernet.safetensors", "truncated")
    finally:
        weights.write_bytes(whole)


@pytest.mark.slow
def test_the_benchmarks_run(call: Call) -> None:
    code, out, err = call("benchmarks.timing", "oracle", "--seeds", 3, "--optuna-seeds", 0, "--batches", 10)
    assert code == 0, err
    means = [float(line.split("│")[3].split("±")[0]) for line in out.splitlines() if "±" in line]
    assert len(means) == 7
    assert all(1 <= mean <= 3969 for mean in means)
    code, out, err = call("benchmarks.timing", "memory-order", "--steps", 2)
    assert code == 0, err
    assert out.count("│ 2 ") == 3
    code, out, err = call("benchmarks.training", "engine", "--size", 8, "--paths", 2, "--steps", 2, "--batch", 256)
    assert code == 0, err
    assert "nasbench201" in out


@pytest.mark.slow
def test_the_scoring_benchmarks_run(run_folder: Path, tmp_path: Path, call: Call) -> None:
    sizes = ("--images", 40, "--calibration", 1)
    code, out, err = call("benchmarks.scoring", "prefix", run_folder, "--trials", 30, "--generation", 10, *sizes)
    assert code == 0, err
    assert out.count("crossover") == 2
    one_line(call("benchmarks.scoring", "bn", run_folder), "'shufflenet-small'", "'nasbench-macro'")
    macro = tmp_path / "macro"
    assert run_script("train_supernet", "macro-digits", *TINY, "--out", macro) == 0
    code, out, err = call("benchmarks.scoring", "bn", macro, "--networks", 5, "--images", 40)
    assert code == 0, err
    assert "Inherit()" in out
    assert "Recalibrate(batches=50" in out
    tiny = ("--batches", 1, "--batch", 4, "--networks", 4, "--rounds", 1)
    code, out, err = call("benchmarks.scoring", "rate", "--space", "shufflenet-small", *tiny)
    assert code == 0, err
    assert "late in an evolution, one by one" in out
    code, out, err = call(
        "benchmarks.scoring", "latency", "--spaces", "shufflenet-small", "--networks", 3, "--seconds", 1e-3
    )
    assert code == 0, err
    assert out.count("│ 3 │") == 2  # the sum of steps, and corrected
    flags = ("--trials", 12, "--batch", 4, "--rounds", 1)
    code, out, err = call("benchmarks.scoring", "workers", run_folder, *flags)
    assert code == 0, err
    assert "2 processes" in out


QUICK = ("--epochs", 1, "--retrain-epochs", 1, "--trials", 4, "--trainings", 4)


def test_the_quickstart_writes_every_result(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In larger batches than the demo's; how many stages there are does not depend on them."""

    def small() -> SupernetRun:
        recipe = demo()
        train, retrain = (replace(config, batch=256) for config in (recipe.train, recipe.retrain))
        return replace(recipe, data=replace(recipe.data, calibration=64), train=train, retrain=retrain)

    monkeypatch.setattr("supernet_tools.quickstart.demo", small)
    out = tmp_path / "demo" / "0"
    code, said, err = call("quickstart", "--out", out, *QUICK)
    assert code == 0, err
    check_summary(out, said)
    summary = json.loads((out / "summary.json").read_text())
    folder = summary["export"]["folder"]
    code, said, err = call("evaluate", out, "--exported", folder, "--run-code")
    assert code == 0, err
    assert f"│ {summary['controls'][0]['test'][0]:.4f}" in said
    code, said, err = call("evaluate", out, "--arch", Path(folder, "arch.json"))
    assert code == 0, err
    assert "accuracy" in said
    code, said, err = call("benchmarks.demo", "--out", tmp_path / "demo", "--seeds", 1)
    assert code == 0, err
    winner, *controls = (sum(row["test"]) / len(row["test"]) for row in summary["controls"])
    assert f"│ 0    │ {winner:.4f}" in said
    best = winner >= max(controls[-3:])
    assert f"at least the best of the random networks: {best:d} of 1" in said


@pytest.mark.slow  # the same as users run it
def test_the_quickstart_runs_as_a_script(tmp_path: Path) -> None:
    done = script("quickstart", "--out", tmp_path / "demo", *QUICK)
    assert done.returncode == 0, done.stderr
    check_summary(tmp_path / "demo", done.stdout)


def check_summary(out: Path, said: str) -> None:
    """Checks that every stage has left its results and said so."""
    summary = json.loads((out / "summary.json").read_text())
    limit = summary["limit"]["macs"]
    assert set(summary["searchers"]) == {"random", "aging-evolution"}
    for row in summary["searchers"].values():
        assert {"arch", "score", "macs", "params", "evaluations", "seconds"} <= row.keys()
        assert row["macs"] <= limit
    front = summary["front"]
    assert [row["macs"] for row in front] == sorted({row["macs"] for row in front})
    assert [row["shared"] for row in front] == sorted({row["shared"] for row in front})
    winner, *controls = summary["controls"]
    assert winner["key"] == summary["selected"]["winner"]["key"]
    assert winner["validation"] == summary["selected"]["winner"]["scores"]
    assert winner["test"] == summary["selected"]["test_accuracy"]
    assert len([row for row in controls if row["network"].startswith("random")]) == 3
    assert len({row["key"] for row in summary["controls"]}) == len(summary["controls"])
    assert all(row["macs"] <= limit and len(row["test"]) == len(winner["test"]) for row in controls)
    assert summary["selected"]["trainings"] <= 4
    assert max(summary["export"]["differences"].values()) <= 1e-5
    assert summary["seconds"] > 0
    assert summary["selected"]["verdict"] in said.replace("\n", " ")
    assert summary["controls_verdict"] in said
