"""Batches made ahead by a thread: the same ones in the same order, errors in their place, and no thread left behind."""

import threading
from collections.abc import Generator

import pytest

from supernet.data.ahead import ahead


def numbers(count: int, closed: list[str], error: Exception | None = None) -> Generator[int, None, None]:
    try:
        yield from range(count)
        if error is not None:
            raise error
    finally:
        closed.append(threading.current_thread().name)


def test_the_items_come_in_order_and_the_generator_is_closed() -> None:
    closed: list[str] = []
    assert list(ahead(numbers(100, closed))) == list(range(100))
    assert closed == ["batches"]


def test_at_most_two_items_are_made_in_advance() -> None:
    produced: list[int] = []

    def counted() -> Generator[int, None, None]:
        for number in range(100):
            produced.append(number)
            yield number

    items = ahead(counted())
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(20):
        threading.Event().wait(0.005)
        assert len(produced) <= 7
    items.close()  # type: ignore[attr-defined]


def test_an_error_comes_after_the_items_before_it() -> None:
    items = ahead(numbers(3, [], ValueError("no more")))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_closing_ends_the_thread() -> None:
    closed: list[str] = []
    items = ahead(numbers(10**9, closed))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed == ["batches"]
    assert "batches" not in {thread.name for thread in threading.enumerate()}
