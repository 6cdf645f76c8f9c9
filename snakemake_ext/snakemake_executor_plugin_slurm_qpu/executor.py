"""The executor: jobs that ask for a QPU go their own way, all others the stock Slurm executor's.

A job with a QPU runs without a jobstep and without srun: its batch script is one supervisor that
holds the lease, and under it the rule's command (or one Snakemake, where the rule needs it).
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import (
    validate_or_get_slurm_job_id,
    validate_slurm_extra,
)
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import QPURequest, run_command
from qrmi_workflows.schedulers.slurm import has_accounting
from snakemake_executor_plugin_slurm_qpu.completion import (
    Verdict,
    can_go_on,
    judge,
    parse_states,
    state_command,
)
from snakemake_executor_plugin_slurm_qpu.direct import can_run_directly, render_command
from snakemake_executor_plugin_slurm_qpu.markers import POLL_SECONDS, Markers
from snakemake_executor_plugin_slurm_qpu.requests import QPURequestError, QPURequests
from snakemake_executor_plugin_slurm_qpu.script import lease_command, read_end, render_script
from snakemake_executor_plugin_slurm_qpu.telemetry import (
    EVENT,
    RECORDS,
    append_records,
    describe_record,
    read_records,
)

__all__ = ["Executor"]

_HOLDS_QPU: ContextVar[bool] = ContextVar("_HOLDS_QPU", default=False)


class Executor(SlurmExecutor):
    """Runs jobs on Slurm, those with `qpu=1` under a lease of their QPU."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(): it starts the thread that polls.
        self._requests = QPURequests()
        self._markers = Markers(RECORDS.parent)
        self._settled: set[str] = set()
        self._next_look = 0.0
        self._cancelled = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuse what cannot be met before any job of the workflow runs."""
        super().__post_init__(test_mode)
        try:
            shown = run_command(["scontrol", "show", "config"])
        except SchedulerError as error:
            raise QPURequestError(str(error)) from error
        self._has_accounting = has_accounting(shown.stdout)
        self._requests.check_workflow(self.workflow.dag)

    # Submission

    def run_jobs(self, jobs: Sequence[Any]) -> None:
        """Submit jobs; here, in the main thread, a bad request still ends the workflow.

        Jobs that hold a QPU are never put into job arrays.
        """
        requests = {job: self._requests.find(job) for job in jobs}
        super().run_jobs([job for job, request in requests.items() if request is None])
        for job in (job for job, request in requests.items() if request is not None):
            if self._prepare(job):
                self._submit_job(job)

    def _prepare(self, job: Any) -> bool:
        """Do for a job that runs directly what a Snakemake in the job would do before it."""
        if not self._runs_directly(job):
            return True
        try:
            self.workflow.async_run(job.prepare())
        except Exception as error:
            self.report_job_error(SubmittedJobInfo(job), msg=f"{error} ")
            return False
        return True

    def _runs_directly(self, job: Any) -> bool:
        nested = self.workflow.executor_settings.nested
        return not nested and can_run_directly(job, self.workflow)

    def run_job(self, job: Any) -> None:
        """Submit one job, in a thread of its own: whatever goes wrong fails this job alone."""
        try:
            request = self._requests.find(job)
            if request is None:
                super().run_job(job)
            elif not self._cancelled:
                self._submit_with_qpu(job, request)
        except Exception as error:
            # The stock executor's own handler fails on groups and would leave them waiting.
            cause = error.__context__ if isinstance(error, AttributeError) else error
            self._report_job_error_threadsafe(
                SubmittedJobInfo(job), f"Job submission failed: {cause or error}. "
            )

    def _submit_with_qpu(self, job: Any, request: QPURequest) -> None:
        log_file = self._log_file(job)
        submitted = datetime.now(UTC)
        python = shlex.split(self.get_python_executable())
        command = lease_command(python, request.qpu, _step(job), self._command(job))
        done = run_command(
            self._sbatch(job, request, log_file), stdin=render_script(command, self._markers.folder)
        )
        if done.returncode != 0:
            raise WorkflowError(
                f"sbatch refused the job for QPU {request.qpu!r}: {done.stderr.strip()}"
            )
        job_id = validate_or_get_slurm_job_id(done.stdout.strip().split(";")[0], done.stdout)
        log_file = log_file.with_name(f"{job_id}.log")
        self.logger.info(
            f"Job {job.jobid} has been submitted with SLURM jobid {job_id}, for QPU "
            f"{request.qpu} (log: {log_file})."
        )
        if cluster := _cluster(job):
            self._submitted_job_clusters.add(cluster)
        self._report_job_submission_threadsafe(
            SubmittedJobInfo(
                job,
                external_jobid=job_id,
                aux={"slurm_logfile": log_file, "submitted": submitted},
            )
        )

    def _log_file(self, job: Any) -> Path:
        kind = "group" if job.is_group() else "rule"
        folder = self.slurm_logdir / f"{kind}_{job.name}" / get_job_wildcards(job)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(folder / "%j.log")

    def _sbatch(self, job: Any, request: QPURequest, log_file: Path) -> list[str]:
        """Render the stock executor's sbatch call, as argv, with the request's options."""
        settings = self.workflow.executor_settings
        validate_slurm_extra(job)
        wildcards = get_job_wildcards(job)
        partition_given = bool(job.resources.get("slurm_partition"))
        options = self._requests.options(request, partition=not partition_given)
        site_chooses = any(option.startswith("--partition=") for option in options)
        call = get_submit_command(
            job,
            {
                "run_uuid": self.run_uuid,
                "slurm_logfile": log_file,
                "comment_str": f"rule_{job.name}" + (f"_wildcards_{wildcards}" * bool(wildcards)),
                "account": "" if settings.no_account else next(self.get_account_arg(job)),
                "partition": "" if site_chooses else self.get_partition_arg(job),
                "workdir": self.workflow.workdir_init,
            },
            settings=settings,
            failed_nodes=self._failed_nodes,
        )
        requeue = [] if settings.requeue or settings.no_requeue else ["--no-requeue"]
        return [*shlex.split(call + set_gres_string(job)), *requeue, *options]

    def _command(self, job: Any) -> list[str]:
        text = render_command(job) if self._runs_directly(job) else self.format_job_exec(job)
        return ["/bin/bash", "-c", text]

    def format_job_exec(self, job: Any) -> str:
        """Render the Snakemake call inside the job."""
        token = _HOLDS_QPU.set(self._requests.find(job) is not None)
        try:
            return str(super().format_job_exec(job))
        finally:
            _HOLDS_QPU.reset(token)

    def additional_general_args(self) -> str:
        """No jobstep and no srun under a lease; the stock ones for all other jobs."""
        return "" if _HOLDS_QPU.get() else str(super().additional_general_args())

    def get_job_exec_suffix(self, job: Any) -> str:
        """Add the marker of a job without a QPU, when the user wants it."""
        if _HOLDS_QPU.get() or not self._is_marked(job):
            return ""
        marker = shlex.quote(str(self._markers.folder / _marker(job)))
        return f"touch {marker} || {{ touch {marker}; exit 1; }}"

    def _is_marked(self, job: Any) -> bool:
        # The stock executor appends to the command of an array job.
        in_array = not job.is_group() and self.array_jobs & {"all", job.rule.name}
        return self.workflow.executor_settings.mark_all and not in_array

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        """Report a job that Slurm has accepted."""
        holds_qpu = self._requests.find(job_info.job) is not None
        if holds_qpu or self._is_marked(job_info.job):
            marker = None if holds_qpu else _marker(job_info.job)
            self._markers.expect(job_info.external_jobid, marker)
        super().report_job_submission(job_info, register_job=register_job)

    # Completion

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
        states = self._ask_for_states(asked)
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

    def _ask_for_states(self, job_ids: Iterable[str]) -> dict[str, tuple[str, str]] | None:
        """Ask Slurm; `None` when it does not answer."""
        try:
            done = run_command(state_command(job_ids))
        except SchedulerError as error:
            self.logger.warning(f"{error} Asking again later.")
            return None
        answered = done.returncode == 0 or "Invalid job id" in done.stderr
        return parse_states(done.stdout) if answered else None

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        if not self.workflow.executor_settings.keep_successful_logs:
            with suppress(OSError):
                info.aux["slurm_logfile"].unlink(missing_ok=True)

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """Report that Slurm says COMPLETED."""
        self._settle(job_info)
        self._log_leases(job_info)
        super().report_job_success(job_info)

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report a job that failed, with the end of its log, or that was never accepted."""
        self._settle(job_info)
        self._log_leases(job_info)
        end = read_end((job_info.aux or {}).get("slurm_logfile"))
        if end and self._requests.find(job_info.job) is not None:
            msg = f"{msg} Its log ends with:\n{end}\n"
        if job_info.job.is_group():  # Snakemake shows a group's message nowhere
            self.logger.error(f"Group {job_info.job.groupid}: {msg}")
        super().report_job_error(job_info, msg=msg, **kwargs)

    def _settle(self, job_info: SubmittedJobInfo) -> None:
        if job_info.external_jobid is not None:
            self._settled.add(job_info.external_jobid)
            self._markers.forget(job_info.external_jobid)

    def _log_leases(self, job_info: SubmittedJobInfo) -> None:
        """Log what the job's leases used, and keep it for the workflow's report."""
        job, job_id = job_info.job, job_info.external_jobid
        submitted = (job_info.aux or {}).get("submitted")
        if job_id is None or submitted is None:
            return
        records = [{"rule": job.name, **record} for record in read_records(job_id, submitted)]
        for record in records:
            self.logger.info(describe_record(record), extra={"event": EVENT, "lease": record})
        try:
            append_records(RECORDS, records)
        except OSError as error:
            self.logger.warning(f"{RECORDS}: {error}; the report will not have job {job_id}.")

    # The end

    def cancel(self) -> None:
        """Cancel the jobs, and those whose submission is under way."""
        self._cancelled = True
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel every job of this run: by name, so that none that Slurm accepted is missed."""
        with suppress(SchedulerError):
            run_command(["scancel", f"--name={self.run_uuid}"])
        super().cancel_jobs(active_jobs)

    def shutdown(self) -> None:
        """End the polling, and remove the markers' folder when no job will write there."""
        super().shutdown()
        self._markers.close()


def _marker(job: Any) -> str:
    return f"{job.jobid}-{job.attempt}"


def _step(job: Any) -> str:
    """Name a job so that no other has the name, and that it is the same in every run."""
    unique = job.jobid if job.is_group() else job.uuid()
    return f"snakemake {job.name} {unique} in {Path.cwd()}"


def _cluster(job: Any) -> Any:
    names = (job.resources.get(name) for name in ("cluster", "clusters", "slurm_cluster"))
    return next((name for name in names if name), None)
