"""Probes: a search and a report that correct the shared scores by fine-tuned networks."""

import json
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line
from supernet_tools.pipeline import probes
from supernet_tools.pipeline.runs import open_run


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "STEPS", 2)
    monkeypatch.setattr(probes.probe_stage, "__kwdefaults__", {**probes.probe_stage.__kwdefaults__, "steps": 2})


def test_a_search_maximises_the_corrected_score_and_a_kill_loses_no_probe(tiny_run: Path, call: Call) -> None:
    command = ("search", tiny_run, "--searcher", "random", "--trials", 4, "--bn-batches", 1, "--probes", 8)
    code, out, err = call(*command)
    assert code == 0, err
    assert "corrected" in out
    (file,) = (tiny_run / "probes").glob("*.json")
    whole = json.loads(file.read_text())
    assert len(whole["probes"]) == 8
    assert len({str(scores) for scores in whole["probes"].values()}) > 1

    kept = dict(list(whole["probes"].items())[:3])  # as after a kill behind the third probe
    file.write_text(json.dumps({**whole, "probes": kept}))
    assert call(*command)[0] == 0  # the finished search is only shown; its scores have to be the same
    assert json.loads(file.read_text()) == whole

    for wrong in ({"loss": "low"}, {"accuracy": 0.5}, 3):
        file.write_text(json.dumps({**whole, "probes": {**kept, "planted": wrong}}))
        one_line(call(*command), file.name, "the scores of the probe planted", "delete the file")


def test_the_report_compares_the_corrected_ranking(tiny_run: Path, tmp_path: Path, call: Call) -> None:
    space, table = open_run(tiny_run).space, tmp_path / "truth.csv"
    rows = [arch.to_json().replace('"', '""') for arch, _ in zip(space.enumerate(), range(12), strict=False)]
    table.write_text("arch,accuracy\n" + "".join(f'"{row}",{i}\n' for i, row in enumerate(rows)))
    code, out, err = call("fidelity", tiny_run, "--truth", table, "--probes", 8, "--bn-batches", 1, "--resamples", 10)
    assert code == 0, err
    assert "corrected, 8 probes" in out


def test_too_few_and_too_many_probes_are_refused(tiny_run: Path, call: Call) -> None:
    for command in (("search", tiny_run, "--trials", 2), ("fidelity", tiny_run)):
        one_line(call(*command, "--probes", 3), "3 probes are too few", "at least 8")
        one_line(call(*command, "--probes", 10**6), "1000000 probes are more than the distinct networks")
    assert not (tiny_run / "search").exists()
