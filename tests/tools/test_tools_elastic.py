"""Runs over elastic networks: batch-norm policies, starts with trained weights, and what each command makes of them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image

from helpers.scripts import Call, one_line, run_script
from supernet.chain import largest
from supernet.errors import InputError
from supernet.export import load_exported
from supernet.files import read_json
from supernet.scoring.batch_norm import Inherit, Matched, Recalibrate
from supernet.spaces.create import build
from supernet.testing import randomize
from supernet_tools.evaluate import at_its_size
from supernet_tools.pipeline.architectures import named_arch
from supernet_tools.pipeline.config import SupernetRun
from supernet_tools.pipeline.export import preprocess_of
from supernet_tools.pipeline.front import chosen_points, latency_order
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.search import searched as searched_by
from supernet_tools.pipeline.search import searched_top
from supernet_tools.pipeline.start import starting_normalisation

ROOT = Path(__file__).parents[2]

DATA = ("--data.size", 40, "--data.calibration", 64)
SPACE = ("quickstart", "--space", "elastic", "--space-settings", "model=lcnet_035", "drop=1", "resolutions=[32]")
TRAINING = (
    "--train.epochs",
    1,
    "--train.batch",
    256,
    "--train.lr",
    0.01,
    "--retrain.epochs",
    1,
    "--retrain.batch",
    256,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of a small network for the ten digits."""
    model = timm.create_model("lcnet_035", num_classes=10, in_chans=1)
    randomize(model, 0)
    file = tmp_path_factory.mktemp("weights") / "lcnet.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def untrained(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that shares the weights of a network and has trained nothing."""
    out = tmp_path_factory.mktemp("untrained") / "run"
    flags = ("--train.epochs", 0, "--train.warmup-epochs", 0, "--retrain.epochs", 1, "--retrain.batch", 256)
    assert run_script("train_supernet", *SPACE, *DATA, *flags, "--pretrained", weights, "--out", out) == 0
    return out


def test_the_full_network_of_an_untrained_run_is_that_of_its_file(untrained: Path, weights: Path) -> None:
    """Under the run's own policy, and on the images of the data set."""
    run = open_run(untrained)
    assert run.bn == "matched"
    model = timm.create_model("lcnet_035", num_classes=10, in_chans=1).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    images, _ = next(iter(run.data.validation.batches(64)))
    arch = largest(run.space)
    with torch.no_grad():
        expected = model(images)
        kept = open_run(untrained, bn="keep").shared_weights().subnet(arch)(images)
        matched = run.shared_weights().subnet(arch)(images)
    scale = float(expected.abs().max())
    assert torch.allclose(kept, expected, atol=1e-3 * scale)
    assert torch.allclose(matched, expected, atol=0.02 * scale)


@pytest.mark.slow  # tests/scoring/test_matched.py has each policy
def test_a_flag_changes_the_policy_and_no_scores_are_mixed(untrained: Path, call: Call) -> None:
    policies = {"plain": Recalibrate(), "matched": Matched(), "keep": Inherit()}
    contexts = set()
    read = open_run(untrained)
    for name, policy in policies.items():
        run = open_run(untrained, bn=name)  # type: ignore[arg-type]
        shared = run.kind.shared_weights(read.supernet, read.data, cache=None, bn_batches=10, bn=run.bn)
        assert shared.bn == policy
        contexts.add(json.dumps(shared.context))
    assert len(contexts) == 3
    code, out, err = call("evaluate", untrained, "--arch", "largest", "--bn", "keep")
    assert code == 0, err
    assert re.search(r"batch norm\W+keep", out)
    few = ("--searcher", "random", "--trials", 1, "--force")
    assert call("search", untrained, *few)[0] == 0
    one_line(call("search", untrained, *few, "--bn", "plain"), "batch norm")


def test_a_run_with_fresh_weights_has_no_full_network_to_match(tiny_run: Path, call: Call) -> None:
    one_line(
        call("evaluate", tiny_run, "--bn", "matched"), "bn='matched' follows the full network of a run that begins"
    )
    with pytest.raises(InputError, match="take bn='plain'"):
        open_run(tiny_run, bn="matched")


def test_both_ends_of_a_space_have_names(untrained: Path) -> None:
    run = open_run(untrained)
    assert named_arch(run, "largest", "random") == run.space.normal_form(largest(run.space))
    smallest = named_arch(run, "smallest", "random")
    assert run.cost(smallest)["macs"] == run.cost.extremes("macs")[0]


def test_weights_that_see_nothing_in_the_images_are_not_searched(untrained: Path, call: Call) -> None:
    document = read_json(untrained / "run.json")["shared_weights"]
    assert document["learned"] is False  # random weights
    one_line(call("search", untrained, "--searcher", "random", "--trials", 2), "no better than guessing on its images")


