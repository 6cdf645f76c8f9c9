"""What Slurm knows about a run's jobs, put together from squeue and sacct."""

import os

import pytest

from qrmi_workflows.schedulers.base import JobState
from qrmi_workflows.schedulers.slurm import Slurm
from snakemake_executor_plugin_slurm_qpu.status_queries import ask_slurm, find_status, nodes_of


def rows(*jobs: str) -> str:
    """Return what squeue and sacct print for jobs such as `7 COMPLETED`."""
    fields = (job.split() for job in jobs)
    lines = (
        "\x1f".join([job_id, job_id.split("_")[0], state, "0", "None", "", "run", "\n"])
        for job_id, state in fields
    )
    return "".join(lines)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Put commands in front of Slurm's that print what a test says; `None` fails."""

    def answers(**commands: str | None) -> None:
        for name, output in commands.items():
            (tmp_path / f"{name}.out").write_text(output or "")
            script = f"cat '{tmp_path}/{name}.out'" if output is not None else "exit 1"
            (tmp_path / name).write_text(f"#!/bin/sh\necho $* >> '{tmp_path}/calls'\n{script}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return answers


def ask(*job_ids: str, commands: tuple[str, ...] = ("squeue", "sacct")):
    return ask_slurm(job_ids, name="run", commands=commands)


def words(answer):
    return {job_id: status.word for job_id, status in answer.statuses.items()}


def test_sacct_is_asked_only_about_the_jobs_that_squeue_does_not_list(answers, tmp_path):
    answers(squeue=rows("7 RUNNING", "8 FAILED"), sacct=rows("9 COMPLETED"))

    answer = ask("7", "8", "9", "10")

    assert words(answer) == {"7": "RUNNING", "8": "FAILED", "9": "COMPLETED"}
    assert answer.forgotten == {"10"}
    squeue, sacct = (tmp_path / "calls").read_text().splitlines()
    assert "--name=run" in squeue
    assert "--jobs=10,9" in sacct


def test_the_second_command_is_not_asked_if_the_first_knows_all(answers):
    answers(squeue=rows("7 RUNNING"), sacct=None)

    assert ask("7").errors == ()


def test_without_accounting_a_job_that_squeue_does_not_list_is_forgotten(answers):
    answers(squeue=rows("7 RUNNING"))

    assert ask("7", "8", commands=("squeue",)).forgotten == {"8"}


def test_any_number_of_jobs_fits_into_the_command_lines(answers, tmp_path):
    answers(squeue="", sacct=rows("7 COMPLETED"))

    answer = ask(*map(str, range(25_000)))

    assert len(answer.forgotten) == 24_999
    assert len((tmp_path / "calls").read_text().splitlines()) == 1 + 25


@pytest.mark.parametrize("failed", ["squeue", "sacct"])
def test_while_a_command_fails_no_job_counts_as_forgotten(answers, failed):
    other = {"squeue": "sacct", "sacct": "squeue"}[failed]
    answers(**{failed: None, other: rows("7 COMPLETED")})

    answer = ask("7", "8")

    assert words(answer) == {"7": "COMPLETED"}
    assert answer.forgotten == frozenset()
    assert [error.argv[0] for error in answer.errors] == [failed]


@pytest.mark.parametrize("order", [("squeue", "sacct"), ("sacct", "squeue")])
def test_a_requeued_job_has_not_ended_though_the_accounting_shows_its_first_run(answers, order):
    answers(squeue=rows("7 PENDING", "8 PREEMPTED"), sacct=rows("7 PREEMPTED", "8 PREEMPTED"))

    assert words(ask("7", "8", commands=order)) == {"7": "PENDING", "8": "PREEMPTED"}


def test_what_only_the_accounting_knows_has_ended_if_squeue_has_answered(answers):
    answers(squeue="", sacct=rows("7 PREEMPTED"))
    assert words(ask("7", commands=("sacct", "squeue"))) == {"7": "PREEMPTED"}

    answers(squeue=None)
    assert words(ask("7", commands=("sacct", "squeue"))) == {}


@pytest.mark.parametrize(
    ("job_id", "word"),
    [
        ("17_1", "COMPLETED"),
        ("17_3", "PENDING"),
        ("17_6", None),
        ("17_8", "PENDING"),
        ("18_500", "PENDING"),
        ("19_2", None),
        ("19_4", "PENDING"),
        ("20", None),
    ],
)
def test_the_tasks_of_an_array_are_found_also_where_they_are_listed_together(job_id, word):
    listed = Slurm().parse_status(
        rows(
            "17_1 COMPLETED",
            "17_[2-5,8%1] PENDING",
            "18_[1,3,5...] PENDING",
            "19_[1-9:3] PENDING",
        )
    )

    found = find_status(listed, job_id)

    assert (found and found.word) == word
    assert found is None or found.state in {JobState.COMPLETED, JobState.PENDING}


def test_the_nodes_of_a_failed_job_are_known_while_slurm_lists_it(answers):
    answers(squeue="n[1-2]\n")
    assert nodes_of("7") == {"n[1-2]"}

    answers(squeue="")
    assert nodes_of("7") == set()
