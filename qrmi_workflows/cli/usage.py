"""`qpu usage`: what QPUs were used for, from lease records."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from qrmi_workflows.cli.tables import format_duration, print_table
from qrmi_workflows.cli.types import Command
from qrmi_workflows.errors import RequestError

if TYPE_CHECKING:
    from qrmi_workflows.site.accounting import Summary, Usage
    from qrmi_workflows.site.anomalies import Anomalies, Anomaly
    from qrmi_workflows.site.record_files import Problem

__all__ = ["parse_time", "usage"]

_SHOWN = 20
_AGO = re.compile(r"now-(\d{1,6})(minute|hour|day|week)s?")
_SECONDS = ("queue", "held", "busy", "idle")


@click.command(cls=Command)
@click.option(
    "--by",
    multiple=True,
    metavar="KEY",
    help="Group by user, account, project, qpu, type, day, month or job. Separate several with "
    "commas, or repeat the option. [default: qpu; with --all: user,qpu]",
)
@click.option(
    "--since",
    metavar="TIME",
    help="Only leases released at this time or later: 2026-11-01, 2026-11-01T12:00, today, or "
    "now-7days.",
)
@click.option("--until", metavar="TIME", help="Only leases released before this time.")
@click.option(
    "--jobs",
    is_flag=True,
    help="One row for each job, joined with the scheduler's own accounting (Slurm's sacct).",
)
@click.option("--all", "of_site", is_flag=True, help="Include all users of the site.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV; durations are in seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; durations are in seconds.")
def usage(
    by: Sequence[str],
    since: str | None,
    until: str | None,
    jobs: bool,
    of_site: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show how long QPUs were held, busy and idle, and what looks wrong.

    Durations are printed as Slurm prints them, [DAYS-]HH:MM:SS. Lines that are not lease records
    are reported, and do not count.
    """
    from qrmi_workflows.site.accounting import Period, Summary
    from qrmi_workflows.site.record_files import own_records, records_of_site

    for names in (("--csv", as_csv), ("--json", as_json)), (("--by", bool(by)), ("--jobs", jobs)):
        if all(given for _, given in names):
            first, second = (name for name, _ in names)
            raise RequestError(f"{first} and {second}: must be one of them. Leave one out.")
    keys = [key.strip() for each in by for key in each.split(",") if key.strip()]
    if jobs:
        from qrmi_workflows.site.jobs import BY

        keys = list(BY)
    keys = list(dict.fromkeys(keys)) or (["user", "qpu"] if of_site else ["qpu"])
    now = datetime.now().astimezone()
    period = Period(since=parse_time(since, now), until=parse_time(until, now))
    summary = Summary(by=keys, period=period, anomalies=_anomalies())
    records = (records_of_site if of_site else own_records)(period.has_month)
    summary.add_all(records)
    anomalies = summary.anomalies.found()
    rows = [group.as_dict(keys) for group in summary.groups()]
    headings, lines = _headings(summary), _rows(summary)
    if jobs:
        from qrmi_workflows.cli import usage_jobs
        from qrmi_workflows.site.jobs import find_anomalies

        uses = usage_jobs.find(summary, of_site=of_site)
        anomalies = sorted([*anomalies, *find_anomalies(uses)], key=lambda each: -each.seconds)
        rows = [use.as_dict() for use in uses]
        headings, lines = usage_jobs.HEADINGS, [usage_jobs.row(use) for use in uses]
    if as_json:
        click.echo(_as_json(summary, rows, anomalies, records.problems))
    elif as_csv:
        columns = usage_jobs.columns() if jobs else _columns(keys)
        writer = csv.DictWriter(sys.stdout, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(headings, lines)
        _print_anomalies(anomalies)
    _print_problems(records.problems)


def parse_time(text: str | None, now: datetime) -> datetime | None:
    """Parse a time as `sacct` takes it: ISO 8601 in local time, `today`, `now` or `now-7days`.

    Raises:
        RequestError: It is none of these.
    """
    if text is None:
        return None
    if text in ("now", "today"):
        return now if text == "now" else now.replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        if match := _AGO.fullmatch(text):
            return now - timedelta(**{f"{match[2]}s": int(match[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise RequestError(
            f"time {text!r}: must be like 2026-11-01, 2026-11-01T12:00, today, now or now-7days. "
            "Correct --since or --until."
        ) from error


def _anomalies() -> Anomalies:
    from qrmi_workflows.config.site import find_site_policy, load_site_policy
    from qrmi_workflows.errors import ConfigError
    from qrmi_workflows.journal.journal import Journal
    from qrmi_workflows.site.anomalies import Anomalies, exclusive_limits, tasks_to_do

    try:
        limits = exclusive_limits(load_site_policy(find_site_policy()))
    except (ConfigError, OSError):  # without a policy, nothing says what is exclusive
        limits = {}
    return Anomalies(limits=limits, to_do=tasks_to_do(Journal()))


def _row(usage: Usage) -> list[object]:
    share = usage.busy_share
    return [
        usage.leases,
        usage.tasks,
        usage.shots,
        *(format_duration(getattr(usage, name)) for name in _SECONDS),
        None if share is None else f"{share:.0%}",
        format_duration(usage.billed),
        format_duration(usage.reported) if usage.reported else None,
    ]


def _headings(summary: Summary) -> tuple[str, ...]:
    keys = [name.upper() for name in summary.by]
    values = ("LEASES", "TASKS", "SHOTS", "QUEUE", "HELD", "BUSY", "IDLE", "BUSY%")
    return (*keys, *values, "BILLED", "REPORTED")


def _rows(summary: Summary) -> list[list[object]]:
    rows = [[*_named(group.keys), *_row(group.usage)] for group in summary.groups()]
    if len(rows) > 1:
        rows.append(["total", *[""] * (len(summary.by) - 1), *_row(summary.total)])
    return rows


def _named(keys: Sequence[str]) -> list[str | None]:
    return [key or None for key in keys]


def _print_anomalies(anomalies: Sequence[Anomaly]) -> None:
    if not anomalies:
        return
    click.echo(f"\n{len(anomalies)} anomal{'y' if len(anomalies) == 1 else 'ies'}:")
    for anomaly in anomalies[:_SHOWN]:
        click.echo(f"  {anomaly.kind}: {anomaly}")
    if len(anomalies) > _SHOWN:
        click.echo(f"  and {len(anomalies) - _SHOWN} more; --json prints all of them")


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:_SHOWN]:
        click.echo(f"qpu: {problem}", err=True)
    if problems:
        are = "line or file does" if len(problems) == 1 else "lines or files do"
        click.echo(f"qpu: {len(problems)} {are} not count", err=True)


def _columns(keys: Sequence[str]) -> list[str]:
    from qrmi_workflows.site.accounting import Group, Usage

    return list(Group(tuple(keys), Usage()).as_dict(keys))


def _as_json(
    summary: Summary,
    rows: Sequence[dict[str, object]],
    anomalies: Sequence[Anomaly],
    problems: Sequence[Problem],
) -> str:
    from qrmi_workflows.site.accounting import Group

    period = summary.period
    return json.dumps(
        {
            "since": None if period.since is None else period.since.isoformat(),
            "until": None if period.until is None else period.until.isoformat(),
            "by": list(summary.by),
            "groups": list(rows),
            "total": Group((), summary.total).as_dict(()),
            "anomalies": [asdict(anomaly) for anomaly in anomalies],
            "problems": [asdict(problem) for problem in problems],
        },
        indent=1,
    )
