"""Refuse a QPU that the scheduler grants to jobs but has not granted to this one.

Most resource types have no lock of their own: nothing but the scheduler's grant keeps two jobs from
using the QPU at the same time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from qrmi_workflows.config.site import SitePolicy, find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError, RequestError, SchedulerError
from qrmi_workflows.schedulers import this_job, this_scheduler
from qrmi_workflows.schedulers.base import QPURequest
from qrmi_workflows.state.process import JobIdentity

__all__ = ["assume_granted", "granted_qpus", "require_grant"]

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0

_answers: dict[tuple[JobIdentity, Path], frozenset[str]] = {}
"""The scheduler's answers for a job under a site policy: what a job holds does not change."""

_assumed: set[str] = set()


def assume_granted(qpus: Iterable[str]) -> None:
    """Do not ask the scheduler about these QPUs: this process's job was submitted for them.

    A workflow of many short jobs would otherwise ask slurmctld once for each.
    """
    _assumed.update(qpus)


def require_grant(qpu: str, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a QPU that the scheduler has not granted to this process's job.

    It is not refused outside of jobs, or if the site policy does not offer it or does not require a
    grant. If the scheduler does not answer, it is not refused either; a warning says so.

    Raises:
        RequestError: The job does not hold the QPU.
    """
    job = None if qpu in _assumed else this_job(environ)
    site = None if job is None else _site_policy(environ)
    if job is None or site is None or qpu not in site.qpus or not site.qpus[qpu].require_grant:
        return
    granted = _ask(job, site, environ)
    if granted is None or qpu in granted:
        return
    held = ", ".join(sorted(granted)) or "no QPU of the site policy"
    options = " ".join(this_scheduler(environ).qpu_options(QPURequest(qpu=qpu), site))
    raise RequestError(
        f"QPU {qpu!r} was not granted to job {job.id}, which holds {held}. Submit the job with "
        f"`{options}`. (A site lets jobs use the QPU without a grant by setting `require_grant = "
        f"false` in {site.path}.)"
    )


def granted_qpus(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the QPUs that this process's job holds; empty outside of jobs and if not known."""
    job = this_job(environ)
    site = None if job is None else _site_policy(environ)
    if job is None or site is None:
        return frozenset()
    return _ask(job, site, environ) or frozenset()


def _site_policy(environ: Mapping[str, str]) -> SitePolicy | None:
    try:
        path = find_site_policy(environ)
    except (ConfigError, OSError):
        return None  # nothing says that the scheduler grants QPUs
    try:
        return load_site_policy(path)
    except ConfigError as error:
        logger.warning("cannot tell which QPUs the scheduler grants: %s", error)
        return None


def _ask(job: JobIdentity, site: SitePolicy, environ: Mapping[str, str]) -> frozenset[str] | None:
    if (job, site.path) not in _answers:
        reason = "the scheduler does not know the job"
        try:
            found = this_scheduler(environ).granted_qpus(site, environ, timeout=_ANSWER_SECONDS)
        except SchedulerError as error:
            found, reason = None, str(error)
        if found is None:
            logger.warning("cannot tell which QPUs job %s was granted: %s", job.id, reason)
            return None
        _answers[job, site.path] = frozenset(found)
    return _answers[job, site.path]
