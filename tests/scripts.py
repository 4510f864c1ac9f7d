"""Scripts of `tools/` run in this process, which saves seconds of imports each."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
Call = Callable[..., tuple[int, str, str]]
"""Name of a script and its arguments to exit code, output and errors."""


def run_script(name: str, *arguments: object) -> int:
    """The exit code."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        patch.setattr("warnings.showwarning", lambda *_: None)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        try:
            module.main(module.run)
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
