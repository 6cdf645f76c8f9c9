"""Sessions: which one holds the device, and when each closes."""

from __future__ import annotations

import time

import pytest
from emulator_clients import bell, primitive, time_in_lane
from qrmi import QrmiError, QuantumResource, TaskStatus
from waiting import wait_until


@pytest.fixture
def slow(qpu):
    """Return a function that connects to a QPU whose tasks outlast every test."""
    return lambda **extra: qpu("ibm_slow", **extra)


def wait_for_start(resource: QuantumResource, task_id: str) -> None:
    """Wait until a task runs."""
    wait_until(
        lambda: resource.task_status(task_id) == TaskStatus.Running, f"the start of task {task_id}"
    )


def test_an_active_dedicated_session_excludes_other_tasks(qpu):
    """Another client's task waits until the session is closed."""
    holder, other = qpu("ibm_slow"), qpu("ibm_slow")
    token = holder.acquire()
    first = holder.task_start(primitive("sampler", [[bell()]]))
    assert holder.task_status(first) == TaskStatus.Running
    foreign = other.task_start(primitive("sampler", [[bell()]]))
    second = holder.task_start(primitive("sampler", [[bell()]]))
    holder.task_stop(first)
    wait_for_start(holder, second)
    assert other.task_status(foreign) == TaskStatus.Queued
    holder.task_stop(second)
    holder.release(token)
    wait_for_start(other, foreign)
    other.task_stop(foreign)


def test_an_active_batch_sessions_tasks_go_first(qpu):
    """Other tasks run whenever the session has none."""
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


@pytest.mark.parametrize(
    ("name", "state"),
    [("ibm_slow", TaskStatus.Cancelled), ("ibm_lenient", TaskStatus.Running)],
)
def test_release_cancels_the_sessions_tasks(qpu, emulator, name, state):
    """QRMI closes the session immediately; whether that cancels its running task is a setting."""
    holder = qpu(name)
    token = holder.acquire()
    running = holder.task_start(primitive("sampler", [[bell()]]))
    queued = holder.task_start(primitive("sampler", [[bell()]]))
    holder.release(token)
    assert holder.task_status(queued) == TaskStatus.Cancelled
    assert holder.task_status(running) == state
    holder.task_stop(running)
    assert emulator.counters()["qpus"][name]["sessions"]["open"] == 0


def test_a_closed_session_rejects_tasks(qpu):
    """The error says that the session has been closed, not that it is unknown."""
    holder = qpu("ibm_quick")
    token = holder.acquire()
    holder.release(token)
    late = qpu("ibm_quick", QRMI_IBM_QCS_SESSION_ID=token)
    with pytest.raises(QrmiError, match="has been closed"):
        late.task_start(primitive("sampler", [[bell()]]))


def test_an_idle_session_loses_the_device(qpu, emulator):
    """After the interactive TTL another task runs, and the session's next task queues."""
    holder, other = qpu("ibm_slow"), qpu("ibm_slow")
    token = holder.acquire()
    first = holder.task_start(primitive("sampler", [[bell()]]))
    holder.task_stop(first)
    foreign = other.task_start(primitive("sampler", [[bell()]]))
    wait_for_start(other, foreign)
    again = holder.task_start(primitive("sampler", [[bell()]]))
    assert holder.task_status(again) == TaskStatus.Queued
    other.task_stop(foreign)
    started, idle_since = time_in_lane(emulator, foreign)[0], time_in_lane(emulator, first)[1]
    assert started - idle_since >= 1 - 0.01  # the interactive TTL, by the event loop's timers
    wait_for_start(holder, again)
    holder.task_stop(again)
    holder.release(token)


def test_an_abandoned_session_closes_at_its_maximum_ttl(qpu, emulator):
    """This bounds a lease whose holder was killed."""

    def sessions() -> dict[str, int]:
        return emulator.counters()["qpus"]["ibm_quick"]["sessions"]

    before, start = sessions(), time.monotonic()
    qpu("ibm_quick", QRMI_IBM_QCS_SESSION_MAX_TTL="2").acquire()
    assert sessions()["opened"] == before["opened"] + 1
    wait_until(lambda: sessions()["closed"] == before["closed"] + 1, "the end of the session")
    assert time.monotonic() - start >= 2 - 0.01
    assert sessions()["open"] == before["open"]
