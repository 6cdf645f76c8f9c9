"""`qpu lease`: a command under a lease."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.types import (
    CONFIG_OPTION,
    FALLBACK_OPTION,
    Group,
    Seconds,
    constraint_options,
)
from qrmi_workflows.errors import LeaseError

if TYPE_CHECKING:
    from qrmi_workflows import Lease, LeaseSet
    from qrmi_workflows.lease.chosen import Chosen
    from qrmi_workflows.lease.prepared import PreparedProcess
    from qrmi_workflows.schedulers.base import JobTimes

__all__ = ["lease"]


@click.group(cls=Group)
def lease() -> None:
    """Hold a QPU while a command runs."""


@lease.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--qpu",
    "qpus",
    metavar="REQUEST",
    help="The QPU; several to lease together (NAME+NAME); or a pattern or alternatives (A|B), of "
    "which the least busy one is chosen.",
)
@constraint_options
@FALLBACK_OPTION
@click.option("--stage", metavar="NAME", help="Use the lease of this stage of several jobs.")
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
@click.option(
    "--budget",
    metavar="AMOUNT",
    help="What the job's tasks may take in total: '1000 shots', or QPU time ('90 s', '2 h').",
)
# Hidden, because only the engines' job scripts pass these.
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
    "--moved-from",
    metavar="NAME[,NAME…]",
    hidden=True,
    help="The QPUs that the step has left because they had gone.",
)
@click.option(
    "--move-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    hidden=True,
    help="Where to say which QPU the step needs, if it needs one that this job does not hold.",
)
@click.option(
    "--stop-with-stage",
    is_flag=True,
    hidden=True,
    help="Stop COMMAND once the stage has ended.",
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
    min_qubits: int | None,
    type_: str | None,
    where: str | None,
    fallback: str | None,
    stage: str | None,
    config: Path | None,
    grace: float | None,
    step: str | None,
    record: Path | None,
    budget: str | None,
    alive: Path | None,
    submitted: float | None,
    granted: bool,
    moved_from: str | None,
    move_file: Path | None,
    stop_with_stage: bool,
    job_time: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND under the lease of a QPU.

    Adopts the lease that this job or its stage already has, or acquires a QPU from
    qrmi_config.json, and gives COMMAND the QPU's environment (QRMI_JOB_QPU_RESOURCES and the rest).
    Signals are passed on, and the lease is always released. The exit code is that of COMMAND; 128+N
    if signal N ended it; 127 if it was not found; 1 if the QPU could not be acquired; 2 if the
    request is invalid; 75 if the QPU has gone and the next of --fallback needs a job of its own.

    \b
    Example:
      qpu lease exec --qpu ibm_fez -- python vqe.py
    """  # noqa: D301 - \b tells click not to rewrap a paragraph
    from qrmi_workflows import LeaseSet, open_lease
    from qrmi_workflows.choice.reasons import choice_variable
    from qrmi_workflows.cli.choosing import tell
    from qrmi_workflows.cli.own_command import prepare
    from qrmi_workflows.config.constraints import parse_qpus, plain_names
    from qrmi_workflows.config.job import add_job
    from qrmi_workflows.config.variables import (
        QPU_ATTEMPT,
        QPU_BUDGET,
        QPU_LEASE_JOB,
        QPU_LEASE_RECORD,
        QPU_MOVE_FILE,
        QPU_MOVED_FROM,
        QPU_STEP,
    )
    from qrmi_workflows.lease.chosen import open_chosen, resolve
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
    if budget is not None:
        os.environ[QPU_BUDGET] = budget
    if step is not None:
        os.environ[QPU_STEP] = step
    if moved_from is not None:
        os.environ[QPU_MOVED_FROM] = moved_from
    if move_file is not None:
        os.environ[QPU_MOVE_FILE] = str(move_file.absolute())
    # Only an outer `qpu lease exec` gives its attempt: a variable that merely came along would make
    # two attempts look like one, and the second would pay again.
    if step is not None or not {QPU_LEASE_JOB, QPU_ATTEMPT} <= os.environ.keys():
        os.environ[QPU_ATTEMPT] = os.urandom(8).hex()
    started = time.time()
    if granted:
        assume_granted((qpus and plain_names(parse_qpus(qpus))) or [])

    def choose(avoid: Collection[str]) -> Chosen:
        chosen = resolve(
            qpus,
            min_qubits=min_qubits,
            type=type_,
            where=where,
            stage=stage,
            config=config,
            avoid=avoid,
        )
        tell(chosen.choices)
        os.environ.update(choice_variable(chosen.choices))
        return chosen

    def open_(chosen: Chosen) -> tuple[ExitStack, PreparedProcess | None, Lease | LeaseSet]:
        with ExitStack() as opening:
            prepared = prepare(command, chosen.qpus, stage=stage, config=config)
            process = opening.enter_context(prepared)
            if process is not None and (ended := process.wait_until_ready()) is not None:
                sys.exit(ended)  # its input is not valid, so no QPU is acquired
            rest = chosen.without_itself(fallback)
            leases = open_lease(chosen.qpus, stage=stage, config=config, fallback=rest)
            return opening.pop_all(), process, leases

    stack, process, leases = open_chosen(choose, open_)
    with stack:
        opened = list(leases.values()) if isinstance(leases, LeaseSet) else [leases]
        for each in opened:
            each.held.job_times = _job_times(submitted, started)
            if stop_with_stage and each.held.membership is not None:
                each.held.membership.stop_process_at_end()

        def release() -> None:
            try:
                leases.release()
            except LeaseError as error:
                with suppress(OSError):
                    click.echo(f"qpu: {error}", err=True)

        code = run_supervised(
            process or command,
            environ=add_job(os.environ, leases.environment()) | (_job_time() if job_time else {}),
            release=release,
            grace=grace,
            alive=alive,
            spare=[each.held.emulator.pid for each in opened if each.held.emulator is not None],
        )
    if step is not None and code == 0:
        from qrmi_workflows.journal.journal import Journal

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


def _job_times(submitted: float | None, started: float) -> JobTimes | None:
    """Return when the job was submitted and started; `None` if only the scheduler can tell."""
    from qrmi_workflows.schedulers import this_job
    from qrmi_workflows.schedulers.base import JobTimes

    job = this_job()
    if submitted is None or (job is not None and job.restart > 0):
        return None
    return JobTimes(created=submitted, started=started)


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
