"""Slurm's accounting: the jobs that held a QPU."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.base import AccountQuery, JobAccount
from qrmi_workflows.schedulers.slurm_accounting import (
    account_members_argv,
    job_accounts_argv,
    parse_account_members,
    parse_job_accounts,
)


def policy(**qpus: dict[str, str]) -> SitePolicy:
    found = {name: QPUPolicy(name=name, **keys) for name, keys in qpus.items()}  # type: ignore[arg-type]
    return SitePolicy(path=Path("site.toml"), qpus=found)


SITE = policy(
    ibm_fez={"gres": "qpu:ibm_fez", "licence": "qpu_ibm_fez"},
    FRESNEL={"licence": "qpu_FRESNEL"},
)
# Recorded from sacct 22.05, whose database writes the names of TRES in lower case.
OUTPUT = """\
module: loaded slurm
1|sandbox|ada|chemistry|2026-11-26T15:36:41|2026-11-26T15:36:42|2026-11-26T15:36:48|COMPLETED|6|billing=1,cpu=1,gres/qpu:ibm_fez=1,gres/qpu=1,license/qpu_ibm_fez=1,node=1
2|sandbox|ada||2026-11-26T15:36:52|2026-11-26T15:36:53|Unknown|RUNNING|5|gres/qpu:fresnel=1,gres/qpu=1,license/qpu_fresnel=2
3|sandbox|ada|chemistry|2026-11-26T15:37:03|2026-11-26T15:37:03|2026-11-26T15:37:04|COMPLETED|1|billing=1,cpu=1,node=1
4|sandbox|ada|chemistry|2026-11-26T15:37:03|None|Unknown|PENDING|0|license/qpu_ibm_fez=1
5|sandbox|ada|chemistry|2026-11-26T15:37:03|2026-11-26T15:37:03|2026-11-26T15:37:09|CANCELLED by 1000|6|license/qpu_ibm_fez=3,license/qpu_fresnel=1
"""  # noqa: E501


def seconds(clock: str) -> float:
    return datetime.fromisoformat(f"2026-11-26T{clock}").timestamp()


def test_jobs_with_a_qpu_are_found_by_its_gres_or_its_licence():
    first, second, fifth = parse_job_accounts(OUTPUT, SITE)

    assert first == JobAccount(
        id="1",
        cluster="sandbox",
        user="ada",
        account="chemistry",
        created=seconds("15:36:41"),
        started=seconds("15:36:42"),
        ended=seconds("15:36:48"),
        state="COMPLETED",
        elapsed=6,
        qpus={"ibm_fez": 1},
    )
    assert (second.qpus, second.ended, second.account) == ({"FRESNEL": 2}, None, "")
    assert (fifth.qpus, fifth.state) == ({"ibm_fez": 3, "FRESNEL": 1}, "CANCELLED")


@pytest.mark.parametrize(
    ("site", "jobs"),
    [
        (policy(q={"gres": "qpu"}), ["1", "2"]),
        (policy(q={"gres": "qpu"}, p={"gres": "qpu"}), []),  # it does not tell which
        (policy(q={}), []),
    ],
)
def test_a_gres_without_a_type_tells_of_a_qpu_only_if_there_is_one(site, jobs):
    assert [each.id for each in parse_job_accounts(OUTPUT, site)] == jobs


def test_one_command_asks_for_all_jobs_of_a_period():
    argv = job_accounts_argv(
        AccountQuery(user="ada", since=seconds("00:00:00"), until=seconds("12:30:00"))
    )

    assert argv[:4] == ["sacct", "-X", "--noheader", "--parsable2"]
    assert argv[-3:] == [
        "--user=ada",
        f"--starttime=uts{int(seconds('00:00:00'))}",
        f"--endtime=uts{int(seconds('12:30:00'))}",
    ]


def test_without_a_period_all_jobs_are_asked_for():
    """By itself, sacct lists those of today."""
    argv = job_accounts_argv(AccountQuery(user=None))

    assert argv[-3:] == ["--allusers", "--starttime=2000-01-01", "--endtime=now"]


# Recorded with 22.05.8; the ends of the lines are left out.
MEMBERS = """\
Current Association Manager state
Association Records
ClusterName=sandbox Account=chemistry UserName= Partition= Priority=0 ID=3 ParentAccount=root(1)
ClusterName=sandbox Account=chemistry UserName=nobody(65534) Partition= Priority=0 ID=5
ClusterName=sandbox Account=chemistry UserName=ada(1000) Partition=debug Priority=0 ID=4
ClusterName=sandbox Account=chemistry UserName=ada(1000) Partition= Priority=0 ID=6
"""
OWN = "".join(line for line in MEMBERS.splitlines(keepends=True) if "ada" in line)


@pytest.mark.parametrize(
    ("output", "account", "members"),
    [
        (MEMBERS, "Chemistry", {"nobody", "ada"}),
        (MEMBERS.partition("ClusterName=sandbox Account=chemistry UserName=n")[0], "chemistry", ()),
        (MEMBERS, "physics", None),
        (OWN, "chemistry", None),  # PrivateData=usage: others are not shown
        ("No associations currently cached in Slurm.\n", "chemistry", None),
        ("", "chemistry", None),
    ],
)
def test_who_may_charge_jobs_to_an_account_is_known_if_all_are_shown(output, account, members):
    assert parse_account_members(output, account) == (
        None if members is None else frozenset(members)
    )
    assert account_members_argv(account)[-2:] == [f"accounts={account}", "flags=assoc"]
