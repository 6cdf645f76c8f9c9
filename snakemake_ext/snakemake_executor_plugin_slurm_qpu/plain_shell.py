"""Run a rule's shell command in its job without a Snakemake around it.

A Snakemake inside the job takes seconds to start, and a QPU task may take 50 ms. For a plain
`shell:` rule, the submitting Snakemake does most of its work anyway: it checks the outputs, keeps
the metadata and cleans up after a failure. The rest is done at submission: folders are prepared,
and the command is rendered as Snakemake's own `shell` would run it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.settings import SharedFSUsage

from snakemake_executor_plugin_slurm_qpu.qpu_requests import TO_BE_DETERMINED

__all__ = ["is_plain_shell", "render_shell_command"]

# Linux refuses an argument of more than 128 KiB (execve(2), MAX_ARG_STRLEN). Snakemake can write a
# longer command into a script (`shell.MAX_ARG_LEN` in 9.27.1), so its job gets a Snakemake.
_MAX_CHARACTERS = 100_000

# The variables that snakemake 9.27.1 sets to a rule's threads (`snakemake.shell.shell.__new__`).
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def is_plain_shell(job: Any, workflow: Any) -> bool:
    """Return whether a job is a shell command that needs no Snakemake inside the job."""
    return (
        not job.is_group()
        and job.is_shell
        and _is_plain_workflow(workflow)
        and _is_plain_rule(job)
        and _is_plain_command(job)
    )


def render_shell_command(job: Any) -> str:
    """Render the text for `bash -c` that runs a job's shell command as Snakemake's `shell` does."""
    # Imported here, because Snakemake imports every plugin at start-up: if a later version moved
    # this, no `snakemake` command would work any more.
    from snakemake.shell import shell

    # `_get_process_prefix` and `_process_suffix` (private, read in snakemake 9.27.1) hold
    # `set -euo pipefail`, or what the Snakefile has set with `shell.prefix()` and `shell.suffix()`.
    executable = shell.get_executable()
    command = f"{shell._get_process_prefix(executable)}{job.shellcmd} {shell._process_suffix}"
    exports = " ".join(f"{name}={job.threads}" for name in _THREAD_VARIABLES)
    inner = shlex.join([executable, "-c", command.strip()])
    # sbatch starts the job in `workdir_init`, where Snakemake was started (-D); a Snakefile's
    # `workdir:` has changed the folder since. `exec`, so that signals reach the command itself.
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
    # A value such as `{resources.tmpdir}` is known only on the node that runs the job.
    return len(job.shellcmd) < _MAX_CHARACTERS and TO_BE_DETERMINED not in job.shellcmd
