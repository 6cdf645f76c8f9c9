"""Which tasks keep a lease open."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qrmi_workflows.errors import JournalError, ResourceError, TaskUnknownError
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.lease.wanted import find_running_tasks
from qrmi_workflows.state.process import Owner, _started
from qrmi_workflows.tasks.usage import note_submission

RECORD = TaskRecord(
    step="sample",
    digest="0" * 64,
    number=0,
    qpu="ibm_fez",
    program="sampler",
    state=RecordState.SUBMITTED,
    run="r",
    owner=replace(Owner.this_process(None), started=0),
    since="",
    task_id="t1",
)


class Vendor:
    """A QPU whose tasks are in given states."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)

    def task_status(self, task_id: str, *, deadline: float | None = None) -> str:
        del deadline
        state = self.states.pop(0)
        if state == "Unknown to it":
            raise TaskUnknownError("", "ibm_fez", task_id)
        if state == "Silent":
            raise ResourceError("silent")
        return f"TaskStatus.{state}"


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenLease:
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return OpenLease.create(
        qpu="ibm_fez",
        type="ibm-quantum-compute-service",
        step="",
        acquire=0.0,
        config=None,
        token="t",
    )


def submit(opened: OpenLease, record: TaskRecord = RECORD) -> Path:
    path = opened.path.parent / f"{record.step}-{record.task_id}.json"
    path.write_text(record.to_json())
    note_submission(opened.usage_path, path)
    return path


def find(opened: OpenLease, *states: str, **options: object) -> list[str | None]:
    found = find_running_tasks(opened, Vendor(*states), environment={}, **options)
    return [] if found is None else [record.task_id for record in found.records]


@pytest.mark.parametrize("state", ["Queued", "Running", "Paused"])
def test_a_task_that_has_not_ended_keeps_it_open(opened, state):
    """So does one in a state that QRMI has added since."""
    submit(opened)

    assert find(opened, state) == ["t1"]


@pytest.mark.parametrize("state", ["Completed", "Failed", "Cancelled", "Unknown to it"])
def test_a_task_that_has_ended_does_not(opened, state):
    submit(opened)

    assert find(opened, state) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"state": RecordState.INTENT, "task_id": None},
        {"state": RecordState.FAILED},
        {"retryable": True},
        {"named": False},
    ],
    ids=["not accepted", "recorded as failed", "to be cancelled", "of a dead process's own step"],
)
def test_a_task_that_no_rerun_would_wait_for_does_not(opened, changes):
    submit(opened, replace(RECORD, **changes))

    assert find(opened) == []


def test_a_task_that_its_living_process_waits_for_keeps_it_open(opened):
    submit(opened, replace(RECORD, named=False, owner=Owner.this_process(None)))

    assert find(opened, "Running") == ["t1"]


@pytest.mark.parametrize(
    ("seconds", "owner", "keeps"),
    [
        (1, {"pid": os.getppid(), "started": _started(os.getppid())}, True),
        (1, {"host": "elsewhere"}, True),
        (600, {"host": "elsewhere"}, False),
        (1, {}, False),
        (1, {"started": 0}, False),
    ],
    ids=["another process", "another host", "an old one", "this process", "a dead process"],
)
def test_a_submission_that_another_process_has_under_way_keeps_it_open(
    opened, seconds, owner, keeps
):
    since = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    intent = replace(RECORD, state=RecordState.INTENT, task_id=None, since=since)
    submit(opened, replace(intent, owner=replace(Owner.this_process(None), **owner)))

    assert find(opened) == ([None] if keeps else [])


def test_a_task_of_an_archived_step_or_one_to_be_cancelled_does_not(opened):
    submit(opened).unlink()
    cancelled = submit(opened, replace(RECORD, task_id="t2"))

    assert find(opened, ignored=[cancelled]) == []


def test_other_resource_types_are_not_asked(opened):
    submit(opened)

    assert find(replace(opened, type="ibm-quantum-system")) == []


def test_what_is_not_known_is_an_error(opened):
    path = submit(opened)
    with pytest.raises(ResourceError):
        find(opened, "Silent")
    path.write_text("{")
    with pytest.raises(JournalError):
        find(opened)


@pytest.mark.parametrize(
    ("environment", "limit"),
    [({}, "8 h"), ({"QRMI_IBM_QCS_SESSION_MAX_TTL": "600"}, "600 s")],
)
def test_the_message_says_whose_they_are_for_how_long_and_what_to_do(opened, environment, limit):
    submit(opened)
    submit(opened, replace(RECORD, task_id="t2"))
    submit(opened, replace(RECORD, task_id="t3", step="other"))

    found = find_running_tasks(opened, Vendor(*["Running"] * 3), environment=environment)

    assert str(found) == (
        "the lease of QPU 'ibm_fez' stays open: 3 tasks are still running for step 'sample' and 1 "
        "more. Rerun the step to wait for the results, or run `qpu reap --cancel-tasks` to cancel "
        "them. Once they have ended, the next lease or `qpu reap` releases it; at the latest, the "
        f"vendor ends it {limit} after its first task has started."
    )
