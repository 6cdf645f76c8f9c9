"""The executor: jobs that ask for a QPU go their own way, all others the stock Slurm executor's.

A job with a QPU runs without a jobstep and without srun: its batch script is one supervisor that
holds the lease, and under it the rule's command (or one Snakemake, where the rule needs it).
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.errors import JournalError, SchedulerError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.records import records_of_job
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import run_command
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import JobMark, submit_job
from qrmi_workflows.state.files import append_line
from snakemake_executor_plugin_slurm_qpu.direct import can_run_directly, render_command
from snakemake_executor_plugin_slurm_qpu.nested import quote_names, require_readable
from snakemake_executor_plugin_slurm_qpu.requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.script import lease_command, read_end, render_script
from snakemake_executor_plugin_slurm_qpu.telemetry import EVENT, RECORDS
from snakemake_executor_plugin_slurm_qpu.watching import MarkedExecutor

__all__ = ["Executor"]

SEARCH_SECONDS = 30.0
"""How long the queue is searched for a job whose submission Slurm did not answer."""

_HOLDS_QPU: ContextVar[bool] = ContextVar("_HOLDS_QPU", default=False)


class Executor(MarkedExecutor):
    """Runs jobs on Slurm, those with `qpu=1` under a lease of their QPU."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(): it starts the thread that polls.
        self._requests = QPURequests()
        self._cancelled = False
        self._unanswered = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuse what cannot be met before any job of the workflow runs."""
        _leave_leases()
        super().__post_init__(test_mode)
        self._requests.check_workflow(self.workflow.dag)

    # Submission

    def run_jobs(self, jobs: Sequence[Any]) -> None:
        """Submit jobs; here, in the main thread, a bad request still ends the workflow.

        Jobs that hold a QPU are never put into job arrays.
        """
        requests = {job: self._requests.find(job) for job in jobs}
        for job in (job for job, request in requests.items() if request is not None):
            if not self._runs_directly(job):
                require_readable(job)
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
            self._unanswered |= isinstance(error, SchedulerError) and error.retryable
            # The stock executor's own handler fails on groups and would leave them waiting.
            cause = error.__context__ if isinstance(error, AttributeError) else error
            self._report_job_error_threadsafe(
                SubmittedJobInfo(job), f"Job submission failed: {cause or error}. "
            )

    def _submit_with_qpu(self, job: Any, request: QPURequest) -> None:
        log_file = self._log_file(job)
        submitted = datetime.now(UTC)
        python = shlex.split(self.get_python_executable())
        command = lease_command(
            python,
            request.qpu,
            _step(job),
            self._command(job),
            submitted=submitted.timestamp(),
            kill_wait=None if _cluster(job) else self._kill_wait,  # another cluster has its own
            lanes=self._requests.lanes(request),
        )
        comment = _comment(job)
        job_id = submit_job(
            Slurm(clusters=_cluster(job)),
            self._sbatch(job, request, log_file, comment),
            JobMark(name=self.run_uuid, comment=comment),
            stdin=render_script(command, self._markers.folder),
            search_seconds=SEARCH_SECONDS,
        )
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
        folder = self.slurm_logdir / f"{kind}_{job.name}" / _folder_name(get_job_wildcards(job))
        folder.mkdir(parents=True, exist_ok=True)
        return Path(folder / "%j.log")

    def _sbatch(self, job: Any, request: QPURequest, log_file: Path, comment: str) -> list[str]:
        """Render the stock executor's sbatch call, as argv, with the request's options."""
        settings = self.workflow.executor_settings
        validate_slurm_extra(job)
        partition_given = bool(job.resources.get("slurm_partition"))
        options = self._requests.options(request, partition=not partition_given)
        site_chooses = any(option.startswith("--partition=") for option in options)
        call = get_submit_command(
            job,
            {
                "run_uuid": self.run_uuid,
                "slurm_logfile": log_file,
                "comment_str": comment,
                "account": "" if settings.no_account else next(self.get_account_arg(job)),
                "partition": "" if site_chooses else self.get_partition_arg(job),
                "workdir": self.workflow.workdir_init,
            },
            settings=settings,
            failed_nodes=self._failed_nodes,
        )
        requeue = [] if settings.requeue or settings.no_requeue else ["--no-requeue"]
        after = self._after_orphans(job)
        return [*shlex.split(call + set_gres_string(job)), *requeue, *after, *options]

    def _after_orphans(self, job: Any) -> list[str]:
        """Let a job start after the one that a killed Snakemake left: it finds that one's tasks."""
        members = job.jobs if job.is_group() else [job]
        known = self.workflow.persistence.external_jobids
        orphans = sorted({job_id for member in members for job_id in known(member)})
        return [f"--dependency=afterany:{':'.join(orphans)}"] if orphans else []

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

    def get_job_args(self, job: Any, **kwargs: Any) -> str:
        """Render the arguments of the Snakemake inside the job that are the job's own."""
        arguments = str(super().get_job_args(job, **kwargs))
        return quote_names(arguments, job, self.tmpdir) if _HOLDS_QPU.get() else arguments

    def get_snakefile(self) -> str:
        """Return the Snakefile, quoted for a shell where Snakemake would not do it rightly."""
        path = str(super().get_snakefile())
        return shlex.quote(path) if _HOLDS_QPU.get() else path

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

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """Report that Slurm says COMPLETED."""
        self._log_leases(job_info)
        super().report_job_success(job_info)

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report a job that failed, with the end of its log, or that was never accepted."""
        self._log_leases(job_info)
        end = read_end((job_info.aux or {}).get("slurm_logfile"))
        if end and self._requests.find(job_info.job) is not None:
            msg = f"{msg} Its log ends with:\n{end}\n"
        if job_info.job.is_group():  # Snakemake shows a group's message nowhere
            self.logger.error(f"Group {job_info.job.groupid}: {msg}")
        super().report_job_error(job_info, msg=msg, **kwargs)

    def handle_job_success(self, job: Any) -> None:
        """Let the job's tasks go: its outputs are there, so running it again means afresh."""
        super().handle_job_success(job)
        if self._requests.find(job) is not None:
            try:
                Journal().archive(_step(job))
            except JournalError as error:
                self.logger.warning(f"{error} Run again, the job will take the results it has.")

    def _log_leases(self, job_info: SubmittedJobInfo) -> None:
        """Log what the job's leases used, and keep it for the workflow's report."""
        job, job_id = job_info.job, job_info.external_jobid
        submitted = (job_info.aux or {}).get("submitted")
        if job_id is None or submitted is None:
            return
        records = records_of_job(job_id, submitted)
        documents = [{"rule": job.name, **asdict(record)} for record in records]
        for record, document in zip(records, documents, strict=True):
            self.logger.info(record.describe(), extra={"event": EVENT, "lease": document})
        try:
            for document in documents:
                append_line(RECORDS, json.dumps(document))
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
        self._cancel_run()
        super().cancel_jobs(active_jobs)

    def shutdown(self) -> None:
        """End; a job that Slurm accepted after all, without an answer, does not outlive the run."""
        super().shutdown()
        if self._unanswered:
            self._cancel_run()

    def _cancel_run(self) -> None:
        with suppress(SchedulerError):
            run_command(["scancel", f"--name={self.run_uuid}"])


