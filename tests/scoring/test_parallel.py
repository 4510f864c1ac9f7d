"""Searching under torchrun: the study of two ranks is that of one, also after a rank was killed."""

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.launch import launch
from helpers.parallel_search import TRIALS as PARALLEL_TRIALS
from helpers.parallel_search import main, make
from helpers.toy_spaces import TOY_SPACES, sliced
from searchers import RandomSearch, Study, search
from supernet import create_supernet
from supernet.cost import CostTable
from supernet.errors import DamagedError, RunError, UnwritableError
from supernet.scoring.parallel import ParallelEvaluator
from supernet.space import Arch, SearchSpace
from supernet.training.distributed import World

ROOT = Path(__file__).parents[2]


# -- two processes ----------------------------------------------------------------------------------------------------


def test_two_ranks_of_which_one_is_killed_make_the_study_of_one(tmp_path: Path) -> None:
    space = sliced().space
    make(tmp_path / "alone.db", World())
    said = launch(main, tmp_path)
    assert "rank 0: a process of the group is gone" in said  # which of the two torchrun names is left to chance
    alone, both = (recorded_trials(tmp_path / name, space) for name in ("alone.db", "both.db"))
    assert len(alone) == PARALLEL_TRIALS
    assert both == alone


def recorded_trials(path: Path, space: SearchSpace) -> list[tuple[Any, ...]]:
    with Study(path, space) as study:
        return [(t.number, t.arch, t.key, dict(t.metrics), t.repeat) for t in study.trials()]


def launcher(processes: int) -> list[str]:
    """The command line of a torchrun with one restart, without its script."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launch, "--max-restarts", "1", "--monitor-interval", "0.1"]


# -- the script, killed from outside ----------------------------------------------------------------------------------

TRAIN = ("macro-digits", "--data.size", "8", "--train.epochs", "1", "--train.batch", "128", "--retrain.epochs", "1")
TRIALS = 60
SEARCH = (
    "--searcher",
    "aging-evolution",
    "--trials",
    TRIALS,
    "--batch",
    "6",
    "--settings",
    "population_size=12",
    "tournament_size=4",
    "--max-macs",
    "2e6",
)


def start(tool: str, *arguments: object, processes: int = 1) -> subprocess.Popen[str]:
    launch = launcher(processes) if processes > 1 else [sys.executable]
    command = [*launch, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def trials(run: Path, name: str) -> list[tuple[Any, ...]]:
    supernet = create_supernet("nasbench-macro", num_classes=10, input_size=8, in_channels=1)
    return recorded_trials(run / "search" / name / "study.db", supernet.space)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parallel") / "run"
    finish(start("train_supernet", *TRAIN, "--out", out))
    return out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
def test_the_script_gives_the_study_of_one_process_also_when_one_rank_and_then_all_are_killed(trained: Path) -> None:
    finish(start("search", trained, "--name", "alone", *SEARCH))
    (trained / "scores.db").unlink()  # so that the second search computes its scores
    study = trained / "search" / "both" / "study.db"
    process = start("search", trained, "--name", "both", *SEARCH, processes=2)
    wait_for(study, 12)
    (second,) = [pid for pid, environment in ranks_of(process).items() if b"RANK=1" in environment]
    os.kill(second, signal.SIGKILL)
    wait_for(study, recorded(study) + 12)
    assert second not in ranks_of(process)  # restarted by torchrun
    for pid in (process.pid, *ranks_of(process)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert recorded(study) < TRIALS
    said = finish(start("search", trained, "--name", "both", *SEARCH, processes=2))
    assert trials(trained, "both") == trials(trained, "alone")
    assert "Pareto front" in said


@pytest.mark.slow
def test_two_workers_make_the_study_of_one_also_when_the_first_is_killed(trained: Path) -> None:
    finish(start("search", trained, "--name", "one", *SEARCH))
    (trained / "scores.db").unlink()
    study = trained / "search" / "two" / "study.db"
    process = start("search", trained, "--name", "two", "--workers", 2, *SEARCH)
    wait_for(study, 12)
    (second,) = [pid for pid, environment in ranks_of(process).items() if b"RANK=1" in environment]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # the second one has the same output, and ends as well
    assert has_ended(second)
    finish(start("search", trained, "--name", "two", "--workers", 2, *SEARCH))
    assert trials(trained, "two") == trials(trained, "one")


def has_ended(pid: int) -> bool:
    """Waits until a process has ended; where nothing collects orphans, its entry stays as that of a zombie."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def wait_for(study: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and recorded(study) < count:
        time.sleep(0.02)
    assert count <= recorded(study) < TRIALS


