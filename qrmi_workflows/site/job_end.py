"""End the leases that the site's Prolog has acquired for a job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.reap import Reaped
from qrmi_workflows.lease.records import OpenLease
from qrmi_workflows.schedulers import this_scheduler
from qrmi_workflows.site.job_folder import JobFolder
from qrmi_workflows.site.leases import (
    RELEASE_SECONDS,
    Expected,
    ReleasingHandles,
    leases_of,
    release,
)

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import JobTimes

logger = logging.getLogger(__name__)

__all__ = ["end_job", "end_leases"]

_PARALLEL = 8


def end_job(
    state: Path,
    job_id: str,
    *,
    uid: int | None = None,
    found: Sequence[OpenLease] | None = None,
    times: Mapping[str, JobTimes] | None = None,
    handles: ReleasingHandles | None = None,
    reaped: bool = False,
) -> list[Reaped]:
    """Release all leases of a job, and remove its folder.

    Args:
        state: The folder of root's files.
        job_id: The job's id.
        uid: Its user; the owner of what its programs have recorded.
        found: Its leases, if they have been read already.
        times: When each job was submitted and started, if the scheduler has been asked already.
        handles: Those with which the leases of other jobs are released, too.
        reaped: Whether it is the reaper that releases them.

    Returns:
        One outcome for each lease; one that could not be released stays recorded.
    """
    if Expected(state, job_id).end():
        # QRMI lists no sessions, so nobody can find one whose token was lost.
        logger.warning(
            "the Prolog of job %s was killed while it acquired a QPU. If the process that acquires "
            "was killed too, a session may stay open until its time to live ends.",
            job_id,
        )
    folder = JobFolder(state, job_id)
    outcomes = end_leases(
        job_id, folder=folder, uid=uid, found=found, times=times, handles=handles, reaped=reaped
    )
    if not any(each.error for each in outcomes):
        folder.end_run()  # otherwise a later release still needs what is in it
    return outcomes


def end_leases(
    job_id: str,
    *,
    folder: JobFolder | None = None,
    uid: int | None = None,
    found: Sequence[OpenLease] | None = None,
    times: Mapping[str, JobTimes] | None = None,
    handles: ReleasingHandles | None = None,
    reaped: bool = False,
    seconds: float = RELEASE_SECONDS,
) -> list[Reaped]:
    """Release all leases of a job, in parallel.

    Args:
        job_id: The job's id.
        folder: Its folder, if what its programs have recorded is to be in the lease records.
        uid: Its user.
        found: Its leases, if they have been read already.
        times: When each job was submitted and started, if the scheduler has been asked already.
        handles: Those with which the leases of other jobs are released, too.
        reaped: Whether it is the reaper that releases them.
        seconds: How long the vendors may take.
    """
    leases = leases_of(job_id) if found is None else found
    if not leases:
        return []

    def end(opened: OpenLease, ask: Callable[[], JobTimes | None]) -> Reaped:
        try:
            release(
                opened,
                folder=folder,
                uid=uid,
                times=ask,
                handles=handles,
                reaped=reaped,
                seconds=seconds,
            )
        except (QPUError, OSError) as error:
            return Reaped(lease=opened.lease, qpu=opened.qpu, released=False, error=str(error))
        return Reaped(lease=opened.lease, qpu=opened.qpu, released=True)

    if times is not None and len(leases) == 1:
        return [end(leases[0], lambda: times.get(job_id))]
    with ThreadPoolExecutor(max_workers=_PARALLEL + 1) as pool:
        if times is not None:
            return list(pool.map(lambda opened: end(opened, lambda: times.get(job_id)), leases))
        asked = pool.submit(this_scheduler().job_times, job_id)
        return list(pool.map(lambda opened: end(opened, asked.result), leases))
