"""What somebody sent runs nothing and writes nowhere else: hostile folders and files, opened by every command.

The commands run in one process of their own under an audit hook; its working folder and the folders themselves hold
modules that would be imported if a name in a file were enough.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import watched
from helpers.coco import make_coco
from helpers.fit_plans import plan_of, setting
from helpers.scripts import run_script
from helpers.tiny import TINY, TINY_SPACE
from searchers import Study
from supernet_tools.pipeline.command_line import COMMANDS
from supernet_tools.pipeline.config import DetectorRun
from supernet_tools.pipeline.folder import DETECTOR_FORMAT
from supernet_tools.pipeline.runs import open_run

ARCH = '{"stage1.block0.op": "shuffle3", "stage2.block0.op": "shuffle3", "stage3.block0.op": "shuffle3"}'
PLANTED = """
from pathlib import Path

Path({victims!r}, "marker").touch()

def build(**settings):
    Path({victims!r}, "called").touch()

scans = build
"""

OPENING = {
    "search": ("--trials", 1, "--searcher", "random"),
    "select_network": ("--search", "random", "--trainings", 2),
    "evaluate": ("--arch", ARCH),
    "retrain": ("--arch", ARCH, "--epochs", 1),
    "export": ("--arch", ARCH, "--inherit"),
    "predict": ("--arch", ARCH),
    "draw": ("--arch", ARCH),
    "report": (),
    "fidelity": ("--truth", "retrain", "--n", 1),
    "morphnet": ("--max-macs", 1e6),
}
"""Every command that opens a run, with arguments that let it go as far as it can."""

CODE: dict[str, dict[str, Any]] = {
    "hub": {"space": "torch.hub:load", "space_settings": ['repo_or_dir="HUB"', 'model="x"', 'source="local"']},
    "popen": {"space": "subprocess:Popen", "space_settings": ['args=["touch", "VICTIMS/popen"]']},
    "planted": {"space": "planted:build"},
    "nested": {"space": "package.planted:build"},
    "own-module": {"space": "supernet.files:commit"},
    "data": {"data": {"source": "planted:scans"}},
    "hugging-face": {"data": {"source": "timm:hfds/planted", "root": "VICTIMS"}},
}
"""Changes of run.json that name code."""


class Payload:
    """Runs a command when it is unpickled without care."""

    def __init__(self, victims: Path) -> None:
        self.victims = victims

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.victims / 'unpickled'}",)


@pytest.fixture(scope="module")
def trained(tiny_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest run with a search."""
    out = shutil.copytree(tiny_trained, tmp_path_factory.mktemp("honest") / "run")
    assert run_script("search", out, "--searcher", "random", "--trials", 2, "--bn-batches", 1) == 0
    return out


class Stage:
    """Folders for attacks: `work` is the working folder of the commands, `victims` must stay as it is."""

    def __init__(self, root: Path, trained: Path) -> None:
        self.work, self.victims, self.runs = root / "work", root / "victims", root / "runs"
        self.trained = trained
        for folder in (self.work, self.victims / "folder", self.runs):
            folder.mkdir(parents=True)
        (self.victims / "precious").write_text("precious")
        (self.victims / "empty").touch()
        self._plant(self.work)
        self.calls: list[tuple[object, ...]] = []

    def _plant(self, folder: Path) -> None:
        (folder / "package").mkdir()
        (folder / "hub").mkdir()
        text = PLANTED.format(victims=str(self.victims))
        for name in ("planted.py", "package/planted.py", "hub/hubconf.py"):
            (folder / name).write_text(text)
        (folder / "planted-1.dist-info").mkdir()  # as if a package were installed here
        (folder / "planted-1.dist-info" / "METADATA").write_text("Name: planted\nVersion: 1\n")
        points = "[supernet.spaces]\nplanted = planted:build\n[supernet.datasets]\nplanted = planted:scans\n"
        (folder / "planted-1.dist-info" / "entry_points.txt").write_text(points)

    def run(self, name: str, **changes: Any) -> Path:
        """A copy of the honest run with other settings in its run.json."""
        folder = self.runs / name
        shutil.copytree(self.trained, folder)
        self._plant(folder)
        path = folder / "run.json"
        document = json.loads(path.read_text())
        for key, value in changes.items():
            part = document["config"].get(key)
            document["config"][key] = {**part, **value} if isinstance(part, dict) else value
        text = json.dumps(document).replace("VICTIMS", str(self.victims)).replace("HUB", str(self.work / "hub"))
        path.write_text(text)
        return folder

    def open_all(self, folder: Path, commands: tuple[str, ...] = tuple(OPENING)) -> None:
        """Notes the commands that open a run."""
        self.calls += [(name, folder, *OPENING[name]) for name in commands]

    def answers(self, *path: Path) -> list[dict[str, Any]]:
        """Runs what was noted in one process, with these folders on PYTHONPATH."""
        allowed = [str(self.runs), str(self.work / "out")]
        calls = [[str(argument) for argument in call] for call in self.calls]
        jobs, said = (self.runs.parent / name for name in ("jobs.json", "answers.json"))
        jobs.write_text(json.dumps({"allowed": allowed, "forbidden": str(self.runs.parent), "calls": calls}))
        child = os.fork()  # the libraries are loaded already
        if child == 0:
            try:
                self._run_here(jobs, said, path)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        events: list[dict[str, Any]] = json.loads(said.read_text())
        return [{"call": call, **answer} for call, answer in zip(calls, events, strict=True)]

    def _run_here(self, jobs: Path, said: Path, path: tuple[Path, ...]) -> None:
        """Runs the calls as `python -c` would, which looks for modules in the working folder first."""
        os.chdir(self.work)
        sys.path[:] = ["", *map(str, path), *sys.path]
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, path))
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        with said.open("w") as file, contextlib.redirect_stdout(file):
            watched.run_all(str(jobs), run_script)

    def state(self) -> dict[str, bytes]:
        """What the victims hold."""
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in self.victims.rglob("*")}


