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

from qrmi_workflows.cli.spans import Span
from qrmi_workflows.errors import LeaseError

__all__ = ["lease"]


@click.group()
def lease() -> None:
    """Hold a QPU for a command."""


@lease.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--qpu", "qpus", metavar="NAME[,NAME…]", help="The QPU, or several: all or none.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="qrmi_config.json; else $QPU_CONFIG."
)
@click.option(
    "--grace",
    type=Span(86400.0),
    metavar="SECONDS",
    help="What COMMAND has between SIGTERM and SIGKILL; else 5, or less where KillWait is short.",
)
@click.option(
    "--step",
    metavar="NAME",
    help="The step's name: a rerun finds its tasks again, until COMMAND has exited with 0.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append the lease record there; else to the user's state folder.",
)
@click.option(
    "--alive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Stop COMMAND when nobody has touched FILE for 30 s: who wants the result is dead.",
)
@click.option(
    "--submitted",
    type=float,
    metavar="TIME",
    help="When the job was submitted, in seconds since the epoch: the scheduler need not be asked.",
)
@click.option(
    "--job-time",
    is_flag=True,
    help="Tell COMMAND in $QPU_JOB_USED and $QPU_JOB_LEFT its job's seconds so far, and left.",
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
    job_time: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND under the lease of a QPU.

    Adopts the lease that this job carries already, or acquires one from qrmi_config.json, and
    gives COMMAND the QPU's environment (QRMI_JOB_QPU_RESOURCES and the rest). Signals are passed
    on; the lease is released whatever happens to COMMAND. Exits with COMMAND's code; 128+N when
    signal N ended it, 127 when there is no such command, 1 when the QPU could not be acquired,
    2 when the request is wrong.

    \b
    Example:
      qpu lease exec --qpu ibm_fez -- python vqe.py
    """  # noqa: D301 - click's mark of lines that are not to be joined
    from qrmi_workflows import LeaseSet, open_lease
    from qrmi_workflows.journal import ATTEMPT_VARIABLE, STEP_VARIABLE, Journal
    from qrmi_workflows.ledger import RECORD_VARIABLE
    from qrmi_workflows.supervise import run_supervised

    if shutil.which(command[0]) is None:
        click.echo(f"qpu: no command {command[0]!r} on PATH. Correct its name or PATH.", err=True)
        sys.exit(127)
    if record is not None:
        os.environ[RECORD_VARIABLE] = str(record.absolute())
    if step is not None:
        os.environ[STEP_VARIABLE] = step
    if step is not None or ATTEMPT_VARIABLE not in os.environ:
        os.environ[ATTEMPT_VARIABLE] = uuid.uuid4().hex[:16]
    names = [name.strip() for name in qpus.split(",")] if qpus and "," in qpus else qpus
    begun = time.time()
    held = open_lease(names, config=config)
    if submitted is not None and "SLURM_RESTART_COUNT" not in os.environ:
        for each in held.values() if isinstance(held, LeaseSet) else [held]:
            each.holding.queue_wait = max(0.0, round(begun - submitted, 1))

    def release() -> None:
        try:
            held.release()
        except LeaseError as error:
            with suppress(OSError):
                click.echo(f"qpu: {error}", err=True)

    environ = {**os.environ, **held.environment(), **(_job_time() if job_time else {})}
    code = run_supervised(command, environ=environ, release=release, grace=grace, alive=alive)
    if step is not None and code == 0:
        Journal().settle(step)
    sys.exit(code)


def _job_time() -> dict[str, str]:
    """Return how long this process's job has run and may run, in seconds, where that is known."""
    from qrmi_workflows.schedulers.slurm import job_now

    job = os.environ.get("SLURM_JOB_ID")
    now = job_now(job) if job else None
    # Empty ones hide what an outer job may have told this one.
    return {
        "QPU_JOB_USED": "" if now is None else str(now.used),
        "QPU_JOB_LEFT": "" if now is None or now.left is None else str(now.left),
    }
