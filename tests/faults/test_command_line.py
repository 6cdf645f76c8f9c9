"""The `qpu` command: exit codes, messages, JSON output, Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from break_it import without_coverage
from fault_payloads import bell

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.journal.journal import Journal

QPU = (sys.executable, "-m", "qrmi_workflows")
IMPATIENT = """
from qrmi_workflows.cli import main
from qrmi_workflows.lease import acquire
acquire.FAILING_SECONDS = 0
main()
"""


def qpu(*argv: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*QPU, *map(str, argv)], capture_output=True, text=True, timeout=60, **options
    )


def record_task(step: str = "s") -> Path:
    """Run a task, leave its step open, and return the path of its record."""
    with open_lease("ibm_quick", step=step) as lease:
        lease.run(bell())
    (path,) = Journal().step(step).folder.glob("*.json")
    return path


def test_ctrl_c_cancels_the_task_releases_the_lease_and_exits_with_130(
    counted, pause, payload_file, tmp_path
):
    argv = [*QPU, "run", str(payload_file), "-o", str(tmp_path / "r.json"), "--qpu", "ibm_slow"]
    pause("ibm_slow")
    environ = without_coverage(os.environ)
    with subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert "task " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()

    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert counted()["tasks cancelled"] == 1
    assert counted()["sessions open"] == 0


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["list", "--json"], 0),
        (["reap", "--json"], 0),
        (["journal", "list", "--json"], 0),
        (["bogus"], 2),
        (["run"], 2),
        (["target", "ibm_nowhere"], 2),
        (["target", "ibm_quick", "-o", "/nowhere/t.json"], 2),
        (["journal", "show", "none"], 1),
        (["journal", "prune", "--step", "none"], 2),
        (["lease", "exec", "--qpu", "ibm_quick", "--", "no-such-command"], 127),
        (["lease", "exec", "--qpu", "ibm_quick, ibm_nowhere", "--", "true"], 2),
        (["lease", "exec", "--qpu", "ibm_quick, ibm_other", "--", "true"], 0),
        (["lease", "exec", "--qpu", "ibm_quick", "--", "sh", "-c", "exit 7"], 7),
        (["lease", "exec", "--qpu", "ibm_quick", "--", "sh", "-c", "kill -9 $$"], 137),
    ],
)
def test_exit_codes_without_tracebacks(counted, argv, code):
    done = qpu(*argv)

    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code not in (0, 7, 137))
    assert "Traceback" not in done.stderr
    assert counted()["sessions open"] == 0


def test_an_unreachable_vendor_gives_one_message_that_says_what_to_do(
    emulator, payload_file, tmp_path
):
    config = tmp_path / "gone.json"
    here = f"127.0.0.1:{emulator.url.rpartition(':')[2]}"
    config.write_text(emulator.config_path.read_text().replace(here, "127.0.0.1:9"))
    argv = ("run", payload_file, "-o", tmp_path / "r.json", "--qpu", "ibm_quick")

    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *map(str, argv)],
        env={**os.environ, "QPU_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert message.startswith("qpu: QPU 'ibm_quick' could not be acquired: ")
    assert message.endswith("Check the QPU's state with `qpu list` and try again later.")


@pytest.mark.any_server
def test_json_output_is_valid(emulator):
    record_task()

    listed = json.loads(qpu("list", "--json").stdout)
    (task,) = map(json.loads, qpu("journal", "list", "--json").stdout.splitlines())
    shown = json.loads(qpu("journal", "show", task["task_id"]).stdout)

    assert {"ibm_quick", "online"} <= {*(row["name"] for row in listed), listed[0]["state"]}
    assert "result" not in task
    assert shown["result"]["task_id"] == task["task_id"]
    assert shown["state"] == "completed"


@pytest.mark.any_server
def test_an_unreadable_record_does_not_hide_the_others(emulator):
    record_task("good")
    newer = record_task("newer")
    newer.write_text(newer.read_text().replace('"version": 1', '"version": 2'))

    done = qpu("journal", "list", "--json")

    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == ["good"]
    assert done.returncode == 1
    assert "a journal of version 2; this release reads version 1. Install" in done.stderr
    assert "1 records could not be read" in qpu("journal", "show", "none").stderr
    assert '"version": 2' in newer.read_text()


@pytest.mark.any_server
def test_prune_forgets_open_steps_only_on_request(emulator):
    record_task()

    assert qpu("journal", "prune", "--older-than", "0").stdout == "0 tasks forgotten\n"
    assert qpu("journal", "prune", "--older-than", "0", "--open").stdout == "1 task forgotten\n"


def test_after_a_failed_write_a_rerun_returns_the_result(counted, pause, payload_file, tmp_path):
    """Once it has submitted, the process can write no more bytes to files, as on a full disk."""
    output = tmp_path / "r.json"
    argv = ("run", str(payload_file), "-o", str(output), "--qpu", "ibm_slow")
    # Coverage's own file could not be written either, and would add its traceback.
    environ = without_coverage(os.environ)
    command = [*QPU, *argv]
    pause("ibm_slow")
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert "task " in process.stderr.readline()
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
        pause("ibm_slow", "online")
        stderr = process.stderr.read()

    assert process.returncode == 1
    assert f"qpu: {output}: the result could not be written: File too large" in stderr
    assert "Traceback" not in stderr
    again = qpu(*argv)
    assert again.returncode == 0, again.stderr
    assert QuantumResult.load(output).counts()
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("case", ["fifo", "device", "folder", "below-a-file", "payload", "link"])
@pytest.mark.any_server
def test_an_unsuitable_output_is_refused_before_anything_is_acquired(
    counted, payload_file, tmp_path, case
):
    """For root, a rename would replace `/dev/null` with a file."""
    output = tmp_path / "output"
    if case == "fifo":
        os.mkfifo(output)
    elif case == "device":
        output.symlink_to("/dev/null")
    elif case == "folder":
        output.mkdir()
    elif case == "below-a-file":
        output = payload_file / "output"
    elif case == "payload":
        output = payload_file
    elif case == "link":
        output.symlink_to(payload_file)
    before = payload_file.read_bytes()

    done = qpu("run", payload_file, "-o", output, "--qpu", "ibm_quick")

    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"qpu: {output}: ")
    assert "Name a" in done.stderr
    assert counted()["sessions opened"] == 0
    assert payload_file.read_bytes() == before
    assert case not in ("fifo", "device", "link") or not output.is_file() or output.is_symlink()


@pytest.mark.any_server
def test_file_names_need_not_be_utf_8(emulator, payload_file, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    payload = payload_file.rename(tmp_path / f"{name}.json")
    record_task(name)

    done = qpu("run", payload, "-o", tmp_path / f"{name}.result.json", "--qpu", "ibm_quick")
    listed = qpu("journal", "list")

    assert done.returncode == 0, done.stderr
    assert QuantumResult.load(tmp_path / f"{name}.result.json").counts() is not None
    assert listed.returncode == 0, listed.stderr
    assert "caf\\udce9" in listed.stdout


@pytest.mark.parametrize("command", ["list", "journal list", "target ibm_quick", "run --help"])
@pytest.mark.parametrize("output", ["closed", "full", "ascii"])
@pytest.mark.any_server
def test_unwritable_standard_output_gives_no_traceback(emulator, command, output):
    record_task("Ü")
    argv = " ".join(
        [*QPU, command, *({"closed": "| true", "full": "> /dev/full"}.get(output, "")).split()]
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii" if output == "ascii" else "utf-8"}

    done = subprocess.run(["bash", "-c", argv], capture_output=True, text=True, env=environ)

    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (1 if output == "full" else 0), done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "{payload}", "-o", "{folder}/r.json", "--observables", "{deep}"],
        ["lease", "exec", "--qpu", "ibm_quick", "--config", "{deep}", "--", "true"],
        ["list", "--config", "{deep}"],
        ["run", "{deep}", "-o", "{folder}/r.json"],
    ],
)
@pytest.mark.any_server
def test_json_nested_too_deeply_is_refused(emulator, counted, payload_file, tmp_path, argv):
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    done = qpu(*(a.format(payload=payload_file, folder=tmp_path, deep=deep) for a in argv))

    assert done.returncode == 2
    assert f"qpu: {deep}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert counted()["sessions opened"] == 0


@pytest.mark.any_server
def test_an_empty_task_id_is_refused(emulator):
    record_task()

    assert qpu("journal", "show", "").returncode == 1


@pytest.mark.parametrize("span", ["nan", "inf", "-1", "1e300"])
@pytest.mark.parametrize(
    "argv",
    [
        ["lease", "exec", "--qpu", "ibm_quick", "--grace", "{}", "--", "true"],
        ["journal", "prune", "--older-than", "{}"],
        ["target", "ibm_quick", "--max-age", "{}"],
    ],
)
@pytest.mark.any_server
def test_durations_out_of_range_are_refused(emulator, counted, argv, span):
    """With a grace of `inf`, a command that ignores SIGTERM would never be killed."""
    done = qpu(*(span if word == "{}" else word for word in argv))

    assert done.returncode == 2
    assert "Invalid value" in done.stderr
    assert counted()["sessions opened"] == 0
