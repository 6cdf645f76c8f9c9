"""Ended tasks at a vendor that may count them as lanes: deleted, but never before they are safe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from fault_payloads import bell
from servers import qpus_of_servers, to_toml
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import (
    JournalError,
    ResourceError,
    TaskCancelledError,
    TaskFailedError,
    TaskUnknownError,
    UndecodedResultError,
)
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.vendors.ibm import results

LANES = 2
SERVERS = qpus_of_servers("ibm-quantum-system", "ibm")
QPUS = pytest.mark.parametrize("qpu", sorted(SERVERS))
HOLDS = "ibm_finished_jobs_hold_lanes"
CONFIG = "".join(
    f"""
[qpus.{name}]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = 0.05
lanes = {LANES}
server = {to_toml(server)}
"""
    for name, server in SERVERS.items()
)


@pytest.fixture(scope="module")
def shared_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "emulator.toml").write_text(CONFIG)
    (folder / "site.toml").write_text("")
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture(autouse=True)
def lanes_are_free(emulator: Emulator) -> Iterator[None]:
    """Leave no ended task to the next test, where it would hold a lane."""
    yield
    emulator.control.ask("DELETE", "/faults")
    with open_lease(HOLDS) as lease:
        for record in [*Journal().records(), *Journal().records(archived=True)]:
            if record.qpu == HOLDS and record.task_id and is_known(lease, record.task_id):
                lease.resource.task_stop(record.task_id)


def is_known(lease: Lease, task_id: str | None) -> bool:
    try:
        lease.resource.task_status(str(task_id))
    except TaskUnknownError:
        return False
    return True


@pytest.fixture
def refuse_deletions(fault: Callable[..., None]) -> Callable[[int | None], None]:
    return lambda count: fault("status", route="DELETE */v1/jobs/*", status=403, count=count)


@QPUS
def test_more_tasks_run_than_the_qpu_has_lanes(emulator, counted, fault, matched, qpu):
    fault("delay", route="POST */v1/jobs", seconds=0.0)  # counts the submissions
    with open_lease(qpu, step="s") as lease:
        ids = [result.task_id for result in lease.map([bell(n) for n in range(1, 7)])]
        lease.await_tasks()
        assert not any(is_known(lease, task_id) for task_id in ids)

    assert counted()["tasks completed"] == 6
    assert matched() == 6, "none was refused for want of a lane"
    assert all(record.deleted for record in Journal().step("s").records())


@pytest.mark.parametrize("qpu", sorted(SERVERS.keys() - {"ibm_cancel_route"}))
def test_a_task_that_its_owner_has_cancelled_elsewhere_is_deleted(
    emulator, fault, monkeypatch, qpu
):
    emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "paused"})
    deletion_failed = threading.Event()
    with open_lease(qpu, step="s") as lease:
        ask_state = lease.resource.task_status

        def ask_state_later(*args, **options):
            deletion_failed.wait(60)
            return ask_state(*args, **options)

        # Or the lease itself would delete the cancelled task, and use up the fault.
        monkeypatch.setattr(lease.resource, "task_status", ask_state_later)
        future = lease.submit(bell())
        wait_until(lambda: future.task_id, "the task's id")
        fault("status", route="DELETE */v1/jobs/*", status=403, count=1)
        with pytest.raises(ResourceError):
            lease.resource.task_stop(future.task_id)  # cancels, and fails to delete
        deletion_failed.set()
        with pytest.raises(TaskCancelledError, match="cancelled at the vendor"):
            future.result(timeout=60)
        assert not is_known(lease, future.task_id)
    emulator.control.ask("PATCH", f"/qpus/{qpu}", {"availability": "online"})


def test_a_failed_task_is_deleted_once_its_reason_is_known(emulator, fault):
    fault("status", route="PUT */s3/*/results_*", status=500)  # the vendor cannot store it
    with open_lease(HOLDS, step="s") as lease:
        with pytest.raises(TaskFailedError, match="job's storage failed") as caught:
            lease.run(bell())
        assert not is_known(lease, caught.value.task_id)
    (record,) = Journal().step("s").records()
    assert (record.state, record.deleted) == (RecordState.FAILED, True)


def test_a_result_that_is_not_in_the_journal_is_not_deleted(emulator, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise JournalError("the disk is full")

    with open_lease(HOLDS, step="s") as lease:
        with monkeypatch.context() as patched:
            patched.setattr(Entry, "completed", fail)
            task_id = lease.run(bell()).task_id
        assert is_known(lease, task_id)

    with open_lease(HOLDS, step="s") as lease:
        assert lease.run(bell()).task_id == task_id
        assert not is_known(lease, task_id)


def test_a_result_that_cannot_be_decoded_is_safe_and_deleted(emulator, counted, monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("too new")

    with open_lease(HOLDS, step="s") as lease:
        with monkeypatch.context() as patched:
            patched.setattr(results, "decode_data", refuse)
            with pytest.raises(UndecodedResultError) as caught:
                lease.run(bell())
        assert not is_known(lease, caught.value.result.task_id)


@pytest.mark.parametrize("again_by", ["the next task", "the release", "a rerun"])
def test_a_failed_deletion_is_harmless_and_tried_again(emulator, refuse_deletions, again_by):
    refuse_deletions(None if again_by == "a rerun" else 1)
    with open_lease(HOLDS, step="s") as lease:
        task_id = lease.run(bell()).task_id
        assert is_known(lease, task_id)
        if again_by == "the next task":
            lease.run(bell(7))
            assert not is_known(lease, task_id)
        observer = lease.resource
    emulator.control.ask("DELETE", "/faults")

    if again_by == "a rerun":
        assert str(observer.task_status(task_id)).endswith("Completed")
        with open_lease(HOLDS, step="s") as lease:
            assert lease.run(bell()).task_id == task_id
    with pytest.raises(TaskUnknownError):
        observer.task_status(task_id)
    assert all(record.deleted for record in Journal().step("s").records())


def test_a_failed_deletion_does_not_delete_the_task_that_runs_instead(emulator, refuse_deletions):
    refuse_deletions(None)
    emulator.control.ask("PATCH", f"/qpus/{HOLDS}", {"availability": "paused"})
    with open_lease(HOLDS, step="s") as lease:
        stopped = lease.submit(bell())
        wait_until(lambda: stopped.task_id, "the task's id")
        stopped.cancel()
        stopped.wait(60)

    with open_lease(HOLDS, step="s") as lease:
        again = lease.submit(bell())
        wait_until(lambda: again.task_id, "the task's id")
        assert again.task_id != stopped.task_id
        emulator.control.ask("DELETE", "/faults")
        lease.held.deletions.try_again(5.0)
        assert not is_known(lease, stopped.task_id)
        assert is_known(lease, again.task_id)
        emulator.control.ask("PATCH", f"/qpus/{HOLDS}", {"availability": "online"})
        again.result(timeout=60)
        assert not is_known(lease, again.task_id)


def test_a_rerun_deletes_the_task_of_a_process_that_was_killed_before_it_did(
    emulator, counted, fault, payload_file, tmp_path
):
    fault("delay", route="DELETE */v1/jobs/*", seconds=60.0)
    argv = [sys.executable, "-m", "qrmi_workflows", "run", str(payload_file), "--qpu", HOLDS]
    environ = {**os.environ, "QPU_STEP": "s", "QPU_ATTEMPT": "1"}
    process = subprocess.Popen([*argv, "-o", str(tmp_path / "r.json")], env=environ)

    def states() -> list[RecordState]:
        return [record.state for record in Journal().step("s").records()]

    wait_until(lambda: states() == [RecordState.COMPLETED], "the result in the journal")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    emulator.control.ask("DELETE", "/faults")

    with open_lease(HOLDS, step="s") as lease:
        result = lease.run(bell())
        assert not is_known(lease, result.task_id)
    assert counted()["tasks accepted"] == 1
