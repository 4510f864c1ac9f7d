"""What tests of several files ask for."""

import pytest

from helpers.scripts import Call, run_script


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a script of `tools/` in this process."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        code = run_script(name, *arguments)
        return code, *capfd.readouterr()

    return run
