"""Between SIGTERM and SIGKILL a process releases its leases and ends, whatever hangs.

Real processes are ended as Slurm ends a job, while the vendor fails and hangs, tasks do not stop,
and commands ignore SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import wait_until

from qrmi_workflows.lease.killwait import KillWait
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases

pytestmark = pytest.mark.slow  # each takes the better part of a KillWait

BUDGET = KillWait.divide(20)
LOAD_SECONDS = 1.0
"""How much later than KillWait SIGKILL is sent here: a loaded machine is slow."""

QPU = (sys.executable, "-m", "qrmi_workflows")
RELEASE = "[PD]* */sessions/*"  # PATCH, or DELETE if the session has run a task
CANCEL = "POST */jobs/*/cancel"


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


IDLE = """
import time
from qrmi_workflows import open_lease

with open_lease("ibm_quick"):
    print("ready", flush=True)
    time.sleep(60)
"""
IN_FLIGHT = """
import threading
from fault_payloads import bell
from qrmi_workflows import open_lease

both_started = threading.Barrier(2, action=lambda: print("ready", flush=True))
started = set()

def announce(task_id, state):
    if task_id not in started:
        started.add(task_id)
        both_started.wait()

with open_lease("ibm_slow") as lease:
    lease.submit(bell(1), on_state=announce)
    lease.run(bell(2), on_state=announce)
"""
NESTED = """
import time
from qrmi_workflows import open_lease

with open_lease("ibm_quick"), open_lease("ibm_other"), open_lease("ibm_slow"):
    print("ready", flush=True)
    time.sleep(60)
"""
AT_EXIT = """
import time
from qrmi_workflows import open_lease

leases = [open_lease(qpu) for qpu in ("ibm_quick", "ibm_other", "ibm_slow")]
print("ready", flush=True)
time.sleep(60)
"""
ACQUIRING = """
from qrmi_workflows import open_lease

print("ready", flush=True)
open_lease("ibm_quick")
"""

IGNORING = "trap '' TERM; echo ready; while true; do sleep 1; done"
ORPHANING = f'sh -c "{IGNORING}" & wait'
SUPERVISED = (*QPU, "lease", "exec", "--qpu", "ibm_slow", "--")
OUTER = (*QPU, "lease", "exec", "--qpu", "ibm_slow", "--grace", "15", "--")
EXITED, KILLED = 128 + signal.SIGTERM, 128 + signal.SIGKILL

PROCESSES = {
    "program that waits": (python(IDLE), {EXITED}),
    "program with tasks in flight": (python(IN_FLIGHT), {EXITED}),
    "program with nested leases": (python(NESTED), {EXITED}),
    "program that releases at exit": (python(AT_EXIT), {EXITED}),
    "command that ignores SIGTERM": ((*SUPERVISED, "sh", "-c", IGNORING), {KILLED}),
    "command that leaves a process": ((*SUPERVISED, "sh", "-c", ORPHANING), {EXITED}),
    # On a loaded machine, its share of KillWait may be used up before it has exited.
    "command with tasks in flight": ((*SUPERVISED, *python(IN_FLIGHT)), {EXITED, KILLED}),
}
"""Commands, and the exit codes that they may have if only their supervisor sends SIGKILL."""

UNDER_A_LEASE = {
    "command under two leases": (
        (*OUTER, *QPU, "lease", "exec", "--qpu", "ibm_quick", "--", "sh", "-c", IGNORING),
        KILLED,
    ),
    "program that opens another lease": ((*OUTER, *python(IDLE)), EXITED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a process ended.

    Attributes:
        code: Its exit code.
        seconds: How many seconds after SIGTERM.
        stderr: Its standard error.
    """

    code: int
    seconds: float
    stderr: str


