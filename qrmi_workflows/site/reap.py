"""`qpu reap` for the whole site: root's own leases, and those of all users, each as that user.

A user's files are read by a process with that user's rights: whatever is in them, it can do no more
than the user, and on NFS it may read what root may not. The scheduler is asked once, after all
leases have been read: a job that it does not list then has ended.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qrmi_workflows.errors import ConfigError, SchedulerError
from qrmi_workflows.lease.reap import Reaped
from qrmi_workflows.lease.records import OpenLease, open_leases
from qrmi_workflows.schedulers.base import JobTimes
from qrmi_workflows.schedulers.slurm_scripts import all_job_times, live_jobs
from qrmi_workflows.site.job_end import end_job
from qrmi_workflows.site.job_folder import JobFolder, forget_ended_runs
from qrmi_workflows.site.leases import ReleasingHandles
from qrmi_workflows.site.user_reap import UserReaper, UserState
from qrmi_workflows.state.users import uid_of

logger = logging.getLogger(__name__)

__all__ = ["SiteReaped", "reap_job", "reap_site"]

_ASK_SECONDS = 20.0
_PARALLEL = 8
_BATCH = 64  # jobs that are ended before the next look at what the vendors have answered
_FRESH_SECONDS = 30.0  # for how long an answer of the scheduler is relied upon


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReaped:
    """The outcome of reaping one orphaned lease of any user.

    Attributes:
        user: The user.
        job: The job, if known.
        outcome: The outcome.
    """

    user: str
    job: str | None
    outcome: Reaped


def reap_job(state: Path, job_id: str) -> list[SiteReaped]:
    """Release what the site holds for a job that has ended, or is ending.

    Raises:
        ConfigError: The id is not a job's.
    """
    JobFolder(state, job_id)  # refuses what is not an id
    found = [each for each in open_leases() if each.owner.job == job_id]
    return list(_end(state, job_id, found))


def reap_site(state: Path, users: Iterable[UserState]) -> list[SiteReaped]:
    """Release the leases of all jobs that have ended.

    Args:
        state: The folder of root's files, which `$QPU_STATE` names too.
        users: The state folders of the users.

    Raises:
        SchedulerError: The scheduler does not answer; only leases of dead processes of this host
            have been released.
    """
    forget_ended_runs(state)
    own: dict[str, list[OpenLease]] = defaultdict(list)
    for each in open_leases():
        own[each.owner.job or ""].append(each)
    folders = _jobs_with_folder(state)
    with UserReaper(users) as reaper:
        failure = None
        try:
            # Not the empty set: a process that asks late must not take all jobs for ended.
            live = live_jobs(timeout=_ASK_SECONDS) if own or folders or reaper.waits else None
        except SchedulerError as error:
            failure, live = error, None
        reaper.answer(live)
        reaped: list[SiteReaped] = []
        if live is not None:
            try:
                reaped += _end_all(state, {job: own.get(job, []) for job in {*own, *folders}}, live)
            except SchedulerError as error:
                failure = error
        reaped += [
            SiteReaped(user=user, job=None, outcome=outcome) for user, outcome in reaper.outcomes()
        ]
        for user, said in reaper.ended_stages():
            logger.warning("user %s: %s", user, said)
    if failure is not None:
        raise failure
    return reaped


def _end_all(
    state: Path, jobs: Mapping[str, list[OpenLease]], live: set[str]
) -> Iterator[SiteReaped]:
    """End the jobs that have ended; those that wait for a silent vendor come last.

    Raises:
        SchedulerError: The scheduler does not answer any more.
    """
    asked, failing = time.monotonic(), set[str]()
    waiting = sorted(jobs.keys() - live - {""})
    times = _times_of(waiting)
    answered, silent = set[str](), list[str]()
    with (
        closing(ReleasingHandles()) as handles,
        ThreadPoolExecutor(max_workers=_PARALLEL) as pool,
    ):
        while waiting or silent:
            # A requeued job starts again after two minutes, with another lease and the same folder.
            if time.monotonic() - asked > _FRESH_SECONDS:
                live, asked = live_jobs(timeout=_ASK_SECONDS), time.monotonic()
            silent += [job for job in waiting if failing & _qpus(jobs[job])]
            waiting = [job for job in waiting if not failing & _qpus(jobs[job])]
            batch = _next_batch(waiting, jobs, answered) or silent[:1]
            waiting = [job for job in waiting if job not in batch]
            silent = [job for job in silent if job not in batch]

            def end(job: str) -> list[SiteReaped]:
                return list(_end(state, job, jobs[job], times, handles))

            for ended in pool.map(end, [job for job in batch if job not in live]):
                answered |= {each.outcome.qpu for each in ended}
                failing |= {each.outcome.qpu for each in ended if each.outcome.error}
                yield from ended


def _next_batch(
    waiting: Sequence[str], jobs: Mapping[str, list[OpenLease]], answered: set[str]
) -> list[str]:
    """Choose jobs to end at once: of a QPU whose vendor may be silent, only one."""
    batch, tried = list[str](), set[str]()
    for job in waiting:
        unknown = _qpus(jobs[job]) - answered
        if not unknown & tried:
            tried |= unknown
            batch.append(job)
        if len(batch) == _BATCH:
            break
    return batch


def _qpus(leases: Iterable[OpenLease]) -> set[str]:
    return {each.qpu for each in leases}


def _times_of(jobs: Sequence[str]) -> Mapping[str, JobTimes]:
    """Ask when jobs were submitted and started, once for all of them."""
    if jobs:
        with suppress(SchedulerError):  # the lease records do without
            return all_job_times(timeout=_ASK_SECONDS)
    return {}


def _jobs_with_folder(state: Path) -> set[str]:
    found: set[str] = set()
    for name in ("jobs", "leases/acquiring"):
        with suppress(OSError):
            found |= {each.name for each in os.scandir(state / name) if each.name.isdecimal()}
    return found


def _end(
    state: Path,
    job_id: str,
    found: list[OpenLease],
    times: Mapping[str, JobTimes] | None = None,
    handles: ReleasingHandles | None = None,
) -> Iterator[SiteReaped]:
    user = found[0].user if found else ""
    try:
        outcomes = end_job(
            state,
            job_id,
            uid=uid_of(user),
            found=found,
            times=times,
            handles=handles,
            reaped=True,
        )
    except (OSError, ConfigError) as error:
        failed = Reaped(lease="", qpu="", released=False, error=str(error))
        outcomes = [replace(failed, lease=each.lease, qpu=each.qpu) for each in found]
    for outcome in outcomes:
        yield SiteReaped(user=user, job=job_id, outcome=outcome)
