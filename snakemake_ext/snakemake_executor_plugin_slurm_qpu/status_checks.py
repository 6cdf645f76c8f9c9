"""Check the status of jobs: on a schedule, and soon after a completion marker.

The stock executor (snakemake-executor-plugin-slurm 2.8.0) queries Slurm every 40 to 180 s. That
spares Slurm, but a chain of short jobs spends most of its time waiting. Here a marker triggers a
query if the workflow can go on once the answer is known; otherwise the query is deferred until more
jobs have ended. So a chain costs one query per job, and a fan-out one or two.

The stock executor also waits forever for some jobs that have ended: those that were preempted for
good, and those that Slurm no longer knows. So this one asks and decides itself, for all jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from time import monotonic
from typing import Any

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobStatus
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.schedulers.slurm_config import has_accounting, kill_wait_of, min_job_age_of
from snakemake_executor_plugin_slurm_qpu.completion_markers import POLL_SECONDS, CompletionMarkers
from snakemake_executor_plugin_slurm_qpu.dag import unblocks_jobs
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.outcome import (
    Outcome,
    decide_outcome,
    describe_end,
    describe_forgotten,
    is_held,
)
from snakemake_executor_plugin_slurm_qpu.status_queries import Answer, ask_slurm, nodes_of
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

__all__ = ["FORGOTTEN_SECONDS", "MarkerExecutor"]

FORGOTTEN_SECONDS = 60.0
"""How long Slurm must have forgotten a job before it counts as failed.

