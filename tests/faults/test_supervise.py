"""A command under supervision: signals, its end, the release. Real processes, and no vendor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

PROGRAM = """
import os, sys
from pathlib import Path
from qrmi_workflows.lease import abandoned, supervise
abandoned.ALIVE_SECONDS, abandoned._LOOK_SECONDS = {alive_seconds}, 0.1
folder = Path(sys.argv[1])
def release():
    with (folder / "released").open("a") as file:
        file.write("released\\n")
alive = folder / "alive"
sys.exit(supervise.run_supervised(
    sys.argv[2:], environ=os.environ, release=release, grace={grace},
    alive=alive if alive.exists() else None))
"""
LOOP = "while :; do sleep 0.05; done"


@pytest.fixture
def supervised(tmp_path):
    """Start a supervisor, and wait until its command says that it runs."""
    started = []

    def start(
        *command: str,
        wait: bool = True,
        alive_seconds: float = 0.6,
        grace: float = 30.0,
        first: str = "",
    ) -> subprocess.Popen:
        program = first + PROGRAM.format(alive_seconds=alive_seconds, grace=grace)
        argv = [sys.executable, "-c", program, str(tmp_path), *command]
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


def releases(folder: Path) -> int:
    """Return how often the lease was released."""
    file = folder / "released"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_code_is_the_commands_and_the_lease_is_released_once(
    supervised, tmp_path, command, code
):
    process = supervised("sh", "-c", command, wait=False)

    assert process.wait(timeout=60) == code
    assert releases(tmp_path) == 1


def test_sigterm_is_passed_on_and_the_lease_released(supervised, tmp_path):
    process = supervised("sh", "-c", f"trap 'exit 3' TERM; echo ready; {LOOP}")

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 3
    assert releases(tmp_path) == 1


DELAYS = """
import ctypes, functools, operator, os, select
def delayed(call):
    # In C throughout: Python handles a signal that arrives during the sleep after the call.
    sleep = functools.partial(ctypes.CDLL(None).usleep, 1_000_000)
    return lambda *given: list(map(operator.call, [sleep, functools.partial(call, *given)]))[1]
select.select = delayed(select.select)
waitpid = os.waitpid
os.waitpid = lambda pid, flags: waitpid(pid, flags) if flags else delayed(waitpid)(pid, flags)
"""


def test_a_signal_just_before_the_wait_for_the_command_is_passed_on(supervised, tmp_path):
    process = supervised("sh", "-c", f"echo ready; {LOOP}", first=DELAYS)
    time.sleep(0.3)  # the supervisor is in its delay now, unless the machine is very slow

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 143
    assert releases(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_that_do_not_stop_a_command_are_passed_on(supervised, number):
    name = number.name.removeprefix("SIG")
    process = supervised("sh", "-c", f"trap 'exit 5' {name}; echo ready; {LOOP}")

    process.send_signal(number)

    assert process.wait(timeout=60) == 5


def test_a_command_that_ignores_sigterm_is_killed_with_its_children(supervised, tmp_path):
    command = "trap '' TERM; echo ready; sleep 600 & wait; sleep 600"
    process = supervised("sh", "-c", command, grace=0.5)
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 137
    assert releases(tmp_path) == 1
    assert not psutil.wait_procs(family, timeout=60)[1]


STARTS_ANOTHER = "trap 'setsid sleep 600 & echo $! >another' TERM; "


@pytest.mark.parametrize(
    "reaction",
    ["", 'trap "" TERM; ', STARTS_ANOTHER],
    ids=["ends", "ignores SIGTERM", "starts another"],
)
def test_processes_that_a_command_leaves_behind_end_before_the_release(
    supervised, tmp_path, monkeypatch, reaction
):
    monkeypatch.chdir(tmp_path)
    Path("orphan.sh").write_text(f"{reaction}echo ready; {LOOP}")
    # The one that starts another lives until the grace ends, and must have started it by then.
    grace = 3.0 if reaction == STARTS_ANOTHER else 0.5
    process = supervised("sh", "-c", "setsid sh orphan.sh & wait", grace=grace)
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=60) == 143
    another = [int(file.read_text()) for file in tmp_path.glob("another")]
    assert len(another) == (reaction == STARTS_ANOTHER)
    assert not any(map(psutil.pid_exists, another))
    assert [each for each in family if each.is_running()] == []
    assert releases(tmp_path) == 1


def test_a_command_is_stopped_when_its_submitting_process_has_died(supervised, tmp_path):
    (tmp_path / "alive").touch()

    process = supervised("sh", "-c", "echo ready; exec sleep 600")

    assert process.wait(timeout=60) == 143
    assert releases(tmp_path) == 1


@pytest.mark.parametrize("ends", ["dies", "ends"])
def test_the_tasks_of_a_command_are_left_only_while_its_submitting_process_lives(
    supervised, tmp_path, monkeypatch, ends
):
    """When that process has gone, nobody will run the step again."""
    alive = tmp_path / "alive"
    alive.touch()
    monkeypatch.setenv("QPU_ALIVE", str(alive))
    monkeypatch.setenv("QPU_ON_STOP", "leave")
    command = "trap 'python -c \"$SHOW\" >shown; exit' TERM; echo ready"
    monkeypatch.setenv("SHOW", "from qrmi_workflows.config.variables import *; print(on_stop())")
    monkeypatch.chdir(tmp_path)
    # The command asks when the supervisor stops it, as a task does.
    process = supervised(
        "bash", "-c", f"{command}; {LOOP}", alive_seconds=0.6 if ends == "dies" else 60
    )
    if ends == "ends":
        alive.unlink()

    process.wait(timeout=60)

    assert not alive.exists()
    assert (tmp_path / "shown").read_text() == "cancel\n"


def test_a_command_goes_on_while_its_submitting_process_is_alive(supervised, tmp_path):
    """The file is touched for longer than it may stay untouched."""
    alive, seconds = tmp_path / "alive", 3.0
    alive.touch()
    process = supervised("sh", "-c", "echo ready; exec sleep 600", alive_seconds=seconds)
    end = time.monotonic() + seconds + 1.0

    def touch() -> bool:
        os.utime(alive)
        return time.monotonic() > end

    wait_until(touch, "the end of the time")

    assert process.poll() is None


def test_a_command_ends_with_its_supervisor(supervised):
    process = supervised("sh", "-c", "echo ready; exec sleep 600")
    (command,) = psutil.Process(process.pid).children()

    process.kill()

    assert not psutil.wait_procs([command], timeout=60)[1]


def test_the_lease_is_released_if_the_command_cannot_be_started(supervised, tmp_path):
    process = supervised("/no/such/command", wait=False)

    assert process.wait(timeout=60) == 127
    assert releases(tmp_path) == 1
