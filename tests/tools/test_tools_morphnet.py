"""The MorphNet script: a width supernet is trained, shrunk, retrained and exported, also after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.scripts import Call, one_line, run_script
from searchers import Study, Trial
from supernet import Chain, create_supernet
from supernet.blocks.plain import ClassifierHead
from supernet.cost import CostTable
from supernet.drawing import Box, draw_widths
from supernet.space import Arch
from supernet.spaces.widths import WidthChain

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
TINY = (
    "--data.size",
    8,
    "--data.calibration",
    64,
    "--train.epochs",
    1,
    "--train.batch",
    256,
    "--retrain.epochs",
    1,
    "--retrain.batch",
    256,
    "--train.save-seconds",
    0,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Uses one thread, like the process that is killed: resume is exact only for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("morphnet") / "run"
    assert run_script("train_supernet", "morphnet-digits", *TINY, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def net() -> WidthChain:
    chain = create_supernet("plain-small-widths", input_size=8, in_channels=1)
    assert isinstance(chain, WidthChain)
    return chain


@pytest.fixture(scope="module")
def half(net: WidthChain) -> float:
    """Half of the MACs of the seed network."""
    return 0.5 * CostTable(net)(net.seed)["macs"]


def trials_of(run: Path, name: str, net: WidthChain) -> list[Trial]:
    with Study(run / "search" / name / "study.db", net.space) as study:
        return study.trials()


def arch_of(out: str) -> Arch:
    return Arch.from_json(out.strip().splitlines()[-1])


def test_shrink_and_retrain(trained: Path, net: WidthChain, half: float, call: Call) -> None:
    flags = (trained, "--max-macs", half, "--epochs", 3, "--settings", "scan=[1e-6,30]", "threshold=0.3", "fill=0.01")
    code, out, err = call("morphnet", *flags)
    assert code == 0, err
    best_arch = arch_of(out)
    cost = CostTable(net)(best_arch)
    assert 0.99 * half <= cost["macs"] <= half
    weak, strong = trials_of(trained, "morphnet", net)
    seed = sum(int(width) for width in net.seed.values())
    assert weak.metrics["alive"] == seed  # λ is almost zero: the seed network, scaled by ω
    assert dict(weak.arch) == pytest.approx({name: 0.7 * int(width) for name, width in net.seed.items()}, abs=1.5)
    assert strong.metrics["alive"] < 0.9 * seed
    assert strong.arch != weak.arch
    assert best_arch == max((weak, strong), key=lambda trial: trial.metrics["accuracy"]).arch
    for name, trial in (("round0-0", weak), ("round0-1", strong)):
        row = next(line for line in out.splitlines() if f"│ {name} │" in line)
        for text in (
            f"{trial.metrics['strength']:.2e}",
            f"{trial.metrics['alive']:,.0f}",
            f"{trial.metrics['accuracy']:.4f}",
            f"{trial.metrics['macs']:,.0f}",
        ):
            assert f" {text} " in row
    first, last = map(float, re.findall(r"([\d.]+) to ([\d.]+)", row)[0])  # the row of `strong`
    assert 0 < last < 0.9 * first
    before = {path: path.stat().st_mtime_ns for path in (trained / "search" / "morphnet").glob("round*.pt")}
    assert len(before) == 2
    assert call("morphnet", *flags)[:2] == (0, out)  # nothing is retrained
    assert {path: path.stat().st_mtime_ns for path in before} == before

    code, _, err = call("retrain", trained, "--search", "morphnet")
    assert code == 0, err
    result = json.loads((trained / "retrain" / f"{best_arch.key}-seed0" / "result.json").read_text())
    assert result["arch"] == dict(best_arch)
    assert result["macs"] == cost["macs"]


@pytest.mark.slow  # tests/spaces/test_widths.py exports such networks
def test_a_shrunk_network_is_exported(trained: Path, half: float, call: Call) -> None:
    code, out, err = call("morphnet", trained, "--name", "shrunk", "--max-macs", half, "--settings", "scan=[3]")
    assert code == 0, err
    code, _, err = call("export", trained, "--search", "shrunk", "--inherit")
    assert code == 0, err
    parity = json.loads((trained / "export" / arch_of(out).key / "parity.json").read_text())
    assert max(parity["differences"].values()) <= 1e-5


def test_parameters_are_limited_and_fresh_weights_are_shrunk(trained: Path, net: WidthChain, call: Call) -> None:
    limit = 0.4 * CostTable(net)(net.seed)["params"]
    flags = (trained, "--max-params", limit, "--settings", "scan=[1]", "start=" + json.dumps(dict(net.seed)))
    scores = {}
    for name, more in (("trained", ()), ("fresh", ("--init", "scratch"))):
        code, out, err = call("morphnet", *flags[:3], "--name", name, *more, *flags[3:])
        assert code == 0, err
        assert 0.8 * limit <= CostTable(net)(arch_of(out))["params"] <= limit
        (trial,) = trials_of(trained, name, net)
        scores[name] = trial.metrics["loss"]
    assert scores["fresh"] != scores["trained"]


KILLED = """
import os, signal, sys
import torch
import supernet.training.state as engine

