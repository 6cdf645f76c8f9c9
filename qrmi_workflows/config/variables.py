"""Every `QPU_*` environment variable, and functions that read and check their values.

QRMI's own variables (`QRMI_JOB_QPU_RESOURCES`, …) are in `config.job`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from qrmi_workflows.errors import ConfigError

__all__ = [
    "INTERNAL_VARIABLES",
    "QPU_ALIVE",
    "QPU_ATTEMPT",
    "QPU_CONFIG",
    "QPU_GRACE",
    "QPU_HELD_LANES",
    "QPU_JOB_LEFT",
    "QPU_JOB_USED",
    "QPU_JOURNAL_DAYS",
    "QPU_KILL_WAIT",
    "QPU_LANES",
    "QPU_LANE_WAIT",
    "QPU_LEASE_JOB",
    "QPU_LEASE_RECORD",
    "QPU_LEASE_USAGE",
    "QPU_ON_STOP",
    "QPU_SANDBOX",
    "QPU_SANDBOX_DAEMON",
    "QPU_SITE",
    "QPU_SNAKEMAKE_JOB",
    "QPU_STATE",
    "QPU_STEP",
    "STAGE_VARIABLES",
    "USER_VARIABLES",
    "OnStop",
    "journal_days",
    "kill_wait_seconds",
    "lane_wait_seconds",
    "on_stop",
    "requested_lanes",
]

QPU_ALIVE = "QPU_ALIVE"
QPU_ATTEMPT = "QPU_ATTEMPT"
QPU_CONFIG = "QPU_CONFIG"
QPU_GRACE = "QPU_GRACE"
QPU_HELD_LANES = "QPU_HELD_LANES"
QPU_JOB_LEFT = "QPU_JOB_LEFT"
QPU_JOB_USED = "QPU_JOB_USED"
QPU_JOURNAL_DAYS = "QPU_JOURNAL_DAYS"
QPU_KILL_WAIT = "QPU_KILL_WAIT"
QPU_LANES = "QPU_LANES"
QPU_LANE_WAIT = "QPU_LANE_WAIT"
QPU_LEASE_JOB = "QPU_LEASE_JOB"
QPU_LEASE_RECORD = "QPU_LEASE_RECORD"
QPU_LEASE_USAGE = "QPU_LEASE_USAGE"
QPU_ON_STOP = "QPU_ON_STOP"
QPU_SANDBOX = "QPU_SANDBOX"
QPU_SANDBOX_DAEMON = "QPU_SANDBOX_DAEMON"
QPU_SITE = "QPU_SITE"
QPU_SNAKEMAKE_JOB = "QPU_SNAKEMAKE_JOB"
QPU_STATE = "QPU_STATE"
QPU_STEP = "QPU_STEP"

USER_VARIABLES: Mapping[str, str] = {
    QPU_CONFIG: "path of qrmi_config.json, which defines the QPUs",
    QPU_SITE: "path of site.toml, which says how the site grants them",
    QPU_STATE: "folder of the journal and the leases, on a shared file system",
    QPU_STEP: "the step's name, under which a rerun finds its tasks",
    QPU_LANES: "how many tasks may run at once under a lease",
    QPU_LANE_WAIT: "seconds that a task may wait for a lane of a busy QPU (default 86400)",
    QPU_ON_STOP: "what to do with the tasks of a stopped step: `cancel` (default) or `leave`",
    QPU_JOURNAL_DAYS: "days that the journal keeps inactive steps (default 90)",
    QPU_KILL_WAIT: "seconds between the scheduler's SIGTERM and SIGKILL",
    QPU_LEASE_RECORD: "file that lease records are appended to",
    QPU_SANDBOX: "folder of the sandbox",
}
"""Variables that users and sites may set, with short descriptions for help texts."""

INTERNAL_VARIABLES: Mapping[str, str] = {
    QPU_ALIVE: "file that is deleted when nobody will run the job's steps again",
    QPU_ATTEMPT: "the attempt at the step, set for all processes under one `qpu lease exec`",
    QPU_LEASE_JOB: "the job under whose lease the command runs; empty outside of jobs",
    QPU_LEASE_USAGE: "files in which the tasks of adopted leases record their usage, one per QPU",
    QPU_GRACE: "seconds between SIGTERM and SIGKILL for the command of a `qpu lease exec`",
    QPU_HELD_LANES: "lanes that a call holds and its child processes may use, one task at a time",
    QPU_JOB_USED: "seconds for which the job had run when the command started",
    QPU_JOB_LEFT: "seconds that the job had left when the command started",
    QPU_SNAKEMAKE_JOB: "marks the jobs of a Snakemake run, each of which is one attempt",
    QPU_SANDBOX_DAEMON: "marks the sandbox's own processes",
}
"""Variables that this project's programs set for each other; users must not set them."""

