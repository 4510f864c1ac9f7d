"""Training under torchrun, from outside: a killed rank restarts to the identical weights; another world goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supernet.training.checkpoint import load_state

pytestmark = pytest.mark.xdist_group("distributed")

ROOT = Path(__file__).parents[2]
RECIPE = [
    "quickstart",
    "--data.size",
    "8",
    "--train.epochs",
    "3",
    "--train.batch",
    "64",
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


def start(out: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["--max-restarts", "1", "--monitor-interval", "0.1"]
    command += [str(ROOT / "tools" / "train_supernet.py"), *RECIPE, "--out", str(out), *options]
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
def test_a_killed_rank_and_a_killed_run_end_in_the_identical_weights(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finish(start(whole, 2))
    process = start(torn, 2)
    reached = wait_for_step(torn, 5)
    assert reached < STEPS
    os.kill(worker(process.pid, 1), signal.SIGKILL)  # torchrun restarts all ranks
    said = finish(process)
    assert "exitcode: -9" in said
    files = [(folder / "supernet.safetensors").read_bytes() for folder in (whole, torn)]
    assert files[0] == files[1]
    histories = [(folder / "history.json").read_text() for folder in (whole, torn)]
    assert histories[0] == histories[1]


def test_another_number_of_processes_goes_on_and_says_so(tmp_path: Path) -> None:
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


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path / "run", 2, "--train.batch", "63")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "batch of 63 images cannot be divided among 2 processes" in said
    assert not (tmp_path / "run").exists()
