"""The QPU's share of a mixed pool."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from parsl_ext.window import Window


class Pool:
    """What a window starts, to be ended by the test."""

    def __init__(self) -> None:
        self.started: list[Future[Any]] = []

    def start(self) -> Future[Any]:
        self.started.append(Future())
        return self.started[-1]


def test_calls_start_in_order_as_others_end() -> None:
    pool, window = Pool(), Window(lambda: 2)
    futures = [window.submit(pool.start) for _ in range(5)]
    assert (len(pool.started), window.waiting) == (2, 3)

    pool.started[1].set_result("second")

    assert futures[1].result(0) == "second"
    assert (len(pool.started), window.waiting) == (3, 2)
    assert not futures[0].done()


def test_a_failure_is_passed_on_and_makes_room() -> None:
    pool, window = Pool(), Window(lambda: 1)
    first, second = window.submit(pool.start), window.submit(pool.start)

    pool.started[0].set_exception(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        first.result(0)
    pool.started[1].set_result(2)
    assert second.result(0) == 2


def test_calls_that_cannot_be_started_fail_alone() -> None:
    def refuse() -> Future[Any]:
        raise RuntimeError("the executor is broken")

    pool, window = Pool(), Window(lambda: 1)
    before = window.submit(pool.start)
    refused = [window.submit(refuse) for _ in range(5000)]
    after = window.submit(pool.start)

    pool.started[0].set_result(0)

    assert before.result(0) == 0
    for future in refused:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(0)
    pool.started[1].set_result(1)
    assert after.result(0) == 1


def test_a_window_that_widens_starts_more() -> None:
    sizes = [1]
    pool, window = Pool(), Window(lambda: sizes[0])
    for _ in range(4):
        window.submit(pool.start)
    assert len(pool.started) == 1

    sizes[0] = 3
    pool.started[0].set_result(None)

    assert len(pool.started) == 4
