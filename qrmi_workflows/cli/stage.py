"""`qpu stage`: a lease that several jobs share."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import (
    CONFIG_OPTION,
    JSON_OPTION,
    Group,
    Seconds,
    constraint_options,
)

if TYPE_CHECKING:
    from qrmi_workflows.lease.stage import Stage

__all__ = ["stage"]

_IDLE_SECONDS = 600  # `lease.stage.IDLE_SECONDS`, without the time to import it
_OF_QPU = ("name", "qpu", "min_qubits", "type_", "where")
_OF_OUTPUT = ("wait", "as_json")  # options of `qpu stage open` that say nothing about the stage
_LOG_TIME = "%Y-%m-%dT%H:%M:%S"


@click.group(cls=Group)
def stage() -> None:
    """Share the lease of a QPU between several jobs.

    A small job, the stage's keeper, holds the QPU. The stage's other jobs wait in the queue until
    the QPU is ready, and use the keeper's lease; they request no QPU themselves.

    \b
    Example:
      qpu stage open vqe --qpu ibm_fez
      sbatch $(qpu stage options vqe) job.sh  # job.sh: qpu lease exec --stage vqe -- python vqe.py
      qpu stage close vqe
    """  # noqa: D301 - \b tells click not to rewrap a paragraph


@stage.command("open")
@click.argument("name")
@click.option(
    "--qpu",
    metavar="REQUEST",
    help="The QPU; or a pattern or alternatives (A|B), of which the least busy one is chosen.",
)
@constraint_options
@click.option(
    "--mode",
    type=click.Choice(["auto", "dedicated", "batch"]),
    default="auto",
    show_default=True,
    help="The kind of session, where the vendor has several.",
)
@click.option(
    "--no-warm-up",
    "warm_up",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Have the keeper run no tasks of its own. By default, where the vendor makes a session "
    "active only with a task, a minimal one is run before the stage's jobs start.",
)
@click.option(
    "--lanes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many tasks of the stage may run at once; by default as many as the QPU has lanes.",
)
@click.option(
    "--idle-limit",
    type=Seconds(),
    default=_IDLE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="End the stage once it has had no job, no process and no task for this time.",
)
@click.option(
    "--budget",
    metavar="AMOUNT",
    help="What the stage's tasks may take in total: '1000 shots', or QPU time ('90 s', '2 h').",
)
@click.option("--time", "limit", metavar="TIME", help="Time limit of the keeper's job.")
@click.option("--partition", metavar="NAME", help="Partition of the keeper's job.")
@click.option("--account", metavar="NAME", help="Account that the keeper's job is charged to.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="OPTION",
    help="Another option of the scheduler for the keeper's job (--option=--qos=high); repeatable.",
)
@CONFIG_OPTION
@click.option("--wait", is_flag=True, help="Wait until the QPU is ready.")
@JSON_OPTION
def open_(
    name: str,
    qpu: str | None,
    min_qubits: int | None,
    type_: str | None,
    where: str | None,
    mode: Any,
    warm_up: bool,
    lanes: int | None,
    idle_limit: float,
    budget: str | None,
    limit: str | None,
    partition: str | None,
    account: str | None,
    options: tuple[str, ...],
    config: Path | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Open the stage NAME: submit the job that holds its QPU.

    If it is open already with the same QPU, nothing is submitted, and it keeps its own options; a
    message says which of the given ones are ignored. The exit code is 1 if the scheduler did not
    answer, or if the stage has ended while --wait waited; 2 if the request is invalid.

    \b
    Example:
      qpu stage open vqe --qpu ibm_fez --time 8:00:00 --wait
    """  # noqa: D301
    from qrmi_workflows.choice.candidates import Asker
    from qrmi_workflows.cli.choosing import choose_for_stage
    from qrmi_workflows.config.constraints import parse_qpus
    from qrmi_workflows.stages.opening import open_stage, wait_until_ready

    if (qpu, min_qubits, type_, where) == (None, None, None, None):
        raise click.UsageError("Missing option '--qpu', or a condition such as '--min-qubits'.")
    constraints = parse_qpus(qpu, min_qubits=min_qubits, type=type_, where=where)
    asker = Asker(for_job=True, account=account, partition=partition, key=f"stage {name}")
    before = _id_of(name)
    opened = open_stage(
        name,
        qpu=choose_for_stage(name, constraints, asker),
        mode=mode,
        warm_up=warm_up,
        lanes=lanes,
        idle_limit=idle_limit,
        budget=budget,
        time=limit,
        partition=partition,
        account=account,
        config=config,
        options=options,
    )
    if opened.id == before:
        _tell_ignored(opened, click.get_current_context())
    if wait:
        opened = wait_until_ready(name, report=lambda told: click.echo(f"qpu: {told}", err=True))
    _show_state(opened, as_json)


