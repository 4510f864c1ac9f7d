"""Scripts of `tools/` run in this process, which saves seconds of imports each."""

import importlib
import sys
from collections.abc import Callable

import pytest

from supernet_tools.pipeline import command_line

Call = Callable[..., tuple[int, str, str]]
"""Name of a script and its arguments to exit code, output and errors."""


def run_script(name: str, *arguments: object) -> int:
    """The exit code."""
    module = importlib.import_module(f"supernet_tools.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.showwarning", lambda *_: None)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            command_line.main(module.run)
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else 1
    return 0


def one_line(result: tuple[int, str, str], *fragments: str) -> None:
    """Exit code 2, nothing on standard output, and one line that holds all fragments."""
    code, out, err = result
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