@pytest.mark.slow
def test_a_width_space_begins_with_torchvisions_file(call: Call, tmp_path: Path) -> None:
    """The run's full network, under its own policy, is torchvision's on images normalised as for ImageNet."""
    draws = torch.Generator().manual_seed(0)
    for number in range(120):
        folder = tmp_path / "photos" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    model = torchvision.models.mobilenet_v2(num_classes=3)
    randomize(model, 0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    flags = (
        "--space",
        "mobilenetv2-widths",
        "--space-settings",
        "headroom=1",
        "--pretrained",
        tmp_path / "weights.pth",
    )
    flags = (*flags, "--data.source", tmp_path / "photos", "--data.calibration", 64, "--train.warmup-epochs", 0)
    flags = ("spos-images", *flags, "--train.epochs", 0, "--retrain.batch", 8, "--out", tmp_path / "run")
    assert run_script("train_supernet", *flags) == 0
    run = open_run(tmp_path / "run")
    assert run.summary.mean == pytest.approx((0.485, 0.456, 0.406))
    images, _ = next(iter(run.data.validation.batches(8)))
    with torch.no_grad():
        expected = model.eval()(images)
        scale = float(expected.abs().max())
        for policy, tolerance in (("keep", 1e-3), ("matched", 0.1)):
            network = open_run(tmp_path / "run", bn=policy).shared_weights().subnet(largest(run.space))  # type: ignore[arg-type]
            assert torch.allclose(network(images), expected, atol=tolerance * scale)
    code, out, err = call("evaluate", tmp_path / "run", "--arch", "smallest")
    assert code == 0, err
    assert "matched" in out


# -- training ---------------------------------------------------------------------------------------------------------

SCHEDULE = ("--train.epochs", 2, "--train.batch", 256, "--train.lr", 0.01, "--train.warmup-epochs", 0)
START = (*SCHEDULE, "--sampler", "sandwich", "--random-paths", 1, "--opens", "depth=1", "kernel=0.5", "resolution=1")


@pytest.mark.slow
def test_a_training_goes_on_from_another_run_with_a_teacher_and_resumes_exactly(
    untrained: Path, weights: Path, tmp_path: Path
) -> None:
    """Killed by SIGKILL once; layer-wise rates, averaged weights, options that open while it trains."""
    more = ("--teacher", "start", "--train.layer-decay", 0.8, "--train.ema", 0.9, "--train.save-seconds", 0)
    arguments = [*SPACE, *DATA, *START, *more, "--pretrained", untrained]
    killed = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "tools" / "train_supernet.py"), *map(str, arguments), "--out", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (killed / "state.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert not (killed / "supernet.safetensors").exists()
    whole = tmp_path / "whole"
    for out in (killed, whole):
        assert run_script("train_supernet", *arguments, "--out", out) == 0
    assert (killed / "supernet.safetensors").read_bytes() == (whole / "supernet.safetensors").read_bytes()
    assert open_run(whole).bn == "matched"


@pytest.mark.slow
def test_two_processes_train_an_elastic_space(untrained: Path, tmp_path: Path) -> None:
    arguments = [*SPACE, *DATA, *START, "--teacher", "start", "--pretrained", untrained, "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tools" / "train_supernet.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "run").supernet


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--teacher", "start"), "is the largest network with the weights of pretrained; name them"),
        (("--opens", "kernel"), "texts such as kernel=2"),
        (("--opens", "kernel=60"), "has kernel=60, which leaves none of train.epochs=50"),
        (("--bn", "matched"), "bn='matched' follows the full network of a run that begins with trained weights"),
        (("--pretrained", "nowhere"), "nowhere is not a file"),
        (("--train.layer-decay", 0), "train.layer_decay=0.0"),
    ],
)
def test_wrong_settings_are_refused_before_images_are_read(
    flags: tuple[object, ...], message: str, call: Call, tmp_path: Path
) -> None:
    one_line(call("train_supernet", *SPACE, "--data.size", 40, *flags, "--out", tmp_path / "run"), message)
    assert not list(tmp_path.iterdir())


