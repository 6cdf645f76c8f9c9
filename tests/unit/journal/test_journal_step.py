"""A step: which run of it holds which task."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from journal_steps import claim, complete

from qrmi_workflows.journal import step as step_module

FORK = """
import os, sys
from pathlib import Path
from qrmi_workflows.journal.journal import Journal
step = Journal(Path(sys.argv[1])).step("s")
step.claim("d" * 64, qpu="q", program="sampler")[0].submitted("task")
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os._exit(0)
"""


def test_two_runs_in_one_process_hold_different_tasks(journal):
    first, second = journal.step("s"), journal.step("s")

    assert [claim(step)[0].record.number for step in (first, second)] == [0, 1]


def test_a_power_failure_loses_no_intent_and_no_task_id(journal, monkeypatch):
    """Both the record and its folder are synced before the journal goes on."""
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    step = journal.step("s")
    entry, _ = claim(step)
    monkeypatch.setattr(os, "fsync", record)
    entry.intend()
    after_intent = list(synced)
    entry.submitted("task")

    assert after_intent[-1] == step.folder, "the folder, after the record in it"
    assert synced[-1] == step.folder
    assert len(synced) == 2 * len(after_intent) == 4


def test_the_next_run_finds_the_tasks_of_a_closed_one(journal):
    first, second = journal.step("s"), journal.step("s")
    claim(first)[0].submitted("task")
    journal.close(first)

    _, before = claim(second)

    assert before.task_id == "task"
    assert len(list(first.folder.glob("*.run"))) == 1, "the lock of the closed run is removed"


def test_a_forked_child_holds_none_of_its_parents_tasks(journal):
    """The child outlives its parent; the next run still finds the task."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(journal.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"forked\n"
    assert process.wait(timeout=60) == 0

    assert claim(journal.step("s"))[1].task_id == "task"
    process.communicate()


def run(
    journal, *, process: str, command: str = "a.py", attempt: str = "1", rank: str = "0"
) -> int:
    """Complete a task of step `s` as another process would; return how many it has now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["python", command])
        patch.setattr(step_module, "PROCESS", process)
        patch.setenv("PMIX_RANK", rank)
        step = journal.this_step({"QPU_STEP": "s", "QPU_ATTEMPT": attempt})
        complete(step)
        journal.close(step)
    return len(journal.step("s").records())


def test_each_command_and_rank_of_an_attempt_has_its_own_tasks_and_a_retry_finds_them(journal):
    assert run(journal, process="p") == 1
    assert run(journal, process="q", command="b.py") == 2
    assert run(journal, process="r", rank="1") == 3
    assert run(journal, process="s") == 3, "the same command again is a retry"
    assert run(journal, process="t", attempt="2", command="b.py") == 3
    assert run(journal, process="u", attempt="2") == 3


def test_a_rank_is_also_read_from_the_scheduler(journal, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for number, rank in enumerate("012", start=1):
        monkeypatch.setenv("SLURM_PROCID", rank)
        assert run(journal, process=f"p{rank}") == number


@pytest.mark.parametrize("attempt", ["1", ""])
def test_each_lease_of_a_process_has_its_own_tasks_and_a_rerun_finds_them(journal, attempt):
    assert [run(journal, process="p", attempt=attempt) for _ in range(3)] == [1, 2, 3]
    assert [run(journal, process="q", attempt=attempt) for _ in range(4)] == [3, 3, 3, 4]


def test_the_next_lease_of_a_process_finds_the_tasks_that_the_last_one_did_not_complete(journal):
    environ = {"QPU_STEP": "s", "QPU_ATTEMPT": "1"}
    first, second = journal.this_step(environ), journal.this_step(environ)
    claim(first)[0].submitted("task")
    journal.close(first)

    _, before = claim(second)

    assert before is not None
    assert before.task_id == "task"


def test_a_step_may_have_any_name_that_a_file_can_have(journal):
    step = journal.step(os.fsdecode(b"qpu run -o caf\xe9.json"))
    claim(step)[0].submitted("t")
    step.close()

    assert claim(journal.step(step.name))[1].task_id == "t"
