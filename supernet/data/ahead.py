"""Batches that a thread prepares while the last one is being used."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

CHECKS = 0.05
"""Seconds between two looks at whether the reader is still there."""


@dataclass
class _End:
    """What ended the iterator; None if it simply had no more items."""

    error: BaseException | None = None


def ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """Yields the same items, of which a thread makes the next one or two in advance.

    Torch's operators release the interpreter's lock, so that a second core makes a batch while the first one trains.
    The generator must draw from generators of its own only, since the global ones belong to the thread that reads.

    Args:
        items: is run and closed by the thread. What it raises is raised here, after the items before.
    """
    made: queue.Queue[T | _End] = queue.Queue(maxsize=1)
    closed = threading.Event()

    def put(item: T | _End) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=CHECKS)
                return

    def make() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put(item)
                    if closed.is_set():
                        return
        except BaseException as error:  # whatever it is, the reader must not wait for ever
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        closed.set()
        thread.join()
