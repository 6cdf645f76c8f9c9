"""The job script of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["render_job_script"]


def render_job_script(
    path: Path,
    command: str,
    *,
    directive: Callable[[str], str],
    options: Iterable[str],
    scheduler_options: str = "",
    worker_init: str = "",
    cores: int | None = None,
    memory_gb: int | None = None,
) -> str:
    """Render the script that runs a block's command.

    Args:
        path: The script's path; its name is also the job's name.
        command: The block's command, as its launcher wraps it.
        directive: Renders an option as a line of the script, as the scheduler wants it.
        options: The scheduler's options.
        scheduler_options: Lines with the user's own directives.
        worker_init: Commands to run before the block's command.
        cores: Cores that a worker pool may use; all that the node has if `None`.
        memory_gb: Memory in GB that a worker pool may use; all that the node has if `None`.
    """
    # Last, so that `scheduler_options` cannot override them: a block is found by its name.
    names = [f"--job-name={path.name}", f"--output={path}.stdout", f"--error={path}.stderr"]
    # Parsl's process_worker_pool.py reads these two (2026.10.26).
    limits = {"PARSL_CORES": cores, "PARSL_MEMORY_GB": memory_gb}
    lines = [
        "#!/bin/bash",
        *map(directive, options),
        scheduler_options,
        *map(directive, names),
        *(f"export {name}={value}" for name, value in limits.items() if value is not None),
        f'export JOBNAME="{path.name}"',  # Parsl's launchers name a block's command files by it
        worker_init,
        command,
    ]
    return "\n".join(lines) + "\n"
