"""Check the status of jobs: on the stock executor's schedule, and soon after a completion marker.

The stock executor (snakemake-executor-plugin-slurm 2.8.0) queries Slurm every 40 to 180 s. That
spares Slurm, but a chain of short jobs spends most of its time waiting. Here a marker triggers a
query if the workflow can go on once the answer is known; otherwise the query is deferred until more
jobs have ended. So a chain costs one query per job, and a fan-out one or two.
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
from qrmi_workflows.schedulers.slurm import Slurm, has_accounting, kill_wait_of
from qrmi_workflows.schedulers.submission import list_jobs
from snakemake_executor_plugin_slurm_qpu.completion_markers import POLL_SECONDS, CompletionMarkers
from snakemake_executor_plugin_slurm_qpu.dag import unblocks_jobs
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.outcome import Outcome, decide_outcome
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS

__all__ = ["MarkerExecutor"]


class MarkerExecutor(SlurmExecutor):
    """The stock Slurm executor, which also checks a job soon after its marker has appeared."""

    # Overridden methods were read in snakemake-executor-plugin-slurm 2.8.0 (the stock executor) and
    # snakemake-interface-executor-plugins 9.4.0 (the interface).

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), in which the interface's RemoteExecutor starts the thread that checks jobs
        # and only then calls `__post_init__`. The stock executor has had this race too:
        # https://github.com/snakemake/snakemake-executor-plugin-slurm/pull/396.
        self._markers = CompletionMarkers(WORKFLOW_RECORDS.parent)
        self._reported: set[str] = set()
        self._next_scheduled_check = 0.0
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

    async def sleep(self) -> None:
        """Sleep until the next scheduled check, or until a marker makes an earlier one useful."""
        # The interface's `_wait_for_jobs` calls this between checks; its own `sleep` always sleeps
        # for the whole interval.
        now = monotonic()
        if now >= self._next_scheduled_check:
            self._next_scheduled_check = now + self.next_seconds_between_status_checks
        # `wait` turns False at shutdown, which joins this thread.
        while self.wait and monotonic() < self._next_scheduled_check:
            if self._is_check_useful():
                break
            await asyncio.sleep(POLL_SECONDS)

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
            or any(self._markers.exit_status(job_id) not in {"0", ""} for job_id in marked)
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
        self._reported.clear()
        rest = {info.external_jobid: info for info in active_jobs}
        # A check triggered by a marker asks only about jobs with markers. That query would miss
        # jobs on other clusters, so with several clusters the stock executor asks.
        if monotonic() < self._next_scheduled_check and not self._submitted_job_clusters:
            if not self._report_marked(rest, self._markers.jobs_to_check()):
                for info in rest.values():
                    yield info
                return
            rest = {job_id: info for job_id, info in rest.items() if job_id not in self._reported}
        async for info in super().check_active_jobs(list(rest.values())):
            self._markers.back_off(info.external_jobid)
            del rest[info.external_jobid]
            yield info
        # If its query fails, the stock executor neither reports nor yields its jobs. The interface
        # then drops them from `active_jobs`, and Snakemake would wait for them forever; compare
        # https://github.com/snakemake/snakemake-executor-plugin-slurm/issues/207.
        for job_id in rest.keys() - self._reported:
            self._markers.back_off(job_id)
            yield rest[job_id]

    def _report_marked(self, active: dict[str, SubmittedJobInfo], marked: frozenset[str]) -> bool:
        """Ask Slurm about jobs with a marker; report those that have ended.

        Args:
            active: The active jobs by their ids; the reported ones are removed.
            marked: The ids of the jobs to ask about.

        Returns:
            Whether a job has failed for a reason that the stock executor should look up.
        """
        asked = marked & active.keys()
        if not asked:
            return False
        listed = self._list_jobs()
        has_unexplained_failure = False
        for job_id in asked:
            status, exit_status = (listed or {}).get(job_id), self._markers.exit_status(job_id)
            # An answer without the job means that Slurm has forgotten it. No answer means nothing.
            outcome = Outcome.UNDECIDED if listed is None else decide_outcome(status, exit_status)
            if outcome is Outcome.UNDECIDED:
                self._markers.back_off(job_id)
            elif outcome is Outcome.SUCCEEDED:
                info = active.pop(job_id)
                self.report_job_success(info)
                self._remove_log(info)
            elif status is None:
                # The stock executor would go on waiting for a job that squeue no longer lists.
                message = f"SLURM-job '{job_id}' ended with exit status {exit_status}."
                self.report_job_error(active.pop(job_id), msg=message)
            else:
                has_unexplained_failure = True
        return has_unexplained_failure

    def _list_jobs(self) -> dict[str, JobStatus] | None:
        """Ask Slurm for the status of this run's jobs; `None` if it does not answer."""
        slurm = Slurm()
        try:
            # By name, as the stock executor does: squeue fails if it does not know an id.
            return list_jobs(slurm, slurm.status_argv(name=self.run_uuid))
        except SchedulerError as error:
            self.logger.warning(f"{error} Asking again later.")
            return None

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        # The stock executor does this in `check_active_jobs`, for the jobs that it reports itself.
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
            self._reported.add(job_info.external_jobid)
            self._markers.discard(job_info.external_jobid)

    def shutdown(self) -> None:
        """End the checks, and remove the markers' folder unless jobs may still write to it."""
        super().shutdown()
        self._markers.close()
