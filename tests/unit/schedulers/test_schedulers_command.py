"""Running a scheduler's command: its output, or an error that says what happened."""

from __future__ import annotations

import os

import pytest

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.command import require_success, run_command


def test_a_command_gets_its_input_and_environment():
    done = run_command(["sh", "-c", "cat; echo $X"], stdin="in ", environ={**os.environ, "X": "7"})

    assert (done.returncode, done.stdout) == (0, "in 7\n")
    assert require_success(done) is done


def test_a_command_without_input_reads_an_empty_one():
    assert run_command(["cat"]).stdout == ""


def test_a_command_that_is_not_installed_is_an_error():
    with pytest.raises(SchedulerError, match="'no-such-scheduler' not found on PATH"):
        run_command(["no-such-scheduler"])


def test_a_command_that_hangs_is_killed_and_may_be_retried():
    with pytest.raises(SchedulerError, match=r"did not end within 0\.05 s") as caught:
        run_command(["sleep", "60"], timeout=0.05)

    assert caught.value.retryable
    assert caught.value.argv == ("sleep", "60")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo denied >&2; exit 3", "exit status 3: denied"),
        ("echo denied; exit 3", "exit status 3: denied"),
        ("exit 3", "exit status 3: no output"),
    ],
)
def test_a_command_that_fails_is_an_error_with_its_output(script, message):
    done = run_command(["sh", "-c", script])

    with pytest.raises(SchedulerError, match=message) as caught:
        require_success(done)

    assert caught.value.returncode == 3
