"""The executor: jobs with a QPU run under a lease, all other jobs as under the stock executor.

A job with a QPU has no job step and no srun. Its batch script runs one supervisor, which holds the
lease and starts the rule's shell command, or a single Snakemake where the rule needs one.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.config.job import without_leases
from qrmi_workflows.errors import JournalError, SchedulerError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT, run_command
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import JobMark, submit_job
from snakemake_executor_plugin_slurm_qpu.amendments import amend_jobs
from snakemake_executor_plugin_slurm_qpu.batch_script import (
    lease_argv,
    render_batch_script,
)
from snakemake_executor_plugin_slurm_qpu.completion_markers import render_marker_suffix
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.job_log import is_too_long_to_show, read_error
from snakemake_executor_plugin_slurm_qpu.job_names import (
    cluster_of,
    job_comment,
    log_folder_name,
    marker_name,
    step_name,
)
from snakemake_executor_plugin_slurm_qpu.plain_shell import is_plain_shell, render_shell_command
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.quoting import quote_job_args, require_parsable_wildcards
from snakemake_executor_plugin_slurm_qpu.status_checks import MarkerExecutor
from snakemake_executor_plugin_slurm_qpu.telemetry import log_leases

__all__ = ["Executor"]

SBATCH_SECONDS = COMMAND_TIMEOUT
"""How long `sbatch` may take. After that, Slurm may still have accepted the job."""

SEARCH_SECONDS = 30.0
"""How long to search the queue for a job whose submission Slurm did not answer."""

# Whether the Snakemake call being rendered is for a job with a QPU. The methods that render its
# parts (`get_snakefile`, `additional_general_args`) are not told the job, and two threads render
# calls at the same time, so an attribute of the executor would not do.
_RENDERS_QPU_JOB: ContextVar[bool] = ContextVar("_RENDERS_QPU_JOB", default=False)


class Executor(MarkerExecutor):
    """Runs jobs on Slurm, those with `qpu=1` under a lease of their QPU."""

    # The overridden and called methods, some of them private, were read in snakemake 9.27.1,
    # snakemake-executor-plugin-slurm 2.8.0 (the stock executor) and
    # snakemake-interface-executor-plugins 9.4.0 (the interface).
    # tests/unit/snakemake_ext/test_snakemake_stock_executor.py fails if a signature has changed.

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), which starts the thread that checks jobs (see MarkerExecutor).
        self._requests = QPURequests()
        self._is_cancelled = False
        self._had_unanswered_submission = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuse requests that cannot be met, before any job of the workflow runs."""
        _drop_own_leases()
        amend_jobs()
        super().__post_init__(test_mode)
        self._requests.check_workflow(self.workflow.dag)

    # Submission

    def run_jobs(self, jobs: Sequence[Any]) -> None:
        """Submit jobs that are ready, those with a QPU one by one and never as a job array."""
        # The stock executor calls `run_job` in a thread pool and ignores the future: an exception
        # raised there is lost, and Snakemake waits for the job forever. Here, in the thread of
        # Snakemake's scheduler, a bad request ends the workflow with its message.
        requests = {job: self._requests.request_of(job) for job in jobs}
        with_qpu = [job for job, request in requests.items() if request is not None]
        for job in with_qpu:
            if not self._is_plain_shell(job):
                require_parsable_wildcards(job)
        # A job array passes the commands of its tasks in an option of the job step executor
        # (`--slurm-jobstep-array-execs`). Jobs with a QPU do not use that executor, so each task
        # would run the first one's command.
        super().run_jobs([job for job, request in requests.items() if request is None])
        for job in with_qpu:
            if self._prepare(job):
                self._submit_job(job)

    def _prepare(self, job: Any) -> bool:
        """Prepare a plain shell job as a Snakemake inside the job would."""
        # `Job.prepare` removes old outputs and creates folders. Otherwise the local executor of the
        # Snakemake inside the job calls it, right before the command.
        if not self._is_plain_shell(job):
            return True
        try:
            self.workflow.async_run(job.prepare())
        except Exception as error:
            # Only this job fails, as it would have inside the job. The space separates the message
            # from the sentence that the interface appends to it (`print_job_error`).
            self.report_job_error(SubmittedJobInfo(job), msg=f"{error} ")
            return False
        return True

    def _is_plain_shell(self, job: Any) -> bool:
        return not self.workflow.executor_settings.nested and is_plain_shell(job, self.workflow)

    def run_job(self, job: Any) -> None:
        """Submit one job, in a thread of the pool; an error fails this job only."""
        try:
            request = self._requests.request_of(job)
            if request is None:
                super().run_job(job)
            elif not self._is_cancelled:
                self._submit_with_qpu(job, request)
        except Exception as error:
            self._had_unanswered_submission |= isinstance(error, SchedulerError) and error.retryable
            # The stock executor's handler reads `job.rule.name`, which a group does not have. So an
            # AttributeError may hide the error that was being handled.
            cause = error.__context__ if isinstance(error, AttributeError) else error
            self._report_job_error_threadsafe(
                SubmittedJobInfo(job), f"Job submission failed: {cause or error}. "
            )

    def _submit_with_qpu(self, job: Any, request: QPURequest) -> None:
        log_file = self._log_file(job)
        submitted = datetime.now(UTC)
        cluster = cluster_of(job)
        command = lease_argv(
            shlex.split(self.get_python_executable()),
            request.qpu,
            step_name(job),
            self._job_command(job),
            submitted=submitted.timestamp(),
            kill_wait=None if cluster else self._kill_wait,  # another cluster has its own KillWait
            lanes=self._requests.lanes(request),
        )
        comment = job_comment(job)
        job_id = submit_job(
            Slurm(clusters=cluster),
            self._sbatch_argv(job, request, log_file, comment),
            JobMark(name=self.run_uuid, comment=comment),
            stdin=render_batch_script(command, self._markers.folder),
            timeout=SBATCH_SECONDS,
            search_seconds=SEARCH_SECONDS,
        )
        log_file = log_file.with_name(f"{job_id}.log")
        self.logger.info(
            f"Job {job.jobid} has been submitted with SLURM jobid {job_id}, for QPU "
            f"{request.qpu} (log: {log_file})."
        )
        if cluster:
            self._submitted_job_clusters.add(cluster)  # adds --clusters=all to the stock scancel
        self._report_job_submission_threadsafe(
            SubmittedJobInfo(
                job,
                external_jobid=job_id,
                aux={"slurm_logfile": log_file, "submitted": submitted},
            )
        )

    def _log_file(self, job: Any) -> Path:
        # In the same place as the stock executor (`run_job`), except for characters special to
        # sbatch.
        kind = "group" if job.is_group() else "rule"
        folder = self.slurm_logdir / f"{kind}_{job.name}" / log_folder_name(job)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(folder / "%j.log")

    def _sbatch_argv(
        self, job: Any, request: QPURequest, log_file: Path, comment: str
    ) -> list[str]:
        """Build the stock executor's sbatch call as an argument list, with the QPU's options."""
        # The stock executor runs a string in a shell, in which it escapes nothing but double quotes
        # (https://github.com/snakemake/snakemake-executor-plugin-slurm/issues/29). Split into
        # arguments, the call needs no shell.
        settings = self.workflow.executor_settings
        validate_slurm_extra(job)
        # A rule's own partition takes precedence over the site's, and that over a guessed one.
        has_partition = bool(job.resources.get("slurm_partition"))
        options = self._requests.sbatch_options(request, partition=not has_partition)
        site_sets_partition = any(option.startswith("--partition=") for option in options)
        call = get_submit_command(
            job,
            {
                "run_uuid": self.run_uuid,
                "slurm_logfile": log_file,
                "comment_str": comment,
                "account": "" if settings.no_account else next(self.get_account_arg(job)),
                "partition": "" if site_sets_partition else self.get_partition_arg(job),
                "workdir": self.workflow.workdir_init,
            },
            settings=settings,
            failed_nodes=self._failed_nodes,
        )
        # By default Slurm requeues jobs (JobRequeue, slurm.conf(5)). That may spend QPU time again.
        requeue = [] if settings.requeue or settings.no_requeue else ["--no-requeue"]
        after = self._after_orphans(job)
        return [*shlex.split(call + set_gres_string(job)), *requeue, *after, *options]

    def _after_orphans(self, job: Any) -> list[str]:
        """Make a job wait for the jobs of a killed Snakemake that still run for its outputs."""
        # By then their tasks are in the journal. Snakemake keeps the ids of submitted jobs with its
        # marks of incomplete outputs (`PersistenceBase.external_jobids`).
        external_jobids = self.workflow.persistence.external_jobids
        orphans = sorted({job_id for member in jobs_in(job) for job_id in external_jobids(member)})
        return [f"--dependency=afterany:{':'.join(orphans)}"] if orphans else []

    def _job_command(self, job: Any) -> list[str]:
        is_plain = self._is_plain_shell(job)
        text = render_shell_command(job) if is_plain else self.format_job_exec(job)
        return ["/bin/bash", "-c", text]

    # The Snakemake call inside a job

    def format_job_exec(self, job: Any) -> str:
        """Render the Snakemake call inside a job."""
        token = _RENDERS_QPU_JOB.set(self._requests.request_of(job) is not None)
        try:
            return str(super().format_job_exec(job))
        finally:
            _RENDERS_QPU_JOB.reset(token)

    def get_job_args(self, job: Any, **kwargs: Any) -> str:
        """Render the job's own arguments of that call."""
        arguments = str(super().get_job_args(job, **kwargs))
        return quote_job_args(arguments, job, self.tmpdir) if _RENDERS_QPU_JOB.get() else arguments

    def get_snakefile(self) -> str:
        """Return the Snakefile's path, quoted for a shell where it needs to be."""
        # The interface quotes it with `repr` (see `quoting`), but leaves a string alone that is
        # already quoted (`format_cli_value`).
        path = str(super().get_snakefile())
        return shlex.quote(path) if _RENDERS_QPU_JOB.get() else path

    def additional_general_args(self) -> str:
        """Return the options that select the job step executor; none for a job with a QPU."""
        # The job step executor runs a second Snakemake under srun, and removes most SLURM_*
        # variables from its environment, among them `SLURM_JOB_QPU_RESOURCES`
        # (`run_job` of snakemake-executor-plugin-slurm-jobstep 0.6.1).
        return "" if _RENDERS_QPU_JOB.get() else str(super().additional_general_args())

    def get_job_exec_suffix(self, job: Any) -> str:
        """Append the marker of a job without a QPU, if the user wants one."""
        if _RENDERS_QPU_JOB.get() or not self._leaves_marker(job):
            return ""
        return render_marker_suffix(self._markers.folder / marker_name(job))

    def _leaves_marker(self, job: Any) -> bool:
        # Not a job of an array: the stock executor appends options to the end of its command.
        in_array = not job.is_group() and self.array_jobs & {"all", job.rule.name}
        return self.marks_all and not in_array

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        """Report a job that Slurm has accepted, and look for its marker from now on."""
        has_qpu = self._requests.request_of(job_info.job) is not None
        if has_qpu or self._leaves_marker(job_info.job):
            marker = None if has_qpu else marker_name(job_info.job)
            self._markers.expect(job_info.external_jobid, marker)
        super().report_job_submission(job_info, register_job=register_job)

    # Completion

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """Report a job that has ended as COMPLETED, and the usage of its leases."""
        self._log_leases(job_info)
        super().report_job_success(job_info)

    def report_job_error(
        self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any
    ) -> None:
        """Report a job that has failed, with the error from its log and the usage of its leases."""
        self._log_leases(job_info)
        log = (job_info.aux or {}).get("slurm_logfile")
        if log is not None:
            is_own = self._runs_shell_itself(job_info.job)
            if error := read_error(log, has_snakemake=not is_own):
                msg = f"{msg or ''}Its log ends with:\n{error}\n"
        if is_too_long_to_show(log):
            # `--show-failed-logs` of Snakemake reads whole logs into memory (`logging.show_logs`).
            kwargs.pop("aux_logs", None)
            msg = f"{msg or ''}The whole log, which is long: {log} "
        if job_info.job.is_group():
            # `GroupJob.log_error` of snakemake 9.27.1 accepts the message but does not show it.
            self.logger.error(f"Group {job_info.job.groupid}: {msg}")
        super().report_job_error(job_info, msg=msg, **kwargs)

    def _runs_shell_itself(self, job: Any) -> bool:
        return self._requests.request_of(job) is not None and self._is_plain_shell(job)

    def handle_job_success(self, job: Any) -> None:
        """Archive the step of a job whose outputs Snakemake has found."""
        # Not earlier: if outputs are missing, a retry must find the tasks that have been paid for.
        # From now on, running the job again means new tasks.
        super().handle_job_success(job)
        if self._requests.request_of(job) is not None:
            try:
                Journal().archive(step_name(job))
            except JournalError as error:
                self.logger.warning(
                    f"{error} If the job is run again, it will reuse its present results."
                )

    def _log_leases(self, job_info: SubmittedJobInfo) -> None:
        submitted = (job_info.aux or {}).get("submitted")
        if job_info.external_jobid is not None and submitted is not None:
            log_leases(self.logger, job_info.job.name, job_info.external_jobid, submitted)

    # The end of the run

    def cancel(self) -> None:
        """Cancel all jobs of this run, and drop those that are not yet submitted."""
        # The interface's `cancel` reads `active_jobs` once. A submission in progress would add its
        # job after that, so wait for it first.
        self._is_cancelled = True
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run by their common name, then those listed."""
        # `active_jobs` is empty while the interface's `_wait_for_jobs` checks the jobs, and lacks
        # those whose submission Slurm did not answer. Each of them would hold a QPU that nobody
        # uses.
        self._cancel_by_name()
        super().cancel_jobs(active_jobs)

    def shutdown(self) -> None:
        """End the run; cancel jobs that Slurm may have accepted without an answer."""
        super().shutdown()
        if self._had_unanswered_submission:
            self._cancel_by_name()

    def _cancel_by_name(self) -> None:
        # The stock executor names every job of a run after the run (`run_uuid`).
        with suppress(SchedulerError):
            run_command(["scancel", f"--name={self.run_uuid}"])


def _drop_own_leases() -> None:
    """Remove the leases of the job that Snakemake itself runs in from the environment.

    Every job, with a QPU or not, inherits this environment (`sbatch --export=ALL`), and Slurm
    stores it on disk: a job would adopt another job's lease, and Slurm would store that lease's
    token.
    """
    kept = without_leases()
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
