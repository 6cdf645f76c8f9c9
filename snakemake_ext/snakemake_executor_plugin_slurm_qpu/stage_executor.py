"""The part of the executor that opens and closes stages, and submits their jobs.

A job of a stage asks Slurm for no QPU. Until the stage is ready, the job waits in the queue, so no
node waits for the QPU.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.config.variables import QPU_STAGE
from qrmi_workflows.schedulers.base import JobState, JobStatus
from snakemake_executor_plugin_slurm_qpu.dag import jobs_still_to_run
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.job_names import job_comment
from snakemake_executor_plugin_slurm_qpu.nesting import NestingExecutor
from snakemake_executor_plugin_slurm_qpu.stage_requests import StagePlan, StageRequests
from snakemake_executor_plugin_slurm_qpu.stages import OpenStages, StageJob, keeper_options

__all__ = ["StageExecutor"]

_CLOSING_INTERVAL = 0.5
_CLOSING_SHARE = 0.05
"""How often, in seconds, and for how much of its time, the executor looks for unused stages."""

_HURRY_SECONDS = 5.0
"""How often Slurm is asked about the jobs of a stage that has ended before them."""

_END_SECONDS = 20.0
"""How long the end of a run waits for its stages to end."""


class StageExecutor(NestingExecutor):
    """The stock Slurm executor, with stages."""

    # The overridden methods were read in snakemake-executor-plugin-slurm 2.8.0 (the stock executor)
    # and snakemake-interface-executor-plugins 9.4.0 (the interface).

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), which starts the thread that checks jobs (see MarkerExecutor).
        settings = workflow.executor_settings
        self._stages = OpenStages(
            logger, idle_limit=settings.stage_idle, time_limit=settings.stage_time
        )
        self._plans: dict[str, StagePlan] = {}
        self._stage_jobs: dict[Any, StageJob] = {}
        self._stages_by_id: dict[str, StageJob] = {}
        self._next_closing = self._next_hurry = 0.0
        self._is_cancelled = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Check the settings of stages."""
        super().__post_init__(test_mode)
        if name := os.environ.pop(QPU_STAGE, None):
            # A job that holds a QPU of its own would join the stage, or wait for it.
            self.logger.warning(
                f"${QPU_STAGE}={name} is ignored: with this executor, a rule's `qpu_stage` says "
                "which stage its jobs are in."
            )
        settings = self.workflow.executor_settings
        self._stage_requests = StageRequests(self._requests, settings.stage_mode)
        if settings.stage_idle <= 0:
            raise QPURequestError(
                f"--slurm-qpu-stage-idle {settings.stage_idle}: must be a positive number of "
                "seconds. Correct it."
            )

    # Submission

    def _stage_plan(self, job: Any) -> StagePlan | None:
        """Return the plan of the stage that a ready job enters; `None` if it enters none.

        Must be called in the thread of Snakemake's scheduler, which changes the graph of jobs.

        Raises:
            QPURequestError: The job cannot be in the stage that it names.
        """
        name = self._stage_requests.stage_of(job)
        if name is None:
            return None
        if not self._stages.is_open(name):
            self._plans.pop(name, None)
            plan = self._stage_requests.plan(self.workflow.dag, name)
            if plan is not None:
                self._plans[name] = plan
        return self._plans.get(name)

    def _enter_stage(self, job: Any, after: Callable[[], Iterable[str]]) -> None:
        """Open the stage of a job, if it is in one, and keep how the job enters it.

        Args:
            job: The job, whose stage has been planned.
            after: Returns the ids of the jobs whose end it waits for.
        """
        name = self._stage_requests.stage_of(job)
        plan = None if name is None else self._plans.get(name)
        self._stage_jobs.pop(job, None)
        if plan is None:
            return
        stage = self._stages.enter(plan, lambda: self._keeper_options(plan))
        self._stage_jobs[job] = StageJob.of(stage, job_comment(job), after())

    def _keeper_options(self, plan: StagePlan) -> dict[str, Any]:
        """Return the options of the stage's own job, taken from a job that uses the QPU."""
        resources = plan.job.resources
        has_account = not self.workflow.executor_settings.no_account
        account = shlex.split(next(self.get_account_arg(plan.job))) if has_account else []
        return {
            "lanes": self._requests.lanes((plan.request,)),
            "warm_up": not self.workflow.executor_settings.stage_no_warm_up,
            "partition": resources.get("slurm_partition") or None,
            "account": account[-1] if account else None,  # after `-A`
            "options": keeper_options(resources, self.workflow.executor_settings),
        }

    def get_partition_arg(self, job: Any) -> str:
        """Return the options for a partition, and those of a job without a QPU in a stage."""
        # Of a repeated option, here the comment, sbatch uses the last one.
        partition = str(super().get_partition_arg(job))
        entered = self._stage_jobs.get(job)
        if entered is None or self._requests.uses_qpu(job):
            return partition
        return f"{partition} {shlex.join(entered.options)}"

    def _is_in_array(self, job: Any) -> bool:
        # Jobs of a stage are submitted one by one: each has its own comment.
        return job not in self._stage_jobs and super()._is_in_array(job)

    def _leaves_marker(self, job: Any) -> bool:
        # The QPU is idle until Snakemake notices that a classical job of the stage has ended.
        return job in self._stage_jobs or super()._leaves_marker(job)

    def _report_job_submission_threadsafe(self, job_info: SubmittedJobInfo) -> None:
        """Report a job that Slurm has accepted, and release it if its stage is ready by now."""
        if entered := self._stage_jobs.get(job_info.job):
            self._stages_by_id[job_info.external_jobid] = entered
            entered.announce()
            if entered.waits:
                self._stages.tell_waiting(entered.stage)
        super()._report_job_submission_threadsafe(job_info)

    # Checks

    def _warn_if_held(self, job_id: str, status: JobStatus | None) -> None:
        """Say that a job waits for its stage, or is held by somebody."""
        entered = self._stages_by_id.get(job_id)
        if (
            entered is not None
            and status is not None
            and status.state is JobState.PENDING
            and status.reason.startswith("Dependency")
            and entered.waits
        ):
            self._stages.tell_waiting(entered.stage)
        super()._warn_if_held(job_id, status)

    def _report_failure(self, info: SubmittedJobInfo, message: str) -> None:
        """Report a failed job, with the end of its stage, which may be the cause."""
        entered = self._stages_by_id.get(info.external_jobid)
        if entered is not None:
            message = f"{message} {self._stages.why_ended(entered.stage)}".rstrip()
        super()._report_failure(info, message)

    def _stop_checking(self, job_info: SubmittedJobInfo) -> None:
        self._stage_jobs.pop(job_info.job, None)
        self._stages_by_id.pop(job_info.external_jobid, None)
        super()._stop_checking(job_info)

    # The end of stages

    def _between_checks(self) -> None:
        """Close the stages that no job needs any more, and look at those that have ended."""
        started = monotonic()
        if started < self._next_closing:
            return
        self._stages.log_ended()
        for name in self._unneeded_stages():
            self._stages.close(name)
        self._hurry_if_stranded(started)
        taken = monotonic() - started
        self._next_closing = monotonic() + max(_CLOSING_INTERVAL, taken / _CLOSING_SHARE)

    def _hurry_if_stranded(self, now: float) -> None:
        """Ask Slurm soon if a stage has ended before its jobs, which it has cancelled."""
        ended = self._stages.ended_ids() if now >= self._next_hurry else set()
        if any(entered.stage.id in ended for entered in tuple(self._stages_by_id.values())):
            self._next_hurry = now + _HURRY_SECONDS
            self._next_scheduled_check = now

    def _unneeded_stages(self) -> list[str]:
        names, scheduler = self._stages.names, self.workflow.scheduler
        # Under the lock, a job and a checkpoint that has ended, and the jobs that follow from it,
        # are seen together. If it is taken, Snakemake is busy with news.
        if not names or scheduler is None or not scheduler._lock.acquire(blocking=False):
            return []
        try:
            jobs = jobs_still_to_run(self.workflow.dag, scheduler)
            needed = self._stage_requests.names_needed(jobs)
        finally:
            scheduler._lock.release()
        return [] if needed is None else [name for name in names if name not in needed]

    def shutdown(self) -> None:
        """End the run and its stages."""
        super().shutdown()
        for name in self._stages.names:
            self._stages.close(name)
        # Jobs that are being cancelled have KillWait to end, and then the stage ends.
        self._stages.await_end(0.0 if self._is_cancelled else _END_SECONDS)