class Process:
    """A job's process and its children, which form a process group."""

    def __init__(self, *argv: str) -> None:
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
        assert self._process.stdout.readline() == "ready\n"

    def end(self, kill_wait: float = BUDGET.total) -> End:
        """Send SIGTERM to all of the group, and SIGKILL after KillWait, as Slurm does."""
        start = time.monotonic()
        self._signal_group(signal.SIGTERM)
        try:
            self._process.wait(timeout=kill_wait + LOAD_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        seconds = time.monotonic() - start
        return End(
            code=self._process.wait(), seconds=seconds, stderr=self._process.communicate()[1]
        )

    def kill(self) -> None:
        """Send SIGKILL to what is left of the group."""
        if self.is_alive():
            self._signal_group(signal.SIGKILL)
        self._process.wait()

    def is_alive(self) -> bool:
        """Return whether any process of the group is left."""
        try:
            self._signal_group(0)
        except ProcessLookupError:
            return False
        return True

    def _signal_group(self, number: int) -> None:
        os.killpg(self._process.pid, number)


@pytest.fixture
def start(emulator, monkeypatch) -> Iterator[Callable[..., Process]]:
    """Start processes that know KillWait, and wait until each prints `ready`."""
    monkeypatch.setenv("QPU_KILL_WAIT", str(BUDGET.total))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    started: list[Process] = []

    def start(*argv: str) -> Process:
        started.append(Process(*argv))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def fails_then_hangs(fault) -> Callable[..., None]:
    """Let the vendor answer the first release with 503 and hang on the next ones."""

    def inject(*, hangs: int | None) -> None:
        fault("status", route=RELEASE, status=503, count=1)
        fault("hang", route=RELEASE, after=1, count=hangs)

    return inject


@pytest.fixture
def lease_records(tmp_path) -> Callable[[], list[dict]]:
    """Read the lease records."""

    def read() -> list[dict]:
        files = (tmp_path / "state" / "leases").glob("*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    return read


@pytest.mark.parametrize("name", PROCESSES)
def test_it_tries_to_release_and_ends_although_no_call_returns(
    start, fault, fails_then_hangs, emulator, counted, name
):
    fails_then_hangs(hangs=None)
    fault("hang", route=CANCEL)
    argv, codes = PROCESSES[name]
    process = start(*argv)

    end = process.end()

    assert end.code in codes, f"{end}"
    assert not process.is_alive(), "a process outlived its supervisor"
    leases = counted()["sessions opened"]
    assert end.stderr.count("could not be released") == len(list(open_leases())) == leases
    assert end.stderr.count("did not answer release within") == leases
    emulator.control.ask("DELETE", "/faults")
    assert [one.released for one in reap()] == [True] * leases
    wait_until(lambda: counted()["sessions open"] == 0, "the end of the sessions")


@pytest.mark.parametrize("name", PROCESSES)
def test_it_releases_and_ends_although_the_first_calls_fail_and_hang(
    start, fault, fails_then_hangs, counted, lease_records, name
):
    fails_then_hangs(hangs=1)
    fault("hang", route=CANCEL)
    argv, codes = PROCESSES[name]
    process = start(*argv)

    end = process.end()

    assert end.code in codes, f"{end}"
    assert not process.is_alive(), "a process outlived its supervisor"
    assert list(open_leases()) == []
    assert [one["reaped"] for one in lease_records()] == [False] * counted()["sessions opened"]
    wait_until(lambda: counted()["sessions open"] == 0, "the end of the sessions")


@pytest.mark.parametrize("name", UNDER_A_LEASE)
def test_a_lease_under_a_lease_is_released_before_the_supervisor_sends_sigkill(
    start, fails_then_hangs, monkeypatch, counted, lease_records, name
):
    """It has only the grace of the outer command, which is longer than KillWait's share here."""
    monkeypatch.setenv("QPU_KILL_WAIT", "60")
    fails_then_hangs(hangs=1)
    argv, code = UNDER_A_LEASE[name]
    process = start(*argv)

    end = process.end(kill_wait=60)

    assert end.code == code, f"{end}"
    assert list(open_leases()) == []
    assert [record["reaped"] for record in lease_records()] == [False, False]
    wait_until(lambda: counted()["sessions open"] == 0, "the end of the sessions")


def test_it_ends_although_the_vendor_hangs_while_it_acquires(start, fault, emulator, counted):
    fault("hang", route="POST */sessions")
    process = start(*python(ACQUIRING))
    wait_until(lambda: emulator.control.ask("GET", "/faults")[0]["matched"], "the request")

    end = process.end()

    assert end.code == EXITED, f"{end}"
    assert counted()["sessions opened"] == 0
