"""Slurm's own accounting, on a real MariaDB, and `qpu usage` agree about the same jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from site_under_test import Site, run
from waiting import wait_until

from qrmi_workflows.errors import SandboxError
from qrmi_workflows.sandbox import Sandbox

pytestmark = [pytest.mark.slurm, pytest.mark.accounting]

DOCS = Path(__file__).parents[2] / "docs"
PAYLOAD = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
SHOTS = 128


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A sandbox with accounting, one node, and an account."""
    folder = tmp_path_factory.mktemp("accounting")
    site = Site(Sandbox(folder / "site"), folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPU_STATE", str(folder / "state"))  # without the leases of other tests
        try:
            site.box.up(accounting=True, nodes=1)
            site.slurm("sacctmgr", "--immediate", "add", "account", "chemistry", "cluster=sandbox")
            user = ("user", site.slurm("id", "-un").strip())
            site.slurm("sacctmgr", "--immediate", "add", *user, "account=chemistry")
            (site.work / "x.qasm").write_text(PAYLOAD)
            yield site
        finally:
            site.box.down(grace=0)


def in_job(site: Site, qpu: str, command: str) -> str:
    """Run a command under a lease in a job, wait for the job, and return its id."""
    options = site.slurm("qpu", "request", qpu).split()
    script = f"qpu lease exec --qpu {qpu} -- {command}"
    job = site.submit(script, "--account=chemistry", *options)
    site.wait_for(job)
    return str(job)


@pytest.fixture(scope="module")
def jobs(site: Site) -> dict[str, str]:
    """Jobs that held a QPU, by id, and one that held none."""
    sample = f"qpu run x.qasm -o $SLURM_JOB_ID.json --shots {SHOTS} --quiet"
    held = {
        in_job(site, "ibm_fez", f"sh -c '{sample}; sleep 2'"): "ibm_fez",
        in_job(site, "ibm_fez", "sleep 1"): "ibm_fez",
        in_job(site, "FRESNEL", "sleep 1"): "FRESNEL",
    }
    site.wait_for(site.submit("sleep 1", "--account=chemistry"))
    wait_until(lambda: len(sacct(site)) == len(held), "the accounting to know all jobs' ends")
    return held


def sacct(site: Site) -> dict[str, dict[str, str]]:
    """Return what `sacct` knows of the ended jobs that held a QPU, by id."""
    names = ("JobIDRaw", "Account", "Submit", "Start", "End", "ElapsedRaw", "State", "AllocTRES")
    shown = site.slurm("sacct", "-X", "-n", "-P", f"--format={','.join(names)}")
    rows = [dict(zip(names, line.split("|"), strict=True)) for line in shown.splitlines()]
    ended = [row for row in rows if row["State"] == "COMPLETED" and "gres/qpu=" in row["AllocTRES"]]
    return {row["JobIDRaw"]: row for row in ended}


def usage(site: Site, *options: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(site.slurm("qpu", "usage", "--json", *options))
    return document


def local(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_sacct_and_usage_name_the_same_jobs(site: Site, jobs: dict[str, str]) -> None:
    """And the same QPU of each: its GRES, and its licence, are in the accounts."""
    of_jobs = usage(site, "--by", "job,qpu,account")["groups"]

    assert {(each["job"], each["qpu"]) for each in of_jobs} == set(jobs.items())
    assert {each["account"] for each in of_jobs} == {"chemistry"}
    known = sacct(site)
    assert known.keys() == jobs.keys()
    for job, qpu in jobs.items():
        tres = known[job]["AllocTRES"].split(",")
        # The database does not tell upper case from lower case.
        assert {"gres/qpu=1", f"gres/qpu:{qpu}=1".lower(), f"license/qpu_{qpu}=1".lower()} <= {
            each.lower() for each in tres
        }


def test_the_times_of_jobs_are_those_of_slurm(site: Site, jobs: dict[str, str]) -> None:
    """To the second, which is how exactly Slurm keeps them."""
    known = sacct(site)
    for record in records(site):
        row = known[record["owner"]["job"]]
        assert datetime.fromisoformat(record["job_created"]).timestamp() == local(row["Submit"])
        assert datetime.fromisoformat(record["job_started"]).timestamp() == local(row["Start"])
        assert datetime.fromisoformat(record["acquired"]).timestamp() >= local(row["Start"])
        assert datetime.fromisoformat(record["released"]).timestamp() <= local(row["End"]) + 1
        assert record["queue_wait"] == local(row["Start"]) - local(row["Submit"])
        assert record["account"] == row["Account"]
    assert len(records(site)) == len(jobs)


def records(site: Site) -> list[dict[str, Any]]:
    files = (site.work.parent / "state" / "leases").glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_members_of_an_account_are_those_of_slurm(site: Site, jobs: dict[str, str]) -> None:
    """Asked in a job, by Slurm's controller."""
    code = "from qrmi_workflows.schedulers import this_scheduler as s;"
    code += "print(sorted(s().account_members('chemistry')), s().account_members('absent'))"
    job = site.submit(f'python -c "{code}"', "--account=chemistry", "--output=members")
    site.wait_for(job)

    user = site.slurm("id", "-un").strip()
    assert (site.work / "members").read_text() == f"{[user]} None\n"


def test_a_qpu_is_held_within_the_seconds_that_slurm_counts(
    site: Site, jobs: dict[str, str]
) -> None:
    known = sacct(site)
    for each in usage(site, "--by", "job")["groups"]:
        assert 0 < each["held_seconds"] <= int(known[each["job"]]["ElapsedRaw"]) + 1


def test_sreport_counts_the_same_seconds_of_qpus(site: Site, jobs: dict[str, str]) -> None:
    """The seconds for which jobs had a QPU's GRES, which are those of all sacct's jobs with it."""
    report = ("sreport", "-n", "-P", "-t", "seconds", "--tres=gres/qpu", "job", "SizesByAccount")
    period = ("start=now-1hour", "end=now+1hour")

    zone = f"TZ={a_quarter_to()}"
    (line,) = site.slurm("env", zone, *report, *period, "grouping=1000").splitlines()

    elapsed = sum(int(row["ElapsedRaw"]) for row in sacct(site).values())
    assert line.split("|")[2:4] == [str(elapsed), "0"]
    held = usage(site)["total"]["held_seconds"]
    assert held <= elapsed + len(jobs)


def a_quarter_to() -> str:
    """Return a time zone in which it is about a quarter to the hour now.

    sreport 22.05 rounds its period to the nearest full hours: in the first half of an hour, it
    leaves the jobs of that hour out.
    """
    return f"QTR-00:{(45 - datetime.now(UTC).minute) % 60:02}"


def test_usage_joins_each_job_with_slurms_account_of_it(site: Site, jobs: dict[str, str]) -> None:
    """A job that held a QPU without a lease is named, and one without a QPU is left out."""
    idle = site.submit("true", *site.slurm("qpu", "request", "ibm_fez").split())
    site.wait_for(idle)
    wait_until(lambda: str(idle) in ended(site), "the accounting to know the job's end")

    document = usage(site, "--jobs")

    known = sacct(site)
    assert {each["job"] for each in document["groups"]} == {*jobs, str(idle)}
    for each in document["groups"]:
        row = known[each["job"]]
        assert each["elapsed_seconds"] == each["qpu_seconds"] == int(row["ElapsedRaw"])
        for name, theirs in (("created", "Submit"), ("started", "Start"), ("ended", "End")):
            assert datetime.fromisoformat(each[name]).timestamp() == local(row[theirs])
        assert each["leases"] == (each["job"] in jobs)
    named = [each["job"] for each in document["anomalies"] if each["kind"] == "no-lease"]
    assert named == [str(idle)]


def test_usage_says_what_slurm_cannot_know(site: Site, jobs: dict[str, str]) -> None:
    """How much of its time a QPU was busy, with how many tasks and shots."""
    total = usage(site)["total"]

    assert (total["leases"], total["tasks"], total["shots"]) == (len(jobs), 1, SHOTS)
    assert 0 < total["busy_seconds"] < total["held_seconds"]
    assert total["idle_seconds"] == pytest.approx(
        total["held_seconds"] - total["busy_seconds"], abs=2e-3
    )


def test_the_commands_of_the_page_run(site: Site, jobs: dict[str, str]) -> None:
    """Those of `qpu usage`, and Slurm's; the page's settings are those of the sandbox."""
    page = (DOCS / "accounting.md").read_text(encoding="utf-8")
    spans = [
        " ".join(span.split())
        for span in re.findall(r"(?<!`)`((?:qpu|sacct|sreport) [^`]+)`", page)
    ]
    commands = [*re.findall(r"^\$ (.+)$", page, re.MULTILINE), *spans]
    run_here = [each for each in commands if not each.startswith(("qpu sandbox", "qpu reap"))]
    assert {each.split()[0] for each in run_here} == {"qpu", "sacct", "sreport"}

    for command in run_here:
        assert site.slurm(*command.split()) is not None

    (tres,) = re.findall(r"^AccountingStorageTRES=(\S+)$", page, re.MULTILINE)
    running = site.slurm("scontrol", "show", "config")
    (known,) = re.findall(r"^AccountingStorageTRES\s*= (\S+)$", running, re.MULTILINE)
    assert set(tres.lower().split(",")) <= set(known.lower().split(","))


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), f"process {pid} to end")


@pytest.mark.parametrize("daemon", ["mariadbd", "slurmdbd"])
def test_a_killed_database_is_restarted_and_has_lost_no_job(
    site: Site, jobs: dict[str, str], daemon: str
) -> None:
    """Jobs that end in the meantime are in the accounts afterwards: slurmctld keeps them."""
    kill(site.pids()[daemon])
    assert daemon in site.box.status().dead
    job = site.submit("true", "--account=chemistry")
    site.wait_for(job)

    site.box.up()

    assert site.box.status().state == "up"
    wait_until(lambda: str(job) in ended(site), f"the accounting to know the end of job {job}")
    assert sacct(site).keys() >= jobs.keys()


def ended(site: Site) -> list[str]:
    done = run(
        *("sacct", "-X", "-n", "-P", "--format=JobIDRaw,State"),
        environ=os.environ | site.box.environment(),
    )
    return [line.split("|")[0] for line in done.stdout.splitlines() if "COMPLETED" in line]


def test_the_database_is_for_its_user_alone(site: Site) -> None:
    """No port of it is open, and its files are closed to others."""
    mariadbd = psutil.Process(site.pids()["mariadbd"])
    slurmdbd = psutil.Process(site.pids()["slurmdbd"])
    listening = [each for each in mariadbd.net_connections() if each.status == "LISTEN"]

    assert listening == []
    for each in slurmdbd.net_connections():
        if each.status == "LISTEN":
            assert each.laddr.ip == "127.0.0.1"
    assert (site.box.directory / "database").stat().st_mode & 0o077 == 0


def test_a_sandbox_without_accounting_cannot_get_it_while_it_is_up(site: Site) -> None:
    with pytest.raises(SandboxError, match="is up with accounting"):
        site.box.up(accounting=False)


def test_the_history_survives_and_no_process_does(tmp_path: Path) -> None:
    """Not even if slurmdbd or the database was killed before."""
    site = Site(Sandbox(tmp_path / "site"), tmp_path / "work")
    try:
        site.box.up(accounting=True, nodes=1)
        job = site.submit("true")
        site.wait_for(job)
        wait_until(lambda: str(job) in ended(site), "the job to be in the accounts")
        kill(site.pids()["slurmdbd"])
        site.box.down(grace=0)
        assert site.processes() == []
        site.box.up(accounting=True, nodes=1)
        assert str(job) in ended(site)
        kill(site.pids()["mariadbd"])
    finally:
        site.box.down(grace=0)
    deadline = time.monotonic() + 10
    while site.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert site.processes() == []
