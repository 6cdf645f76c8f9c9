"""A site with a short KillWait: a lease is released before Slurm sends SIGKILL."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from site_under_test import Site
from waiting import wait_until

from qrmi_workflows.emulator.client import Control
from qrmi_workflows.lease.history import records_of_job
from qrmi_workflows.lease.killwait import DEFAULT_SECONDS
from qrmi_workflows.schedulers.slurm_config import kill_wait_of

pytestmark = pytest.mark.slurm

KILL_WAIT = 12  # with the default shares, the first call would hang for longer
RELEASE = "[PD]* */sessions/*"  # PATCH, or DELETE if the session has run a task
SCRIPT = f"""
trap : TERM  # this shell must live until SIGKILL, to tell when that comes
PATH=$PWD/bin:$PATH
{sys.executable} -m qrmi_workflows lease exec --qpu ibm_fez -- \\
    sh -c "trap '' TERM; touch ready; sleep 600"
echo $? > code
while true; do touch alive; sleep 0.1; done
"""
# Notes each question once it has answered it.
SCONTROL = """#!/bin/sh
{real} "$@" && echo "$@" >>answered
"""


@pytest.fixture
def site(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A sandbox with a short KillWait, and a user with a state folder of their own."""
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    site = make_site()
    conf = site.box.directory / "etc" / "slurm.conf"
    conf.write_text(f"{conf.read_text()}KillWait={KILL_WAIT}\n")
    site.slurm("scontrol", "reconfigure")
    wait_until(
        lambda: kill_wait_of(site.slurm("scontrol", "show", "config")) == KILL_WAIT,
        "the new configuration",
    )
    scontrol = site.work / "bin" / "scontrol"
    scontrol.parent.mkdir()
    real = shutil.which("scontrol", path=site.box.environment()["PATH"])
    scontrol.write_text(SCONTROL.format(real=real))
    scontrol.chmod(0o755)
    return site


def test_a_lease_is_released_in_time_although_the_vendor_hangs(site: Site):
    """The command ignores SIGTERM, and the first call to release hangs."""
    control = Control(site.box.directory / "emulator")
    submitted = datetime.now(UTC)
    job = site.submit(SCRIPT, "--gres=qpu:ibm_fez:1", "--licenses=qpu_ibm_fez:1")
    wait_until((site.work / "ready").exists, "the command to ignore SIGTERM")
    answered = site.work / "answered"
    wait_until(
        lambda: answered.exists() and "show config" in answered.read_text(),
        "the supervisor to learn KillWait",
    )
    control.ask("POST", "/faults", {"kind": "hang", "route": RELEASE, "count": 1})

    cancelled = time.time()
    site.slurm("scancel", str(job))
    wait_until(lambda: control.counters()["sessions"]["open"] == 0, "the release")
    site.wait_for(job, "CANCELLED")
    wait_until(lambda: site.slurm("squeue", "--noheader") == "", "the end of the job")

    (rule,) = control.ask("GET", "/faults")
    assert rule["matched"] == 2, "the first call hung, the second released"
    (record,) = records_of_job(str(job), submitted)
    assert not record.reaped
    assert (site.work / "code").read_text() == "137\n"
    exited, killed = ((site.work / name).stat().st_mtime - cancelled for name in ("code", "alive"))
    assert exited < killed
    assert KILL_WAIT - 1 < killed < DEFAULT_SECONDS, "Slurm has not kept to KillWait"
