"""Spaces and data sets that users write: whatever they do wrong is one line that names them; Ctrl-C stays Ctrl-C."""

import os
import signal
import time
from pathlib import Path

import pytest

from helpers.scripts import Call, one_line
from supernet.config import Data
from supernet.data.load import load
from supernet.errors import InputError, RunError
from supernet.spaces import create_network, create_supernet
from supernet.user_code import calling

MODULES = {
    "exits": ("import sys\nsys.exit(7)", "cannot be imported: it ends the program with exit code 7"),
    "keyboard": ("raise KeyboardInterrupt", "cannot be imported: KeyboardInterrupt (keyboard.py, line 1)"),
    "broken": ("x = (1,", "cannot be imported: SyntaxError: '(' was never closed (broken.py, line 1)"),
    "raises": ("raise RuntimeError('at\\nimport')", "cannot be imported: RuntimeError: at; import (raises.py, line 1)"),
    "lacks": ("import no_such_package_x", "cannot be imported: No module named 'no_such_package_x'; is its folder on"),
    "nothing": ("", "cannot be imported: nothing has no 'make'; is its folder on PYTHONPATH?"),
    "number": ("make = 5", "cannot be called: 'make' is of type int, not a function"),
}
"""Modules that cannot be used, and what is said of them."""

BODIES = {
    "exit": ("import os\n    raise SystemExit(3)", "failed: it ends the program with exit code 3"),
    "interrupt": ("raise KeyboardInterrupt", "failed: KeyboardInterrupt (interrupt.py, line 2)"),
    "recurse": ("return make(*args, **more)", "failed: RecursionError: maximum recursion depth exceeded"),
    "memory": ("raise MemoryError('too much')", "failed: MemoryError: too much (memory.py, line 2)"),
    "lines": ("raise TypeError('one\\ntwo')", "failed: TypeError: one; two (lines.py, line 2)"),
    "empty": ("raise LookupError", "failed: LookupError (empty.py, line 2)"),
    "own": ("from supernet.errors import InputError\n    raise InputError('no\\nscans')", "failed: no; scans"),
    "text": ("print('hello')\n    return 5", "returned int"),
}
"""Bodies of a function that fails, and what is said of it."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with one module per entry of both tables."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, (source, _) in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source + "\n")
    for name, (body, _) in BODIES.items():
        (tmp_path / f"{name}.py").write_text(f"def make(*args, **more):\n    {body}\n")
    (tmp_path / "no_arguments.py").write_text("def make():\n    return 5\n")
    return tmp_path


@pytest.mark.parametrize("name", [*MODULES, *BODIES])
def test_what_goes_wrong_is_one_line_that_names_the_function(module: Path, name: str) -> None:
    expected = (MODULES | BODIES)[name][1]
    for use in (
        lambda: load(Data(f"{name}:make")),
        lambda: create_supernet(f"{name}:make"),
        lambda: create_network(f"{name}:make", arch={}),
    ):
        with pytest.raises(InputError) as caught:
            use()
        message = str(caught.value)
        assert f"'{name}:make'" in message
        assert expected in message
        assert len(message.splitlines()) == 1


def test_functions_that_cannot_be_called_as_needed(module: Path) -> None:
    with pytest.raises(InputError, match=r"'no_arguments:make' failed: TypeError: make\(\) takes 0 positional"):
        load(Data("no_arguments:make"))
    with pytest.raises(InputError, match=r"the space 'no_arguments:make' has no setting 'num_classes'"):
        create_supernet("no_arguments:make", num_classes=3)
    with pytest.raises(InputError, match=r"the space 'builtins:dict' is no function whose arguments can be listed"):
        create_supernet("builtins:dict")


def test_a_real_interrupt_is_passed_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), calling("x"):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before

    class Terminated(KeyboardInterrupt):
        """As the commands raise it for SIGTERM."""

    with pytest.raises(Terminated), calling("x"):
        raise Terminated
    with pytest.raises(RunError, match="full"), calling("x"):
        raise RunError("full")


PLUGIN = """
from supernet.spaces.shufflenet import shufflenet_small

def build(num_classes=10, input_size=32, in_channels=3):
    small = {"depths": (1, 1, 1), "widths": (8, 16, 24), "stem": 4}
    return shufflenet_small(num_classes=num_classes, input_size=input_size, in_channels=in_channels, **small)

def scans(config):
    import dataclasses
    from supernet.data import load
    return load(dataclasses.replace(config, source="digits"))
"""


def test_an_installed_plug_in_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """Neither the space nor the data set needs --trust: the user has installed the package."""
    site, run = tmp_path / "site-packages", tmp_path / "run"
    information = site / "scanner-1.dist-info"
    information.mkdir(parents=True)
    (site / "scanner_plugin.py").write_text(PLUGIN)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: scanner\nVersion: 1\n")
    groups = ("[supernet.spaces]", "scanner-space = scanner_plugin:build")
    more = ("[supernet.datasets]", "scanner-scans = scanner_plugin:scans")
    (information / "entry_points.txt").write_text("\n".join((*groups, *more)) + "\n")
    missing = ("search", run, "--searcher", "random", "--trials", 2, "--bn-batches", 1)
    settings = ("--train.epochs", 1, "--train.batch", 512, "--data.size", 8, "--data.calibration", 64)
    named = ("--space", "scanner-space", "--data.source", "scanner-scans")
    one_line(call("train_supernet", "macro-digits", *named, *settings, "--out", run), "scanner-space")
    monkeypatch.syspath_prepend(str(site))
    code, _, err = call("train_supernet", "macro-digits", *named, *settings, "--out", run)
    assert code == 0, err
    code, _, err = call(*missing)
    assert code == 0, err
    monkeypatch.undo()
    one_line(call(*missing), "scanner-space")
