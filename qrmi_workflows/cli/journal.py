"""`qpu journal`: the tasks of this user, as recorded."""

from __future__ import annotations

import json
import sys

import click

from qrmi_workflows.errors import JournalError

__all__ = ["journal"]


@click.group()
def journal() -> None:
    """Show and forget the tasks that were recorded."""


@journal.command("list")
@click.option("--settled", is_flag=True, help="Those of steps that have ended well, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def list_tasks(settled: bool, as_json: bool) -> None:
    """List the tasks of open steps: what a rerun would find."""
    from qrmi_workflows.journal import Journal

    records = Journal().records(settled=settled)
    if as_json:
        for record in records:
            document = json.loads(record.to_json())
            del document["result"]
            click.echo(json.dumps(document))
        return
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


@journal.command()
@click.argument("task")
def show(task: str) -> None:
    """Print the record of TASK (the vendor's id, or the payload's digest) as JSON."""
    from qrmi_workflows.journal import Journal

    for settled in (False, True):
        for record in Journal().records(settled=settled):
            if record.task_id == task or record.digest.startswith(task):
                click.echo(json.dumps(json.loads(record.to_json()), indent=1))
                return
    raise JournalError(f"no task {task!r} is recorded. `qpu journal list` shows those that are.")


@journal.command()
@click.option("--step", metavar="NAME", help="Forget this open step, whatever its state.")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Forget settled steps that have not changed for so long.",
)
def prune(step: str | None, days: float) -> None:
    """Forget recorded tasks: settled ones that are old, and those of one step."""
    from qrmi_workflows.journal import Journal

    kept = Journal()
    if step is not None and not kept.step(step).folder.exists():
        click.echo(f"qpu: no step {step!r} is recorded; `qpu journal list` shows them.", err=True)
        sys.exit(2)
    forgotten = kept.forget(step) if step is not None else kept.prune(older_than_days=days)
    click.echo(f"{forgotten} tasks forgotten")
