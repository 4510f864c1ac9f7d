"""The first twenty proposals of each searcher are recorded in golden.json, so that a change of them is noticed.

After an intended change: `PYTHONPATH=.:tests .venv/bin/python tests/searchers/test_golden.py`
"""

import importlib.metadata
import json
from pathlib import Path

import pytest

from helpers.searcher_cases import MAKERS, SPACES
from searchers.testing import searched

FILE = Path(__file__).with_name("golden.json")
OPTUNA = "optuna"  # its samplers may draw differently in another release


def proposals(name: str) -> dict[str, list[list[int]]]:
    """Index vectors of the first twenty trials, seed 0 and the stand-in score, by space."""
    return {
        key: [list(space.to_indices(trial.arch)) for trial in searched(MAKERS[name](space, seed=0), 20)]
        for key, space in SPACES.items()
    }


def version() -> str:
    return importlib.metadata.version(OPTUNA) if OPTUNA in MAKERS else "none"


@pytest.mark.parametrize("name", MAKERS)
def test_the_first_proposals_are_those_recorded(name: str) -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    if name == OPTUNA and version() != golden["optuna version"]:
        pytest.skip(f"recorded with optuna {golden['optuna version']}")
    assert proposals(name) == golden[name]


def write() -> None:
    """Writes golden.json with one index vector per line."""
    document = {"optuna version": version(), **{name: proposals(name) for name in MAKERS}}
    text = json.dumps(document, indent=1)
    for spaces in document.values():
        for vectors in spaces.values() if isinstance(spaces, dict) else ():
            for vector in vectors:
                text = text.replace(json.dumps(vector, indent=1).replace("\n", "\n   "), json.dumps(vector))
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
