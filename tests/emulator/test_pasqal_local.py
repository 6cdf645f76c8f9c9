"""Pasqal Local with real MUNGE credentials, through the real `qrmi` client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from emulator_clients import ask, device_of, pi_pulse
from munge_daemon import is_munged_running, running_munged
from other_users import User, python_for_all, temporary_user
from servers import servers, to_toml
from waiting import wait_until

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.client.resource import QRMIResource
from qrmi_workflows.config.qpus import load_qpus
from qrmi_workflows.emulator import Emulator, start_emulator
from qrmi_workflows.errors import PayloadError, QPUError, SessionEndedError
from qrmi_workflows.vendors.registry import load_vendor

SERVERS = {"_".join(server) or "public": server for server in servers("pasqal-local")}


# Slurm's packages install munge. If munged is not running, only root can start it.
pytestmark = [pytest.mark.slurm, *([] if is_munged_running() else [pytest.mark.root])]


@pytest.fixture(scope="module")
def munged() -> Iterator[None]:
    """Start munged for these tests if it is not running."""
    with running_munged():
        yield


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def user(open_folder: Path) -> Iterator[User]:
    """An unprivileged user."""
    with temporary_user(f"qpu{os.getpid()}", open_folder) as new_user:
        yield new_user


@pytest.fixture(scope="module")
def python(user: User, open_folder: Path) -> tuple[str, ...]:
    """A Python with this project's packages that the user may run."""
    return python_for_all(user, open_folder)


@pytest.fixture(scope="module")
def wardens(tmp_path_factory: pytest.TempPathFactory, munged: None) -> Iterator[Emulator]:
    """An emulator with one QPU for each way in which wardens differ."""
    folder = tmp_path_factory.mktemp("wardens")
    tables = [
        f'[qpus.{name}]\ntype = "pasqal-local"\nserver = {to_toml(server)}'
        for name, server in SERVERS.items()
    ]
    (folder / "emulator.toml").write_text("\n".join(["record = true", *tables]))
    with start_emulator(folder / "state", config=folder / "emulator.toml") as running:
        yield running


