"""Batches that a thread prepares while the last one is being used."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.05
"""How often the thread checks whether the reader is still there."""


@dataclass
class _End:
    """What ended the iterator; None if it simply had no more items."""

    error: BaseException | None = None


def ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """Yields the same items; a thread prepares the next one or two in advance.

    Torch's operators release the interpreter's lock, so a second core prepares a batch while the first one trains.
    The items must not be drawn from the global random generators, which belong to the reading thread.

    Args:
        items: run and closed by the thread. An exception is raised again here, after the items before it.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(item: T | _End) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=POLL_SECONDS)
                return

    def prepare() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put(item)
                    if closed.is_set():
                        return
        except BaseException as error:  # of any type: the reader must not wait forever
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=prepare, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        closed.set()
        thread.join()