@pytest.fixture
def stage(trained: Path, tmp_path: Path) -> Stage:
    return Stage(tmp_path, trained)


def refused(answer: dict[str, Any], *fragments: str) -> None:
    """One line that holds the fragments."""
    errors = [line for line in answer["err"].splitlines() if line.startswith("error: ")]
    assert answer["code"] in (1, 2), answer
    assert len(errors) == 1, answer
    assert "Traceback" not in answer["err"]
    for fragment in fragments:
        assert fragment in errors[0], answer


# -- everything, opened by every command ------------------------------------------------------------------------------


def test_hostile_folders_run_nothing_and_write_nowhere_else(stage: Stage) -> None:
    expected: list[tuple[str, ...]] = []

    def expect(*fragments: str) -> None:
        """What the calls since the last time answer."""
        expected.extend([fragments] * (len(stage.calls) - len(expected)))

    for name, changes in CODE.items():  # one kind of each setting by every command, the other kinds by two of them
        run, everything = stage.run(name, **changes), name in ("planted", "data")
        stage.open_all(run, tuple(OPENING) if everything else ("search", "retrain"))
        if everything:
            stage.calls.append(("export", run, "--search", "random", "--front"))
        named = changes.get("space") or changes["data"]["source"]
        expect("run.json", repr(named), f"--trust {named}")
    plugin = stage.run("plug-in", space="planted")
    stage.open_all(plugin, ("search", "evaluate", "draw"))
    expect("no space 'planted'")
    detector(stage, stage.runs / "detector")
    stage.open_all(stage.runs / "detector")
    expect("run.json", "'planted:build' as its backbone", "--trust planted:build")
    trusted = stage.run("trusted", space="planted:build")
    stage.calls += [(name, trusted, *OPENING[name], "--trust", "planted:build") for name in ("search", "evaluate")]
    stage.calls.append(("train_supernet", "quickstart", "--space", "planted:build", "--out", stage.runs / "new"))
    stage.calls.append(("draw", "planted:build", "--arch", ARCH))
    expect("'planted:build' would be imported from", "PYTHONPATH")

    hostile_plans(stage, expect)
    hostile_links(stage, expect)
    hostile_exports(stage, expect)
    hostile_files(stage, expect)
    before = stage.state()
    answers = stage.answers()
    assert stage.state() == before
    assert len(answers) == len(expected)
    for answer, fragments in zip(answers, expected, strict=True):
        assert not answer["deeds"], answer
        refused(answer, *fragments)


def detector(stage: Stage, folder: Path) -> None:
    """A detector's run whose backbone is code."""
    folder.mkdir()
    document = json.loads((stage.trained / "run.json").read_text())
    config = dataclasses.asdict(DetectorRun(backbone="planted:build"))
    (folder / "run.json").write_text(
        json.dumps({**document, "format": DETECTOR_FORMAT, "kind": "detector", "config": config})
    )
    shutil.copy(stage.trained / "supernet.safetensors", folder)
    (folder / "preprocess.json").write_text("{}")  # does not turn the run into an export


