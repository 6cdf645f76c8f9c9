"""A session whose tasks a rerun would wait for is never closed, and none is left open for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fault_payloads import bell
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import TaskCancelledError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.state.process import Owner

TYPE = "ibm-quantum-compute-service"
SERVERS = {"-".join(server) or "default": server for server in servers(TYPE)}
QPU = """
[qpus.{name}]
type = "{type}"
simulator = "null"
execution_seconds = {seconds}
lanes = 2
server = {server}
"""
RUN = """
import sys
from fault_payloads import bell
from qrmi_workflows import open_lease
qpu, step, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open_lease(qpu, step=step) as lease:
    futures = [lease.submit(bell(shots)) for shots in range(1, count + 1)]
    for future in futures:
        print(future.result().task_id, flush=True)
"""
every_server = pytest.mark.parametrize(
    "vendor",
    [pytest.param(name, marks=() if name == "default" else pytest.mark.slow) for name in SERVERS],
    indirect=True,
)
SHORT, LONG = 0.05, 3.0  # seconds of a task; the long ones run while a step is killed


@dataclass
class Vendor:
    """One QPU of the emulator, and what has been done with it since the test began."""

    emulator: Emulator
    qpu: str
    before: dict[str, dict[str, int]]

    def count(self, kind: str, key: str) -> int:
        now = self.emulator.control.counters()["qpus"][self.qpu]
        return now[kind][key] - self.before[kind][key]

    def hold_tasks(self, *, hold: bool = True) -> None:
        """Keep tasks in the vendor's queue, or let them run."""
        availability = "paused" if hold else "online"
        self.emulator.control.ask("PATCH", f"/qpus/{self.qpu}", {"availability": availability})

    def fault(self, kind: str, **rule: object) -> None:
        self.emulator.control.ask("POST", "/faults", {"kind": kind, **rule})

    def matched(self) -> int:
        """Count the requests that the active faults have matched."""
        return sum(rule["matched"] for rule in self.emulator.control.ask("GET", "/faults"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("sessions")
    (folder / "emulator.toml").write_text(
        "".join(
            QPU.format(name=f"{name}{suffix}", type=TYPE, seconds=seconds, server=to_toml(server))
            for name, server in SERVERS.items()
            for suffix, seconds in (("", SHORT), ("_long", LONG))
        )
    )
    with start_emulator(folder / "state", config=folder / "emulator.toml") as emulator:
        yield emulator


@pytest.fixture
def vendor(
    request: pytest.FixtureRequest,
    running: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Vendor]:
    """A server as the vendor documents it, or of each kind, for a user with an empty state."""
    monkeypatch.setenv("QPU_CONFIG", str(running.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("QPU_SITE", os.devnull)
    monkeypatch.setenv("QPU_LANES", "3")  # one task more than the QPU takes at once
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    qpu = getattr(request, "param", "default")
    vendor = Vendor(running, qpu, running.control.counters()["qpus"][qpu])
    yield vendor
    running.control.ask("DELETE", "/faults")
    vendor.fault("close-sessions")  # one that a test has left would hold the QPU
    vendor.hold_tasks(hold=False)


@pytest.fixture
def long_running(vendor: Vendor) -> Vendor:
    """The same server, with tasks that run while a step is killed and started again."""
    vendor.qpu += "_long"
    vendor.before = vendor.emulator.control.counters()["qpus"][vendor.qpu]
    return vendor


@pytest.fixture
def start(vendor: Vendor) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a run of a step; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(step: str = "s", tasks: int = 1) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", RUN, vendor.qpu, step, str(tasks)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(argv, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def killed(vendor: Vendor, start) -> None:
    """A run of the step `s` that was killed by SIGKILL while its task was in the vendor's queue."""
    vendor.hold_tasks()
    kill(start(), tasks=1)


@pytest.fixture
def rerun(vendor: Vendor, start) -> Callable[..., tuple[int, int]]:
    """Run the step `s` again, and let the vendor's tasks run once the run has a lease."""

    def rerun(tasks: int = 1) -> tuple[int, int]:
        process = start(tasks=tasks)
        wait_until(lambda: process.pid in owners() or process.poll() is not None, "the run's lease")
        vendor.hold_tasks(hold=False)
        return outcome(process)

    return rerun


def kill(process: subprocess.Popen[str], tasks: int) -> None:
    wait_until(lambda: states("s").count("submitted") == tasks, "the tasks' records")
    process.kill()
    process.wait()


def states(step: str) -> list[str]:
    return [record.state for record in Journal().step(step).records()]


def owners() -> set[int]:
    return {each.owner.pid for each in open_leases()}


def lease_records(folder: Path) -> list[LeaseRecord]:
    files = (folder / "state" / "leases").glob("*.jsonl")
    return [LeaseRecord.from_json(line) for f in files for line in f.read_text().splitlines()]


def outcome(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Return a run's exit code and its number of results."""
    printed, errors = process.communicate(timeout=60)
    print(errors)  # shown if the test fails
    return process.returncode, len(printed.splitlines())


def require_paid_once(vendor: Vendor, tasks: int = 1) -> None:
    assert vendor.count("tasks", "accepted") == tasks
    assert vendor.count("tasks", "completed") == tasks
    assert vendor.count("sessions", "open") == 0
    assert list(open_leases()) == []


@every_server
@pytest.mark.parametrize("tasks", [1, 3], ids=["running", "running and queued"])
def test_a_rerun_after_sigkill_waits_for_the_tasks_and_pays_once(long_running, start, rerun, tasks):
    kill(start(tasks=tasks), tasks)

    assert rerun(tasks) == (0, tasks)

    require_paid_once(long_running, tasks)


@every_server
def test_the_rerun_takes_over_the_session(vendor, killed, rerun, tmp_path):
    assert rerun() == (0, 1)

    require_paid_once(vendor)
    assert vendor.count("sessions", "opened") == 1
    (record,) = lease_records(tmp_path)
    assert (record.taken_over, record.reaped, record.tasks) == (1, False, 1)


def test_a_rerun_after_sigkill_before_the_task_was_accepted_pays_once(vendor, start):
    vendor.fault("delay", route="POST */jobs", seconds=60, count=1)
    process = start()
    wait_until(lambda: states("s") == ["intent"], "the intent")
    process.kill()
    process.wait()
    vendor.emulator.control.ask("DELETE", "/faults")

    with open_lease(vendor.qpu, step="s") as lease:
        lease.run(bell(1), on_ambiguous="resubmit")

    require_paid_once(vendor)


@every_server
def test_a_rerun_after_sigkill_with_the_result_recorded_pays_once(vendor, start, rerun):
    vendor.fault("delay", route="PATCH */sessions/*", seconds=60, count=1)
    process = start()
    wait_until(lambda: states("s") == ["completed"], "the result")
    process.kill()
    process.wait()
    vendor.emulator.control.ask("DELETE", "/faults")

    assert rerun() == (0, 1)

    require_paid_once(vendor)


@every_server
def test_a_rerun_after_the_task_has_ended_finds_its_result(vendor, killed, rerun):
    vendor.hold_tasks(hold=False)
    wait_until(lambda: vendor.count("tasks", "completed") == 1, "the end of the task")

    assert rerun() == (0, 1)

    require_paid_once(vendor)


def test_each_of_two_reruns_at_once_ends_well(vendor, killed, start):
    """One takes the lease over. While it runs, the journal takes the other's equal task for new."""
    runs = [start(), start()]
    wait_until(lambda: {run.pid for run in runs} == owners(), "both leases")
    vendor.hold_tasks(hold=False)

    assert [outcome(run) for run in runs] == [(0, 1), (0, 1)]

    require_paid_once(vendor, tasks=vendor.count("tasks", "accepted"))
    assert vendor.count("sessions", "opened") == 2


@every_server
def test_a_lease_is_taken_over_by_one_process_only(vendor, killed):
    with ThreadPoolExecutor() as pool:
        leases = list(pool.map(lambda step: open_lease(vendor.qpu, step=step), "abcd"))
    for lease in leases:
        lease.release()

    assert vendor.count("sessions", "opened") == 4
    assert len({lease.held.qpu.token for lease in leases}) == 4
    assert vendor.count("tasks", "cancelled") == 0


def test_a_reaper_that_looks_at_the_lease_does_not_keep_it_from_the_rerun(vendor, killed, rerun):
    vendor.fault("delay", route="GET */jobs/*", seconds=1.5, count=1)
    with ThreadPoolExecutor() as pool:
        looking = pool.submit(reap)
        # The reaper asks with the lease locked. To try the lock could keep the reaper from it.
        wait_until(vendor.matched, "the reaper's question")
        assert rerun() == (0, 1)
        assert looking.result()[0].kept

    require_paid_once(vendor)
    assert vendor.count("sessions", "opened") == 1


@every_server
def test_a_rerun_that_is_killed_too_leaves_it_to_the_next(vendor, killed, start, rerun, tmp_path):
    process = start()
    wait_until(lambda: owners() == {process.pid}, "the takeover")
    process.kill()
    process.wait()

    assert rerun() == (0, 1)

    require_paid_once(vendor)
    assert [record.taken_over for record in lease_records(tmp_path)] == [2]


@every_server
def test_another_steps_lease_takes_it_over_and_leaves_its_task(
    vendor, killed, rerun, tmp_path, caplog
):
    open_lease(vendor.qpu, step="other").release()

    assert "stays open: 1 task is still running for step 's'. Rerun the step" in caplog.text
    assert [each.is_left for each in open_leases()] == [True]
    assert rerun() == (0, 1)
    require_paid_once(vendor)
    (record,) = lease_records(tmp_path)
    assert (record.taken_over, record.left) == (2, 1)


def test_a_lease_of_another_account_does_not_take_it_over(vendor, killed, rerun, tmp_path):
    document = json.loads(vendor.emulator.config_path.read_text())
    for resource in document["resources"]:
        resource["environment"]["QRMI_IBM_QCS_SESSION_MODE"] = "batch"
    (tmp_path / "other.json").write_text(json.dumps(document))

    open_lease(vendor.qpu, step="other", config=tmp_path / "other.json").release()

    assert [each.taken_over for each in open_leases()] == [0]
    assert rerun() == (0, 1)
    require_paid_once(vendor)


def test_reaping_leaves_it_until_its_tasks_have_ended(vendor, killed, tmp_path):
    (kept,) = reap()
    assert (kept.released, kept.error) == (False, "")
    assert "1 task is still running for step 's'" in kept.kept
    assert "the vendor ends it 8 h after its first task has started" in kept.kept

    vendor.hold_tasks(hold=False)
    wait_until(lambda: vendor.count("tasks", "completed") == 1, "the end of the task")
    assert [each.released for each in reap()] == [True]
    assert vendor.count("sessions", "open") == 0
    (record,) = lease_records(tmp_path)
    assert (record.reaped, record.taken_over) == (True, 0)


@every_server
def test_the_command_says_why_it_leaves_it_and_cancels_on_request(vendor, killed):
    command = [sys.executable, "-m", "qrmi_workflows", "reap"]

    kept = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "run `qpu reap --cancel-tasks` to cancel them" in kept.stdout
    assert vendor.count("sessions", "open") == 1

    command.append("--cancel-tasks")
    cancelled = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert cancelled.stdout.endswith(": released\n")
    assert vendor.count("sessions", "open") == 0
    assert vendor.count("tasks", "cancelled") == 1


def test_the_tasks_of_a_step_that_cannot_be_run_again_are_not_kept(vendor, killed):
    """Without a name, only the dead process could have used the results."""
    (path,) = Path(os.environ["QPU_STATE"]).glob("journal/open/*/*/*.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"named": False}))

    assert [each.released for each in reap()] == [True]


@every_server
def test_tasks_that_are_left_are_not_cancelled_by_the_release(vendor, rerun, tmp_path):
    vendor.hold_tasks()
    with open_lease(vendor.qpu, step="s") as lease:
        future = lease.submit(bell(1), on_stop="leave")
        wait_until(lambda: states("s") == ["submitted"], "the task's record")
        future.cancel()
        with pytest.raises(TaskCancelledError, match="left for a rerun"):
            future.result(timeout=60)
    assert [each.is_left for each in open_leases()] == [True]

    assert rerun() == (0, 1)

    require_paid_once(vendor)
    (record,) = lease_records(tmp_path)
    assert (record.left, record.taken_over, record.reaped) == (1, 1, False)


def test_sigterm_leaves_the_tasks_if_the_environment_says_so(vendor, start, rerun, monkeypatch):
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    vendor.hold_tasks()
    process = start()
    wait_until(lambda: states("s") == ["submitted"], "the task's record")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143

    assert rerun() == (0, 1)
    require_paid_once(vendor)


def test_tasks_that_are_stopped_do_not_keep_the_lease(vendor, start):
    vendor.hold_tasks()
    process = start()
    wait_until(lambda: states("s") == ["submitted"], "the task's record")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143

    assert vendor.count("sessions", "open") == 0
    assert list(open_leases()) == []


@every_server
def test_a_supervisor_leaves_the_tasks_of_a_killed_command(vendor, rerun):
    """As with `timeout -s KILL`, or a worker that runs out of memory."""
    vendor.hold_tasks()
    command = [sys.executable, "-c", RUN, vendor.qpu, "s", "1"]
    supervisor = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--qpu", vendor.qpu]
    with subprocess.Popen([*supervisor, "--", *command], stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: states("s") == ["submitted"], "the task's record")
        (record,) = Journal().step("s").records()
        os.kill(record.owner.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 128 + signal.SIGKILL

    assert rerun() == (0, 1)
    require_paid_once(vendor)


@every_server
def test_a_taken_over_session_that_accepts_no_task_is_replaced(long_running, start):
    """The vendor closes the session; what becomes of the first task is its word on the task."""
    kill(start(), tasks=1)
    long_running.fault("close-sessions")

    assert outcome(start(tasks=2)) == (0, 2)

    again = long_running.count("tasks", "cancelled")
    assert long_running.count("tasks", "accepted") == 2 + again
    assert long_running.count("sessions", "open") == 0
    assert list(open_leases()) == []


@every_server
def test_a_session_that_the_vendor_has_ended_is_recorded_as_released(vendor, killed, tmp_path):
    vendor.fault("close-sessions")
    assert vendor.count("sessions", "open") == 0

    assert [each.released for each in reap()] == [True]
    with open_lease(vendor.qpu, step="s"):
        vendor.fault("close-sessions")

    assert list(open_leases()) == []
    assert len(lease_records(tmp_path)) == 2


def test_a_requeued_job_takes_over_the_lease_of_its_last_start(vendor, killed, rerun, monkeypatch):
    """Its owner was on another host, and the scheduler calls the job alive."""
    (opened,) = open_leases()
    owner = Owner(host="elsewhere", boot="", pid=1, started=1, job="17", restart=0)
    replace(opened, owner=owner)._write()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    assert rerun() == (0, 1)

    require_paid_once(vendor)
    assert vendor.count("sessions", "opened") == 1


def test_reaping_does_not_release_what_was_taken_over_meanwhile(vendor, killed, monkeypatch):
    """Another process takes the lease over between reading its file and locking it."""
    stale = list(open_leases())
    OpenLease.load(stale[0].path).take_over("another")
    monkeypatch.setattr("qrmi_workflows.lease.reap.open_leases", lambda: iter(stale))

    assert reap(cancel_tasks=True) == []

    assert vendor.count("tasks", "cancelled") == 0


def test_a_vendor_that_does_not_tell_a_tasks_state_keeps_the_lease_open(vendor, killed, rerun):
    vendor.fault("status", route="GET */jobs/*", status=503)

    (kept,) = reap(patience=10.0)
    assert not kept.released
    assert "503" in kept.error

    vendor.emulator.control.ask("DELETE", "/faults")
    assert rerun() == (0, 1)
    require_paid_once(vendor)
