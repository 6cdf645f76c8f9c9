"""Running a scheduler's command: its output, or an error that says what happened."""

from __future__ import annotations

import os

import pytest
from fake_commands import FakeCommands

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


@pytest.mark.parametrize(
    ("command", "dropped"),
    [
        ("squeue", {"SQUEUE_PARTITION", "SQUEUE_USERS"}),
        ("sacct", {"SACCT_FORMAT"}),
        ("sbatch", set()),
    ],
)
def test_a_query_is_not_narrowed_by_what_users_prefer_to_see(
    command, dropped, tmp_path, monkeypatch
):
    """A live job that squeue does not list would lose its lease."""
    names = {"SQUEUE_PARTITION", "SQUEUE_USERS", "SACCT_FORMAT", "SLURM_CONF"}
    for name in names:
        monkeypatch.setenv(name, "x")
    fake = FakeCommands(tmp_path / "bin")
    fake.write(command, "env")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    printed = run_command([command]).stdout

    assert {line.partition("=")[0] for line in printed.splitlines()} & names == names - dropped


@pytest.mark.parametrize(
    ("command", "printed"), [("squeue", "%s"), ("sacct", "%s"), ("scontrol", "%s"), ("sbatch", "x")]
)
def test_a_query_prints_times_that_mean_one_moment(command, printed, tmp_path, monkeypatch):
    """A job keeps the format of its user."""
    monkeypatch.setenv("SLURM_TIME_FORMAT", "x")
    fake = FakeCommands(tmp_path / "bin")
    fake.write(command, 'echo "$SLURM_TIME_FORMAT"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    assert run_command([command]).stdout == f"{printed}\n"
