"""Leases that the site acquired for a job: each use leaves a record, and none releases them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fault_payloads import bell

from qrmi_workflows import open_lease
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.job import JobQPU, write_job
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.errors import SessionEndedError
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.record import LeaseRecord
from qrmi_workflows.lease.records import open_leases

QPU = (sys.executable, "-m", "qrmi_workflows")


@pytest.fixture
def site_lease(emulator, monkeypatch) -> Iterator[None]:
    """The environment of a job for which the site has acquired ibm_quick, as SPANK does it."""
    definition = load_qpus()["ibm_quick"]
    resource = QRMIResource("ibm_quick", definition.type, definition.environment)
    token = resource.acquire()
    carried = JobQPU(
        name="ibm_quick", type=definition.type, environment=definition.environment, token=token
    )
    for name, value in write_job([carried]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("QRMI_JOB_ID", "17")
    yield
    with suppress(SessionEndedError):  # some servers refuse to close a session twice
        resource.release(token)


def records(folder: Path) -> list[LeaseRecord]:
    files = (folder / "state" / "leases").glob("*.jsonl")
    return [LeaseRecord.from_json(line) for f in files for line in f.read_text().splitlines()]


def test_its_use_leaves_a_record(counted, site_lease, tmp_path):
    with open_lease(step="sample") as lease:
        assert lease.adopted
        task_id = lease.run(bell()).task_id

    assert counted()["sessions open"] == 1
    assert list(open_leases()) == []
    (record,) = records(tmp_path)
    assert (record.adopted, record.reaped, record.step) == (True, False, "sample")
    assert (record.qpu, record.owner.job, record.task_ids) == ("ibm_quick", "17", [task_id])
    assert 0.05 <= record.busy <= record.held
    assert "the site's lease used" in record.describe()


def test_a_killed_process_leaves_its_record_to_the_reaper(counted, site_lease, tmp_path):
    """The site releases the lease, nobody else."""
    program = (
        "import os; from qrmi_workflows import open_lease; open_lease(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert [each.released for each in reap()] == [True]

    assert counted()["sessions open"] == 1
    assert [(each.adopted, each.reaped) for each in records(tmp_path)] == [(True, True)]


def test_a_process_that_never_releases_it_leaves_a_record_at_exit(site_lease, tmp_path):
    program = "from qrmi_workflows import open_lease; lease = open_lease()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    assert [(each.adopted, each.reaped) for each in records(tmp_path)] == [(True, False)]


def test_a_command_and_its_children_leave_one_record(site_lease, payload_file, tmp_path):
    run = [*QPU, "run", str(payload_file), "-o", str(tmp_path / "r.json")]
    argv = [*QPU, "lease", "exec", "--record", str(tmp_path / "record"), "--", *run]

    subprocess.run(argv, check=True, timeout=60)

    (line,) = (tmp_path / "record").read_text().splitlines()
    record = LeaseRecord.from_json(line)
    assert (record.adopted, record.tasks) == (True, 1)
    assert records(tmp_path) == []


def test_leases_of_other_steps_go_on_when_one_is_released(site_lease):
    lease = open_lease()
    other = lease.for_step("other")
    lease.release()

    assert other.run(bell()).counts() is not None
    other.release()


def test_its_end_is_told_in_a_sentence_that_says_what_to_do(site_lease, fault):
    with open_lease(step="sample") as lease:
        fault("close-sessions")

        with pytest.raises(SessionEndedError) as caught:
            lease.run(bell())

    assert str(caught.value).startswith("the session of QPU 'ibm_quick' has ended: it was closed")
    assert "Submit the job again" in str(caught.value)
    assert "{" not in str(caught.value)


def test_the_jobs_own_qpu_is_listed_without_the_sites_file(site_lease, monkeypatch, tmp_path):
    """At some sites, only the plugin may read qrmi_config.json."""
    (tmp_path / "site.toml").write_text("[qpus.ibm_quick]\ngres = 'qpu'\n")
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))
    monkeypatch.setenv("QPU_CONFIG", str(tmp_path / "unreadable.json"))

    done = subprocess.run([*QPU, "list", "--json"], capture_output=True, check=True, timeout=60)

    (row,) = json.loads(done.stdout)
    assert (row["name"], row["type"]) == ("ibm_quick", "ibm-quantum-compute-service")
    assert (row["state"], row["gres"]) == ("online", "qpu")


def test_each_of_several_leases_counts_its_own_tasks(emulator, payload_file, tmp_path):
    command = "; ".join(
        f"'{sys.executable}' -m qrmi_workflows run --qpu {qpu} -o {tmp_path}/{qpu} {payload_file}"
        for qpu in ("ibm_quick", "ibm_other")
    )
    argv = [*QPU, "lease", "exec", "--qpu", "ibm_quick,ibm_other", "--", "sh", "-ec", command]

    subprocess.run(argv, check=True, timeout=60)

    assert {each.qpu: each.tasks for each in records(tmp_path)} == {"ibm_quick": 1, "ibm_other": 1}


def test_a_job_that_is_submitted_under_a_lease_opens_its_own(counted, quick, monkeypatch):
    """As with `sbatch` under `qpu lease exec`, which passes its environment on."""
    for name, value in quick.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "18")

    with open_lease("ibm_quick") as lease:
        assert not lease.adopted
        assert counted()["sessions open"] == 2

    assert counted()["sessions open"] == 1
    assert "QRMI_JOB_QPU_RESOURCES" not in os.environ
