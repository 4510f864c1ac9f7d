"""Training under torchrun: a killed rank restarts to the identical weights, and another number of processes resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.distributed_training import CONFIG, KILLED_AT, main, toy, train
from helpers.launch import launch
from supernet import Arch
from supernet.config import Data
from supernet.data import load
from supernet.errors import InputError
from supernet.train import check_training
from supernet.training.checkpoint import load_state
from supernet.training.distributed import World
from supernet.training.sampling import uniform

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


# -- training as a function -------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a training in the middle."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes trained; a single process began one of the trainings."""
    folder = tmp_path_factory.mktemp("trainings")
    net = toy()

    def stopping(step: int) -> tuple[Arch, ...]:
        if step == 4:
            raise Stop
        return uniform(net.space)(step)

    with pytest.raises(Stop):
        train(net, load(Data(size=8)), folder / "alone.pt", stopping)
    assert load_state(folder / "alone.pt")["step"] == 4
    launch(main, folder)
    assert sorted(path.name for path in folder.glob("started-*")) == [
        "started-0",
        "started-1",
    ]  # rank 1 was killed once
    return folder


def report(folder: Path, name: str) -> dict[str, list[object]]:
    document: dict[str, list[object]] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.slow  # tests/training/test_distributed.py compares ranks that live
def test_a_killed_rank_restarts_to_the_identical_weights(results: Path) -> None:
    whole, torn = ((results / f"{name}.safetensors").read_bytes() for name in ("whole", "torn"))
    assert whole == torn
    assert report(results, "whole") == report(results, "torn")
    steps = CONFIG.epochs * (1150 // CONFIG.batch)
    assert KILLED_AT < steps == load_state(results / "torn.pt")["step"]


def test_another_number_of_processes_resumes_and_only_rank_0_warns(results: Path) -> None:
    messages, others = report(results, "alone")["warnings"]
    assert others == []
    (message,) = messages  # type: ignore[misc]
    assert "processes 1 -> 2" in message
    assert len(report(results, "alone")["history"]) == CONFIG.epochs


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InputError, match="batch of 63 images cannot be divided among 2 processes"):
        check_training(replace(CONFIG, batch=63), load(Data(size=8)), world=World(0, 2))


# -- the script, also killed from outside -----------------------------------------------------------------------------

RECIPE = [
    "quickstart",
    "--data.size",
    "8",
    "--train.epochs",
    "3",
    "--train.warmup-epochs",
    "0.5",
    "--train.save-seconds",
    "0",
    "--data.augment.mixup",
    "0.2",
    "--train.ema",
    "0.9",
]
STEPS = 3 * (1150 // 64)


def launcher(processes: int) -> list[str]:
    """The command line of a torchrun with one restart, without its script."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launch, "--max-restarts", "1", "--monitor-interval", "0.1"]


def start(out: Path, processes: int, *, batch: int = 64) -> subprocess.Popen[str]:
    command = launcher(processes) if processes > 1 else [sys.executable]
    command += [str(ROOT / "tools" / "train_supernet.py"), *RECIPE, "--train.batch", str(batch), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def worker(launcher: int, rank: int) -> int:
    """The process id of a rank: torchrun's child with that RANK in its environment."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in map(int, children):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} among {children}")


def wait_for_step(out: Path, step: int) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "state.pt").exists():
            reached: int = load_state(out / "state.pt")["step"]
            if reached >= step:
                return reached
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
def test_a_rank_of_the_script_killed_from_outside_ends_in_the_identical_weights(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finish(start(whole, 2))
    process = start(torn, 2)
    reached = wait_for_step(torn, 5)
    assert reached < STEPS
    killed = worker(process.pid, 1)
    os.kill(killed, signal.SIGKILL)  # torchrun restarts all ranks
    finish(process)
    assert not Path(f"/proc/{killed}").exists()
    files = [(folder / "supernet.safetensors").read_bytes() for folder in (whole, torn)]
    assert files[0] == files[1]
    histories = [(folder / "history.json").read_text() for folder in (whole, torn)]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_the_script_resumes_with_another_number_of_processes_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, 1)
    reached = wait_for_step(out, 3)
    process.kill()
    process.communicate()
    assert reached < STEPS
    said = finish(start(out, 2))
    assert "processes 1 -> 2" in said
    assert said.count("not be bit-identical") == 1  # rank 0 speaks
    assert load_state(out / "state.pt")["step"] == STEPS


@pytest.mark.slow
def test_the_script_refuses_a_batch_that_cannot_be_divided(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 2, batch=63)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "batch of 63 images cannot be divided among 2 processes" in said
    assert not (tmp_path / "run").exists()
