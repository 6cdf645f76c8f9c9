"""What a job's programs record about their tasks is taken over as far as it can be true."""

import json
import os
import time

import pytest

from qrmi_workflows.config.job import JobQPU
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.site.leases import Expected, copy_usage

UID = os.getuid()


@pytest.fixture
def lease(tmp_path, monkeypatch):
    """A lease of the site's, and the folder of its job."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("QPU_LEASE_RECORD", raising=False)
    opened = OpenLease.create(
        qpu="fez", type="ibm-quantum-system", step="", acquire=0.1, config=None, token="t",
        user="ada",
    )  # fmt: skip
    folder = JobFolder(tmp_path / "state", "7")
    folder.create("n1", UID, os.getgid())
    return opened, folder


def task(number=0, **values):
    now = time.time()
    known = {"qpu": "fez", "task_id": f"t{number}", "started": now, "ended": now}
    return known | {"state": "Completed", "running": now, "shots": 10} | values


def close(lease, lines):
    opened, folder = lease
    (folder.usage / "fez.usage").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    copy_usage(opened, folder, UID)
    record = opened.close()
    record.times()  # raises if the record does not count
    return record


IMPOSSIBLE = [
    task(task_id="a\nb"),
    task(task_id="\x1b[2J"),
    task(task_id="x" * 100_000),
    task(task_id="\ud800"),
    task(task_id=["t"]),
    task(9, state="\0"),
    task(9, shots=10**400),
    task(9, shots=-1),
    task(9, shots=1.5),
    task(9, started=0.0),
    task(9, ended=1e18),
    task(9, running=float("nan")),
    task(9, unknown=1),
    {"reported": "t0", "seconds": 1e18},
    {"reported": "t0", "seconds": float("nan")},
    {"reported": "a\nb", "seconds": 1.0},
    {"reported": ["t0"], "seconds": 1.0},
    {"record": "/etc/shadow"},
    {},
]


@pytest.mark.parametrize("line", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
def test_a_user_cannot_make_the_sites_record_one_that_does_not_count(lease, line):
    record = close(lease, [line, task()])

    assert (record.tasks, record.task_ids, record.shots) == (1, ["t0"], 10)


def test_what_is_possible_is_taken_over(lease):
    lines = [task(1), task(2, shots=None, running=None), {"reported": "t1", "seconds": 0.5}]

    record = close(lease, lines)

    assert (record.tasks, record.shots, record.reported) == (2, 10, 0.5)


def test_the_record_has_the_account_that_slurm_was_asked_for(tmp_path, monkeypatch):
    """The environment of a Prolog of Slurm 22.05 does not name it."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_JOB_ACCOUNT", raising=False)
    expected = Expected(tmp_path, "7", "ada", "chemistry")
    expected.begin()

    qpu = JobQPU(name="fez", type="ibm-quantum-system", environment={}, token="t")
    opened = expected.record(qpu, 0.1, tmp_path / "qrmi_config.json")

    assert (opened.user, opened.account) == ("ada", "chemistry")
