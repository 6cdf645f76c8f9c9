"""What must not cost a lease: a journal that hangs or cannot be written, a list that is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fault_payloads import bell
from waiting import is_waiting_for_a_lock, wait_until

from qrmi_workflows import open_lease
from qrmi_workflows.errors import JournalError, RequestError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.state.locks import hold_lock

RUN = """
from fault_payloads import bell
from qrmi_workflows import open_lease
with open_lease("ibm_quick", step="hangs") as held:
    print("ready", flush=True)
    held.run(bell())
"""


def test_a_journal_that_hangs_keeps_no_lease(counted, monkeypatch):
    """As on a file server that is down: whoever waits for it cannot be asked to stop."""
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.setenv("QPU_KILL_WAIT", "4")  # waits less for the task that hangs
    argv = [sys.executable, "-c", RUN]
    with (
        hold_lock(Journal().step("hangs").folder / ".lock"),
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            assert process.stdout.readline() == b"ready\n"
            wait_until(lambda: is_waiting_for_a_lock(process.pid), "the task to wait for the lock")
            assert counted()["sessions open"] == 1

            process.terminate()

            assert process.wait(timeout=60) == 143
        finally:
            process.kill()
    assert counted()["sessions open"] == 0
    assert counted()["tasks accepted"] == 0


def test_a_folder_that_cannot_be_made_stops_before_anything_is_submitted(counted, monkeypatch):
    monkeypatch.setenv("QPU_STATE", "/proc/none")

    with open_lease("ibm_quick") as lease, pytest.raises(JournalError, match="/proc/none"):
        lease.run(bell())

    assert counted()["tasks accepted"] == 0
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize(
    ("qpus", "said"), [([], "no QPU named"), (["ibm_quick"] * 2, "'ibm_quick' named twice")]
)
def test_a_list_of_qpus_names_each_once(counted, qpus, said):
    with pytest.raises(RequestError, match=said):
        open_lease(qpus)

    assert counted()["sessions opened"] == 0
