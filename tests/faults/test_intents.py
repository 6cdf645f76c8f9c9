"""An intent is recorded only while the vendor may have the task: not a moment before or after."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from itertools import chain, repeat
from typing import Any

import pytest
from fault_payloads import bell
from waiting import wait_until

from qrmi_workflows import Lease, open_lease
from qrmi_workflows.client import resource as client
from qrmi_workflows.errors import AmbiguousTaskError, ConfigError, QPUError, ResourceError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.journal.record import RecordState, TaskRecord
from qrmi_workflows.journal.step import Entry
from qrmi_workflows.vendors import ibm

MISSING = None
SETTINGS = [
    ("ibm_system", "QRMI_IBM_QS_S3_BUCKET", MISSING),
    ("ibm_system", "QRMI_IBM_QS_IAM_APIKEY", MISSING),
    ("ibm_system", "QRMI_IBM_QS_IAM_APIKEY", "wrong"),
    ("ibm_system", "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY", "wrong"),
    ("ibm_system", "QRMI_JOB_TIMEOUT_SECONDS", "soon"),
    ("ibm_system", "QRMI_JOB_TIMEOUT_SECONDS", "99999999"),
    ("ibm_quick", "QRMI_IBM_QCS_ENDPOINT", MISSING),
    ("ibm_quick", "QRMI_IBM_QCS_SERVICE_CRN", MISSING),
]


def only_record() -> TaskRecord:
    (record,) = Journal().step("s").records()
    return record


def rerun(qpu: str) -> None:
    """Run the step as a user would after the cause is removed: with no option about ambiguity."""
    with open_lease(qpu, step="s") as lease:
        assert lease.run(bell()).counts() is not None


@pytest.fixture
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrmi_workflows.tasks.submission.RETRY_SECONDS", 0.1)


@pytest.mark.parametrize(("qpu", "setting", "value"), SETTINGS)
def test_after_a_wrong_setting_is_corrected_the_same_step_runs(
    emulator, counted, monkeypatch, tmp_path, short_retries, qpu, setting, value
):
    """The client finds some only while it prepares the submission."""
    document = json.loads(emulator.config_path.read_text())
    environment = next(
        entry["environment"] for entry in document["resources"] if entry["name"] == qpu
    )
    environment.pop(setting, None)
    environment |= {} if value is MISSING else {setting: value}
    wrong = tmp_path / "qrmi_config.json"
    wrong.touch(mode=0o600)
    wrong.write_text(json.dumps(document))
    monkeypatch.setenv("QPU_CONFIG", str(wrong))

    with pytest.raises(QPUError) as caught, open_lease(qpu, step="s") as lease:
        lease.run(bell())
    assert not isinstance(caught.value, AmbiguousTaskError)

    monkeypatch.setenv("QPU_CONFIG", str(emulator.config_path))
    rerun(qpu)
    assert counted()["tasks accepted"] == 1


def refuse(*_: object) -> None:
    raise ConfigError("the package 'numpy' is not installed. Install it.")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [refuse, interrupt])
@pytest.mark.parametrize("place", ["encode", "to_qrmi_payload", "status", "intend"])
def test_an_error_before_the_request_leaves_no_intent(emulator, counted, monkeypatch, error, place):
    owner = {"encode": ibm._IBM, "to_qrmi_payload": client, "intend": Entry}
    with open_lease("ibm_system", step="s") as lease:
        assert lease.held.lanes.count, "counted before anything fails"
        with monkeypatch.context() as patched:
            patched.setattr(owner.get(place, lease.resource), place, error)
            with pytest.raises((ConfigError, KeyboardInterrupt)):
                lease.submit(bell()).result(timeout=60)

        assert only_record().state in (RecordState.CLAIMED, RecordState.FAILED)
    rerun("ibm_system")
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("qpu", ["ibm_system", "ibm_quick"])
def test_a_vendor_that_does_not_answer_before_the_request_leaves_no_intent(
    emulator, counted, fault, monkeypatch, short_retries, qpu
):
    monkeypatch.setattr(client, "_FRESH_SECONDS", 0.0)
    fault("status", route="GET */backends*", status=403)
    with open_lease(qpu, step="s") as lease, pytest.raises(ResourceError, match="status failed"):
        lease.run(bell())
    assert (only_record().state, only_record().retryable) == (RecordState.FAILED, True)

    emulator.control.ask("DELETE", "/faults")
    rerun(qpu)
    assert counted()["tasks accepted"] == 1


def test_a_refused_connection_leaves_no_intent(emulator, counted, monkeypatch, short_retries):
    monkeypatch.setattr(client, "_FRESH_SECONDS", 0.0)
    with socket.socket() as closed, open_lease("ibm_quick", step="s") as lease:
        closed.bind(("127.0.0.1", 0))  # it does not listen, and keeps others from the port
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        token = lease.held.qpu.token
        environment = lease.resource._environment
        endpoint, environment["QRMI_IBM_QCS_ENDPOINT"] = (
            environment["QRMI_IBM_QCS_ENDPOINT"],
            nobody,
        )
        lease.resource.use_token(token)
        with pytest.raises(ResourceError):
            lease.run(bell())
        assert (only_record().state, only_record().retryable) == (RecordState.FAILED, True)
        environment["QRMI_IBM_QCS_ENDPOINT"] = endpoint
        lease.resource.use_token(token)


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422, 429])
def test_a_refusal_is_never_called_ambiguous(
    emulator, counted, fault, monkeypatch, short_retries, status
):
    monkeypatch.setenv("QPU_LANE_WAIT", "0.2")
    fault("status", route="POST */jobs", status=status)
    with open_lease("ibm_quick", step="s") as lease, pytest.raises(ResourceError):
        lease.run(bell())
    assert (only_record().state, only_record().retryable) == (RecordState.FAILED, True)

    emulator.control.ask("DELETE", "/faults")
    rerun("ibm_quick")
    assert counted()["tasks accepted"] == 1


def test_between_two_refusals_there_is_no_intent(emulator, counted, fault, payload_file, tmp_path):
    """A process that is killed while it waits for its next attempt has not submitted anything."""
    fault("status", route="POST */jobs", status=429)
    argv = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--qpu", "ibm_quick"]
    argv += ["--step", "s", "--", sys.executable, "-m", "qrmi_workflows", "run", str(payload_file)]
    process = subprocess.Popen([*argv, "-o", str(tmp_path / "r.json")], stderr=subprocess.DEVNULL)

    def is_between() -> bool:
        records = Journal().step("s").records()
        return [each.state for each in records] == [RecordState.CLAIMED] and bool(matched())

    def matched() -> int:
        return sum(rule["matched"] for rule in emulator.control.ask("GET", "/faults"))

    wait_until(is_between, "a refusal")
    process.send_signal(signal.SIGTERM)
    process.wait(60)

    emulator.control.ask("DELETE", "/faults")
    rerun("ibm_quick")
    assert counted()["tasks accepted"] == 1


MESSAGE = "has accepted task"


class Late:
    """A first submission whose answer comes after the caller was told that there is none.

    Attributes:
        answer: Set this event to let the answer come.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = threading.Event()
        deadline_of, make_handle = client.QRMIResource.deadline_of, client._make_handle
        deadlines = chain([0.3], repeat(client.DEADLINES["task_start"]))
        waits = chain([self.answer.wait], repeat(lambda _seconds: True))

        def first_is_short(resource: client.QRMIResource, method: str) -> float:
            return next(deadlines) if method == "task_start" else deadline_of(resource, method)

        class Handle:
            """QRMI's handle, in whose thread the answer is held back."""

            def __init__(self, *settings: Any) -> None:
                self._handle = make_handle(*settings)

            def __getattr__(self, method: str) -> Any:
                return getattr(self._handle, method)

            def task_start(self, payload: Any) -> str:
                wait = next(waits)
                task_id = self._handle.task_start(payload)
                assert wait(60.0)
                return task_id

        monkeypatch.setattr(client.QRMIResource, "deadline_of", first_is_short)
        monkeypatch.setattr(client, "_make_handle", Handle)

    def submit(self, lease: Lease) -> None:
        with pytest.raises(AmbiguousTaskError, match=r"did not answer within [\d.]+ s"):
            lease.run(bell())


