"""Signals while a lease is being acquired, used or released."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from break_it import without_coverage
from waiting import wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.journal.journal import Journal

HERE = Path(__file__).parent
PYTHONPATH = f"{HERE}:{HERE.parent}"
JUST_GRANTED = """
import os
from qrmi_workflows import open_lease
from qrmi_workflows.lease.records import OpenLease

write = OpenLease._write

def interrupted(self):
    os.kill(os.getpid(), {number})
    write(self)

OpenLease._write = interrupted
with open_lease("ibm_quick"):
    pass
"""
IN_FLIGHT = """
import time
from fault_payloads import bell
from waiting import wait_until
from qrmi_workflows import open_lease
from qrmi_workflows.tasks.pool import TaskPool

close = TaskPool.close

def announce_and_close(self, seconds):
    print("stopping", flush=True)
    close(self, seconds)

TaskPool.close = announce_and_close
with open_lease("ibm_slow") as lease:
    future = lease.submit(bell())
    wait_until(lambda: future.task_id, "the task's id")
    print("ready", flush=True)
    time.sleep(600)
"""
TWO_LEASES = """
from qrmi_workflows import open_lease

first, second = open_lease("ibm_quick"), open_lease("ibm_other")
print("ready", flush=True)
input()
"""
OWN_HANDLER = """
import os, signal, sys
from fault_payloads import bell
from qrmi_workflows import Lease, open_lease

lease = open_lease("ibm_quick")

def end(*_):
    lease.release()
    sys.exit(9)

open_pool = Lease._open_pool

