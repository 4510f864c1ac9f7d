"""What a search found can be used: best.json, front.json, architectures by key and place, and costs with units."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line, run_script
from searchers import Study, Trial
from supernet.files import read_json
from supernet.ranking.rivals import scaled_networks
from supernet.space import Arch
from supernet_tools.pipeline.architectures import named_arch
from supernet_tools.pipeline.runs import open_run
from supernet_tools.pipeline.search import best_arch, create_searcher, searched, searched_front
from supernet_tools.pipeline.units import cost_in_units, in_units, parse_amount, parse_milliseconds


@pytest.fixture(scope="module")
def searched_run(tiny_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(tiny_trained, tmp_path_factory.mktemp("values") / "run"))
    flags = ("--searcher", "nsga2", "--settings", "population_size=6", "--trials", 14, "--bn-batches", 1, "--force")
    assert run_script("search", run, *flags, "--max-macs", "24.5k") == 0
    return run


def test_the_best_and_the_front_are_files(searched_run: Path) -> None:
    best, front = (read_json(searched_run / f"search/nsga2/{name}.json") for name in ("best", "front"))
    run = open_run(searched_run)
    assert Arch(best["arch"]) == best_arch(run, "nsga2")
    assert best["metrics"]["accuracy"] == best["score"]
    assert best["limits"] == front["limits"] == {"macs": 24_500}
    assert front["objectives"] == ["accuracy", "-macs"]
    points = [(row["metrics"]["accuracy"], row["metrics"]["macs"]) for row in front["networks"]]
    assert points == sorted(points, reverse=True)
    assert front["networks"][0]["arch"] == best["arch"]
    trials, *_ = searched(run, "nsga2")
    scaled = {arch.key for arch in scaled_networks(run.space) if run.cost(arch)["macs"] <= 24_500}
    assert {trial.key for trial in trials if trial.number < 3} <= scaled  # it begins with them, a quarter of its trials
    assert create_searcher("nsga2:published", run, run.limits({}), 0, (), evaluations=40).initial == []
    for trial in trials:  # the front dominates or equals everything that was scored
        assert any(a >= trial.metrics["accuracy"] and m <= trial.metrics["macs"] for a, m in points)


def test_the_reported_best_is_not_dominated(searched_run: Path, tmp_path: Path) -> None:
    """Of trials with equal scores, the cheapest is reported, whichever was scored first."""
    copy = Path(shutil.copytree(searched_run, tmp_path / "run"))
    run = open_run(copy)
    forms = sorted(
        {run.space.normal_form(arch) for arch in map(run.space.from_indices, ([3, 3, 3], [0, 0, 0]))}, key=str
    )
    dear, cheap = sorted(forms, key=lambda arch: -run.cost(arch)["macs"])
    (copy / "search/equal").mkdir()
    with Study(copy / "search/equal/study.db", run.space) as study:
        study.set_settings({"metric": "accuracy", "objectives": ["accuracy"]})
        study.append(
            [
                replace(Trial.of(run.space, arch, {"accuracy": 0.5, **run.cost(arch)}, number=number), batch=0)
                for number, arch in enumerate((dear, cheap))
            ]
        )
    assert best_arch(run, "equal") == cheap


def test_architectures_are_named_by_key_and_place(searched_run: Path, tmp_path: Path, call: Call) -> None:
    run = open_run(searched_run)
    front, _ = searched_front(run, "nsga2")
    arch = run.space.normal_form(front[-1].arch)
    for text in (arch.key, arch.key[:8], f"front:{len(front)}", arch.to_json()):
        assert named_arch(run, text, "nsga2") == arch
    (tmp_path / "arch.json").write_text(arch.to_json())
    assert named_arch(run, str(tmp_path / "arch.json"), "none") == arch
    code, out, _ = call("evaluate", searched_run, "--search", "nsga2", "--arch", f"front:{len(front)}")
    assert code == 0
    assert f"{front[-1].metrics['macs']:,.0f}" in out
    drawn = tmp_path / "drawn.svg"
    assert call("draw", searched_run, "--search", "nsga2", "--out", drawn)[0] == 0
    assert best_arch(run, "nsga2").key in drawn.read_text()
    assert call("draw", searched_run, "--arch", arch.key, "--out", drawn)[0] == 0
    assert arch.key in drawn.read_text()


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (("--arch", "front:99", "--search", "nsga2"), ("give front:1 to front:",)),
        (("--arch", "front:0", "--search", "nsga2"), ("front:0",)),
        (("--arch", "0123456789abcdef"), ("no search, race or retraining", "'0123456789abcdef'")),
        (("--search", "other"), ("no search 'other'; it has nsga2",)),
        (("--arch", "front:1", "--search", "other"), ("no search 'other'",)),
    ],
    ids=str,
)
def test_wrong_names_of_architectures(
    flags: tuple[str, ...], fragments: tuple[str, ...], searched_run: Path, call: Call
) -> None:
    one_line(call("evaluate", searched_run, *flags), *fragments)


def test_a_published_name_has_no_searches(call: Call, searched_run: Path) -> None:
    one_line(call("draw", "nasnet-a-large", "--search", "x"), "not the folder of a run")
    one_line(call("draw", searched_run), "--search NAME")


@pytest.mark.parametrize(
    ("text", "value"),
    [("5M", 5e6), ("1.2G", 1.2e9), ("300k", 3e5), ("1.4e6", 1.4e6), ("1,400,000", 1.4e6), ("7", 7.0), ("2b", 2e9)],
)
def test_amounts_have_units(text: str, value: float) -> None:
    assert parse_amount(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("5ms", 5), ("5", 5), ("500us", 0.5), ("0.1s", 100)])
def test_times_have_units(text: str, value: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "M", "5Q", "5 M M", "five", "5ms"])
def test_wrong_amounts_are_named(text: str, call: Call) -> None:
    with pytest.raises(ValueError, match="should be a number such as"):
        parse_amount(text)
    if text:
        one_line(call("search", "run", "--max-macs", text), text, "1.4M or 1.2G")
    one_line(call("search", "run", "--max-latency", "5M"), "'5M' should be a time such as 5ms")


def test_units_are_shown() -> None:
    assert [in_units(value) for value in (999, 1.4e6, 1.2e9, 24_500)] == ["999", "1.4M", "1.2G", "24.5k"]
    assert cost_in_units("latency_ms", 5) == "5 ms"
    assert cost_in_units("macs", 5e6) == "5M"
    assert json.loads(json.dumps(parse_amount("5M"))) == 5e6
