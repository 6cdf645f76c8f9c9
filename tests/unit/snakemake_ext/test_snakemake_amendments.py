"""What the plugin amends in Snakemake: attempts, params, and the names of QPUs."""

import asyncio
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from snakemake import api  # noqa: F401 - first, because the modules below import each other
from snakemake.iocontainers import ResourceList
from snakemake.jobs import Job
from snakemake.resources import GroupResources
from snakemake.rules import Rule
from snakemake_interface_common.exceptions import WorkflowError

from qrmi_workflows.config.job import JobQPU, write_job
from snakemake_executor_plugin_slurm_qpu.amendments import (
    amend_snakemake,
    keep_outputs,
    require_granted,
)
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError

IMPORT = """
from snakemake import api
import snakemake_executor_plugin_slurm_qpu
from snakemake.rules import Rule
print(Rule.restart_times.fget.__module__)
"""


@pytest.fixture(autouse=True)
def amended():
    """Amend Snakemake in this process."""
    amend_snakemake()


def rule(*, is_main_process: bool, preemptible: bool = False):
    remote = SimpleNamespace(
        preemptible_rules=SimpleNamespace(is_preemptible=lambda _name: preemptible),
        preemptible_retries=5,
    )
    workflow = SimpleNamespace(
        is_main_process=is_main_process,
        remote_execution_settings=remote,
        execution_settings=SimpleNamespace(retries=1),
    )
    return SimpleNamespace(name="quantum", workflow=workflow, _restart_times=2)


def job(**resources):
    return SimpleNamespace(rule=SimpleNamespace(name="quantum"), attempt=2, resources=resources)


@pytest.mark.parametrize("preemptible", [False, True])
def test_only_the_submitting_snakemake_repeats_an_attempt(preemptible):
    times = Rule.restart_times.fget

    assert times(rule(is_main_process=False, preemptible=preemptible)) == 0
    assert times(rule(is_main_process=True, preemptible=preemptible)) == (5 if preemptible else 2)


def test_params_are_evaluated_again_in_the_next_attempt():
    retried = SimpleNamespace(_attempt=1, _resources={"mem_mb": 1}, _params=[1])

    Job.attempt.fset(retried, 2)

    assert (retried._attempt, retried._resources, retried._params) == (2, None, None)


def test_a_failed_job_keeps_its_outputs_only_while_told_to():
    failed = SimpleNamespace(output=None, is_group=lambda: False)
    keep_outputs(failed, True)
    asyncio.run(Job.cleanup(failed, []))

    keep_outputs(failed, False)
    with pytest.raises(TypeError, match="NoneType"):  # looks for the outputs to remove
        asyncio.run(Job.cleanup(failed, []))


@pytest.mark.parametrize("granted", [(), ("ibm_fez",), ("ibm_fez", "FRESNEL")])
@pytest.mark.parametrize("asked", [None, "ibm_fez", "FRESNEL", "FRESNEL+ibm_fez"])
def test_a_job_needs_the_qpu_that_its_rule_asks_for_in_this_attempt(monkeypatch, granted, asked):
    if granted:
        hold(monkeypatch, *granted)

    require_granted(job())
    require_granted(job(qpu=0, qpu_name=asked))
    if granted and set((asked or granted[0]).split("+")) <= set(granted):
        require_granted(job(qpu=1, qpu_name=asked))
    else:
        held = ", ".join(sorted(granted)) or "no QPU"
        shown = re.escape(repr(asked))
        with pytest.raises(QPURequestError, match=rf"attempt 2 .*={shown}.* granted {held}\. "):
            require_granted(job(qpu=1, qpu_name=asked))


def hold(monkeypatch, *granted):
    """Let this process be in a job that holds these QPUs."""
    qpus = [JobQPU(name=name, type="t", environment={}, token="x") for name in granted]
    for name, value in write_job(qpus).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("asked", "conditions", "granted", "named"),
    [
        ("ibm_*", {}, ["ibm_fez"], "ibm_fez"),
        ("a|ibm_fez", {"qpu_where": "queue < 1"}, ["ibm_fez"], "ibm_fez"),
        (None, {"qpu_min_qubits": 5}, ["ibm_fez"], "ibm_fez"),
        ("ibm_fez+FR*", {}, ["FRESNEL", "ibm_fez"], "ibm_fez+FRESNEL"),
        ("ibm_fez", {}, ["ibm_fez"], "ibm_fez"),
        (None, {}, ["ibm_fez"], None),
    ],
)
def test_a_rule_in_the_job_is_told_the_qpu_that_was_chosen(
    monkeypatch, asked, conditions, granted, named
):
    hold(monkeypatch, *granted)
    chosen = job()
    chosen.resources = ResourceList(fromdict={"qpu": 1, "qpu_name": asked, **conditions})

    require_granted(chosen)

    assert chosen.resources.get("qpu_name") == named or chosen._resources.qpu_name == named


def test_a_job_that_has_moved_uses_the_qpu_that_it_moved_to(monkeypatch):
    hold(monkeypatch, "ibm_torino")
    moved = job()
    moved.resources = ResourceList(fromdict={"qpu": 1, "qpu_name": "ibm_fez"})
    with pytest.raises(QPURequestError, match="granted ibm_torino"):
        require_granted(moved)
    monkeypatch.setenv("QPU_MOVED_FROM", "ibm_fez")

    require_granted(moved)

    assert moved._resources.qpu_name == "ibm_torino"


def test_the_jobs_of_a_group_may_differ_in_qpu_and_stage_and_in_no_other_text():
    assert GroupResources._is_string_resource("qpu_name", ["ibm_fez", "FRESNEL", 0])
    assert GroupResources._is_string_resource("qpu_stage", ["vqe", 0])
    assert not GroupResources._is_string_resource("mem_mb", [1, 2])
    with pytest.raises(WorkflowError, match="slurm_partition is a string but not all jobs"):
        GroupResources._is_string_resource("slurm_partition", ["a", "b"])


@pytest.mark.parametrize("variables", [{}, {"QPU_SNAKEMAKE_JOB": "1"}])
def test_snakemake_is_left_as_it_is_outside_of_our_jobs(variables):
    inherited = {k: v for k, v in os.environ.items() if k != "QPU_SNAKEMAKE_JOB"}

    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=True,
    )

    is_ours = done.stdout.startswith("snakemake_executor_plugin_slurm_qpu.")
    assert is_ours == bool(variables)
