"""Render the command of a job: a rule's own, or a Snakemake call for the rules that need one.

The stock executor starts two Snakemakes in a job, the second one under `srun`. A job with a QPU
gets one, without `srun`.
"""

from __future__ import annotations

import shlex
from contextvars import ContextVar
from typing import Any

from snakemake_executor_plugin_slurm_qpu.completion_markers import render_marker_suffix
from snakemake_executor_plugin_slurm_qpu.job_files import JobFiles
from snakemake_executor_plugin_slurm_qpu.job_names import marker_name
from snakemake_executor_plugin_slurm_qpu.plain_shell import (
    describe_job,
    is_plain_shell,
    plain_qpu_run,
    render_shell_command,
)
from snakemake_executor_plugin_slurm_qpu.qpu_requests import QPURequests
from snakemake_executor_plugin_slurm_qpu.quoting import quote_job_args
from snakemake_executor_plugin_slurm_qpu.status_checks import MarkerExecutor

__all__ = ["NestingExecutor"]

# Whether the Snakemake call being rendered is for a job with a QPU. The methods that render its
# parts (`get_snakefile`, `additional_general_args`) are not told the job, and two threads render
# calls at the same time, so an attribute of the executor would not do.
_RENDERS_QPU_JOB: ContextVar[bool] = ContextVar("_RENDERS_QPU_JOB", default=False)


class NestingExecutor(MarkerExecutor):
    """The stock Slurm executor, with one Snakemake inside a job that holds a QPU."""

    # The overridden methods were read in snakemake-interface-executor-plugins 9.4.0 (the interface)
    # and snakemake-executor-plugin-slurm 2.8.0 (the stock executor).

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before super(), which starts the thread that checks jobs (see MarkerExecutor).
        self._requests = QPURequests()
        self._files: dict[Any, JobFiles] = {}
        super().__init__(workflow, logger)

    def _is_plain_shell(self, job: Any) -> bool:
        return not self.workflow.executor_settings.nested and is_plain_shell(job, self.workflow)

    def _job_commands(self, job: Any) -> tuple[list[str], list[str]]:
        """Return the head of a job's command line, before it has a lease, and its command."""
        files = self._files[job] = JobFiles(self._markers.folder, marker_name(job))
        if not self._is_plain_shell(job):
            return [], files.shell_argv("/bin/bash", self.format_job_exec(job))
        python = shlex.split(self.get_python_executable())
        described = describe_job(job, self.workflow.execution_settings.latency_wait)
        # sbatch starts the job in `workdir_init`, where Snakemake was started (-D); a Snakefile's
        # `workdir:` has changed the folder since.
        here, folder = str(self.workflow.workdir_init), described["folder"]
        shell, command = render_shell_command(job)
        if folder != here:
            argv = files.shell_argv(shell, command, folder)
        else:
            argv = plain_qpu_run(shell, command) or files.shell_argv(shell, command)
        return files.start_argv(python, described), argv

    def _forget_files(self, job: Any) -> None:
        if files := self._files.pop(job, None):
            files.remove()

    def format_job_exec(self, job: Any) -> str:
        """Render the Snakemake call inside a job."""
        token = _RENDERS_QPU_JOB.set(self._requests.uses_qpu(job))
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
        return self.marks_all and not self._is_in_array(job)

    def _is_in_array(self, job: Any) -> bool:
        return not job.is_group() and bool(self.array_jobs & {"all", job.rule.name})
