"""When an executor gives up on its blocks."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import LocalProvider

from parsl_ext import LeaseLauncher, QPUExecutor, block_errors


def states(blocks: str, exit_code: int | None = None) -> dict[str, JobStatus]:
    return {
        str(n): JobStatus(JobState[name], exit_code=exit_code)
        for n, name in enumerate(blocks.split())
    }


@pytest.fixture
def executor() -> QPUExecutor:
    """An executor with a call that has not finished."""
    executor = QPUExecutor(provider=LocalProvider(launcher=LeaseLauncher(qpu="q")))
    executor.tasks[1] = Future()
    return executor


@pytest.mark.parametrize(
    ("blocks", "gives_up"),
    [
        ("PENDING", False),
        ("MISSING", False),
        ("MISSING MISSING", False),
        ("MISSING MISSING MISSING", True),
        ("MISSING RUNNING", False),
        ("FAILED", False),
        ("FAILED MISSING", False),
        ("FAILED MISSING FAILED", True),
        ("FAILED FAILED COMPLETED", False),
    ],
)
def test_an_executor_gives_up_if_three_blocks_in_a_row_have_failed(executor, blocks, gives_up):
    executor.handle_errors(states(blocks))

    assert executor.bad_state_is_set is gives_up


@pytest.mark.parametrize(("code", "gives_up"), [(1, False), (2, True), (127, True), (143, False)])
def test_it_gives_up_at_once_if_another_block_would_fail_in_the_same_way(executor, code, gives_up):
    executor.handle_errors(states("MISSING", code))

    assert executor.bad_state_is_set is gives_up


def test_it_gives_up_if_no_failed_block_is_replaced(executor, monkeypatch):
    """With `strategy="none"`, its calls would wait for ever."""
    executor.handle_errors(states("MISSING"))
    executor.handle_errors(states("MISSING PENDING"))
    monkeypatch.setattr(block_errors, "_REPLACED_SECONDS", 0.0)
    executor.handle_errors(states("MISSING PENDING"))
    assert not executor.bad_state_is_set

    executor.handle_errors(states("MISSING MISSING"))

    assert executor.bad_state_is_set
    assert executor.tasks[1].exception()


def test_an_executor_without_calls_needs_no_block(executor, monkeypatch):
    monkeypatch.setattr(block_errors, "_REPLACED_SECONDS", 0.0)
    executor.tasks.clear()

    executor.handle_errors(states("MISSING"))

    assert not executor.bad_state_is_set
