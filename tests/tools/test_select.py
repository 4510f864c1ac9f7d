"""Selecting by stand-alone trainings: the verdict, kills, torchrun, and wrong input."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import supernet_tools.pipeline.select as pipeline
from helpers.launch import launch
from helpers.races import killed_race
from helpers.scripts import Call, one_line, run_script
from helpers.tiny import TINY_DATA, TINY_SPACE
from searchers import Study, Trial
from searchers.pareto import pareto_front
from supernet.files import read_json
from supernet.space import Arch, SearchSpace
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.search import best_arch, searched

FLAGS = ("--search", "random", "--trainings", 4, "--random", 0, "--shares", 0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained for one epoch, and a search under a limit."""
    out = tmp_path_factory.mktemp("select") / "run"
    training = ("--train.epochs", 1, "--train.batch", 256, "--retrain.epochs", 2, "--retrain.batch", 256)
    assert run_script("train_supernet", "quickstart", *TINY_DATA, *training, *TINY_SPACE, "--out", out) == 0
    limit = ("--max-macs", 24_000, "--searcher", "random", "--trials", 12, "--bn-batches", 1, "--force")
    assert run_script("search", out, *limit) == 0
    return out


@pytest.fixture(scope="module")
def selected(trained: Path) -> dict[str, Any]:
    """The document of a race that nothing interrupted, in a copy of the run."""
    copy = shutil.copytree(trained, trained.parent / "selected")
    assert run_script("select_network", copy, *FLAGS) == 0
    return read_json(copy / "select/scratch.json")


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def outcome(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "minutes"}


def test_simple_networks_race_within_the_limits_of_the_search(selected: dict[str, Any], trained: Path) -> None:
    assert selected["limits"] == {"macs": 24_000}
    assert all(row["macs"] <= 24_000 for row in selected["networks"])
    assert {"search", "simple"} <= {row["arm"] for row in selected["networks"]}
    assert selected["trainings"] <= 4
    assert selected["trainings"] < selected["trainings_without_halving"]
    winner, *others = selected["networks"]
    assert winner == selected["winner"]
    assert winner["scores"]
    simple = [sum(row["scores"]) / len(row["scores"]) for row in others if row["arm"] == "simple" and row["scores"]]
    assert all(sum(winner["scores"]) / len(winner["scores"]) >= score for score in simple)
    assert any(selected["verdict"].startswith(words) for words in ("the search paid", "no gain is shown", "a simple"))


def test_the_winner_is_the_network_that_was_trained(selected: dict[str, Any], trained: Path) -> None:
    """Its curve is that of one training: the result is that of `retrain`, uninterrupted."""
    run = trained.parent / "selected"
    key = selected["winner"]["key"]
    result = read_json(run / f"retrain/{key}-seed0/result.json")
    assert result["validation_accuracy"] == selected["winner"]["scores"][0]
    assert result["test_accuracy"] == selected["test_accuracy"][0]
    again = shutil.copytree(trained, trained.parent / "retrained")
    arch = json.dumps(selected["winner"]["arch"])
    assert run_script("retrain", again, "--arch", arch) == 0
    whole = read_json(again / f"retrain/{key}-seed0/result.json")
    assert {**whole, "seconds": 0} == {**result, "seconds": 0}
    assert run_script("select_network", again, *FLAGS) == 0  # its curve is needed although it is trained to the end
    assert outcome(read_json(again / "select/scratch.json")) == outcome(selected)


