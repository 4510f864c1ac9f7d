"""What tests of several files ask for."""

import os
import signal
import sys
from pathlib import Path

import pytest

# Compiled modules are kept, whatever the environment says: workers and all processes of the tests load them, and pytest
# rewrites the assertions of a file only once.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from helpers.scripts import Call, run_script  # noqa: E402

LONGEST = (
    "tools/test_tools_detection.py",
    "tools/test_tools.py",
    "tools/test_fit.py",
    "spaces/test_spaces.py",
    "export/test_export.py",
    "test_docs.py",
    "searchers/test_contract.py",
    "detection/test_detectors.py",
    "detection/test_detectors_behaviour.py",
    "detection/test_nasfpn.py",
    "tools/test_tools_elastic.py",
    "tools/test_select.py",
    "tools/test_tools_morphnet.py",
    "tools/test_benchmark_search.py",
    "training/test_train.py",
    "training/test_lead.py",
    "scoring/test_prefix.py",
)
"""Files of half a minute down to ten seconds. Two workers that take them first end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; everything else keeps its order."""
    root = Path(__file__).parent
    place = {root / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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
