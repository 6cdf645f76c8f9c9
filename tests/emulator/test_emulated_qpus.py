"""`emulated:MODEL`: a private emulator for one lease, without a site, a file or a credential."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.config.job import read_job
from qrmi_workflows.errors import ConfigError, RequestError, ResourceError
from qrmi_workflows.journal.journal import Journal
from qrmi_workflows.lease.reap import reap
from qrmi_workflows.lease.records import open_leases

BELL = Path(__file__).parents[2] / "examples" / "bell" / "bell.json"
QPU = str(Path(sys.executable).with_name("qpu"))
HOLD = """
import os, sys, time
from qrmi_workflows import open_lease
lease = open_lease("emulated:fez")
print(lease.held.emulator.pid, flush=True)
{then}
"""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give no site: neither a definition, nor a policy, nor a scheduler, nor a home folder."""
    for name in ("QPU_CONFIG", "QPU_SITE", "SLURM_JOB_ID", "QPU_STAGE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "QPU_STATE", "XDG_CACHE_HOME", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QPU, *map(str, argv)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def emulators() -> list[psutil.Process]:
    """Return the private emulators, and their workers, of this test's processes."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or [])
        own = (process.info["environ"] or {}).get("QPU_STATE") == os.environ["QPU_STATE"]
        if own and ("emulator private" in command or "emulator.worker" in command):
            found.append(process)
    return found


def require_no_emulators(seconds: float = 60.0) -> None:
    """Fail unless all emulators end within a while, and without a file."""
    limit = time.monotonic() + seconds
    while (left := emulators()) and time.monotonic() < limit:
        psutil.wait_procs(left, timeout=0.5)
    assert not left
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []


@pytest.mark.parametrize(
    ("qpu", "payload"),
    [("emulated:fez", BELL), ("emulated:fez:noisy", "native.qasm")],
)
def test_a_payload_runs_anywhere_and_its_result_says_emulated(qpu, payload, nowhere):
    native = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
    (nowhere / "native.qasm").write_text(native)

    done = run("run", payload, "-o", "r.json", "--shots", 100, "--qpu", qpu)

    assert done.returncode == 0, done.stderr
    assert QuantumResult.load("r.json").qpu == qpu
    require_no_emulators()


def test_a_program_opens_a_lease_and_its_record_bills_nothing():
    with open_lease("emulated:fez") as lease:
        counts = lease.run(BELL, shots=100).counts()

    assert set(counts) <= {"00", "11"}
    (record,) = Path(os.environ["QPU_STATE"], "leases").glob("*.jsonl")
    last = json.loads(record.read_text().splitlines()[-1])
    assert (last["qpu"], last["billed"]) == ("emulated:fez", 0.0)
    require_no_emulators()


def test_pulses_run_on_an_emulated_fresnel():
    pulser = pytest.importorskip("pulser")
    with open_lease("emulated:FRESNEL") as lease:
        device = lease.pulser_connection().fetch_available_devices()["FRESNEL"]
        register = pulser.Register.square(2, spacing=6, prefix="q").with_automatic_layout(device)
        sequence = pulser.Sequence(register, device)
        sequence.declare_channel("ising", "rydberg_global")
        sequence.add(pulser.Pulse.ConstantPulse(400, 4.0, 0.0, 0.0), "ising")
        sequence.measure("ground-rydberg")
        result = lease.run(sequence, shots=50)

    assert sum(result.counts().values()) == 50
    assert (result.qpu, result.type) == ("emulated:FRESNEL", "pasqal-cloud")


def test_programs_of_a_command_adopt_it_whatever_surrounds_them():
    """A shell that drops unusual variables, a proxy, a program of upstream, a process left behind.

    The supervisor ends such a process before it releases the QPU; the emulator is not one.
    """
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    script = f"""
    sleep 600 &
    echo $QRMI_JOB_QPU_RESOURCES
    {QPU} run {BELL} -o r.json && {Path(QPU).with_name("task_runner")} emulated_fez {BELL} raw.json
    """

    done = run("lease", "exec", "--qpu", "emulated:fez", "--", "sh", "-c", script, **proxy)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("emulated_fez\n")
    assert QuantumResult.load("r.json").qpu == "emulated:fez"
    assert json.loads(Path("raw.json").read_text())
    require_no_emulators()


@pytest.mark.parametrize(
    "then",
    [
        "time.sleep(600)",
        # A fork keeps the pipe to the emulator open for longer than its end is waited for.
        "os.fork() or (time.sleep(90), os._exit(0))\ntime.sleep(600)",
    ],
)
def test_the_emulator_ends_with_a_holder_that_is_killed(then):
    program = HOLD.format(then=then)
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(holder.stdout.readline())
    try:
        assert psutil.pid_exists(pid)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()

    require_no_emulators()
    (orphan,) = open_leases()
    assert orphan.qpu == "emulated:fez"
    assert [(each.qpu, each.released) for each in reap()] == [("emulated:fez", True)]


def test_a_signal_to_all_processes_of_a_job_lets_the_holder_release():
    """A scheduler signals the emulator, too; the holder has yet to cancel its tasks."""
    program = HOLD.format(then="time.sleep(600)")
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(holder.stdout.readline())

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(pid, number)
    time.sleep(0.2)
    assert psutil.pid_exists(pid)
    holder.terminate()

    assert holder.wait(60) == 128 + signal.SIGTERM
    holder.stdout.close()
    require_no_emulators()
    assert list(open_leases()) == []


def test_two_leases_have_an_emulator_each():
    with open_lease(["emulated:fez", "emulated:garnet"]) as leases:
        pids = {lease.held.emulator.pid for lease in leases.values()}
        names = leases.environment()["QRMI_JOB_QPU_RESOURCES"]

    assert len(pids) == 2
    assert names == "emulated_fez,emulated_garnet"
    require_no_emulators()


def test_a_rerun_finds_its_completed_task_under_another_emulator():
    for _ in range(2):
        with open_lease("emulated:fez", step="s") as lease:
            task = lease.run(BELL, shots=10).task_id

    assert [record.task_id for record in Journal().step("s").records()] == [task]


def test_a_task_that_has_died_with_its_emulator_runs_again():
    """Neither a task that was submitted nor one that may have been is a reason to stop."""
    with open_lease("emulated:fez", step="s") as lease:
        first = lease.run(BELL, shots=10).task_id
    (file,) = Path(os.environ["QPU_STATE"], "journal").rglob("*.json")
    complete = json.loads(file.read_text())
    for state in ("submitted", "intent"):
        left = complete | {"state": state, "result": None}
        left |= {"task_id": None} if state == "intent" else {}
        file.write_text(json.dumps(left))
        with open_lease("emulated:fez", step="s") as lease:
            again = lease.run(BELL, shots=10).task_id
        assert again != first


def test_an_unknown_model_is_refused_before_anything_starts():
    done = run("run", BELL, "-o", "r.json", "--qpu", "emulated:ibm_fez")

    assert done.returncode == 2
    assert "Did you mean 'emulated:fez'?" in done.stderr
    with pytest.raises(RequestError, match="must be one of: AnalogDevice, "):
        open_lease("emulated:nothing")


def test_without_the_extra_the_command_that_installs_it_is_named(nowhere, monkeypatch):
    """Of a package that is not installed, Python finds no module."""
    (nowhere / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(nowhere))

    with pytest.raises(ConfigError, match=r"'uvicorn'.*pip install 'qrmi-workflows\[emulator\]'"):
        open_lease("emulated:fez")


def test_its_target_is_printed_and_cached():
    first = run("target", "emulated:fez")
    second = run("target", "emulated:fez")

    assert first.returncode == 0, first.stderr
    assert "backend_name" in first.stdout or "configuration" in first.stdout
    assert second.stdout == first.stdout
    require_no_emulators()


def test_a_job_requests_nothing_for_it():
    """So a script that asks for the options stays as it is."""
    done = run("request", "emulated:fez")

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Did you mean 'emulated:fez'?" in run("request", "emulated:ibm_fez").stderr


def test_a_variable_names_the_qpu_of_programs_that_name_none(monkeypatch):
    monkeypatch.setenv("QPU_NAME", "emulated:fez")

    with open_lease() as lease:
        assert lease.qpu == "emulated:fez"
        assert read_job(lease.environment()).keys() == {"emulated:fez"}


def test_the_end_of_an_emulator_is_noticed_at_once():
    """It does not come back, so nothing is gained by asking again."""
    with open_lease("emulated:fez") as lease:
        lease.run(BELL, shots=10)
        os.kill(lease.held.emulator.pid, signal.SIGKILL)
        psutil.Process(lease.held.emulator.pid).wait(60)
        started = time.monotonic()
        with pytest.raises(ResourceError, match="the emulator of QPU 'emulated:fez' has ended"):
            lease.run(BELL, shots=20)

    assert time.monotonic() - started < 30
