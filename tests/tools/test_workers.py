"""A flag starts more processes of a command, which end with it, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supernet.errors import InputError
from supernet_tools.pipeline.workers import workers

SCRIPT = """
import os, sys, time
from supernet_tools.pipeline.workers import workers
with workers(3):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    line = " ".join([str(os.getpid()), *(os.environ[name] for name in names), sys.argv[1]])
    os.write(1, f"{line}\\n".encode())  # at once, whether Python buffers or not: three processes share the pipe
    if "fails" in sys.argv:
        time.sleep(1 if os.environ["RANK"] == "0" else 1000)
        raise SystemExit(3)
if os.environ.get("RANK") is None:
    print("restored", flush=True)
"""


@pytest.mark.parametrize(("argument", "code"), [("works", 0), ("fails", 3)])
def test_processes_of_one_command_are_a_group_and_end_with_it(tmp_path: Path, argument: str, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), argument], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert lines[-1:] == ["restored"] if argument == "works" else "restored" not in lines
    rows = sorted((line.split() for line in lines if line != "restored"), key=lambda row: row[1])
    assert [row[1:] for row in rows] == [[str(rank), str(rank), "3", "3", "127.0.0.1", argument] for rank in range(3)]
    for row in rows:
        with pytest.raises(ProcessLookupError):
            os.kill(int(row[0]), 0)


def test_one_process_is_the_command_itself() -> None:
    before = dict(os.environ)
    with workers(1):
        assert dict(os.environ) == before


def test_torchrun_and_the_flag_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="workers=2: torchrun has started the processes already"), workers(2):
        pass