def test_a_late_answer_is_recorded_for_the_rerun(emulator, counted, monkeypatch):
    late = Late(monkeypatch)
    with open_lease("ibm_slow", step="s") as lease:
        late.submit(lease)
        assert only_record().state is RecordState.INTENT
        late.answer.set()
        wait_until(lambda: only_record().state is RecordState.SUBMITTED, "the late answer")
        lease._journal.close(lease.step)
        with lease.for_step("s") as again:
            assert again.run(bell()).counts() is not None
    assert counted()["tasks accepted"] == 1


def test_a_late_answer_that_nobody_can_use_is_stopped(
    emulator, server, counted, monkeypatch, caplog
):
    """A step without a name cannot be run again."""
    late = Late(monkeypatch)
    with open_lease("ibm_long") as lease:
        late.submit(lease)
        late.answer.set()
        wait_until(lambda: MESSAGE in caplog.text, "the late task")
        assert counted()["tasks cancelled"] == server.get("cancel_route", True)
    assert counted()["tasks accepted"] == 1


def test_a_task_that_was_submitted_again_is_stopped_when_it_is_accepted_late(
    emulator, server, counted, monkeypatch, caplog
):
    late = Late(monkeypatch)
    with open_lease("ibm_long", step="s") as lease:
        future = lease.submit(bell(), on_ambiguous="resubmit")
        wait_until(lambda: future.task_id, "the second submission")
        late.answer.set()
        wait_until(lambda: MESSAGE in caplog.text, "the late task")
        assert (counted()["tasks accepted"], future.done()) == (2, False)
        assert counted()["tasks cancelled"] == server.get("cancel_route", True)
        assert only_record().task_id == future.task_id
        future.cancel()


def test_a_late_answer_does_not_disturb_a_rerun_that_has_submitted_again(
    emulator, server, counted, monkeypatch, caplog
):
    late = Late(monkeypatch)
    with open_lease("ibm_long", step="s") as lease:
        late.submit(lease)
        lease._journal.close(lease.step)
        with lease.for_step("s") as again:
            future = again.submit(bell(), on_ambiguous="resubmit")
            wait_until(lambda: future.task_id, "the second submission")
            late.answer.set()
            wait_until(lambda: MESSAGE in caplog.text, "the late task")
            assert (counted()["tasks accepted"], future.done()) == (2, False)
            assert counted()["tasks cancelled"] == server.get("cancel_route", True)
            assert only_record().task_id == future.task_id
            future.cancel()


@pytest.mark.parametrize("qpu", ["ibm_system", "ibm_unique"])
def test_a_client_that_repeats_a_submission_by_itself_pays_once(
    emulator, server, fault, counted, qpu
):
    """Its first answer is lost; a server may refuse the same job the second time."""
    fault("drop", route="POST */v1/jobs", when="after", count=1)
    with open_lease(qpu, step="s") as lease:
        if qpu == "ibm_system" and server.get("repeated_jobs_accepted", True):
            lease.run(bell())
        else:
            with pytest.raises(AmbiguousTaskError, match="already exists"):
                lease.run(bell())
            assert only_record().state is RecordState.INTENT
    assert counted()["tasks accepted"] == 1
