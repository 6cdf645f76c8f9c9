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
    "QPU_BUDGET",
    "QPU_CHOICE",
    "QPU_CHOICE_WAIT",
    "QPU_COALESCE",
    "QPU_CONFIG",
    "QPU_FALLBACK",
    "QPU_FALLBACK_WAIT",
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
    "QPU_MOVED_FROM",
    "QPU_MOVE_FILE",
    "QPU_NAME",
    "QPU_ON_STOP",
    "QPU_SANDBOX",
    "QPU_SANDBOX_DAEMON",
    "QPU_SITE",
    "QPU_SNAKEMAKE_JOB",
    "QPU_STAGE",
    "QPU_STAGE_MEMBER",
    "QPU_STAGE_WAIT",
    "QPU_STATE",
    "QPU_STEP",
    "STAGE_VARIABLES",
    "USER_VARIABLES",
    "OnStop",
    "choice_wait_seconds",
    "coalesces_by_default",
    "fallback_wait_seconds",
    "journal_days",
    "kill_wait_seconds",
    "lane_wait_seconds",
    "on_stop",
    "requested_lanes",
    "stage_wait_seconds",
]

QPU_ALIVE = "QPU_ALIVE"
QPU_ATTEMPT = "QPU_ATTEMPT"
QPU_BUDGET = "QPU_BUDGET"
QPU_CHOICE = "QPU_CHOICE"
QPU_CHOICE_WAIT = "QPU_CHOICE_WAIT"
QPU_COALESCE = "QPU_COALESCE"
QPU_CONFIG = "QPU_CONFIG"
QPU_FALLBACK = "QPU_FALLBACK"
QPU_FALLBACK_WAIT = "QPU_FALLBACK_WAIT"
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
QPU_MOVED_FROM = "QPU_MOVED_FROM"
QPU_MOVE_FILE = "QPU_MOVE_FILE"
QPU_NAME = "QPU_NAME"
QPU_ON_STOP = "QPU_ON_STOP"
QPU_SANDBOX = "QPU_SANDBOX"
QPU_SANDBOX_DAEMON = "QPU_SANDBOX_DAEMON"
QPU_SITE = "QPU_SITE"
QPU_SNAKEMAKE_JOB = "QPU_SNAKEMAKE_JOB"
QPU_STAGE = "QPU_STAGE"
QPU_STAGE_MEMBER = "QPU_STAGE_MEMBER"
QPU_STAGE_WAIT = "QPU_STAGE_WAIT"
QPU_STATE = "QPU_STATE"
QPU_STEP = "QPU_STEP"

USER_VARIABLES: Mapping[str, str] = {
    QPU_CONFIG: "path of qrmi_config.json, which defines the QPUs",
    QPU_SITE: "path of site.toml, which says how the site grants them",
    QPU_NAME: "the QPU of programs that name none and hold no lease",
    QPU_STATE: "folder of the journal and the leases, on a shared file system",
    QPU_STEP: "the step's name, under which a rerun finds its tasks",
    QPU_STAGE: "the stage whose lease this job uses",
    QPU_STAGE_WAIT: "seconds that a job may wait for its stage's keeper (default 600)",
    QPU_LANES: "how many tasks may run at once under a lease",
    QPU_LANE_WAIT: "seconds that a task may wait for a lane of a busy QPU (default 86400)",
    QPU_CHOICE_WAIT: "seconds to wait while no QPU fits a request (default 3600)",
    QPU_COALESCE: "`1`: payloads that wait for a lane at the same time share tasks",
    QPU_BUDGET: "what the tasks of a job may take: `1000 shots`, or QPU time: `90 s`, `2 h`",
    QPU_FALLBACK: "the QPUs to go on with if the job's own goes away: `ibm_torino,ibm_fez`",
    QPU_FALLBACK_WAIT: "seconds to wait for a task that cannot move to another QPU (default 600)",
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
    QPU_CHOICE: "why the job's QPUs were chosen, as JSON, for the lease records",
    QPU_LEASE_JOB: "the job under whose lease the command runs; empty outside of jobs",
    QPU_LEASE_USAGE: "files in which the tasks of adopted leases record their usage, one per QPU",
    QPU_GRACE: "seconds between SIGTERM and SIGKILL for the command of a `qpu lease exec`",
    QPU_HELD_LANES: "lanes that a call holds and its child processes may use, one task at a time",
    QPU_JOB_USED: "seconds for which the job had run when the command started",
    QPU_JOB_LEFT: "seconds that the job had left when the command started",
    QPU_MOVED_FROM: "the QPUs that the step has left because they had gone",
    QPU_MOVE_FILE: "file that says which QPU the step needs now, if that takes a job of its own",
    QPU_STAGE_MEMBER: "file that the supervisor of a stage's command holds locked",
    QPU_SNAKEMAKE_JOB: "marks the jobs of a Snakemake run, each of which is one attempt",
    QPU_SANDBOX_DAEMON: "marks the sandbox's own processes",
}
"""Variables that this project's programs set for each other; users must not set them."""

STAGE_VARIABLES = (
    QPU_ALIVE,
    QPU_STEP,
    QPU_ATTEMPT,
    QPU_CHOICE,
    QPU_LEASE_JOB,
    QPU_LEASE_USAGE,
    QPU_GRACE,
    QPU_HELD_LANES,
    QPU_FALLBACK,
    QPU_MOVED_FROM,
    QPU_MOVE_FILE,
    QPU_STAGE,
    QPU_STAGE_MEMBER,
)
"""Variables of one stage; a job that belongs to another stage must not inherit them."""

_CHOICE_WAIT_SECONDS = 3600.0
_JOURNAL_DAYS = 90.0
_LANE_WAIT_SECONDS = 86400.0
_STAGE_WAIT_SECONDS = 600.0
_FALLBACK_WAIT_SECONDS = 600.0

OnStop = Literal["cancel", "leave"]
"""The treatment of tasks in flight when their step is stopped."""


def choice_wait_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how long to wait while no QPU fits a request: `$QPU_CHOICE_WAIT`, or an hour.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    seconds = _number(environ, QPU_CHOICE_WAIT)
    return _CHOICE_WAIT_SECONDS if seconds is None else seconds


def coalesces_by_default(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether leases coalesce tasks unless they are told otherwise: `$QPU_COALESCE`.

    Raises:
        ConfigError: It is neither `1` nor `0`.
    """
    value = environ.get(QPU_COALESCE)
    if value in ("1", "0", "", None):
        return value == "1"
    raise ConfigError(f"${QPU_COALESCE}={value!r}: must be `1` or `0`. Correct or unset it.")


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


def stage_wait_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how long to wait for a stage's keeper: `$QPU_STAGE_WAIT`, or ten minutes.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    seconds = _number(environ, QPU_STAGE_WAIT)
    return _STAGE_WAIT_SECONDS if seconds is None else seconds


def fallback_wait_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how long to wait for a task that cannot move: `$QPU_FALLBACK_WAIT`, or ten minutes.

    Raises:
        ConfigError: It is not a number, or negative.
    """
    seconds = _number(environ, QPU_FALLBACK_WAIT)
    return _FALLBACK_WAIT_SECONDS if seconds is None else seconds


def _number(environ: Mapping[str, str], name: str) -> float | None:
    value = environ.get(name)
    if not value:
        return None
    with suppress(ValueError):
        if (number := float(value)) >= 0:
            return number
    raise ConfigError(f"${name}={value!r}: must be a non-negative number. Correct or unset it.")
