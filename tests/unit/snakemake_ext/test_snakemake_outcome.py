"""How a job with a completion marker ended, decided from Slurm's answer and the marker."""

import pytest

from qrmi_workflows.schedulers.slurm import Slurm
from snakemake_executor_plugin_slurm_qpu.outcome import Outcome, decide_outcome

RUN = "3f1c6a52-0d9c-4a35-9d0b-5a4b7a3e8c11"
RECORDED = f"""\
15|15|COMPLETED|0|None|rule_quantum_job_1-1|{RUN}|
16|16|RUNNING|0|None|rule_quantum_job_2-1|{RUN}|
17|17|FAILED|768|NonZeroExitCode|rule_quantum_job_3-1|{RUN}|
""".replace("|", "\x1f")
"""The output of Slurm 22.05's squeue for `Slurm.status_argv`."""


def listed(state: str, exit_code: str):
    """Return a job as the executor gets it from squeue."""
    line = f"7|7|{state}|{exit_code}|None|rule_quantum_job_1-1|{RUN}|\n"
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
        ("COMPLETED", "0", "", Outcome.SUCCEEDED),  # the marker of a job without a QPU
        ("COMPLETED", "0", "3", Outcome.FAILED),
        ("COMPLETED", "768", "", Outcome.FAILED),
        ("COMPLETING", "0", "0", Outcome.SUCCEEDED),  # a long epilog
        ("COMPLETING", "0", "3", Outcome.UNDECIDED),
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
        ("STATE_OF_A_LATER_SLURM", "0", "0", Outcome.FAILED),
    ],
)
def test_slurm_decides_where_it_lists_the_job(state, exit_code, exit_status, outcome):
    assert decide_outcome(listed(state, exit_code), exit_status) is outcome


@pytest.mark.parametrize(
    ("exit_status", "outcome"),
    [("0", Outcome.SUCCEEDED), ("", Outcome.SUCCEEDED), ("3", Outcome.FAILED)],
)
def test_the_marker_decides_where_slurm_has_forgotten_the_job(exit_status, outcome):
    assert decide_outcome(None, exit_status) is outcome
