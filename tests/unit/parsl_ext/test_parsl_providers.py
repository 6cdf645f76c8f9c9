"""The job scripts of blocks, and the stray jobs that a provider cancels."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider
from parsl_ext.providers import stray_jobs
from parsl_ext.providers.job_script import render_job_script
from parsl_ext.providers.stray_jobs import StrayJobs
from parsl_ext.qpus import qpus_of
from qrmi_workflows.errors import RequestError, UnknownQPUError
from qrmi_workflows.schedulers.base import JobState, JobStatus
from qrmi_workflows.schedulers.slurm import Slurm

SCRIPT = """#!/bin/bash
#SBATCH --gres=qpu:ibm_fez:1
#SBATCH --no-requeue
#SBATCH --mail-type=END
#SBATCH --job-name=parsl.qpu.1
#SBATCH --output=/runs/parsl.qpu.1.stdout
#SBATCH --error=/runs/parsl.qpu.1.stderr
#SBATCH --open-mode=append
export PARSL_CORES=2
export PARSL_MEMORY_GB=4
export JOBNAME="parsl.qpu.1"
module load python
exec workers
"""


def listed(**names: str) -> dict[str, JobStatus]:
    """Return running jobs with these ids (after a letter) and names."""
    return {
        job[1:]: JobStatus(state=JobState.RUNNING, job_id=job[1:], name=name)
        for job, name in names.items()
    }


def test_a_job_script_is_rendered_line_by_line() -> None:
    script = render_job_script(
        Path("/runs/parsl.qpu.1"),
        "exec workers",
        scheduler=Slurm(),
        options=["--gres=qpu:ibm_fez:1", "--no-requeue"],
        scheduler_options="#SBATCH --mail-type=END",
        worker_init="module load python",
        cores=2,
        memory_gb=4,
    )

    assert script.splitlines() == SCRIPT.splitlines()


def test_a_pool_may_use_the_whole_node_unless_told_otherwise() -> None:
    script = render_job_script(Path("/runs/a"), "exec workers", scheduler=Slurm(), options=[])

    assert "PARSL_" not in script


def test_the_job_of_an_unanswered_submission_is_cancelled_once_it_is_listed() -> None:
    strays = StrayJobs()
    assert not strays
    strays.add_unanswered("late")
    assert strays

    assert strays.find(listed(j1="block")) == []
    assert strays.find(listed(j1="block", j2="late")) == ["2"]

    strays.add_cancelled(["2"])
    assert strays.find(listed(j1="block", j2="late")) == []


def test_a_job_that_outlives_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strays = StrayJobs()
    strays.add_cancelled(["1", "2", "3"])
    strays.remove_cancelled(["3"])
    assert strays.find(listed(j1="a", j2="b", j3="c")) == []

    monkeypatch.setattr(stray_jobs, "_CANCEL_AGAIN_SECONDS", 0.0)

    assert strays.find(listed(j1="a", j3="c")) == ["1"]
    assert strays.find({}) == []
    assert not strays


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text("[qpus.ibm_a]\n[qpus.ibm_b]\n")
    monkeypatch.setenv("QPU_SITE", str(tmp_path / "site.toml"))


def test_a_launcher_for_another_qpu_than_the_providers_is_refused(site: None) -> None:
    message = r"'ibm_a', but their launcher leases 'ibm_b'.*Leave out"
    with pytest.raises(RequestError, match=message):
        QPUSlurmProvider(qpu="ibm_a", launcher=LeaseLauncher(qpu="ibm_b"))


@pytest.mark.parametrize("qpu", [None, "ibm_a"])
def test_a_launcher_takes_the_qpu_from_its_provider(site: None, qpu: str | None) -> None:
    given = LeaseLauncher(qpu=qpu)

    assert QPUSlurmProvider(qpu="ibm_a", launcher=given).launcher.qpu == "ibm_a"
    assert given.qpu == qpu, "two providers may share a launcher"


@pytest.mark.parametrize("qpu", ["ibm_a+ibm_b", "ibm_a,ibm_b", ["ibm_a", "ibm_b"]])
def test_blocks_may_hold_several_qpus(site: None, qpu: str | list[str]) -> None:
    provider = QPUSlurmProvider(qpu=qpu, launcher=LeaseLauncher(qpu="ibm_b+ibm_a"))

    assert qpus_of(QPUExecutor(provider=provider)) == ("ibm_a", "ibm_b")
    assert "--qpu=ibm_a,ibm_b" in provider.launcher("workers", 1, 1)
    with pytest.raises(RequestError, match="QPU 'ibm_a\\+': a name is missing"):
        QPUSlurmProvider(qpu="ibm_a+")


def test_qpus_that_the_site_never_grants_together_are_refused(tmp_path: Path, site: None) -> None:
    apart = '[qpus.ibm_a]\npartition = "a"\n[qpus.ibm_b]\npartition = "b"\n'
    (tmp_path / "site.toml").write_text(apart)

    with pytest.raises(RequestError, match=r"different values of --partition \(a and b\)"):
        QPUSlurmProvider(qpu="ibm_a+ibm_b")


@pytest.mark.parametrize("walltime", ["", "soon", "1h", "00:00:00", "0", "-5", "1-", "00:10:00:00"])
def test_a_walltime_that_is_none_is_refused(site: None, walltime: str) -> None:
    with pytest.raises(RequestError, match="must be a time above zero"):
        QPUSlurmProvider(qpu="ibm_a", walltime=walltime)


@pytest.mark.parametrize("walltime", ["30", "30:00", "00:30:00", "1-0", "1-00:30", "0-00:30:00"])
def test_a_walltime_may_have_each_of_sbatchs_forms(site: None, walltime: str) -> None:
    assert QPUSlurmProvider(qpu="ibm_a", walltime=walltime).walltime == walltime


@pytest.mark.parametrize("number", ["lanes", "max_workers_per_node"])
def test_an_executor_without_lanes_or_workers_is_refused(site: None, number: str) -> None:
    with pytest.raises(RequestError, match=f"{number}=0: must be a positive integer"):
        QPUExecutor(provider=QPUSlurmProvider(qpu="ibm_a"), **{number: 0})


def test_a_qpu_that_the_user_may_not_use_is_refused_at_once(tmp_path: Path, site: None) -> None:
    limits = 'partition = "q"\nusers = ["no-such-user"]\n'
    (tmp_path / "site.toml").write_text(f"[qpus.ibm_a]\n{limits}[qpus.ibm_b]\n")

    for stage in (None, "vqe"):
        with pytest.raises(RequestError, match=r"may not use it; must be one of: no-such-user"):
            QPUSlurmProvider(qpu="ibm_a", stage=stage)
    assert QPUSlurmProvider(qpu="ibm_b").qpu == "ibm_b"


def test_the_account_and_partition_of_blocks_are_checked(tmp_path: Path, site: None) -> None:
    limits = 'partition = "q"\naccounts = ["chem"]\n'
    (tmp_path / "site.toml").write_text(f"[qpus.ibm_a]\n{limits}")

    assert QPUSlurmProvider(qpu="ibm_a", account="chem").account == "chem"
    with pytest.raises(RequestError, match="jobs of account 'bio' may not use it"):
        QPUSlurmProvider(qpu="ibm_a", account="bio")
    with pytest.raises(RequestError, match="partition 'main' does not grant it"):
        QPUSlurmProvider(qpu="ibm_a", account="chem", partition="main")


def test_a_block_has_the_lanes_that_it_requests_of_a_shared_qpu(tmp_path: Path, site: None) -> None:
    shared = 'licence = "qpu_{qpu}"\nlanes = 5\nexclusive = false\n'
    (tmp_path / "site.toml").write_text(f"[qpus.ibm_a]\n{shared}[qpus.ibm_b]\nlanes = 5\n")

    one, other = (QPUSlurmProvider(qpu=qpu, count=2) for qpu in ("ibm_a", "ibm_b"))

    assert [policy.lanes for policy in one.qpu_policies] == [2]
    assert [policy.lanes for policy in other.qpu_policies] == [5]


def test_a_provider_leases_all_qpus_that_it_asks_for(site: None) -> None:
    provider = QPUSlurmProvider(qpu=["ibm_a", "ibm_b"])
    executor = QPUExecutor(provider=provider)

    assert provider.launcher.qpu == "ibm_a,ibm_b"
    assert provider.qpu == ["ibm_a", "ibm_b"]
    assert executor.lanes == sum(policy.lanes for policy in provider.qpu_policies) == 2
    for wrong in ([], ["ibm_a", "ibm_a"], [""], "ibm_a,"):
        with pytest.raises(RequestError, match=r"no QPU named|a name is missing|named twice"):
            QPUSlurmProvider(qpu=wrong)
    with pytest.raises(UnknownQPUError, match="ibm_c"):
        QPUSlurmProvider(qpu=["ibm_a", "ibm_c"])
