"""`qpu reap`: release leases whose processes have died."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from qrmi_workflows.cli.types import JSON_OPTION

__all__ = ["reap"]


@click.command()
@JSON_OPTION
def reap(as_json: bool) -> None:
    """Release your leases whose processes have died.

    Checks this host's processes, and asks the scheduler about jobs on other hosts; a lease whose
    owner may be alive is left alone. Opening a lease also does this. The command is safe to repeat,
    and to run several times at once. It prints nothing if there is nothing to release; the exit
    code is 1 if a lease could not be released.
    """
    from qrmi_workflows.lease.reap import reap as release_orphans

    reaped = release_orphans()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in reaped], indent=1))
    else:
        for each in reaped:
            outcome = "released" if each.released else each.error
            click.echo(f"{each.lease} of {each.qpu}: {outcome}")
    sys.exit(0 if all(each.released for each in reaped) else 1)
