"""The part of the executor that watches jobs: when Slurm is asked, and what follows from it."""

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
from snakemake_executor_plugin_slurm_qpu.completion import (
    Verdict,
    can_go_on,
    judge,
)
from snakemake_executor_plugin_slurm_qpu.errors import QPURequestError
from snakemake_executor_plugin_slurm_qpu.markers import POLL_SECONDS, Markers
from snakemake_executor_plugin_slurm_qpu.telemetry import RECORDS

__all__ = ["MarkedExecutor"]


class MarkedExecutor(SlurmExecutor):
    """The stock Slurm executor, that notices the end of jobs with a marker at once."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(): it starts the thread that polls.
        self._markers = Markers(RECORDS.parent)
        self._settled: set[str] = set()
        self._next_look = 0.0
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Find out how this Slurm can be asked."""
        super().__post_init__(test_mode)
        try:
            shown = run_command(["scontrol", "show", "config"])
        except SchedulerError as error:
            raise QPURequestError(str(error)) from error
        self._has_accounting = has_accounting(shown.stdout)
        self._kill_wait = kill_wait_of(shown.stdout)

    async def sleep(self) -> None:
        """Sleep until the stock schedule asks Slurm again, or until a marker says to ask now."""
        now = monotonic()
        if now >= self._next_look:
            self._next_look = now + self.next_seconds_between_status_checks
        while self.wait and monotonic() < self._next_look and not self._jobs_to_ask_about():
            await asyncio.sleep(POLL_SECONDS)

    def _jobs_to_ask_about(self) -> frozenset[str]:
        due = self._markers.due()
        if not due:
            return due
        active = {info.external_jobid: info.job for info in tuple(self.active_jobs)}
        ended = [job for job_id, job in active.items() if job_id in due]
        running = [job for job_id, job in active.items() if job_id not in due]
        worth_asking = (
            self._is_full(len(active))
            or self._markers.overdue()
            or any(self._markers.status(job_id) not in {"0", ""} for job_id in due)
            or can_go_on(self.workflow.dag, ended, running)
        )
        return due if worth_asking else frozenset()

    def _is_full(self, active: int) -> bool:
        """Whether jobs may be waiting for a slot, or for a resource that the workflow limits."""
        limits = self.workflow.global_resources
        nodes = self.workflow.resource_settings.nodes
        limited = any(not name.startswith("_") for name in limits)
        return limited or (nodes is not None and active >= nodes)

    def get_status_command(self) -> str:
        """Return `sacct` or `squeue`; never `sacct` where Slurm has no accounting."""
        return str(super().get_status_command()) if self._has_accounting else "squeue"

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Ask Slurm what became of the jobs; yields those that are not over."""
        self._settled.clear()
        rest = {info.external_jobid: info for info in active_jobs}
        if monotonic() < self._next_look and not self._submitted_job_clusters:
            if not self._report_marked(rest, self._markers.due()):
                for info in rest.values():
                    yield info
                return
            rest = {job_id: info for job_id, info in rest.items() if job_id not in self._settled}
        async for info in super().check_active_jobs(list(rest.values())):
            self._markers.postpone(info.external_jobid)
            del rest[info.external_jobid]
            yield info
        # When Slurm does not answer, the stock executor forgets its jobs and waits for ever.
        for job_id in rest.keys() - self._settled:
            self._markers.postpone(job_id)
            yield rest[job_id]

    def _report_marked(self, active: dict[str, SubmittedJobInfo], due: frozenset[str]) -> bool:
        """Ask Slurm about jobs with a marker, and remove from `active` those that are over.

        Returns:
            Whether one failed of which the stock executor should say why.
        """
        asked = due & active.keys()
        if not asked:
            return False
        states = self._list_jobs()
        unexplained = False
        for job_id in asked:
            said, status = (states or {}).get(job_id), self._markers.status(job_id)
            verdict = Verdict.OPEN if states is None else judge(said, status)
            if verdict is Verdict.OPEN:
                self._markers.postpone(job_id)
            elif verdict is Verdict.SUCCEEDED:
                info = active.pop(job_id)
                self.report_job_success(info)
                self._remove_log(info)
            elif said is None:
                message = f"SLURM-job '{job_id}' ended with exit status {status}."
                self.report_job_error(active.pop(job_id), msg=message)
            else:
                unexplained = True
        return unexplained

    def _list_jobs(self) -> dict[str, JobStatus] | None:
        """Ask Slurm for the jobs' states; return `None` if it does not answer."""
        slurm = Slurm()
        try:
            return list_jobs(slurm, slurm.status_argv(name=self.run_uuid))
        except SchedulerError as error:
            self.logger.warning(f"{error} Asking again later.")
            return None

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        if not self.workflow.executor_settings.keep_successful_logs:
            with suppress(OSError):
                info.aux["slurm_logfile"].unlink(missing_ok=True)

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """Report that Slurm says COMPLETED."""
        self._settle(job_info)
        super().report_job_success(job_info)

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report a job that failed, or that was never accepted."""
        self._settle(job_info)
        super().report_job_error(job_info, msg=msg, **kwargs)

    def _settle(self, job_info: SubmittedJobInfo) -> None:
        if job_info.external_jobid is not None:
            self._settled.add(job_info.external_jobid)
            self._markers.forget(job_info.external_jobid)

    def shutdown(self) -> None:
        """End the polling, and remove the markers' folder when no job will write there."""
        super().shutdown()
        self._markers.close()