def interrupted(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return open_pool(self)

Lease._open_pool = interrupted
signal.signal(signal.SIGTERM, end)
lease.submit(bell())
"""
RELEASING = """
from qrmi_workflows import open_lease

with open_lease("ibm_quick"):
    print("ready", flush=True)
    input()
print("continued")
"""
AWAITING = """
from fault_payloads import bell
from qrmi_workflows import Lease, open_lease

await_tasks = Lease.await_tasks

def announce_and_await(self):
    print("ready", flush=True)
    await_tasks(self)

Lease.await_tasks = announce_and_await
try:
    with open_lease("ibm_endless") as lease:
        lease.submit(bell())
except KeyboardInterrupt:
    print("caught", flush=True)
    input()
"""
OTHER_THREAD = """
import ctypes, threading
from fault_payloads import bell
from qrmi_workflows import open_lease

class TimeIsUpError(Exception):
    pass

ends = []

def call():
    try:
        with open_lease("ibm_endless", step="interrupted") as lease:
            {use}
    except TimeIsUpError:
        ends.append("its time was up")

thread = threading.Thread(target=call, daemon=True)
thread.start()
print("ready", flush=True)
input()
number, error = ctypes.c_long(thread.ident), ctypes.py_object(TimeIsUpError)
assert ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error) == 1
thread.join(timeout=60)
print(*ends, flush=True)
input()
"""


def start(program: str) -> subprocess.Popen:
    """Start a program and wait until it prints `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**without_coverage(os.environ), "PYTHONPATH": PYTHONPATH},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def await_its_id() -> None:
    """Wait until a program has recorded the id of its only task."""
    wait_until(lambda: any(each.task_id for each in Journal().records()), "the task's id")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_grant_and_record_leaves_no_lease_open(counted, number):
    argv = [sys.executable, "-c", JUST_GRANTED.format(number=int(number))]
    environ = without_coverage(os.environ)
    done = subprocess.run(argv, env=environ, stderr=subprocess.PIPE, text=True, timeout=60)

    assert done.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert (counted()["sessions opened"], counted()["sessions open"]) == (1, 0)


def test_ctrl_c_ends_the_wait_for_a_busy_qpu(emulator, counted, fault):
    fault("status", route="POST */sessions", status=429)
    argv = [sys.executable, "-m", "qrmi_workflows", "lease", "exec", "--qpu", "ibm_quick", "true"]
    environ = without_coverage(os.environ)
    with subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert "waiting for the QPU" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
    emulator.control.ask("DELETE", "/faults")

    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert counted()["sessions opened"] == 0


def test_a_second_sigterm_while_tasks_stop_does_not_prevent_the_release(counted, fault):
    """Slurm signals all processes of a job, and a supervisor passes the signal on."""
    process = start(IN_FLIGHT)
    fault("hang", route="* */jobs/*", seconds=60)

    process.terminate()
    assert process.stdout.readline() == "stopping\n"
    process.terminate()
    process.communicate()

    assert process.returncode == 143
    # The session closes once its task has ended.
    wait_until(lambda: counted()["sessions open"] == 0, "the end of the session")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_release_takes_effect_after_it(
    emulator, counted, fault, matched, number
):
    process = start(RELEASING)
    fault("hold", route="PATCH */sessions/*", count=1)

    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(matched, "the call that releases")
    process.send_signal(number)
    emulator.control.ask("DELETE", "/faults")
    stdout, _ = process.communicate()

    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert "continued" not in stdout
    assert counted()["sessions open"] == 0


def test_a_signal_handler_may_release_in_the_middle_of_a_submission(counted):
    environ = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", OWN_HANDLER], env=environ, timeout=60)

    assert done.returncode == 9
    assert counted()["sessions open"] == 0


def test_ctrl_c_while_a_lease_awaits_its_tasks_releases_it(counted):
    """A program that catches KeyboardInterrupt, as a notebook does, keeps no lease."""
    process = start(AWAITING)
    await_its_id()

    process.send_signal(signal.SIGINT)

    assert process.stdout.readline() == "caught\n"
    assert counted()["tasks cancelled"] == 1
    assert counted()["sessions open"] == 0
    process.communicate("\n")


def test_a_failed_release_at_exit_does_not_prevent_the_others(counted, fault):
    process = start(TWO_LEASES)
    fault("status", route="PATCH */sessions/*", status=403, count=1)

    _, stderr = process.communicate("\n")

    assert "the lease of QPU 'ibm_quick' could not be released" in stderr
    assert "Traceback" not in stderr
    assert counted()["sessions open"] == 1


def test_a_release_is_retried_while_the_vendor_is_unavailable(counted, fault):
    fault("status", route="PATCH */sessions/*", status=503, count=2)

    with open_lease("ibm_quick"):
        pass

    assert counted()["sessions open"] == 0


def test_a_closed_standard_error_does_not_lose_the_result(counted, payload_file, tmp_path):
    """As in `qpu run … 2>&1 | head -1`."""
    output = tmp_path / "result.json"
    read, write = os.pipe()
    argv = [sys.executable, "-m", "qrmi_workflows", "run", str(payload_file), "-o", str(output)]
    process = subprocess.Popen([*argv, "--qpu", "ibm_quick"], stderr=write)
    os.close(write)
    os.close(read)

    assert process.wait(timeout=60) == 0
    assert output.exists()


@pytest.mark.parametrize(
    "use",
    [
        "lease.run(bell())",
        "lease.submit(bell()).result()",
        "list(lease.map([bell()]))",
        "lease.submit(bell()) and lease.await_tasks()",
    ],
    ids=["run", "result", "map", "await_tasks"],
)
def test_an_exception_from_another_thread_ends_the_wait_and_cancels_the_task(
    emulator, counted, monkeypatch, use: str
):
    """As Parsl ends an app whose walltime is over.

    Even where the tasks of a stopped step are left: nobody comes for this one.
    """
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    process = start(OTHER_THREAD.format(use=use))
    await_its_id()

    process.stdin.write("\n")
    process.stdin.flush()

    assert process.stdout.readline() == "its time was up\n"
    assert counted()["tasks cancelled"] == 1
    assert counted()["sessions open"] == 0
    process.communicate("\n")
