"""`qpu reap`: release leases whose processes have died."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from qrmi_workflows.cli.types import JSON_OPTION, Command

__all__ = ["reap"]


@click.command(cls=Command)
@click.option(
    "--cancel-tasks",
    is_flag=True,
    help="Cancel the tasks that a rerun of their step would wait for, and release their leases.",
)
@JSON_OPTION
def reap(cancel_tasks: bool, as_json: bool) -> None:
    """Release your leases whose processes have died.

    Checks this host's processes, and asks the scheduler about jobs on other hosts; a lease whose
    owner may be alive is left alone. A lease also stays open while a rerun of a step would wait for
    its tasks, if releasing the QPU would cancel them. Opening a lease reaps in the same way.

    The command is safe to repeat, and to run several times at once. It prints nothing if there is
    nothing to release; the exit code is 1 if a lease could not be released.
    """
    from qrmi_workflows.lease.reap import reap as release_orphans

    reaped = release_orphans(cancel_tasks=cancel_tasks)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in reaped], indent=1))
    else:
        for each in reaped:
            outcome = "released" if each.released else each.kept or each.error
            click.echo(f"{each.lease} of {each.qpu}: {outcome}")
    sys.exit(1 if any(each.error for each in reaped) else 0)
