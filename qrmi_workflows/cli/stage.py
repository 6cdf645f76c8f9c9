"""`qpu stage`: a lease that several jobs share."""

from __future__ import annotations

import click

from qrmi_workflows.cli.types import Group

__all__ = ["stage"]


@click.group(cls=Group)
def stage() -> None:
    """Share the lease of a QPU between several jobs."""


# Hidden, because only the keeper's job runs it.
@stage.command(hidden=True)
@click.argument("name")
def keep(name: str) -> None:
    """Hold the lease of the stage NAME until the stage ends."""
    from qrmi_workflows.stages.jobs import NoJobs
    from qrmi_workflows.stages.keeper import keep as keep_stage

    keep_stage(name, NoJobs())