def _id_of(name: str) -> str | None:
    """Return the id of the stage's last opening."""
    from qrmi_workflows.lease.stage import find_stage
    from qrmi_workflows.lease.stage_folder import StageFolder

    return find_stage(name).id if StageFolder.of(name).stage.exists() else None


def _tell_ignored(opened: Stage, context: click.Context) -> None:
    """Say which of the given options do not apply, because the stage was open already."""
    ignored = []
    for option in context.command.params:
        given = option.name and context.get_parameter_source(option.name)
        if given is not ParameterSource.COMMANDLINE or option.name in (*_OF_QPU, *_OF_OUTPUT):
            continue
        value, own = context.params[option.name], getattr(opened, option.name, None)
        if own is None or str(own) != str(value):
            keeps = "" if own is None or isinstance(own, bool) else f" (it has {own})"
            ignored.append(f"{option.opts[0]}{keeps}")
    if ignored:
        click.echo(
            f"qpu: stage {opened.name!r} was open already, and keeps its own options. Ignored: "
            f"{', '.join(ignored)}. To change them, close it first: `qpu stage close "
            f"{opened.name}`.",
            err=True,
        )


@stage.command()
@click.argument("name")
@click.option(
    "--now",
    is_flag=True,
    help="End it at once: cancel jobs that wait for it, and take the QPU from running ones.",
)
@JSON_OPTION
def close(name: str, now: bool, as_json: bool) -> None:
    """Close the stage NAME: it takes no more jobs, and ends when its present ones have ended.

    Closing a stage that has ended does nothing.

    \b
    Example:
      qpu stage close vqe
    """  # noqa: D301
    from qrmi_workflows.stages.closing import close_stage

    _show_state(close_stage(name, now=now), as_json)


@stage.command("list")
@JSON_OPTION
def list_(as_json: bool) -> None:
    """List your stages, and why they have ended or are not ready yet.

    If a keeper has died, its stage is ended first: its lease is released, and jobs that wait for it
    are cancelled.
    """
    from qrmi_workflows.lease.stage import list_stages

    _settle()
    stages = list_stages()
    if as_json:
        click.echo(json.dumps([_document(each) for each in stages], indent=1))
    else:
        headings = ("STAGE", "QPU", "STATE", "KEEPER", "OPENED", "REASON")
        print_table(headings, map(_row, stages))


@stage.command()
@click.argument("name")
@JSON_OPTION
def show(name: str, as_json: bool) -> None:
    """Show the stage NAME and its jobs.

    \b
    Example:
      qpu stage show vqe
    """  # noqa: D301
    from qrmi_workflows.errors import SchedulerError
    from qrmi_workflows.lease.stage import find_stage
    from qrmi_workflows.stages.waiting_jobs import ScheduledJobs

    _settle(name)
    found = find_stage(name)
    states: dict[str, str] = {}
    try:
        jobs = ScheduledJobs(found)
        states = {id_: job.state.value for id_, job in jobs.of_stage(jobs.listed()).items()}
    except SchedulerError as error:
        click.echo(f"qpu: cannot tell which jobs it has: {error}", err=True)
    if as_json:
        click.echo(json.dumps(_document(found) | {"jobs": states}, indent=1))
        return
    for key, value in _lines(found, states).items():
        if value not in (None, ""):
            click.echo(f"{key:<12} {value}")


