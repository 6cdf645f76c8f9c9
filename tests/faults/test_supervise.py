"""Running a command under a lease: signals, time limits, the release. Real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qrmi_workflows.lease.killwait import KillWait

PROGRAM = """
import os, sys
from pathlib import Path
from qrmi_workflows.lease import supervise
supervise.ALIVE_SECONDS, supervise._LOOK_SECONDS = 0.6, 0.1
folder = Path(sys.argv[1])
def release():
    with (folder / "released").open("a") as file:
        file.write("released\\n")
alive = folder / "alive"
sys.exit(supervise.run_supervised(
    sys.argv[2:], environ=os.environ, release=release, grace=0.5,
    alive=alive if alive.exists() else None))
"""


@pytest.fixture
def supervised(tmp_path):
    """Start a supervisor and wait until its command says that it runs."""
    started = []

    def start(*command: str, wait: bool = True) -> subprocess.Popen:
        argv = [sys.executable, "-c", PROGRAM, str(tmp_path), *command]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        started.append(process)
        if wait:
            assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def released(folder: Path) -> int:
    file = folder / "released"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_commands_code_is_kept_and_the_lease_released_once(supervised, tmp_path, command, code):
    process = supervised("sh", "-c", command, wait=False)

    assert process.wait(timeout=10) == code
    assert released(tmp_path) == 1


def test_sigterm_is_passed_on_and_the_lease_released(supervised, tmp_path):
    process = supervised("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=10) == 3
    assert released(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_that_asks_for_no_end_is_passed_on(supervised, number):
    name = number.name.removeprefix("SIG")
    process = supervised(
        "sh", "-c", f"trap 'exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    )

    process.send_signal(number)

    assert process.wait(timeout=10) == 5


def test_a_command_that_ignores_sigterm_is_killed_with_its_children(supervised, tmp_path):
    process = supervised("sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait; sleep 60")
    family = psutil.Process(process.pid).children(recursive=True)
    before = time.monotonic()

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=10) == 137
    assert time.monotonic() - before < 5
    assert released(tmp_path) == 1
    assert not psutil.wait_procs(family, timeout=5)[1]


STARTS_ANOTHER = "trap 'setsid sleep 60 & echo $! >another' TERM; "


@pytest.mark.parametrize(
    "reaction",
    ["", 'trap "" TERM; ', STARTS_ANOTHER],
    ids=["ends", "ignores SIGTERM", "starts another"],
)
def test_what_a_command_leaves_behind_ends_before_the_release(
    supervised, tmp_path, monkeypatch, reaction
):
    monkeypatch.chdir(tmp_path)
    Path("left.sh").write_text(f"{reaction}echo ready; while :; do sleep 0.05; done")
    process = supervised("sh", "-c", "setsid sh left.sh & wait")
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=10) == 143
    another = [int(file.read_text()) for file in tmp_path.glob("another")]
    assert len(another) == (reaction == STARTS_ANOTHER)
    assert not any(map(psutil.pid_exists, another))
    assert [each for each in family if each.is_running()] == []
    assert released(tmp_path) == 1


def test_a_command_whose_requester_is_dead_is_stopped(supervised, tmp_path):
    (tmp_path / "alive").touch()

    process = supervised("sh", "-c", "echo ready; exec sleep 60")

    assert process.wait(timeout=10) == 143
    assert released(tmp_path) == 1


def test_a_command_whose_requester_lives_goes_on(supervised, tmp_path):
    alive = tmp_path / "alive"
    alive.touch()
    process = supervised("sh", "-c", "echo ready; exec sleep 60")

    for _ in range(12):
        time.sleep(0.1)
        os.utime(alive)

    assert process.poll() is None


def test_a_command_ends_with_its_supervisor(supervised):
    process = supervised("sh", "-c", "echo ready; exec sleep 60")
    (command,) = psutil.Process(process.pid).children()

    process.kill()

    assert not psutil.wait_procs([command], timeout=5)[1]


@pytest.mark.parametrize(
    ("kill_wait", "grace"), [(None, 5.0), (30.0, 5.0), (10.0, 2.0), (0.0, 0.5), (600.0, 5.0)]
)
def test_the_grace_leaves_time_for_the_release(kill_wait, grace):
    assert KillWait(kill_wait) == grace


def test_a_command_that_cannot_be_started_releases_the_lease(supervised, tmp_path):
    process = supervised("/no/such/command", wait=False)

    assert process.wait(timeout=10) == 127
    assert released(tmp_path) == 1
