"""Fault rules, as the real client sees them and the real command sets them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulator_clients import ask, bell, connect, primitive, wait
from qrmi import AuthenticationFailedError, QrmiError, TaskStatus
from waiting import wait_until

from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.emulator.faults import FaultRule
from qrmi_workflows.errors import EmulatorError

STATUS = "GET /ibm-quantum-compute-service/jobs/*"
START = "POST /ibm-quantum-compute-service/jobs"
CONFIG = """
record = true

[qpus.ibm_null]
type = "ibm-quantum-compute-service"
simulator = "null"

[qpus.ibm_system]
type = "ibm-quantum-system"
simulator = "null"

[[faults]]
kind = "status"
status = 503
count = 1
route = "POST */sessions"
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Start an emulator whose faults do not affect other tests."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "emulator.toml").write_text(CONFIG)
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def fault(faulty: Emulator) -> Iterator[object]:
    """Return a function that adds a rule until the test has ended."""
    yield lambda **fields: faulty.control.ask("POST", "/faults", fields)
    faulty.control.ask("DELETE", "/faults")
    faulty.control.ask("POST", "/faults", {"kind": "clock-skew", "seconds": 0})


@pytest.fixture
def resource(faulty: Emulator):
    return connect(faulty, "ibm_null")


@pytest.fixture
def task(resource) -> str:
    """Return the id of a completed task."""
    task_id = resource.task_start(primitive("sampler", [[bell()]]))
    wait(resource, task_id)
    return str(task_id)


def test_rules_in_the_file_apply_from_the_start(faulty, resource):
    """The first acquire fails and the second succeeds."""
    with pytest.raises(QrmiError, match="503"):
        resource.acquire()
    resource.release(resource.acquire())


def test_a_status_fault_acts_on_some_of_the_requests(fault, resource, task):
    """The first request passes, the next two fail, and the fourth passes again."""
    fault(kind="status", route=STATUS, status=500, body="bad day", after=1, count=2)
    assert resource.task_status(task) == TaskStatus.Completed
    for _ in range(2):
        with pytest.raises(QrmiError, match="bad day"):
            resource.task_status(task)
    assert resource.task_status(task) == TaskStatus.Completed


def test_a_response_is_lost_after_the_task_was_accepted(faulty, fault, resource):
    """This is the ambiguous window: the client gets an error, but the vendor has the task."""
    accepted = faulty.counters()["tasks"]["accepted"]
    fault(kind="drop", route=START, when="after", count=1)
    with pytest.raises(QrmiError):
        resource.task_start(primitive("sampler", [[bell()]]))
    assert faulty.counters()["tasks"]["accepted"] == accepted + 1


def test_a_connection_is_dropped_before_the_task_is_accepted(faulty, fault, resource):
    """The client gets an error and the vendor has no task."""
    accepted = faulty.counters()["tasks"]["accepted"]
    fault(kind="drop", route=START, count=1)
    with pytest.raises(QrmiError):
        resource.task_start(primitive("sampler", [[bell()]]))
    assert faulty.counters()["tasks"]["accepted"] == accepted


def test_a_response_body_is_truncated(fault, resource, task):
    """The client cannot parse it and raises an error."""
    fault(kind="malformed", route=STATUS, count=1)
    with pytest.raises(QrmiError):
        resource.task_status(task)
    assert resource.task_status(task) == TaskStatus.Completed


@pytest.mark.parametrize("kind", ["delay", "slow"])
def test_a_response_is_late(fault, resource, task, kind):
    """The client gets the right response after the delay."""
    fault(kind=kind, route=STATUS, seconds=0.3, count=1)
    started = time.monotonic()
    assert resource.task_status(task) == TaskStatus.Completed
    assert time.monotonic() - started > 0.25


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_response_is_held_until_the_rule_is_removed(faulty, fault, task, when):
    fault(kind="hold", route=STATUS, when=when, count=1)
    held = connect(faulty, "ibm_null")
    with ThreadPoolExecutor() as pool:
        status = pool.submit(held.task_status, task)
        try:
            wait_until(lambda: faulty.control.ask("GET", "/faults")[0]["matched"], "the request")
            assert connect(faulty, "ibm_null").task_status(task) == TaskStatus.Completed
            assert not status.done()
        finally:
            faulty.control.ask("DELETE", "/faults")
        assert status.result(timeout=60) == TaskStatus.Completed


def test_a_request_hangs(faulty, fault, task):
    """One client hangs, other clients do not, and the emulator still shuts down."""
    fault(kind="hang", route=STATUS, count=1)
    stuck = connect(faulty, "ibm_null")

    def hang() -> None:
        with contextlib.suppress(QrmiError):  # raised when the emulator shuts down
            stuck.task_status(task)

    threading.Thread(target=hang, daemon=True).start()
    wait_until(lambda: faulty.control.ask("GET", "/faults")[0]["matched"], "the hanging request")
    assert connect(faulty, "ibm_null").task_status(task) == TaskStatus.Completed