def hostile_links(stage: Stage, expect: Any) -> None:
    """Links in a run that lead out of it, and names that do."""
    away = stage.victims / "folder"
    for name, commands in (
        ("search", ("search",)),
        ("retrain", ("retrain",)),
        ("export", ("export",)),
        ("fidelity", ("fidelity",)),
        ("images", ("retrain",)),
        ("select", ("select_network",)),
    ):
        folder = stage.run(f"link-{name}")
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(away)
        arguments = {"fidelity": ("--truth", "retrain", "--n", 2, "--epochs", 1, "--name", "report")}
        stage.calls += [(command, folder, *arguments.get(command, OPENING[command])) for command in commands]
        expect(f"link-{name}/{name} is a link that leads out of")
    for name in ("scores.db", "scores.db.lock", "scores.db-wal"):
        folder = stage.run(f"link-{name}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(stage.victims / ("precious" if name.endswith("lock") else "empty"))
        stage.open_all(folder, ("evaluate",))
        expect(name)
    folder = stage.run("link-page")
    (folder / "report.html").symlink_to(stage.victims / "precious")
    stage.open_all(folder, ("report",))
    expect("report.html is a link that leads out of")
    folder = stage.run("link-study")
    for name in ("study.db", "study.db.lock"):
        (folder / "search" / "random" / name).unlink()
        (folder / "search" / "random" / name).symlink_to(stage.victims / "precious")
        stage.open_all(folder, ("search",))
        expect("study.db")
    folder = stage.runs / "link-lock"
    folder.mkdir()
    (folder / ".lock").symlink_to(stage.victims / "precious")
    stage.calls.append(("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", folder))
    expect(".lock is not a file of this project but a link")
    folder = stage.run("names")
    for name in ("../outside", "/tmp/outside"):  # tests/test_paths.py has more of them
        stage.calls.append(("search", folder, "--searcher", "random", "--trials", 1, "--name", name))
        stage.calls.append(("evaluate", folder, "--search", name))
        stage.calls.append(("morphnet", folder, "--max-macs", 1e6, "--name", name))
        stage.calls.append(("fidelity", folder, "--truth", "retrain", "--n", 1, "--name", name))
        expect(repr(name))
    costs(folder, "x/../../escaped")
    stage.calls.append(("evaluate", folder, "--search", "random"))
    stage.calls.append(("export", folder, "--search", "random", "--inherit"))
    expect("costs.json", "damaged")


def costs(folder: Path, batch: object) -> None:
    """Lets a search look as if it had limited latency, with these settings."""
    space = open_run(folder).space
    with Study(folder / "search" / "random" / "study.db", space) as study:
        study.set_settings({**(study.settings or {}), "feasible": {"latency_ms": 1e9}})
    (folder / "search" / "random" / "costs.json").write_text(json.dumps({"format": 2, "latency_batch": batch}))


def hostile_exports(stage: Stage, expect: Any) -> None:
    """An export whose model.py does what it likes, with the right hashes beside it."""
    folder = stage.runs / "exported"
    folder.mkdir()
    (folder / "model.py").write_text(PLANTED.format(victims=str(stage.victims)))
    for name in ("model.safetensors", "model.pt2"):
        (folder / name).write_bytes(b"")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    parity = {"format": 1, "sha256": hashes, "inputs": {"shapes": [[1, 3, 8, 8]]}, "requires": []}
    (folder / "parity.json").write_text(json.dumps(parity))
    (folder / "preprocess.json").write_text(json.dumps({"input_size": 8, "longest": 8}))
    Image.new("RGB", (8, 8)).save(stage.work / "a.png")
    stage.calls.append(("predict", folder, "--images", stage.work / "a.png", "--out", stage.work / "out"))
    stage.calls.append(("evaluate", stage.run("honest"), "--exported", folder))
    expect("model.py is executed", "--run-code")
    run = stage.run("both")  # a run in which an export was planted
    for path in folder.iterdir():
        shutil.copy(path, run)
    stage.calls.append(("predict", run, "--images", stage.work / "a.png", "--out", stage.work / "out"))
    expect("no search 'aging-evolution'")


def hostile_files(stage: Stage, expect: Any) -> None:
    """Checkpoints that are pickles, annotations that point elsewhere, tables with formulas."""
    run = stage.run("pickled")
    torch.save({"format": 2, "model": Payload(stage.victims)}, run / "state.pt")
    os.replace(run / "state.pt", run / "supernet.safetensors")
    stage.open_all(run, ("search", "evaluate", "export"))
    expect("supernet.safetensors")
    unfinished = stage.run("unfinished")
    (unfinished / "supernet.safetensors").unlink()
    torch.save({"format": 2, "model": Payload(stage.victims)}, unfinished / "state.pt")
    stage.calls.append(("train_supernet", "quickstart", *TINY, *TINY_SPACE, "--out", unfinished))
    expect("state.pt")
    torch.save({"model": Payload(stage.victims)}, stage.work / "backbone.pth")
    fixed = ("--neck", "nasfpn", "--start", "classification", "--settings", "levels=2", "repeats=1", "cells=5")
    stage.calls.append(
        (
            *(
                "train_supernet",
                "detnas-digits",
                *fixed,
                "--backbone-arch",
                ARCH,
                "--backbone-settings",
                *TINY_SPACE[1:],
            ),
            *("--pretrained", stage.work / "backbone.pth", "--out", stage.runs / "new"),
        )
    )
    expect("backbone.pth")
    for file in annotations(stage):
        images = ("--data.source", file, "--data.images", file.parent)
        stage.calls.append(("train_supernet", "detnas-bccd", *images, "--out", stage.runs / "new"))
    expect("image 100")
    (stage.work / "truth.csv").write_text("arch,accuracy\n\"__import__('os').system('touch x')\",0.5\n=1+1,0.5\n")
    stage.calls.append(("fidelity", stage.run("csv"), "--truth", stage.work / "truth.csv"))
    expect("truth.csv")
    web = ("--data.source", "timm:wds/planted", "--data.root", "pipe:touch victims")
    stage.calls.append(("train_supernet", "quickstart", *TINY, *web, "--out", stage.runs / "new"))
    expect("timm:wds/planted", "pipe:touch victims")


def annotations(stage: Stage) -> Iterator[Path]:
    """Annotation files whose first image is elsewhere."""
    shutil.copy(make_coco(stage.work / "coco").parent / "train" / "0.png", stage.victims / "secret.png")
    for number, name in enumerate(("../../victims/secret.png", str(stage.victims / "secret.png"))):
        document = json.loads((stage.work / "coco" / "train.json").read_text())
        document["images"][0]["file_name"] = name
        file = stage.work / "coco" / f"hostile{number}.json"
        file.write_text(json.dumps(document))
        yield file


def hostile_plans(stage: Stage, expect: Any) -> None:
    """Runs that somebody began with `fit`, whose plan names code as its space."""
    for name, space, settings in (
        ("hub", "torch.hub:load", [f'repo_or_dir="{stage.work / "hub"}"', 'model="x"', 'source="local"']),
        ("popen", "subprocess:Popen", [f'args=["touch", "{stage.victims / "popen"}"]']),
        ("planted", "planted:build", []),
    ):

        def change(document: dict[str, Any], space: str = space, settings: list[str] = settings) -> None:
            setting("space", space)(document)
            setting("space_settings", settings)(document)

        stage.calls.append(("fit", "digits", "--out", plan_of(stage.runs / f"plan-{name}", change)))
        expect("fit.json", repr(space), f"--trust {space}")


def test_every_command_is_attacked() -> None:
    """A new command needs its lines above."""
    assert {*OPENING, "train_supernet", "fit", "quickstart"} == set(COMMANDS.values())


# -- the watch itself, and what remains possible ----------------------------------------------------------------------


def test_the_watch_sees_what_it_should(stage: Stage) -> None:
    """The test above relies on it: code that the user trusts and has put on PYTHONPATH does run, and is seen."""
    run = stage.run("watched", space="planted:build")
    stage.calls.append(("search", run, "--searcher", "random", "--trials", 1, "--trust", "planted:build"))
    stage.calls.append(("draw", "nasnet-a-large", "--out", stage.victims / "folder" / "cell.svg"))
    imported, wrote = (answer["deeds"] for answer in stage.answers(stage.work))
    assert f"executed {stage.work / 'planted.py'}" in imported
    assert "imported planted" in imported
    assert any(f"{stage.victims / 'marker'}" in deed for deed in imported)
    assert any("cell.svg" in deed for deed in wrote)
    assert (stage.victims / "marker").exists()
    assert (stage.victims / "folder" / "cell.svg").exists()