STAGE_VARIABLES = (
    QPU_ALIVE,
    QPU_STEP,
    QPU_ATTEMPT,
    QPU_LEASE_JOB,
    QPU_LEASE_USAGE,
    QPU_GRACE,
    QPU_HELD_LANES,
)
"""Variables of one stage; a job that belongs to another stage must not inherit them."""

_JOURNAL_DAYS = 90.0
_LANE_WAIT_SECONDS = 86400.0

OnStop = Literal["cancel", "leave"]
"""The treatment of tasks in flight when their step is stopped."""


def on_stop(environ: Mapping[str, str] = os.environ) -> OnStop:
    """Return what happens to the tasks of a stopped step by default: `$QPU_ON_STOP`, or cancel.

    They are not left if nobody will run the step again: the file `$QPU_ALIVE` has been deleted.

    Raises:
        ConfigError: It is neither `cancel` nor `leave`.
    """
    value = environ.get(QPU_ON_STOP)
    if value == "leave":
        alive = environ.get(QPU_ALIVE)
        return "leave" if not alive or _can_be_opened(Path(alive)) else "cancel"
    if value in (None, "", "cancel"):
        return "cancel"
    raise ConfigError(
        f"${QPU_ON_STOP}={value!r}: must be `cancel` or `leave`. Correct or unset it."
    )


def _can_be_opened(file: Path) -> bool:
    try:
        file.open("rb").close()  # on NFS, `stat` may answer from a cache, for up to a minute
    except OSError:
        return False
    return True


def requested_lanes(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return `$QPU_LANES`, or `None` if it is not set.

    Raises:
        ConfigError: It is not a positive integer.
    """
    value = environ.get(QPU_LANES)
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"${QPU_LANES}={value!r}: must be a positive integer. Correct or unset it."
        )
    return int(value)


def journal_days(environ: Mapping[str, str] = os.environ) -> float:
    """Return for how many days the journal keeps inactive steps: `$QPU_JOURNAL_DAYS`, or 90.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    days = _number(environ, QPU_JOURNAL_DAYS)
    return _JOURNAL_DAYS if days is None else days


def kill_wait_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds between SIGTERM and SIGKILL, if the environment sets them.

    The supervisor's `$QPU_GRACE` takes precedence over `$QPU_KILL_WAIT`.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    grace = _number(environ, QPU_GRACE)
    return _number(environ, QPU_KILL_WAIT) if grace is None else grace


def lane_wait_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how long a task may wait for a lane of a busy QPU: `$QPU_LANE_WAIT`, or a day.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    seconds = _number(environ, QPU_LANE_WAIT)
    return _LANE_WAIT_SECONDS if seconds is None else seconds


def _number(environ: Mapping[str, str], name: str) -> float | None:
    value = environ.get(name)
    if not value:
        return None
    with suppress(ValueError):
        if (number := float(value)) >= 0:
            return number
    raise ConfigError(f"${name}={value!r}: must be a non-negative number. Correct or unset it.")
