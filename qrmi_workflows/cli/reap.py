"""`qpu reap`: end leases whose process is gone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

__all__ = ["reap"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reap(as_json: bool) -> None:
    """Release your leases whose process is gone.

    Asks this host for its processes, and Slurm for the jobs of other hosts; what only another host
    can tell is left alone. Opening a lease does the same by the way. Run it twice, or at once, as
    you like. Says nothing when there is nothing to release; exits with 1 when a lease could not
    be released.
    """
    from qrmi_workflows.reap import reap as release_orphans

    done = release_orphans()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in done], indent=1))
    else:
        for one in done:
            click.echo(f"{one.lease} of {one.qpu}: {'released' if one.released else one.error}")
    sys.exit(0 if all(one.released for one in done) else 1)
