"""Leases of a job that root holds: none stays open, whoever is killed and however late it comes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.config.qpus import find_config, load_qpus
from qrmi_workflows.errors import LeaseError
from qrmi_workflows.lease.records import open_leases
from qrmi_workflows.site import leases
from qrmi_workflows.site.job_end import end_job
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.site.leases import Expected, ReleasingHandles, acquire_all, leases_of
from qrmi_workflows.vendors.registry import registered_type

JOB = "17"
SLOW = {"kind": "delay", "seconds": 1.5, "route": "POST */sessions", "when": "after"}
HELD = SLOW | {"kind": "hold"}
SLOWEST = SLOW | {"seconds": 30}  # for those that are killed while they wait


@pytest.fixture
def state(emulator, tmp_path, monkeypatch) -> Path:
    """The folder of root's files, in the Prolog of a job."""
    folder = Path(os.environ["QPU_STATE"])
    for name, value in {"SLURM_JOB_ID": JOB, "QRMI_JOB_ID": JOB, "QRMI_JOB_UID": "1"}.items():
        monkeypatch.setenv(name, value)
    return folder


def qpus(*names: str) -> list[JobQPU]:
    defined = load_qpus()
    return [
        JobQPU(
            name=name, type=defined[name].type, environment=defined[name].environment, token=None
        )
        for name in names
    ]


def acquire(state: Path, *names: str, seconds: float = 20.0) -> None:
    expected = Expected(state, JOB, "ada")
    expected.begin()
    acquire_all(qpus(*names), expected, config=find_config(), seconds=seconds)
    expected.end()


def sessions(counted) -> int:
    return counted()["sessions open"]


def test_several_qpus_are_acquired_and_released(state, counted):
    acquire(state, "ibm_quick", "ibm_other")
    assert sessions(counted) == 2
    assert {each.user for each in leases_of(JOB)} == {"ada"}

    assert {each.released for each in end_job(state, JOB)} == {True}

    assert sessions(counted) == 0
    assert list(open_leases()) == []
    assert list((state / "leases" / "acquiring").iterdir()) == []


def test_what_is_granted_too_late_is_released(state, counted, emulator):
    emulator.control.ask("POST", "/faults", HELD)
    with pytest.raises(LeaseError, match="did not answer within"):
        acquire(state, "ibm_quick", seconds=3)

    wait_until(lambda: counted()["sessions opened"] == 1, "the session")
    emulator.control.ask("DELETE", "/faults")
    wait_until(lambda: sessions(counted) == 0, "its release")
    assert leases_of(JOB) == []


def test_one_qpu_that_is_refused_leaves_no_lease_of_the_other(state, counted, emulator):
    fault = {"kind": "status", "status": 403, "route": "POST */sessions", "after": 1}
    emulator.control.ask("POST", "/faults", fault)
    with pytest.raises(LeaseError, match="could not be acquired for this job: "):
        acquire(state, "ibm_quick", "ibm_other")

    end_job(state, JOB)  # as the Prolog and the Epilog do
    assert sessions(counted) == 0


