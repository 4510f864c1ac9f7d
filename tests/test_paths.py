"""Writes stay in their folder: names that lead out, links that were put in the way, and the modes of new files."""

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from searchers import Study
from supernet.errors import InputError, RunError
from supernet.files import _host, replacing, write_json
from supernet.paths import inside, lock_file, no_follow
from supernet.scoring.cache import ScoreCache
from supernet.space import Choice, SearchSpace
from supernet.training.checkpoint import save_weights

OUT = ("../outside", "/etc/passwd", "a/../../b", "..", "", ".", "a\0b")


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leads out of"):
        inside(tmp_path, "search", name)
    with pytest.raises(InputError, match=r"file_name .* leads out of"):
        inside(tmp_path, name, what="file_name", follow=True)


def test_names_within_are_joined_and_may_have_folders(tmp_path: Path) -> None:
    assert inside(tmp_path, "search", "a b.c/..d") == tmp_path / "search" / "a b.c" / "..d"
    assert inside(Path("runs"), "x") == Path("runs/x")


def test_links_that_lead_out_are_refused_and_others_are_not(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    (elsewhere / "deep").mkdir(parents=True)
    (run / "retrain").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"run/retrain is a link that leads out of .*run.*remove the link"):
        inside(run, "retrain", "key")
    assert inside(run, "retrain", "key", follow=True) == run / "retrain" / "key"
    (run / "kept").mkdir()
    (run / "search").symlink_to(run / "kept")
    assert inside(run, "search", "name") == run / "search" / "name"
    (tmp_path / "named").symlink_to(run)  # the folder itself may be a link: the user named it
    assert inside(tmp_path / "named", "export") == tmp_path / "named" / "export"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "search").symlink_to("search")
    for folder, name in ((tmp_path / "loop", "images"), (tmp_path / "run", "search")):
        with pytest.raises(InputError, match="a link in it leads in a circle; remove the link"):
            inside(folder, name)


def test_temporary_names_cannot_be_foreseen_and_links_are_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    names = set()
    for _ in range(3):
        with replacing(tmp_path / "file.json") as temporary:
            assert temporary.parent == tmp_path
            assert not temporary.read_bytes()  # created here
            names.add(temporary.name)
            temporary.write_text("new")
    assert len(names) == 3
    (tmp_path / "result.json").symlink_to(victim)
    write_json(tmp_path / "result.json", {"format": 1})
    assert victim.read_text() == "precious"
    assert not (tmp_path / "result.json").is_symlink()


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / f".file.json.{_host()}{os.getpid() & 0xFFFFFF:06x}guessed.tmp").symlink_to(victim)
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "file.json", {})
    assert victim.read_text() == "precious"


def test_files_have_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "weights.safetensors", nn.Linear(2, 2), {})
        write_json(tmp_path / "a.json", {})
        with replacing(tmp_path / "b.pt") as temporary:
            torch.save({}, temporary)
    finally:
        os.umask(before)
    for name in ("weights.safetensors", "a.json", "b.pt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644, name


def test_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_json(path, {})
    assert path.is_file()


def test_locks_are_not_opened_through_links(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match=r"\.lock is not a file of this project but a link"):
        lock_file(tmp_path / ".lock")
    (tmp_path / "folder.lock").mkdir()
    with pytest.raises(InputError, match=r"folder\.lock is not a file of this project"):
        lock_file(tmp_path / "folder.lock")
    space = SearchSpace("s", [Choice("op", ("a", "b"))])
    for name in ("study.db", "scores.db"):
        (tmp_path / f"{name}.lock").symlink_to(victim)
    with pytest.raises(InputError, match=r"study\.db\.lock is not a file"):
        Study(tmp_path / "study.db", space)
    with pytest.raises(InputError, match=r"scores\.db\.lock is not a file"):
        ScoreCache(tmp_path / "scores.db")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_databases_are_not_opened_through_links(ending: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / f"scores.db{ending}").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=rf"scores\.db{ending} is a link"):
        ScoreCache(tmp_path / "scores.db")
    assert (tmp_path / "victim").read_bytes() == b""


def test_files_that_grow_are_not_opened_through_links(tmp_path: Path) -> None:
    (tmp_path / "latency.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), open(tmp_path / "latency.jsonl", "a", opener=no_follow):
        pass
    assert not (tmp_path / "victim").exists()