@pytest.fixture
def site(wardens: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Emulator:
    """These QPUs as a site offers them, to a user with an empty state folder."""
    monkeypatch.setenv("QPU_CONFIG", str(wardens.config_path))
    monkeypatch.setenv("QPU_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return wardens


def payload(qpu: str) -> dict[str, Any]:
    """Return a task for a QPU, which needs no lease to say what it can run."""
    device = device_of(QRMIResource(qpu, "pasqal-local", read_settings(qpu)))
    return {"sequence": json.loads(pi_pulse(device)), "job_runs": 100}


def read_settings(qpu: str) -> dict[str, str]:
    """Return a QPU's settings as the site's file has them."""
    return dict(load_qpus()[qpu].environment)


def credential() -> str:
    """Return a new credential of this process's user."""
    done = subprocess.run(["munge", "-n"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def sessions_asked_for(emulator: Emulator) -> list[dict[str, str]]:
    """Return the requests for sessions that the emulator has got."""
    lines = (emulator.folder / "requests.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    return [
        json.loads(each["body"])
        for each in requests
        if each["method"] == "POST" and each["path"].endswith("/sessions")
    ]


def open_sessions(emulator: Emulator) -> set[str]:
    """Return the ids of the sessions that are open on any QPU."""
    with closing(sqlite3.connect(emulator.folder / "emulator.db")) as database:
        return {row[0] for row in database.execute("SELECT id FROM sessions WHERE closed IS NULL")}


@pytest.mark.root
@pytest.mark.parametrize("qpu", SERVERS)
def test_root_runs_a_task_under_a_lease(site, qpu):
    """A session is opened, runs a task and is revoked; nothing but the site's file is needed."""
    with open_lease(qpu) as lease:
        result = lease.run(payload(qpu))
        assert result.data[0]["registers"]["atoms"]["counts"]["1"] > 95
        lease.release()
        with pytest.raises(SessionEndedError, match="revoked"):
            lease.resource.task_start(load_vendor("pasqal").encode(payload(qpu)))
    assert site.counters()["qpus"][qpu]["sessions"]["open"] == 0


@pytest.mark.root
def test_a_session_names_the_job_and_its_user(site, monkeypatch):
    """The values of the site take precedence; outside a job, the id names the process."""
    for variables in (
        {},
        {"SLURM_JOB_ID": "17"},
        {"SLURM_JOB_ID": "17", "QRMI_JOB_ID": "17", "QRMI_JOB_UID": "54321"},
        # In a job, those of another job would be inherited from the one that submitted it.
        {"SLURM_JOB_ID": "", "QRMI_JOB_ID": "4", "QRMI_JOB_UID": "54321"},
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        open_lease("public").release()
    here = f"{socket.gethostname()}.{os.getpid()}"
    assert sessions_asked_for(site)[-4:] == [
        {"user_id": "0", "slurm_job_id": here},
        {"user_id": "0", "slurm_job_id": "17"},
        {"user_id": "54321", "slurm_job_id": "17"},
        {"user_id": "54321", "slurm_job_id": "4"},
    ]


@pytest.mark.parametrize("qpu", SERVERS)
def test_a_log_is_read_where_the_warden_has_a_route_for_it(site, qpu):
    resource = QRMIResource(qpu, "pasqal-local", read_settings(qpu))
    found = "Job not found" if SERVERS[qpu].get("log_route") else '"Not Found"'
    with pytest.raises(QPUError, match=found):
        resource.task_logs("0")


@pytest.mark.root
@pytest.mark.parametrize("qpu", ["public", "root_opens_sessions"])
def test_a_user_runs_tasks_under_a_session_that_root_has_opened(site, user, python, qpu):
    """A user cannot open one at most sites, and the message says who can; then the task runs."""
    config = user.home / "qrmi_config.json"
    shutil.copy(site.config_path, config)  # it has no secret: MUNGE identifies users
    shutil.chown(config, user.name)
    (user.home / "pulse.json").write_text(json.dumps(payload(qpu)))
    here = {"QPU_CONFIG": str(config), "QPU_STATE": str(user.home / f"state-{qpu}")}

    def run(output: str, **lease: str) -> subprocess.CompletedProcess[str]:
        argv = (*python, "-m", "qrmi_workflows", "run", "pulse.json", "-o", output, "--qpu", qpu)
        return user.run(*argv, **here, **lease)

    refused = run(f"alone-{qpu}.json")
    if SERVERS[qpu].get("root_opens_sessions", True):
        assert refused.returncode == 1
        assert "403 Forbidden" in refused.stderr
        assert "lets only root open and close sessions" in refused.stderr
        assert f"{qpu}_QRMI_JOB_ACQUISITION_TOKEN" in refused.stderr
    else:
        assert refused.returncode == 0, refused.stderr
    with pytest.MonkeyPatch.context() as patch:  # what a site's prolog knows about the job
        patch.setenv("QRMI_JOB_UID", str(user.home.stat().st_uid))
        patch.setenv("QRMI_JOB_ID", "7")
        lease = open_lease(qpu)
        done = run(f"out-{qpu}.json", **lease.environment())
        lease.release()
    assert done.returncode == 0, done.stderr
    result = QuantumResult.load(user.home / f"out-{qpu}.json")
    assert result.data[0]["registers"]["atoms"]["counts"]["1"] > 95


@pytest.mark.root
def test_a_program_that_knows_only_qrmi_runs_under_a_lease(site, tmp_path):
    """The lease gives it everything that QRMI requires, outside a job too."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, qrmi\n"
        "[resource] = qrmi.QRMIService().resources()\n"
        "task = qrmi.Payload.PasqalCloud(sequence=sys.stdin.read(), job_runs=10)\n"
        "print(resource.task_start(task))\n"
    )
    qpu = Path(sys.executable).parent / "qpu"
    done = subprocess.run(
        [qpu, "lease", "exec", "--qpu", "public", "--", sys.executable, program],
        input=json.dumps(payload("public")["sequence"]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdecimal(), "a task's number"


EXAMPLE = """
import os, sys, time
from qrmi import Payload, QuantumResource, ResourceType, TaskStatus

name, sequence = sys.argv[1], open(sys.argv[2]).read()
qrmi = QuantumResource(name, ResourceType.PasqalLocal)
print(qrmi.resource_id(), qrmi.resource_type(), qrmi.is_accessible())
session = qrmi.acquire()
os.environ[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] = session
print(session)
print(len(qrmi.target().value) > 100)
first = qrmi.task_start(Payload.PasqalCloud(sequence=sequence, job_runs=1000))
qrmi.task_stop(first)
print(qrmi.task_status(first) in (TaskStatus.Cancelled, TaskStatus.Completed))
second = qrmi.task_start(Payload.PasqalCloud(sequence=sequence, job_runs=100))
while (status := qrmi.task_status(second)) not in (TaskStatus.Completed, TaskStatus.Failed):
    time.sleep(0.1)
print(status)
print(qrmi.task_result(second).value)
"""


@pytest.mark.root
def test_upstreams_example_for_pasqal_local_runs_under_a_lease(site, tmp_path):
    """It opens a session of its own, which it leaves open; that of the lease is closed."""
    (tmp_path / "program.py").write_text(EXAMPLE)
    (tmp_path / "sequence.json").write_text(json.dumps(payload("public")["sequence"]))
    before = open_sessions(site)
    qpu = Path(sys.executable).parent / "qpu"
    program = [sys.executable, tmp_path / "program.py", "public", tmp_path / "sequence.json"]

    done = subprocess.run(
        [qpu, "lease", "exec", "--qpu", "public", "--", *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    _, session, *_, status, result = done.stdout.splitlines()
    assert status == "TaskStatus.Completed"
    assert json.loads(result)["counter"]["1"] > 95
    assert open_sessions(site) - before == {session}
    QRMIResource("public", "pasqal-local", read_settings("public")).release(session)
    assert open_sessions(site) <= before


@pytest.mark.root
def test_a_session_of_another_user_is_rejected(site, monkeypatch):
    """The session must belong to the user of the MUNGE credential."""
    monkeypatch.setenv("QRMI_JOB_UID", "54321")
    with open_lease("public") as lease, pytest.raises(QPUError, match=r"another user.*Run it as"):
        lease.run(payload("public"))


@pytest.mark.root
def test_malformed_requests_are_refused_as_by_fastapi(site):
    """It refuses halves of surrogate pairs and numbers of more than 64 bits, with 422."""
    requests = [
        *(("sessions", {"user_id": value, "slurm_job_id": "1"}) for value in (7, None, "\ud800")),
        *(("sessions", {"user_id": "1", "slurm_job_id": value}) for value in (7, [], "\udfff")),
        *(("jobs", {"sequence": value, "shots": 1}) for value in (7, {}, "\ud800")),
        *(("jobs", {"sequence": "{}", "shots": value}) for value in (2**63, 0, "x", True)),
    ]
    with open_lease("public") as lease:
        token = lease.environment()["public_QRMI_JOB_ACQUISITION_TOKEN"]
        for path, body in requests:
            headers = {"X-Munge-Cred": credential(), "X-Warden-Session": token}
            answer = ask(site, "POST", f"/pasqal-local/public/{path}", body, headers)
            assert answer[0] == 422, (body, answer)
            assert "detail" in answer[1]


@pytest.mark.root
def test_a_task_with_more_runs_than_the_device_allows_fails(site):
    """The warden passes them on, and the QPU refuses them; our own check does so before."""
    content = {**payload("public"), "job_runs": 2001}
    with open_lease("public") as lease:
        lease.target()
        with pytest.raises(PayloadError, match="2001 runs: must be at most 2000"):
            lease.run(content)
        task = lease.resource.task_start(load_vendor("pasqal").encode(content))
        wait_until(
            lambda: str(lease.resource.task_status(task)).endswith("Failed"), "the task's failure"
        )


def test_munged_verifies_the_credentials(emulator, munged):
    """A missing, a forged or a replayed credential is rejected."""
    path = "/pasqal-local/fresnel_local/jobs"
    mine = credential()
    assert ask(emulator, "GET", path)[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": "MUNGE:nonsense:"})[0] == 401
    assert ask(emulator, "GET", path, headers={"X-Munge-Cred": mine})[0] == 200
    status, body = ask(emulator, "GET", path, headers={"X-Munge-Cred": mine})
    assert (status, body) == (401, {"detail": "Replayed credential"})
