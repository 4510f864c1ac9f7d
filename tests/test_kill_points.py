"""A process killed before any single file operation leaves a state from which the same calls reach the same result."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from searchers import Study, search
from searchers.random_search import RandomSearch
from supernet.export.folder import _appearing
from supernet.paths import KILL_AT
from supernet.scoring.cache import Score, ScoreCache
from supernet.space import Choice, SearchSpace
from supernet.training.checkpoint import load_state, save_state, save_weights
from supernet_tools.pipeline.folder import claim_run

SPACE = SearchSpace("toy", (Choice("a", (1, 2, 3)), Choice("b", (1, 2, 3))))


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


def work(out: Path) -> None:
    """Creates a run, saves a training twice and its weights, searches with a cache, and writes an export twice."""
    with claim_run(out, "toy", Settings()):
        state = out / "state.pt"
        for step in range(load_state(state)["step"] if state.exists() else 0, 2):
            save_state(state, {"step": step + 1, "tensor": torch.full((4,), step + 1.0)})
        save_weights(out / "w.safetensors", torch.nn.BatchNorm2d(2), {})
    with ScoreCache(out / "scores.db") as cache, Study(out / "study.db", SPACE) as study:

        def evaluate(archs):  # type: ignore[no-untyped-def]
            for arch in archs:
                cache.put({"toy": "1"}, arch, Score({"accuracy": arch["a"] / 10}))
            return [{"accuracy": arch["a"] / 10} for arch in archs]

        search(RandomSearch(SPACE, seed=1), evaluate, study, trials=4, batch=2)
    for text in ("one", "two"):
        with _appearing(out / "export") as partial:
            (partial / "model.py").write_text(text)


def outcome(out: Path) -> dict[str, object]:
    """Everything that a later command reads, and the names of all files."""
    with Study(out / "study.db", SPACE) as study, ScoreCache(out / "scores.db") as cache:
        recorded = study.trials(), len(cache)
    names = sorted(path.name for path in out.rglob("*") if not path.name.endswith((".lock", "-wal", "-shm")))
    return {
        "names": names,
        "trials": recorded,
        "step": load_state(out / "state.pt")["step"],
        "weights": (out / "w.safetensors").read_bytes(),
        "export": (out / "export/model.py").read_text(),
    }


def killed_at(point: int, out: Path) -> bool:
    """Runs `work` in a child that is killed before its file operation `point`; False if it has fewer."""
    child = os.fork()
    if child == 0:
        os.environ[KILL_AT] = str(point)
        try:
            work(out)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_any_file_operation_changes_nothing(tmp_path: Path, step: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work(tmp_path / "whole")
        expected = outcome(tmp_path / "whole")
        point, kills = 1, 0
        while killed_at(point, out := tmp_path / f"killed{point}"):
            work(out)
            assert outcome(out) == expected, f"killed before file operation {point}"
            point, kills = point + step, kills + 1
        assert point > 45
    finally:
        torch.set_num_threads(threads)
