"""The installed command `supernet` runs the scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supernet_tools.pipeline.command_line import COMMANDS, console

ROOT = Path(__file__).parents[2]


def test_every_command_is_listed_and_runs_its_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warnings.showwarning", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["supernet", "--help"])
    with pytest.raises(SystemExit, match="0"):
        console()
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in listed
    monkeypatch.setattr(sys, "argv", ["supernet", "draw", "nasnet-a", "--out", "/nowhere/x.svg"])
    with pytest.raises(SystemExit, match="2"):
        console()
    assert "error: " in capsys.readouterr().err


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["supernet", "serach"])
    with pytest.raises(SystemExit, match="2"):
        console()
    assert capsys.readouterr().err == "error: there is no command 'serach'; did you mean 'search'?\n"


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("supernet")
    if not command.exists():
        pytest.skip("the project is not installed in this environment")
    done = subprocess.run([command, "train", "quickstart", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: supernet train quickstart" in done.stdout


def test_a_reader_that_has_enough_ends_a_command_without_a_word() -> None:
    """As `python tools/search.py --help | head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, ROOT / "tools/evaluate.py", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
