"""`qpu journal`: the recorded tasks of this user."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.tables import print_table
from qrmi_workflows.cli.types import Duration, Group
from qrmi_workflows.errors import JournalError, RequestError, UndecodedResultError

if TYPE_CHECKING:
    from qrmi_workflows.journal.record import TaskRecord

__all__ = ["journal"]


@click.group(cls=Group)
def journal() -> None:
    """Show and forget recorded tasks."""


@journal.command("list")
@click.option(
    "--archived", is_flag=True, help="Instead, list the tasks of steps that have succeeded."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, without results.")
def list_tasks(archived: bool, as_json: bool) -> None:
    """List the tasks of open steps, which a rerun would find.

    If a record cannot be read, the others are listed anyway, and the exit code is 1.
    """
    from qrmi_workflows.journal.journal import Journal

    errors: list[JournalError] = []
    records = Journal().records(archived=archived, on_error=errors.append)
    if as_json:
        for record in records:
            document = json.loads(record.to_json())
            del document["result"]
            click.echo(json.dumps(document))
    else:
        headings = ("TASK", "QPU", "PROGRAM", "STATE", "SINCE", "STEP")
        oldest_first = sorted(records, key=lambda record: record.since)
        print_table(headings, map(_row, oldest_first))
    for error in errors:
        click.echo(f"qpu: {error}", err=True)
    sys.exit(1 if errors else 0)


@journal.command()
@click.argument("task")
def show(task: str) -> None:
    """Print a task's record, with its result, as JSON.

    TASK is the vendor's id, or the beginning of the payload's digest.
    """
    from qrmi_workflows.journal.journal import Journal

    errors: list[JournalError] = []
    record = Journal().find(task, on_error=errors.append)
    if record is not None:
        click.echo(json.dumps(json.loads(_decoded(record).to_json()), indent=1))
        return
    unreadable = f" {len(errors)} records could not be read." if errors else ""
    raise JournalError(
        f"no record of task {task!r}.{unreadable} To list the recorded tasks, run "
        "`qpu journal list`."
    )


@journal.command()
@click.option("--step", metavar="NAME", help="Forget the tasks of this open step, in any state.")
@click.option(
    "--older-than",
    "days",
    type=Duration(36500.0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Forget archived steps that have not changed for this long.",
)
@click.option("--open", "open_too", is_flag=True, help="Also forget open steps of that age.")
def prune(step: str | None, days: float, open_too: bool) -> None:
    """Forget old tasks, or those of one step.

    A forgotten task is paid for again if its step is run again. Steps that have not changed for 90
    days (or $QPU_JOURNAL_DAYS) are forgotten automatically.
    """
    from qrmi_workflows.journal.journal import Journal

    kept = Journal()
    if step is None:
        forgotten = kept.prune(older_than_days=days, open_too=open_too)
    elif kept.step(step).folder.exists():
        forgotten = kept.forget(step)
    else:
        raise RequestError(
            f"no record of step {step!r}. To list the open steps, run `qpu journal list`."
        )
    click.echo(f"{forgotten} task{'' if forgotten == 1 else 's'} forgotten")


def _decoded(record: TaskRecord) -> TaskRecord:
    """Decode the result of a record, if it has one and this release can."""
    if record.result is None:
        return record
    try:
        result = record.result.decoded()
    except UndecodedResultError as error:
        result = error.result
    return replace(record, result=result)


def _row(record: TaskRecord) -> tuple[str, ...]:
    since = record.since[:19].replace("T", " ")
    task = record.task_id or f"({record.digest[:12]})"
    qpu = record.qpu if record.moved_to is None else f"{record.qpu} -> {record.moved_to.to_qpu}"
    return task, qpu, record.program, record.state, since, record.step
