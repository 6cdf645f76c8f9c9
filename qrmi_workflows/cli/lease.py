"""`qpu lease`: a command under a lease."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import click

from qrmi_workflows.cli.types import CONFIG_OPTION, Group, Seconds
from qrmi_workflows.errors import LeaseError

__all__ = ["lease"]


@click.group(cls=Group)
def lease() -> None:
    """Hold a QPU while a command runs."""


@lease.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--qpu", "qpus", metavar="NAME[,NAME…]", help="The QPU, or several to lease together."
)
@CONFIG_OPTION
@click.option(
    "--grace",
    type=Seconds(),
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL for COMMAND; by default its share of KillWait: "
    "5 s, or less if KillWait is shorter than 30 s.",
)
@click.option(
    "--step",
    metavar="NAME",
    help="The step's name, under which a rerun finds its tasks until COMMAND has exited with 0.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append the lease record to FILE instead of the state folder.",
)
# Hidden, because only the engines' job scripts pass these four.
@click.option(
    "--alive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    hidden=True,
    help="Stop COMMAND if FILE was not touched for 30 s, or is gone: the submitting process has "
    "ended. If that is so from the start, acquire no QPU.",
)
@click.option(
    "--submitted",
    type=float,
    metavar="TIME",
    hidden=True,
    help="When the job was submitted, in seconds since the epoch; else the scheduler is asked.",
)
@click.option(
    "--granted",
    is_flag=True,
    hidden=True,
    help="The job requests these QPUs; do not ask the scheduler whether it holds them.",
)
@click.option(
    "--job-time",
    is_flag=True,
    hidden=True,
    help="Set QPU_JOB_USED and QPU_JOB_LEFT: seconds that the job has run, and has left.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def lease_exec(
    qpus: str | None,
    config: Path | None,
    grace: float | None,
    step: str | None,
    record: Path | None,
    alive: Path | None,
    submitted: float | None,
    granted: bool,
    job_time: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND under the lease of a QPU.

    Adopts the lease that this job already has, or acquires a QPU from qrmi_config.json, and gives
    COMMAND the QPU's environment (QRMI_JOB_QPU_RESOURCES and the rest). Signals are passed on, and
    the lease is always released. The exit code is that of COMMAND; 128+N if signal N ended it; 127
    if it was not found; 1 if the QPU could not be acquired; 2 if the request is invalid.

    \b
    Example:
      qpu lease exec --qpu ibm_fez -- python vqe.py
    """  # noqa: D301 - \b tells click not to rewrap a paragraph
    from qrmi_workflows import LeaseSet, open_lease
    from qrmi_workflows.config.variables import QPU_ATTEMPT, QPU_LEASE_RECORD, QPU_STEP
    from qrmi_workflows.journal.journal import Journal
    from qrmi_workflows.lease.grants import assume_granted
    from qrmi_workflows.lease.supervise import run_supervised

    if shutil.which(command[0]) is None:
        click.echo(
            f"qpu: command {command[0]!r} not found on PATH. Correct its name or PATH.", err=True
        )
        sys.exit(127)
    if alive is not None:
        _require_submitter(alive)
    if record is not None:
        os.environ[QPU_LEASE_RECORD] = str(record.absolute())
    if step is not None:
        os.environ[QPU_STEP] = step
    if step is not None or QPU_ATTEMPT not in os.environ:
        os.environ[QPU_ATTEMPT] = uuid.uuid4().hex[:16]
    names = [name.strip() for name in qpus.split(",")] if qpus and "," in qpus else qpus
    started = time.time()
    if granted:
        assume_granted([names] if isinstance(names, str) else names or [])
    leases = open_lease(names, config=config)
    for each in leases.values() if isinstance(leases, LeaseSet) else [leases]:
        each.held.queue_wait = _queue_wait(submitted, started)

    def release() -> None:
        try:
            leases.release()
        except LeaseError as error:
            with suppress(OSError):
                click.echo(f"qpu: {error}", err=True)

    environ = {**os.environ, **leases.environment(), **(_job_time() if job_time else {})}
    code = run_supervised(command, environ=environ, release=release, grace=grace, alive=alive)
    if step is not None and code == 0:
        Journal().archive(step)
    sys.exit(code)


def _require_submitter(alive: Path) -> None:
    """Exit if the process that submitted this job has ended in the meantime."""
    from qrmi_workflows.config.variables import QPU_ALIVE
    from qrmi_workflows.lease.abandoned import is_abandoned

    if is_abandoned(alive):
        click.echo(
            f"qpu: the program that submitted this job has ended: {alive} is gone or was not "
            "touched. The QPU is not acquired. Start the program again.",
            err=True,
        )
        sys.exit(1)
    os.environ[QPU_ALIVE] = str(alive)


def _queue_wait(submitted: float | None, started: float) -> float | None:
    """Return how long the job was pending; `None` if only the scheduler can tell."""
    from qrmi_workflows.schedulers import this_job

    job = this_job()
    if submitted is None or (job is not None and job.restart > 0):
        return None
    return max(0.0, round(started - submitted, 1))


def _job_time() -> dict[str, str]:
    """Return how long this process's job has run and may still run, in seconds, if known."""
    from qrmi_workflows.config.variables import QPU_JOB_LEFT, QPU_JOB_USED
    from qrmi_workflows.schedulers import this_job, this_scheduler

    job = this_job()
    running = None if job is None else this_scheduler().running_job(job.id)
    # Set even if empty, to hide the values of an outer job.
    return {
        QPU_JOB_USED: "" if running is None else str(running.used),
        QPU_JOB_LEFT: "" if running is None or running.left is None else str(running.left),
    }
