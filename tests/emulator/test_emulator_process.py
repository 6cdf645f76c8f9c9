"""The emulator as a process: its files, port, restarts, shutdown and command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from emulator_clients import bell, connect, primitive, wait
from qrmi import AuthenticationFailedError, TaskStatus

from qrmi_workflows.emulator import start_emulator
from qrmi_workflows.errors import EmulatorError

NULL = """
[qpus.ibm_null]
type = "ibm-quantum-compute-service"
simulator = "null"
"""


@pytest.fixture
def null_config(tmp_path: Path) -> Path:
    path = tmp_path / "null.toml"
    path.write_text(NULL)
    return path


def qpu_emulator(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "qrmi_workflows", "emulator", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_credentials_port_and_tasks_survive_kill_9(tmp_path, null_config):
    """After a restart, an existing handle with its old token finds its tasks."""
    first = start_emulator(tmp_path / "state", config=null_config)
    resource = connect(first, "ibm_null")
    task = resource.task_start(primitive("sampler", [[bell()]]))
    assert wait(resource, task) == TaskStatus.Completed
    first.control.ask("PATCH", "/qpus/ibm_null", {"availability": "paused"})
    queued = resource.task_start(primitive("sampler", [[bell()]]))
    token = resource.acquire()
    config = first.config_path.read_text()
    first.process.kill()
    first.process.wait()
    with start_emulator(tmp_path / "state", config=null_config) as second:
        assert second.url == first.url
        assert second.config_path.read_text() == config
        assert resource.task_status(task) == TaskStatus.Completed
        assert resource.task_status(queued) == TaskStatus.Queued
        assert second.counters()["sessions"]["open"] == 1
        second.control.ask("PATCH", "/qpus/ibm_null", {"availability": "online"})
        assert wait(resource, queued) == TaskStatus.Completed
        resource.release(token)
        assert second.counters()["tasks"]["completed"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_with_its_workers(tmp_path, number):
    """It exits with status 0, without a traceback, and leaves no process behind."""
    emulator = start_emulator(tmp_path / "state")
    children = psutil.Process(emulator.process.pid).children(recursive=True)
    os.kill(emulator.process.pid, number)
    assert emulator.process.wait(60) == 0
    assert (tmp_path / "state" / "emulator.log").read_text() == ""
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_its_files_are_private(emulator):
    """Only the owner can read the credentials."""
    for name in ("qrmi_config.json", "credentials.json", "control.json", "emulator.db"):
        assert (emulator.folder / name).stat().st_mode & 0o777 == 0o600, name


def test_wrong_credentials_are_rejected(qpu):
    """A wrong key gets no token, and a wrong CRN gets no access."""
    task = primitive("sampler", [[bell()]])
    with pytest.raises(AuthenticationFailedError):
        qpu("ibm_quick", QRMI_IBM_QCS_IAM_APIKEY="wrong").task_start(task)
    with pytest.raises(Exception, match="403"):
        qpu("ibm_quick", QRMI_IBM_QCS_SERVICE_CRN="crn:v1:wrong").task_start(task)


def test_a_port_or_folder_in_use_is_reported(emulator, tmp_path):
    """The command prints one message and exits with status 2."""
    port = emulator.url.rpartition(":")[2]
    taken = qpu_emulator("--dir", str(tmp_path), "--port", port)
    assert (taken.returncode, len(taken.stderr.splitlines())) == (2, 1)
    assert f"127.0.0.1:{port}" in taken.stderr
    twice = qpu_emulator("--dir", str(emulator.folder))
    assert twice.returncode == 2
    assert str(emulator.process.pid) in twice.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--qpu", "a=nonsense"], "pasqal-cloud"),
        (["--qpu", "a=ibm-quantum-compute-service:nonsense"], "fez"),
        (["--qpu", "a=pasqal-cloud"], "FRESNEL"),
        (["--qpu", "nonsense"], "NAME=TYPE"),
        (["--config", "/nonexistent.toml"], "No such file"),
    ],
)
def test_bad_arguments_are_rejected_with_the_allowed_values(tmp_path, arguments, expected):
    """The command prints one message without a traceback and exits with status 2."""
    ended = qpu_emulator("--dir", str(tmp_path), *arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seeed = 1", "worker_memory_gib"),
        ("[qpus.x]\ntype = 'pasqal-cloud'\nlanez = 3", "lanes"),
        ("[qpus.FRESNEL]\ntype = 'pasqal-cloud'\nlanes = 0", "must be a positive integer"),
        ("[qpus.FRESNEL]\ntype = 'pasqal-cloud'\nnoise = 3", "bool"),
        ("[qpus.FRESNEL]\ntype = 'pasqal-cloud'\nexecution_seconds = -1", "[low, high]"),
        ("[qpus.FRESNEL]\n", "type"),
        ("[qpus.x]\ntype = 'ibm-quantum-compute-service'\nserver = 3", "must be a table"),
        (
            "[qpus.x]\ntype = 'ibm-quantum-compute-service'\nserver.closes = true",
            "closing_cancels_running",
        ),
        (
            "[qpus.x]\ntype = 'ibm-quantum-compute-service'\nserver.closing_cancels_running = 1",
            "bool",
        ),
        ("qpus = 3", "[qpus.NAME]"),
        ("= 3", "not valid TOML"),
    ],
)
def test_a_bad_file_is_rejected_with_the_allowed_values(tmp_path, text, expected):
    """Each message names the value and what is allowed."""
    from qrmi_workflows.emulator.settings_file import read_settings

    path = tmp_path / "emulator.toml"
    path.write_text(text)
    with pytest.raises(EmulatorError) as caught:
        read_settings(path)
    assert expected in str(caught.value)


def test_commands_count_tasks_and_pause_a_qpu(tmp_path, null_config):
    """`qpu emulator counters` prints JSON, and `qpu emulator set` changes the availability."""
    where = ("--dir", str(tmp_path / "state"))
    with start_emulator(tmp_path / "state", config=null_config) as emulator:
        assert qpu_emulator("set", *where, "ibm_null", "paused").returncode == 0
        connect(emulator, "ibm_null").task_start(primitive("sampler", [[bell()]]))
        counted = json.loads(qpu_emulator("counters", *where).stdout)
        assert counted["qpus"]["ibm_null"]["tasks"]["queued"] == 1
        unknown = qpu_emulator("set", *where, "ibm_nul", "online")
        assert unknown.returncode == 2
        assert "ibm_null" in unknown.stderr
    stopped = qpu_emulator("counters", *where)
    assert stopped.returncode == 2
    assert "no emulator answers" in stopped.stderr


def test_it_serves_in_the_foreground_without_a_command(tmp_path, null_config):
    """`qpu emulator` alone announces its address on one human-readable line."""
    argv = [sys.executable, "-m", "qrmi_workflows", "emulator"]
    argv += ["--dir", str(tmp_path / "state"), "--config", str(null_config)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("Serving ibm_null at http://127.0.0.1:")
    assert str(tmp_path / "state" / "qrmi_config.json") in line
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")


def test_modules_in_the_working_directory_are_not_imported(tmp_path, monkeypatch):
    """A file with the name of a standard module does no harm."""
    for name in ("json", "random", "queue", "qiskit"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with start_emulator(tmp_path / "state") as emulator:
        resource = connect(emulator, "ibm_fez")
        task = resource.task_start(primitive("sampler", [[bell()]]))
        assert wait(resource, task) == TaskStatus.Completed


def test_the_health_check_needs_no_token_but_control_does(emulator):
    """The sandbox checks health without a credential."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    health = json.loads(opener.open(f"{emulator.url}/healthz").read())
    assert health["status"] == "ok"
    assert "ibm_fez" in health["qpus"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opener.open(f"{emulator.url}/control/counters")
