"""`qpu journal`: the tasks of this user, as recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.spans import Span
from qrmi_workflows.errors import JournalError, RequestError

if TYPE_CHECKING:
    from qrmi_workflows.task_record import TaskRecord

__all__ = ["journal"]


@click.group()
def journal() -> None:
    """Show and forget the tasks that were recorded."""


@journal.command("list")
@click.option("--settled", is_flag=True, help="Those of steps that have ended well, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, without results.")
def list_tasks(settled: bool, as_json: bool) -> None:
    """List the tasks of open steps: what a rerun would find.

    Exits with 1 when a record cannot be read; the others are listed all the same.
    """
    from qrmi_workflows.journal import Journal

    unread: list[JournalError] = []
    records = Journal().records(settled=settled, unread=unread.append)
    if as_json:
        for record in records:
            document = json.loads(record.to_json())
            del document["result"]
            click.echo(json.dumps(document))
    else:
        _print(records)
    for error in unread:
        click.echo(f"qpu: {error}", err=True)
    sys.exit(1 if unread else 0)


@journal.command()
@click.argument("task")
def show(task: str) -> None:
    """Print a task's record, with its result, as JSON.

    TASK is the vendor's id, or the beginning of the payload's digest.
    """
    from qrmi_workflows.journal import Journal

    unread: list[JournalError] = []
    for settled in (False, True):
        for record in Journal().records(settled=settled, unread=unread.append):
            if task and (record.task_id == task or record.digest.startswith(task)):
                click.echo(json.dumps(json.loads(record.to_json()), indent=1))
                return
    more = f" {len(unread)} records could not be read." if unread else ""
    raise JournalError(
        f"no task {task!r} is recorded.{more} `qpu journal list` shows those that are."
    )


@journal.command()
@click.option("--step", metavar="NAME", help="Forget this open step, whatever its state.")
@click.option(
    "--older-than",
    "days",
    type=Span(36500.0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Forget settled steps that have not changed for so long.",
)
@click.option("--open", "open_too", is_flag=True, help="Forget open steps as well that are as old.")
def prune(step: str | None, days: float, open_too: bool) -> None:
    """Forget old tasks, or those of one step.

    What is forgotten is paid for again when its step is run again. Without this command all is
    forgotten that has not changed for 90 days, or $QPU_JOURNAL_DAYS.
    """
    from qrmi_workflows.journal import Journal

    kept = Journal()
    if step is None:
        forgotten = kept.prune(older_than_days=days, open_too=open_too)
    elif kept.step(step).folder.exists():
        forgotten = kept.forget(step)
    else:
        raise RequestError(f"no step {step!r} is recorded; `qpu journal list` shows them.")
    click.echo(f"{forgotten} tasks forgotten")


def _print(records: Iterable[TaskRecord]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("TASK", "QPU", "PROGRAM", "STATE", "SINCE", "STEP"):
        table.add_column(heading, overflow="fold")
    for record in records:
        since = record.since[:19].replace("T", " ")
        task = record.task_id or f"({record.digest[:12]})"
        table.add_row(task, record.qpu, record.program, record.state, since, record.step)
    Console().print(table)
