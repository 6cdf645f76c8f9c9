"""Sessions: who gets the device, and what ends a session."""

from __future__ import annotations

import pytest
from emulator_clients import bell, primitive, wait_until
from qrmi import QrmiError, TaskStatus


@pytest.fixture
def slow(qpu):
    """The QPU on which a task takes longer than any test waits."""
    return lambda **extra: qpu("ibm_slow", **extra)


def test_an_active_dedicated_session_keeps_others_off_the_device(qpu):
    """Another client's task waits until the session is released."""
    holder, other = qpu("ibm_slow"), qpu("ibm_slow")
    token = holder.acquire()
    first = holder.task_start(primitive("sampler", [[bell()]]))
    assert holder.task_status(first) == TaskStatus.Running
    foreign = other.task_start(primitive("sampler", [[bell()]]))
    second = holder.task_start(primitive("sampler", [[bell()]]))
    holder.task_stop(first)
    wait_until(lambda: holder.task_status(second) == TaskStatus.Running)
    assert other.task_status(foreign) == TaskStatus.Queued
    holder.task_stop(second)
    holder.release(token)
    wait_until(lambda: other.task_status(foreign) == TaskStatus.Running)
    other.task_stop(foreign)


def test_a_batchs_tasks_go_first_but_others_are_not_kept_out(qpu):
    """Once it is active, and only as long as it has tasks."""
    holder = qpu("ibm_slow", QRMI_IBM_QCS_SESSION_MODE="batch")
    other = qpu("ibm_slow")
    token = holder.acquire()
    first = holder.task_start(primitive("sampler", [[bell()]]))
    foreign = other.task_start(primitive("sampler", [[bell()]]))
    second = holder.task_start(primitive("sampler", [[bell()]]))
    holder.task_stop(first)
    assert holder.task_status(second) == TaskStatus.Running
    assert other.task_status(foreign) == TaskStatus.Queued
    holder.task_stop(second)
    assert other.task_status(foreign) == TaskStatus.Running
    holder.release(token)
    other.task_stop(foreign)


def test_releasing_with_pending_tasks_cancels_those_that_wait(qpu, emulator):
    """QRMI closes a session that has pending tasks: the queued ones are cancelled."""
    holder = qpu("ibm_slow")
    token = holder.acquire()
    running = holder.task_start(primitive("sampler", [[bell()]]))
    queued = holder.task_start(primitive("sampler", [[bell()]]))
    holder.release(token)
    assert holder.task_status(queued) == TaskStatus.Cancelled
    assert holder.task_status(running) == TaskStatus.Running
    holder.task_stop(running)
    assert emulator.counters()["qpus"]["ibm_slow"]["sessions"]["open"] == 0


def test_a_closed_session_takes_no_task(qpu):
    """A released token that is used again is refused, not forgotten."""
    holder = qpu("ibm_quick")
    token = holder.acquire()
    holder.release(token)
    late = qpu("ibm_quick", QRMI_IBM_QCS_SESSION_ID=token)
    with pytest.raises(QrmiError, match="has been closed"):
        late.task_start(primitive("sampler", [[bell()]]))


def test_an_idle_session_gives_the_device_up(qpu):
    """After the interactive TTL another task runs; the session's next one queues again."""
    holder, other = qpu("ibm_slow"), qpu("ibm_slow")
    token = holder.acquire()
    first = holder.task_start(primitive("sampler", [[bell()]]))
    holder.task_stop(first)
    foreign = other.task_start(primitive("sampler", [[bell()]]))
    assert other.task_status(foreign) == TaskStatus.Queued
    wait_until(lambda: other.task_status(foreign) == TaskStatus.Running)
    again = holder.task_start(primitive("sampler", [[bell()]]))
    assert holder.task_status(again) == TaskStatus.Queued
    other.task_stop(foreign)
    wait_until(lambda: holder.task_status(again) == TaskStatus.Running)
    holder.task_stop(again)
    holder.release(token)


def test_the_maximum_ttl_closes_a_session_that_nobody_releases(qpu, emulator):
    """A lease whose holder was killed does not outlive its TTL."""
    before = emulator.counters()["sessions"]
    qpu("ibm_quick", QRMI_IBM_QCS_SESSION_MAX_TTL="2").acquire()
    assert emulator.counters()["sessions"]["open"] == before["open"] + 1
    wait_until(lambda: emulator.counters()["sessions"]["open"] == before["open"])
    assert emulator.counters()["sessions"]["closed"] == before["closed"] + 1
