"""The executor: jobs with a QPU run under a lease, all other jobs as under the stock executor.

A job with a QPU has no job step and no srun. Its batch script runs one supervisor, which holds the
lease and starts the rule's shell command, or a single Snakemake where the rule needs one.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from qrmi_workflows.config.job import drop_leases
from qrmi_workflows.config.variables import QPU_ON_STOP
from qrmi_workflows.errors import JournalError, LeaseError, SchedulerError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.schedulers.command import COMMAND_TIMEOUT, run_command
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import JobMark, submit_job
from snakemake_executor_plugin_slurm_qpu.amendments import amend_jobs, keep_outputs
from snakemake_executor_plugin_slurm_qpu.batch_script import lease_argv, render_batch_script
from snakemake_executor_plugin_slurm_qpu.dag import jobs_in
from snakemake_executor_plugin_slurm_qpu.efficiency import QPUUse, write_report
from snakemake_executor_plugin_slurm_qpu.emulated_outputs import refuse_emulated_outputs
from snakemake_executor_plugin_slurm_qpu.job_log import is_too_long_to_show, read_error
from snakemake_executor_plugin_slurm_qpu.job_names import (
    cluster_of,
    job_comment,
    log_folder,
    log_folder_name,
    log_root,
    marker_name,
    output_pattern,
    step_name,
)
from snakemake_executor_plugin_slurm_qpu.orphans import Orphans
from snakemake_executor_plugin_slurm_qpu.quoting import require_parsable_wildcards
from snakemake_executor_plugin_slurm_qpu.slurm_offers import JobRequest
from snakemake_executor_plugin_slurm_qpu.telemetry import WORKFLOW_RECORDS, log_leases
from snakemake_executor_plugin_slurm_qpu.waiting_jobs import WaitingExecutor

__all__ = ["Executor"]

SBATCH_SECONDS = COMMAND_TIMEOUT
"""How long `sbatch` may take. After that, Slurm may still have accepted the job."""

SEARCH_SECONDS = 30.0
"""How long to search the queue for a job whose submission Slurm did not answer."""


class Executor(WaitingExecutor):
    """Runs jobs on Slurm, those with `qpu=1` under a lease of their QPU."""

    # The overridden and called methods, some of them private, were read in snakemake 9.27.1,
    # snakemake-executor-plugin-slurm 2.8.0 (the stock executor) and
    # snakemake-interface-executor-plugins 9.4.0 (the interface).
    # tests/unit/snakemake_ext/test_snakemake_stock_executor.py fails if a signature has changed.

    slurm_logdir: Path

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), which starts the thread that checks jobs (see MarkerExecutor).
        self._orphans = Orphans(WORKFLOW_RECORDS.parent)
        self._qpu_use = QPUUse()
        self._orphans_of: dict[Any, list[str]] = {}
        self._had_unanswered_submission = False
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        """Refuse requests that cannot be met, before any job of the workflow runs."""
        # Those of the job that Snakemake itself runs in, if it does: every job, with a QPU or not,
        # inherits this environment (`sbatch --export=ALL`), and Slurm stores it on disk.
        drop_leases()
        amend_jobs()
        super().__post_init__(test_mode)
        self.slurm_logdir = log_root(self.slurm_logdir, self.workflow.workdir_init)
        self._requests.check_workflow(self.workflow.dag)
        refuse_emulated_outputs(self.workflow.dag, self.logger)
        self._stage_requests.check_workflow(self.workflow.dag)

    # Submission

    def run_jobs(self, jobs: Sequence[Any]) -> None:
        """Submit jobs that are ready; those with a QPU or in a stage never as a job array."""
        # In the thread of Snakemake's scheduler, where an exception would end the workflow and
        # cancel all its jobs. A request may turn out bad as late as this, and fails its job only.
        one_by_one: list[Any] = []
        others: list[Any] = []
        for job in jobs:
            try:
                is_own = self._check_request(job)
                is_own |= self._stage_plan(job) is not None
                (one_by_one if is_own else others).append(job)
            except LeaseError as error:
                self.run_job_pre(job)
                self._wait_for_qpu(job, error)
            except Exception as error:
                self._fail_submission(job, error)
        # A job array passes the commands of its tasks in an option of the job step executor
        # (`--slurm-jobstep-array-execs`). Jobs with a QPU do not use that executor, so each task
        # would run the first one's command.
        super().run_jobs(others)
        for job in one_by_one:
            self._submit_job(job)

    def _check_request(self, job: Any) -> bool:
        """Check a job's request for a QPU; return whether it has one."""
        has_qpu = self._requests.wish_of(job) is not None
        if has_qpu and not self._is_plain_shell(job):
            require_parsable_wildcards(job)
        return has_qpu

    def _submit_job(self, job: Any) -> None:
        """Show a job and submit it, with a QPU or without."""
        try:
            super()._submit_job(job)
        except Exception as error:
            self._fail_submission(job, error)

    def run_job(self, job: Any) -> None:
        """Submit one job, in a thread of the pool; an error fails this job only."""
        # The stock executor ignores the future of this call: an exception that left it would be
        # lost, and Snakemake would wait for the job forever.
        try:
            stage = self._stage_requests.stage_of(job)
            if self._is_cancelled and self._requests.uses_qpu(job):
                return
            request = self._requests.request_of(job, stage=stage)
            for choice in self._requests.choices.of_attempt(job):
                self.logger.info(f"Job {job.jobid}: {choice}.")
            self._enter_stage(job, lambda: self._orphans_to_await(job))
            if request is None:
                super().run_job(job)
            else:
                self._submit_with_qpu(job, request)
        except LeaseError as error:
            self._wait_for_qpu(job, error)
        except Exception as error:
            self._had_unanswered_submission |= isinstance(error, SchedulerError) and error.retryable
            # The stock executor's handler reads `job.rule.name`, which a group does not have. So an
            # AttributeError may hide the error that was being handled.
            cause = error.__context__ if isinstance(error, AttributeError) else error
            self._fail_submission(job, cause or error)

    def _fail_submission(self, job: Any, error: BaseException) -> None:
        """Report a job that could not be submitted as failed."""
        try:
            self._report_job_error_threadsafe(
                SubmittedJobInfo(job), f"Job submission failed: {error} "
            )
        except Exception as in_report:
            # Snakemake's report evaluates the rule again, which may be what has failed.
            self.logger.warning(f"Job {job.jobid}: submission failed: {error} ({in_report})")
            self.workflow.scheduler.error_callback(job)

    def handle_job_error(self, job: Any) -> None:
        """Clean up after a failed job, but leave the marks of one whose orphans still run."""
        # Snakemake has removed the marks of incomplete outputs. Without them, a later run would
        # take what an orphan writes from now on for complete.
        super().handle_job_error(job)
        self._forget_files(job)
        keep_outputs(job, False)
        if orphans := self._orphans_of.pop(job, []):
            job.register(external_jobid=orphans[-1])

    def _submit_with_qpu(self, job: Any, request: JobRequest) -> None:
        # A name without characters that are special to sbatch, and not too long.
        logs = log_folder(self.slurm_logdir, job, log_folder_name(job))
        logs.mkdir(parents=True, exist_ok=True)
        submitted = datetime.now(UTC)
        cluster = cluster_of(job)
        entered = self._stage_jobs.get(job)
        comment = job_comment(job) if entered is None else entered.comment
        argv = self._sbatch_argv(job, request, logs, comment)
        script = self._batch_script(job, request, submitted)
        self.logger.debug(f"sbatch call: {shlex.join(argv)}\nsbatch script:\n{script}")
        job_id = submit_job(
            Slurm(clusters=cluster),
            argv,
            JobMark(name=self.run_uuid, comment=comment),
            stdin=script,
            timeout=SBATCH_SECONDS,
            search_seconds=SEARCH_SECONDS,
        )
        log_file = logs / f"{job_id}.log"
        self.logger.info(
            f"Job {job.jobid} has been submitted with SLURM jobid {job_id}, for QPU "
            f"{'+'.join(each.qpu for each in request)} (log: {log_file})."
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

    def _batch_script(self, job: Any, request: JobRequest, submitted: datetime) -> str:
        entered = self._stage_jobs.get(job)
        prepare, command = self._job_commands(job)
        leased = lease_argv(
            shlex.split(self.get_python_executable()),
            [each.qpu for each in request],
            step_name(job),
            command,
            submitted=submitted.timestamp(),
            # Another cluster has a KillWait of its own.
            kill_wait=None if cluster_of(job) else self._kill_wait,
            lanes=self._requests.lanes(request),
            alive=self._alive_file() if _leaves_tasks(job) else None,
            stage=None if entered is None else entered.stage.name,
            coalesce=any(member.resources.get("qpu_coalesce") for member in jobs_in(job)),
            fallback=self._requests.fallbacks.options(
                job,
                self._markers.folder,
                own=[each.qpu for each in request],
                is_in_stage=entered is not None,
            ),
            variables=self._requests.choices.variables(job),
        )
        return render_batch_script([*prepare, *leased], self._markers.folder)

    def _alive_file(self) -> Path:
        """Return the file that exists until the run is cancelled."""
        file = self._markers.folder / "alive"
        file.touch()
        return file

    def _sbatch_argv(self, job: Any, request: JobRequest, logs: Path, comment: str) -> list[str]:
        """Build the stock executor's sbatch call as an argument list, with the QPU's options."""
        # The stock executor runs a string in a shell, in which it escapes nothing but double quotes
        # (https://github.com/snakemake/snakemake-executor-plugin-slurm/issues/29). Split into
        # arguments, the call needs no shell.
        settings = self.workflow.executor_settings
        validate_slurm_extra(job)
        entered = self._stage_jobs.get(job)
        # A rule's own partition takes precedence over the site's, and that over a guessed one.
        options = self._requests.sbatch_options(job, request, units=entered is None)
        site_sets_partition = any(option.startswith("--partition=") for option in options)
        call = get_submit_command(
            job,
            {
                "run_uuid": self.run_uuid,
                "slurm_logfile": output_pattern(logs),
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
        after = self._after_orphans(job) if entered is None else entered.options
        return [*shlex.split(call + set_gres_string(job)), *requeue, *after, *options]

    def get_partition_arg(self, job: Any) -> str:
        """Return the options for a partition, and for the log of a job without a QPU."""
        # The stock executor puts them after its own `--output`, in which it leaves `%` as it is.
        # Of a repeated option, sbatch uses the last one.
        partition = str(super().get_partition_arg(job))
        logs = log_folder(self.slurm_logdir.absolute(), job, get_job_wildcards(job))
        if "%" not in str(logs) or self._requests.uses_qpu(job) or self._is_in_array(job):
            return partition
        return f"{partition} --output {shlex.quote(output_pattern(logs))}"

    def _after_orphans(self, job: Any) -> list[str]:
        orphans = self._orphans_to_await(job)
        return [f"--dependency=afterany:{':'.join(orphans)}"] if orphans else []

    def _orphans_to_await(self, job: Any) -> list[str]:
        """Return the jobs of a killed Snakemake that still run for the outputs of a job."""
        self._orphans.remember(self._markers.folder, self.run_uuid)
        orphans = self._find_orphans(job)
        self._orphans.cancel_waiting(orphans)
        return orphans

    def _find_orphans(self, job: Any, *, again: bool = False) -> list[str]:
        found = self._orphans_of[job] = self._orphans.of_job(
            job,
            self.workflow.persistence,
            unanswered=self.run_uuid if self._had_unanswered_submission else None,
            again=again,
        )
        return found

    def _spare_orphans(self, job_info: SubmittedJobInfo) -> None:
        """Keep the outputs of a job that has failed while an orphan still writes them."""
        job, own = job_info.job, job_info.external_jobid
        if self._orphans_of.get(job) or own is None:
            with suppress(Exception):  # what is known already is the best answer
                self._find_orphans(job, again=True)
            self._orphans_of[job] = [i for i in self._orphans_of.get(job, []) if i != own]
        keep_outputs(job, bool(self._orphans_of.get(job)))

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        """Report a job that Slurm has accepted, and look for its marker from now on."""
        has_qpu = self._requests.uses_qpu(job_info.job)
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
        """Report a job that has failed, with the error from its log and the usage of its leases.

        If it has failed because it needs another QPU, submit it again instead.
        """
        if self._goes_on(job_info):
            return
        self._spare_orphans(job_info)
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

    def _goes_on(self, job_info: SubmittedJobInfo) -> bool:
        """Submit a job again that goes on with another QPU; return whether it does."""
        job = job_info.job
        moved = self._requests.fallbacks.take(job)
        if moved is None or self._is_cancelled:
            return False
        self._stop_checking(job_info)
        self._log_leases(job_info)
        self.logger.warning(
            f"Job {job.jobid}: QPU {moved.left[-1]} has gone ({moved.reason.removesuffix('.')}). "
            f"It is submitted again, for QPU {moved.qpu}; this does not count as a retry."
        )
        self._submit_job(job)
        return True

    def _runs_shell_itself(self, job: Any) -> bool:
        return self._requests.uses_qpu(job) and self._is_plain_shell(job)

    def handle_job_success(self, job: Any) -> None:
        """Archive the step of a job whose outputs Snakemake has found."""
        # Not earlier: if outputs are missing, a retry must find the tasks that have been paid for.
        # From now on, running the job again means new tasks.
        super().handle_job_success(job)
        self._requests.fallbacks.forget(job)
        self._forget_files(job)
        self._orphans_of.pop(job, None)
        if self._requests.uses_qpu(job):
            try:
                Journal().archive(step_name(job))
            except JournalError as error:
                self.logger.warning(
                    f"{error} If the job is run again, it will reuse its present results."
                )

    def _log_leases(self, job_info: SubmittedJobInfo) -> None:
        submitted = (job_info.aux or {}).get("submitted")
        if job_info.external_jobid is not None and submitted is not None:
            rule, job_id = job_info.job.name, job_info.external_jobid
            self._qpu_use.add(rule, job_id, log_leases(self.logger, rule, job_id, submitted))

    # The end of the run

    def cancel(self) -> None:
        """Cancel all jobs of this run, and drop those that are not yet submitted."""
        # The interface's `cancel` reads `active_jobs` once. A submission in progress would add its
        # job after that, so wait for it first.
        self._is_cancelled = True
        self._waiting.stop()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs of this run by their common name, then those listed."""
        # `active_jobs` is empty while the interface's `_wait_for_jobs` checks the jobs, and lacks
        # those whose submission Slurm did not answer. Each of them would hold a QPU that nobody
        # uses.
        with suppress(OSError):
            self._alive_file().unlink()
        self._cancel_by_name()
        super().cancel_jobs(active_jobs)

    def shutdown(self) -> None:
        """End the run, and report on its QPUs; cancel jobs of whose submission nothing is known."""
        super().shutdown()
        settings = self.workflow.executor_settings
        if settings.efficiency_report:
            folder = Path(settings.efficiency_report_path or Path.cwd())
            write_report(self._qpu_use, run=self.run_uuid, folder=folder, logger=self.logger)
        if self._had_unanswered_submission:
            self._cancel_by_name()

    def _cancel_by_name(self) -> None:
        # The stock executor names every job of a run after the run (`run_uuid`).
        with suppress(SchedulerError):
            run_command(["scancel", f"--name={self.run_uuid}"])


def _leaves_tasks(job: Any) -> bool:
    """Return whether a stopped job leaves its tasks: the user does not say, and it is retried."""
    # As `JobScheduler._handle_error` of snakemake 9.27.1 decides it.
    is_retried = job.restart_times > job.attempt - 1
    return bool(is_retried) and QPU_ON_STOP not in os.environ
