"""The batch script of a job that holds a QPU, and the log that it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from qrmi_workflows.config.variables import QPU_KILL_WAIT, QPU_LANES, QPU_STEP

__all__ = ["lease_command", "read_end", "render_script"]

_END_LINES = 12
_END_BYTES = 4096

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
# bash: dash, Debian's /bin/sh, drops the variables of a QPU whose name has a hyphen.
# rm: a requeued job must not be taken for done.
# trap: the shell must outlive the lease's supervisor. When a batch script ends, Slurm kills what is
# left of its job at once, and the supervisor would have no time to release.


def lease_command(
    python: Sequence[str],
    qpu: str,
    step: str,
    command: Sequence[str],
    *,
    submitted: float,
    kill_wait: float | None,
    lanes: int | None,
) -> list[str]:
    """Render the argv that runs a command under a lease of a QPU.

    Args:
        python: The interpreter.
        qpu: The QPU's name.
        step: The name under which a retry, or a later run, finds the tasks of a failed attempt.
        command: The command and its arguments.
        submitted: When the job is submitted, in seconds since the epoch.
        kill_wait: Slurm's KillWait in seconds; the job asks Slurm if `None`.
        lanes: How many of the QPU's lanes the job holds; as many as the site says when `None`.
    """
    # Not `--step`: this step has ended well when its outputs are checked, not when COMMAND ends.
    head = ["env", f"{QPU_STEP}={step}"]
    if lanes is not None:
        head.append(f"{QPU_LANES}={lanes}")
    if kill_wait is not None:
        head.append(f"{QPU_KILL_WAIT}={kill_wait:g}")
    options = ["--qpu", qpu, f"--submitted={submitted:.1f}"]
    return [*head, *python, "-m", "qrmi_workflows", "lease", "exec", *options, "--", *command]


def render_script(command: Sequence[str], markers: Path) -> str:
    """Render the batch script that runs a command and leaves a marker when it has ended.

    Args:
        command: The argv.
        markers: The folder of the markers; the marker is named after the Slurm job's id and
            holds the exit status.
    """
    return _SCRIPT.format(markers=shlex.quote(str(markers)), command=shlex.join(command))


def read_end(log: Path | None) -> str:
    """Return the last lines of a job's log, indented; nothing when it cannot be read."""
    try:
        data = log.read_bytes()[-_END_BYTES:] if log else b""
    except OSError:
        return ""
    lines = data.decode(errors="replace").splitlines()[-_END_LINES:]
    return "\n".join(f"    {line}" for line in lines)