PROLOG = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from {Path(__file__).stem} import acquire
acquire(Path(sys.argv[1]), "ibm_quick")
"""


def start_prolog(state: Path, **options) -> subprocess.Popen:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", PROLOG, str(state)], env=environ, **options)


@pytest.mark.parametrize("has_epilog", [True, False])
def test_the_prolog_is_killed_while_it_acquires(state, counted, emulator, has_epilog):
    emulator.control.ask("POST", "/faults", SLOW)
    prolog = start_prolog(state)
    wait_until(lambda: counted()["sessions opened"] == 1, "the session")

    prolog.send_signal(signal.SIGKILL)
    prolog.wait()
    if has_epilog:  # before the vendor has answered
        end_job(state, JOB)
    else:
        wait_until(lambda: leases_of(JOB), "the lease of a job whose node has crashed")
        end_job(state, JOB, reaped=True)

    wait_until(lambda: sessions(counted) == 0, "the release")
    assert leases_of(JOB) == []


def test_a_session_that_nobody_can_know_of_is_reported(state, counted, emulator, caplog):
    emulator.control.ask("POST", "/faults", SLOWEST)
    prolog = start_prolog(state)
    wait_until(lambda: counted()["sessions opened"] == 1, "the session")

    acquirers = psutil.Process(prolog.pid).children()
    for process in (prolog, *acquirers):  # the Prolog would report it itself
        process.kill()
    prolog.wait()
    end_job(state, JOB)

    assert "a session may stay open until its time to live ends" in caplog.text
    end_job(state, JOB)
    assert len(caplog.records) == 1
    emulator.control.ask("POST", "/faults", {"kind": "close-sessions"})


def test_the_prolog_sees_that_the_process_that_acquires_was_killed(
    state, counted, emulator, caplog
):
    """It does not blame the vendor, and does not wait in vain."""
    emulator.control.ask("POST", "/faults", SLOWEST)
    prolog = start_prolog(state, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: counted()["sessions opened"] == 1, "the session")

    (acquirer,) = psutil.Process(prolog.pid).children()
    acquirer.kill()
    _, errors = prolog.communicate(timeout=60)

    assert prolog.returncode == 1
    assert re.search("LeaseError: .*the process that asked for it was killed", errors)
    assert errors.count("acquires QPU ibm_quick for job 17 was killed. A session") == 1
    end_job(state, JOB)
    assert caplog.records == []
    emulator.control.ask("POST", "/faults", {"kind": "close-sessions"})


def test_a_lease_that_the_vendor_does_not_release_stays_recorded(state, counted, emulator):
    acquire(state, "ibm_quick")
    for method in ("PATCH", "DELETE"):
        fault = {"kind": "status", "status": 503, "route": f"{method} */sessions/*"}
        emulator.control.ask("POST", "/faults", fault)
    (outcome,) = end_job(state, JOB)
    assert "503" in outcome.error
    emulator.control.ask("DELETE", "/faults")

    (outcome,) = end_job(state, JOB)
    assert outcome.released
    assert sessions(counted) == 0


def test_what_the_users_programs_recorded_counts_if_it_can_be_true(state):
    acquire(state, "ibm_quick")
    folder = JobFolder(state, JOB)
    folder.create("n1", os.getuid(), os.getgid())
    now = time.time()
    task = {"qpu": "ibm_quick", "task_id": "t", "started": now, "ended": now, "state": "Completed"}
    lines = [
        task,
        task | {"task_id": "old", "started": 0},
        task | {"task_id": ["list"]},
        task | {"task_id": "shots", "shots": "many"},
        {"reported": "t", "seconds": 0.5},
        {"reported": "u", "seconds": 1e12},
        {"reported": {"a": 1}, "seconds": 0.5},
        {"record": "/etc/passwd"},
    ]
    (folder.usage / "ibm_quick.usage").write_text("\n".join(map(json.dumps, lines)))

    end_job(state, JOB, uid=os.getuid())

    (path,) = state.glob("leases/*.jsonl")
    record = json.loads(path.read_text())
    assert (record["task_ids"], record["reported"]) == (["t"], 0.5)
    assert not folder.path.exists()


@pytest.mark.parametrize("is_pasqal_local", [False, True])
def test_a_handle_releases_the_leases_of_many_jobs(state, counted, monkeypatch, is_pasqal_local):
    """Each lease's own session; where QRMI closes that of the handle, each has its own handle."""
    if is_pasqal_local:
        known = registered_type("ibm-quantum-compute-service")
        own = replace(known, release_takes_token=False)
        monkeypatch.setattr(leases, "registered_type", lambda _type: own)
    acquire(state, "ibm_quick", "ibm_other")
    acquire(state, "ibm_quick")
    assert sessions(counted) == 3
    with closing(ReleasingHandles()) as handles:
        outcomes = end_job(state, JOB, times={}, handles=handles)
        made = len(handles._shared)

    assert [each.released for each in outcomes] == [True] * 3
    assert made == (0 if is_pasqal_local else 2)
    assert sessions(counted) == 0
