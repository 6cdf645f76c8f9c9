"""Run a rule's shell command in its job without a Snakemake around it.

A Snakemake inside the job takes seconds to start, and a QPU task may take 50 ms. For a plain
`shell:` rule, the submitting Snakemake does most of its work anyway: it checks the outputs, keeps
the metadata and cleans up after a failure. It also renders the command as Snakemake's own `shell`
would run it. The rest must be done in the job, when it starts: see `job_start`.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.settings import SharedFSUsage

from snakemake_executor_plugin_slurm_qpu.qpu_requests import TO_BE_DETERMINED

__all__ = ["describe_job", "is_plain_shell", "plain_qpu_run", "render_shell_command"]

# The variables that snakemake 9.27.1 sets to a rule's threads (`snakemake.shell.shell.__new__`).
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_BASH_PREFIX = "set -euo pipefail;"
"""What Snakemake writes before every command for bash; without effect on a single command."""

# Words without quotes, and in single quotes, as Snakemake writes `{input:q}` and `{output:q}`. No
# repetition is inside another one, which would take exponential time where nothing matches.
_PLAIN_WORDS = re.compile(r"(?:[\w@%+=:,./ -]|'[^'\n]*')+", re.ASCII)

_SYSTEM_TMPDIR = "system_tmpdir"
"""Snakemake's default for the resource `tmpdir`: Python's `tempfile.gettempdir()` on the node."""


def is_plain_shell(job: Any, workflow: Any) -> bool:
    """Return whether a job is a shell command that needs no Snakemake inside the job."""
    return (
        not job.is_group()
        and job.is_shell
        and _is_plain_workflow(workflow)
        and _is_plain_rule(job)
        # A value such as `{resources.tmpdir}` is known only on the node that runs the job.
        and TO_BE_DETERMINED not in job.shellcmd
    )


def render_shell_command(job: Any) -> tuple[str, str]:
    """Return a shell, and the command that it has to run, as Snakemake's `shell` does."""
    # Imported here, because Snakemake imports every plugin at start-up: if a later version moved
    # this, no `snakemake` command would work any more.
    from snakemake.shell import shell

    # `_get_process_prefix` and `_process_suffix` (private, read in snakemake 9.27.1) hold
    # `set -euo pipefail`, or what the Snakefile has set with `shell.prefix()` and `shell.suffix()`.
    executable = shell.get_executable()
    parts = (shell._get_process_prefix(executable), job.shellcmd, shell._process_suffix)
    return executable, " ".join(parts).strip()


def plain_qpu_run(shell: str, command: str) -> list[str] | None:
    """Return the arguments of a command that is one `qpu run`, without anything for a shell to do.

    The lease's supervisor runs such a command itself. A shell would start another interpreter,
    while the QPU is held.

    Args:
        shell: The shell, as `render_shell_command` returns it.
        command: The command, likewise.

    Returns:
        The arguments; `None` if the command needs its shell.
    """
    words = command.removeprefix(_BASH_PREFIX).strip()
    is_plain = Path(shell).name == "bash" and _PLAIN_WORDS.fullmatch(words)
    argv = shlex.split(words) if is_plain else []
    return argv if argv[:2] == ["qpu", "run"] else None


def describe_job(job: Any, latency_wait: float) -> dict[str, Any]:
    """Describe a plain shell job for `job_start`, in values that JSON knows.

    Args:
        job: The job.
        latency_wait: How many seconds to wait for input files.
    """
    tmpdir = _tmpdir_of(job)
    return {
        "rule": job.rule.name,
        "folder": str(Path.cwd()),
        "inputs": list(map(str, job.input)),
        "outputs": list(map(str, job.output)),
        "directories": [str(file) for file in job.output if file.is_directory],
        "logs": list(map(str, job.log)),
        "latency_wait": latency_wait,
        "tmpdir": tmpdir,
        "uses_system_tmpdir": tmpdir == _SYSTEM_TMPDIR,
        "variables": dict.fromkeys(_THREAD_VARIABLES, str(job.threads)),
    }


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
    from snakemake.io import is_flagged  # here, as in `render_shell_command`

    files = [*job.input, *job.output, *job.log]
    return not (
        job.is_shadow
        or job.benchmark
        or job.is_pipe
        or job.is_service
        or "shell_exec" in job.resources.keys()  # noqa: SIM118 - a ResourceList is not a mapping
        or any(file.is_storage for file in files)
        or any(is_flagged(file, "update") for file in job.output)  # Snakemake backs them up
        or _tmpdir_of(job) == TO_BE_DETERMINED
    )


def _tmpdir_of(job: Any) -> str | None:
    """Return a job's resource `tmpdir`, as far as it is known before the job runs."""
    resource = job.rule.resources.get("tmpdir")
    if resource is None:
        return None
    if not resource.is_evaluable():
        return None if resource.value is None else str(resource.value)
    return _known_text(str(resource.raw)) or TO_BE_DETERMINED


def _known_text(expression: str) -> str | None:
    # The value of an option or a profile. Snakemake replaces variables and evaluates the rest as
    # Python (`Resource.cli_evaluator` in 9.27.1); a path is not Python, and is taken as it is.
    if "$" in expression or expression.startswith("~"):
        return None
    if expression == _SYSTEM_TMPDIR or expression.startswith("/"):
        return expression
    try:
        value = ast.literal_eval(expression)
    except (SyntaxError, ValueError):
        return None
    return value if isinstance(value, str) and value.startswith("/") else None
