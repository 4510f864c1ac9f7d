"""A race that is killed between a training and its record."""

import os
import signal
from collections.abc import Callable
from typing import Any

import supernet_tools.pipeline.select as pipeline
from helpers.scripts import run_script


def child(work: Callable[[], object]) -> int:
    """The status of a process that does the work: a fork, so that libraries load once."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1]


def killed_race(*arguments: object) -> int:
    """Runs `select_network` in a child that kills itself when its third training has ended, and returns its status."""

    def work() -> None:
        original, calls = pipeline.partial_score, 0

        def third_kills(*arguments: Any, **options: Any) -> float:
            nonlocal calls
            calls += 1
            score = original(*arguments, **options)
            if calls == 3:  # trained, but not recorded
                os.kill(os.getpid(), signal.SIGKILL)
            return score

        pipeline.partial_score = third_kills
        run_script("select_network", *arguments)

    return child(work)
