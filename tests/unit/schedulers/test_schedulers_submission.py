"""Submitting a job: its id, also when the scheduler's answer was lost. The commands are fakes."""

from __future__ import annotations

import logging
import os

import pytest

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import JobState, JobStatus
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.submission import JobMark, find_job, submit_job

SBATCH = ["sbatch", "--parsable", "job.sh"]
MARK = JobMark(name="step-a")
LOST = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"


def row(job_id: int, *, name: str = "step-a", comment: str = "(null)") -> str:
    """A row of squeue's, in the form of `Slurm.status_argv`."""
    return f"{job_id}|{job_id}|PENDING|0|None|{comment}|{name}|".replace("|", "\x1f")


def lists(*rows: str) -> str:
    """A squeue that lists these jobs."""
    return "\n".join(f"echo '{each}'" for each in rows) or ":"


def test_an_answered_submission_asks_nothing_further(commands):
    commands.write("sbatch", "echo 17")
    commands.write("squeue", lists(row(99)))

    assert submit_job(Slurm(), SBATCH, MARK) == "17"
    assert commands.calls("sbatch") == ["--parsable job.sh"]
    assert commands.calls("squeue") == []


def test_the_command_gets_its_input_and_environment(commands):
    commands.write("sbatch", 'read id; echo "$id$X"')

    environ = {**os.environ, "X": "8"}
    assert submit_job(Slurm(), SBATCH, MARK, stdin="1\n", environ=environ) == "18"


def test_a_job_whose_answer_was_lost_is_found_by_its_mark(commands, caplog):
    commands.write("sbatch", LOST)
    commands.write("squeue", lists(row(18, name="another"), row(17)))

    with caplog.at_level(logging.WARNING):
        assert submit_job(Slurm(), SBATCH, MARK) == "17"

    assert "job 17 was accepted despite this error" in caplog.text
    assert "Socket timed out" in caplog.text
    (call,) = commands.calls("squeue")
    assert "--name=step-a" in call


def test_a_job_whose_submission_hung_is_found_by_its_mark(commands):
    commands.write("sbatch", "exec sleep 60")
    commands.write("squeue", lists(row(17)))

    # The timeout is squeue's, too, which may need longer on a loaded machine, and is asked again.
    assert submit_job(Slurm(), SBATCH, MARK, timeout=0.5, search_seconds=60) == "17"


def test_a_job_whose_id_was_not_printed_is_found_by_its_mark(commands):
    commands.write("sbatch", "echo Submitted.")
    commands.write("squeue", lists(row(17)))

    assert submit_job(Slurm(), SBATCH, MARK) == "17"


def test_jobs_of_one_name_are_told_apart_by_their_comments(commands):
    commands.write("sbatch", LOST)
    commands.write("squeue", lists(row(17, comment="first"), row(18, comment="second")))

    mark = JobMark(name="step-a", comment="second")
    assert submit_job(Slurm(), SBATCH, mark) == "18"


def test_a_job_with_a_comma_in_its_name_is_found(commands):
    commands.write("sbatch", LOST)
    commands.write("squeue", lists(row(17, name="a"), row(18, name="a,b")))

    assert submit_job(Slurm(), SBATCH, JobMark(name="a,b")) == "18"
    (call,) = commands.calls("squeue")
    assert "--name" not in call


def test_a_rejected_job_is_an_error_with_the_schedulers_words(commands):
    commands.write("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    commands.write("squeue", lists(row(17, name="another")))

    with pytest.raises(SchedulerError, match="invalid partition specified: x"):
        submit_job(Slurm(), SBATCH, MARK)


def test_a_submission_without_an_id_is_an_error_if_no_job_has_the_mark(commands):
    commands.write("sbatch", "echo hello")
    commands.write("squeue", lists())

    with pytest.raises(SchedulerError, match="`sbatch` printed no job id: 'hello'"):
        submit_job(Slurm(), SBATCH, MARK)


def test_a_queue_that_does_not_answer_is_asked_again(commands, tmp_path):
    commands.write("sbatch", LOST)
    commands.write(
        "squeue",
        f'[ "$(wc -l <"{tmp_path}/bin/squeue.calls")" -gt 2 ] || exit 1\n{lists(row(17))}',
    )

    assert submit_job(Slurm(), SBATCH, MARK, search_seconds=60) == "17"
    assert len(commands.calls("squeue")) == 3


def test_if_neither_command_is_answered_the_error_is_the_submissions(commands):
    commands.write("sbatch", LOST)
    commands.write("squeue", "echo 'slurm_load_jobs error' >&2; exit 1")

    with pytest.raises(SchedulerError, match="Socket timed out"):
        submit_job(Slurm(), SBATCH, MARK)
    assert find_job(Slurm(), MARK) is None


@pytest.mark.parametrize(
    ("mark", "matches"),
    [
        (JobMark(name="a"), True),
        (JobMark(name="a", comment="c"), True),
        (JobMark(name="a", comment="d"), False),
        (JobMark(name="b"), False),
        (JobMark(name="b", comment="c"), False),
    ],
)
def test_a_mark_is_a_name_and_where_given_a_comment(mark, matches):
    status = JobStatus(state=JobState.PENDING, name="a", comment="c")

    assert mark.matches(status) is matches
