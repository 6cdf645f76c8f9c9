"""`qpu usage --jobs`: usage joined with the scheduler's own accounting, job by job."""

from __future__ import annotations

from datetime import datetime

import click

from qrmi_workflows.cli.tables import format_duration
from qrmi_workflows.config.site import find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError, SchedulerError
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.schedulers.base import AccountQuery, JobAccount
from qrmi_workflows.site.accounting import Summary, Usage
from qrmi_workflows.site.jobs import JobUse, join
from qrmi_workflows.state.users import user_name

__all__ = ["HEADINGS", "columns", "find", "row"]

HEADINGS = (
    *("JOB", "USER", "ACCOUNT", "QPU", "STATE", "CREATED", "STARTED", "ENDED"),
    *("ELAPSED", "QPU-TIME", "LEASES", "TASKS", "HELD", "BUSY", "IDLE"),
)
"""The headings of the table."""


def find(summary: Summary, *, of_site: bool) -> list[JobUse]:
    """Join usage with the scheduler's accounting; without that, say so and leave it out.

    Args:
        summary: The usage, grouped by `site.jobs.BY`.
        of_site: Whether it is that of all users.
    """
    try:
        accounts = _ask(summary, of_site)
    except (ConfigError, SchedulerError) as error:
        click.echo(f"qpu: nothing is known from the scheduler's accounting: {error}", err=True)
        accounts = []
    return join(summary.groups(), accounts)


def columns() -> list[str]:
    """Return the columns of the CSV."""
    nothing = JobUse(cluster="", job="", qpu="", user="", account="", known=None, usage=Usage())
    return list(nothing.as_dict())


def _ask(summary: Summary, of_site: bool) -> list[JobAccount]:
    site = load_site_policy(find_site_policy())
    since, until = summary.period.since, summary.period.until
    query = AccountQuery(
        user=None if of_site else user_name(),
        since=None if since is None else since.timestamp(),
        until=None if until is None else until.timestamp(),
    )
    return this_scheduler().job_accounts(query, site)


def row(use: JobUse) -> list[object]:
    """Return the cells of one row of the table."""
    known, usage = use.known, use.usage
    return [
        use.job or None,
        use.user,
        use.account or None,
        use.qpu,
        *_from_scheduler(known),
        None if use.qpu_seconds is None else format_duration(use.qpu_seconds),
        usage.leases,
        usage.tasks,
        *(format_duration(each) for each in (usage.held, usage.busy, usage.idle)),
    ]


def _from_scheduler(known: JobAccount | None) -> list[str | None]:
    if known is None:
        return [None] * 5
    times = (known.created, known.started, known.ended)
    return [known.state, *map(_time, times), format_duration(known.elapsed)]


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).isoformat("T", "seconds")
