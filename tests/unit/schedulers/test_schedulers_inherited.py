"""A job that was submitted from inside another job's lease does not think that it holds it."""

from __future__ import annotations

from qrmi_workflows.config.job import JobQPU, write_job
from qrmi_workflows.config.variables import QPU_GRACE, QPU_KILL_WAIT, QPU_LEASE_JOB, QPU_STEP
from qrmi_workflows.schedulers.inherited import discard_inherited_leases

LEASES = write_job(
    [JobQPU(name="ibm_fez", type="ibm-quantum-system", environment={"QRMI_X": "1"}, token="t")]
)
STAGE = {QPU_STEP: "sample", QPU_GRACE: "5", QPU_KILL_WAIT: "20"}


def kept(environ: dict[str, str]) -> dict[str, str]:
    discard_inherited_leases(environ)
    return environ


def in_job(job: str, *, of: str, lease: str, **others: str) -> dict[str, str]:
    """Return the environment of a job, with the leases of one job and the stage of another."""
    return {
        "SLURM_JOB_ID": job,
        "QRMI_JOB_ID": of,
        QPU_LEASE_JOB: lease,
        **LEASES,
        **STAGE,
        **others,
    }


def test_the_command_of_a_lease_keeps_it():
    environ = in_job("7", of="7", lease="7")

    assert kept(dict(environ)) == environ


def test_outside_of_jobs_nothing_is_discarded():
    environ = {"QRMI_JOB_ID": "host.1", QPU_LEASE_JOB: "", **LEASES, **STAGE}

    assert kept(dict(environ)) == environ


def test_a_job_submitted_under_a_lease_keeps_nothing_of_it():
    """The lease is of another job, or of a process outside of jobs."""
    assert kept(in_job("8", of="7", lease="7", HOME="/me")) == {"SLURM_JOB_ID": "8", "HOME": "/me"}
    assert kept(in_job("8", of="host.1", lease="")) == {"SLURM_JOB_ID": "8"}


def test_a_job_keeps_what_its_site_has_acquired_for_it():
    """The site's plugin has replaced the leases, but the stage is still that of the other job."""
    environ = in_job("8", of="8", lease="7")

    assert kept(environ) == {"SLURM_JOB_ID": "8", "QRMI_JOB_ID": "8", **LEASES}


def test_what_users_set_themselves_is_kept():
    environ = {"SLURM_JOB_ID": "8", **LEASES, **STAGE}

    assert kept(dict(environ)) == environ
