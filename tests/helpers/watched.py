"""Runs scripts of `tools/` in one process and records what they should never do with folders that were received.

`run_all` needs a process of its own, since audit hooks cannot be removed.
"""

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = {"git", "uname"}
"""What run folders and latencies are written with: the commit, and the name of the processor."""

LIBRARIES = ("detection.predictions", "supernet_tools.pipeline.detector", "supernet_tools.pipeline.compare")
LIBRARIES += ("supernet.export", "supernet.drawing", "supernet.ranking.report", "searchers.morphnet", "timm.data")

STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect", "urllib.Request"}
MOVES = {"os.rename": 2, "os.mkdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1, "os.chmod": 1, "os.rmdir": 1}
MOVES |= {"os.remove": 1, "sqlite3.connect": 1}
"""Audit events to the number of paths among their arguments."""


class Watch:
    """An audit hook that notes deeds while it is on."""

    def __init__(self, allowed: list[str], forbidden: str) -> None:
        self.allowed = [os.path.realpath(folder) for folder in allowed]
        self.forbidden = os.path.realpath(forbidden)
        self.on = False
        self.deeds: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # for what is done here
        try:
            self._note(event, args)
        finally:
            self.on = True

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "exec" and self._is_in(args[0].co_filename, [self.forbidden]):
            self.deeds.append(f"executed {args[0].co_filename}")
        elif event in STARTS or (event == "subprocess.Popen" and Path(str(args[0])).name not in PROGRAMS):
            self.deeds.append(f"{event} {args[:2]}")
        elif event == "open" and isinstance(args[0], str | bytes) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._write(event, args[0])
        else:
            for path in args[: MOVES.get(event, 0)]:
                if isinstance(path, str | bytes | Path):
                    self._write(event, path)

    def _write(self, event: str, path: str | bytes | Path) -> None:
        name = os.fsdecode(path)
        if event == "sqlite3.connect" and name.startswith("file:"):
            if "mode=ro" in name.partition("?")[2]:
                return
            name = name.partition("?")[0].removeprefix("file:").removeprefix("//")
        place = os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
        if event in ("open", "sqlite3.connect"):  # the others act on a link itself
            place = os.path.realpath(place)
        folder = os.path.dirname(place)  # folders in /dev/shm are those of the tests, and its files are semaphores
        device = self._is_in(place, ["/dev", "/proc"]) and not folder.startswith("/dev/shm/")
        if name != ":memory:" and not device and not self._is_in(place, self.allowed):
            self.deeds.append(f"{event} {name}")

    @staticmethod
    def _is_in(path: str, folders: list[str]) -> bool:
        return any(path == folder or path.startswith(f"{folder}/") for folder in folders)

    def imported(self) -> list[str]:
        """The modules that lie in the forbidden folder."""
        files = {name: str(getattr(module, "__file__", None) or "") for name, module in sys.modules.items()}
        return [f"imported {name}" for name, file in files.items() if self._is_in(file, [self.forbidden])]


def run_all(jobs: str, run_script: Callable[..., int]) -> None:
    """Runs every call and prints what it did, a JSON list of `{"code", "err", "deeds"}`.

    Args:
        jobs: a JSON file of `{"allowed": [folders], "forbidden": folder, "calls": [[script, argument, …], …]}`.
        run_script: see `helpers.scripts`.
    """
    for module in LIBRARIES:  # what these do when they are imported is not the question
        importlib.import_module(module)
    document = json.loads(Path(jobs).read_text(encoding="utf-8"))
    watch = Watch(document["allowed"], document["forbidden"])
    sys.addaudithook(watch)
    answers = []
    for name, *arguments in document["calls"]:
        out, err = io.StringIO(), io.StringIO()
        watch.deeds = []
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            watch.on = True
            try:
                code = run_script(name, *arguments)
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
            finally:
                watch.on = False
        answers.append({"code": code, "err": err.getvalue(), "deeds": [*watch.deeds, *watch.imported()]})
        for module in [module for module in sys.modules if module.partition(".")[0] == "planted"]:
            del sys.modules[module]
    print(json.dumps(answers))
