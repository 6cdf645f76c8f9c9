"""Amend Snakemake in the processes of a run, where it has neither an option nor a hook.

The executor amends the submitting Snakemake and sets `QPU_SNAKEMAKE_JOB`, which its jobs inherit.
Every Snakemake imports this package, so the variable makes those inside the jobs amend themselves:
also the ones that the stock executors start, `srun` and `run:` rules included. In other processes
Snakemake is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, wraps
from typing import Any

from qrmi_workflows.config.job import read_job
from qrmi_workflows.config.variables import QPU_MOVED_FROM, QPU_SNAKEMAKE_JOB
from snakemake_executor_plugin_slurm_qpu.choices import set_qpu_name
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.wishes import constraints_of, find_names

__all__ = ["amend_jobs", "amend_snakemake", "keep_outputs"]

_QPU_TEXTS = ("qpu_name", "qpu_type", "qpu_where", "qpu_fallback", "qpu_stage", "qpu_mode")


def amend_jobs() -> None:
    """Amend this Snakemake, and those inside the jobs that it submits."""
    amend_snakemake()
    os.environ[QPU_SNAKEMAKE_JOB] = "1"


def keep_outputs(job: Any, is_kept: bool) -> None:
    """Say whether the outputs of a job or group stay when it fails."""
    for member in jobs_in(job):
        member.keeps_outputs = is_kept


@cache  # once in a process
def amend_snakemake() -> None:
    """Amend this Snakemake; the amended members were read in snakemake 9.27.1."""
    # Imported here, as Snakemake imports every plugin at start-up (see `plain_shell`).
    from snakemake.jobs import Job
    from snakemake.resources import GroupResources
    from snakemake.rules import Rule

    _limit_jobs_to_one_attempt(Rule)
    _evaluate_params_in_each_attempt(Job)
    _require_the_granted_qpu(Job)
    _let_failed_jobs_keep_outputs(Job)
    _let_groups_differ_in_qpu_resources(GroupResources)


def _limit_jobs_to_one_attempt(rule_class: Any) -> None:
    # `--retries 0`, which every Snakemake inside a job gets, gives way to a rule's own `retries:`
    # (https://github.com/snakemake/snakemake/issues/2050), and to that of a profile's preemptible
    # rules. Attempts inside the job would use the resources, and the QPU, of its first attempt.
    stock = rule_class.restart_times

    def restart_times(rule: Any) -> int:
        return int(stock.fget(rule)) if rule.workflow.is_main_process else 0

    rule_class.restart_times = property(restart_times, stock.fset)


def _evaluate_params_in_each_attempt(job_class: Any) -> None:
    # Snakemake forgets the resources of the last attempt, but not the `params` made from them. A
    # Snakemake inside the job evaluates them afresh; here the submitting one renders the commands.
    stock = job_class.attempt

    def set_attempt(job: Any, attempt: int) -> None:
        stock.fset(job, attempt)
        job._params = job._non_derived_params = None

    job_class.attempt = property(stock.fget, set_attempt)


def _require_the_granted_qpu(job_class: Any) -> None:
    # The local executor calls `prepare` right before it runs a job.
    stock = job_class.prepare

    @wraps(stock)
    async def prepare(job: Any) -> None:
        if not job.dag.workflow.is_main_process:
            require_granted(job)
        await stock(job)

    job_class.prepare = prepare


def _let_failed_jobs_keep_outputs(job_class: Any) -> None:
    # Snakemake removes the outputs of a failed job. But the job of a killed run may still write
    # them. `--keep-incomplete` would apply to all jobs.
    stock = job_class.cleanup

    @wraps(stock)
    async def cleanup(job: Any, skip_outputs: Sequence[Any]) -> None:
        if not getattr(job, "keeps_outputs", False):
            await stock(job, skip_outputs)

    job_class.cleanup = cleanup


def require_granted(job: Any) -> None:
    """Refuse to run a job under a QPU other than the one that its rule asks for.

    Snakemake evaluates functions in `resources` again inside the job. The answer may differ from
    the one at submission, such as the least busy QPU.

    Raises:
        QPURequestError: The rule asks for a QPU that the job was not granted.
    """
    if not job.resources.get("qpu"):
        return
    name, granted = job.resources.get("qpu_name"), read_job()
    if granted and os.environ.get(QPU_MOVED_FROM):  # its own had gone
        set_qpu_name(job, granted)
        return
    constraints = constraints_of(job.resources)
    if granted and (found := find_names(constraints, granted)) is not None:
        is_open = any(each.name is None for each in constraints)
        if is_open and (name is not None or any(each.has_conditions for each in constraints)):
            set_qpu_name(job, found)
        return
    held = ", ".join(sorted(granted)) or "no QPU"
    raise QPURequestError(
        f"rule {job.rule.name!r}: in attempt {job.attempt} it asks for qpu_name={name!r}, but its "
        f"job was granted {held}. `qpu` and `qpu_name` must have the same value inside the job as "
        "at submission: let them depend on nothing but wildcards, input and attempt."
    )


def _let_groups_differ_in_qpu_resources(group_resources: Any) -> None:
    # A group must have the same value of a text resource in all its jobs. But only those with
    # `qpu` use a QPU; the others may have the name of a profile's default, or none.
    # `QPURequests` and `StageRequests` check the values that count.
    stock = group_resources._is_string_resource

    def is_string_resource(name: str, values: Sequence[Any]) -> bool:
        return name in _QPU_TEXTS or bool(stock(name, values))

    group_resources._is_string_resource = staticmethod(is_string_resource)
