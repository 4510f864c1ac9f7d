"""Every command on a file system of its own that is really full: one line with the reason, and nothing is lost."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.scripts import Call, run_script
from helpers.tiny import TINY, TINY_SPACE
from searchers import Study
from supernet_tools.pipeline.runs import open_run

TRAIN = ("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out")
ARCH = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Fills the disk but for some bytes with one file, which is returned."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            file.truncate(file.tell() // 4096 * 4096 - left)
    return filler


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_named_and_nothing_is_lost(disk: Path, tiny_run: Path, call: Call) -> None:
    sound, run, picture = tiny_run, disk / "run", disk / "picture.svg"
    shutil.copytree(sound, run, ignore=shutil.ignore_patterns("scores.db*"))
    search = ("search", run, "--searcher", "random", "--trials", 2, "--bn-batches", 1)
    commands: list[tuple[object, ...]] = [
        (*TRAIN, disk / "new"),
        ("retrain", run, "--arch", ARCH),
        search,
        ("evaluate", run, "--arch", ARCH),
        ("export", run, "--arch", ARCH, "--inherit"),
        ("draw", run, "--arch", ARCH, "--out", picture),
    ]
    picture.write_text("an earlier picture")
    before = content(run)
    for name, *arguments in commands:
        filler = fill(disk, 0 if name == "draw" else 4096)
        code, _, err = call(str(name), *arguments)
        filler.unlink()
        assert code == 1, (name, err)
        assert err.count("error: ") == 1, (name, err)
        assert "Traceback" not in err
        reason = err.splitlines()[-1]
        assert "No space left on device" in reason or "disk is full" in reason, (name, err)
        assert "cannot be written" in reason
        after = content(run)
        assert {path: after.get(path) for path in before} == before, name
        assert not [path for path in after if path.endswith(".tmp")], name
    assert picture.read_text() == "an earlier picture"
    for name, *arguments in commands:
        code, _, err = call(str(name), *arguments)
        assert code == 0, (name, err)
    assert picture.read_text().startswith("<svg")
    weights = "supernet.safetensors"
    assert (disk / "new" / weights).read_bytes() == (sound / weights).read_bytes()
    (result,) = (run / "retrain").glob("*/result.json")
    assert run_script("retrain", sound, "--arch", ARCH) == 0
    (expected,) = (sound / "retrain").glob("*/network.safetensors")
    assert result.with_name("network.safetensors").read_bytes() == expected.read_bytes()
    with Study(run / "search/random/study.db", open_run(run).space, read=True) as study:
        assert len(study) == 2
        assert not any(trial.failed for trial in study.trials())
