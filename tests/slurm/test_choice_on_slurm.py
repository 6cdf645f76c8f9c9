"""Choosing a QPU on a real Slurm: who holds and waits for it counts, and jobs keep their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from pages import blocks
from site_under_test import Site, run
from waiting import wait_until

pytestmark = pytest.mark.slurm

DOCS = Path(__file__).parents[2] / "docs"
QPU = (sys.executable, "-m", "qrmi_workflows")
REQUEST = "ibm_*|FRESNEL"


class ChoosingSite:
    """The sandbox that tests share, and a cache that knows nothing yet."""

    def __init__(self, site: Site, cache: Path) -> None:
        self.site = site
        self.environ = os.environ | site.box.environment() | {"XDG_CACHE_HOME": str(cache)}

    def qpu(self, *arguments: str) -> tuple[str, str]:
        """Run `qpu`, which must succeed; return its output and its messages."""
        done = run(*QPU, *arguments, environ=self.environ, cwd=self.site.work)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def waiting(self) -> dict[str, tuple[int, int]]:
        """Return how many units of each QPU are free, and how many jobs wait for it."""
        listed = json.loads(self.qpu("list", REQUEST, "--json")[0])
        return {each["name"]: (each["free"], each["waiting"]) for each in listed}


@pytest.fixture
def choosing(shared_site: Site, tmp_path: Path) -> ChoosingSite:
    return ChoosingSite(shared_site, tmp_path / "cache")


def test_jobs_that_hold_or_wait_for_a_qpu_send_the_next_one_to_another(
    choosing: ChoosingSite,
) -> None:
    """Slurm's own counts: of a licence and a GRES, and of the jobs that are pending for them."""
    options = choosing.qpu("request", "ibm_fez")[0].split()
    jobs = [choosing.site.submit("sleep 600", *options) for _ in range(3)]
    choosing.site.wait_for(jobs[0], "RUNNING")

    free = {"ibm_fez": (0, 2), "FRESNEL": (1, 0)}
    wait_until(lambda: choosing.waiting() == free, "Slurm to show who waits", seconds=30)
    out, told = choosing.qpu("request", REQUEST)

    assert "--licenses=qpu_FRESNEL:1" in out
    assert f"chose QPU 'FRESNEL' for {REQUEST}: least busy of 2 that fit: 0 ahead" in told
    choosing.site.slurm("scancel", *map(str, jobs))


def test_a_job_uses_the_qpu_that_was_chosen_for_it_whatever_is_less_busy(
    choosing: ChoosingSite,
) -> None:
    """The engines export why; the lease record has it."""
    options = choosing.qpu("request", "ibm_*")[0].split()
    record = choosing.site.work / "record.jsonl"
    command = (
        f"{' '.join(QPU)} lease exec --qpu '{REQUEST}' --where 'queue < 0' --record {record} -- "
        "sh -c 'echo $QRMI_JOB_QPU_RESOURCES >used'"
    )
    reason = json.dumps({"ibm_fez": "ibm_*: no other fits"})
    job = choosing.site.submit(f"export QPU_CHOICE='{reason}'\n{command}", *options)
    choosing.site.wait_for(job)

    assert (choosing.site.work / "used").read_text() == "ibm_fez\n"
    assert json.loads(record.read_text())["chosen"] == "ibm_*: no other fits"


def test_the_submission_on_the_page_runs(choosing: ChoosingSite) -> None:
    (line,) = blocks(DOCS / "choosing.md", "bash")
    (choosing.site.work / "job.sh").write_text("#!/bin/sh\ntrue\n")

    done = run("bash", "-ec", line, environ=choosing.environ, cwd=choosing.site.work)

    assert done.returncode == 0, done.stderr
    assert "chose QPU 'ibm_fez' for ibm_* with where='queue < 10': no other fits" in done.stderr


def test_a_job_that_holds_no_qpu_can_choose_none(choosing: ChoosingSite) -> None:
    command = f"{' '.join(QPU)} lease exec --qpu '{REQUEST}' -- true 2>message"
    job = choosing.site.submit(command)
    choosing.site.wait_for(job, "FAILED")

    message = (choosing.site.work / "message").read_text()
    assert f"job {job} holds no QPU, so none can be chosen for {REQUEST}" in message
