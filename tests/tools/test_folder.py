"""Run folders have one writer, know their settings, and name what does not belong to them."""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line
from helpers.tiny import TINY, TINY_SPACE
from supernet.config import Data, Train, from_dict
from supernet.errors import InputError
from supernet.files import read_json, write_json
from supernet_tools.pipeline.config import DetectorRun, SupernetRun
from supernet_tools.pipeline.folder import check_run, claim_run, removed_on_failure


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(InputError, match=r"file cannot be written to; give another folder"):
        check_run(blocked / "run", "supernet", SupernetRun())
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o500)
    if not os.access(folder, os.W_OK):  # the superuser writes anywhere
        with pytest.raises(InputError, match=r"readonly cannot be written to"):
            check_run(folder / "run", "supernet", SupernetRun())


def test_a_run_folder_knows_its_settings(tmp_path: Path) -> None:
    config = SupernetRun(data=Data(size=16), train=Train(epochs=3))
    folder = tmp_path / "run"
    with claim_run(folder, "supernet", config):
        pass
    assert from_dict(SupernetRun, read_json(folder / "run.json")["config"]) == config
    with claim_run(folder, "supernet", dataclasses.replace(config, train=Train(epochs=3, save_seconds=1.0))):
        pass
    document = read_json(folder / "run.json")  # as an earlier release would have written it
    del document["config"]["largest_epochs"], document["config"]["train"]["ema"], document["config"]["window"]
    write_json(folder / "run.json", document)
    assert from_dict(SupernetRun, read_json(folder / "run.json")["config"]) == config
    with claim_run(folder, "supernet", config):
        pass
    changed = dataclasses.replace(config, train=Train(epochs=4))
    with (
        pytest.raises(InputError, match=r"another run: train\.epochs is 3 there and 4 here"),
        claim_run(folder, "supernet", changed),
    ):
        pass
    with (
        pytest.raises(InputError, match="holds a supernet run, not a retrain run"),
        claim_run(folder, "retrain", config),
    ):
        pass
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no run"), claim_run(foreign, "supernet", config):
        pass
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"), claim_run(folder, "supernet", config):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    def claim() -> None:
        with pytest.raises(InputError, match="another process is writing"), claim_run(tmp_path / "run", "x", Train()):
            pass

    with claim_run(tmp_path / "run", "x", Train()):
        process = multiprocessing.get_context("fork").Process(target=claim)
        process.start()
        process.join()
    assert process.exitcode == 0
    with claim_run(tmp_path / "run", "x", Train()):  # it is free again
        pass


def test_a_folder_of_another_release_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim_run(folder, "supernet", SupernetRun()):
        pass
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "format": 1})
    with pytest.raises(InputError, match=r"run was written by another release \(format 1, this one reads 2\)"):
        check_run(folder, "supernet", SupernetRun())
    write_json(folder / "run.json", {"format": 2, "kind": "supernet"})
    with pytest.raises(InputError, match=r"run\.json is damaged: it lacks 'config'"):
        check_run(folder, "supernet", SupernetRun())


def test_a_detector_of_an_older_release_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claim_run(folder, "detector", DetectorRun()):
        pass
    check_run(folder, "detector", DetectorRun())
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "format": 2})
    with pytest.raises(InputError, match=r"holds a detector of an older release.*; train again in a new folder"):
        check_run(folder, "detector", DetectorRun())


def fail_after_decoding(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "train.bin").touch()
    raise InputError("no such space")


def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    for folder in (new, old):
        with pytest.raises(InputError, match="no such space"), removed_on_failure(folder):
            fail_after_decoding(folder)
    assert not new.exists()
    assert list(old.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), removed_on_failure(new), claim_run(new, "supernet", SupernetRun()):
        raise KeyboardInterrupt
    assert (new / "run.json").exists()  # a run that started stays


def test_a_run_of_another_space_is_refused(tiny_run: Path, call: Call) -> None:
    """An earlier release did not record the space, and its runs are read."""
    document = read_json(tiny_run / "run.json")
    arch = json.dumps({f"stage{stage}.block0.op": "shuffle3" for stage in (1, 2, 3)})
    again = ("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", tiny_run)
    search = ("search", tiny_run, "--searcher", "random", "--trials", 1)
    for digest in ("0" * 16, None):
        write_json(tiny_run / "run.json", {**document, "space_digest": digest})
        for command in (search, ("retrain", tiny_run, "--arch", arch), again):
            one_line(call(*command), "run.json was made with another space 'shufflenet-small' (digest", "train again")
    assert not (tiny_run / "search").exists()
    assert not (tiny_run / "retrain").exists()
    del document["space_digest"]
    write_json(tiny_run / "run.json", document)
    for command in (search, again):
        code, _, err = call(*command)
        assert code == 0, err
