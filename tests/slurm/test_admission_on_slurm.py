"""Jobs of a QPU that is away stay pending on a real Slurm, and start when it is back.

The QPUs are granted in different ways. The vendors' states are the emulator's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_scripts import ScriptedSite
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.root]

PAGE = Path(__file__).parents[2] / "docs/admission.md"
QPUS = ("ibm_fez", "ibm_own", "ibm_gw", "ibm_many")
EMULATOR = "".join(
    f'[qpus.{name}]\ntype = "ibm-quantum-compute-service"\nsimulator = "null"\n' for name in QPUS
)
POLICY = """
[site]
state = "{state}"

[defaults]
gres = "qpu:{{qpu}}"

[qpus.ibm_fez]
licence = "qpu_ibm_fez"

[qpus.ibm_own]
partition = "quantum"

[qpus.ibm_gw]
gres_nodes = "n3"

[qpus.ibm_many]
"""
WAYS = {
    "ibm_fez": (("--licenses=qpu_ibm_fez:1",), "Licenses"),
    "ibm_own": (("--partition=quantum",), "PartitionDown"),
    "ibm_gw": ((), "ReqNodeNotAvail"),
}


class AdmittingSite(ScriptedSite):
    """The sandbox, with the commands of this page."""

    def qpu(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run `qpu` as root, who can read the site's qrmi_config.json."""
        config = self.box.directory / "emulator" / "qrmi_config.json"
        return subprocess.run(
            [sys.executable, "-m", "qrmi_workflows", *argv],
            env=self.environ | {"QPU_CONFIG": str(config)},
            cwd=self.work, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def reconcile(self) -> dict[str, object]:
        """Run `qpu site reconcile`, which must succeed."""
        done = self.qpu("site", "reconcile", "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, object] = json.loads(done.stdout)
        return document

    def set(self, qpu: str, availability: str) -> None:
        """Set the state that the vendor reports."""
        self.control.ask("PATCH", f"/qpus/{qpu}", {"availability": availability})

    def start(self, qpu: str, script: str) -> int:
        """Submit a job that requests a QPU as the site policy says."""
        return self.submit(script, f"--gres=qpu:{qpu}:1", *WAYS.get(qpu, ((), ""))[0])

    def reason(self, job: int) -> str:
        """Return a pending job's reason; empty if it is not pending."""
        form = f"--jobs={job} --format=%T|%r"
        state, _, reason = (
            self.slurm("squeue", "--noheader", "--states=all", *form.split()).strip().partition("|")
        )
        # Slurm adds one of several explanations to the last one.
        return reason.partition(",")[0] if state == "PENDING" else ""

    def await_reason(self, job: int, reason: str) -> None:
        """Wait until a job is pending for a reason."""
        wait_until(lambda: self.reason(job) == reason, f"job {job} to wait for {reason!r}")


@pytest.fixture(scope="module")
def shared() -> Iterator[AdmittingSite]:
    """A cluster in which each QPU is granted in another way."""
    config = render.render_slurm_conf

    def render_slurm_conf(cluster: render.Cluster) -> str:
        text = re.sub(r"(NodeName=n3 .*Gres=)\S+", r"\1qpu:ibm_gw:1", config(cluster))
        others = "qpu:ibm_fez:1,qpu:ibm_own:1,qpu:ibm_many:1"
        text = re.sub(r"(NodeName=n[12] .*Gres=)\S+", rf"\1{others}", text)
        return f"{text}PartitionName=quantum Nodes=n1\n"

    def render_gres_conf(_qpus: object) -> str:
        names = ("ibm_fez", "ibm_own", "ibm_many")
        lines = [f"NodeName=n[1-2] Name=qpu Type={name} Count=1" for name in names]
        lines.append("NodeName=n3 Name=qpu Type=ibm_gw Count=1")
        return "".join(f"{line} Flags=CountOnly\n" for line in lines)

    with tempfile.TemporaryDirectory(prefix="away-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "work").mkdir()
        (folder / "emulator.toml").write_text(EMULATOR)
        patch.setattr(render, "render_slurm_conf", render_slurm_conf)
        patch.setattr(render, "render_gres_conf", render_gres_conf)
        box = Sandbox(folder / "box")
        box.up(nodes=3, config=folder / "emulator.toml", site_scripts=True)
        try:
            site = AdmittingSite(box, folder / "work", (sys.executable,))
            (box.directory / "site.toml").write_text(POLICY.format(state=site.state))
            yield site
        finally:
            box.down(grace=0)


@pytest.fixture
def site(shared: AdmittingSite) -> Iterator[AdmittingSite]:
    """The cluster; at the end of each test, no QPU is away and no node is drained."""
    yield shared
    shared.slurm("scancel", "--quiet", "--signal=KILL", "--partition=main")
    shared.slurm("scancel", "--quiet", "--signal=KILL", "--partition=quantum")
    for qpu in QPUS:
        shared.set(qpu, "online")
    assert shared.qpu("site", "maintenance", *QPUS, "off").returncode == 0
    assert shared.reconcile()["away"] == []
    assert "No reservations" in shared.slurm("scontrol", "show", "reservation")
    wait_until(lambda: shared.slurm("squeue", "--noheader") == "", "all jobs to end")
    assert shared.drained_nodes() == []


@pytest.mark.slow
@pytest.mark.parametrize("qpu", WAYS)
def test_jobs_wait_while_the_qpu_is_offline_and_start_when_it_is_back(
    site: AdmittingSite, qpu: str
) -> None:
    """A running job goes on; a job that is submitted meanwhile waits, too."""
    running = site.start(qpu, "echo started; exec sleep 600")
    site.await_output(running, "started")  # its Prolog, which would refuse it, has ended
    before = site.start(qpu, "true")
    site.set(qpu, "offline")

    away = site.reconcile()
    meanwhile = site.start(qpu, "true")
    other = site.submit("true", "--nodelist=n2")

    assert [each["qpu"] for each in away["away"]] == [qpu]
    for job in (before, meanwhile):
        site.await_reason(job, WAYS[qpu][1])
    site.await_state(other, "COMPLETED")
    assert site.state_of(running).startswith("RUNNING")
    site.slurm("scancel", str(running))
    site.await_state(running, "CANCELLED")
    site.await_reason(before, WAYS[qpu][1])

    site.set(qpu, "online")
    assert site.reconcile()["away"] == []
    for job in (before, meanwhile):
        site.await_state(job, "COMPLETED")


def test_a_qpu_in_maintenance_by_hand_is_back_by_hand(site: AdmittingSite) -> None:
    """The page's own commands, and what users see of them."""
    on, listing, off = re.findall(r"^# (qpu .*)$", PAGE.read_text(), re.MULTILINE)
    message = "Cooling until Friday"

    first = site.qpu(*on.removeprefix("qpu ").replace(f'"{message}"', "TEXT").split()[:-1], message)
    listed = site.qpu(*listing.split()[1:])
    job = site.start("ibm_fez", "true")
    site.reconcile()
    shown = json.loads(site.qpu("list", "--json").stdout)
    refused = site.qpu("lease", "exec", "--qpu", "ibm_fez", "--", "true")
    requested = site.qpu("request", "ibm_fez")

    assert first.stdout == "reserve licence qpu_ibm_fez\n"
    assert re.search(rf"^ibm_fez +by hand +.*{message}", listed.stdout, re.MULTILINE)
    site.await_reason(job, "Licenses")
    (row,) = [row for row in shown if row["name"] == "ibm_fez"]
    assert (row["operational"], row["free"], row["available"]) == (True, 1, False)
    assert row["reason"].endswith(message)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert requested.returncode == 0
    assert message in requested.stderr

    ended = site.qpu(*off.split()[1:])

    assert ended.stdout == "delete reservation qpu_away_ibm_fez\n"
    site.await_state(job, "COMPLETED")


def test_a_job_that_slurm_cannot_keep_fails_with_the_message(site: AdmittingSite) -> None:
    done = site.qpu("site", "maintenance", "ibm_many", "on", "--message", "Cooling")
    job = site.start("ibm_many", "echo never")
    site.await_state(job, "FAILED")

    assert "Slurm cannot keep its jobs pending" in done.stderr
    assert "QPU 'ibm_many' is in maintenance since" in site.output(job)
    assert "Cooling" in site.output(job)
    assert "never" not in site.output(job)
    assert site.sessions()["open"] == 0


def test_a_partition_that_an_administrator_has_closed_stays_closed(site: AdmittingSite) -> None:
    site.slurm("scontrol", "update", "PartitionName=quantum", "State=DOWN")
    site.set("ibm_own", "offline")
    site.reconcile()
    site.set("ibm_own", "online")
    site.reconcile()

    assert "State=DOWN" in site.slurm("scontrol", "show", "partition", "quantum")
    site.slurm("scontrol", "update", "PartitionName=quantum", "State=UP")


def test_several_reconcilers_at_once_and_a_killed_one(site: AdmittingSite) -> None:
    """Each of them leaves what the last answers ask for."""
    for qpu in WAYS:
        site.set(qpu, "offline")
    config = site.box.directory / "emulator" / "qrmi_config.json"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "qrmi_workflows", "site", "reconcile"],
            env=site.environ | {"QPU_CONFIG": str(config)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    wait_until(lambda: "qpu_away" in site.slurm("scontrol", "show", "reservation"), "a reservation")
    started[0].kill()
    for process in started:
        process.wait(60)
    site.reconcile()

    shown = site.slurm("scontrol", "--oneliner", "show", "reservation").splitlines()
    assert sorted(line.split()[0] for line in shown) == [
        "ReservationName=qpu_away_ibm_fez",
        "ReservationName=qpu_away_ibm_gw",
    ]
    assert "State=DOWN" in site.slurm("scontrol", "show", "partition", "quantum")