def test_a_finished_race_trains_nothing(
    selected: dict[str, Any], trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained.parent / "selected"

    def refuse(*_: object, **__: object) -> float:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(pipeline, "partial_score", refuse)
    code, out, err = call("select_network", run, *FLAGS)
    assert code == 0, err
    assert outcome(read_json(run / "select/scratch.json")) == outcome(selected)
    assert selected["verdict"] in out
    one_line(call("select_network", run, *FLAGS, "--epochs", 5), "by another recipe: epochs is 2 there and 5 here")


@pytest.mark.slow  # tests/ranking/test_race.py kills a race without a run
def test_a_killed_race_goes_on_to_the_identical_result(selected: dict[str, Any], run_folder: Path) -> None:
    assert killed_race(run_folder, *FLAGS) == signal.SIGKILL
    assert not (run_folder / "select/scratch.json").exists()
    assert run_script("select_network", run_folder, *FLAGS) == 0
    assert outcome(read_json(run_folder / "select/scratch.json")) == outcome(selected)


@pytest.mark.slow
def test_two_processes_share_the_trainings(selected: dict[str, Any], run_folder: Path) -> None:
    def main(folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        original = pipeline.partial_score

        def noted(run: Any, arch: Arch, *arguments: Any, **options: Any) -> float:
            with (folder / f"rank{os.environ['RANK']}").open("a") as file:
                file.write(arch.key + "\n")
            return original(run, arch, *arguments, **options)

        pipeline.partial_score = noted
        assert run_script("select_network", folder, *FLAGS) == 0

    launch(main, run_folder)
    first, second = ((run_folder / f"rank{rank}").read_text().splitlines() for rank in (0, 1))
    assert first
    assert second
    assert not set(first) & set(second)
    document = read_json(run_folder / "select/scratch.json")
    assert {row["key"] for row in document["networks"]} == set(first) | set(second)
    assert outcome(document) == outcome(selected)


def test_fine_tuning_the_shared_weights(run_folder: Path, call: Call) -> None:
    flags = ("--search", "random", "--trainings", 2, "--init", "shared", "--epochs", 1)
    code, _, err = call("select_network", run_folder, *flags)
    assert code == 0, err
    document = read_json(run_folder / "select/shared.json")
    assert document["init"] == "shared"
    assert [row["arm"] for row in document["networks"]].count("search") == 1
    assert len(list((run_folder / "retrain").glob("*-shared"))) == 2


def test_several_limits_share_their_trainings(
    selected: dict[str, Any], run_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each race ends as it would alone, and what one has trained the next does not train again."""
    trained: list[tuple[str, int, int]] = []
    partial, full = pipeline.partial_score, pipeline.retrain_stage

    def noted_part(run: Any, arch: Arch, train: Any, **options: Any) -> float:
        trained.append((arch.key, train.seed, options["epochs"]))
        return partial(run, arch, train, **options)

    def noted(run: Any, arch: Arch, train: Any, **options: Any) -> dict[str, Any]:
        finished = (run.folder / f"retrain/{arch.key}-seed{train.seed}/result.json").exists()
        trained.extend([] if finished else [(arch.key, train.seed, train.epochs)])
        return full(run, arch, train, **options)

    monkeypatch.setattr(pipeline, "partial_score", noted_part)
    monkeypatch.setattr(pipeline, "retrain_stage", noted)
    code, out, err = call("select_network", run_folder, *FLAGS, "--max-macs", 24_000, 21_500)
    assert code == 0, err
    assert len(trained) == len(set(trained))
    tight, wide = (read_json(run_folder / f"select/scratch-macs-{limit}.json") for limit in (21_500, 24_000))
    assert outcome(wide) == outcome(selected)
    assert all(row["macs"] <= 21_500 for row in tight["networks"])
    both = {row["key"] for row in tight["networks"]} & {row["key"] for row in wide["networks"]}
    assert both, "the limits should have a network in common, or this test shows nothing"
    assert "the winner under each limit" in out
    (line,) = (line for line in out.splitlines() if "trainings for all limits" in line)
    shared, alone = (float(part.split()[0]) for part in line.split(";"))
    assert shared < alone == tight["trainings"] + wide["trainings"]


def test_all_trainings_fail(run_folder: Path, call: Call) -> None:
    code, out, err = call("select_network", run_folder, "--search", "random", "--trainings", 2, "--lr", 1e30)
    assert code == 1
    assert "no network was trained to the end: the trainings of " in err
    assert "failed" in out


def test_wrong_input_is_one_line(run_folder: Path, call: Call) -> None:
    one_line(call("select_network", run_folder, "--search", "other"), "has no search 'other'")
    one_line(call("select_network", run_folder, "--search", "random", "--trainings", 1), "below two")
    one_line(call("select_network", run_folder, "--search", "random", "--max-macs", 10), "no architecture of")
    one_line(call("select_network", run_folder, "--search", "random", "--shares", 2), "above 0 and at most 1")
    one_line(call("select_network", run_folder.parent / "none", "--search", "random"), "does not exist")
    cheapest = open_run(run_folder).cost.extremes("macs")
    assert cheapest is not None
    least = min(trial.metrics["macs"] for trial in searched(open_run(run_folder), "random")[0])
    if least > cheapest[0]:
        limit = (least + cheapest[0]) / 2
        one_line(
            call("select_network", run_folder, "--search", "random", "--max-macs", limit),
            "none of the networks of random is a finalist",
        )
    other = run_folder / "search/foreign"
    other.mkdir()
    space = SearchSpace("foreign", open_run(run_folder).space.choices[:2])
    Study(other / "study.db", space).close()
    one_line(call("select_network", run_folder, "--search", "foreign"), "is of space 'foreign'")


def test_the_best_of_a_search_is_on_its_own_front(trained: Path) -> None:
    """Where several networks have the best score, the first that was found may be dominated; the cheapest is not."""
    run = open_run(trained)
    name = "ties"
    (trained / "search" / name).mkdir()
    archs = list(run.space.enumerate())[:6]
    with Study(trained / "search" / name / "study.db", run.space) as study:
        study.set_settings({"metric": "accuracy"})
        for number, arch in enumerate(sorted(archs, key=lambda arch: -run.cost(arch)["macs"])):
            metrics = {"accuracy": 0.5, **run.cost(arch)}
            study.append([Trial.of(run.space, arch, metrics, number=number)])
        (best, *_) = pareto_front(study.trials(), ("accuracy", "-macs"))
    assert best_arch(run, name) == run.space.normal_form(best.arch)
    shutil.rmtree(trained / "search" / name)


def test_search_reports_a_best_that_its_front_does_not_dominate(trained: Path, call: Call) -> None:
    code, out, err = call(
        "search", trained, "--searcher", "random", "--trials", 12, "--max-macs", 24_000, "--bn-batches", 1, "--force"
    )
    assert code == 0, err
    run = open_run(trained)
    trials, _, _ = searched(run, "random")
    front = pareto_front(trials, ("accuracy", "-macs"))
    assert best_arch(run, "random") == run.space.normal_form(front[0].arch)
    assert out.splitlines()[-1] == best_arch(run, "random").to_json()