NFS may hide a marker for as long (acdirmax, nfs(5)), and the accounting may be as late.
"""

_LONGEST_INTERVAL = 180.0
_INTERVAL_STEP = 10.0
"""The schedule of the stock executor: each check without news adds a step to the interval."""


class MarkerExecutor(SlurmExecutor):
    """The stock Slurm executor with other status checks, soon after a marker has appeared."""

    # Overridden methods were read in snakemake-executor-plugin-slurm 2.8.0 (the stock executor) and
    # snakemake-interface-executor-plugins 9.4.0 (the interface).

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), in which the interface's RemoteExecutor starts the thread that checks jobs
        # and only then calls `__post_init__`. The stock executor has had this race too:
        # https://github.com/snakemake/snakemake-executor-plugin-slurm/pull/396.
        self._markers = CompletionMarkers(WORKFLOW_RECORDS.parent)
        self._next_scheduled_check = 0.0
        self._interval = 0.0
        self._forgotten_since: dict[str, float] = {}
        self._held: set[str] = set()
        self._has_accounting = False
        self._min_job_age: float | None = None
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Read from Slurm's configuration whether it has accounting, and its KillWait."""
        super().__post_init__(test_mode)
        try:
            config = run_command(["scontrol", "show", "config"]).stdout
        except SchedulerError as error:
            raise QPURequestError(str(error)) from error
        self._has_accounting = has_accounting(config)
        self._kill_wait = kill_wait_of(config)
        self._min_job_age = min_job_age_of(config)
        if self._forgets_early and not self.workflow.executor_settings.mark_all:
            self.logger.info(
                f"This Slurm has no accounting and forgets jobs {self._min_job_age:g} s after "
                "their end (MinJobAge). So jobs without a QPU leave a completion marker too, as "
                "with --slurm-qpu-mark-all."
            )

    @property
    def _first_interval(self) -> float:
        return float(self.workflow.executor_settings.init_seconds_before_status_checks)

    @property
    def _forgets_early(self) -> bool:
        """Whether a job may end, and be forgotten, between two checks."""
        is_short = self._min_job_age is not None and self._min_job_age < 3 * self._first_interval
        return is_short and not self._has_accounting

    @property
    def marks_all(self) -> bool:
        """Whether jobs without a QPU leave a completion marker too."""
        return bool(self.workflow.executor_settings.mark_all) or self._forgets_early

    async def sleep(self) -> None:
        """Sleep until the next scheduled check, or until a marker makes an earlier one useful."""
        # The interface's `_wait_for_jobs` calls this between checks; its own `sleep` always sleeps
        # for the whole interval. `wait` turns False at shutdown, which joins this thread.
        while self.wait and monotonic() < self._next_scheduled_check:
            self._between_checks()
            if self._is_check_useful():
                break
            await asyncio.sleep(POLL_SECONDS)

    def _between_checks(self) -> None:
        """Do what else is due; called every tenth of a second, in the thread that checks jobs."""

    def _is_check_useful(self) -> bool:
        """Return whether Slurm should be asked before the next scheduled check."""
        marked = self._markers.jobs_to_check()
        if not marked:
            return False
        # A copy, because other threads append submitted jobs to the list.
        active = {info.external_jobid: info.job for info in tuple(self.active_jobs)}
        ended = [job for job_id, job in active.items() if job_id in marked]
        running = [job for job_id, job in active.items() if job_id not in marked]
        return (
            self._may_free_a_slot(len(active))
            or self._markers.is_check_overdue()
            or any(self._markers.exit_status(job_id) not in {"0", "", None} for job_id in marked)
            or unblocks_jobs(self.workflow.dag, ended, running)
        )

    def _may_free_a_slot(self, active: int) -> bool:
        """Return whether jobs may be waiting for `--jobs`, or for a resource the user limits."""
        limits = self.workflow.global_resources
        nodes = self.workflow.resource_settings.nodes
        has_limits = any(not name.startswith("_") for name in limits)
        return has_limits or (nodes is not None and active >= nodes)

    def get_status_command(self) -> str:
        """Return `sacct` or `squeue`, but never `sacct` where Slurm has no accounting."""
        # The stock executor uses `sacct` if it is installed, and interprets an empty answer as "not
        # in the database yet": without a database it would wait forever.
        return str(super().get_status_command()) if self._has_accounting else "squeue"

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Ask Slurm how jobs ended; report those that did, and yield the others."""
        due = self._markers.jobs_to_check()
        answer = await self._ask(active_jobs, has_new_markers=bool(due))
        waiting = [info for info in active_jobs if not self._report_if_ended(info, answer)]
        self._schedule_next_check(has_news=len(waiting) < len(active_jobs) or not active_jobs)
        for info in waiting:
            if info.external_jobid in due:
                self._markers.back_off(info.external_jobid)
            yield info

    async def _ask(self, active_jobs: list[SubmittedJobInfo], *, has_new_markers: bool) -> Answer:
        if not active_jobs:
            return Answer(statuses={}, forgotten=frozenset())
        async with self.status_rate_limiter:
            answer = ask_slurm(
                [info.external_jobid for info in active_jobs],
                name=self.run_uuid,  # the stock executor names every job of a run after the run
                commands=self._status_commands(squeue_first=has_new_markers),
                all_clusters=bool(self._submitted_job_clusters),
            )
        for error in answer.errors:
            self.logger.warning(f"{error} Snakemake keeps waiting, and asks again later.")
        return answer

    def _status_commands(self, *, squeue_first: bool) -> list[str]:
        """Return the commands that know about jobs, by default in the order the user prefers.

        squeue knows first that a job has ended; the accounting learns it seconds later.
        """
        if not self._has_accounting:
            return ["squeue"]  # without a database, sacct knows no job, or fails
        if self.get_status_command() == "sacct" and not squeue_first:
            return ["sacct", "squeue"]
        return ["squeue", "sacct"]

    def _report_if_ended(self, info: SubmittedJobInfo, answer: Answer) -> bool:
        """Report a job that has ended, and return whether it has."""
        job_id = info.external_jobid
        status, exit_status = answer.statuses.get(job_id), self._markers.exit_status(job_id)
        if status is None and job_id not in answer.forgotten:
            return False  # a command has failed, and no other one knows the job
        if status is not None:
            self._forgotten_since.pop(job_id, None)
        outcome = decide_outcome(status, exit_status)
        if outcome is Outcome.SUCCEEDED:
            self.report_job_success(info)
            self._remove_log(info)
        elif outcome is Outcome.FAILED:
            self._exclude_failed_nodes(job_id, status)
            self._report_failure(info, describe_end(job_id, status, exit_status))
        elif status is None and self._is_forgotten_for_long(job_id):
            age, accounting = self._min_job_age, self._has_accounting
            message = describe_forgotten(job_id, min_job_age=age, has_accounting=accounting)
            self._report_failure(info, message)
        else:
            self._warn_if_held(job_id, status)
            return False
        return True

    def _warn_if_held(self, job_id: str, status: JobStatus | None) -> None:
        if status is not None and is_held(status) and job_id not in self._held:
            self._held.add(job_id)
            self.logger.warning(
                f"SLURM-job '{job_id}' is held (SLURM status is: '{status.word}', reason: "
                f"{status.reason or 'not known'}). Snakemake keeps waiting; release the job with "
                f"`scontrol release {job_id}`, or cancel it with `scancel {job_id}`."
            )

    def _is_forgotten_for_long(self, job_id: str) -> bool:
        since = self._forgotten_since.setdefault(job_id, monotonic())
        return monotonic() - since >= FORGOTTEN_SECONDS

    def _report_failure(self, info: SubmittedJobInfo, message: str) -> None:
        log = (info.aux or {}).get("slurm_logfile")
        self.report_job_error(info, msg=f"{message} ", aux_logs=[] if log is None else [str(log)])

    def _exclude_failed_nodes(self, job_id: str, status: JobStatus | None) -> None:
        # Like the stock executor, which asks sacct for the nodes.
        if status is not None and status.word == "NODE_FAIL":
            self._failed_nodes.update(nodes_of(job_id))

    def _schedule_next_check(self, *, has_news: bool) -> None:
        longest = _LONGEST_INTERVAL
        if self._min_job_age is not None and not self._has_accounting:
            longest = min(longest, self._min_job_age / 2)  # before Slurm forgets a job
        interval = self._first_interval if has_news else self._interval + _INTERVAL_STEP
        self._interval = min(interval, max(longest, self._first_interval))
        now = monotonic()
        deadlines = (since + FORGOTTEN_SECONDS for since in self._forgotten_since.values())
        regular = now + self._interval
        self._next_scheduled_check = min([regular, *(at for at in deadlines if at > now)])

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        # As the stock executor does.
        if not self.workflow.executor_settings.keep_successful_logs:
            with suppress(OSError):
                info.aux["slurm_logfile"].unlink(missing_ok=True)

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """Report a job that has ended as COMPLETED."""
        self._stop_checking(job_info)
        super().report_job_success(job_info)

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report a job that has failed, or whose submission has failed."""
        self._stop_checking(job_info)
        super().report_job_error(job_info, msg=msg, **kwargs)

    def _stop_checking(self, job_info: SubmittedJobInfo) -> None:
        if job_info.external_jobid is not None:  # None if the submission has failed
            self._forgotten_since.pop(job_info.external_jobid, None)
            self._markers.discard(job_info.external_jobid)

    def shutdown(self) -> None:
        """End the checks, and remove the markers' folder unless jobs may still write to it."""
        super().shutdown()
        self._markers.close()
