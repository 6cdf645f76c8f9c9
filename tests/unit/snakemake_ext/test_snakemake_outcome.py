"""How a job ended, decided from Slurm's answer and the marker, and in which words."""

import pytest

from qrmi_workflows.schedulers.slurm import Slurm
from snakemake_executor_plugin_slurm_qpu.outcome import (
    Outcome,
    decide_outcome,
    describe_end,
    describe_forgotten,
    is_held,
)

RUN = "3f1c6a52-0d9c-4a35-9d0b-5a4b7a3e8c11"
RECORDED = f"""\
15|15|COMPLETED|0|None|rule_quantum_job_1-1|{RUN}|
16|16|RUNNING|0|None|rule_quantum_job_2-1|{RUN}|
17|17|FAILED|768|NonZeroExitCode|rule_quantum_job_3-1|{RUN}|
""".replace("|", "\x1f")
"""The output of Slurm 22.05's squeue for `Slurm.status_argv`."""


def listed(state: str, exit_code: str, reason: str = "None"):
    """Return a job as the executor gets it from squeue."""
    line = f"7|7|{state}|{exit_code}|{reason}|rule_quantum_job_1-1|{RUN}|\n"
    return Slurm().parse_status(line.replace("|", "\x1f"))["7"]


def test_one_question_asks_for_all_jobs_of_a_run():
    argv = Slurm().status_argv(name=RUN)

    assert argv[:5] == ["squeue", "--me", "--noheader", "--states=all", f"--name={RUN}"]
    outcomes = {
        job_id: decide_outcome(status, "")
        for job_id, status in Slurm().parse_status(RECORDED).items()
    }
    assert outcomes == {"15": Outcome.SUCCEEDED, "16": Outcome.UNDECIDED, "17": Outcome.FAILED}


@pytest.mark.parametrize(
    ("state", "exit_code", "exit_status", "outcome"),
    [
        ("COMPLETED", "0", "0", Outcome.SUCCEEDED),
        ("COMPLETED", "0", "", Outcome.SUCCEEDED),  # a marker that could not be read
        ("COMPLETED", "0", None, Outcome.SUCCEEDED),
        ("COMPLETED", "0", "3", Outcome.FAILED),
        ("COMPLETED", "768", "", Outcome.FAILED),
        ("COMPLETING", "0", "0", Outcome.SUCCEEDED),  # a long epilog
        ("COMPLETING", "0", "3", Outcome.UNDECIDED),
        ("COMPLETING", "0", None, Outcome.UNDECIDED),  # perhaps to be requeued
        ("COMPLETING", "768", "3", Outcome.UNDECIDED),  # not yet FAILED, or CANCELLED
        ("CONFIGURING", "0", "0", Outcome.UNDECIDED),
        ("RUNNING", "0", "0", Outcome.UNDECIDED),
        ("SUSPENDED", "0", "0", Outcome.UNDECIDED),
        ("STAGE_OUT", "0", "0", Outcome.UNDECIDED),
        ("PENDING", "0", "0", Outcome.UNDECIDED),  # requeued
        ("REQUEUED", "0", "0", Outcome.UNDECIDED),
        ("FAILED", "768", "3", Outcome.FAILED),
        ("FAILED", "768", "0", Outcome.FAILED),
        ("CANCELLED", "0", "0", Outcome.FAILED),
        ("NODE_FAIL", "0", "0", Outcome.FAILED),
        ("TIMEOUT", "0", "0", Outcome.FAILED),
        ("TIMEOUT", "0", None, Outcome.FAILED),
        ("REVOKED", "0", "0", Outcome.SUCCEEDED),
        ("REVOKED", "0", None, Outcome.UNDECIDED),
        ("PREEMPTED", "0", "143", Outcome.FAILED),
        ("PREEMPTED", "0", None, Outcome.FAILED),
        ("STATE_OF_A_LATER_SLURM", "0", "0", Outcome.FAILED),
        ("STATE_OF_A_LATER_SLURM", "0", None, Outcome.UNDECIDED),
    ],
)
def test_slurm_decides_where_it_lists_the_job(state, exit_code, exit_status, outcome):
    assert decide_outcome(listed(state, exit_code), exit_status) is outcome


@pytest.mark.parametrize(
    ("exit_status", "outcome"),
    [
        ("0", Outcome.SUCCEEDED),
        ("3", Outcome.FAILED),
        ("", Outcome.UNDECIDED),
        (None, Outcome.UNDECIDED),
    ],
)
def test_the_marker_decides_where_slurm_has_forgotten_the_job(exit_status, outcome):
    assert decide_outcome(None, exit_status) is outcome


@pytest.mark.parametrize(
    ("status", "exit_status", "said"),
    [
        (
            listed("FAILED", "768", "NonZeroExitCode"),
            None,
            "failed (SLURM status is: 'FAILED', exit code 3)",
        ),
        (
            listed("FAILED", "256"),
            "137",
            "failed (SLURM status is: 'FAILED', signal 9 (SIGKILL))",
        ),
        (listed("CANCELLED", "15"), "", "was cancelled (SLURM status is: 'CANCELLED', signal 15"),
        (listed("PREEMPTED", "0"), "143", "was preempted, and Slurm does not run it again (SLURM"),
        (listed("TIMEOUT", "0", "TimeLimit"), None, "its time limit; raise its `runtime` (S"),
        (listed("NODE_FAIL", "256", "NodeDown"), None, "exit code 1, reason: NodeDown)"),
        (listed("OUT_OF_MEMORY", "125"), None, "memory; raise its `mem_mb` (SLURM status"),
        (listed("NEWLY_INVENTED", "0"), "0", "failed (SLURM status is: 'NEWLY_INVENTED')."),
        (None, "3", "SLURM-job '7' failed (exit code 3)."),
        (None, "255", "SLURM-job '7' failed (exit code 255)."),
    ],
)
def test_the_message_says_what_happened_and_the_exit_code_or_signal(status, exit_status, said):
    message = describe_end("7", status, exit_status)

    assert message.startswith("SLURM-job '7' ")
    assert said in message


def test_the_message_of_a_forgotten_job_says_who_was_asked():
    message = describe_forgotten("7", min_job_age=10, has_accounting=False)
    assert "Slurm no longer knows it (it forgets jobs 10 s after their end)" in message
    message = describe_forgotten("7", min_job_age=None, has_accounting=False)
    assert "Slurm no longer knows it, and" in message
    message = describe_forgotten("7", min_job_age=10, has_accounting=True)
    assert "neither squeue nor sacct knows it" in message


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        ("PENDING", "JobHeldUser", True),
        ("PENDING", "JobHeldAdmin", True),
        ("SPECIAL_EXIT", "None", True),
        ("REQUEUE_HOLD", "None", True),
        ("PENDING", "Resources", False),
        ("RUNNING", "None", False),
    ],
)
def test_a_held_job_is_recognised(state, reason, held):
    assert is_held(listed(state, "0", reason)) == held