def test_a_teacher_with_a_new_classifier_is_refused(weights: Path, call: Call, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state |= {"classifier.weight": torch.zeros(3, 1280), "classifier.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "three.pth")
    flags = ("--teacher", "start", "--pretrained", tmp_path / "three.pth", "--out", tmp_path / "run")
    one_line(call("train_supernet", *SPACE, *DATA, *START, *flags), "the teacher has a new classifier")
    assert not (tmp_path / "run").exists()


def test_images_are_normalised_as_for_the_weights(tmp_path: Path) -> None:
    recipe = SupernetRun(space="elastic", space_settings=("model=tf_efficientnet_lite0",), pretrained="lite0.pth")
    with torch.device("meta"):
        chain = build("elastic", "supernet", {"model": "tf_efficientnet_lite0", "input_size": 32})
    assert starting_normalisation(recipe, chain) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert starting_normalisation(SupernetRun(), chain) is None


# -- the front --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(untrained, tmp_path_factory.mktemp("searched") / "run")
    assert run_script("search", run, "--searcher", "random", "--trials", 4, "--force") == 0
    return Path(run)


def test_points_of_a_front_and_within_limits(searched: Path, call: Call) -> None:
    run = open_run(searched)
    front = chosen_points(run, "random")
    macs = [point.trial.metrics["macs"] for point in front]
    assert macs == sorted(macs)
    largest_macs = max(trial.metrics["macs"] for trial in searched_by(run, "random")[0])
    (best,) = chosen_points(run, "random", ["9G", f"{int(largest_macs)}"])
    assert best.limits == ["9G", f"{int(largest_macs)}"]
    assert best.arch == searched_top(run, "random", 1)[0][0]
    one_line(
        call("export", searched, "--search", "random", "--limits", "1k"),
        "no network that the search 'random' scored has macs <= 1k: they have",
        "and the space has",
        "raise the limit 1k",
    )
    one_line(call("export", searched, "--search", "random", "--limits", "5X"), "the limit '5X' should be a number")
    one_line(call("export", searched, "--search", "random", "--front", "--limit-cost", "watts"), "no cost 'watts'")
    one_line(call("export", searched, "--front", "--arch", "{}"), "drop --arch, --init")


@pytest.mark.slow
@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_the_front_is_exported_and_measured(onnx: bool, call: Call, tmp_path: Path) -> None:
    """At least five exports, each of which also classifies an image in an isolated interpreter.

    Only the full network is trained, so that the front is long: every cut costs accuracy.
    """
    if onnx:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    run_folder = tmp_path / "run"
    training = ("--train.epochs", 3, "--largest-epochs", 3, "--train.batch", 64, "--train.optimizer", "adamw")
    training = (*training, "--train.lr", 0.003, "--train.warmup-epochs", 0)
    assert run_script("train_supernet", *SPACE, *DATA, *training, "--out", run_folder) == 0
    objectives = ("--settings", "metric=-loss", 'objectives=["-loss","-macs"]')
    assert run_script("search", run_folder, "--searcher", "nsga2", "--trials", 60, "--force", *objectives) == 0
    macs = [row["metrics"]["macs"] for row in read_json(run_folder / "search" / "nsga2" / "front.json")["networks"]][:5]
    flags = ("--limits", *(f"{int(value)}" for value in macs), *(["--onnx"] if onnx else []))
    code, out, err = call("export", run_folder, "--search", "nsga2", *flags)
    assert code == 0, err
    folder = run_folder / "export" / "front-nsga2"
    document = read_json(folder / "front.json")
    assert document["batch_norm"] == "plain"
    points = document["points"]
    assert len(points) >= 5
    runtimes = {"torch", "onnxruntime"} if onnx else {"torch"}
    assert set(document["latency_order"]) == runtimes
    for runtime in runtimes:
        order = document["latency_order"][runtime]
        assert order["pairs"] == len(points) * (len(points) - 1) // 2  # all on a front differ
        assert f"measured in {runtime}, the network of fewer macs is the faster one in {order['agree']} of" in out
    with (folder / "front.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(points)
    image = tmp_path / "image.png"
    Image.new("L", (40, 40), 128).save(image)
    run = open_run(run_folder)
    for point, line in zip(points, lines, strict=True):
        size = read_json(folder / point["key"] / "preprocess.json")["input_size"]
        assert size == point["arch"]["input.resolution"]
        for runtime in runtimes:
            assert float(line[f"artefact_ms_{runtime}"]) == point["artefact_ms"][runtime] > 0
        network = at_its_size(load_exported(folder / point["key"]), preprocess_of(folder / point["key"]))
        assert run.kind.scores(network, run.data.test)["accuracy"] == pytest.approx(point["test_accuracy"], abs=0.01)
        assert ("model.onnx" in point["parity"]) == onnx
        assert max(point["parity"].values()) <= 1e-3
        assert point["key"] in out
        command = [sys.executable, "-I", str(folder / point["key"] / "model.py"), str(image)]
        alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert alone.returncode == 0, alone.stderr


def test_orders_of_latency_and_cost_are_compared() -> None:
    rows = [{"macs": macs, "artefact_ms": {"torch": ms}} for macs, ms in ((1, 1.0), (2, 3.0), (2, 9.0), (3, 2.0))]
    assert latency_order(rows, "macs") == {"torch": {"pairs": 5, "agree": 3}}
