"""The credentials of a site whose Prolog acquires are in root's files and the job's own alone.

All fields of all vendors' definitions have planted secrets, passwords in URLs among them. They are
searched for, after jobs that succeed, fail and are refused, in all files of Slurm, the site and its
users, in the output of root's commands, in the system's list of processes, and in Slurm's records.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from other_users import User, python_for_all, temporary_user
from planted import EMULATOR, REFUSED, Vault
from site_scripts import ScriptedSite
from waiting import wait_until

from qrmi_workflows.sandbox import Sandbox, render

pytestmark = [pytest.mark.slurm, pytest.mark.root, pytest.mark.slow]

GRANTED = ("ibm_fez", "ibm_aer", "FRESNEL", "garnet_mock", "felis")
BELL = Path(__file__).parents[2] / "examples" / "bell" / "bell.json"


class SiteVault(Vault):
    """A site with site scripts, whose secrets are known."""

    user: User
    other: User

    @property
    def config(self) -> Path:
        return self.box.directory / "emulator" / "qrmi_config.json"

    def plant_passwords(self) -> None:
        """Put a password into each URL of the QPUs whose credentials are refused anyway."""
        document = json.loads(self.config.read_text())
        for resource in document["resources"]:
            if resource["name"] not in REFUSED:
                continue
            for key, value in resource["environment"].items():
                if "://" in value:
                    password = f"planted-{resource['name']}-{key.lower()}-7f3a"
                    resource["environment"][key] = value.replace("://", f"://login:{password}@")
                    self.secrets[password] = f"{resource['name']} {key} password"
        self.config.write_text(json.dumps(document))

    def _files(self) -> Iterator[Path]:
        """Leave out what only root, or only the job's user, can read."""
        for path in (*super()._files(), *self.user.home.rglob("*")):
            with suppress(OSError):
                found = path.stat()
                own = {"environment": self.user.name, ".json": "root"}
                is_of_lease = "jobs" in path.parts or "open" in path.parts
                owner = own.get(path.name, own.get(path.suffix)) if is_of_lease else None
                is_private = not stat.S_IMODE(found.st_mode) & 0o077
                if path.is_file() and not (owner and is_private and path.owner() == owner):
                    yield path


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[ScriptedSite, SiteVault, User]]:
    with tempfile.TemporaryDirectory(prefix="secrets-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        work = folder / "work"
        work.mkdir()
        work.chmod(0o1777)
        (work / "bell.json").write_bytes(BELL.read_bytes())
        (folder / "emulator.toml").write_text(EMULATOR)
        box = Sandbox(folder / "box")
        policy = render.render_site_policy
        folders = f'[site]\nbudgets = "{work}/budgets"\nrecords = "{work}/records"\n'
        with (
            temporary_user(f"ada{os.getpid()}", folder) as ada,
            temporary_user(f"eve{os.getpid()}", folder) as eve,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(
                render,
                "render_site_policy",
                lambda *qpus, **paths: policy(*qpus, **paths).replace("[site]\n", folders),
            )
            (work / "records").mkdir()
            (work / "records").chmod(0o1777)
            box.up(config=folder / "emulator.toml", site_scripts=True)
            try:
                vault = SiteVault(box, work)
                vault.user, vault.other = ada, eve
                vault.plant()
                vault.plant_passwords()
                yield ScriptedSite(box, work, python_for_all(ada, folder)), vault, ada
            finally:
                box.down(grace=0)


@pytest.fixture
def vault(site: tuple[ScriptedSite, SiteVault, User]) -> Iterator[SiteVault]:
    """The vault; fail if anything has leaked at the end of the test."""
    vault = site[1]
    with vault.watching():
        yield vault
    vault.control.ask("DELETE", "/faults")
    assert vault.found() == {}


def start(scripted: ScriptedSite, user: User, qpu: str, script: str) -> int:
    """Start a job that holds a QPU; whatever logs, logs all it can."""
    asked = (f"--gres=qpu:{qpu}:1", f"--licenses=qpu_{qpu}:1")
    setup = f"cd {user.home}\nexport RUST_LOG=trace QPU_BUDGET='9000 shots'"
    return scripted.submit(f"{setup}\n{script}", *asked, user=user)


def end(scripted: ScriptedSite, jobs: list[int]) -> list[str]:
    """Wait until jobs and their Epilogs have ended; return their output."""
    wait_until(lambda: scripted.slurm("squeue", "--noheader") == "", "the jobs to end", 100)
    return [scripted.output(job) for job in jobs]


def test_jobs_on_qpus_of_every_vendor(vault: SiteVault, site) -> None:
    scripted, _, ada = site
    jobs = [start(scripted, ada, qpu, "echo ran") for qpu in GRANTED]

    assert end(scripted, jobs) == ["ran\n"] * len(GRANTED)
    left = {path.name for path in scripted.state.glob("jobs/*")}
    assert left == {f"{job}.ended" for job in jobs}


def test_tasks_under_a_supervisor_with_a_budget(vault: SiteVault, site) -> None:
    scripted, _, ada = site
    qpu = f"{scripted.python} -m qrmi_workflows"
    run = f"{qpu} run {scripted.work}/bell.json -o bell.json"

    job = start(scripted, ada, "ibm_fez", f"{qpu} lease exec --qpu ibm_fez -- {run}")
    # Another user sees the arguments of all processes, and the environment of none but their own.
    others = scripted.submit(
        "env; for i in 1 2 3 4 5 6; do ps axeww; sleep 0.5; done", user=vault.other
    )

    end(scripted, [job, others])
    assert (ada.home / "bell.json").exists(), scripted.output(job)
    for command in ("reap --all", "usage", "budget show", "doctor", "list"):
        done = vault.run(command.replace(" ", "-"), "qpu", *command.split())
        assert "Traceback" not in done.stdout, done.stdout


def test_what_a_running_job_can_read(vault: SiteVault, site) -> None:
    scripted, _, ada = site
    job = start(scripted, ada, "ibm_fez", "echo started; exec sleep 600")
    scripted.await_output(job, "started")

    readable = ada.run("cat", str(scripted.folder(job) / "environment")).stdout
    assert any(secret in readable for secret in vault.secrets)
    assert vault.found() == {}  # but for the private files

    scripted.slurm("scancel", str(job))
    end(scripted, [job])


def test_jobs_whose_credentials_the_vendor_refuses(vault: SiteVault, site) -> None:
    scripted, _, ada = site
    qpu = f"{scripted.python} -m qrmi_workflows"
    show = f"{qpu} run {scripted.work}/bell.json -o refused.json"

    jobs = [start(scripted, ada, name, show) for name in REFUSED]

    for name, output in zip(REFUSED, end(scripted, jobs), strict=True):
        assert output.startswith("qpu: "), (name, output)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_vendor_that_echoes_the_credentials(vault: SiteVault, site, status: int) -> None:
    scripted, _, ada = site
    sent = [secret for secret, name in vault.secrets.items() if name.startswith("ibm_fez QRMI")]
    body = json.dumps({"error": f"sent: {' '.join(sent)}"})
    fault = {"kind": "status", "status": status, "body": body, "route": "POST */sessions"}
    vault.control.ask("POST", "/faults", fault)

    (output,) = end(scripted, [start(scripted, ada, "ibm_fez", "echo ran")])

    assert output.startswith("qpu: QPU 'ibm_fez' could not be acquired")