def test_tokens_expire(fault, resource, task):
    """QRMI does not fetch a new token on status 401, so the handle becomes unusable."""
    assert resource.task_status(task) == TaskStatus.Completed
    fault(kind="expire-tokens")
    with pytest.raises(AuthenticationFailedError):
        resource.task_status(task)


def test_the_system_apis_client_survives_expired_tokens_and_a_503(faulty, fault):
    """There QRMI fetches a new token and retries, and the task is submitted only once."""
    system = connect(faulty, "ibm_system")
    wait(system, system.task_start(primitive("sampler", [[bell()]])))
    accepted = faulty.counters()["tasks"]["accepted"]
    fault(kind="expire-tokens")
    fault(kind="status", status=503, count=1, when="after", route="POST */v1/jobs")
    task = system.task_start(primitive("sampler", [[bell()]]))
    assert wait(system, task) == TaskStatus.Completed
    assert faulty.counters()["tasks"]["accepted"] == accepted + 1


def test_a_session_is_closed_early(fault, resource):
    """A client learns only from its next request that it has lost the session."""
    token = resource.acquire()
    fault(kind="close-sessions")
    with pytest.raises(QrmiError, match="has been closed"):
        resource.task_start(primitive("sampler", [[bell()]]))
    resource.release(token)


def test_the_clock_is_wrong(faulty, fault, resource, task):
    """With the server's clock two hours ahead, valid tokens have expired."""
    assert resource.task_status(task) == TaskStatus.Completed
    fault(kind="clock-skew", seconds=7200)
    with pytest.raises(AuthenticationFailedError):
        resource.task_status(task)
    fault(kind="clock-skew", seconds=0)
    assert resource.task_status(task) == TaskStatus.Completed


def qpu_emulator(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "qrmi_workflows", "emulator", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_the_command_adds_lists_and_clears_rules(faulty, fault):
    """An added rule is listed until it is cleared; an unknown kind or folder is rejected."""
    where = ("--dir", str(faulty.folder))
    added = qpu_emulator("fault", "add", *where, "delay", "--seconds", "2", "--route", "PUT *")
    assert added.returncode == 0, added.stderr
    (listed,) = json.loads(qpu_emulator("fault", "list", *where).stdout)
    assert (listed["kind"], listed["seconds"], listed["route"]) == ("delay", 2.0, "PUT *")
    assert qpu_emulator("fault", "clear", *where, str(listed["number"])).returncode == 0
    assert json.loads(qpu_emulator("fault", "list", *where).stdout) == []
    unknown = qpu_emulator("fault", "add", *where, "gremlin")
    assert unknown.returncode == 2
    assert "close-sessions" in unknown.stderr
    nowhere = qpu_emulator("fault", "list", "--dir", str(faulty.folder / "none"))
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stderr


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"kind": "delay", "secs": 1}, "seconds"),
        ({"kind": "delay", "seconds": "long"}, "float"),
        ({"kind": "status", "status": 7}, "100 to 599"),
        ({"kind": "drop", "when": "never"}, "before, after"),
        ({"kind": "drop", "count": 0}, "must be a positive integer"),
        ({"route": "*"}, "kind"),
    ],
)
def test_a_bad_rule_is_rejected_with_the_allowed_values(faulty, table, expected):
    """Python code and the control endpoint both reject it."""
    with pytest.raises(EmulatorError) as caught:
        FaultRule.parse(table)
    assert expected in str(caught.value)
    token = json.loads((faulty.folder / "control.json").read_text())["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert ask(faulty, "POST", "/control/faults", table, headers)[0] == 400


def test_requests_are_recorded_without_credentials(faulty, task):
    """Each request is one line with its body, and no line has a token or key."""
    system = connect(faulty, "ibm_system")
    wait(system, system.task_start(primitive("sampler", [[bell()]])))
    text = (faulty.folder / "requests.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    start = next(line for line in lines if line["method"] == "POST" and line["path"] == START[5:])
    assert "OPENQASM" in start["body"]
    assert start["status"] == 200
    assert any(line["path"].endswith("/identity/token") and not line["body"] for line in lines)
    credentials = json.loads((faulty.folder / "credentials.json").read_text())
    for secret in credentials["secrets"]["ibm-quantum-compute-service"].values():
        assert secret not in text
    assert "Bearer" not in text
    assert credentials["secrets"]["ibm-quantum-system"]["access_key"] not in text
    assert "X-Amz-Signature=..." in text
