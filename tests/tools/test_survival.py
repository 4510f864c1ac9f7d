"""What killed processes, full disks and missing permissions leave behind, and what goes on from it."""

import contextlib
import csv
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.images import make_folder
from helpers.scripts import Call, one_line, run_script
from helpers.tiny import TINY, TINY_SPACE
from searchers import Study
from supernet.config import Data
from supernet.data import load
from supernet.errors import RunError, UnwritableError
from supernet.files import remove_temporaries, replacing
from supernet_tools.pipeline.retrain import _truth
from supernet_tools.pipeline.runs import open_run

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Makes the system refuse files beyond `limit` bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet trained for one epoch, in a folder in which a file manager and killed processes left files."""
    out = tmp_path_factory.mktemp("survival") / "run"
    out.mkdir()
    for name in (".DS_Store", "Thumbs.db", ".run.json.0123456789abcdef.tmp"):
        (out / name).write_bytes(b"x")
    assert run_script("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", out) == 0
    assert not list(out.glob(".*.tmp"))
    return out


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_weights_have_the_mode_of_other_files(trained: Path) -> None:
    assert {(trained / name).stat().st_mode & 0o777 for name in ("run.json", "supernet.safetensors", "state.pt")} == {
        0o666 & ~_umask()
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_search_that_is_refused_leaves_its_name_free(run_folder: Path, call: Call) -> None:
    weights = (run_folder / "supernet.safetensors").read_bytes()
    (run_folder / "supernet.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    one_line(call("search", run_folder, "--searcher", "random", "--trials", 2), "supernet.safetensors is damaged")
    assert not (run_folder / "search").exists()


def test_others_look_at_a_search_while_it_runs(run_folder: Path, call: Call) -> None:
    code, _, err = call("search", run_folder, "--searcher", "random", "--name", "a", "--trials", 3)
    assert code == 0, err
    space = open_run(run_folder).space
    with Study(run_folder / "search/a/study.db", space) as writer:  # holds the lock
        with Study(run_folder / "search/a/study.db", space, read=True) as reader:
            assert reader.trials() == writer.trials()
        code, _, err = call("evaluate", run_folder, "--search", "a")
        assert code == 0, err


def test_a_study_on_a_disk_that_cannot_be_written_is_read(
    run_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("search", run_folder, "--searcher", "random", "--name", "a", "--trials", 3)[0] == 0
    before = sorted(path.relative_to(run_folder) for path in run_folder.rglob("*"))
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.W_OK and writable(path, mode, **more))
    (run_folder / "scores.db").unlink()
    code, _, err = call("evaluate", run_folder, "--search", "a")
    assert code == 0, err
    after = sorted(path.relative_to(run_folder) for path in run_folder.rglob("*"))
    assert set(after) <= set(before)


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE trials SET metrics = '[]'", "metrics"),
        ("UPDATE trials SET metrics = '\"x\"'", "metrics"),
        ("UPDATE trials SET metrics = '{}'", "metrics"),
        ("UPDATE trials SET arch = 'garbage'", "study"),
        ("UPDATE trials SET arch = '" + "[" * 5000 + "'", "study"),
        ("UPDATE trials SET seconds = 'x'", "study"),
        ("UPDATE meta SET value = '[1]' WHERE name = 'settings'", "settings"),
        ("""UPDATE meta SET value = '{"told_at_start": "x"}' WHERE name = 'settings'""", "settings"),
        ("ALTER TABLE trials ADD COLUMN more TEXT", "study"),
    ],
)
def test_a_damaged_study_is_one_line_with_its_name(tmp_path: Path, statement: str, word: str) -> None:
    from searchers import search
    from searchers.random_search import RandomSearch
    from supernet.errors import InputError
    from supernet.space import Choice, SearchSpace

    space = SearchSpace("toy", (Choice("a", (1, 2, 3)),))
    with Study(tmp_path / "study.db", space) as study:
        search(RandomSearch(space), lambda archs: [{"accuracy": 0.5} for _ in archs], study, trials=2)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as db:
        db.execute(statement)
        db.commit()
    content = (tmp_path / "study.db").read_bytes()
    for read in (False, True):
        with pytest.raises(InputError, match=rf"study\.db cannot be read as a study \(.*{word}"):
            Study(tmp_path / "study.db", space, read=read)
    assert (tmp_path / "study.db").read_bytes() == content


def test_a_retraining_whose_weights_are_gone_is_trained_again(run_folder: Path, call: Call) -> None:
    arch = json.dumps(dict(next(iter(open_run(run_folder).space.enumerate()))))
    assert call("retrain", run_folder, "--arch", arch)[0] == 0
    weights = next(run_folder.glob("retrain/*/network.safetensors"))
    content = weights.read_bytes()
    weights.unlink()
    code, _, err = call("retrain", run_folder, "--arch", arch)
    assert code == 0, err
    assert weights.read_bytes() == content
    with full_disk(2000):
        code, out, err = call("export", run_folder, "--arch", arch)
    assert code == 1, (out, err)
    assert err.count("error: ") == 1
    assert "cannot be written" in err
    assert not list(run_folder.glob("export/*"))


def test_a_full_disk_is_no_failure_of_a_network(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(run_folder)
    arch = next(iter(run.space.enumerate()))
    for error, counted in ((RunError("diverged"), True), (UnwritableError("disk"), False)):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("supernet_tools.pipeline.retrain.retrain_stage", fails)
        if counted:
            with pytest.warns(UserWarning, match="diverged"):
                assert _truth(run, arch, run.config.retrain) is None
        else:
            with pytest.raises(UnwritableError, match="disk"):
                _truth(run, arch, run.config.retrain)


@pytest.mark.slow
def recorded_trials(study: Path) -> int:
    """How many trials a search that is running has saved."""
    if not study.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"{study.as_uri()}?mode=ro", uri=True)) as db:
        try:
            return int(db.execute("SELECT count(*) FROM trials").fetchone()[0])
        except sqlite3.OperationalError:  # its tables are not there yet
            return 0


def test_a_search_that_is_terminated_says_so_and_goes_on(run_folder: Path, call: Call) -> None:
    command = [sys.executable, ROOT / "tools/search.py", run_folder, "--searcher", "random", "--trials", "3000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as process:
        while not recorded_trials(run_folder / "search/random/study.db") and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-1] == "terminated; finished work is saved, and the same command goes on from it"


def left_by_a_killed_process(folder: Path) -> Path:
    """A temporary file as a killed process leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        with replacing(folder / "file.json") as temporary:
            temporary.write_text("{")
            os._exit(0)  # as by SIGKILL: nothing is cleaned up
    os.waitpid(child, 0)
    (temporary,) = folder.glob(".file.json.*.tmp")
    return Path(temporary)


