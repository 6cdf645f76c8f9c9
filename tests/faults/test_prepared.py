"""A `qpu run` under `qpu lease exec` starts and is checked before the QPU is acquired."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from waiting import suspend, wait_until

from qrmi_workflows import QuantumResult
from qrmi_workflows.journal.journal import Journal

QPU = (sys.executable, "-m", "qrmi_workflows")
EXECUTED = ("sh", "-c", 'exec "$@"', "sh", *QPU)
SCRIPT = str(Path(sys.executable).with_name("qpu"))


@pytest.fixture
def under_lease(
    emulator, payload_file: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `qpu run` under `qpu lease exec`; wait until its task runs."""
    started: list[subprocess.Popen] = []

    def start(
        qpu: str, *options: str, wait: bool = True, command: tuple[str, ...] = QPU
    ) -> subprocess.Popen:
        run = [*command, "run", str(payload_file), "-o", str(tmp_path / "r.json")]
        argv = [*QPU, "lease", "exec", "--qpu", qpu, *options, "--", *run]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        started.append(process)
        if wait:
            assert "task " in process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    # Or the tasks that were left would keep the QPU from running those of later tests.
    emulator.control.ask("POST", "/faults", {"kind": "close-sessions"})


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that a supervisor has started."""
    return psutil.Process(process.pid).children(recursive=True)


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.any_server
@pytest.mark.parametrize("command", [QPU, (SCRIPT,), ("qpu",)], ids=["module", "path", "name"])
def test_the_supervisor_and_the_step_share_one_interpreter(
    counted, under_lease, pause, tmp_path, monkeypatch, command
):
    """The step's process is a fork: it has executed nothing since."""
    pause("ibm_slow")
    monkeypatch.setenv("PATH", str(Path(SCRIPT).parent), prepend=os.pathsep)
    process = under_lease("ibm_slow", command=command)

    (step,) = family(process)
    assert step.cmdline() == psutil.Process(process.pid).cmdline()
    pause("ibm_slow", "online")

    assert process.wait(timeout=60) == 0
    assert QuantumResult.load(tmp_path / "r.json").qpu == "ibm_slow"
    assert counted()["tasks accepted"] == 1
    assert counted()["sessions open"] == 0


IMPORTS = """
import atexit, json, sys
from pathlib import Path
from qrmi_workflows.cli import main

def report():
    with Path(sys.argv[1]).open("a") as file:
        print(json.dumps(sorted(sys.modules)), file=file)

atexit.register(report)
main(sys.argv[2:])
"""


def imported_by(folder: Path, *argv: str) -> list[set[str]]:
    """Run a `qpu` command; return the modules that each of its processes has imported."""
    report = folder / "imports"
    report.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", IMPORTS, str(report), *argv], check=True, timeout=60)
    return [set(json.loads(line)) for line in report.read_text().splitlines()]


@pytest.mark.any_server
def test_a_step_imports_only_what_its_task_needs(emulator, payload_file, tmp_path):
    """Each of these would delay every step by 10 to 100 ms while the QPU is held."""
    run = ["run", str(payload_file), "-o", str(tmp_path / "r.json"), "--qpu", "ibm_quick"]
    slow = {"jsonschema", "importlib.metadata", "numpy", "psutil", "rich", "tenacity"}

    alone = imported_by(tmp_path, *run)
    leased = imported_by(tmp_path, "lease", "exec", "--qpu", "ibm_quick", "--", *QPU, *run)
    of_others = imported_by(tmp_path, "lease", "exec", "--qpu", "ibm_quick", "--", "true")

    assert [len(processes) for processes in (alone, leased, of_others)] == [1, 2, 1]
    for modules in (*alone, *leased, *of_others):
        assert "qrmi" in modules
        assert modules & slow == set()


@pytest.mark.any_server
def test_another_command_has_its_own_process(under_lease):
    shell = ("sh", "-c", 'echo "task "$0 >&2; exec sleep 60')
    process = under_lease("ibm_quick", command=shell)

    assert "qrmi_workflows" not in family(process)[0].cmdline()
    process.terminate()
    assert process.wait(timeout=60) == 143


@pytest.mark.any_server
def test_an_invalid_payload_costs_no_lease(counted, under_lease, payload_file, tmp_path):
    payload = json.loads(payload_file.read_text())
    payload["parameters"]["pubs"] = []
    payload_file.write_text(json.dumps(payload))
    argv = [*QPU, "run", str(payload_file), "-o", str(tmp_path / "r.json"), "--qpu", "ibm_quick"]
    alone = subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False)

    process = under_lease("ibm_quick", wait=False)
    _, stderr = process.communicate(timeout=60)

    assert (process.returncode, stderr) == (2, alone.stderr)
    assert alone.returncode == 2
    assert counted()["sessions opened"] == 0


def test_a_qpu_that_is_not_acquired_is_reported_once(under_lease):
    process = under_lease("no_such_qpu", wait=False)

    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 2
    assert stderr.count("qpu: ") == 1
    assert "'no_such_qpu'" in stderr


@pytest.mark.any_server
def test_the_step_finds_the_only_qpu_of_its_lease(under_lease, tmp_path):
    """The file defines several; `qpu run` names none."""
    process = under_lease("ibm_other", wait=False)

    assert process.wait(timeout=60) == 0
    assert QuantumResult.load(tmp_path / "r.json").qpu == "ibm_other"


def test_a_named_step_is_archived_once_it_has_succeeded(under_lease):
    process = under_lease("ibm_quick", "--step", "mine", wait=False)

    assert process.wait(timeout=60) == 0
    assert [record.step for record in Journal().records()] == []


@pytest.mark.parametrize("command", [QPU, EXECUTED], ids=["forked", "executed"])
def test_sigterm_cancels_the_task_and_releases_the_lease(counted, under_lease, command):
    process = under_lease("ibm_endless", "--grace", "60", command=command)

    process.terminate()

    assert process.wait(timeout=60) == 143
    assert counted()["tasks cancelled"] == 1
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize("command", [QPU, EXECUTED], ids=["forked", "executed"])
def test_a_step_that_hangs_is_killed(counted, under_lease, command):
    """Its task goes on, for a rerun, and so does the lease: releasing it would cancel the task."""
    process = under_lease("ibm_endless", "--grace", "0.5", command=command)
    (step,) = family(process)
    suspend(step)

    process.terminate()

    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 137
    assert not step.is_running()
    assert "still running" in stderr
    assert counted()["tasks cancelled"] == 0


@pytest.mark.parametrize("command", [QPU, EXECUTED], ids=["forked", "executed"])
def test_a_step_that_is_killed_gives_its_signal(counted, under_lease, command):
    process = under_lease("ibm_endless", command=command)
    (step,) = family(process)

    step.kill()

    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "still running" in stderr


@pytest.mark.parametrize("command", [QPU, EXECUTED], ids=["forked", "executed"])
def test_a_step_ends_with_its_supervisor(under_lease, command):
    process = under_lease("ibm_endless", command=command)
    (step,) = family(process)

    process.send_signal(signal.SIGKILL)

    wait_until(lambda: has_ended(step), "end of step")


def test_a_step_that_waits_for_the_lease_ends_with_its_supervisor(fault, matched, under_lease):
    """While the vendor does not answer, the supervisor is told to stop."""
    fault("hang", route="POST */sessions")
    process = under_lease("ibm_quick", wait=False)
    wait_until(matched, "the request for a session")
    (step,) = family(process)

    process.terminate()

    assert process.wait(timeout=60) == 143
    wait_until(lambda: has_ended(step), "end of step")
