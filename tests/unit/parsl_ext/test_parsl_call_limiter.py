"""The limit on calls that use the QPU, in blocks that also run classical apps."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from parsl_ext.call_limiter import CallLimiter


class Workers:
    """Runs the calls that a limiter starts; the test completes their futures."""

    def __init__(self) -> None:
        self.started: list[Future[Any]] = []

    def start(self) -> Future[Any]:
        self.started.append(Future())
        return self.started[-1]


def test_calls_start_in_order_as_others_finish() -> None:
    workers, limiter = Workers(), CallLimiter(lambda: 2)
    futures = [limiter.submit(workers.start) for _ in range(5)]
    assert (len(workers.started), limiter.queued) == (2, 3)

    workers.started[1].set_result("second")

    assert futures[1].result(0) == "second"
    assert (len(workers.started), limiter.queued) == (3, 2)
    assert not futures[0].done()


def test_calls_start_in_order_of_priority_and_those_without_one_last() -> None:
    workers, limiter = Workers(), CallLimiter(lambda: 1)
    first = limiter.submit(workers.start)
    last, urgent, low, also_urgent = (
        limiter.submit(workers.start, **options)
        for options in ({}, {"priority": 1}, {"priority": 5.5}, {"priority": 1})
    )
    futures = [first, urgent, also_urgent, low, last]

    for position, future in enumerate(futures):
        workers.started[position].set_result(position)
        assert future.result(0) == position


def test_a_failed_call_raises_to_its_caller_and_lets_the_next_one_start() -> None:
    workers, limiter = Workers(), CallLimiter(lambda: 1)
    first, second = limiter.submit(workers.start), limiter.submit(workers.start)

    workers.started[0].set_exception(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        first.result(0)
    workers.started[1].set_result(2)
    assert second.result(0) == 2


def test_calls_that_cannot_start_fail_without_affecting_others() -> None:
    """Five thousand in a row do not exceed the recursion limit."""

    def fail() -> Future[Any]:
        raise RuntimeError("the executor is broken")

    workers, limiter = Workers(), CallLimiter(lambda: 1)
    before = limiter.submit(workers.start)
    failed = [limiter.submit(fail) for _ in range(5000)]
    after = limiter.submit(workers.start)

    workers.started[0].set_result(0)

    assert before.result(0) == 0
    for future in failed:
        with pytest.raises(RuntimeError, match="broken"):
            future.result(0)
    workers.started[1].set_result(1)
    assert after.result(0) == 1


def test_more_calls_start_when_the_limit_has_grown() -> None:
    limits = [1]
    workers, limiter = Workers(), CallLimiter(lambda: limits[0])
    for _ in range(4):
        limiter.submit(workers.start)
    assert len(workers.started) == 1

    limits[0] = 3
    workers.started[0].set_result(None)

    assert len(workers.started) == 4


def test_a_call_counts_as_queued_until_it_has_been_started() -> None:
    """A call that is counted nowhere would make its executor look idle."""
    limiter = CallLimiter(lambda: 1)
    seen: list[int] = []

    def start() -> Future[Any]:
        seen.append(limiter.queued)
        return Future()

    limiter.submit(start)

    assert (seen, limiter.queued) == ([1], 0)
