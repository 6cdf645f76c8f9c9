"""The time limit of this process's job, which QRMI's clients give to the tasks as theirs."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from qrmi_workflows.config.job import TIMEOUT
from qrmi_workflows.errors import QPUError
from qrmi_workflows.schedulers import this_job, this_scheduler

__all__ = ["ask_time_limit"]

# QRMI signs URLs of S3 for as long (IBM Quantum System API), which cannot exceed a week.
_LONGEST_SECONDS = 7 * 86400


def ask_time_limit() -> Future[dict[str, str]]:
    """Ask the scheduler in the background for the time limit of this process's job.

    Returns:
        A future of QRMI's setting for it; empty outside a job, or if the job has no known limit.
    """
    answer: Future[dict[str, str]] = Future()
    job = this_job()
    if job is None:
        answer.set_result({})
    else:
        arguments = (job.id, answer)
        threading.Thread(target=_ask, args=arguments, name="time-limit", daemon=True).start()
    return answer


def _ask(job_id: str, answer: Future[dict[str, str]]) -> None:
    setting: dict[str, str] = {}
    try:
        running = this_scheduler().running_job(job_id)
        if running is not None and running.left is not None:
            setting = {TIMEOUT: str(min(running.used + running.left, _LONGEST_SECONDS))}
    except QPUError:
        pass  # the resource type's own default applies
    finally:
        answer.set_result(setting)
