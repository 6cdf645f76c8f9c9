"""Refuse a QPU that the scheduler grants to jobs but has not granted to this one.

Most resource types have no lock of their own: nothing but the scheduler's grant keeps two jobs from
using the QPU at the same time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qrmi_workflows.config.notices import read_notice, refusal
from qrmi_workflows.config.site import SitePolicy, readable_site_policy
from qrmi_workflows.errors import LeaseError, RequestError, SchedulerError
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.access import require_user
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.schedulers.request import compile_request
from qrmi_workflows.state.process import JobIdentity

__all__ = [
    "assume_granted",
    "assumed_qpus",
    "granted_qpus",
    "held_units",
    "require_grant",
    "require_in_service",
]

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0

_answers: dict[tuple[JobIdentity, Path], Mapping[str, int]] = {}
"""The scheduler's answers for a job under a site policy: what a job holds does not change."""

_assumed: set[str] = set()


def assume_granted(qpus: Iterable[str]) -> None:
    """Do not ask the scheduler about these QPUs: this process's job was submitted for them.

    A workflow of many short jobs would otherwise ask slurmctld once for each.
    """
    _assumed.update(qpus)


def assumed_qpus() -> frozenset[str]:
    """Return the QPUs for which this process's job was submitted, as far as it was told."""
    return frozenset(_assumed)


def require_grant(qpu: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a QPU that the scheduler has not granted to this process's job.

    It is not refused outside of jobs, or if the site policy does not offer it or does not require a
    grant. If the scheduler does not answer, it is not refused either; a warning says so.

    Raises:
        RequestError: The job does not hold the QPU, or its user may not use it.
    """
    job = None if qpu in _assumed else this_job(environ)
    site = None if job is None else readable_site_policy(environ)
    if job is None or site is None or qpu not in site.qpus:
        return
    require_user(qpu, site)
    if not site.qpus[qpu].require_grant:
        return
    granted = _ask(job, site, environ)
    if granted is None or qpu in granted:
        return
    held = ", ".join(sorted(granted)) or "no QPU of the site policy"
    options = " ".join(compile_request(QPURequest(qpu=qpu), site, this_scheduler(environ)))
    raise RequestError(
        f"QPU {qpu!r} was not granted to job {job.id}, which holds {held}. Submit the job with "
        f"`{options}`. (A site lets jobs use the QPU without a grant by setting `require_grant = "
        f"false` in {site.path}.)"
    )


def require_in_service(qpu: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a QPU that the site's administrators have put into maintenance.

    If it is only known not to be operational, a warning says so: the vendor has the last word.

    Raises:
        LeaseError: It is in maintenance; the message is the administrators'.
    """
    site = readable_site_policy(environ)
    notice = None if site is None else read_notice(qpu, site)
    if notice is None:
        return
    if notice.by_hand:
        raise LeaseError(refusal(notice), qpu, True)
    logger.warning("%s", notice)


def granted_qpus(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the QPUs that this process's job holds; empty outside of jobs and if not known."""
    job = this_job(environ)
    site = None if job is None else readable_site_policy(environ)
    if job is None or site is None:
        return frozenset()
    return frozenset(_ask(job, site, environ) or ())


def held_units(qpu: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return how many units of a QPU this process's job holds; `None` if it is not known."""
    job = this_job(environ)
    site = None if job is None else readable_site_policy(environ)
    if job is None or site is None or qpu not in site.qpus:
        return None
    return (_ask(job, site, environ) or {}).get(qpu)


def _ask(
    job: JobIdentity, site: SitePolicy, environ: Mapping[str, str]
) -> Mapping[str, int] | None:
    if (job, site.path) not in _answers:
        reason = "the scheduler does not know the job"
        try:
            found = this_scheduler(environ).granted_qpus(site, environ, timeout=_ANSWER_SECONDS)
        except SchedulerError as error:
            found, reason = None, str(error)
        if found is None:
            logger.warning("cannot tell which QPUs job %s was granted: %s", job.id, reason)
            return None
        _answers[job, site.path] = dict(found)
    return _answers[job, site.path]
