"""The job script of a block."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from qrmi_workflows.schedulers.base import Scheduler

__all__ = ["render_job_script"]


def render_job_script(
    path: Path,
    command: str,
    *,
    scheduler: Scheduler,
    options: Iterable[str],
    scheduler_options: str = "",
    stage_options: Iterable[str] = (),
    worker_init: str = "",
    variables: Mapping[str, str] | None = None,
    cores: int | None = None,
    memory_gb: int | None = None,
) -> str:
    """Render the script that runs a block's command.

    Args:
        path: The script's path; its name is also the job's name.
        command: The block's command, as its launcher wraps it.
        scheduler: The scheduler's hooks.
        options: The scheduler's options.
        scheduler_options: Lines with the user's own directives.
        stage_options: The scheduler's options of a block that belongs to a stage.
        worker_init: Commands to run before the block's command.
        variables: Variables for the block.
        cores: Cores that a worker pool may use; all cores of the node if `None`.
        memory_gb: Memory in GB that a worker pool may use; all memory of the node if `None`.
    """
    # Last, so that `scheduler_options` cannot override them: a block is found by its name, and by
    # the name of its stage.
    stdout, stderr = Path(f"{path}.stdout"), Path(f"{path}.stderr")
    names = scheduler.name_options(path.name, stdout=stdout, stderr=stderr)
    # Parsl's process_worker_pool.py reads these two (2026.10.26).
    limits = {"PARSL_CORES": cores, "PARSL_MEMORY_GB": memory_gb}
    lines = [
        "#!/bin/bash",
        *map(scheduler.directive, options),
        scheduler_options,
        *map(scheduler.directive, [*names, *stage_options]),
        *(f"export {name}={value}" for name, value in limits.items() if value is not None),
        *(f"export {name}={shlex.quote(value)}" for name, value in (variables or {}).items()),
        f'export JOBNAME="{path.name}"',  # Parsl's launchers name a block's command files by it
        worker_init,
        command,
    ]
    return "\n".join(lines) + "\n"
