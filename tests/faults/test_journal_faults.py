"""Leases are released although the journal hangs or cannot be written."""

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

PROGRAM = """
from fault_payloads import bell
from qrmi_workflows import open_lease
with open_lease("ibm_quick", step="hangs") as held:
    print("ready", flush=True)
    held.run(bell())
"""


def test_a_hanging_journal_does_not_prevent_the_release(counted, monkeypatch):
    """A thread that waits for a lock on a file server that is down cannot be stopped."""
    monkeypatch.setenv("PYTHONPATH", "tests/faults")
    monkeypatch.setenv("QPU_KILL_WAIT", "20")  # do not wait long for the task that hangs
    argv = [sys.executable, "-c", PROGRAM]
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


def test_nothing_is_submitted_if_the_journals_folder_cannot_be_created(counted, monkeypatch):
    monkeypatch.setenv("QPU_STATE", "/proc/none")

    with open_lease("ibm_quick") as lease, pytest.raises(JournalError, match="/proc/none"):
        lease.run(bell())

    assert counted()["tasks accepted"] == 0
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize(
    ("qpus", "message"), [([], "no QPU named"), (["ibm_quick"] * 2, "'ibm_quick' named twice")]
)
def test_a_list_of_qpus_must_name_each_once(counted, qpus, message):
    with pytest.raises(RequestError, match=message):
        open_lease(qpus)

    assert counted()["sessions opened"] == 0


def test_no_qpu_is_given_the_tasks_of_another_one_with_its_name(
    emulator, counted, monkeypatch, tmp_path, caplog
):
    """An emulated QPU may have the name of a real one; only its endpoint tells them apart."""
    with open_lease("ibm_quick", step="s") as lease:
        first = lease.run(bell()).task_id
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(emulator.config_path.read_text().replace("127.0.0.1", "localhost"))
    elsewhere.chmod(0o600)

    with open_lease("ibm_quick", config=elsewhere, step="s") as lease:
        assert lease.run(bell()).task_id != first
    with open_lease("ibm_quick", step="s") as lease:
        assert lease.run(bell()).task_id == first

    assert counted()["tasks accepted"] == 2
    assert "'ibm_quick' of another type or endpoint; they are not used" in caplog.text
