"""Submitting a batch script: to its answer, and what to believe when there is none.

Slurm may have accepted a job although sbatch failed or never ended (slurmctld is busy, its answer
is lost). The job is in the queue then, and would hold a QPU for nobody; so the queue is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id
from snakemake_interface_common.exceptions import WorkflowError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers.base import COMMAND_TIMEOUT, require_success, run_command

__all__ = ["find_argv", "parse_found", "submit"]

SBATCH_SECONDS = COMMAND_TIMEOUT
_ASK_SECONDS = 30.0
_PAUSE_SECONDS = 2.0


def submit(argv: Sequence[str], script: str, *, name: str, comment: str, cluster: str = "") -> str:
    """Submit a batch script and return its job's id.

    Args:
        argv: The call of sbatch, with `--parsable`.
        script: The batch script.
        name: The job's name in that call.
        comment: The job's comment in that call, which no other job of the name has.
        cluster: The cluster that the call names, or nothing.

    Raises:
        SchedulerError: sbatch failed, and no such job is in the queue.
    """
    try:
        said = require_success(run_command(argv, stdin=script, timeout=SBATCH_SECONDS)).stdout
        return str(validate_or_get_slurm_job_id(said.strip().split(";")[0], said))
    except (SchedulerError, WorkflowError):
        if found := _find(name, comment, cluster):
            return found
        raise


def find_argv(name: str, cluster: str = "") -> list[str]:
    """Build the squeue of this user's jobs of a name."""
    clusters = [f"--clusters={cluster}"] if cluster else []
    form = "--format=%A|%k"
    return ["squeue", "--me", "--noheader", "--states=all", f"--name={name}", *clusters, form]


def parse_found(output: str, comment: str) -> str | None:
    """Read the id of the job with a comment from what `find_argv` prints."""
    rows = (line.partition("|") for line in output.splitlines())
    return next((job_id.strip() for job_id, _, said in rows if said.strip() == comment), None)


def _find(name: str, comment: str, cluster: str) -> str | None:
    """Ask the queue for a job until it answers; `None` when it has none, or does not answer."""
    again = Retrying(
        retry=retry_if_exception_type(SchedulerError),
        wait=wait_fixed(_PAUSE_SECONDS),
        stop=stop_after_delay(_ASK_SECONDS),
        retry_error_callback=lambda _: None,
    )

    def ask() -> str | None:
        shown = require_success(run_command(find_argv(name, cluster)))
        return parse_found(shown.stdout, comment)

    found: str | None = again(ask)
    return found
