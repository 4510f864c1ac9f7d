"""The study: what it records, which files it refuses, and who may write."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import searchers
from helpers.searcher_cases import MAKERS, Counter, chain_space, noise, trial
from searchers import RandomSearch, Study, search
from supernet.errors import InputError
from supernet.space import Choice, SearchSpace

ROOT = Path(searchers.__path__[0]).parent


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Another interpreter that imports the same packages as this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def refusal(path: Path | str | None, space: SearchSpace) -> str:
    """The one-line message with which the study is refused."""
    with pytest.raises(InputError) as caught:
        Study(path, space)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path, trials: int = 30) -> list[searchers.Trial]:
    with Study(path, chain_space()) as study:
        search(RandomSearch(chain_space()), Counter(), study, trials=trials, batch=4)
        return study.trials()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    trials = written(tmp_path / "study.db")
    with Study(tmp_path / "study.db", chain_space()) as study:
        assert study.trials() == trials
        assert [t.seconds for t in study.trials()] == [t.seconds for t in trials]
        assert len(study) == len(trials) == study.evaluations == 30
        assert [(asked, len(batch)) for asked, batch in study.batches()] == [(4, 4)] * 7 + [(2, 2)]
        assert study.settings is not None
        assert study.settings["searcher"] == "RandomSearch"
        assert study.settings["batch"] == 4
        assert study.first_of(trials[3].key) == trials[3]
        assert study.first_of("0" * 16) is None


def test_every_batch_is_on_disk_while_the_study_is_open(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    seen: list[int] = []

    def count(_: searchers.Trial) -> None:
        with sqlite3.connect(path) as reader:
            seen.append(reader.execute("SELECT count(*) FROM trials").fetchone()[0])

    with Study(path, chain_space()) as study:
        search(RandomSearch(chain_space()), Counter(), study, trials=6, batch=2, on_trial=count)
    assert seen == [2, 2, 4, 4, 6, 6]


def test_best_maximises_minimises_and_prefers_the_earliest() -> None:
    space = chain_space(2, form=False)
    archs = list(space.enumerate())
    with Study(None, space) as study:
        for number, value in enumerate((1.0, 3.0, float("nan"), 3.0, 0.5, 0.5)):
            study.append([trial(number, archs[number], value)])
        assert study.best("accuracy").number == 1
        assert study.best("-accuracy").number == 4
        with pytest.raises(InputError, match=r"finite 'acuracy'; did you mean 'accuracy'\?"):
            study.best("acuracy")


def test_of_equal_scores_the_cheapest_is_the_best() -> None:
    space = chain_space(2, form=False)
    archs = list(space.enumerate())
    with Study(None, space) as study:
        for number, (value, macs) in enumerate(((1.0, 10.0), (3.0, 30.0), (3.0, 20.0), (3.0, 20.0))):
            metrics = {"accuracy": value, "macs": macs}
            study.append([dataclasses.replace(trial(number, archs[number], value), metrics=metrics)])
        assert study.best("accuracy").number == 2
        assert study.best("-macs").number == 0


def test_an_empty_study_has_no_best() -> None:
    with Study(None, chain_space()) as study, pytest.raises(InputError, match="search first"):
        study.best("accuracy")


def test_a_closed_study_refuses_writes(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", chain_space())
    study.close()
    study.close()
    with pytest.raises(InputError, match="is closed"):
        search(RandomSearch(chain_space()), Counter(), study, trials=1)


def test_a_failed_write_leaves_file_and_memory_as_they_were(tmp_path: Path) -> None:
    space = chain_space(2, form=False)
    first, second, third = list(space.enumerate())[:3]
    with Study(tmp_path / "study.db", space) as study:
        study.append([trial(0, first, 1.0)])
        bad = dataclasses.replace(trial(2, third, 0.0), batch=1, metrics={"accuracy": object()})  # type: ignore[dict-item]
        good = trial(1, second, 2.0)
        with pytest.raises(TypeError):
            study.append([good, bad])
        assert len(study) == study.asks == 1
        study.append([good])
        trials = study.trials()
    with Study(tmp_path / "study.db", space) as study:
        assert study.trials() == trials


def test_a_file_that_is_not_a_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("accuracy,arch\n" * 500)
    message = refusal(path, chain_space())
    assert str(path) in message
    assert "choose another study file" in message
    assert path.read_text() == "accuracy,arch\n" * 500


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    assert "is not a study, or was only partly written" in refusal(path, chain_space())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["bookmarks.db"]  # no lock beside it


def test_a_truncated_study_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    written(path, trials=100)
    whole = path.read_bytes()
    assert len(whole) > 5 * 4096
    for length in (99, 600, 4096, 5000, 3 * 4096, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "restore it from a copy" in refusal(path, chain_space()), length
        assert path.read_bytes() == whole[:length]


def test_a_file_too_short_for_a_database_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"\n")
    assert str(path) in refusal(path, chain_space())
    assert path.read_bytes() == b"\n"


def test_an_empty_file_is_a_study_killed_during_creation(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    assert len(written(tmp_path / "study.db")) == 30


def test_a_study_with_bytes_overwritten_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    written(path, trials=100)
    whole = bytearray(path.read_bytes())
    whole[2 * 4096 : 2 * 4096 + 64] = b"\xff" * 64
    path.write_bytes(whole)
    assert "restore it from a copy" in refusal(path, chain_space())


def test_a_study_of_another_space_is_refused_by_both_names(tmp_path: Path) -> None:
    written(tmp_path / "study.db")
    message = refusal(tmp_path / "study.db", chain_space(7))
    assert "'chain6'" in message
    assert "'chain7'" in message
    other = SearchSpace("chain6", [Choice("layer0", ("k3",))])
    assert other.digest() in refusal(tmp_path / "study.db", other)


@pytest.mark.parametrize("version", [1, 2, 9])
def test_another_schema_version_is_refused(tmp_path: Path, version: int) -> None:
    written(tmp_path / "study.db")
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE meta SET value = ? WHERE name = 'version'", (str(version),))
    assert f"schema version {version}, but this release reads version 3" in refusal(
        tmp_path / "study.db", chain_space()
    )


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'runs'}" in refusal(tmp_path / "runs" / "study.db", chain_space())
    assert not (tmp_path / "runs").exists()
    assert "is a folder" in refusal(tmp_path, chain_space())


def test_a_second_object_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    first = Study(tmp_path / "study.db", chain_space())
    assert str(tmp_path / "study.db") in refusal(tmp_path / "study.db", chain_space())
    first.close()
    Study(tmp_path / "study.db", chain_space()).close()


def test_a_refused_study_can_be_opened_afterwards(tmp_path: Path) -> None:
    written(tmp_path / "study.db")
    refusal(tmp_path / "study.db", chain_space(7))
    Study(tmp_path / "study.db", chain_space()).close()


HOLDER = """
import sys
from searchers import Study
from supernet.space import Choice, SearchSpace
study = Study(sys.argv[1], SearchSpace("two", [Choice("a", (1, 2))]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    space = SearchSpace("two", [Choice("a", (1, 2))])
    holder = python(HOLDER, str(tmp_path / "study.db"))
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert f"study {tmp_path / 'study.db'} is open in another process" in refusal(tmp_path / "study.db", space)
    finally:
        holder.kill()
        holder.communicate()
    Study(tmp_path / "study.db", space).close()


IMPORTS = """
import sys
before = set(sys.modules)  # a measurement of coverage loads sqlite3 itself
import searchers
assert not {"sqlite3", "searchers.loop"} & (sys.modules.keys() - before), "the package is not lazy"
heavy = {"torch", "timm", "torchvision"}
for name in sorted({*searchers.__all__} - {"PredictorSearch"}):
    getattr(searchers, name)
print(sorted(sys.modules.keys() & {*heavy, "numpy"}))
searchers.PredictorSearch
print(sorted(sys.modules.keys() & heavy))
"""


def test_the_package_loads_no_torch_and_numpy_only_for_the_predictor() -> None:
    process = python(IMPORTS)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "[]\n[]\n")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Serach'"):
        _ = searchers.Serach


@pytest.mark.parametrize("name", MAKERS)
def test_trials_have_the_proposed_architecture_and_the_key_of_its_form(name: str) -> None:
    space = chain_space()
    with Study(None, space) as study:
        search(MAKERS[name](space), Counter(), study, trials=60)
        for recorded in study.trials():
            assert recorded.key == space.normal_form(recorded.arch).key
            assert recorded.metrics["accuracy"] == noise(space.normal_form(recorded.arch))
        assert any(recorded.arch != space.normal_form(recorded.arch) for recorded in study.trials())


def test_a_trial_made_by_hand_has_the_key_of_its_network() -> None:
    space = chain_space()
    arch = space.from_indices((0, 1, 0, 2, 0, 0))
    scored = searchers.Trial.of(space, arch, {"accuracy": 0.5}, number=3)
    assert (scored.arch, scored.key, scored.number) == (arch, space.normal_form(arch).key, 3)
    assert not scored.repeat
    searcher = RandomSearch(space)
    searcher.tell([scored, searchers.Trial.of(space, space.from_indices((1,) * 6), {}, failed="no memory")])
    asked = {space.normal_form(arch).key for arch in searcher.ask(200)}
    assert len(asked) == 127 - 2
    with Study(None, space) as study:
        study.append([searchers.Trial.of(space, arch, {"accuracy": 0.5})])
        assert study.best("accuracy").arch == arch


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE batches SET asked = -1",
        "UPDATE batches SET asked = 'x'",
        "UPDATE trials SET seconds = -5",
        "UPDATE trials SET seconds = 9e999",
        "UPDATE trials SET repeat = 'x'",
        """UPDATE trials SET metrics = '{"accuracy": 1e999}'""",
        "UPDATE meta SET value = 'null' WHERE name = 'settings'",
    ],
)
def test_numbers_that_no_search_writes_are_refused_with_the_name_of_the_file(statement: str, tmp_path: Path) -> None:
    space = chain_space()
    with Study(tmp_path / "study.db", space) as study:
        search(RandomSearch(space), Counter(), study, trials=3)
    with sqlite3.connect(tmp_path / "study.db") as db:
        db.execute(statement)
    db.close()
    assert "study.db cannot be read as a study" in refusal(tmp_path / "study.db", space)
