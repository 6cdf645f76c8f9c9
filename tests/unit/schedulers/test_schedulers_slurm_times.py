"""Slurm's times in a zone with daylight saving time: the repeated hour, and the skipped one.

In Berlin, clocks go back from 03:00 to 02:00 on 2026-10-25, and on from 02:00 to 03:00 on
2026-03-29, both at 01:00 UTC.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.base import AccountQuery
from qrmi_workflows.schedulers.slurm_accounting import (
    job_accounts_argv,
    parse_job_accounts,
    parse_job_times,
)
from qrmi_workflows.schedulers.slurm_facts import clock_skew
from qrmi_workflows.schedulers.slurm_times import parse_time, render_time

BACK = int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp())
ON = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp())
AT_CHANGES = [change + offset for change in (BACK, ON) for offset in (-1800, -1, 0, 1, 1800, 5400)]


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_local_time_of_the_repeated_hour_means_two_moments():
    """So local times cannot tell how long a job was pending."""
    local = [time.strftime("%FT%T", time.localtime(each)) for each in (BACK - 1800, BACK + 1800)]
    assert local == ["2026-10-25T02:30:00"] * 2
    assert time.strftime("%s", time.localtime(BACK + 1800)) == str(BACK + 1800)


@pytest.mark.parametrize("moment", AT_CHANGES)
def test_times_are_exact_at_both_changes(moment):
    assert parse_time(str(moment)) == moment
    assert render_time(moment) == f"uts{moment}"


@pytest.mark.parametrize("moment", AT_CHANGES)
def test_a_job_is_pending_as_long_as_it_was(moment):
    times = parse_job_times(f"{moment}|{moment + 3600}|(null)\n")
    assert times.queue_wait == 3600


@pytest.mark.parametrize("moment", AT_CHANGES)
def test_a_job_in_the_accounting_lasts_as_long_as_it_did(moment):
    site = SitePolicy(path=Path("site.toml"), qpus={"q": QPUPolicy(name="q", licence="qpu_q")})
    line = f"7|c|ada|chem|{moment}|{moment + 60}|{moment + 3660}|COMPLETED|3600|license/qpu_q=1"
    (job,) = parse_job_accounts(line, site)

    assert (job.created, job.started, job.ended) == (moment, moment + 60, moment + 3660)
    argv = job_accounts_argv(AccountQuery(user=None, since=moment, until=moment + 3600))
    assert argv[-2:] == [f"--starttime=uts{moment}", f"--endtime=uts{moment + 3600}"]


@pytest.mark.parametrize("moment", AT_CHANGES)
def test_no_clock_is_an_hour_off_at_the_changes(moment):
    shown = f"Configuration data as of {moment}\n"
    assert clock_skew(shown, moment - 0.5, moment + 0.5) == 0.0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10-25T02:30:00", BACK - 1800),  # repeated: the first
        ("2026-10-25T03:00:00", BACK + 3600),
        ("2026-03-29T01:59:59", ON - 1),
        ("2026-03-29T02:30:00", ON + 1800),  # skipped: 03:30
        ("2026-03-29T03:00:00", ON),
    ],
)
def test_a_local_time_of_a_wrapper_is_understood_all_the_same(text, moment):
    assert parse_time(text) == moment


@pytest.mark.parametrize("text", ["Unknown", "None", "N/A", "", "-1", "²"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_time(text)
