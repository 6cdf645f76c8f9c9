"""Examine a site, for `qpu doctor`: what is missing or misconfigured here, and what to do.

Each check is a function in `CHECKS` that takes what has been read of the site, and yields findings.
To add a check, add a function. What only the scheduler knows, its `examine` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from qrmi_workflows.config.findings import Finding
from qrmi_workflows.site.doctor_budgets import check_budgets
from qrmi_workflows.site.doctor_files import (
    check_definitions,
    check_folders,
    check_modes,
    check_notices,
    check_policy,
    check_users,
)
from qrmi_workflows.site.doctor_host import (
    check_kill_wait,
    check_plugins,
    check_state_folder,
    check_versions,
)
from qrmi_workflows.site.doctor_qpus import check_clocks, check_reachability
from qrmi_workflows.site.reading import SiteReading, read_site

__all__ = ["CHECKS", "examine_site"]

Check = Callable[[SiteReading], Iterator[Finding]]


def _check_scheduler(reading: SiteReading) -> Iterator[Finding]:
    if reading.examination is not None:
        yield from reading.examination.findings
    elif reading.scheduler_error is not None:
        yield Finding.error(
            "scheduler",
            reading.scheduler_error,
            "Run this on a host from which jobs are submitted, and check that the scheduler runs.",
        )


CHECKS: tuple[Check, ...] = (
    check_policy,
    check_definitions,
    check_modes,
    check_users,
    check_folders,
    check_notices,
    check_budgets,
    check_reachability,
    check_clocks,
    _check_scheduler,
    check_kill_wait,
    check_state_folder,
    check_versions,
    check_plugins,
)


def examine_site(config: Path | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        config: The path of `qrmi_config.json`; `find_config` finds it if `None`.
    """
    reading = read_site(config)
    return [finding for check in CHECKS for finding in _run(check, reading)]


def _run(check: Check, reading: SiteReading) -> Iterator[Finding]:
    try:
        yield from check(reading)
    except OSError as error:  # such as a folder that this user may not enter
        what = error.filename or check.__name__.removeprefix("_check_").removeprefix("check_")
        yield Finding.error(
            "modes",
            f"{what}: {error.strerror or error}.",
            "Run this as a user who can read it.",
        )
