"""A progress bar with rate and time left on a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Update = Callable[[int, str], None]
QUIET_SECONDS = 15.0  # between lines if there is no terminal


@contextlib.contextmanager
def progress(
    description: str,
    total: int,
    *,
    start: int = 0,
    below: Callable[[], Any] | None = None,
    enabled: bool = True,
) -> Iterator[Update]:
    """Reports the progress of long work on standard error.

    Args:
        description: the description of the work.
        total: units of work in all.
        start: units done before (a resumed run); they do not count for rate and time left.
        below: returns what a terminal shows under the bar, anything that rich prints; called whenever it is drawn.
        enabled: print nothing if False.

    Yields:
        `update(done, note)`, cheap enough to be called for every unit.
    """
    if not enabled:
        yield lambda done, note: None
    elif sys.stderr.isatty():
        with _bar(description, total, start, below) as update:
            yield update
    else:
        yield _lines(description, total, start)


@contextlib.contextmanager
def _bar(description: str, total: int, start: int, below: Callable[[], Any] | None) -> Iterator[Update]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    description_column = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (description_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
    task = bar.add_task(description, total=total, completed=start, note="")

    def shown() -> Group:
        return Group(bar, below()) if below is not None else Group(bar)

    with Live(get_renderable=shown, console=Console(stderr=True), refresh_per_second=4):
        yield lambda done, note: bar.update(task, completed=done, note=note)


def _lines(description: str, total: int, start: int) -> Update:
    began = last = time.monotonic()

    def update(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < QUIET_SECONDS:
            return
        last = now
        rate = (done - start) / max(now - began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        print(f"{description}: {done}/{total} ({rate:.1f}/s{left}) {note}", file=sys.stderr, flush=True)

    return update
