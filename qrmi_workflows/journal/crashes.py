"""Whether the host of a lock's owner has crashed, and left the lock to the file server."""

from __future__ import annotations

from qrmi_workflows.errors import SchedulerError
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.state.process import Owner

__all__ = ["has_crashed"]

_SCHEDULER_SECONDS = 5.0


def has_crashed(owner: Owner) -> bool:
    """Return whether a lock's host has crashed without releasing it.

    A file server may keep such a lock for minutes, or forever; the scheduler knows that the job
    has ended.
    """
    if owner.is_on_this_host or owner.job is None:
        return False
    if owner.was_requeued(this_job()):
        return True
    try:
        live = this_scheduler().live_jobs(owner.cluster, timeout=_SCHEDULER_SECONDS)
    except SchedulerError:
        return False
    return live is not None and owner.job not in live
