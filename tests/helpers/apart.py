"""Outputs of exports in forks of one process that has loaded torch, and that cannot import this project either.

An export compares its outputs in a process of its own, most of whose time goes into loading torch.
"""

import atexit
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from supernet.export.runtime import runner

SERVER = """
import importlib.util, json, os, sys, traceback
from pathlib import Path

spec = importlib.util.spec_from_file_location("runner", sys.argv[1])
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
sys.meta_path.insert(0, runner.Block())
import torch
import torch._export.serde.serialize

torch.set_num_threads(1)


def run(arguments, cwd, errors):
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY), 2)
        os.chdir(cwd)
        folder, job, leading, threads = arguments
        torch.set_num_threads(int(threads))
        runner.run(Path(folder), Path(job), int(leading))
        code = 0
    except SystemExit as stopped:
        print(stopped, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Stands in for `supernet.export.parity._run_runner`; it starts with the first export."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, arguments: Sequence[str], cwd: str) -> tuple[int, str]:
        """Returns the exit code and what was written to standard error."""
        if self._process is None:
            command = [sys.executable, "-I", "-B", "-c", SERVER, runner.__file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as errors:
            print(json.dumps([list(arguments), cwd, errors.name]), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline()), errors.read()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


server = Server()
"""The one of this process."""
atexit.register(server.close)
