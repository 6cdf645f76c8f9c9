"""The `qpu` command as scripts and administrators meet it: exit codes, messages, JSON, Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fault_payloads import bell

from qrmi_workflows import QuantumResult, open_lease
from qrmi_workflows.journal.journal import Journal

QPU = (sys.executable, "-m", "qrmi_workflows")


def qpu(*argv: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*QPU, *map(str, argv)], capture_output=True, text=True, timeout=60, **options
    )


def recorded(step: str = "s") -> Path:
    """Run a task in a step that stays open; return its record's file."""
    with open_lease("ibm_quick", step=step) as lease:
        lease.run(bell())
    (path,) = Journal().step(step).folder.glob("*.json")
    return path


def test_ctrl_c_cancels_the_task_gives_the_lease_back_and_exits_with_130(
    counted, payload_file, tmp_path
):
    argv = [*QPU, "run", str(payload_file), "-o", str(tmp_path / "r.json"), "--qpu", "ibm_slow"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert "task " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()

    assert process.returncode == 130
    assert "Traceback" not in said
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
def test_the_exit_code_tells_what_happened_and_no_traceback_is_shown(counted, argv, code):
    done = qpu(*argv)

    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code not in (0, 7, 137))
    assert "Traceback" not in done.stderr
    assert counted()["sessions open"] == 0


def test_a_vendor_who_cannot_be_reached_is_one_message_with_what_to_do(
    emulator, payload_file, tmp_path
):
    config = tmp_path / "gone.json"
    here = f"127.0.0.1:{emulator.url.rpartition(':')[2]}"
    config.write_text(emulator.config_path.read_text().replace(here, "127.0.0.1:9"))
    argv = ("run", payload_file, "-o", tmp_path / "r.json", "--qpu", "ibm_quick")

    done = qpu(*argv, env={**os.environ, "QPU_CONFIG": str(config)})

    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("qpu: QPU 'ibm_quick' could not be acquired: ")
    assert said.endswith("Check its state with `qpu list` and try again later.")


def test_what_is_printed_as_json_is_json(emulator):
    recorded()

    listed = json.loads(qpu("list", "--json").stdout)
    (task,) = map(json.loads, qpu("journal", "list", "--json").stdout.splitlines())
    shown = json.loads(qpu("journal", "show", task["task_id"]).stdout)

    assert {"ibm_quick", "online"} <= {*(row["name"] for row in listed), listed[0]["state"]}
    assert "result" not in task
    assert shown["result"]["task_id"] == task["task_id"]
    assert shown["state"] == "completed"


def test_a_record_that_cannot_be_read_hides_no_other(emulator):
    recorded("good")
    newer = recorded("newer")
    newer.write_text(newer.read_text().replace('"version": 1', '"version": 2'))

    done = qpu("journal", "list", "--json")

    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == ["good"]
    assert done.returncode == 1
    assert "a journal of version 2; this release reads version 1. Install" in done.stderr
    assert "1 records could not be read" in qpu("journal", "show", "none").stderr
    assert '"version": 2' in newer.read_text()


def test_open_steps_are_forgotten_when_that_is_asked_for(emulator):
    recorded()

    assert qpu("journal", "prune", "--older-than", "0").stdout == "0 tasks forgotten\n"
    assert qpu("journal", "prune", "--older-than", "0", "--open").stdout == "1 tasks forgotten\n"


def test_a_result_that_cannot_be_written_is_had_by_running_again(counted, payload_file, tmp_path):
    """From the submission on, no file of the process may hold a byte, as on a full disk."""
    output = tmp_path / "r.json"
    argv = ("run", str(payload_file), "-o", str(output), "--qpu", "ibm_slow")
    with subprocess.Popen([*QPU, *argv], stderr=subprocess.PIPE, text=True) as process:
        assert "task " in process.stderr.readline()
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
        said = process.stderr.read()

    assert process.returncode == 1
    assert f"qpu: {output}: the result could not be written: File too large" in said
    assert "Traceback" not in said
    again = qpu(*argv)
    assert again.returncode == 0, again.stderr
    assert QuantumResult.load(output).counts()
    assert counted()["tasks accepted"] == 1


@pytest.mark.parametrize("case", ["fifo", "device", "folder", "below-a-file", "payload", "link"])
def test_an_output_that_would_be_lost_or_never_written_is_refused_first(
    counted, payload_file, tmp_path, case
):
    """A rename would put a file in the place of `/dev/null`, for root."""
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


def test_files_may_have_names_that_are_no_utf_8(emulator, payload_file, tmp_path):
    named = os.fsdecode(b"caf\xe9")
    payload = payload_file.rename(tmp_path / f"{named}.json")
    recorded(named)

    done = qpu("run", payload, "-o", tmp_path / f"{named}.result.json", "--qpu", "ibm_quick")
    listed = qpu("journal", "list")

    assert done.returncode == 0, done.stderr
    assert QuantumResult.load(tmp_path / f"{named}.result.json").counts() is not None
    assert listed.returncode == 0, listed.stderr
    assert "caf\\udce9" in listed.stdout


@pytest.mark.parametrize("command", ["list", "journal list", "target ibm_quick", "run --help"])
@pytest.mark.parametrize("output", ["closed", "full", "ascii"])
def test_an_output_that_takes_nothing_is_no_traceback(emulator, command, output):
    recorded("Ü")
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
def test_json_nested_too_deeply_is_refused(emulator, counted, payload_file, tmp_path, argv):
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    done = qpu(*(a.format(payload=payload_file, folder=tmp_path, deep=deep) for a in argv))

    assert done.returncode == 2
    assert f"qpu: {deep}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert counted()["sessions opened"] == 0


def test_nothing_is_no_tasks_name(emulator):
    recorded()

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
def test_a_span_of_time_that_no_clock_knows_is_refused(emulator, counted, argv, span):
    """A grace of `inf` never killed a command that ignores SIGTERM, nor said so."""
    done = qpu(*(span if word == "{}" else word for word in argv))

    assert done.returncode == 2
    assert "Invalid value" in done.stderr
    assert counted()["sessions opened"] == 0
