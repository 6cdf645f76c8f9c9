"""Pasqal Local: the warden's protocol with real MUNGE credentials, through the real client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator_clients import ask, connect, device_of, pi_pulse, wait
from qrmi import Payload, QrmiError, ResourceStatusCode, TaskStatus


def munged_answers() -> bool:
    """Whether the machine's own munged runs."""
    try:
        return subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# Slurm's packages bring munge. Where no munged runs, only root can start one.
pytestmark = [pytest.mark.slurm, *([] if munged_answers() else [pytest.mark.root])]
SOCKET = Path("/run/munge/munge.socket.2")  # libmunge, which QRMI loads, knows no other


@pytest.fixture(scope="module")
def munged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The machine's munged, or one of our own in its place while these tests run."""
    if munged_answers():
        yield
        return
    if os.getuid() != 0:
        pytest.fail("no munged answers; start it: `systemctl start munge`, as root")
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
    deadline = time.monotonic() + 10
    while not SOCKET.exists():
        assert daemon.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield
    daemon.terminate()
    daemon.wait(10)
    if created:
        shutil.rmtree(SOCKET.parent)


def test_every_method_of_a_resource(emulator, munged):
    """A session is opened for a user, its tasks run, and it is revoked."""
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


def test_a_session_of_another_user_is_refused(emulator, munged):
    """The credential's user must own the session."""
    job = {"QRMI_JOB_UID": "54321", "QRMI_JOB_ID": "7"}
    token = connect(emulator, "fresnel_local", **job).acquire()
    mine = connect(emulator, "fresnel_local", QRMI_JOB_ACQUISITION_TOKEN=token, **job)
    with pytest.raises(QrmiError, match=r"403 Forbidden.*another user"):
        mine.task_start(Payload.PasqalCloud(sequence="{}", job_runs=1))
    mine.release(token)


def test_credentials_are_asked_of_munged(emulator, munged):
    """A missing credential, an invented one, and one that is used twice are refused."""
    path = "/pasqal-local/fresnel_local/jobs"
    credential = subprocess.run(
        ["munge", "-n"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert ask(emulator, "GET", path)[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": "MUNGE:nonsense:"})[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": credential})[0] == 200
    status, body = ask(emulator, "GET", path, headers={"X-Munge-Cred": credential})
    assert (status, body) == (401, {"detail": "Replayed credential"})
