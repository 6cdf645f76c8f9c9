"""A process that forks under a lease: parent and child both run tasks, the parent releases."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from break_it import without_coverage

PROGRAM = """
import faulthandler, json, os, signal, sys
sys.path[:0] = ["tests", "tests/faults"]
from fault_payloads import bell
from waiting import wait_until
from qrmi_workflows import open_lease

with open_lease("ibm_quick", step="fork") as lease:
    futures = [lease.submit(bell(shots)) for shots in range(1, 21)]
    wait_until(lambda: any(future.task_id for future in futures), "a task's id")
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(25)
        signal.alarm(30)  # do not outlive a failing test
        print(lease.run(bell(99)).task_id, flush=True)
        sys.exit(7)  # leaves the `with` block
    tasks = [future.result(timeout=60).task_id for future in futures]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 7, code
    print(json.dumps([*tasks, lease.run(bell(98)).task_id]), flush=True)
"""
LINGERING = """
import os, sys, time
sys.path[:0] = ["tests", "tests/faults"]
from fault_payloads import bell
from qrmi_workflows import open_lease

with open_lease("ibm_quick", step="lingers") as lease:
    futures = [lease.submit(bell(shots)) for shots in range(1, 41)]
    children = []
    for future in futures:  # fork while lanes are held and records are written
        future.result(timeout=60)
        children.append(os.fork())
        if children[-1] == 0:
            sys.stdin.read()
            os._exit(0)
    print(lease.run(bell(99)).task_id, flush=True)
os._exit(0)
"""
IMPORTS = """
import sys, threading
sys.path[:0] = ["tests", "tests/faults"]
from fault_payloads import bell
from qrmi_workflows import open_lease

class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread().name == "qpu-lane":
            print(name, flush=True)

sys.meta_path.insert(0, Watch())
with open_lease(sys.argv[1]) as lease:
    lease.run(bell())
"""


def environ() -> dict[str, str]:
    """Without coverage: a child that is forked while a thread holds its lock waits for ever."""
    return without_coverage(os.environ)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-c", program, *arguments]
    return subprocess.run(argv, env=environ(), capture_output=True, text=True, timeout=60)


def test_a_forked_child_uses_its_parents_lease_and_leaves_it_open(counted):
    done = run(PROGRAM)

    assert done.returncode == 0, done.stderr
    childs, parents = done.stdout.splitlines()
    assert len({childs, *json.loads(parents)}) == 22
    assert counted()["tasks accepted"] == 22
    assert (counted()["sessions opened"], counted()["sessions closed"]) == (1, 1)


def test_forked_children_hold_none_of_their_parents_locks(counted):
    """Each child inherits the files that its parent has locked for lanes and the journal."""
    with subprocess.Popen(
        [sys.executable, "-c", LINGERING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(),
    ) as process:
        task = process.stdout.readline()
        assert task, process.stderr.read()
        process.stdin.close()
        assert process.wait(timeout=60) == 0

    assert counted()["tasks accepted"] == 41
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize("qpu", ["ibm_quick", "ibm_system"])
def test_the_threads_of_tasks_import_nothing(emulator, qpu):
    """A child that is forked during an import never gets the module."""
    done = run(IMPORTS, qpu)

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
