"""The benchmark of races on tables: sources of scores, other tables, and wrong input."""

import json
import random
import re
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line
from supernet.spaces import create_supernet
from supernet_tools.benchmarks import race

SCRIPT = "benchmarks.race"


@pytest.fixture(scope="module")
def table() -> race.Table:
    return race.shipped_table()


@pytest.fixture
def reported(table: race.Table, tmp_path: Path) -> Path:
    """What fidelity.py keeps of 100 networks, scored by their truth."""
    archs = random.Random(0).sample(list(table.accuracy), 100)
    networks = [{"indices": list(table.space.to_indices(arch)), "score": table.accuracy[arch]} for arch in archs]
    file = tmp_path / "run" / "fidelity" / "report.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"format": 1, "networks": networks}))
    return file


def test_a_label_is_one_training_and_the_truth_the_mean_of_three(table: race.Table) -> None:
    assert len(table.accuracy) == len(table.label) == 3969
    assert table.noise == pytest.approx(0.212, abs=0.001)
    assert sum(table.label[arch] != accuracy for arch, accuracy in table.accuracy.items()) > 3900


def test_scores_of_a_report_propose_the_finalists(
    table: race.Table, reported: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LIMITS", (0.65,))
    scores = race.scores_of(race.Races(), table, reported)
    assert len(scores) == 100
    assert all(scores[arch] == table.accuracy[arch] for arch in scores)
    code, out, err = call(SCRIPT, reported, "--seeds", 1, "--trainings", 6)
    assert code == 0, err
    assert "run: 100 networks, τ 1.000, 1 seeds, 6 trainings" in out
    (line,) = (line for line in out.splitlines() if "│ race" in line)
    assert float(line.split("│")[3].split()[0]) <= 10


def test_scores_in_a_csv_file(table: race.Table, tmp_path: Path) -> None:
    """Networks that the table does not have are left out."""
    some = random.Random(1).sample(list(table.accuracy), 3)
    rows = ["-".join(map(str, table.space.to_indices(arch))) + f",{number}" for number, arch in enumerate(some)]
    (tmp_path / "scores.csv").write_text("\n".join(["arch,score", *rows]))
    known = table.only(some[1:])
    assert race.scores_of(race.Races(), known, tmp_path / "scores.csv") == {some[1]: 1.0, some[2]: 2.0}


@pytest.mark.slow
def test_another_table_races_with_labels_of_its_own_noise(tmp_path: Path, call: Call) -> None:
    space = create_supernet("nasbench201").space
    draw = random.Random(0)
    archs = [space.sample(draw) for _ in range(120)]
    convolutions = {arch: sum("conv" in str(value) for value in arch.values()) for arch in archs}
    lines = ["".join(map(str, space.to_indices(arch))) + f",{80 + convolutions[arch]}" for arch in convolutions]
    (tmp_path / "table.csv").write_text("\n".join(["arch,accuracy", *lines]))
    (tmp_path / "scores.csv").write_text("\n".join(["arch,score", *lines]))
    flags = ("--space", "nasbench201", "--truth", tmp_path / "table.csv", "--seeds", 1, "--trainings", 5)
    args = race.Races(space="nasbench201", truth=str(tmp_path / "table.csv"), label_noise=0.2)
    table = race.table_of(args)
    assert table.noise == 0.2
    gaps = [table.label[arch] - table.accuracy[arch] for arch in table.accuracy]
    assert 0.1 < (sum(gap**2 for gap in gaps) / len(gaps)) ** 0.5 < 0.3
    assert race.table_of(args) == table
    code, out, err = call(SCRIPT, tmp_path / "scores.csv", *flags)
    assert code == 0, err
    assert "scores: " in out


@pytest.mark.slow
def test_random_weights_pay_nothing(call: Call) -> None:
    code, out, err = call(SCRIPT, "--untrained", 1, "--untrained-networks", 100, "--seeds", 3)
    assert code == 0, err
    paid = re.findall(r"(\d+) paid", out)
    assert set(paid) == {"0"}
    assert len(paid) >= 3  # a limit that fewer than 20 of the networks meet is left out


def test_wrong_input_is_one_line(tmp_path: Path, reported: Path, call: Call) -> None:
    one_line(call(SCRIPT, "--space", "nasbench201"), "no table of 'nasbench201' is shipped; give --truth")
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"format": 1, "rankers": []}))
    one_line(call(SCRIPT, old), "has no scores of networks of 'nasbench-macro'", "repeat fidelity.py")
    document = json.loads(reported.read_text())
    document["networks"] = document["networks"][:1]
    old.write_text(json.dumps(document))
    one_line(call(SCRIPT, old), "has scores of 1 networks of the table; a race needs two")
