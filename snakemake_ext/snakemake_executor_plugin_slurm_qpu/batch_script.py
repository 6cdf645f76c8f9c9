"""The batch script of a job that holds a QPU."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from qrmi_workflows.config.variables import (
    QPU_ALIVE,
    QPU_COALESCE,
    QPU_KILL_WAIT,
    QPU_LANES,
    QPU_ON_STOP,
    QPU_STEP,
)

__all__ = ["lease_argv", "render_batch_script"]

_SCRIPT = """\
#!/bin/bash
marker={markers}/"$SLURM_JOB_ID"
rm -f "$marker"
trap : HUP INT TERM
{command}
status=$?
echo "$status" > "$marker.part" && mv "$marker.part" "$marker"
exit "$status"
"""
# bash, because dash (Debian's /bin/sh) drops environment variables whose names are not valid in a
# shell: those of a QPU with a hyphen in its name would not reach the command.
# rm, because the marker of its first run would make a requeued job look as if it had ended.
# trap, because the shell must outlive the lease's supervisor. Slurm signals both at scancel and at
# the time limit; if the batch script ended then, Slurm would kill the rest of the job at once, and
# the supervisor could not release the lease.
# mv, because the executor must never read half a marker.


def lease_argv(
    python: Sequence[str],
    qpus: Sequence[str],
    step: str,
    command: Sequence[str],
    *,
    submitted: float,
    kill_wait: float | None,
    lanes: int | None,
    alive: Path | None = None,
    stage: str | None = None,
    coalesce: bool = False,
    fallback: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """Build the command line that runs a command under a lease of each QPU.

    Args:
        python: The interpreter.
        qpus: The names of the QPUs.
        step: The step's name, under which a retry or a rerun finds the tasks of a failed attempt.
        command: The command and its arguments.
        submitted: When the job is submitted, in seconds since the epoch.
        kill_wait: Slurm's KillWait in seconds; the job asks Slurm if `None`.
        lanes: How many lanes of each QPU the job holds; taken from the site policy if `None`.
        alive: If Snakemake retries a failed job, a file that exists until the run is cancelled:
            as long as it does, the tasks of a stopped job are left for the next attempt.
        stage: The stage whose lease the job joins; it has one of its own if `None`.
        variables: More variables.
        coalesce: Whether payloads that wait for a lane at the same time share tasks.
        fallback: Options for the QPUs to fall back to.
    """
    # A variable, not `--step`, which archives the step's tasks as soon as COMMAND has succeeded. A
    # Snakemake step has succeeded only once its outputs are found; then the executor archives it.
    more = variables or {}
    head = ["env", f"{QPU_STEP}={step}", *(f"{name}={value}" for name, value in more.items())]
    if lanes is not None:
        head.append(f"{QPU_LANES}={lanes}")
    if kill_wait is not None:
        # Spares each job of a fan-out an `scontrol show config`.
        head.append(f"{QPU_KILL_WAIT}={kill_wait:g}")
    if coalesce:
        head.append(f"{QPU_COALESCE}=1")
    if alive is not None:
        head += [f"{QPU_ON_STOP}=leave", f"{QPU_ALIVE}={alive}"]
    # The last two spare each job of a fan-out its questions to Slurm.
    options = ["--qpu", ",".join(qpus), f"--submitted={submitted:.1f}", "--granted", *fallback]
    if stage is not None:
        options = ["--stage", stage, *options]
    return [*head, *python, "-m", "qrmi_workflows", "lease", "exec", *options, "--", *command]


def render_batch_script(command: Sequence[str], markers: Path) -> str:
    """Render the script that runs a command and leaves a completion marker.

    Args:
        command: The command and its arguments.
        markers: The folder of the markers. The marker is named after the Slurm job's id, and holds
            the command's exit status.
    """
    return _SCRIPT.format(markers=shlex.quote(str(markers)), command=shlex.join(command))
