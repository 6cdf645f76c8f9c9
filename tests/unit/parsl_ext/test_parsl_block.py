"""What becomes of the tasks that the commands of a stopped bash app have left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from parsl_ext import block
from qrmi_workflows.client.protocol import TaskState
from qrmi_workflows.errors import ResourceError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.tasks.deletion import TaskDeletions
from qrmi_workflows.vendors.registry import registered_type

STEP = "app sample"


class Vendor:
    """A resource whose tasks have states; a cancellation changes them, unless it is refused."""

    def __init__(self, states: dict[str, TaskState], *, refuses: bool = False) -> None:
        self.states = states
        self.refuses = refuses
        self.stopped: list[str] = []

    def task_status(self, task_id: str) -> TaskState:
        return self.states[task_id]

    def task_stop(self, task_id: str) -> None:
        self.stopped.append(task_id)
        if self.refuses:
            raise ResourceError("no such route", "q", "task_stop", 404)
        self.states[task_id] = TaskState.CANCELLED


def stop(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, type_: str) -> list[RecordState]:
    """Leave the vendor's tasks, which are equal, and stop the step; return the records' states."""
    earlier = Journal().step(STEP)
    for task_id, state in vendor.states.items():
        entry, _ = earlier.claim("d" * 64, qpu="q", program="sampler")
        entry.submitted(task_id)
        if state is TaskState.FAILED:
            entry.failed("it failed", retryable=False)
    Journal().close(earlier)
    held = SimpleNamespace(deletions=TaskDeletions(vendor, registered_type(type_)))
    lease = SimpleNamespace(type=type_, resource=vendor, held=held)
    monkeypatch.setattr(block, "block_lease", lambda _qpu: lease)
    with block.run_as_step(STEP):
        block.cancel_left_tasks()
    return [record.state for record in Journal().step(STEP).records()]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QPU_STATE", str(tmp_path))


def test_a_running_task_is_cancelled_beside_an_equal_one_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = Vendor({"one": TaskState.FAILED, "two": TaskState.RUNNING})

    states = stop(vendor, monkeypatch, "pasqal-cloud")

    assert vendor.stopped == ["two"]
    assert states == [RecordState.FAILED] * 2


def test_a_task_that_has_just_completed_keeps_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """On IBM Quantum System API, a request to cancel it would delete it."""
    vendor = Vendor({"one": TaskState.COMPLETED})

    states = stop(vendor, monkeypatch, "ibm-quantum-system")

    assert vendor.stopped == []
    assert states == [RecordState.SUBMITTED]


def test_a_task_that_was_not_cancelled_is_found_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = Vendor({"one": TaskState.RUNNING}, refuses=True)

    states = stop(vendor, monkeypatch, "pasqal-cloud")

    assert states == [RecordState.SUBMITTED]
    assert [record.retryable for record in Journal().step(STEP).records()] == [True]
