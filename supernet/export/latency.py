"""The latency of exports, measured where this project cannot be imported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from supernet.checked import Positive, Threads, checked_arguments
from supernet.errors import InputError
from supernet.export.runtime import timer

ROUNDS = 5


@checked_arguments
def artefact_latencies(
    folders: Sequence[Path], *, seconds: Positive = 0.5, threads: Threads = 1
) -> dict[Path, dict[str, float]]:
    """Times one forward pass of one image for each of several exports, in turn, in a process of its own.

    This executes the model.py of every folder.

    Args:
        folders: exports; of detectors an image with the longest side is timed.
        seconds: to spend on each artefact.
        threads: how many threads torch and ONNX Runtime use.

    Returns:
        the median in milliseconds per folder, by "torch" (model.py) and, where there is a model.onnx, "onnxruntime".

    Raises:
        InputError: an export does not load or run, or an argument is out of range.
    """
    names = [str(folder.absolute()) for folder in folders]
    command = [sys.executable, "-I", "-B", timer.__file__, str(ROUNDS), str(seconds), str(threads), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"the exports cannot be timed: {lines[-1]}")
    medians = json.loads(done.stdout.splitlines()[-1])
    return {folder: medians[name] for folder, name in zip(folders, names, strict=True)}