torch.set_num_threads(1)
save = engine.save_state


def killing(path, state):
    save(path, state)
    if path.name == "round1-0.pt" and state["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)


engine.save_state = killing
import morphnet

morphnet.main(morphnet.run)
"""


@pytest.mark.slow  # the searcher itself is killed in tests/searchers/test_morphnet.py
def test_a_search_killed_while_shrinking_ends_as_the_uninterrupted_one(
    trained: Path, net: WidthChain, half: float, call: Call
) -> None:
    flags = ("--rounds", 2, "--max-macs", half, "--settings", "scan=[3]", "threshold=0.3")
    whole = call("morphnet", trained, "--name", "whole", *flags)
    assert whole[0] == 0, whole[2]
    command = [sys.executable, "-c", KILLED, trained, "--name", "killed", *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TOOLS}"}
    done = subprocess.run([*map(str, command)], env=environment, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert trials_of(trained, "killed", net) == trials_of(trained, "whole", net)[:1]
    resumed = call("morphnet", trained, "--name", "killed", *flags)
    assert resumed[:2] == whole[:2], resumed[2]
    assert trials_of(trained, "killed", net) == trials_of(trained, "whole", net)
    assert len(trials_of(trained, "whole", net)) == 2


@pytest.mark.slow  # the race of the next test trains such networks too
def test_widths_of_equal_cost_are_compared(trained: Path, net: WidthChain, half: float, call: Call) -> None:
    archs: list[Arch] = []
    settings = ("--settings", "threshold=0.3", "fill=0.01", "scan=[30]")
    for name in ("a", "b"):
        code, out, err = call("morphnet", trained, "--name", name, "--seed", len(archs), "--max-macs", half, *settings)
        assert code == 0, err
        archs.append(arch_of(out))
    flags = (trained, "--max-macs", half, "--searches", "a", "b", "--random", 2, "--seeds", 2)
    code, out, err = call("benchmarks.widths", *flags)
    assert code == 0, err
    document = json.loads((trained / "widths" / "widths.json").read_text())
    rows = document["networks"]
    assert [row["name"] for row in rows] == ["a", "b", "uniform", "random 0", "random 1"]
    assert [row["arch"] for row in rows[:2]] == [dict(arch) for arch in archs]
    for row in rows:
        assert 0.99 * half <= row["macs"] == CostTable(net)(Arch(row["arch"]))["macs"] <= half
        results = [trained / "retrain" / f"{row['key']}-seed{seed}" / "result.json" for seed in (0, 1)]
        assert row["accuracy"] == [json.loads(path.read_text())["test_accuracy"] for path in results]
    accuracies = [row["accuracy"] for row in rows]
    by_seed = [(accuracies[0][n] + accuracies[1][n]) / 2 - accuracies[2][n] for n in (0, 1)]
    assert document["differences"]["morphnet less uniform, by seed"]["mean"]["value"] == pytest.approx(sum(by_seed) / 2)
    means = [sum(seeds) / 2 for seeds in accuracies]
    difference = document["differences"]["morphnet less random, by network"]
    assert difference["mean"]["value"] == pytest.approx((means[0] + means[1] - means[3] - means[4]) / 2)
    assert difference["sizes"] == [2, 2]
    before = {path: path.stat().st_mtime_ns for path in (trained / "retrain").glob("*/result.json")}
    assert call("benchmarks.widths", *flags)[:2] == (0, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    one_line(call("benchmarks.widths", trained, "--max-macs", 2 * half, *flags[3:]), "search 'a'", "fill=0.01")
    one_line(call("benchmarks.widths", trained, *flags[3:]), "one limit")
    one_line(call("benchmarks.widths", *flags, "--spread", 1), "--spread must be above 1")
    one_line(call("benchmarks.widths", *flags[:-2], "--seeds", 1), "at least 2")


def test_wrong_input_is_named_before_training(trained: Path, half: float, call: Call, tmp_path: Path) -> None:
    macs = ("--max-macs", half)
    wrong = [
        ((), ("exactly one limit: give either --max-macs or --max-params",)),
        ((*macs, "--max-params", 1e4), ("exactly one limit",)),
        (("--max-macs", 100), ("macs <= 100", "the smallest network")),
        ((*macs, "--rounds", 0), ("rounds=0",)),
        ((*macs, "--epochs", 0), ("epochs=0",)),
        ((*macs, "--settings", "scans=[1]"), ("MorphNet has no setting 'scans'; did you mean 'scan'",)),
        ((*macs, "--settings", "scan=1"), ("scan='1' should be",)),
        ((*macs, "--settings", "metric=acuracy"), ("did you mean 'accuracy'",)),
        ((*macs, "--settings", "threshold=otsu"), ("threshold='otsu' should be",)),
        ((*macs, "--settings", 'start={"block0.mid": 0}'), ("0 is not an option of 'block0.mid'",)),
    ]
    for number, (arguments, fragments) in enumerate(wrong):
        one_line(call("morphnet", trained, "--name", f"wrong{number}", *arguments), *fragments)
    assert not list(trained.glob("search/wrong*"))
    one_line(call("morphnet", tmp_path / "nowhere", *macs), "run.json does not exist")
    (trained / "search" / "other").mkdir(parents=True)
    (trained / "search" / "other" / "study.db").touch()
    one_line(call("morphnet", trained, "--name", "other", *macs), "other is not empty and holds no run")


def test_other_settings_under_an_old_name_are_refused(trained: Path, half: float, call: Call) -> None:
    flags = (trained, "--name", "once", "--max-macs", half, "--settings", "scan=[1]")
    assert call("morphnet", *flags)[0] == 0
    one_line(call("morphnet", *flags, "threshold=0.1"), "threshold=0.001", "threshold=0.1")
    one_line(call("morphnet", *flags[:-2], "--lr", 0.01, *flags[-2:]), "lr is 0.05 there and 0.01 here")


def fixed(*, num_classes: int, input_size: int, in_channels: int, phase: str) -> Chain:
    """A user's own space, without widths."""
    head = ClassifierHead(in_channels, num_classes, hidden=8)
    return Chain("fixed", [("head", head)], input_shape=(in_channels, input_size, input_size))


def test_a_space_without_widths_is_refused(call: Call, tmp_path: Path) -> None:
    flags = (*TINY, "--space", "test_tools_morphnet:fixed", "--out", tmp_path / "run")
    code, _, err = call("train_supernet", "macro-digits", *flags)
    assert code == 0, err
    search = ("morphnet", tmp_path / "run", "--max-macs", 2e6)
    one_line(call(*search), "--trust test_tools_morphnet:fixed")
    one_line(call(*search, "--trust", "test_tools_morphnet:fixed"), "MorphNet needs a space of widths")
    assert not (tmp_path / "run" / "search").exists()


def test_a_width_profile_is_drawn(net: WidthChain, call: Call, tmp_path: Path) -> None:
    widths = {name: max(1, int(width) // 4) for name, width in net.seed.items()} | {"block1.out": 64}
    bars = [box for box in draw_widths(widths, net.seed).shapes if isinstance(box, Box) and not box.text]
    assert len(bars) == 2 * len(widths)
    units = {bar.width / n for bar, n in zip(bars[::2], net.seed.values(), strict=True)}
    units |= {bar.width / n for bar, n in zip(bars[1::2], widths.values(), strict=True)}
    assert max(units) == pytest.approx(min(units))  # all bars have the same scale
    assert max(bar.width for bar in bars) == 240
    without = draw_widths({"branch": 0, "stem": 3}, {"branch": 2, "stem": 3}).shapes
    assert sum(isinstance(shape, Box) and not shape.text for shape in without) == 3
    (tmp_path / "arch.json").write_text(json.dumps(widths))
    code, _, err = call("draw", "plain-small-widths", "--arch", tmp_path / "arch.json", "--out", tmp_path / "a.svg")
    assert code == 0, err
    text = (tmp_path / "a.svg").read_text()
    assert ">64 of 32<" in text
    assert ">4 of 16<" in text


def test_widths_race_against_the_published_network_scaled_to_the_limit(
    trained: Path, net: WidthChain, half: float, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of MorphNet's own weights say nothing of other networks, so that all are scored with the shared ones."""
    monkeypatch.setattr("supernet.ranking.rivals.STARTS", 4)  # of the climb to the largest network
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    code, _, err = call("morphnet", run, "--max-macs", half, "--settings", "scan=[1]", "--name", "raced")
    assert code == 0, err
    (retraining,) = trials_of(run, "raced", net)
    flags = ("--search", "raced", "--trainings", 3, "--random", 0, "--bn-batches", 1)
    code, _, err = call("select_network", run, *flags)
    assert code == 0, err
    document = json.loads((run / "select/scratch.json").read_text())
    simple = {row["name"]: row for row in document["networks"] if row["arm"] == "simple"}
    scaled = simple["the published widths, scaled to the limit"]
    assert 0.99 * half <= scaled["macs"] <= half
    shares = [scaled["arch"][name] / width for name, width in net.seed.items()]
    assert max(shares) / min(shares) < 1.3
    assert retraining.key in {row["key"] for row in document["networks"] if row["arm"] == "search"}
