"""Schedulers that grant QPUs: one file each, found by entry point.

The site policy names the site's scheduler (`scheduler = "slurm"`). If it does not, the scheduler is
the one whose job this process runs in; outside of jobs, it is Slurm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

from qrmi_workflows.config.job import describe_job
from qrmi_workflows.config.site import find_site_policy, load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers.base import Scheduler
from qrmi_workflows.state.process import JobIdentity

__all__ = ["describe_this_job", "load_scheduler", "this_job", "this_scheduler"]

_DEFAULT = "slurm"
_GROUP = "qrmi_workflows.schedulers"


@cache
def load_scheduler(name: str) -> Scheduler:
    """Return an installed scheduler.

    Raises:
        ConfigError: No scheduler of that name is installed.
    """
    installed = _installed()
    if name not in installed.names:
        raise ConfigError(
            f"unknown scheduler {name!r}; must be one of: {', '.join(sorted(installed.names))}. "
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
    named = None if path is None else _named_by(path)
    return load_scheduler(named) if named else _by_environment(environ)


def this_job(environ: Mapping[str, str] = os.environ) -> JobIdentity | None:
    """Return the scheduler's job that this process runs in, if any."""
    return this_scheduler(environ).this_job(environ)


def describe_this_job(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return QRMI's variables for the job that this process runs in; see `describe_job`."""
    job = this_job(environ)
    return describe_job(None if job is None else job.id, environ)


@cache
def _installed() -> EntryPoints:
    return entry_points(group=_GROUP)


@cache
def _named_by(policy: Path) -> str | None:
    # Chosen once: a site does not change its scheduler under a running process.
    try:
        return load_site_policy(policy).scheduler
    except ConfigError:
        return None  # the code that needs the policy reports the error


def _by_environment(environ: Mapping[str, str]) -> Scheduler:
    names = sorted(_installed().names, key=lambda name: name != _DEFAULT)
    schedulers = (load_scheduler(name) for name in names)
    inside = (scheduler for scheduler in schedulers if scheduler.this_job(environ) is not None)
    return next(inside, None) or load_scheduler(_DEFAULT)