def _lines(found: Stage, jobs: Mapping[str, str]) -> dict[str, object]:
    """Return what `qpu stage show` shows of a stage."""
    keeper, job = found.keeper, found.keeper_job and f"job {found.keeper_job}"
    return {
        "stage": found.name,
        "QPU": found.qpu,
        "state": _state(found),
        "reason": _reason(found),
        "mode": found.mode,
        "session": found.session_mode and f"{found.session_mode}: {found.mode_reason}",
        "lanes": found.lanes,
        "idle limit": f"{found.idle_limit:g} s",
        "opened": _opened(found),
        "opened by": ", ".join(found.openers),
        "keeper": " on ".join(filter(None, [job, keeper.host if keeper else None])),
        "guard": found.guard_job and f"job {found.guard_job}",
        "log": found.folder.log,
        "jobs": ", ".join(f"{job_id} ({state})" for job_id, state in jobs.items()),
    }


@stage.command()
@click.argument("name")
@click.option(
    "--after",
    multiple=True,
    metavar="JOB",
    help="Have the job wait for the end of JOB too; repeatable. The scheduler takes only one "
    "--dependency.",
)
def options(name: str, after: tuple[str, ...]) -> None:
    """Print the options with which a job of the stage NAME is submitted.

    They mark the job as the stage's, and have it wait in the queue until the QPU is ready. The exit
    code is 1 if the stage has ended or is being closed, and 2 if there is none of that name.

    \b
    Example:
      sbatch $(qpu stage options vqe) job.sh
    """  # noqa: D301
    from qrmi_workflows.lease.stage import find_stage
    from qrmi_workflows.stages.waiting_jobs import submission_options

    _settle(name)
    click.echo(" ".join(submission_options(find_stage(name), after=after)))


# Hidden, because only the stage's own jobs run these two.
@stage.command(hidden=True)
@click.argument("name")
@click.option("--id", "stage_id", required=True, metavar="ID")
def keep(name: str, stage_id: str) -> None:
    """Hold the lease of the stage NAME until the stage ends."""
    from qrmi_workflows.lease.stage import find_stage
    from qrmi_workflows.schedulers import this_job
    from qrmi_workflows.stages.guard import take_job
    from qrmi_workflows.stages.jobs import NoJobs
    from qrmi_workflows.stages.keeper import keep as keep_stage

    _log_with_time()
    if find_stage(name).id != stage_id:
        click.echo(f"qpu: stage {name!r} has been opened anew; this keeper ends.", err=True)
        sys.exit(1)
    # Outside of jobs, the stage's processes are started by other means.
    jobs = NoJobs() if this_job() is None else take_job(name, stage_id)
    keep_stage(name, jobs, id=stage_id)


@stage.command(hidden=True)
@click.argument("name")
@click.option("--id", "stage_id", required=True, metavar="ID")
def guard(name: str, stage_id: str) -> None:
    """End the stage NAME if its keeper has not done so."""
    from qrmi_workflows.stages.guard import guard_stage

    _log_with_time()
    guard_stage(name, stage_id)


def _log_with_time() -> None:
    """Begin each line of the log with the time: it is a job's output, read later."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s qpu: %(message)s", _LOG_TIME))


def _settle(name: str | None = None) -> None:
    """End stages whose keepers have died, and say so."""
    from qrmi_workflows.stages.guard import settle_stages

    for each in settle_stages(name):
        click.echo(f"qpu: stage {each.stage!r} has ended: {each.reason}", err=True)


def _show_state(found: Stage, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_document(found), indent=1))
        return
    why = f": {found.reason}" if found.reason else ""
    click.echo(f"stage {found.name} of {found.qpu}: {_state(found)}{why}")


def _document(found: Stage) -> dict[str, Any]:
    return asdict(found) | {"log": str(found.folder.log)}


def _row(found: Stage) -> tuple[object, ...]:
    reason = _reason(found) or None
    return found.name, found.qpu, _state(found), found.keeper_job, _opened(found), reason


def _reason(found: Stage) -> str:
    """Return why a stage has ended, or what it waits for."""
    from qrmi_workflows.lease.stage import StageState
    from qrmi_workflows.stages.opening import waits_for

    return waits_for(found) if found.state is StageState.OPENING else found.reason


def _state(found: Stage) -> str:
    return "closing" if found.closing and not found.is_ended else found.state.value


def _opened(found: Stage) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.created))
