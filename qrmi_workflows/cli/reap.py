"""`qpu reap`: release leases whose processes have died."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

import click

from qrmi_workflows.cli.types import JSON_OPTION, Command

if TYPE_CHECKING:
    from qrmi_workflows.lease.reap import Reaped

__all__ = ["reap"]


@click.command(cls=Command)
@click.option(
    "--cancel-tasks",
    is_flag=True,
    help="Cancel the tasks that a rerun of their step would wait for, and release their leases.",
)
@click.option("--job", metavar="ID", help="As root: release what the site holds for a job.")
@click.option(
    "--all", "everybody", is_flag=True, help="As root: release the leases of all users' ended jobs."
)
@click.option(
    "--states",
    multiple=True,
    metavar="PATTERN",
    help="With --all: the users' state folders (`/scratch/*/qpu`), if not in their home folders.",
)
@JSON_OPTION
def reap(
    cancel_tasks: bool, job: str | None, everybody: bool, states: tuple[str, ...], as_json: bool
) -> None:
    """Release your leases whose processes have died.

    Checks this host's processes, and asks the scheduler about jobs on other hosts; a lease whose
    owner may be alive is left alone. A lease also stays open while a rerun of a step would wait for
    its tasks, if releasing the QPU would cancel them. Opening a lease reaps in the same way.

    It also ends stages whose keeper's job has died, and settles or gives back what dead processes
    have reserved in budgets.

    At a site whose Prolog acquires QPUs, root does the same for all users: with --job from an
    Epilog, and with --all from a timer. Each user's own leases are released with that user's
    rights.

    The command is safe to repeat, and to run several times at once. It prints nothing if there is
    nothing to release; the exit code is 1 if a lease could not be released.
    """
    if job is not None or everybody:
        _reap_site(job, everybody, states, as_json=as_json)
    from qrmi_workflows.lease.allowances import settle_budgets
    from qrmi_workflows.lease.reap import reap as release_orphans
    from qrmi_workflows.stages.guard import settle_stages

    for ended in settle_stages():
        click.echo(f"qpu: stage {ended.stage!r} has ended: {ended.reason}", err=True)
    reaped = release_orphans(cancel_tasks=cancel_tasks)
    settle_budgets()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in reaped], indent=1))
    else:
        for each in reaped:
            click.echo(_describe(each))
    sys.exit(1 if any(each.error for each in reaped) else 0)


def _reap_site(
    job: str | None, everybody: bool, states: tuple[str, ...], *, as_json: bool
) -> NoReturn:
    if job is not None and (everybody or states):
        raise click.UsageError("--job excludes --all and --states. Use one of them.")
    from qrmi_workflows.config.site import load_site_policy
    from qrmi_workflows.site.reap import reap_job, reap_site
    from qrmi_workflows.site.scripts import SitePaths
    from qrmi_workflows.site.user_reap import user_states

    paths = SitePaths.of_site()
    paths.use(None)
    if job is not None:
        reaped = reap_job(paths.state, job)
    else:
        budgets = load_site_policy(paths.policy).folders.budgets
        reaped = reap_site(paths.state, user_states(states, budgets))
    if as_json:
        rows = [{"user": each.user, "job": each.job, **asdict(each.outcome)} for each in reaped]
        click.echo(json.dumps(rows, indent=1))
    else:
        for each in reaped:
            of_job = f", job {each.job}" if each.job else ""
            click.echo(f"{each.user}{of_job}: {_describe(each.outcome)}")
    sys.exit(1 if any(each.outcome.error for each in reaped) else 0)


def _describe(reaped: Reaped) -> str:
    outcome = "released" if reaped.released else reaped.kept or reaped.error
    return f"{reaped.lease} of {reaped.qpu}: {outcome}"
