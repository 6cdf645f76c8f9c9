"""A QPU whose lanes are taken: a task waits as long as its user allows, and is never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fault_payloads import bell
from servers import qpus_of_servers, to_toml
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.client import resource as client
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import AmbiguousTaskError, ResourceError, TaskCancelledError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.tasks import submission

SERVERS = qpus_of_servers("ibm-quantum-system", "ibm")
# Without a route to cancel, a task must outlast QRMI's request to: it asks for the state and then
# deletes the task, and would delete the result of one that ends in between (qrmi 0.26.4).
QPUS = sorted(SERVERS)
CONFIG = "".join(
    f"""
[qpus.{name}]
type = "ibm-quantum-system"
simulator = "null"
execution_seconds = {0.05 if server.get("cancel_route", True) else 1.0}
lanes = 1
server = {to_toml(server)}
"""
    for name, server in SERVERS.items()
)
DEADLINE = 0.4


@pytest.fixture(scope="module")
def shared_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("lanes")
    (folder / "emulator.toml").write_text(CONFIG)
    (folder / "site.toml").write_text("")
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """All deadlines and intervals that matter while a task waits for a lane, shortened."""
    monkeypatch.setattr(client, "DEADLINES", {**client.DEADLINES, "task_start": DEADLINE})
    monkeypatch.setattr(submission, "_FIRST_MESSAGE", 0.1)
    monkeypatch.setattr(submission, "_ANSWER_SECONDS", 0.1)


@pytest.fixture(params=QPUS)
def qpu(request: pytest.FixtureRequest, emulator: Emulator) -> Iterator[str]:
    yield request.param
    set_availability(emulator, request.param, "online")


@pytest.fixture
def reserve(emulator: Emulator, qpu: str) -> Callable[[], None]:
    """Reserve the QPU for others: its service refuses jobs (423), and says so in its status."""
    return lambda: set_availability(emulator, qpu, "reserved")


@pytest.fixture
def free(emulator: Emulator, qpu: str) -> Callable[[], None]:
    return lambda: set_availability(emulator, qpu, "online")


@pytest.fixture
def refuse_for_a_while(fault: Callable[..., None]) -> None:
    """Refuse jobs although lanes look free; QRMI repeats the submission inside of its call."""
    fault("status", route="POST */jobs", status=429, count=1)


@pytest.fixture
def accept_again(emulator: Emulator, fault: Callable[..., None]) -> Callable[[], None]:
    """Refuse jobs in the same way, until the test calls this."""
    fault("status", route="POST */jobs", status=429)
    return lambda: emulator.control.ask("DELETE", "/faults")


def set_availability(emulator: Emulator, name: str, availability: str) -> None:
    emulator.control.ask("PATCH", f"/qpus/{name}", {"availability": availability})


def only_record(step: str = "s") -> TaskRecord:
    (record,) = Journal().step(step).records()
    return record


def wait_for_state(state: RecordState) -> None:
    def is_reached() -> bool:
        return [record.state for record in Journal().step("s").records()] == [state]

    wait_until(is_reached, f"the state {state}")


def wait_past_the_deadline(lease: Lease) -> None:
    """Wait until several more answers to `status` have come in, each later than the last."""
    for _ in range(3):
        with suppress(ResourceError):
            lease.resource.status()
        threading.Event().wait(DEADLINE / 2)


def test_a_task_waits_for_a_lane_longer_than_any_deadline(
    short_deadlines, qpu, reserve, free, counted, caplog
):
    reserve()
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(bell())
        wait_until(lambda: "waiting for a lane" in caplog.text, "the message")
        wait_past_the_deadline(lease)
        assert only_record().state is RecordState.CLAIMED, "nothing was sent"
        assert not future.done()

        free()

        assert future.result(timeout=60).counts() is not None
    assert counted()["tasks accepted"] == 1
    assert f"QPU {qpu!r}: all of its lanes are taken" in caplog.text


def test_a_submission_that_the_client_repeats_outlasts_its_deadline(
    short_deadlines, qpu, refuse_for_a_while, counted, caplog
):
    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).counts() is not None

    assert counted()["tasks accepted"] == 1
    assert "has not accepted the task yet" in caplog.text


def test_two_tasks_that_wait_for_one_lane_take_turns(
    short_deadlines, qpu, reserve, free, counted, matched, fault
):
    fault("delay", route="POST */v1/jobs", seconds=0.0)  # counts the submissions
    reserve()
    with open_lease(qpu, step="s") as lease:
        futures = [lease.submit(bell(shots)) for shots in (1, 2)]
        wait_past_the_deadline(lease)
        free()
        assert {future.result(timeout=60).task_id for future in futures}

    assert counted()["tasks accepted"] == 2
    assert matched() == 2, "no submission was refused"


def test_a_task_that_is_stopped_while_it_waits_was_certainly_not_submitted(
    short_deadlines, qpu, reserve, free, counted
):
    reserve()
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(bell())
        wait_for_state(RecordState.CLAIMED)
        future.cancel()
        with pytest.raises(TaskCancelledError, match="was not submitted"):
            future.result(timeout=60)
        free()
        wait_past_the_deadline(lease)
    assert counted()["tasks accepted"] == 0
    assert (only_record().state, only_record().retryable) == (RecordState.FAILED, True)

    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).counts() is not None
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("released", [False, True])
def test_a_task_that_is_accepted_after_its_stop_is_cancelled(
    short_deadlines, qpu, accept_again, emulator, free, counted, caplog, released
):
    lease = open_lease(qpu, step="s")
    future = lease.submit(bell())
    wait_for_state(RecordState.INTENT)
    if SERVERS[qpu].get("cancel_route", True):  # the task may not complete first
        set_availability(emulator, qpu, "paused")
    if released:
        lease.release()
    future.cancel()
    with pytest.raises(AmbiguousTaskError, match="stopped while the submission was under way"):
        future.result(timeout=60)
    assert "it is not known whether" in caplog.text, "whoever stops it may not look at the error"

    accept_again()
    wait_until(lambda: counted()["tasks finished"] == 1, "the late task's end")
    wait_until(lambda: only_record().state is not RecordState.INTENT, "the record of the end")
    lease.release()
    free()

    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).counts() is not None
    assert counted()["tasks completed"] == 1, "paid for once"


def test_a_task_that_is_accepted_after_its_stop_is_left_for_the_rerun(
    short_deadlines, qpu, accept_again, counted
):
    with open_lease(qpu, step="s") as lease:
        future = lease.submit(bell(), on_stop="leave")
        wait_for_state(RecordState.INTENT)
        future.cancel()
        with pytest.raises(AmbiguousTaskError):
            future.result(timeout=60)
    accept_again()
    wait_for_state(RecordState.SUBMITTED)

    with open_lease(qpu, step="s") as lease:
        lease.run(bell())
    assert counted()["tasks accepted"] == 1


def test_the_wait_for_a_lane_is_as_long_as_the_user_says(
    short_deadlines, qpu, reserve, free, counted, monkeypatch
):
    monkeypatch.setenv("QPU_LANE_WAIT", "0.3")
    reserve()
    with open_lease(qpu, step="s") as lease:
        with pytest.raises(ResourceError, match=r"taken for 0\.3 s; .* \$QPU_LANE_WAIT"):
            lease.run(bell())
        free()
    assert only_record().retryable

    monkeypatch.delenv("QPU_LANE_WAIT")
    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).task_id
    assert counted()["tasks accepted"] == 1


def start(qpu: str, folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "qrmi_workflows", "run", str(folder / "bell.json"), "--qpu", qpu]
    environ = {**os.environ, "QPU_STEP": "s", "QPU_ATTEMPT": "1"}
    return subprocess.Popen(
        [*argv, "-o", str(folder / "r.json")], env=environ, stderr=subprocess.PIPE, text=True
    )


ONE_SERVER = pytest.mark.parametrize("qpu", ["ibm_default"], indirect=True)


@ONE_SERVER
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rerun_after_a_signal_that_came_during_the_wait_pays_once(
    qpu, reserve, free, counted, payload_file, tmp_path, number
):
    reserve()
    process = start(qpu, tmp_path)
    wait_for_state(RecordState.CLAIMED)
    process.send_signal(number)
    process.communicate(timeout=60)
    free()

    again = start(qpu, tmp_path)
    errors = again.communicate(timeout=60)[1]

    assert again.returncode == 0, errors
    assert counted()["tasks accepted"] == 1


@ONE_SERVER
def test_a_signal_during_a_submission_says_what_is_not_known(
    qpu, fault, counted, payload_file, tmp_path
):
    fault("status", route="POST */jobs", status=429)
    process = start(qpu, tmp_path)
    wait_for_state(RecordState.INTENT)
    process.terminate()
    errors = process.communicate(timeout=60)[1]

    assert process.returncode == 128 + signal.SIGTERM
    assert "it is not known whether" in errors
    assert counted()["tasks accepted"] == 0