def ranks_of(process: subprocess.Popen[str]) -> dict[int, list[bytes]]:
    """Returns the ids and environments of the processes that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}


def recorded(study: Path) -> int:
    try:
        with sqlite3.connect(f"file:{study}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


# -- one process ------------------------------------------------------------------------------------------------------


def evaluator(calls: list[list[Arch]], *, fails: bool = False) -> Any:
    def evaluate(archs: Sequence[Arch]) -> list[dict[str, float]]:
        calls.append(list(archs))
        if fails:
            raise RuntimeError("out of memory")
        return [{"accuracy": float(int(arch.key, 16) % 97)} for arch in archs]

    return evaluate


def test_shares_are_neighbours_and_cost_about_the_same() -> None:
    supernet = TOY_SPACES["chain"]()
    table, space = CostTable(supernet), supernet.space
    archs = list(space.enumerate())
    parallel = ParallelEvaluator(evaluator([]), space, World(0, 3), costs=table, balance="macs")
    order = sorted(archs, key=space.to_indices)
    shares = parallel._shares(order)
    assert [arch for share in shares for arch in share] == order
    costs = [sum(table(arch)["macs"] for arch in share) for share in shares]
    largest = max(table(arch)["macs"] for arch in archs)
    assert max(costs) - min(costs) <= 2 * largest
    assert [len(share) for share in parallel._shares([])] == [0, 0, 0]
    assert sum(len(share) for share in parallel._shares(order[:1])) == 1


def test_one_process_scores_in_any_order_and_adds_costs() -> None:
    supernet = TOY_SPACES["chain"]()
    table, calls = CostTable(supernet), []
    archs = list(supernet.space.enumerate())[::-1]
    parallel = ParallelEvaluator(evaluator(calls), supernet.space, World(), costs=table, balance="macs")
    scores = parallel(archs)
    assert [score["accuracy"] for score in scores if score] == [float(int(arch.key, 16) % 97) for arch in archs]
    assert [score["macs"] for score in scores if score] == [table(arch)["macs"] for arch in archs]
    assert calls == [sorted(archs, key=supernet.space.to_indices)]
    with pytest.raises(RuntimeError, match="rank 0: RuntimeError: out of memory") as error:
        ParallelEvaluator(evaluator([], fails=True), supernet.space, World())(archs)
    assert not isinstance(error.value, RunError)


class Broken(World):
    """A group whose other process has died."""

    def gather(self, payload: bytes) -> list[bytes]:
        raise RuntimeError("Connection closed by peer")


def test_a_broken_group_ends_the_search_and_fails_no_architecture() -> None:
    space = TOY_SPACES["chain"]().space
    study = Study(None, space)
    parallel = ParallelEvaluator(evaluator([]), space, Broken())
    with pytest.raises(RunError, match="a process of the group is gone"):
        search(RandomSearch(space), parallel, study, trials=5, batch=2)
    assert len(study) == 0


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(DamagedError("scores.db"), DamagedError), (UnwritableError("full"), RunError), (ValueError("x"), RuntimeError)],
)
def test_what_is_not_the_fault_of_an_architecture_is_told_apart(raised: Exception, kind: type[Exception]) -> None:
    """The first two end a search; anything else is a failure of the architectures."""

    def evaluate(archs: Sequence[Arch]) -> list[dict[str, float]]:
        raise raised

    space = TOY_SPACES["chain"]().space
    with pytest.raises(kind, match="scoring failed in rank 0") as caught:
        ParallelEvaluator(evaluate, space, World())(list(itertools.islice(space.enumerate(), 2)))
    assert type(caught.value) is kind
