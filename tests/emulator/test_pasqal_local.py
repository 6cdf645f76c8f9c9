"""Pasqal Local with real MUNGE credentials, through the real `qrmi` client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator_clients import ask, connect, device_of, pi_pulse, wait
from qrmi import Payload, QrmiError, ResourceStatusCode, TaskStatus
from waiting import wait_until


def is_munged_running() -> bool:
    """Return whether the machine's own munged is running."""
    try:
        return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# Slurm's packages install munge. If munged is not running, only root can start it.
pytestmark = [pytest.mark.slurm, *([] if is_munged_running() else [pytest.mark.root])]
SOCKET = Path("/run/munge/munge.socket.2")  # compiled into libmunge, which QRMI loads


@pytest.fixture(scope="module")
def munged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start munged for these tests if it is not running."""
    if is_munged_running():
        yield
        return
    if os.getuid() != 0:
        pytest.fail("munged is not running; start it as root with `systemctl start munge`")
    folder = tmp_path_factory.mktemp("munge", numbered=True)
    folder.chmod(0o700)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    created = not SOCKET.parent.exists()
    SOCKET.parent.mkdir(mode=0o755, exist_ok=True)
    files = [f"--{name}-file={folder / name}" for name in ("key", "pid", "seed")]
    daemon = subprocess.Popen(
        ["munged", "--foreground", "--force", *files], stderr=subprocess.DEVNULL
    )
    wait_until(lambda: SOCKET.exists() or daemon.poll() is not None, "munged's socket")
    assert daemon.poll() is None
    yield
    daemon.terminate()
    daemon.wait(60)
    if created:
        shutil.rmtree(SOCKET.parent)


def test_every_method_of_a_resource(emulator, munged):
    """Every method works: a session is opened for a user, runs a task and is revoked."""
    job = {"QRMI_JOB_UID": str(os.getuid()), "QRMI_JOB_ID": "7"}
    resource = connect(emulator, "fresnel_local", **job)
    assert resource.status().status == ResourceStatusCode.Online
    device = device_of(resource)
    assert device.name == "fresnel_local"
    token = resource.acquire()
    held = connect(emulator, "fresnel_local", QRMI_JOB_ACQUISITION_TOKEN=token, **job)
    task = held.task_start(Payload.PasqalCloud(sequence=pi_pulse(device), job_runs=100))
    assert wait(held, task) == TaskStatus.Completed
    assert json.loads(held.task_result(task).value)["counter"]["1"] > 95
    assert "1 atoms" in held.task_logs(task)
    held.task_stop(task)
    held.release(token)
    with pytest.raises(QrmiError, match=r"403 Forbidden.*revoked"):
        held.task_start(Payload.PasqalCloud(sequence=pi_pulse(device), job_runs=100))
    assert emulator.counters()["qpus"]["fresnel_local"]["sessions"]["open"] == 0


def test_a_session_of_another_user_is_rejected(emulator, munged):
    """The session must belong to the user of the MUNGE credential."""
    job = {"QRMI_JOB_UID": "54321", "QRMI_JOB_ID": "7"}
    token = connect(emulator, "fresnel_local", **job).acquire()
    resource = connect(emulator, "fresnel_local", QRMI_JOB_ACQUISITION_TOKEN=token, **job)
    with pytest.raises(QrmiError, match=r"403 Forbidden.*another user"):
        resource.task_start(Payload.PasqalCloud(sequence="{}", job_runs=1))
    resource.release(token)


def test_munged_verifies_the_credentials(emulator, munged):
    """A missing, a forged or a replayed credential is rejected."""
    path = "/pasqal-local/fresnel_local/jobs"
    credential = subprocess.run(
        ["munge", "-n"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert ask(emulator, "GET", path)[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": "MUNGE:nonsense:"})[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": credential})[0] == 200
    status, body = ask(emulator, "GET", path, headers={"X-Munge-Cred": credential})
    assert (status, body) == (401, {"detail": "Replayed credential"})