def test_what_killed_processes_left_is_removed_by_the_next_command(
    run_folder: Path, tmp_path: Path, call: Call
) -> None:
    left = [left_by_a_killed_process(run_folder / name) for name in ("search/a", "fidelity", "images")]
    arguments = ("--searcher", "random", "--name", "a", "--trials", 3, "--bn-batches", 1)
    code, _, err = call("search", run_folder, *arguments)
    assert code == 0, err
    table = tmp_path / "truth.csv"
    with table.open("w", newline="") as file:
        archs = itertools.islice(open_run(run_folder).space.enumerate(), 3)
        csv.writer(file).writerows([("arch", "accuracy"), *((arch.to_json(), i) for i, arch in enumerate(archs))])
    code, _, err = call("fidelity", run_folder, "--truth", table, "--bn-batches", 1, "--resamples", 5)
    assert code == 0, err
    load(Data(str(make_folder(tmp_path / "pictures")), size=8), cache=left[2].parent)
    assert not [path for path in left if path.exists()]


def test_files_that_a_process_still_writes_are_kept(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.json") as temporary:
        temporary.write_text("{}")
        remove_temporaries(tmp_path, alone=False)
        assert temporary.exists()
    foreign = tmp_path / f".file.json.{'0' * 16}.tmp"
    foreign.touch()
    remove_temporaries(tmp_path, alone=False)
    assert foreign.exists()  # of another machine, and new
    os.utime(foreign, (0, 0))
    remove_temporaries(tmp_path, alone=False)
    assert not foreign.exists()


def test_a_folder_that_is_taken_is_reported_before_the_training_for_an_export(
    run_folder: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "taken").write_text("a file")
    arch = json.dumps(dict(next(iter(open_run(run_folder).space.enumerate()))))
    for out in (tmp_path / "taken", tmp_path / "taken/below", tmp_path):
        one_line(
            call("export", run_folder, "--arch", arch, "--out", out), "for the export" if out != tmp_path else "holds"
        )
    assert not (run_folder / "retrain").exists()
