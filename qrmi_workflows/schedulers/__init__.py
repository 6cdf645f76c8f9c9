"""Schedulers that grant QPUs: one file each, found by entry point.

The site policy names the site's scheduler (`scheduler = "slurm"`). If it does not, the scheduler is
the one whose job this process runs in; outside of jobs, it is Slurm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qrmi_workflows.config.job import describe_job
from qrmi_workflows.config.site import SitePolicy, find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.plugins import find_plugins
from qrmi_workflows.state.process import JobIdentity

if TYPE_CHECKING:
    from qrmi_workflows.schedulers.base import Scheduler

__all__ = [
    "describe_this_job",
    "is_this_job_requeued",
    "load_scheduler",
    "scheduler_of",
    "this_job",
    "this_scheduler",
]

_DEFAULT = "slurm"
_GROUP = "qrmi_workflows.schedulers"


@cache
def load_scheduler(name: str) -> Scheduler:
    """Return an installed scheduler.

    Raises:
        ConfigError: No scheduler of that name is installed.
    """
    installed = find_plugins(_GROUP)
    if name not in installed:
        raise ConfigError(
            f"unknown scheduler {name!r}; must be one of: {', '.join(sorted(installed))}. "
            "Correct `scheduler` in site.toml, or install its package."
        )
    scheduler: Scheduler = installed[name].load()()
    return scheduler


def this_scheduler(environ: Mapping[str, str] = os.environ) -> Scheduler:
    """Return the scheduler of this site.

    Raises:
        ConfigError: The site policy names a scheduler that is not installed.
    """
    try:
        path = find_site_policy(environ)
    except (ConfigError, OSError):
        # No site policy: a laptop, or a job whose environment is enough. Or no access to the home
        # folder, perhaps only for now; it must not keep a lease from being released.
        path = None
    site = None if path is None else _policy(path)
    return _by_environment(environ) if site is None else scheduler_of(site, environ)


def scheduler_of(site: SitePolicy, environ: Mapping[str, str] = os.environ) -> Scheduler:
    """Return the scheduler that a site policy names; without a name, the environment's.

    Raises:
        ConfigError: That scheduler is not installed.
    """
    if site.scheduler is None:
        return _by_environment(environ)
    try:
        return load_scheduler(site.scheduler)
    except ConfigError as error:
        raise ConfigError(f"{site.place_of_scheduler()}: {error}") from error


def this_job(environ: Mapping[str, str] = os.environ) -> JobIdentity | None:
    """Return the scheduler's job that this process runs in, if any."""
    return this_scheduler(environ).this_job(environ)


def is_this_job_requeued(*, timeout: float) -> bool:
    """Return whether the scheduler ends the job of this process in order to start it again.

    `False` if the scheduler does not answer in time.
    """
    if (job := this_job()) is None:
        return False
    restarts = this_scheduler().restarts(job.id, timeout=timeout)
    return restarts is not None and restarts > job.restart


def describe_this_job(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return QRMI's variables for the job that this process runs in; see `describe_job`."""
    job = this_job(environ)
    return describe_job(None if job is None else job.id, environ)


@cache
def _policy(path: Path) -> SitePolicy | None:
    # Read once: a site does not change its scheduler under a running process.
    try:
        return load_site_policy(path)
    except ConfigError:
        return None  # the code that needs the policy reports the error


def _by_environment(environ: Mapping[str, str]) -> Scheduler:
    names = sorted(find_plugins(_GROUP), key=lambda name: name != _DEFAULT)
    schedulers = (load_scheduler(name) for name in names)
    inside = (scheduler for scheduler in schedulers if scheduler.this_job(environ) is not None)
    return next(inside, None) or load_scheduler(_DEFAULT)
