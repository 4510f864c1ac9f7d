"""What tests of several files ask for."""

import signal

import pytest

from helpers.scripts import Call, run_script

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def forked_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets exports compare their outputs in forks of one process; tests/export does so in a new one as well."""
    from helpers.apart import server

    monkeypatch.setattr("supernet.export.parity._run_runner", server)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a script of `tools/` in this process."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        code = run_script(name, *arguments)
        return code, *capfd.readouterr()

    return run
