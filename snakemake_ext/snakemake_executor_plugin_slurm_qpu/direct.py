"""Running a rule's shell command in its job without a Snakemake around it.

A Snakemake inside the job takes seconds to start, and a QPU task may take 50 ms. What it does for
a plain `shell:` rule is little, and the submitting Snakemake does most of it already: it checks
the outputs, keeps the metadata and cleans up after a failure. The rest is here: the directories
are prepared at submission, and the command runs as Snakemake's own `shell` would run it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.settings import SharedFSUsage

from snakemake_executor_plugin_slurm_qpu.requests import NOT_YET_KNOWN

__all__ = ["can_run_directly", "render_command"]

_LONGEST = 100_000
"""Characters: Linux refuses an argument over 128 KiB, and Snakemake has a way around that."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""What `snakemake.shell.shell` sets to a rule's threads."""


def can_run_directly(job: Any, workflow: Any) -> bool:
    """Whether the job's shell command needs nothing that only Snakemake can give it in the job."""
    return (
        not job.is_group()
        and job.is_shell
        and _is_plain_workflow(workflow)
        and _is_plain_rule(job)
        and _is_plain_command(job)
    )


def render_command(job: Any) -> str:
    """Render the text for `bash -c` that runs a job's shell command as Snakemake's shell would."""
    # Not at import: Snakemake imports every plugin, and would not start if it had moved this.
    from snakemake.shell import shell

    executable = shell.get_executable()
    command = f"{shell._get_process_prefix(executable)}{job.shellcmd} {shell._process_suffix}"
    exports = " ".join(f"{name}={job.threads}" for name in _THREAD_VARIABLES)
    inner = shlex.join([executable, "-c", command.strip()])
    return f"cd {shlex.quote(str(Path.cwd()))} && export {exports} && exec {inner}"


def _is_plain_workflow(workflow: Any) -> bool:
    storage, remote = workflow.storage_settings, workflow.remote_execution_settings
    return not (
        workflow.deployment_settings.deployment_method  # conda, containers, modules
        or storage.default_storage_provider
        or SharedFSUsage.all() - frozenset(storage.shared_fs_usage)
        or remote.precommand
        or remote.immediate_submit
        or workflow.workflow_settings.cache
    )


def _is_plain_rule(job: Any) -> bool:
    files = [*job.input, *job.output, *job.log]
    return not (
        job.is_shadow
        or job.benchmark
        or job.is_pipe
        or job.is_service
        or "shell_exec" in job.resources.keys()  # noqa: SIM118 - a ResourceList is no mapping
        or any(file.is_storage for file in files)
    )


def _is_plain_command(job: Any) -> bool:
    """No value in it that is known only in the job (`{resources.tmpdir}`)."""
    command = job.shellcmd
    return len(command) < _LONGEST and NOT_YET_KNOWN not in command