def _leave_leases() -> None:
    """Leave the leases of the job that Snakemake itself runs in to that job.

    Not only where a QPU is asked for: every job inherits this process's environment, and Slurm
    keeps what they inherit on its disks.
    """
    kept = without_leases()
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def _marker(job: Any) -> str:
    return f"{job.jobid}-{job.attempt}"


def _folder_name(wildcards: str) -> str:
    """Leave out what sbatch's `--output` does not take as it is, and what no folder's name can be.

    The file in the folder has the job's id, so two jobs may share a folder.
    """
    return re.sub(r"[%\\\n]", "_", wildcards)[:100]


def _comment(job: Any) -> str:
    """Describe a job as the stock executor does, and so that no other of the run has the same."""
    wildcards = get_job_wildcards(job)
    described = f"rule_{job.name}" + (f"_wildcards_{wildcards}" * bool(wildcards))
    return re.sub(r"[^\w.,=+@%/-]", "_", f"{described}_job_{_marker(job)}")


def _step(job: Any) -> str:
    """Name a job so that no other has the name, and that it is the same in every run."""
    unique = job.jobid if job.is_group() else job.uuid()
    return f"snakemake {job.name} {unique} in {Path.cwd()}"


def _cluster(job: Any) -> Any:
    names = (job.resources.get(name) for name in ("cluster", "clusters", "slurm_cluster"))
    return next((name for name in names if name), None)
