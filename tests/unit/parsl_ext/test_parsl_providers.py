"""The job scripts of blocks, and the stray jobs that a provider cancels."""

from __future__ import annotations

from pathlib import Path

import pytest

from parsl_ext import LeaseLauncher, QPUExecutor, QPUSlurmProvider
from parsl_ext.providers import stray_jobs
from parsl_ext.providers.job_script import render_job_script
from parsl_ext.providers.several import join_options
from parsl_ext.providers.stray_jobs import StrayJobs
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


def test_one_job_asks_for_several_qpus() -> None:
    a = ["--gres=qpu:a:1", "--licenses=a:1", "--partition=quantum"]
    b = ["--gres=qpu:b:1", "--qpu=b", "--partition=quantum"]
    both = ["--gres=qpu:a:1,qpu:b:1", "--licenses=a:1", "--partition=quantum", "--qpu=b"]

    assert join_options([a, b]) == both
    with pytest.raises(RequestError, match=r"different values of --partition \(one, two\)"):
        join_options([["--partition=one"], ["--partition=two"]])


def test_a_provider_leases_all_qpus_that_it_asks_for(site: None) -> None:
    provider = QPUSlurmProvider(qpu=["ibm_a", "ibm_b"])
    executor = QPUExecutor(provider=provider)

    assert provider.launcher.qpu == "ibm_a,ibm_b"
    assert provider.qpu == ["ibm_a", "ibm_b"]
    assert executor.lanes == sum(policy.lanes for policy in provider.qpu_policies) == 2
    for wrong in ([], ["ibm_a", "ibm_a"], [""], "ibm_a,"):
        with pytest.raises(RequestError, match="one or more QPUs, each once"):
            QPUSlurmProvider(qpu=wrong)
    with pytest.raises(UnknownQPUError, match="ibm_c"):
        QPUSlurmProvider(qpu=["ibm_a", "ibm_c"])
